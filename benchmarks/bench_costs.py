"""How many candidates into a node a cost must judge that evaluates the network at each of them.

    python benchmarks/bench_costs.py                   # on a GPU, two minutes; saves results/costs.json
    python benchmarks/bench_costs.py --device cpu --out /tmp/small --heldout 6 --samples 2 --own 2 --teacher-steps 24 \
        --candidates 12 --steps 3 --guidance 1

The x0 cost of one Euler schedule for all noises ("joint", measured on held-out noises), and of a schedule for every
held-out noise ("per_sample"), judging the 1, 2, .. steps into each node that the distance of the states ranks first.
With 1 that distance alone decides. PSNR as in bench_schedules.py, and the gain of the mean PSNR over 1 candidate.
The costs beside each other: docs/make_results.py, study table4.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import measure
import torch
from heldout import BATCH, HeldOut, gain, summary

import oss_ext
from oss_ext.costs import X0
from oss_ext.metrics import psnr

SOURCES: tuple[int | None, ...] = (1, 2, 3, 4, 8, 16, None)
Row = dict[str, Any]


def rows(held: HeldOut, options: argparse.Namespace) -> list[Row]:
    """Printed as they are found."""
    found: list[Row] = []
    base: dict[str, torch.Tensor] = {}
    noise, cond = held.noise[: options.own], {name: value[: options.own] for name, value in held.cond.items()}
    for share in ("joint", "per_sample"):
        for sources in SOURCES:
            began = time.perf_counter()
            how: dict[str, Any] = {"candidates": options.candidates, "cost": X0(sources)}
            if share == "joint":
                result, _ = held.search("euler", options.steps, **how)
                values = held.score(held.sample(result.schedule))
            else:
                result = oss_ext.dp_search(
                    held.model, noise, options.steps, share=share, cond=cond, batch_size=BATCH, **how,
                    teacher_steps=held.teacher_steps, teacher_solver=held.teacher_solver,
                )  # fmt: skip
                values = psnr(result.endpoints[options.steps], held.teacher[: options.own]).double().cpu()
            above, error = gain(values, base.setdefault(share, values), mean=True)
            row = {"guidance": held.guidance, "share": share, "sources": sources, "noises": len(values)}
            row |= {"nfe": result.nfe, "seconds": time.perf_counter() - began} | summary(values)
            found.append(row | {"mean_gain": above, "mean_gain_error": error})
            print(
                f"guidance {held.guidance:g} {share:>10} {sources!s:>5} candidates: {row['psnr']:6.2f} +- "
                f"{row['psnr_error']:.2f}  mean {row['mean_psnr']:6.2f} ({above:+.2f} +- {error:.2f})  "
                f"{result.nfe['total']:6g} evaluations",
                flush=True,
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--heldout", type=int, default=256)
    parser.add_argument("--samples", type=int, default=16, help="noises that a joint search is given")
    parser.add_argument("--own", type=int, default=16, help="held-out noises that get schedules of their own")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--candidates", type=int, default=100, help="nodes that a search looks at")
    parser.add_argument("--teacher-steps", type=int, default=200)
    parser.add_argument("--teacher-solver", default="euler")
    parser.add_argument("--guidance", type=float, action="append", help="default: 1")
    parser.add_argument("--out", type=Path, help="folder for costs.json; default: benchmarks/results")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    began, found = time.perf_counter(), []
    settings = {key: getattr(options, key) for key in ("heldout", "samples", "teacher_steps", "teacher_solver")}
    for guidance in options.guidance or [1.0]:
        found += rows(HeldOut(guidance, **settings, device=device), options)
    result = measure.environment(device) | settings
    result |= {key: getattr(options, key) for key in ("own", "steps", "candidates")}
    result |= {"seconds": time.perf_counter() - began, "rows": found}
    print(f"{result['seconds']:.0f} s; saved {measure.save('costs', result, options.out)}")


if __name__ == "__main__":
    main()
