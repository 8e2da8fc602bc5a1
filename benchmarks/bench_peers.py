"""GITS, DM, LD3, DS-Solver and DyWeight beside their authors' code, on the bundled model and the same noises.

    python benchmarks/bench_peers.py --peers FOLDER            # on the CPU, five minutes; saves results/peers.json
    python benchmarks/bench_peers.py --peers FOLDER --method GITS --out /tmp/some

FOLDER holds checkouts named as their repositories: diff-sampler (github.com/zju-pi), LD3 (vinhsuhi), with LD3's copy of
DM's code for pixels, NeuralSolver (MCG-NJU) and DyWeight (Westlake-AGI-Lab); tests/baselines/test_peers.py has DM's own
(DM-NonUniform, scxue) on analytic models. `--commit NAME=COMMIT` says which commit a checkout without git is. The code
that runs both is that of the tests, which state the same bounds. Exits with 1 where a bound does not hold.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure
import pytest
import torch

import oss_ext
from oss_ext import baselines, grids, zoo
from oss_ext.baselines.dm import objective

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from helpers import rivals
from helpers.ld3 import learner
from helpers.peers import checkout

STEPS = (5, 10, 20)
COEFFICIENTS = (1.0, 1.15)
Row = dict[str, Any]


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest number."""
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def entry(what: str, theirs: object, ours: object, apart: float, bound: float) -> Row:
    return {"what": what, "theirs": str(theirs), "ours": str(ours), "off": apart, "bound": bound}


def gits(samples: int) -> Iterator[Row]:
    """The nodes along one cost tensor; 61 of the teacher's, as in its code."""
    model, shape = rivals.photo32()
    cases = [(steps, coefficient) for steps in STEPS for coefficient in COEFFICIENTS]
    with pytest.MonkeyPatch.context() as patch:
        wanted = rivals.gits_nodes(patch, model, shape, samples, 61, cases, "dev", 0)
    torch.manual_seed(0)
    noise = torch.randn(samples, *shape)
    for coefficient in COEFFICIENTS:
        found = baselines.gits(model, noise, max(STEPS), grid=rivals.gits_grid(61), coefficient=coefficient)
        for steps in STEPS:
            theirs, ours = wanted[steps, coefficient], found.details["nodes"][steps].tolist()
            what = f"{steps} steps, coefficient {coefficient:g}, {samples} noises: nodes of 61"
            moved = sum(a != b for a, b in zip(theirs, ours, strict=True))
            yield entry(what, *(" ".join(map(str, nodes)) for nodes in (theirs, ours)), float(moved), 0.0)


def dm(samples: int) -> Iterator[Row]:
    """Our schedule's objective by their code; and theirs from their start and minimiser, which ours must not exceed."""
    torch.set_default_dtype(torch.float32)
    flow = zoo.load("photo32")
    for steps in STEPS:
        truncate = 3 if steps <= 7 else 0
        with checkout("LD3", "scipy", stubs=rivals.LD3_STUBS):
            schedules = importlib.import_module("noise_schedulers")
            theirs = importlib.import_module("samplers.general_solver").StepOptim(schedules.NoiseScheduleVE())
            ours = baselines.dm(flow, steps, sigma_max=80.0, truncate=truncate, starts="logsnr").details
            value = float(theirs.sel_lambdas_lof_obj(ours["lambdas"][1:-1].numpy(), 0.002))
            reached = float(objective(theirs.get_ts_lambdas(steps, 0.002)[1], 1, truncate))
        own = float(ours["objective"])
        yield entry(
            f"{steps} steps: objective of our schedule", f"{value:.6f}", f"{own:.6f}", abs(own / value - 1), 1e-6
        )
        above = own / reached - 1
        yield entry(f"{steps} steps: least objective, ours no higher", f"{reached:.6f}", f"{own:.6f}", above, 1e-6)


def ld3(samples: int) -> Iterator[Row]:
    """Loss and slope of its DPM-Solver++ (order 2) at the first parameters and at others."""
    model, shape = rivals.photo32()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(samples, *shape, generator=generator)
    fine = oss_ext.Schedule.from_grid(grids.for_model("edm", 20, model), "dpmpp_2m", model)
    target = fine.sample(model, noise)
    for steps in STEPS[:2]:
        for name in ("first", "random"):
            raw = torch.ones(steps + 1)
            raw = raw if name == "first" else raw + 0.5 * torch.randn(steps + 1, generator=generator)
            loss, slope = rivals.ld3_loss_and_slope(model, noise, target, raw)
            own = learner(model, noise, target, steps, ends=-torch.tensor([80, rivals.LOW]).log())
            own.raw.data.copy_(raw)
            _, losses = own._slopes(torch.arange(samples))
            what = f"{steps} steps, {name} parameters, {samples} noises"
            mine = losses.mean()
            yield entry(f"{what}: objective", f"{float(loss):.6g}", f"{float(mine):.6g}", off(mine, loss), 1e-5)
            lengths = (f"{float(each.double().norm()):.6g}" for each in (slope, own.raw.grad))
            yield entry(f"{what}: its slope (length)", *lengths, off(own.raw.grad, slope), 1e-4)


