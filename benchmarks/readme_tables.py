"""Writes the tables of README.md from benchmarks/results/*.json: python benchmarks/readme_tables.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- numbers -->", "<!-- /numbers -->"


def load(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def source(name: str, result: dict[str, Any]) -> str:
    return f"`benchmarks/results/{name}.json`: {result['gpu']}, torch {result['torch']}, commit {result['commit']}"


def schedules() -> str:
    result = load("schedules")
    cells = sorted({(row["guidance"], row["steps"]) for row in result["rows"]})
    wanted = {(row["solver"], row["schedule"]): None for row in result["rows"]}
    by_key = {(row["solver"], row["schedule"], row["guidance"], row["steps"]): row for row in result["rows"]}
    head = ["solver", "schedule", *(f"guidance {guidance:g}, {steps} steps" for guidance, steps in cells)]
    lines = [" | ".join(head), " | ".join(["---", "---"] + ["---:"] * len(cells))]
    for solver, name in wanted:
        rows = [by_key[solver, name, *cell] for cell in cells]
        ours = name.startswith("OSS joint")
        numbers = [f"{row['psnr']:.1f} ({row['gain']:+.1f}) / {row['mean_psnr']:.1f}" for row in rows]
        lines.append(" | ".join([solver, f"**{name}**" if ours else name, *numbers]))
    table = "\n".join(f"| {line} |" for line in lines)
    return (
        f"{result['heldout']} held-out noises, a teacher of {result['teacher_steps']} uniform Euler steps, schedules "
        f"searched on {result['samples']} others.\nEach entry: PSNR of the squared error averaged over all noises "
        "(in brackets its gain over the uniform\n`flow` schedule with the same solver) / mean over the noises of each "
        f"one's own PSNR, in dB.\n({source('schedules', result)}.)\n\n{table}"
    )


def kernels() -> str:
    result = load("kernels")
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


def block() -> str:
    """What stands between the markers."""
    return f"{BEGIN}\n\n{schedules()}\n\n{kernels()}\n\n{END}"


def main() -> None:
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    path.write_text(before + block() + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
