"""Pictures of docs/results.md that `oss-ext compare` does not draw itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from results_found import IMAGES, Found
from results_paper import TABLE3
from results_tables import GRIDS6, ORDERS

from oss_ext.calibration import Amplitudes
from oss_ext.compare.case import Case
from oss_ext.compare.cells import Cells
from oss_ext.compare.rows import Row
from oss_ext.plot import plot_comparison
from oss_ext.plot_amplitudes import plot_amplitudes
from oss_ext.plot_curves import plot_curves
from oss_ext.plot_spread import plot_spread

SHOWN = (
    "stock/flow/euler", "stock/*", "rivals/GITS*", "rivals/DM*", "rivals/LD3*", "published/OSS-ave/euler",
    "ours/joint/euler", "ours/*",
)  # fmt: skip
NAMES = {"stock": "", "published": "", "rivals": "", "ours": "ours "}
SHORT = {
    "from sigma ": "from ",
    " minimiser": "",
    "nodes moved, polished on ": "on ",
    "free start, polished": "polished",
}
ROWS = 6


def draw(found: Found) -> None:
    """What can be drawn of the result files alone."""
    teacher_steps(found)
    orders(found)
    content = found.file("compare_amplitudes")
    if content is not None:
        levels = {name: Amplitudes.model_validate_json(json.dumps(one)) for name, one in content.items()}
        plot_amplitudes(levels, IMAGES / "results_amplitudes.png")
    for name in ("teacher_steps", "orders", "orders_frechet", "amplitudes"):
        size(IMAGES / f"results_{name}.png")


def teacher_steps(found: Found) -> None:
    """20-step schedules of teachers of several lengths (paper's Figure 5)."""
    panels = {}
    for title, group, name in (
        ("OSS, per sample", "published", "OSS, per sample"),
        ("OSS-ave", "published", "OSS-ave"),
        ("ours, joint", "ours", "joint"),
    ):
        lines = {}
        for steps in TABLE3:
            row = found.one(f"table3_{steps}", group=group, name=name)
            if row is not None:
                lines[f"{steps} teacher steps"] = (row["t"], row.get("t_spread"))
        if len(lines) > 1:
            panels[title] = lines
    if panels:
        plot_spread(panels, IMAGES / "results_teacher_steps.png")


def orders(found: Found) -> None:
    """Quality over steps for solvers of several orders (paper's Figure 6): PSNR, and the Frechet distance."""
    levels, distances = {}, {}
    for subject, guidance in found.titles():
        title = f"{subject}, guidance {guidance:g}"
        for label in ("DDIM grid", "ours"):
            group, name = GRIDS6[label]
            for order, solver in ORDERS.items():
                where = {"subject": subject, "guidance": guidance, "group": group, "name": name, "solver": solver}
                some = sorted(found.rows("main", **where), key=lambda row: row["budget"])
                key = f"{label}, order {order}"
                levels.setdefault(title, {})[key] = [(row["budget"], row["psnr"]) for row in some]
                far = [(row["budget"], next(iter(row["distances"].values()))) for row in some if row["distances"]]
                distances.setdefault(title, {})[key] = [(budget, one["teacher"][0]) for budget, one in far]
    for panels, name, label in (
        (levels, "results_orders.png", "PSNR to the teacher, dB"),
        (distances, "results_orders_frechet.png", "Frechet distance to the teacher's samples"),
    ):
        whole = {title: curves for title, curves in panels.items() if any(curves.values())}
        if whole:
            stock = [key for key in next(iter(whole.values())) if key.startswith("DDIM")]
            plot_curves(whole, IMAGES / name, references=stock, y_label=label, log=label.startswith("Frechet"))


def sheet(case: Case, store: Cells, rows: Sequence[Row], patterns: Sequence[str], budget: int, path: Path) -> None:
    """The first held-out samples of some rows, sampled now of the schedules that are kept, beside the teacher's: of
    each pattern the row that is best by the mean over all noises."""
    reference = store.tensor("reference")
    if reference is None:
        return
    columns = {f"Teacher, {case.guide.reference_steps or case.guide.steps} steps": reference[:ROWS]}
    noise, cond = case.noise[:ROWS], {key: value[:ROWS] for key, value in case.cond.items()}
    for pattern in patterns:
        some = [row for row in rows if fnmatchcase(row.key, pattern) and store.schedule(row, budget) is not None]
        row = max(some, key=lambda row: _mean(store, row, budget), default=None)
        schedule = None if row is None else store.schedule(row, budget)
        if row is not None and schedule is not None:
            name = row.name
            for long, short in SHORT.items():
                name = name.replace(long, short)
            title = f"{NAMES.get(row.group, '')}{name}, {row.solver}"
            columns[title] = schedule.sample(case.model, noise, cond, batch_size=case.batch_size)
    if len(columns) > 1:
        labels = case.subject.labels[:ROWS]
        plot_comparison(columns, path, labels=labels if len(labels) == ROWS else None, blocks=1)


def _mean(store: Cells, row: Row, budget: int) -> float:
    """Of the noises' own PSNRs; a row on the first few noises alone is out."""
    cell = store.find(row, budget)
    values = [] if cell is None or cell.psnr is None else cell.psnr
    return sum(values) / len(values) if values else float("-inf")


def size(path: Path, most: int = 300_000) -> None:
    """Fewer colours for a picture that is too large for the repository."""
    if path.exists() and path.stat().st_size > most:
        from PIL import Image

        with Image.open(path) as image:
            image.convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(path, optimize=True)
