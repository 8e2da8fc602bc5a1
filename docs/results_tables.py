"""The paper's tables and figures in kind: our numbers beside theirs, of the result files."""

from __future__ import annotations

from typing import Any

from results_found import MEASURES, MISSING, Entry, Found, both, difference, paragraph, table
from results_paper import TABLE1, TABLE2, TABLE3, TABLE4, TABLE5, TABLE6, TABLE7, TEACHERS

ROWS6 = {
    "EDM": ("stock", "edm"), "DDIM": ("stock", "ddim"), "FM": ("stock", "flow"), "DM": ("rivals", "DM"),
    "GITS": ("rivals", "GITS"), "OSS-ave": ("published", "OSS-ave"), "ours, joint": ("ours", "joint"),
}  # fmt: skip
KINDS2 = [
    ("naive", "stock", "naive", (50, 20, 10, 5)),
    ("OSS, per sample", "published", "OSS, per sample", (20, 10, 5)),
    ("OSS-ave", "published", "OSS-ave", (20, 10, 5)),
    ("ours, joint", "ours", "joint", (20, 10, 5)),
]
NAMES3 = {
    "teacher": ("teacher", None), "OSS, per sample": ("published", "OSS, per sample"),
    "OSS-ave": ("published", "OSS-ave"), "ours, joint": ("ours", "joint"),
}  # fmt: skip
NAMES4 = {
    "x_t": ("OSS, per sample", "joint", "x_t"),
    "x0": ("OSS, per sample, x0", "x0", "x0"),
    "features of x0": (
        "OSS, per sample, features of x0",
        "features of x0",
        "features of x0: the bundled classifier's; paper's: Inception-V3's",
    ),
    "perceptual": ("OSS, per sample, perceptual", "perceptual", "perceptual, of the network's activations"),
}  # cost: (row with schedules of its own, joint row, what the table calls it)
ORDERS = {"1": "euler", "2": "dpmpp_2m", "3": "dpmpp_3m"}
GRIDS6 = {"DDIM grid": ("stock", "ddim"), "EDM grid": ("stock", "edm"), "ours": ("ours", "joint")}


def table1(found: Found) -> str:
    """Properties: two of them as measured, two by how the methods are made."""
    if found["main"] is None:
        return MISSING
    own = {
        "AYS": ("published", "ays-sd15"),
        "GITS": ("rivals", "GITS"),
        "DM": ("rivals", "DM"),
        "LD3": ("rivals", "LD3"),
        "OSS": ("published", "OSS-ave"),
        "ours, joint": ("ours", "joint"),
    }
    lines = []
    for name, (group, row) in own.items():
        some = found.rows("main", group=group, name=row)
        if not some:
            continue
        passes = max(each["backpropagations"] for each in some)
        marks = TABLE1.get(name, "")
        moves = _moves_with_the_solver(some)
        by_solver = "one solver measured" if moves is None else "yes" if moves else "no"
        lines.append([name, *(marks or "    "), f"{passes:d}" if name != "AYS" else "tables, not searched", by_solver])
    head = [
        "",
        "training-free",
        "stability",
        "solver-aware",
        "global error",
        "here: back-props",
        "times move with solver",
    ]
    return table(head, lines, len(head)) + "\n\n" + paragraph("Columns 2 to 5: the paper's marks. ")


def _moves_with_the_solver(rows: list[Entry]) -> bool | None:
    """Whether rows of several solvers differ in their times; None: of one solver alone."""
    seen: dict[tuple[Any, ...], list[Entry]] = {}
    for row in rows:
        seen.setdefault((row["subject"], row["guidance"], row["budget"]), []).append(row)
    if max(len(some) for some in seen.values()) < 2:
        return None
    return any(max(abs(a - b) for a, b in zip(some[0]["t"], row["t"], strict=True)) > 1e-3
               for some in seen.values() for row in some[1:])  # fmt: skip


def table6(found: Found) -> str:
    if not found.titles():
        return MISSING
    lines = []
    for name, (group, row) in ROWS6.items():
        line = [name]
        for subject, guidance in found.titles():
            where = {"subject": subject, "guidance": guidance, "group": group, "name": row, "solver": "euler"}
            line += [both(found.one("main", budget=budget, **where)) for budget in (5, 10)]
        paper = TABLE6.get(name)
        line += [""] * 4 if paper is None else [f"{a:.1f}, {b:.1f}" for a, b in paper]
        lines.append(line)
    head = ["Euler, 5 and 10 steps"]
    head += [f"{subject}, {guidance:g}: {budget}" for subject, guidance in found.titles() for budget in (5, 10)]
    text = table([*head, "paper: ImageNet-64", "LSUN-Bed", "FFHQ-64", "MSCOCO"], lines)
    return f"{text}\n\n" + paragraph(shared_euler(found))


