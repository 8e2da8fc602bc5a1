"""The paper's Table 4 on a bundled model: what steps are judged by, and how many candidates a node must be judged.

    python benchmarks/bench_costs.py                   # on a GPU; saves results/costs.json
    python benchmarks/bench_costs.py --device cpu --out /tmp/small --heldout 6 --samples 4 --own 2 --study-samples 2 \
        --teacher-steps 24 --candidates 12 --budget 3 --study-steps 3 --guidance 1

Table 4 (ImageNet-64, EDM network, 5 steps, every sample its own schedule): x_t-MSE 18.54 dB, x0-MSE 22.45, x0-IncepV3
9.91, x_t-percep 18.27. Rows here: the same four costs, of one Euler schedule for all noises ("joint", measured on
held-out noises) and of a schedule for every held-out noise ("per_sample", over all nodes, as there). "features" are the
bundled classifier's instead of Inception-V3's, and the perceptual cost looks at the middle block of the network.
Study "sources": how many candidates into a node the x0 cost judges, of --study-candidates nodes; None: all.
"""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path
from typing import Any

import measure
import torch
from heldout import BATCH, HeldOut, gain, summary

import oss_ext
from oss_ext import costs
from oss_ext.metrics import psnr

SOURCES: tuple[int | None, ...] = (1, 2, 3, 4, 8, 16, None)
Row = dict[str, Any]


def table4(model: oss_ext.zoo.ZooModel, features: torch.nn.Module | None) -> dict[str, str | costs.Cost]:
    """The costs of the paper's Table 4 for a bundled model, by their names there. features: of pictures."""
    middle = f"blocks.{len(model.network.blocks) // 2}"
    rows: dict[str, str | costs.Cost] = {"x_t-MSE": "x_t", "x0-MSE": "x0"}
    if features is not None:
        rows["x0-features"] = costs.Feature(features, name="classifier of the bundled pictures", batch_size=BATCH)
    return rows | {"x_t-percep": costs.Perceptual(model.network, middle)}


def table_rows(held: HeldOut, options: argparse.Namespace, features: torch.nn.Module | None) -> list[Row]:
    rows: list[Row] = []
    own = {name: value[: options.own] for name, value in held.cond.items()}
    base: dict[tuple[str, int], Any] = {}
    for name, cost in table4(held.model, features).items():
        for share in ("joint", "per_sample"):
            began = time.perf_counter()
            if share == "joint":
                result, _ = held.search("euler", max(options.budget), candidates=options.candidates, cost=cost)
            else:
                result = oss_ext.dp_search(
                    held.model, held.noise[: options.own], max(options.budget), share=share, cost=cost, cond=own,
                    teacher_steps=held.teacher_steps, teacher_solver=held.teacher_solver, batch_size=BATCH,
                )  # fmt: skip
            seconds = time.perf_counter() - began
            for budget in options.budget:
                if share == "joint":
                    values = held.score(held.sample(result.schedules[budget]))
                else:
                    values = psnr(result.endpoints[budget], held.teacher[: options.own]).double().cpu()
                first = base.setdefault((share, budget), values)
                above = dict(zip(("gain", "gain_error"), gain(values, first, mean=False), strict=True))
                above |= dict(zip(("mean_gain", "mean_gain_error"), gain(values, first, mean=True), strict=True))
                row = {"guidance": held.guidance, "cost": name, "share": share, "steps": budget, "nfe": result.nfe}
                rows.append(row | {"noises": len(values), "seconds": seconds} | summary(values) | above)
                print(show(rows[-1]), flush=True)
    return rows


def sources_rows(held: HeldOut, options: argparse.Namespace) -> list[Row]:
    rows = []
    steps = options.study_steps
    for sources in SOURCES:
        began = time.perf_counter()
        result, _ = held.search(
            "euler", steps, options.study_samples, candidates=options.study_candidates, cost=costs.X0(sources)
        )
        values = held.score(held.sample(result.schedules[steps]))
        schedule = result.schedules[steps]
        row = {"guidance": held.guidance, "sources": sources, "steps": steps, "samples": options.study_samples}
        row |= {"nfe": result.nfe, "seconds": time.perf_counter() - began, "nodes": schedule.nodes.tolist()}
        rows.append(row | summary(values))
        print(show(rows[-1]), flush=True)
    return rows


def show(row: Row) -> str:
    name = f"{row['cost']:>12} {row['share']:>10}" if "cost" in row else f"{row['sources']!s:>12} {'sources':>10}"
    above = f"  {row['mean_gain']:+5.2f} +- {row['mean_gain_error']:.2f}" if "cost" in row else ""
    return (
        f"guidance {row['guidance']:g} {name} {row['steps']:3d} steps: {row['psnr']:6.2f} +- {row['psnr_error']:.2f}  "
        f"mean {row['mean_psnr']:6.2f} +- {row['mean_psnr_error']:.2f}{above}  {row['nfe']['total']:6g} evaluations"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--heldout", type=int, default=256)
    parser.add_argument("--samples", type=int, default=64, help="noises that a joint search is given")
    parser.add_argument("--own", type=int, default=32, help="held-out noises that get schedules of their own")
    parser.add_argument("--study-samples", type=int, default=16, help="noises of the study")
    parser.add_argument("--study-steps", type=int, default=10)
    parser.add_argument("--study-candidates", type=int, default=100, help="nodes that the study looks at")
    parser.add_argument("--study-guidance", type=float, action="append", help="default: 1")
    parser.add_argument("--teacher-steps", type=int, default=200)
    parser.add_argument("--teacher-solver", default="euler")
    parser.add_argument("--candidates", type=int, help="nodes that a joint search looks at; default the library's")
    parser.add_argument("--budget", type=int, action="append", help="default: 5 and 10")
    parser.add_argument("--guidance", type=float, action="append", help="default: 1 and 3")
    parser.add_argument(
        "--features", metavar="MODULE:FUNCTION", default="oss_ext.zoo:features", help="returns a module"
    )
    parser.add_argument("--no-features", action="store_true", help="leave that row out")
    parser.add_argument("--no-study", action="store_true", help="leave that out")
    parser.add_argument("--out", type=Path, help="folder for costs.json; default: benchmarks/results")
    options = parser.parse_args()
    options.budget = sorted(options.budget or [5, 10])
    device = torch.device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    features = None
    if not options.no_features:
        module, _, function = options.features.partition(":")
        features = getattr(importlib.import_module(module), function)(device=device)
    rows, study, began = [], [], time.perf_counter()
    for guidance in options.guidance or [1.0, 3.0]:
        held = HeldOut(
            guidance, heldout=options.heldout, samples=options.samples, teacher_steps=options.teacher_steps,
            teacher_solver=options.teacher_solver, device=device,
        )  # fmt: skip
        rows += table_rows(held, options, features)
        if not options.no_study and guidance in (options.study_guidance or [1.0]):
            study += sources_rows(held, options)
    keys = (
        "heldout",
        "samples",
        "own",
        "study_samples",
        "study_candidates",
        "teacher_steps",
        "teacher_solver",
        "candidates",
    )
    result = measure.environment(device) | {key: getattr(options, key) for key in keys}
    result |= {"seconds": time.perf_counter() - began, "rows": rows, "sources": study}
    print(f"{result['seconds']:.0f} s; saved {measure.save('costs', result, options.out)}")


if __name__ == "__main__":
    main()
