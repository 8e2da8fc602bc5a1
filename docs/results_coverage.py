"""What of the paper is reproduced here: counted in the result files, not claimed."""

from __future__ import annotations

from collections.abc import Callable

from results_found import IMAGES, Found, table
from results_paper import TABLE2, TABLE3, TABLE4, TABLE5, TABLE6, TEACHERS
from results_tables import KINDS2, NAMES3, NAMES4, ROWS6

Count = tuple[int, int]
"""(numbers of the paper that have one of ours beside them, the paper's)."""


def _table2(found: Found) -> Count:
    wanted = [
        (grid, group, name, budget)
        for label, group, name, budgets in KINDS2
        if label in ("naive", "OSS, per sample")
        for budget in budgets
        for grid in TEACHERS
    ]
    there = [found.one(f"table2_{grid}", group=group, name=name, budget=k) for grid, group, name, k in wanted]
    return len(there) - there.count(None), sum(len(row) for kind in TABLE2.values() for row in kind.values())


def _table3(found: Found) -> Count:
    have = 0
    for steps, paper in TABLE3.items():
        for value, (group, name) in zip(paper, NAMES3.values(), strict=False):
            row = found.one(f"table3_{steps}", group=group, name=name or f"{steps} steps")
            have += value is not None and row is not None
    return have, sum(value is not None for paper in TABLE3.values() for value in paper)


def _table4(found: Found) -> Count:
    names = [own for own, _, _ in NAMES4.values()]
    return sum(found.one("table4", name=name, budget=5) is not None for name in names), len(TABLE4)


def _table5(found: Found) -> Count:
    rows = (found.file("experts") or {"rows": {}})["rows"]
    return sum(2 for name in TABLE5 if name in rows), 2 * len(TABLE5)


def _table6(found: Found) -> Count:
    """Theirs on one data set are set beside ours on one model and guidance."""
    have = 0
    for subject, guidance in found.titles():
        for method in TABLE6:
            group, name = ROWS6[method]
            for budget in (5, 10):
                where = {"subject": subject, "guidance": guidance, "budget": budget, "solver": "euler"}
                have += found.one("main", group=group, name=name, **where) is not None
    return have, sum(2 * len(row) for row in TABLE6.values())


def _pictures(*names: str) -> Callable[[Found], Count]:
    return lambda found: (sum((IMAGES / name).exists() for name in names), len(names))


COMPARE = "`oss-ext compare pkg.module:load_model"
EXAMPLES = "`examples/search_{}.py`, then `oss_ext.plot.plot_comparison`"
ITEMS: list[tuple[str, str, Callable[[Found], Count] | str, str]] = [
    ("Table 1", "properties of the methods", lambda found: (int(found["main"] is not None), 1), ""),
    ("Table 2", "ImageNet-64, three teachers", _table2,
     COMPARE + " --grid edm --teacher-solver euler --budget 5 --budget 10 --budget 20 --budget 50`, then ddim, flow"),
    ("Table 3", "ImageNet-64, teacher steps", _table3,
     COMPARE + " --grid ddim --teacher-solver euler --teacher-steps 200 --reference-steps 1000 --budget 20`"),
    ("Table 4", "ImageNet-64, costs", _table4,
     COMPARE + " --cost x0 --cost features --features pkg:inception --cost blocks.7 --teacher-solver euler "
     "--only costs --only '*/joint/euler' --only '*/OSS, per sample/*'`"),
    ("Table 5", "ImageNet-256, experts", _table5, "`examples/experts.py`; FID with `--features`, `--real`"),
    ("Table 6", "four data sets, methods", _table6, COMPARE + " --budget 5 --budget 10`"),
    ("Table 7, Figures 9, 11", "Flux.1-dev, GenEval", "its weights and the GenEval detectors",
     "search and sample through the pipeline (docs/diffusers.md), then GenEval's own script on the images"),
    ("Figures 1, 12, 13", "Flux.1-dev, sample sheets", _pictures("results_main_samples_photo32-guidance-1_10.png"),
     EXAMPLES.format("flux")),
    ("Figures 2, 3", "diagrams", "nothing to measure", ""),
    ("Figure 4", "amplitudes", _pictures("results_amplitudes.png"),
     "`oss_ext.amplitudes`, `amplitudes_of`, `oss_ext.plot_amplitudes.plot_amplitudes`"),
    ("Figure 5", "schedules, teacher steps", _pictures("results_teacher_steps.png"), "as Table 3, several times"),
    ("Figure 6", "ImageNet-256, solver orders, FID", _pictures("results_orders.png"),
     COMPARE + " --only 'stock/ddim/*' --only 'ours/joint/*' --features pkg:inception --real pkg:images`"),
    ("Figure 7", "MAR", "its weights", "`examples/search_mar.py`"),
    ("Figure 8", "calibrated samples", _pictures("results_calibration_samples_photo32-guidance-1_05.png"),
     COMPARE + " --only calibration`"),
    ("Figure 10", "schedules of DiT, Flux, Open-Sora, Wan",
     _pictures("results_main_schedules_photo32-guidance-1.png", "results_main_schedules_photo32-vp-guidance-1.png"),
     "`examples/search_dit.py`, `search_flux.py`, `search_open_sora.py`, `search_wan.py`"),
]  # fmt: skip


def coverage(found: Found) -> str:
    """Every table and figure of the paper, and whether it is reproduced in kind."""
    lines = []
    for item, about, counted, how in ITEMS:
        if isinstance(counted, str):
            said = "not applicable" if counted == "nothing to measure" else f"out of reach: {counted}"
        else:
            have, wanted = counted(found)
            said = "not measured yet" if not have else f"reproduced in kind, {min(have, wanted)} of {wanted}"
        lines.append([item, about, said, how])
    return table(["paper", "of", "here", "on your model"], lines, 4)
