"""docs/results.md, from benchmarks/results/compare_*.json and experts.json alone."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "results.md", ROOT / "docs" / "images"
MISSING = "Not measured yet."

# The paper's numbers, arXiv 2503.21774.
TABLE2 = {  # steps: (EDM, DDIM, flow matching), ImageNet-64, PSNR
    "naive": {
        50: (33.71, 34.31, 31.78),
        20: (25.76, 26.12, 23.97),
        10: (20.83, 20.89, 19.00),
        5: (16.38, 15.96, 15.69),
    },
    "OSS": {20: (28.21, 28.07, 28.51), 10: (22.88, 22.79, 23.02), 5: (18.41, 18.05, 18.53)},
}
TABLE3 = {  # teacher steps: (DDIM teacher, OSS, OSS-ave)
    100: (37.97, 27.04, 26.41), 200: (44.24, 28.07, 26.47), 500: (52.93, 27.11, 26.47), 1000: (None, 27.13, 26.48),
}  # fmt: skip
TABLE4 = (("x_t", 18.54), ("x0", 22.45), ("Inception-V3 features of x0", 9.91), ("perceptual", 18.27))
TABLE5 = {"uniform": (52.73, 24.53), "searched": (41.96, 7.89)}  # FID on ImageNet-256, without and with tuning
TABLE6 = {  # ImageNet-64, LSUN-Bed-256, FFHQ-64, MSCOCO-512, 5 and 10 steps each
    "EDM": ((17.72, 22.33), (15.60, 19.61), (18.68, 23.24), (13.43, 15.45)),
    "DDIM": ((17.69, 22.22), (15.39, 20.18), (18.37, 23.57), (12.31, 14.58)),
    "FM": ((17.80, 22.47), (14.43, 18.23), (17.72, 21.31), (11.90, 13.51)),
    "DM": ((17.39, 20.50), (18.90, 20.67), (19.79, 22.69), (13.50, 14.73)),
    "GITS": ((16.29, 19.40), (11.58, 13.55), (20.46, 25.20), (10.60, 11.07)),
    "OSS-ave": ((17.94, 22.47), (16.51, 21.25), (20.56, 25.21), (14.10, 16.45)),
}
ROWS6 = {
    "EDM": ("stock", "edm"), "DDIM": ("stock", "ddim"), "FM": ("stock", "flow"), "DM": ("rivals", "DM"),
    "GITS": ("rivals", "GITS"), "OSS-ave": ("published", "OSS-ave"), "ours, joint": ("ours", "joint"),
}  # fmt: skip

Result = dict[str, Any]
Entry = dict[str, Any]


def dumps(result: Result) -> str:
    """JSON with one line a row and four digits behind the point."""

    def short(value: Any) -> Any:
        if isinstance(value, float):
            return round(value, 4)
        if isinstance(value, dict):
            return {key: short(each) for key, each in value.items()}
        return [short(each) for each in value] if isinstance(value, list) else value

    rows = ",\n".join(json.dumps(short(row)) for row in result["rows"])
    rest = json.dumps(short({key: value for key, value in result.items() if key != "rows"}), indent=1)
    return rest[:-2] + f',\n "rows": [\n{rows}\n ]\n}}\n'


class Found:
    """The studies that were measured, by name."""

    def __init__(self, folder: Path = RESULTS) -> None:
        self.folder = folder
        self._known: dict[str, Result | None] = {}

    def __getitem__(self, name: str) -> Result | None:
        if name not in self._known:
            path = self.folder / f"compare_{name}.json"
            self._known[name] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        return self._known[name]

    def rows(self, study: str, **wanted: Any) -> list[Entry]:
        result = self[study]
        return [] if result is None else [row for row in result["rows"] if all(row[k] == v for k, v in wanted.items())]

    def one(self, study: str, **wanted: Any) -> Entry | None:
        """The best of the rows with these entries by pooled PSNR; None where there is none."""
        return max(self.rows(study, **wanted), key=lambda row: row["psnr"], default=None)


def table(head: Sequence[str], lines: Iterable[Sequence[str]], words: int = 1) -> str:
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines])


def paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def both(row: Entry | None) -> str:
    return "" if row is None else f"{row['psnr']:.1f} / {row['mean_psnr']:.1f}"


def difference(pair: Sequence[float] | None, digits: int = 1) -> str:
    return "" if pair is None else f"{pair[0]:+.{digits}f} ± {pair[1]:.{digits}f}"


def picture(name: str, about: str) -> str:
    return f"![{about}](images/{name})" if (IMAGES / name).exists() else ""


def titles(found: Found) -> list[tuple[str, float]]:
    result = found["main"]
    return [] if result is None else [(case["subject"], case["guidance"]) for case in result["cases"]]


# The sections.


def summary(found: Found) -> str:
    """Our best row beside the best of all others in every cell."""
    result = found["main"]
    if result is None:
        return MISSING
    lines = []
    for training in (False, True):
        for subject, guidance in titles(found):
            for budget in sorted({row["budget"] for row in result["rows"]}):
                cell = [
                    one
                    for one in result["leaders"]
                    if (one["subject"], one["guidance"], one["budget"], one["training"])
                    == (subject, guidance, budget, training)
                ]
                if not cell:
                    continue
                line = ["all" if training else "training-free", f"{subject}, {guidance:g}", str(budget)]
                for measure in ("pooled", "mean"):
                    one = next(each for each in cell if each["measure"] == measure)
                    line += [
                        f"{one['ours_psnr']:.1f} ({_short(one['ours'])})",
                        f"{one['rival_psnr']:.1f} ({_short(one['rival'])})",
                        f"{one['ahead']:+.2f} ± {one['error']:.2f}",
                    ]
                lines.append(line)
    head = ["rows", "model, guidance", "steps"]
    for measure in ("pooled", "mean"):
        head += [f"ours, {measure}", "best other", "ahead"]
    behind = [line for line in lines if line[5].startswith("-") or line[8].startswith("-")]
    verdict = (
        "In every cell our best row is ahead of every other by both averages."
        if not behind
        else "A rival is ahead by at least one average in: "
        + "; ".join(f"{line[1]}, {line[2]} steps ({line[0]})" for line in behind)
        + "."
    )
    return table(head, lines, 3) + "\n\n" + paragraph(verdict)


def _short(name: str) -> str:
    return name.split(": ", 1)[1]


def every_row(found: Found) -> str:
    """For every model and guidance: each method with its best solver, and ours one by one."""
    result = found["main"]
    if result is None:
        return MISSING
    parts = []
    for subject, guidance in titles(found):
        rows = [row for row in result["rows"] if (row["subject"], row["guidance"]) == (subject, guidance)]
        budgets = sorted({row["budget"] for row in rows})
        most = max((row["noises"] for row in rows), default=0)
        rows = [row for row in rows if row["noises"] == most]
        lines = []
        for group in ("stock", "published", "rivals", "ours"):
            some = [row for row in rows if row["group"] == group]
            names = dict.fromkeys((row["name"], row["solver"] if group == "ours" else "") for row in some)
            for name, solver in names:
                line = [f"{group}: {name}{', ' + solver if solver else ''}"]
                spent, passes = "", ""
                for budget in budgets:
                    mine = [
                        row
                        for row in some
                        if row["name"] == name and row["budget"] == budget and solver in ("", row["solver"])
                    ]
                    best = max(mine, key=lambda row: row["psnr"], default=None)
                    line.append(both(best) + ("" if best is None or solver else f" ({best['solver']})"))
                    if best is not None:
                        spent = f"{best['spent'].get('total', 0):.0f} x {best['samples']}" if best["samples"] else "0"
                        passes = str(best["backpropagations"] or "")
                lines.append([*line, spent, passes])
        head = [f"{subject}, guidance {guidance:g}", *(f"{budget} steps" for budget in budgets)]
        parts.append(table([*head, "evaluations", "back-props"], lines))
    return "\n\n".join(parts)


def table6(found: Found) -> str:
    lines = []
    for name, (group, row) in ROWS6.items():
        line = [name]
        for subject, guidance in titles(found):
            for budget in (5, 10):
                line.append(
                    both(found.one("main", subject=subject, guidance=guidance, budget=budget, group=group, name=row,
                                   solver="euler"))
                )  # fmt: skip
        paper = TABLE6.get(name)
        line += [""] * 4 if paper is None else [f"{a:.1f}, {b:.1f}" for a, b in paper]
        lines.append(line)
    head = ["Euler, 5 and 10 steps"]
    head += [f"{subject}, {guidance:g}: {budget}" for subject, guidance in titles(found) for budget in (5, 10)]
    return table([*head, "paper: ImageNet-64", "LSUN-Bed", "FFHQ-64", "MSCOCO"], lines) if titles(found) else MISSING


def table2(found: Found) -> str:
    grids = ("edm", "ddim", "flow")
    if not any(found.rows(f"table2_{grid}") for grid in grids):
        return MISSING
    lines = []
    kinds = [
        ("naive", "stock", "naive", (50, 20, 10, 5)),
        ("OSS, per sample", "published", "OSS, per sample", (20, 10, 5)),
        ("OSS-ave", "published", "OSS-ave", (20, 10, 5)),
        ("ours, joint", "ours", "joint", (20, 10, 5)),
    ]
    for label, group, name, budgets in kinds:
        for budget in budgets:
            line = [label, str(budget)]
            for grid in grids:
                row = found.one(f"table2_{grid}", group=group, name=name, budget=budget)
                over = row["over_naive"] if row is not None and group != "stock" else None
                gains = "" if over is None or over["pooled"] is None else (
                    f" ({over['pooled'][0]:+.1f} / {over['mean'][0]:+.1f} ± {over['mean'][1]:.1f})"
                )  # fmt: skip
                line.append(both(row) + gains)
            paper = TABLE2.get({"naive": "naive", "OSS, per sample": "OSS"}.get(label, ""), {}).get(budget)
            base = TABLE2["naive"].get(budget)
            line.append(
                ""
                if paper is None
                else ", ".join(
                    f"{value:.1f}" + (f" ({value - before:+.1f})" if label != "naive" and base else "")
                    for value, before in zip(paper, base or paper, strict=True)
                )
            )
            lines.append(line)
    return table(["", "steps", *grids, "paper: EDM, DDIM, FM"], lines, 2)


def table3(found: Found) -> str:
    lines = []
    for steps, (teacher, per_sample, ave) in TABLE3.items():
        study = f"table3_{steps}"
        if found[study] is None:
            continue
        names = (
            ("teacher", f"{steps} steps"),
            ("published", "OSS, per sample"),
            ("published", "OSS-ave"),
            ("ours", "joint"),
        )
        mine = [both(found.one(study, group=group, name=name)) for group, name in names]
        paper = [f"{value:.1f}" if value else "" for value in (teacher, per_sample, ave)]
        lines.append([str(steps), *mine, *paper])
    head = ["teacher steps", "teacher", "OSS, per sample", "OSS-ave", "ours, joint"]
    return table([*head, "paper: teacher", "OSS", "OSS-ave"], lines) if lines else MISSING


def table4(found: Found) -> str:
    if found["table4"] is None:
        return MISSING
    lines = []
    names = {
        "joint": "x_t",
        "x0": "x0",
        "features of x0": "features of x0 (bundled classifier)",
        "perceptual": "perceptual",
    }
    paper = {"joint": "18.5", "x0": "22.5", "features of x0": "9.9 (Inception-V3)", "perceptual": "18.3"}
    for name, label in names.items():
        own = "OSS, per sample" if name == "joint" else f"OSS, per sample, {name}"
        cells = [label]
        for group, row_name in (("published", own), ("ours", name)):
            some = [found.one("table4", group=group, name=row_name, budget=budget) for budget in (5, 10)]
            spent = next((f"{row['spent']['total']:.0f}" for row in some if row is not None), "")
            cells += [*map(both, some), spent]
        lines.append([*cells, paper[name]])
    head = ["cost", "own schedules: 5 steps", "10 steps", "evaluations", "joint: 5 steps", "10 steps", "evaluations"]
    return table([*head, "paper, 5 steps"], lines)


def orders(found: Found) -> str:
    """Figure 6: the solver's order, on a stock grid and searched."""
    lines = []
    for subject, guidance in titles(found):
        for label, group, name in (
            ("DDIM grid", "stock", "ddim"),
            ("EDM grid", "stock", "edm"),
            ("ours", "ours", "joint"),
        ):
            line = [f"{subject}, {guidance:g}", label]
            for solver in ("euler", "dpmpp_2m", "dpmpp_3m"):
                line += [
                    both(found.one("main", subject=subject, guidance=guidance, group=group, name=name, solver=solver,
                                   budget=budget))
                    for budget in (5, 10, 20)
                ]  # fmt: skip
            lines.append(line)
    head = ["model", "times", *(f"order {k}: {n}" for k in (1, 2, 3) for n in (5, 10, 20))]
    return table(head, lines, 2) if lines else MISSING


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
    shown = [("stock", "flow", "euler"), ("stock", "edm", "dpmpp_2m"), ("rivals", "GITS", "ipndm_4"),
             ("rivals", "DM", "unipc_3"), ("rivals", "LD3", "unipc_3"), ("ours", "joint", "euler"),
             ("ours", "joint", "fitted"), ("ours", "auto", "auto")]  # fmt: skip
    lines = []
    for subject, guidance in titles(found):
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
    path = found.folder / "experts.json"
    if not path.exists():
        return MISSING
    result = json.loads(path.read_text(encoding="utf-8"))
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


