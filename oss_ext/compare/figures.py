"""The pictures of a comparison: quality over evaluations, schedules with their spread, sample sheets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from oss_ext.compare.cells import Cell, slug
from oss_ext.compare.measures import images_of, is_picture
from oss_ext.compare.rows import Row
from oss_ext.compare.run import Comparison
from oss_ext.metrics import pooled_psnr
from oss_ext.plot import plot_comparison
from oss_ext.plot_curves import plot_curves
from oss_ext.plot_spread import Line, plot_spread

BEST = {"best stock grid": ("stock", ""), "best rival": ("rivals", ""), "published OSS": ("published", "OSS")}
SHOWN = (
    "ours/joint/euler",
    "ours/joint/dpmpp_2m",
    "ours/joint/fitted",
    "ours/joint, free start/fitted",
    "ours/auto/auto",
)
ACROSS = 12  # pictures beside each other on a sheet
DRAWN = (
    "published/OSS, per sample/euler", "published/OSS-ave/euler", "ours/joint/euler", "ours/joint/fitted",
    "rivals/GITS/ipndm_4", "rivals/DM/unipc_3", "stock/edm/euler",
)  # fmt: skip


def draw(found: Comparison, rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes what can be drawn of the cells there are; the files. Raises ImportError without matplotlib."""
    if not found.cells:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    written = [_curves(found.cells, folder / "psnr_vs_nfe.png")]
    written += _schedules(found.cells, folder)
    written += _sheets(found, rows, folder)
    return written


def _title(cell: Cell) -> str:
    return cell.subject if cell.guidance is None else f"{cell.subject}, guidance {cell.guidance:g}"


def _level(cell: Cell) -> float:
    return float(pooled_psnr(torch.tensor(cell.psnr, dtype=torch.float64)))


def _curves(cells: Sequence[Cell], path: Path) -> Path:
    """Quality over evaluations, of the best of every group and of some rows of ours."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    most = max(len(cell.psnr or ()) for cell in cells)
    for cell in cells:
        if len(cell.psnr or ()) < most:  # on fewer noises: not to be set beside the others
            continue
        curves = panels.setdefault(_title(cell), {})
        for name, (group, begins) in BEST.items():
            if cell.group == group and cell.name.startswith(begins):
                points = dict(curves.get(name, []))
                points[cell.budget] = max(points.get(cell.budget, -torch.inf), _level(cell))
                curves[name] = sorted(points.items())
        key = f"{cell.group}/{cell.name}/{cell.solver}"
        if key in SHOWN:
            curves.setdefault(f"ours, {cell.name}, {cell.solver}", []).append((cell.budget, _level(cell)))
    if not any(panels.values()):
        panels = {_title(cells[0]): {"": [(cells[0].budget, _level(cells[0]))]}}
    panels = {title: curves for title, curves in panels.items() if curves}
    names = {name for curves in panels.values() for name in curves}
    plot_curves(panels, path, references=[name for name in BEST if name in names])
    return path


def _schedules(cells: Sequence[Cell], folder: Path) -> list[Path]:
    """One picture a subject: where the steps are spent, a panel a budget."""
    written = []
    for title in dict.fromkeys(_title(cell) for cell in cells):
        panels: dict[str, dict[str, Line]] = {}
        for cell in cells:
            if _title(cell) == title and cell.t and f"{cell.group}/{cell.name}/{cell.solver}" in DRAWN:
                lines = panels.setdefault(f"{cell.budget} steps", {})
                lines[f"{cell.name}, {cell.solver}"] = (cell.t, cell.t_spread)
        if panels:
            path = folder / f"schedules_{slug(title)}.png"
            plot_spread(panels, path)
            written.append(path)
    return written


def _sheets(found: Comparison, rows: Sequence[Row], folder: Path) -> list[Path]:
    """Teacher, ours and naive side by side, for every subject and budget."""
    written = []
    for case, store in zip(found.cases, found.stores, strict=True):
        reference = store.tensor("reference")
        for budget in sorted({cell.budget for cell in found.cells}):
            columns: dict[str, Tensor] = {}
            for row in rows:
                kept = store.tensor(f"{row.key}_{budget:02d}") if row.pictured else None
                if kept is not None and row.group in ("ours", "stock", "calibration"):
                    columns[f"{row.name.replace(', ', ' ')}, {budget} x {row.solver}"] = kept
            if not columns or reference is None:
                continue
            teacher = images_of(case, reference[: len(next(iter(columns.values())))].to(case.device))
            if not is_picture(teacher):
                continue
            shown = {f"Teacher, {case.guide.reference_steps or case.guide.steps} steps": teacher}
            shown |= {title: images_of(case, kept.to(case.device)) for title, kept in columns.items()}
            path = folder / f"samples_{slug(case.subject.title)}_{budget:02d}.png"
            labels = case.subject.labels[: len(teacher)]
            blocks = max(1, min(3, ACROSS // len(shown)))
            plot_comparison(shown, path, labels=labels if len(labels) == len(teacher) else None, blocks=blocks)
            written.append(path)
    return written
