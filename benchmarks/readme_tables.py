"""Writes the tables of README.md from benchmarks/results/*.json: python benchmarks/readme_tables.py [--show]"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- numbers -->", "<!-- /numbers -->"
PICTURE = "![PSNR against network evaluations](docs/images/psnr_vs_nfe.png)"

Result = dict[str, Any]
Row = dict[str, Any]

SCHEDULE_ONLY: list[tuple[str, str, str, str]] = [
    ("published", "OSS median, all nodes", "euler", "published OSS, `euler`"),
    *[("ours", "joint", solver, f"ours, `{solver}`") for solver in ("euler", "ab2", "dpmpp_2m", "unipc")],
]
WITH_COEFFICIENTS: list[tuple[str, str, str, str]] = [
    *[("ours", "joint", solver, f"ours, `{solver}`") for solver in ("mixed", "fitted")],
    ("ours", "joint, free start", "fitted", "ours, `fitted`, free start"),
    ("ours", "auto", "auto", "ours, `auto`"),
    ("ours", "auto, by PSNR", "auto", "ours, `auto`, every noise alike"),
]
AFTERWARDS: list[tuple[str, str, str, str]] = [
    ("moved", "joint, nodes", "dpmpp_2m", "`dpmpp_2m`, nodes moved"),
    ("moved", "joint, nodes", "fitted", "`fitted`, nodes moved"),
    ("polished", "joint, nodes, gradient", "fitted", "`fitted`, nodes moved, then polished"),
]


def load(name: str, folder: Path) -> Result:
    return json.loads((folder / f"{name}.json").read_text())


def source(name: str, result: Result) -> str:
    parts = result.get("commits", {}).values()  # where parts were measured apart
    commits = sorted({commit for part in parts for commit in part.values()}) or [result["commit"]]
    word = "commit" if len(commits) == 1 else "commits"
    return f"`benchmarks/results/{name}.json`: {result['gpu']}, torch {result['torch']}, {word} {', '.join(commits)}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]], words: int = 1) -> str:
    """A Markdown table; the first `words` columns are text, the others numbers."""
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines])


def paragraph(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def once(rows: Iterable[Row], **wanted: Any) -> Row:
    """The one row with these entries. Raises ValueError where there is none, or more than one."""
    (found,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return found


def distinct(rows: Iterable[Row], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def schedules(result: Result) -> str:
    rows = result["rows"]
    cells = sorted({(row["guidance"], row["steps"]) for row in rows})
    best = []
    for guidance, steps in cells:
        stock = [row for row in rows if (row["group"], row["guidance"], row["steps"]) == ("stock", guidance, steps)]
        row = max(stock, key=lambda row: row["psnr"])
        mean = max(one["mean_psnr"] for one in stock)
        best.append(f"{row['psnr']:.1f} / {mean:.1f} ({row['schedule']}, {row['solver']})")
    head = ["", *(f"guidance {guidance:g}, {steps}" for guidance, steps in cells), "search"]
    top = [["best stock", *best, ""]]
    blank = [""] * (len(cells) + 1)
    lines = [*top, ["**schedule only**", *blank], *_entries(rows, cells, SCHEDULE_ONLY)]
    lines += [["**schedule and coefficients**", *blank], *_entries(rows, cells, WITH_COEFFICIENTS)]
    training_free = table(head, lines)
    guided = [cell for cell in cells if any(row["group"] == "moved" and _cell(row) == cell for row in rows)]
    refined = table(
        [head[0], *(f"guidance {g:g}, {k}" for g, k in guided), "search"], _entries(rows, guided, AFTERWARDS)
    )
    guide = f"{result['teacher_steps']} uniform `{result['teacher_solver']}` steps"
    about = paragraph(
        f"{result['heldout']} held-out noises, a teacher of {guide}, schedules searched on {result['samples']} others. "
        "Columns: guidance scale, network evaluations a picture. Each entry: PSNR of the squared error averaged over "
        "all noises / mean over the noises of each one's own PSNR, in dB, in brackets the gains over the best stock "
        "row by either. Best stock: of the flow, EDM, log-SNR and DDIM grids with euler, ab2, dpmpp_2m and unipc, and "
        "of Heun; the one named is the best by the first number. Search: evaluations a noise that it made for all "
        f"budgets together, its teacher's included. ({source('schedules', result)}.)"
    )
    then = paragraph(
        "The same schedules refined (`oss_ext.refine`): nodes moved without gradients, on the noises of the search, "
        f"and those then polished by back-propagation, which is training, on {result['polish_samples']} noises."
    )
    return "\n\n".join([PICTURE, about, training_free, then, refined])


def _cell(row: Row) -> tuple[float, int]:
    return row["guidance"], row["steps"]


def _entries(
    rows: list[Row], cells: list[tuple[float, int]], wanted: list[tuple[str, str, str, str]]
) -> list[list[str]]:
    lines = []
    for group, name, solver, label in wanted:
        line, spent = [label], set()
        for guidance, steps in cells:
            row = once(rows, group=group, schedule=name, solver=solver, guidance=guidance, steps=steps)
            line.append(
                f"{row['psnr']:.1f} ({row['psnr_over_best_stock']:+.1f}) / "
                f"{row['mean_psnr']:.1f} ({row['mean_psnr_over_best_stock']:+.1f})"
            )
            spent.add(round(row["search"]["nfe"]["total"]))
        ends = sorted({min(spent), max(spent)})  # what a refinement spends differs
        lines.append([*line, " to ".join(map(str, ends))])
    return lines


def samples(result: Result) -> str:
    rows = result["studies"]["samples"]
    counts = distinct(rows, "samples")
    lines = [
        [f"`{solver}`", *(f"{once(rows, solver=solver, samples=count)['psnr']:.1f}" for count in counts)]
        for solver in distinct(rows, "solver")
    ]
    return f"Held-out PSNR against the number of noises searched on, {_where(rows)}:\n\n" + table(
        ["solver", *map(str, counts)], lines
    )


def candidates(result: Result) -> str:
    rows = result["studies"]["candidates"]
    solvers = distinct(rows, "solver")
    lines = []
    for count in distinct(rows, "candidates"):
        mine = [once(rows, solver=solver, candidates=count) for solver in solvers]
        lines.append([str(count), f"{mine[0]['nfe']['total']:g}", *(f"{row['psnr']:.2f}" for row in mine)])
    head = ["candidates", "evaluations", *(f"`{solver}`" for solver in solvers)]
    about = (
        f"Held-out PSNR against the nodes that the search looks at, {_where(rows)}; the published search makes "
        f"N (K + 1) = {rows[0]['published']} evaluations a noise:"
    )
    return paragraph(about) + "\n\n" + table(head, lines, 0)


def defaults(result: Result) -> str:
    rows = result["studies"]["defaults"]
    solvers = distinct(rows, "solver")
    lines = []
    for name in distinct(rows, "search"):
        mine = [once(rows, solver=solver, search=name) for solver in solvers]
        first = mine[0]
        what = f"{first.get('teacher_steps', result['teacher_steps'])} "
        what += f"{first.get('teacher_solver', result['teacher_solver'])}, {first['candidates']} nodes"
        cells = [f"{row['true_psnr']:.2f} ({row['over_all']:+.2f} ± {row['over_all_error']:.2f})" for row in mine]
        lines.append([name, what, f"{first['nfe']['total']:g}", *cells])
    head = ["search", "teacher and candidates", "evaluations", *(f"`{solver}`" for solver in solvers)]
    about = (
        f"What the defaults cost, {_where(rows)}: held-out PSNR to {result['reference_steps']} `ab2` steps, in "
        "brackets its difference to the first row's:"
    )
    return paragraph(about) + "\n\n" + table(head, lines, 2)


def teachers(result: Result) -> str:
    rows = result["studies"]["teachers"]
    counts = sorted(distinct(rows, "steps"))
    lines = []
    for guidance in distinct(rows, "guidance"):
        for solver in distinct(rows, "solver"):
            known = {row["steps"]: row for row in rows if (row["guidance"], row["solver"]) == (guidance, solver)}
            cells = [f"{known[count]['psnr']:.1f}" if count in known else "" for count in counts]
            lines.append([f"{guidance:g}", f"`{solver}`", *cells])
    about = (
        f"How near a teacher of so many steps is to {rows[0]['reference_steps']} `ab2` steps, PSNR over "
        f"{rows[0]['noises']} noises:"
    )
    return paragraph(about) + "\n\n" + table(["guidance", "teacher", *map(str, counts)], lines, 2)


def beams(result: Result) -> str:
    rows = result["studies"]["beams"]
    widths = distinct(rows, "beam")
    lines = []
    for solver in distinct(rows, "solver"):
        for steps in distinct(rows, "steps"):
            mine = [once(rows, solver=solver, steps=steps, beam=beam) for beam in widths]
            lines.append([f"`{solver}`", str(steps), *(f"{row['psnr']:.2f}" for row in mine)])
    first = [once(rows, solver=rows[0]["solver"], steps=rows[0]["steps"], beam=beam) for beam in widths]
    lines.append(["evaluations", "", *(f"{row['nfe']['total']:g}" for row in first)])
    about = (
        f"Held-out PSNR against the states kept a node (`beam`), {rows[0]['candidates']} candidates, "
        f"{rows[0]['samples']} noises, guidance {rows[0]['guidance']:g}:"
    )
    return paragraph(about) + "\n\n" + table(["solver", "steps", *map(str, widths)], lines, 2)


def _where(rows: list[Row]) -> str:
    return f"{rows[0]['steps']} steps, guidance {rows[0]['guidance']:g}"


def kernels(result: Result) -> str:
    head = ["(B, N, D)", "floor", "ours", "in a graph", "x floor", "loop", "bmm fp32", "bmm TF32"]
    lines = [" | ".join(head), " | ".join(["---"] + ["---:"] * (len(head) - 1))]
    slower = []
    for row in result["rows"]:
        peers = [row["peers"][name]["median_ms"] for name in ("source_loop", "gram_bmm_fp32", "gram_bmm_tf32")]
        numbers = [row["floor_ms"], row["ours"]["median_ms"], row["ours_graph"]["median_ms"]]
        entries = [f"{number:.3f}" for number in numbers] + [f"{row['times_floor_graph']:.1f}"]
        entries += [f"{number:.2f}" for number in peers]
        lines.append(" | ".join([f"({row['batch']}, {row['steps']}, {row['dim']})", *entries]))
        if min(peers) < row["ours"]["median_ms"]:
            slower.append(f"({row['batch']}, {row['steps']}, {row['dim']})")
    table = "\n".join(f"| {line} |" for line in lines)
    behind = f"At {', '.join(slower)} a peer is still faster. " if slower else ""
    return (
        "Milliseconds for one stage of a joint Euler search in fp32 (costs of all steps i -> j, the minimum, the "
        "winners'\nstates): B samples, N teacher steps, D numbers a sample; medians of at least 20 runs. The floor is "
        "the larger of the\nbytes at the copy rate measured in the same run and the fp32 instructions at the highest "
        "clock. loop: the published\nloop over sources, batched over samples; bmm: the squared distance multiplied out "
        f"into matrix products, which loses small\ncosts to cancellation. {behind}\n({source('kernels', result)}.)"
        f"\n\n{table}"
    )


def pipelines(result: Result) -> str:
    lines = []
    for row in sorted(result["rows"], key=lambda row: -row["samples"]):
        mine, own = row["search"][-1], row["plain_loop"][-1]
        numbers = [f"{mine['seconds']:.1f}", f"{mine['model_calls']}", f"{mine['outside_percent']:.1f} %"]
        numbers += [f"{own['outside_percent']:.1f} %", f"{mine['peak_bytes'] / 2**30:.1f}"]
        lines.append([row["name"], *numbers, row["commit"]])
    head = ["", "search, s", "network calls", "outside the network", "the pipeline's own loop", "peak GiB", "commit"]
    first = result["rows"][0]
    about = (
        f"A whole search through a diffusers pipeline ({first['steps']} steps, a teacher of {first['teacher_steps']}; "
        "real sizes, random weights, bfloat16) on the device's time line, and how much of the pipeline's own loop is "
        "outside of the network too. Few samples leave DiT-XL/2 waiting for its kernels to be launched, and each "
        f"step's work outside counts in full. (`benchmarks/results/pipelines.json`: {result['gpu']}, torch "
        f"{result['torch']}, diffusers {result['diffusers']}.)"
    )
    return paragraph(about) + "\n\n" + table(head, lines)


def at_guidance(result: Result, guidance: float) -> Result:
    """The result with the studies' rows at one guidance scale only."""
    studies = {name: [row for row in rows if row["guidance"] == guidance] for name, rows in result["studies"].items()}
    return result | {"studies": studies}


def block(folder: Path = RESULTS) -> str:
    """What stands between the markers."""
    found = load("schedules", folder)
    studies = [
        part(at_guidance(found, guidance))
        for part in (samples, candidates, defaults, teachers, beams)
        for guidance in distinct(found["studies"][part.__name__], "guidance")
    ]
    measured = [kernels(load("kernels", folder)), pipelines(load("pipelines", folder))]
    return "\n\n".join([BEGIN, schedules(found), *studies, *measured, END])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--show", action="store_true", help="print them, and leave README.md as it is")
    options = parser.parse_args()
    if options.show:
        print(block(options.results))
        return
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    path.write_text(before + block(options.results) + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
