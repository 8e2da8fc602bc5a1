"""Stage-wise experts: every step of a few-step schedule gets a copy of the network, tuned for that step alone.

OSS (Pei, Han, Gu, arXiv 2503.21774), section 4.2.3 and Table 5: a searched schedule also divides the work well among
experts. There: DiT-XL/2 in five stages, FID. Here: a bundled model, and PSNR to the teacher on noises that neither the
search nor the tuning has seen; steps of even length ("Uniform" there) and searched ones, both without and with tuning.
The expert of step k learns, by plain back-propagation through one evaluation, to take the state that the experts before
it lead to onto the teacher's state at the next node. Euler's steps, which are DDIM's.

    python examples/experts.py                       # about a minute on one GPU
    python examples/experts.py --guidance 3 --steps 10
    python examples/experts.py --tiny                # small random network, seconds

Into --output: results.json, and of each schedule NAME.json and NAME.safetensors, which `load_experts` reads:

    schedule, model = load_experts(folder, "searched", oss_ext.zoo.load("photo32"))
    images = schedule.sample(model, noise, cond)
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

import oss_ext
from oss_ext.metrics import pooled_psnr, psnr
from oss_ext.zoo.network import NetworkConfig, PatchTransformer

Cond = dict[str, Tensor]
JUDGES = 1 / 8
"""The share of the training noises that only says whether an expert is better than the network it came from."""
TINY = {"steps": 3, "samples": 4, "noises": 48, "heldout": 16, "iterations": 30, "batch": 16, "teacher_steps": 24}


class Experts:
    """A Denoiser that is another model at each step of a schedule: give it to that schedule's `sample`.

    models: one a step. t: float64 [k + 1], the schedule's flow times.
    """

    def __init__(self, models: list[Any], t: Tensor) -> None:
        self.models, self._t = models, t[:-1].tolist()

    def velocity(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """Raises ValueError for a flow time that no expert is for."""
        times = set(t.tolist())
        if len(times) != 1 or not times <= set(self._t):
            raise ValueError(f"t: got {sorted(times)}, wanted one of {self._t}")
        return self.models[self._t.index(times.pop())].velocity(x, t, cond)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.models[0], name)


def twin(model: oss_ext.zoo.ZooModel) -> oss_ext.zoo.ZooModel:
    """The same model with weights of its own."""
    return oss_ext.zoo.ZooModel(model.name, copy.deepcopy(model.network), model.card, model.guidance_scale)


def load_experts(folder: Path, name: str, model: oss_ext.zoo.ZooModel) -> tuple[oss_ext.Schedule, Experts]:
    """The schedule and the experts that were saved as `name`; of a model like `model`, with its guidance."""
    schedule = oss_ext.Schedule.load(folder / f"{name}.json")
    held = load_file(folder / f"{name}.safetensors")
    models = [twin(model) for _ in range(schedule.steps)]
    for step, each in enumerate(models):
        mine = {key.partition(".")[2]: value for key, value in held.items() if key.startswith(f"step_{step}.")}
        each.network.load_state_dict(mine)
    return schedule, Experts(models, schedule.t)


def tune(
    expert: oss_ext.zoo.ZooModel,
    states: Tensor,
    target: Tensor,
    cond: Cond,
    t: float,
    weights: list[float],
    args: argparse.Namespace,
    bar: tqdm[Any],
) -> float:
    """Trains the expert to take `states` [n, ...] at flow time t to `target`; the mean squared error that is left on
    the noises that judge, as a share of what it was. Weights that do no better there are put back.

    weights: of the state and of the velocity in the step.
    """
    judges = max(1, round(JUDGES * len(states)))
    learners = len(states) - judges
    before = copy.deepcopy(expert.network.state_dict())

    def stepped(rows: Tensor) -> Tensor:
        times = torch.full((len(rows),), t, dtype=torch.float64)
        velocity = expert.velocity(states[rows], times, {key: value[rows] for key, value in cond.items()})
        return weights[0] * states[rows] + weights[1] * velocity

    @torch.no_grad()
    def judged() -> float:
        rows = torch.arange(learners, len(states), device=states.device).split(args.batch)
        return sum(float((stepped(some) - target[some]).double().square().sum()) for some in rows)

    first = judged()
    network = expert.network.requires_grad_(True)
    adam = torch.optim.Adam(network.parameters(), lr=args.rate, betas=(0.9, 0.99))
    warm = max(1, args.iterations // 20)
    ramp = torch.optim.lr_scheduler.LinearLR(adam, 1 / warm, total_iters=warm)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, args.iterations)
    scale = first / (judges * states[0].numel())  # losses near 1 whatever the step's length: Adam's epsilon has no say
    draw = torch.Generator().manual_seed(args.seed)
    for _ in range(args.iterations):
        rows = torch.randint(learners, (min(args.batch, learners),), generator=draw).to(states.device)
        loss = (stepped(rows) - target[rows]).square().mean() / scale
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        ramp.step()
        decay.step()
        bar.update()
    network.requires_grad_(False)
    left = judged() / first
    if not left < 1:
        network.load_state_dict(before)
        left = 1.0
    return left


def experts_of(
    model: oss_ext.zoo.ZooModel,
    schedule: oss_ext.Schedule,
    noise: Tensor,
    cond: Cond,
    teacher: Mapping[int, Tensor],
    args: argparse.Namespace,
    name: str,
) -> tuple[list[oss_ext.zoo.ZooModel], list[float]]:
    """One tuned model a step, the first step's first; what each leaves of its error. teacher: states by node."""
    assert schedule.nodes is not None
    models: list[oss_ext.zoo.ZooModel] = []
    left = []
    nodes = schedule.nodes.tolist()
    with tqdm(total=schedule.steps * args.iterations, desc=f"tuning, {name}", disable=args.tiny) as bar:
        state = noise * schedule.noise_scale
        for step, weights in enumerate(schedule.coefficients.tolist()):
            expert = twin(model)
            left.append(
                tune(expert, state, teacher[nodes[step + 1]], cond, float(schedule.t[step]), weights, args, bar)
            )
            models.append(expert)
            bar.set_postfix_str(f"step {step + 1} leaves {left[-1]:.0%} of its error")
            if step + 1 < schedule.steps:
                one = torch.full((1,), float(schedule.t[step]), dtype=torch.float64)
                state = torch.cat(
                    [
                        weights[0] * x
                        + weights[1] * expert.velocity(x, one.expand(len(x)), dict(zip(cond, told, strict=True)))
                        for x, *told in zip(*(each.split(args.batch) for each in (state, *cond.values())), strict=True)
                    ]
                )
    return models, left


