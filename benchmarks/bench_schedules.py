"""PSNR to the teacher on held-out noises of the bundled model: what people run beside what the search finds.

    python benchmarks/bench_schedules.py                  # all of it on a GPU; saves results/schedules.json
    python benchmarks/bench_schedules.py --part rows --guidance 3
    python benchmarks/bench_schedules.py --device cpu --out /tmp/small --heldout 6 --samples 4 --teacher-steps 24 \
        --polish-samples 8 --candidates 12 --budget 3 --budget 5 --study-steps 5 --reference-steps 60

For every guidance scale: one teacher of `--teacher-steps` uniform Euler steps a held-out noise; students are sampled by
`Schedule.sample` on the same noises (data range 2). "PSNR" is that of the squared error averaged over all noises, which
is what the joint search lowers; "mean" is the average over noises of each one's own PSNR. Standard errors are over
noises (bootstrap, paired for gains). Gains are over the uniform schedule of the same solver, and over the best of the
stock rows with the same budget, the best by that measure. Searches never see a held-out noise. A search's evaluations
are those that it makes alone, its seconds too: here searches share one teacher, whose time is counted in each.

Parts: rows (the table), refined (the table with its schedules moved or polished afterwards), and small studies, at
`--study-guidance`: samples, candidates, defaults, teachers and beams. Each prints what it took.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import measure
import schedule_rows
import schedule_studies
import torch
from heldout import HeldOut

PARTS = ("rows", "refined", *schedule_studies.STUDIES)


def bench(
    guidance: float, options: argparse.Namespace, device: torch.device
) -> tuple[dict[str, Any], dict[str, float]]:
    """{part: rows} of one guidance scale, printed as they are done, and {part: seconds}."""
    found: dict[str, Any] = {}
    spent: dict[str, float] = {}
    clock = time.perf_counter()

    def done(part: str) -> None:
        nonlocal clock
        spent[part] = time.perf_counter() - clock
        clock = time.perf_counter()
        print(f"(guidance {guidance:g}, {part}: {spent[part]:.1f} s)", flush=True)

    settings = {key: getattr(options, key) for key in ("heldout", "samples", "teacher_steps", "teacher_solver")}
    held = HeldOut(guidance, **settings, device=device)
    done("teacher")
    if {"rows", "refined"} & set(options.part):
        table = schedule_rows.Rows(held)
        schedule_rows.stock_rows(table, options.budget)
        done("stock rows")
        if "rows" in options.part:
            schedule_rows.searched_rows(table, options)
            done("searched rows")
        if "refined" in options.part:
            schedule_rows.refined_rows(table, options)
            done("refined rows")
        found["rows"] = table.finish()
        print(schedule_rows.show(found["rows"]), flush=True)
    for name, study in schedule_studies.STUDIES.items():
        if name in options.part and guidance in options.study_guidance:
            found[name] = study(held, options)
            print(schedule_studies.show(name, found[name]))
            done(name)
    return found, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--heldout", type=int, default=256)
    parser.add_argument("--samples", type=int, default=128, help="noises that a search is given")
    parser.add_argument("--polish-samples", type=int, default=512, help="noises that back-propagation is given")
    parser.add_argument("--teacher-steps", type=int, default=200)
    parser.add_argument("--teacher-solver", default="euler")
    parser.add_argument("--candidates", type=int, help="nodes that a search looks at; default the library's")
    parser.add_argument("--budget", type=int, action="append", help="default: 5, 10 and 20")
    parser.add_argument("--guidance", type=float, action="append", help="default: 1 and 3")
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--study-steps", type=int, default=10, help="budget of the studies")
    parser.add_argument("--study-guidance", type=float, action="append", help="default: 1")
    parser.add_argument("--reference-steps", type=int, default=schedule_studies.REFERENCE_STEPS)
    parser.add_argument("--keep", action="store_true", help="with the earlier file's rows of what is left out here")
    parser.add_argument("--out", type=Path, default=None, help="folder for schedules.json; default: benchmarks/results")
    options = parser.parse_args()
    options.budget = sorted(options.budget or [5, 10, 20])
    options.guidance = options.guidance or [1.0, 3.0]
    options.study_guidance = options.study_guidance or [1.0]
    options.part = options.part or list(PARTS)
    device = torch.device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    rows: list[Any] = []
    studies: dict[str, list[Any]] = {}
    seconds: dict[str, dict[str, float]] = {}
    for guidance in options.guidance:
        found, seconds[f"{guidance:g}"] = bench(guidance, options, device)
        rows += found.pop("rows", [])
        for name, study in found.items():
            studies.setdefault(name, []).extend(study)
    print(f"{sum(sum(part.values()) for part in seconds.values()):.0f} s in all")
    keys = ("heldout", "samples", "polish_samples", "teacher_steps", "teacher_solver", "candidates")
    keys += ("study_steps", "reference_steps")
    result = measure.environment(device) | {key: getattr(options, key) for key in keys}
    commits = {guidance: dict.fromkeys(parts, result["commit"]) for guidance, parts in seconds.items()}
    result |= {"seconds": seconds, "commits": commits, "rows": rows, "studies": studies}
    if options.keep:
        keep(result, (options.out or measure.RESULTS) / "schedules.json")
    print(f"saved {measure.save('schedules', result, options.out)}")


def keep(result: dict[str, Any], path: Path) -> None:
    """Adds to `result` the rows of an earlier run, of parts and guidance scales that this one left out.

    "commits" says which commit measured what. Raises ValueError where that run was another measurement: another machine
    or setting.
    """
    old = json.loads(path.read_text())
    varying = {"date", "commit", "seconds", "commits", "rows", "studies"}
    for key in (result.keys() | old.keys()) - varying:
        if result.get(key) != old.get(key):
            raise ValueError(f"keep: {path} has {key} {old.get(key)!r}, this run {result.get(key)!r}")

    def merged(before: list[Any], now: list[Any]) -> list[Any]:
        done = {(row["guidance"], row.get("group")) for row in now}
        kept = [row for row in before if (row["guidance"], row.get("group")) not in done]
        return sorted(kept + now, key=lambda row: row["guidance"])

    result["rows"] = merged(old["rows"], result["rows"])
    names = [name for name in schedule_studies.STUDIES if name in old["studies"] or name in result["studies"]]
    result["studies"] = {name: merged(old["studies"].get(name, []), result["studies"].get(name, [])) for name in names}
    for key in ("seconds", "commits"):
        result[key] = {
            guidance: old[key].get(guidance, {}) | result[key].get(guidance, {})
            for guidance in sorted(old[key].keys() | result[key].keys())
        }


if __name__ == "__main__":
    main()
