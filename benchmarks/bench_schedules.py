"""PSNR to the teacher on held-out noises of the bundled model: stock grids beside what the search finds.

    python benchmarks/bench_schedules.py                       # the table of the README; saves results/schedules.json
    python benchmarks/bench_schedules.py --device cpu --heldout 16 --samples 4 --teacher-steps 50

For every guidance scale: one teacher of `--teacher-steps` uniform Euler steps a held-out noise; students are sampled
by `Schedule.sample` on the same noises (data range 2). "PSNR" is that of the squared error averaged over all noises,
which is what the joint search lowers; "mean" is the average over noises of each one's own PSNR. Gains are over the
uniform schedule of the same solver, with standard errors over noises (bootstrap). Searches never see a held-out noise.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import measure
import torch
from torch import Tensor

import oss_ext
from oss_ext.metrics import pooled_psnr, psnr

BATCH = 4096


def gains(values: Tensor, base: Tensor, draws: int = 2000) -> dict[str, float]:
    """Both PSNRs and their gains over `base` on the same noises [n], each gain with its bootstrap standard error."""
    pick = torch.randint(len(values), (draws, len(values)), generator=torch.Generator().manual_seed(0))
    return {
        "psnr": float(pooled_psnr(values)),
        "gain": float(pooled_psnr(values) - pooled_psnr(base)),
        "gain_error": float((pooled_psnr(values[pick]) - pooled_psnr(base[pick])).std()),
        "mean_psnr": float(values.mean()),
        "mean_gain": float((values - base).mean()),
        "mean_gain_error": float((values - base)[pick].mean(-1).std()),
    }


def stock(name: str, steps: int, solver: str, model: oss_ext.Denoiser) -> oss_ext.Schedule:
    grid = oss_ext.grids.for_model(name, steps, model)
    return oss_ext.Schedule.from_grid(grid, solver, model)


def bench(guidance: float, options: argparse.Namespace, device: torch.device) -> list[dict]:
    model = oss_ext.zoo.load("photo32", guidance_scale=guidance, device=device)
    heldout, cond = model.noise(options.heldout, split="heldout", device=device)
    teacher = stock("flow", options.teacher_steps, "euler", model).sample(model, heldout, cond=cond, batch_size=BATCH)

    def score(schedule: oss_ext.Schedule) -> Tensor:
        return psnr(schedule.sample(model, heldout, cond=cond, batch_size=BATCH), teacher).double().cpu()

    rows: list[dict] = []
    uniform: dict[tuple[str, int], Tensor] = {}

    def add(name: str, solver: str, budget: int, schedule: oss_ext.Schedule, **extra) -> None:
        values = score(schedule)
        uniform.setdefault((solver, budget), values)  # the first row of a solver and budget is the uniform one
        row = {"guidance": guidance, "schedule": name, "solver": solver, "steps": budget, "t": schedule.t.tolist()}
        rows.append(row | gains(values, uniform[solver, budget]) | extra)

    for solver in options.solver:
        for budget in options.budget:
            for name in ["flow", "edm", "logsnr", "ddim", "quadratic"]:
                add(name, solver, budget, stock(name, budget, solver, model))
        noise, search_cond = model.noise(options.samples, split="search", device=device)
        for share, start in [("joint", "fixed"), ("joint", "free"), ("median", "fixed")]:
            begin = time.perf_counter()
            result = oss_ext.dp_search(
                model, noise, max(options.budget), teacher_steps=options.teacher_steps, solver=solver, share=share,
                start=start, cond=search_cond, batch_size=BATCH,
            )  # fmt: skip
            spent = time.perf_counter() - begin
            for budget in options.budget:
                add(
                    f"OSS {share}" + (", free start" if start == "free" else ""), solver, budget,
                    result.schedules[budget], search_evaluations=result.nfe["total"], search_seconds=spent,
                )  # fmt: skip
    return rows


def table(rows: list[dict]) -> str:
    lines = [
        f"{'guidance':>8} {'solver':>6} {'steps':>5} {'schedule':>22} {'PSNR':>7} {'gain':>7} {'+-':>5} "
        f"{'mean':>7} {'gain':>7} {'+-':>5}"
    ]
    for row in rows:
        lines.append(
            f"{row['guidance']:8g} {row['solver']:>6} {row['steps']:5d} {row['schedule']:>22} {row['psnr']:7.2f} "
            f"{row['gain']:+7.2f} {row['gain_error']:5.2f} {row['mean_psnr']:7.2f} {row['mean_gain']:+7.2f} "
            f"{row['mean_gain_error']:5.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--heldout", type=int, default=256)
    parser.add_argument("--samples", type=int, default=128, help="noises that the search is given")
    parser.add_argument("--teacher-steps", type=int, default=200)
    parser.add_argument("--budget", type=int, action="append", help="default: 5 and 10")
    parser.add_argument("--guidance", type=float, action="append", help="default: 1 and 3")
    parser.add_argument("--solver", action="append", help="default: euler and ab2")
    parser.add_argument("--out", type=Path, default=None, help="folder for schedules.json; default: benchmarks/results")
    options = parser.parse_args()
    options.budget = options.budget or [5, 10]
    options.guidance = options.guidance or [1.0, 3.0]
    options.solver = options.solver or ["euler", "ab2"]
    device = torch.device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    rows = []
    for guidance in options.guidance:
        rows += bench(guidance, options, device)
        print(table(rows), flush=True)
    settings = {key: getattr(options, key) for key in ("heldout", "samples", "teacher_steps")}
    path = measure.save("schedules", measure.environment(device) | settings | {"rows": rows}, options.out)
    print(f"saved {path}")


if __name__ == "__main__":
    main()
