"""docs/results.md, from benchmarks/results alone: compare_*.json, experts.json, costs.json, peers.json, rivals.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import results_ahead
import results_rivals
import results_tables
from results_coverage import coverage
from results_found import IMAGES, MISSING, RESULTS, ROOT, Found, dumps, paragraph

PAGE, TEMPLATE = ROOT / "docs" / "results.md", ROOT / "docs" / "results_template.md"
__all__ = ["MISSING", "PAGE", "RESULTS", "TEMPLATE", "dumps", "render", "write"]


def about(found: Found) -> str:
    result = found["main"]
    if result is None:
        return MISSING
    case = result["cases"][0]
    several = result.get("processes", 1)
    text = (
        f"{case['heldout']} held-out noises a model and guidance scale; the reference is the teacher's sample from the "
        f"same noise, {case['teacher_steps']} `{case['teacher_solver']}` steps on the {case['grid']} grid. Searches, "
        f"and what is trained, see {case['samples']} other noises{_others(found, case['samples'])}. "
        f"Device: {result['device']}, torch {result['torch']}, {result['date']}."
    )
    if several > 1:
        text += f" {several} processes shared the device: seconds are what each took beside the others."
    left, failed = result.get("left", []), result.get("failed", [])
    if left:
        text += f" Not measured yet: {len(left)} of {len(left) + len(result['rows'])} cells, {_named(left)}."
    if failed:
        text += " Failed: " + "; ".join(f"{name} on {title} ({message})" for title, name, message in failed) + "."
    return paragraph(text)


def _named(left: list[list[Any]]) -> str:
    """The rows of cells that are left, with how many each."""
    counts = Counter(row.partition("/")[2] for _, row, _ in left)
    return "; ".join(f"{row.replace('/', ', ')}: {count}" for row, count in counts.items())


def _others(found: Found, usual: int) -> str:
    """Rows that are made of another number of noises."""
    counts = {row["name"]: row["samples"] for row in found.rows("main") if row["samples"] not in (0, usual)}
    counts = {name: count for name, count in counts.items() if str(count) not in name and name != "OSS, per sample"}
    return "".join(f", {name} {count}" for name, count in counts.items())


def picture(name: str, about: str) -> str:
    return f"![{about}](images/{name})" if (IMAGES / name).exists() else ""


Section = Callable[[Found], str]
SECTIONS: dict[str, Section] = {
    "about": about,
    "coverage": coverage,
    "leading_free": lambda found: results_ahead.leading(found, training=False),
    "leading_all": lambda found: results_ahead.leading(found, training=True),
    "matrix_free": lambda found: results_ahead.matrix(found, results_ahead.FREE, "over_untrained"),
    "matrix_trained": lambda found: results_ahead.matrix(found, results_ahead.TRAINED, "over_ours"),
    "matrix_free_trained": lambda found: results_ahead.matrix(found, results_ahead.TRAINED, "over_untrained"),
    "table1": results_tables.table1,
    "table2": results_tables.table2,
    "table3": results_tables.table3,
    "table4": results_tables.table4,
    "table6": results_tables.table6,
    "table7": results_tables.table7,
    "figure5": results_tables.figure5,
    "candidates": results_tables.candidates,
    "orders": results_tables.orders,
    "calibration": results_tables.calibration,
    "distances": results_tables.distances,
    "experts": results_tables.experts,
    "gains_of_training": results_rivals.gains_of_training,
    "peers": results_rivals.peers,
    "training": results_rivals.training,
    "every_row": results_rivals.every_row,
}
WITH_REASONS: dict[str, Callable[[Found, dict[str, str]], str]] = {
    "verdict": results_ahead.verdict,
    "margins": results_ahead.margins,
}
PICTURES = {
    "psnr": ("results_main_psnr_vs_nfe.png", "PSNR against evaluations"),
    "schedules": ("results_main_schedules_photo32-guidance-1.png", "Schedules and their spread over samples"),
    "schedules_vp": ("results_main_schedules_photo32-vp-guidance-1.png", "Schedules of the second model"),
    "samples": ("results_main_samples_photo32-guidance-1_10.png", "Teacher, ours and naive at 10 steps"),
    "samples_vp": ("results_main_samples_photo32-vp-guidance-1_10.png", "The second model"),
    "rivals": ("results_rivals_samples.png", "Teacher, rivals and ours at 5 steps, guidance 3"),
    "teacher_steps": ("results_teacher_steps.png", "Schedules of teachers of 100 to 1000 steps"),
    "orders": ("results_orders.png", "Solver orders: PSNR over steps"),
    "orders_frechet": ("results_orders_frechet.png", "Solver orders: Frechet distance over steps"),
    "amplitudes": ("results_amplitudes.png", "Amplitudes of teacher and students"),
    "calibration": ("results_calibration_samples_photo32-guidance-1_05.png", "Samples with and without calibration"),
}


def render(folder: Path = RESULTS, template: str | None = None) -> str:
    """The page, of the files in `folder`. Raises ValueError for reasons that are missing, or of what is not so."""
    found = Found(folder)
    text = TEMPLATE.read_text(encoding="utf-8") if template is None else template
    reasons, text = results_ahead.reasons_of(text)
    parts = {name: section(found) for name, section in SECTIONS.items()}
    parts |= {name: section(found, reasons) for name, section in WITH_REASONS.items()}
    parts |= {f"picture_{name}": picture(*what) for name, what in PICTURES.items()}
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part)
    return text


def write(folder: Path = RESULTS) -> None:
    PAGE.write_text(render(folder), encoding="utf-8")
    print(f"wrote {PAGE}")
