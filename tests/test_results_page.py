"""docs/results.md: made of the result files alone, every number where it belongs, what is missing said to be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS))
    import results_page

    return results_page


def entry(group: str, name: str, solver: str, budget: int, level: float, **others: Any) -> dict[str, Any]:
    return {
        "subject": "photo32", "guidance": 1.0, "budget": budget, "group": group, "name": name, "solver": solver,
        "trained": False, "nfe": budget, "noises": 8, "psnr": level, "mean_psnr": level + 1, "ssim": 0.5,
        "distances": {}, "spent": {"total": 7.0}, "samples": 3, "backpropagations": 0, "seconds": 1.0,
        "over_naive": {"pooled": [1.25, 0.5], "mean": [2.25, 0.5]}, "t": [1.0, 0.0],
    } | others  # fmt: skip


def study(rows: list[dict[str, Any]], leaders: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    case = {"subject": "photo32", "guidance": 1.0, "heldout": 8, "samples": 3, "grid": "flow", "teacher_steps": 12}
    return {
        "date": "today", "device": "a device", "torch": "2", "cases": [case | {"teacher_solver": "euler"}],
        "rows": rows, "leaders": leaders or [],
    }  # fmt: skip


def test_numbers_stand_where_they_belong(page: ModuleType, tmp_path: Path) -> None:
    levels = {"edm": 11.1, "ddim": 12.2, "flow": 13.3}
    main = [entry("stock", grid, "euler", 5, level) for grid, level in levels.items()]
    main += [entry("rivals", "GITS", "euler", 5, 14.4), entry("rivals", "GITS", "unipc", 5, 15.5)]
    main += [entry("ours", "joint", "euler", 5, 16.6)]
    best = {
        "subject": "photo32", "guidance": 1.0, "budget": 5, "noises": 8, "ours": "ours: joint, euler", "error": 0.25,
        "ours_psnr": 16.6, "rival": "rivals: GITS, unipc", "rival_psnr": 15.5,
    }  # fmt: skip
    leaders = [
        best | {"measure": measure, "training": training, "ahead": ahead}
        for training in (False, True)
        for measure, ahead in (("pooled", 1.1), ("mean", -0.5 if training else 0.5))
    ]
    (tmp_path / "compare_main.json").write_text(page.dumps(study(main, leaders)))
    table2 = [entry("stock", "naive", "euler", 5, 10.5), entry("ours", "joint", "euler", 5, 12.5)]
    (tmp_path / "compare_table2_edm.json").write_text(page.dumps(study(table2)))
    assert json.loads(page.dumps(study(main))) == study(main)
    text = page.render(tmp_path)
    lines = text.splitlines()

    def line(start: str) -> str:
        return next(each for each in lines if each.startswith(start))

    assert line("| EDM |").startswith("| EDM | 11.1 / 12.1 |  | 17.7, 22.3 |")
    assert line("| GITS |").startswith("| GITS | 14.4 / 15.4 |")
    assert line("| rivals: GITS |").startswith("| rivals: GITS | 15.5 / 16.5 (unipc) | 7 x 3 |")
    assert line("| training-free |").count("16.6 (joint, euler) | 15.5 (GITS, unipc)") == 2
    assert "+1.10 ± 0.25" in line("| all |") and "-0.50 ± 0.25" in line("| all |")
    assert "A rival is ahead by at least one average in: photo32, 1, 5 steps (all)." in " ".join(text.split())
    assert line("| naive | 5 |").startswith("| naive | 5 | 10.5 / 11.5 |  |  | 16.4, 16.0, 15.7 |")
    assert line("| ours, joint | 5 |").startswith("| ours, joint | 5 | 12.5 / 13.5 (+1.2 / +2.2 ± 0.5) |")
    assert "8 held-out noises" in " ".join(text.split())
    assert text.count(page.MISSING) == 5 and "{{" not in text


def test_the_page_is_that_of_the_result_files(page: ModuleType) -> None:
    if not (page.RESULTS / "compare_main.json").exists():
        assert not page.PAGE.exists()
        return
    assert page.PAGE.read_text(encoding="utf-8") == page.render()


@pytest.mark.slow
def test_a_study_is_measured_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, str(DOCS / "make_results.py")]
    options = ["--out", str(tmp_path), "--small", "--device", "cpu", "--study", "table3_100"]
    first = subprocess.run([*command, "measure", *options], check=True, capture_output=True, text=True).stdout
    assert "table3_100: 4 cells, 0 left" in first
    result = json.loads((tmp_path / "table3_100" / "compare.json").read_text())
    assert {row["group"] for row in result["rows"]} == {"teacher", "published", "ours"}
    assert all(row["noises"] == 4 for row in result["rows"])
    again = subprocess.run([*command, "measure", *options], check=True, capture_output=True, text=True).stdout
    assert json.loads((tmp_path / "table3_100" / "compare.json").read_text())["rows"] == result["rows"]
    assert "0 left" in again