def shared_euler(found: Found) -> str:
    """In how many cells the joint search is the best of all schedules that noises share under Euler's method, and what
    is ahead of it in the others."""
    parts = []
    for measure, name in MEASURES.items():
        cells, ahead = 0, []
        for subject, guidance in found.titles():
            for budget in found.budgets("main"):
                where = {"subject": subject, "guidance": guidance, "budget": budget, "solver": "euler"}
                others = [
                    row
                    for row in found.rows("main", trained=False, **where)
                    if row["group"] != "ours" and row["name"] != "OSS, per sample"
                ]
                mine = found.one("main", group="ours", name="joint", **where)
                if mine is None or not others:
                    continue
                cells += 1
                best = max(others, key=lambda row: row[name])
                if best[name] > mine[name]:
                    gap = f"{best[name] - mine[name]:+.2f}"
                    ahead.append(f"{subject}, {guidance:g}, {budget} steps, {best['name']}: {gap} dB")
        listed = f" (ahead of it: {'; '.join(ahead)})" if ahead else ""
        parts.append(f"by the {measure} average in {cells - len(ahead)} of {cells} cells{listed}")
    return (
        "Of all schedules that the noises share and that need no training, grids and tables among them, the joint one "
        f"is the best under Euler's method {', '.join(parts)}."
    )


def table2(found: Found) -> str:
    if not any(found.rows(f"table2_{grid}") for grid in TEACHERS):
        return MISSING
    lines = []
    for label, group, name, budgets in KINDS2:
        for budget in budgets:
            line = [label, str(budget)]
            for grid in TEACHERS:
                row = found.one(f"table2_{grid}", group=group, name=name, budget=budget)
                over = row["over_naive"] if row is not None and group != "stock" else {}
                gains = [f"{over[measure][0]:+.1f}" for measure in MEASURES if over.get(measure)]
                line.append(both(row) + (f" ({' / '.join(gains)})" if gains else ""))
            paper = TABLE2.get({"naive": "naive", "OSS, per sample": "OSS"}.get(label, ""), {}).get(budget)
            base = TABLE2["naive"][budget]
            cells = []
            for value, before in zip(paper or (), base, strict=False):
                cells.append(f"{value:.1f}" + (f" ({value - before:+.1f})" if label != "naive" else ""))
            lines.append([*line, ", ".join(cells)])
    return table(["", "steps", *(f"{grid} teacher" for grid in TEACHERS), "paper: EDM, DDIM, FM"], lines, 2)


def table3(found: Found) -> str:
    lines = []
    for steps, paper in TABLE3.items():
        if found[f"table3_{steps}"] is None:
            continue
        mine = [
            both(found.one(f"table3_{steps}", group=group, name=name or f"{steps} steps"))
            for group, name in NAMES3.values()
        ]
        lines.append([str(steps), *mine, *(f"{value:.1f}" if value else "" for value in paper)])
    return table(["teacher steps", *NAMES3, "paper: teacher", "OSS", "OSS-ave"], lines) if lines else MISSING


def figure5(found: Found) -> str:
    """How far 20-step schedules are from those of the longest teacher."""
    longest = f"table3_{max(TABLE3)}"
    lines = []
    for steps in sorted(TABLE3)[:-1]:
        line = [str(steps)]
        for group, name in (("published", "OSS, per sample"), ("published", "OSS-ave"), ("ours", "joint")):
            row, base = (found.one(study, group=group, name=name) for study in (f"table3_{steps}", longest))
            off = None if row is None or base is None else max(
                abs(a - b) for a, b in zip(row["t"], base["t"], strict=True)
            )  # fmt: skip
            line.append("" if off is None else f"{off:.3f}")
        if any(line[1:]):
            lines.append(line)
    head = ["teacher steps", "OSS, per sample (mean)", "OSS-ave", "ours, joint"]
    return table(head, lines) if lines else MISSING


def table4(found: Found) -> str:
    if found["table4"] is None:
        return MISSING
    lines, levels = [], []
    for cost, (own, joint, label) in NAMES4.items():
        cells = [label]
        for group, name in (("published", own), ("ours", joint)):
            some = [found.one("table4", group=group, name=name, budget=budget) for budget in (5, 10)]
            spent = next((f"{row['spent']['total']:.0f}" for row in some if row is not None), "")
            levels += [row["psnr"] for row in some[:1] if row is not None and group == "published"]
            cells += [*map(both, some), spent]
        lines.append([*cells, f"{TABLE4[cost]:.1f}"])
    head = ["cost", "own schedules: 5 steps", "10 steps", "evaluations", "joint: 5 steps", "10 steps", "evaluations"]
    text = table([*head, "paper, 5 steps"], lines)
    apart, paper = max(levels, default=0.0) - min(levels, default=0.0), max(TABLE4.values()) - min(TABLE4.values())
    return f"{text}\n\n" + paragraph(
        f"Own schedules of 5 steps by one cost and another are {apart:.1f} dB apart at most; the paper's, {paper:.1f}."
    )


