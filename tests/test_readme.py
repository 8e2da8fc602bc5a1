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


def test_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 1
    code, changed = re.subn(r"steps=10, teacher_steps=100", "steps=3, teacher_steps=6", blocks[0])
    assert changed == 1
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), names)
    images = names["images"]
    assert isinstance(images, torch.Tensor)
    assert images.shape == (9, 3, 32, 32)
    assert oss_ext.Schedule.load("schedule.json").steps == 3
    assert "torch.Size([9, 3, 32, 32])" in capsys.readouterr().out


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