def teacher_states(
    model: oss_ext.zoo.ZooModel,
    fine: oss_ext.Schedule,
    noise: Tensor,
    cond: Cond,
    nodes: set[int],
    args: argparse.Namespace,
) -> dict[int, Tensor]:
    """The teacher's states [n, ...] at these nodes of its grid."""
    path = fine.states(model, noise, cond, batch_size=args.batch, progress=not args.tiny)
    return {node: state.clone() for node, state in enumerate(path) if node in nodes}


def tiny_model(device: torch.device) -> oss_ext.zoo.ZooModel:
    """A random network of the bundled ones' kind, 8x8 pictures."""
    torch.manual_seed(1)
    network = PatchTransformer(NetworkConfig(image_size=8, width=16, depth=1, heads=2, classes=3, time_features=16))
    for layer, std in ((network.modulation, 2.0), (network.patch_out, 0.1)):  # they begin as zeros
        torch.nn.init.normal_(layer.weight, std=std)
    network.to(device).requires_grad_(False).eval()
    return oss_ext.zoo.ZooModel("tiny", network, {"classes": ["a", "b", "c"], "commit": "random"})


def main(argv: list[str] | None = None) -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--tiny", action="store_true", help="small random network, seconds")
    made.add_argument("--model", default="photo32", help=f"one of {', '.join(oss_ext.zoo.names())}")
    made.add_argument("--guidance", type=float, default=1.0)
    made.add_argument("--output", type=Path, default=Path("oss-experts"), help="folder to write to")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    numbers = {
        "steps": (5, "steps, and experts"),
        "samples": (32, "noises that are searched"),
        "noises": (4096, "noises that experts are tuned on"),
        "heldout": (256, "noises that are measured"),
        "iterations": (300, "of each expert"),
        "batch": (256, "noises an iteration"),
        "teacher_steps": (100, "of the teacher"),
    }
    for key, (value, text) in numbers.items():
        made.add_argument(f"--{key.replace('_', '-')}", type=int, help=f"{text} ({value})")
    made.add_argument("--rate", type=float, default=2e-4, help="Adam's (2e-4)")
    made.add_argument("--seed", type=int, default=0)
    args = made.parse_args(argv)
    for key, (value, _) in numbers.items():
        if getattr(args, key) is None:
            setattr(args, key, TINY[key] if args.tiny else value)
    if args.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # TF32, which tuning does not feel; the same for all rows
    run(args, torch.device(args.device))