def candidates(found: Found) -> str:
    """How many candidates into a node the x0 cost has to look at (benchmarks/bench_costs.py)."""
    result = found.file("costs")
    if result is None:
        return MISSING
    lines = []
    for row in result["rows"]:
        gain = difference((row["mean_gain"], row["mean_gain_error"]), 2)
        sources = "all" if row["sources"] is None else f"{row['sources']}"
        kind = "one for all" if row["share"] == "joint" else "own schedules"
        lines.append([kind, sources, both(row), gain, f"{row['nfe']['total']:.0f}"])
    head = ["x0 cost", "candidates a node", "PSNR", "gain of the mean over 1", "evaluations"]
    text = (
        f"{result['steps']} steps of Euler's method out of {result['candidates']} nodes, {result['heldout']} held-out "
        f"noises; joint of {result['samples']} others, own schedules of {result['own']}; "
        f"{result['gpu'] or result['cpu']}, {result['date']}."
    )
    return table(head, lines) + "\n\n" + paragraph(text)


def orders(found: Found) -> str:
    """Figure 6: the solver's order, on a stock grid and searched."""
    if not found.titles():
        return MISSING
    lines = []
    for subject, guidance in found.titles():
        for label, (group, name) in GRIDS6.items():
            line = [f"{subject}, {guidance:g}", label]
            for solver in ORDERS.values():
                where = {"subject": subject, "guidance": guidance, "group": group, "name": name, "solver": solver}
                line += [both(found.one("main", budget=budget, **where)) for budget in (5, 10, 20)]
            lines.append(line)
    return table(["model", "times", *(f"order {k}: {n}" for k in ORDERS for n in (5, 10, 20))], lines, 2)


def calibration(found: Found) -> str:
    if found["calibration"] is None:
        return MISSING
    lines = []
    for base, group in (("joint", "ours"), ("flow", "stock")):
        for mode in ("", "scale", "affine", "gain"):
            line = [f"{base}, euler", mode or "none"]
            for budget in (5, 10, 20):
                row = found.one(
                    "calibration", name=f"{base}, {mode}" if mode else base, budget=budget, solver="euler",
                    group="calibration" if mode else group,
                )  # fmt: skip
                distances = next(iter(row["distances"].values()), {}) if row else {}
                line.append(both(row) + "".join(f" / {numbers[0]:.2f}" for numbers in distances.values()))
            lines.append(line)
    return table(["schedule", "calibration", "5 steps", "10 steps", "20 steps"], lines, 2)


def distances(found: Found) -> str:
    """Frechet and kernel distances of a few rows at ten steps."""
    rows = [row for row in found.rows("main", budget=10) if row["distances"]]
    if not rows:
        return MISSING
    shown = [("stock", "flow", "euler"), ("stock", "ddim", "euler"), ("stock", "edm", "dpmpp_2m"),
             ("rivals", "GITS", "ipndm_4"), ("rivals", "DM", "unipc_3"), ("rivals", "LD3", "unipc_3"),
             ("ours", "joint", "euler"), ("ours", "joint", "fitted"), ("ours", "auto", "auto")]  # fmt: skip
    lines = []
    for subject, guidance in found.titles():
        for group, name, solver in shown:
            row = found.one(
                "main", subject=subject, guidance=guidance, budget=10, group=group, name=name, solver=solver
            )
            if row is None or not row["distances"]:
                continue
            numbers = next(iter(row["distances"].values()))
            cells = [
                f"{numbers[key][0]:.3f}, {numbers[key][1]:.4f}" if key in numbers else "" for key in ("teacher", "real")
            ]
            ssim = "" if row["ssim"] is None else f"{row['ssim']:.4f}"
            lines.append([f"{subject}, {guidance:g}", f"{name}, {solver}", both(row), ssim, *cells])
    head = ["model, guidance", "row, 10 steps", "PSNR", "SSIM", "to the teacher's: Frechet, kernel", "to photographs"]
    return table(head, lines, 2)


def experts(found: Found) -> str:
    result = found.file("experts")
    if result is None:
        return MISSING
    lines = []
    for name, row in result["rows"].items():
        cells = [f"{row[key]['psnr']:.1f} / {row[key]['mean_psnr']:.1f}" for key in ("untuned", "tuned")]
        paper = TABLE5.get(name, ("", ""))
        lines.append([name, *cells, f"{row['mean_gain']:+.2f} ± {row['mean_gain_error']:.2f}", *map(str, paper)])
    head = ["schedule", "without tuning", "with tuning", "gain of the mean", "paper: FID without", "with"]
    settings = result["settings"]
    return (
        table(head, lines)
        + "\n\n"
        + paragraph(
            f"{settings['model']}, {settings['steps']} steps of Euler's method, {settings['heldout']} held-out noises, "
            f"{settings['iterations']} iterations an expert."
        )
    )


def table7(found: Found) -> str:
    """GenEval: the paper's numbers alone."""
    lines = [[name, f"{value:.3f}", "out of reach"] for name, value in TABLE7.items()]
    return table(["10 steps but for the first", "paper: overall", "here"], lines)