def ds_solver(samples: int) -> Iterator[Row]:
    """Every state of six steps with random weights and lengths."""
    flow = zoo.load("photo32", dtype=torch.float64)
    noise, cond = flow.noise(samples)
    generator = torch.Generator().manual_seed(0)
    weights = 0.3 * torch.randn(6, 6, generator=generator).tril(-1)
    lengths = torch.softmax(torch.randn(6, generator=generator), 0)
    label = cond["label"].repeat(2)  # its guidance asks for both halves of a batch
    theirs, schedule = rivals.ds_solver_states(
        lambda x, t: flow.velocity(x, t, {"label": label[: len(x)]}), noise, weights, lengths
    )
    ours = schedule.sample(flow, noise, cond, return_trajectory=True)[1]
    yield entry(f"6 random steps, {samples} noises: all states", "", "", off(ours, theirs), 1e-9)


def dyweight(samples: int) -> Iterator[Row]:
    """The end of six steps with random weights. It divides by sigma + 1e-8."""
    model, shape = rivals.photo32()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(samples, *shape, generator=generator)
    weights = torch.eye(6) + 0.1 * torch.randn(6, 6, generator=generator).tril()
    weights = weights / weights.sum(1, keepdim=True) * (1 - 0.1 * torch.rand(6, 1, generator=generator))
    theirs, schedule, _ = rivals.dyweight_states(model, noise, weights)
    ours = schedule.sample(model, noise)
    yield entry(f"6 random steps, {samples} noises: the end", "", "", off(ours, theirs), 1e-5)


METHODS: dict[str, tuple[str, str, Callable[[int], Iterator[Row]]]] = {
    "GITS": ("diff-sampler", "zju-pi/diff-sampler", gits),
    "DM": ("LD3", "vinhsuhi/LD3 (its copy of scxue/DM-NonUniform)", dm),
    "LD3": ("LD3", "vinhsuhi/LD3", ld3),
    "DS-Solver": ("NeuralSolver", "MCG-NJU/NeuralSolver", ds_solver),
    "DyWeight": ("DyWeight", "Westlake-AGI-Lab/DyWeight", dyweight),
}  # (folder, repository, rows)


def commit_of(folder: Path) -> str:
    """Of a checkout with git of its own; "" without."""
    if not (folder / ".git").exists():
        return ""
    run = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    return subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="folder of checkouts")
    parser.add_argument("--method", action="append", choices=tuple(METHODS), help="default: all")
    parser.add_argument("--commit", action="append", default=[], metavar="NAME=COMMIT")
    parser.add_argument("--samples", type=int, default=16, help="noises")
    parser.add_argument("--out", type=Path, help="folder for peers.json; default: benchmarks/results")
    options = parser.parse_args()
    names = options.method or list(METHODS)
    missing = sorted({METHODS[name][0] for name in names if not (options.peers / METHODS[name][0]).is_dir()})
    if missing:
        parser.error(f"--peers: no {', '.join(missing)} in {options.peers}")
    os.environ["OSS_PEERS"] = str(options.peers)
    said = dict(each.split("=", 1) for each in options.commit)
    rows: list[Row] = []
    for name in names:
        folder, repository, compare = METHODS[name]
        about = {"method": name, "repository": repository}
        about["commit"] = said.get(folder) or commit_of(options.peers / folder)
        torch.set_default_dtype(torch.float64)
        try:
            for row in compare(options.samples):
                rows.append(about | row)
                print(
                    f"{name:>9} {row['what']}: theirs {row['theirs']}, ours {row['ours']}, apart {row['off']:.1e} "
                    f"(bound {row['bound']:.0e})", flush=True
                )  # fmt: skip
        finally:
            torch.set_default_dtype(torch.float32)
    result = measure.environment(torch.device("cpu")) | {"samples": options.samples, "rows": rows}
    print(f"saved {measure.save('peers', result, options.out)}")
    wide = [f"{row['method']}, {row['what']}" for row in rows if not row["off"] <= row["bound"]]
    if wide:
        raise SystemExit(f"not within the bound: {'; '.join(wide)}")


if __name__ == "__main__":
    main()
