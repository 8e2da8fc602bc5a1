"""The code in the README and on the page of docs runs as printed, on a tiny pipeline in place of the one it names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed, which diffusers' pipelines import")

import diffusers
from helpers import tiny_pipelines as tiny

import oss_ext

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("page", ["README.md", "docs/diffusers.md"])
def test_the_page_runs(page, tmp_path, monkeypatch, capsys):
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("    import torch"))
    block = []
    for line in lines[first:]:
        if line and not line.startswith("    "):
            break
        block.append(line[4:])
    made = tiny.flux()
    pipe = made.pipe
    pipe.default_sample_size = 8  # in place of 128
    asked = []

    def encode_prompt(prompt=None, num_images_per_prompt=1, **_):
        asked.append(prompt)
        text = tiny.embeds(1, 3, 8, seed=len(prompt))
        return text, tiny.embeds(1, 6, seed=len(prompt)), torch.zeros(3, 3)

    pipe.__dict__["encode_prompt"] = encode_prompt
    monkeypatch.setattr(diffusers.FluxPipeline, "from_pretrained", lambda name, torch_dtype: pipe)
    monkeypatch.setattr(diffusers.FluxPipeline, "to", lambda self, where: self)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("\n".join(block), names)
    assert set(asked[:-1]) == set(names["prompts"]) and asked[-1] == "a bridge in fog"
    assert names["image"].size == (16, 16)
    assert names["result"].schedule.steps == 10 and len(names["result"].teacher) == 4
    assert torch.equal(oss_ext.Schedule.load("flux-10.json").t, names["result"].schedule.t)
    assert isinstance(pipe.scheduler, diffusers.FlowMatchEulerDiscreteScheduler)
    told = capsys.readouterr()
    assert "steps of 4 pipeline loops of 1 sample," in told.out + told.err