def about(found: Found) -> str:
    result = found["main"]
    if result is None:
        return MISSING
    case = result["cases"][0]
    return paragraph(
        f"{case['heldout']} held-out noises a model and guidance scale; the reference is the teacher's sample from the "
        f"same noise, {case['teacher_steps']} `{case['teacher_solver']}` steps on the {case['grid']} grid. Searches, "
        f"and what is trained, see {case['samples']} other noises (GITS too; LD3 100 of them, as in its paper). "
        f"Device: {result['device']}, torch {result['torch']}, {result['date']}."
    )


SECTIONS: dict[str, Callable[[Found], str]] = {
    "about": about, "summary": summary, "table6": table6, "table2": table2, "table3": table3, "table4": table4,
    "orders": orders, "calibration": calibration, "distances": distances, "experts": experts, "every_row": every_row,
}  # fmt: skip
PICTURES = {
    "psnr": ("results_main_psnr_vs_nfe.png", "PSNR against evaluations"),
    "schedules": ("results_main_schedules_photo32-guidance-1.png", "Schedules and their spread over samples"),
    "schedules_vp": ("results_main_schedules_photo32-vp-guidance-1.png", "Schedules of the second model"),
    "samples": ("results_main_samples_photo32-guidance-1_10.png", "Teacher, ours and naive at 10 steps"),
    "amplitudes": ("results_amplitudes.png", "Amplitudes of teacher and students"),
}


def render(folder: Path = RESULTS) -> str:
    """The page, of the files in `folder`."""
    found = Found(folder)
    parts = {name: section(found) for name, section in SECTIONS.items()}
    parts |= {f"picture_{name}": picture(*what) for name, what in PICTURES.items()}
    template = (Path(__file__).parent / "results_template.md").read_text(encoding="utf-8")
    for name, text in parts.items():
        template = template.replace("{{" + name + "}}", text)
    return template


def write(folder: Path = RESULTS) -> None:
    PAGE.write_text(render(folder), encoding="utf-8")
    print(f"wrote {PAGE}")