@torch.no_grad()
def run(args: argparse.Namespace, device: torch.device) -> None:
    began = time.perf_counter()
    model = (
        tiny_model(device) if args.tiny else oss_ext.zoo.load(args.model, guidance_scale=args.guidance, device=device)
    )
    grid = "flow" if model.flow_table is None else "ddim"  # what is sampled with even steps of
    fine = oss_ext.Schedule.from_grid(oss_ext.grids.for_model(grid, args.teacher_steps, model), "unipc", model)
    noise, cond = model.noise(args.samples)
    result = oss_ext.dp_search(
        model,
        noise,
        args.steps,
        teacher_steps=args.teacher_steps,
        grid=grid,
        cond=cond,
        batch_size=args.batch,
        progress=not args.tiny,
    )
    nodes = torch.linspace(0, args.teacher_steps, args.steps + 1, dtype=torch.float64).round().long()
    schedules = {
        "uniform": oss_ext.Schedule.from_grid(fine.t[nodes], "euler", model, nodes=nodes),
        "searched": result.schedule,
    }
    wanted = {node for schedule in schedules.values() for node in schedule.nodes.tolist()}
    # The search's noises are the first of those that experts learn from; held-out ones are of another split.
    noise, cond = model.noise(args.noises)
    teacher = teacher_states(model, fine, noise, cond, wanted, args)
    unseen, told = model.noise(args.heldout, split="heldout")
    target = fine.sample(model, unseen, told, batch_size=args.batch)
    args.output.mkdir(parents=True, exist_ok=True)
    table: dict[str, dict[str, Any]] = {}
    for name, schedule in schedules.items():
        with torch.enable_grad():
            models, left = experts_of(model, schedule, noise, cond, teacher, args, name)
        several = Experts(models, schedule.t)
        plain = psnr(schedule.sample(model, unseen, told, batch_size=args.batch), target)
        tuned = psnr(schedule.sample(several, unseen, told, batch_size=args.batch), target)
        gain = (tuned - plain).double()
        table[name] = {
            "nodes": schedule.nodes.tolist(),
            "untuned": {"psnr": float(pooled_psnr(plain)), "mean_psnr": float(plain.mean())},
            "tuned": {"psnr": float(pooled_psnr(tuned)), "mean_psnr": float(tuned.mean())},
            "mean_gain": float(gain.mean()),
            "mean_gain_error": float(gain.std() / len(gain) ** 0.5),
            "error_left_by_step": left,
        }
        schedule.save(args.output / f"{name}.json")
        weights = {
            f"step_{step}.{key}": value.cpu().contiguous()
            for step, each in enumerate(models)
            for key, value in each.network.state_dict().items()
        }
        save_file(weights, args.output / f"{name}.safetensors")
    seconds = time.perf_counter() - began
    settings = {key: value for key, value in vars(args).items() if key != "output"}
    record = {"model": model.describe(), "settings": settings, "rows": table, "seconds": seconds}
    (args.output / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"PSNR to the teacher, {args.heldout} held-out noises, {args.steps} steps: pooled (mean of the noises' own)")
    print(f"{'':9}{'without tuning':>18}{'with tuning':>18}{'mean gain':>18}")
    for name, row in table.items():
        cells = [f"{row[key]['psnr']:.2f} ({row[key]['mean_psnr']:.2f})" for key in ("untuned", "tuned")]
        cells.append(f"{row['mean_gain']:+.2f} +- {row['mean_gain_error']:.2f}")
        print(f"{name:9}" + "".join(f"{cell:>18}" for cell in cells))
    print(f"{seconds:.0f} s, written to {args.output}/")


if __name__ == "__main__":
    main()
