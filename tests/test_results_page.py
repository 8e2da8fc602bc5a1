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


NOTHING = {"pooled": None, "mean": None}


def entry(group: str, name: str, solver: str, budget: int, level: float, **others: Any) -> dict[str, Any]:
    return {
        "subject": "photo32", "guidance": 1.0, "budget": budget, "group": group, "name": name, "solver": solver,
        "trained": False, "nfe": budget, "noises": 8, "psnr": level, "mean_psnr": level + 1, "ssim": 0.5,
        "distances": {}, "spent": {"total": 7.0}, "samples": 3, "backpropagations": 0, "seconds": 1.0,
        "over_naive": {"pooled": [1.25, 0.5], "mean": [2.25, 0.5]}, "over_ours": NOTHING, "over_untrained": NOTHING,
        "worst_share": 0.25, "t": [1.0, 0.0],
    } | others  # fmt: skip


def study(rows: list[dict[str, Any]], leaders: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    case = {"subject": "photo32", "guidance": 1.0, "heldout": 8, "samples": 3, "grid": "flow", "teacher_steps": 12}
    return {
        "date": "today", "device": "a device", "torch": "2", "cases": [case | {"teacher_solver": "euler"}],
        "rows": rows, "leaders": leaders or [], "left": [["photo32", "stock/beta/euler", 5]], "failed": [],
    }  # fmt: skip


def pair(pooled: float, mean: float) -> dict[str, list[float]]:
    return {"pooled": [pooled, 0.25], "mean": [mean, 0.25]}


def main_study() -> dict[str, Any]:
    levels = {"edm": 11.1, "ddim": 12.2, "flow": 13.3}
    rows = [
        entry("stock", grid, "euler", 5, level, over_untrained=pair(round(level - 16.6, 4), round(level - 16.6, 4)))
        for grid, level in levels.items()
    ]
    rows += [entry("rivals", "GITS", "euler", 5, 14.4, over_untrained=pair(-2.2, -2.2))]
    rows += [entry("rivals", "GITS", "unipc", 5, 15.5, over_untrained=pair(-1.1, 0.2))]
    rows += [entry("ours", "joint", "euler", 5, 16.6)]
    learned = {"trained": True, "backpropagations": 60}
    rows += [entry("rivals", "LD3", "unipc_3", 5, 16.4, over_ours=pair(-0.3, 0.75), over_untrained=pair(-0.2, 0.8),
                   **learned)]  # fmt: skip
    best = {
        "subject": "photo32", "guidance": 1.0, "budget": 5, "noises": 8, "ours": "ours: joint, euler", "error": 0.25,
        "ours_psnr": 16.6, "rival": "rivals: GITS, unipc", "rival_psnr": 15.5,
    }  # fmt: skip
    leaders = [
        best | {"measure": measure, "training": training, "ahead": ahead}
        for training in (False, True)
        for measure, ahead in (("pooled", 1.1), ("mean", -0.75 if training else -0.2))
    ]
    return study(rows, leaders)


LD3 = "<!-- reason photo32, guidance 1, 5 steps, LD3: it learns\nits times. -->\n"
MARGIN = "<!-- reason margin, photo32, guidance 1, 5 steps: a short teacher. -->\n"


def written(page: ModuleType, folder: Path) -> Path:
    (folder / "compare_main.json").write_text(page.dumps(main_study()))
    table2 = [entry("stock", "naive", "euler", 5, 10.5), entry("ours", "joint", "euler", 5, 12.5)]
    (folder / "compare_table2_edm.json").write_text(page.dumps(study(table2)))
    return folder


def test_numbers_stand_where_they_belong(page: ModuleType, tmp_path: Path) -> None:
    assert json.loads(page.dumps(main_study())) == main_study()
    plain, _ = page.results_ahead.reasons_of(page.TEMPLATE.read_text(encoding="utf-8"))[::-1]
    text = page.render(written(page, tmp_path), plain + LD3 + MARGIN)
    lines = text.splitlines()

    def line(start: str) -> str:
        return next(each for each in lines if each.startswith(start))

    assert line("| EDM |").startswith("| EDM | 11.1 / 12.1 |  | 17.7, 22.3 |")
    assert line("| GITS | 14.4").startswith("| GITS | 14.4 / 15.4 |")
    shared = "the best under Euler's method by the pooled average in 1 of 1 cells, by the mean average in 1 of 1 cells."
    assert line("| rivals: GITS |").startswith("| rivals: GITS | 15.5 / 16.5 (unipc) | 7 x 3 |")
    assert line("| rivals: LD3 |").startswith("| rivals: LD3 | 16.4 / 17.4 (unipc_3) | 7 x 3 | 60 | 1.0 |")
    assert line("| photo32, 1 | 5 | pooled |") == (
        "| photo32, 1 | 5 | pooled | joint, euler | 16.60 | GITS, unipc | 15.50 | +1.10 ± 0.25 |"
    )
    # Fixed grids, AYS, OSS-ave, OSS per sample, GITS, DM: the best of each by either average.
    assert line("| photo32, 1 | 5 | +3.30") == (
        "| photo32, 1 | 5 | +3.30 ± 0.25<br>+3.30 ± 0.25 |  |  |  | +1.10 ± 0.25<br>**-0.20 ± 0.25** |  |"
    )
    assert line("| photo32, 1 | 5 | +0.30").startswith("| photo32, 1 | 5 | +0.30 ± 0.25<br>**-0.75 ± 0.25** |  |")
    assert line("| photo32, 1 | 5 | +0.20").startswith("| photo32, 1 | 5 | +0.20 ± 0.25<br>**-0.80 ± 0.25** |  |")
    flowing = " ".join(text.split())
    assert (
        "3 comparisons in 1 cells: ours is ahead by both averages in 1, by more than 2 standard errors in 1. Not "
        "measured yet: AYS tables in 1, OSS-ave in 1, OSS, per sample in 1, DM in 1, S4S in 1, BNS in 1, DS-Solver in "
        "1, DyWeight in 1 of 1 cells." in flowing
    )
    assert "- photo32, guidance 1, 5 steps, GITS: +0.20 ± 0.25 dB mean (GITS, unipc). Why: within the noise" in flowing
    assert "5 steps, LD3: +0.75 ± 0.25 dB mean (LD3, unipc_3). Why: it learns its times." in flowing
    assert line("| naive | 5 |").startswith("| naive | 5 | 10.5 / 11.5 |  |  | 16.4, 16.0, 15.7 |")
    assert line("| ours, joint | 5 |").startswith("| ours, joint | 5 | 12.5 / 13.5 (+1.2 / +2.2) |")
    assert line("| photo32, 1, edm teacher |") == (
        "| photo32, 1, edm teacher | 5 | +2.03 | +1.2 ± 0.5 / +2.2 ± 0.5 |  | reached by the mean average alone |"
    )
    assert "Not reached, and why: - photo32, 1, main study, 5 steps: a short teacher." in flowing
    assert "| Table 2 | ImageNet-64, three teachers | reproduced in kind, 1 of 21 |" in text
    assert shared in flowing
    assert "8 held-out noises" in flowing and "Not measured yet: 1 of 8 cells, beta, euler: 1." in flowing
    assert "{{" not in text and "<!--" not in text


@pytest.mark.parametrize(
    "reasons, message",
    [
        (MARGIN, "no reason is given for photo32, guidance 1, 5 steps, LD3"),
        (LD3, "no reason is given for margin, photo32, guidance 1, 5 steps"),
        (LD3 + MARGIN + LD3.replace("LD3", "DM"), "what is not so: photo32, guidance 1, 5 steps, DM"),
    ],
)
def test_a_cell_that_is_lost_wants_its_reason(page: ModuleType, tmp_path: Path, reasons: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        page.render(written(page, tmp_path), "{{verdict}} {{margins}}" + reasons)


def test_a_reason_may_be_given_within_the_noise(page: ModuleType, tmp_path: Path) -> None:
    """GITS is ahead by 0.2 +- 0.25 dB of the mean: not told apart, and said to be so unless there is a reason."""
    reasons = LD3 + MARGIN + "<!-- reason photo32, guidance 1, 5 steps, GITS: it is lucky. -->"
    text = " ".join(page.render(written(page, tmp_path), "{{verdict}} {{margins}}" + reasons).split())
    assert "GITS: +0.20 ± 0.25 dB mean (GITS, unipc). Why: it is lucky." in text


def test_what_is_ahead_of_joint_under_euler_is_named(page: ModuleType, tmp_path: Path) -> None:
    found = main_study()
    found["rows"] += [entry("published", "OSS, per sample", "euler", 5, 99.0)]
    found["rows"] += [entry("rivals", "DM", "euler", 5, 16.9, mean_psnr=17.0)]
    (tmp_path / "compare_main.json").write_text(page.dumps(found))
    text = " ".join(page.results_tables.table6(page.Found(tmp_path)).split())
    assert "by the pooled average in 0 of 1 cells (ahead of it: photo32, 1, 5 steps, DM: +0.30 dB), by the mean" in text
    assert "by the mean average in 1 of 1 cells." in text


def test_a_pooled_loss_says_what_hangs_on_one_noise(page: ModuleType, tmp_path: Path) -> None:
    found = main_study()
    for row in found["rows"]:
        if row["name"] == "LD3":
            row["over_ours"] = pair(0.75, -0.75)
    (tmp_path / "compare_main.json").write_text(page.dumps(found))
    text = " ".join(page.render(tmp_path, "{{verdict}}" + LD3 + MARGIN).split())
    assert "LD3: +0.75 ± 0.25 dB pooled (LD3, unipc_3; one noise of 8 has 25% of its squared error)." in text


def test_nothing_is_claimed_without_results(page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import results_coverage

    monkeypatch.setattr(results_coverage, "IMAGES", tmp_path)
    _, plain = page.results_ahead.reasons_of(page.TEMPLATE.read_text(encoding="utf-8"))
    text = page.render(tmp_path, plain)
    assert "reproduced in kind" not in text
    assert text.count(page.MISSING) == len(page.SECTIONS) + len(page.WITH_REASONS) - 2  # coverage, Table 7
    assert "| Table 2 | ImageNet-64, three teachers | not measured yet |" in text


def test_the_page_is_that_of_the_result_files(page: ModuleType) -> None:
    if not (page.RESULTS / "compare_main.json").exists():
        assert not page.PAGE.exists()
        return
    assert page.PAGE.read_text(encoding="utf-8") == page.render()


def test_amplitudes_are_drawn_of_their_file(page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    import results_found
    import results_pictures

    monkeypatch.setattr(results_pictures, "IMAGES", tmp_path)
    levels = {"quantiles": [0.05, 0.95], "samples": 4, "t": [1.0, 0.5, 0.0], "low": [-1.5, -1.0, -0.5]}
    content = {name: levels | {"high": [1.5, 1.0, high]} for name, high in (("teacher", 0.5), ("flow", 0.4))}
    (tmp_path / "compare_amplitudes.json").write_text(json.dumps(content))
    results_pictures.draw(results_found.Found(tmp_path))
    assert [path.name for path in tmp_path.glob("*.png")] == ["results_amplitudes.png"]


def test_a_sheet_has_the_best_row_of_each_pattern(
    page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import results_pictures
    import torch

    from oss_ext.cli_common import Source
    from oss_ext.cli_compare import subject_of
    from oss_ext.compare import Guide, compare
    from oss_ext.compare.rows import searched, stock
    from oss_ext.zoo import load

    source = Source("photo32", load("photo32"), torch.device("cpu"), torch.float32)
    rows = [stock("flow", "euler"), stock("ddim", "euler"), searched("euler")]
    found = compare([subject_of(source, 1.0, heldout=2, samples=2)], rows, [2], guide=Guide("flow", 6), out=tmp_path)
    drawn: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(results_pictures, "plot_comparison", lambda columns, *_, **__: drawn.update(columns))
    patterns = ("stock/*", "ours/*", "rivals/*")
    results_pictures.sheet(found.cases[0], found.stores[0], rows, patterns, 2, tmp_path / "sheet.png")
    best = max(found.cells[:2], key=lambda cell: sum(cell.psnr or ()))
    assert list(drawn) == ["Teacher, 6 steps", f"{best.name}, euler", "ours joint, euler"]
    own = found.stores[0].schedule(rows[2], 2)
    assert own is not None
    case = found.cases[0]
    torch.testing.assert_close(drawn["ours joint, euler"], own.sample(case.model, case.noise, case.cond))


@pytest.mark.parametrize("command, wanted", [
    ("all", ["measure", "bench_costs.py", "bench_rivals.py", "collect", "draw", "write"]),
    ("measure", ["measure"]), ("collect", ["collect"]), ("page", ["draw", "write"]),
])  # fmt: skip
def test_one_command_makes_the_whole_page(
    page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, wanted: list[str]
) -> None:
    import make_results

    done: list[str] = []
    monkeypatch.setattr(make_results, "measure", lambda options: done.append(options.command))
    monkeypatch.setattr(make_results, "collect", lambda options: done.append("collect"))
    monkeypatch.setattr(make_results.results_pictures, "draw", lambda found: done.append("draw"))
    monkeypatch.setattr(make_results.results_page, "write", lambda: done.append("write"))
    monkeypatch.setattr(make_results.subprocess, "run", lambda line, **_: done.append(Path(line[1]).name))
    monkeypatch.setattr(sys, "argv", ["make_results.py", command, "--out", str(tmp_path)])
    make_results.main()
    assert done == wanted


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


@pytest.mark.slow
def test_studies_are_measured_side_by_side(tmp_path: Path) -> None:
    command = [sys.executable, str(DOCS / "make_results.py"), "measure", "--out", str(tmp_path), "--small"]
    command += ["--device", "cpu", "--side-by-side", "2", "--study", "table3_100", "--study", "table3_200"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for name in ("table3_100", "table3_200"):
        assert f"{name} photo32:1: done" in printed and f"{name}: 4 cells, 0 left" in printed
        assert "4 cells, 0 left" in (tmp_path / "log" / f"{name}_photo32_1.txt").read_text()
        assert json.loads((tmp_path / name / "compare.json").read_text())["processes"] == 2
