"""The README's Python runs as printed, with a smaller search; its pictures and links exist."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

import oss_ext

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    first, changed = re.subn(r"steps=10, teacher_steps=100", "steps=3, teacher_steps=6", blocks[0])
    assert changed == 1
    second, changed = re.subn(r"steps=(10|5),", "steps=3, teacher_steps=6,", blocks[1])
    assert changed == 4
    second, changed = re.subn(r"noise\(32\)", "noise(4)", second)
    assert changed == 1
    second, changed = re.subn(r"(refine\(.*)\)  #", r"\1, teacher_steps=6, evaluations=20)  #", second)
    assert changed == 1
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(first, str(README), "exec"), names)
    images = names["images"]
    assert isinstance(images, torch.Tensor)
    assert images.shape == (9, 3, 32, 32)
    assert oss_ext.Schedule.load("schedule.json").steps == 3
    assert "torch.Size([9, 3, 32, 32])" in capsys.readouterr().out
    exec(compile(second, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("{'steps': 3, 'family': ")
    assert printed.count("'teacher': 6") == 4


def test_evaluations_of_the_defaults() -> None:
    model = oss_ext.FlowModel(lambda x, t: x.sin() * t.view(-1, 1) ** 2)
    spent = oss_ext.dp_search(model, torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), 10).nfe["total"]
    text = " ".join(README.read_text(encoding="utf-8").split())
    assert f"With the defaults that is {spent:g} for budgets up to 10" in text
    assert spent <= 200 * 11 / 8


def test_links_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)]+)\)", (ROOT / name).read_text(encoding="utf-8")):
            assert target.startswith("https://") or (ROOT / target).is_file(), f"{name}: {target}"


def test_pictures_are_small() -> None:
    for path in (ROOT / "docs" / "images").glob("*.png"):
        assert path.stat().st_size < 300_000, path.name


def test_the_numbers_are_those_of_the_result_files() -> None:
    tables = runpy.run_path(str(ROOT / "benchmarks" / "readme_tables.py"))
    assert tables["block"]() in README.read_text(encoding="utf-8")
