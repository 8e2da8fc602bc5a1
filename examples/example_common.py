"""What the examples share: arguments, loading, the search, and what is written.

Into --output: schedule.json (largest budget), schedules.png (every budget), and of fresh noises samples.safetensors
with "teacher", "stock" and "searched"; comparison.png where there are pictures. Needs pip install "oss-ext[demo]".
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import oss_ext
from oss_ext.plot import is_image, plot_comparison, plot_schedules

TINY = {"steps": 4, "samples": 4, "teacher_steps": 24, "show": 2}


def parser(description: str | None, repository: str, *, checkpoint: str, **defaults: Any) -> argparse.ArgumentParser:
    """The arguments of every example. defaults: of the numbers here."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--tiny", action="store_true", help="small random network, no repository, seconds")
    made.add_argument("--repo", type=Path, help=f"checkout of github.com/{repository}")
    made.add_argument("--checkpoint", type=Path, help=checkpoint)
    made.add_argument("--output", type=Path, default=Path("oss-example"), help="folder to write to")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--solver", default="dpmpp_2m", help="of oss_ext.solvers.names(), or auto")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--batch-size", type=int, help="network inputs a batch")
    numbers = {"steps": 10, "samples": 8, "teacher_steps": 100, "show": 4, **defaults}
    made.add_argument("--steps", type=int, help=f"largest budget ({numbers['steps']})")
    made.add_argument("--samples", type=int, help=f"noises that are searched ({numbers['samples']})")
    made.add_argument("--teacher-steps", type=int, help=f"({numbers['teacher_steps']})")
    made.add_argument("--show", type=int, help=f"fresh noises that are sampled afterwards ({numbers['show']})")
    made.set_defaults(numbers=numbers)
    return made


def parse(made: argparse.ArgumentParser, argv: list[str] | None, *needs: str) -> argparse.Namespace:
    """The arguments; without --tiny, `needs` must be there, and --repo goes first on Python's path."""
    args = made.parse_args(argv)
    for name, value in (TINY if args.tiny else args.numbers).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if not args.tiny:
        for name in needs:
            if getattr(args, name) is None:
                made.error(f"--{name.replace('_', '-')} is needed without --tiny")
        if args.repo is not None:
            source = args.repo / "src"
            sys.path.insert(0, str(source if source.is_dir() else args.repo))
    args.device = torch.device(args.device)
    torch.manual_seed(args.seed)
    return args


def ready(net: nn.Module, args: argparse.Namespace, dtype: torch.dtype | None = None) -> Any:
    return net.to(device=args.device, dtype=dtype).eval().requires_grad_(False)


def imported(spec: str) -> Callable[..., Any]:
    """The function that "module:function" names."""
    module, _, function = spec.partition(":")
    return getattr(importlib.import_module(module), function)


def weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file; leaves the script for any other, since a pickle can run code of its own."""
    if path.suffix != ".safetensors":
        raise SystemExit(f"{path}: got a {path.suffix or 'nameless'} file, wanted .safetensors: see examples/README.md")
    return load_file(path)


def embeddings(path: Path, args: argparse.Namespace) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(cond of `samples` rows, null) from a safetensors file that holds them by name, null_NAME for the null ones; rows
    are repeated in turn."""
    held = {name: value.to(args.device) for name, value in load_file(path).items()}
    null = {name.removeprefix("null_"): value for name, value in held.items() if name.startswith("null_")}
    return rows_in_turn({name: v for name, v in held.items() if not name.startswith("null_")}, args.samples), null


def rows_in_turn(cond: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    return {name: value[torch.arange(count, device=value.device) % len(value)] for name, value in cond.items()}


def search(
    args: argparse.Namespace,
    model: oss_ext.Denoiser,
    noise: Tensor,
    cond: Mapping[str, Tensor] | None = None,
    *,
    grid: str,
    integer: bool = False,
    weight: Tensor | None = None,
    **metadata: Any,
) -> oss_ext.SearchResult:
    """Searches every budget up to --steps and writes the schedules. integer: whole timesteps only."""
    result = oss_ext.dp_search(
        model,
        noise,
        args.steps,
        teacher_steps=args.teacher_steps,
        grid=grid,
        solver=args.solver,
        nodes="integer" if integer else "any",
        cond=cond,
        weight=None if weight is None else weight.to(noise.device),
        batch_size=args.batch_size,
        progress=not args.tiny,
        metadata={"tiny": True} if args.tiny else metadata,
    )
    args.output.mkdir(parents=True, exist_ok=True)
    result.schedule.save(args.output / "schedule.json")
    plot_schedules(result, args.output / "schedules.png")
    print(result.schedule)
    return result


def compare(
    args: argparse.Namespace,
    model: oss_ext.Denoiser,
    result: oss_ext.SearchResult,
    noise: Tensor,
    cond: Mapping[str, Tensor] | None = None,
    *,
    grid: str,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Samples `noise`, which the search has not seen, with the teacher, a stock schedule and the searched one."""
    stock_solver = args.solver if args.solver in oss_ext.solvers.formulas() else "dpmpp_2m"
    teacher_solver = result.schedule.provenance.teacher_solver
    assert teacher_solver is not None

    def stock(steps: int, solver: str) -> oss_ext.Schedule:
        return oss_ext.Schedule.from_grid(oss_ext.grids.for_model(grid, steps, model), solver, model)

    schedules = {
        "teacher": stock(args.teacher_steps, teacher_solver),
        "stock": stock(args.steps, stock_solver),
        "searched": result.schedule,
    }
    samples = {
        name: schedule.sample(model, noise, cond, batch_size=args.batch_size) for name, schedule in schedules.items()
    }
    target = samples["teacher"].double()
    for name in ("stock", "searched"):
        off = (samples[name].double() - target).square().mean().sqrt() / target.std()
        print(f"{name:>8}, {args.steps} steps: {float(off):.2%} of the teacher's standard deviation away from it")
    save_file({name: value.cpu().contiguous() for name, value in samples.items()}, args.output / "samples.safetensors")
    pictures = {name: decode(value) if decode else value for name, value in samples.items()}
    if is_image(pictures["teacher"]):
        plot_comparison(pictures, args.output / "comparison.png")
    print(f"written to {args.output}/")
