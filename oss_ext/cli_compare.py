"""`oss-ext compare`: grids, searches and rivals on a model, side by side."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from oss_ext import zoo
from oss_ext.build import build_info
from oss_ext.cli_common import (
    Source,
    import_function,
    load_model,
    parse_model_args,
    parse_shape,
    pick_device,
    pick_dtype,
    print_json,
    speaker,
    stderr,
)
from oss_ext.cli_options import BatchSize, Candidates, Device, Dtype, Json, ModelArgs, Shape
from oss_ext.compare import (
    Cell,
    Comparison,
    Features,
    Guide,
    Row,
    Subject,
    as_csv,
    catalogue,
    chosen,
    compare,
    entries,
    leaders,
    view,
)
from oss_ext.compare.figures import draw
from oss_ext.compare.rows import CostOf, teacher
from oss_ext.costs import Feature, Perceptual
from oss_ext.files import whole_file
from oss_ext.models import Denoiser
from oss_ext.teacher import DEFAULT_SOLVER, DEFAULT_STEPS
from oss_ext.zoo import photos

SEED = 0  # of the search noises of models without noise(); held-out ones come after them
LABELS = 9
BUNDLED, REAL = "classifier", 4096  # the bundled features, and crops of the photographs to compare with
WIDTH = 120  # of tables in files and pipes


def compare_(
    models: Annotated[
        list[str],
        typer.Argument(help="photo32, photo32_vp, or package.module:function that returns a Denoiser; one or more."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for cells, tables and figures; a later run goes on there.")] = Path(
        "oss-compare"
    ),
    budget: Annotated[
        list[int] | None, typer.Option(help="Network evaluations a sample; default 5, 10 and 20.")
    ] = None,
    guidance: Annotated[list[float] | None, typer.Option(help="Guidance scales of bundled models; default 1.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Groups, or group/name/solver, with * and ?; see --list.")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="The same, left out.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the rows and stop.")] = False,
    heldout: Annotated[int, typer.Option(help="Noises to measure on.")] = 256,
    samples: Annotated[int, typer.Option(help="Other noises to search on.")] = 128,
    grid: Annotated[str, typer.Option(help="Teacher's grid, with parameters.")] = "flow",
    teacher_steps: Annotated[int, typer.Option(help="Steps of the teacher.")] = DEFAULT_STEPS,
    teacher_solver: Annotated[str, typer.Option(help="What the teacher is integrated with.")] = DEFAULT_SOLVER,
    reference_steps: Annotated[
        int | None, typer.Option(help="Measure to so many steps of the same grid and solver; default the teacher.")
    ] = None,
    candidates: Candidates = None,
    cost: Annotated[
        list[str] | None,
        typer.Option(
            help="More Euler searches, whose steps are judged by x0, by features (of x0; see --features) or by the "
            "activations of this submodule of the network: rows of the group costs."
        ),
    ] = None,
    iterations: Annotated[int, typer.Option(help="Of rivals trained by back-propagation.")] = 400,
    graph: Annotated[bool, typer.Option(help="Train them with CUDA graphs, where the model allows it.")] = False,
    features: Annotated[
        str | None,
        typer.Option(
            help="package.module:attribute, a torch module or a function that returns one, for FID and KID; default "
            "for bundled models a small classifier of their photographs."
        ),
    ] = None,
    real: Annotated[
        str | None, typer.Option(help="package.module:function, () -> images of the data [R, C, H, W] in [-1, 1].")
    ] = None,
    decode: Annotated[
        str | None, typer.Option(help="package.module:function, latents -> images in [-1, 1], for all but PSNR.")
    ] = None,
    data_range: Annotated[float, typer.Option(help="Of samples, for PSNR.")] = 2.0,
    limit_seconds: Annotated[float | None, typer.Option(help="Begin no row after this; run again to go on.")] = None,
    prepare: Annotated[bool, typer.Option(help="Only what needs no model evaluation (DM's optimisation).")] = False,
    batch_size: BatchSize = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    shape: Shape = None,
    model_arg: ModelArgs = None,
    json_: Json = False,
) -> None:
    """Compare grids, searches and rivals on held-out noises: tables and figures. Run again, it goes on where it was."""
    console = speaker(json_)
    where = pick_device(device)
    every = catalogue(iterations=iterations, graph=graph, costs=_costs(cost or (), features, models, where))
    if reference_steps is not None:
        every.append(teacher(f"{teacher_steps} steps"))
    rows = chosen(every, only or (), skip or ())
    if list_:
        for row in rows:
            console.print(row.key, highlight=False)
        return
    arguments = parse_model_args(model_arg or [])
    decoder = None if decode is None else import_function(decode, "decode")
    subjects: list[Subject] = []
    for spec in models:
        for scale in [None] if ":" in spec else guidance or [1.0]:
            source = load_model(
                spec, arguments if ":" in spec else {}, guidance=scale, device=where, dtype=pick_dtype(dtype)
            )
            subjects.append(
                subject_of(source, scale, heldout=heldout, samples=samples, shape=parse_shape(shape), decode=decoder)
            )
    out.mkdir(parents=True, exist_ok=True)

    def report(cell: Cell) -> None:
        guided = "" if cell.guidance is None else f", guidance {cell.guidance:g}"
        assert cell.psnr is not None
        mean = sum(cell.psnr) / len(cell.psnr)
        text = f"{cell.subject}{guided}, {cell.budget}: {cell.group}/{cell.name}/{cell.solver} {mean:.2f} dB"
        console.print(escape(text), highlight=False, soft_wrap=True)

    found = compare(
        subjects,
        rows,
        budget or (5, 10, 20),
        guide=Guide(grid, teacher_steps, teacher_solver, reference_steps),
        out=out / "cells",
        features=_features(features, real, models, where),
        candidates=candidates,
        data_range=data_range,
        batch_size=batch_size,
        limit_seconds=limit_seconds,
        prepare=prepare,
        report=report,
        progress=not json_,
    )
    result = save(found, rows, out, environment(where))
    wide = console if console.is_terminal else Console(file=console.file, width=WIDTH)
    for key in dict.fromkeys((each["subject"], each["guidance"], each["budget"]) for each in result["rows"]):
        some = [each for each in result["rows"] if (each["subject"], each["guidance"], each["budget"]) == key]
        wide.print(view(some))
    for best in [line for line in result["leaders"] if line["training"]]:
        guided = "" if best["guidance"] is None else f", guidance {best['guidance']:g}"
        console.print(
            f"{best['subject']}{guided}, {best['budget']}, {best['measure']}: {best['ours']} {best['ours_psnr']:.2f}, "
            f"best other {best['rival']} {best['rival_psnr']:.2f}: {best['ahead']:+.2f} ± {best['error']:.2f} dB",
            highlight=False,
            soft_wrap=True,
        )
    if found.left:
        console.print(f"{len(found.left)} cells are left; the same command goes on with them.")
    if not result["figures"]:
        console.print('No figures: none of the cells has one, or matplotlib is missing (pip install "oss-ext[demo]").')
    console.print(f"Wrote {escape(str(out))} in {found.seconds:.0f} s.", highlight=False, soft_wrap=True)
    if json_:
        print_json(result)
    for title, name, message in found.failed:
        stderr().print(f"[red]failed: {escape(title)}, {escape(name)}: {escape(message)}[/]", soft_wrap=True)
    if found.failed:
        raise typer.Exit(1)


def subject_of(
    source: Source,
    guidance: float | None,
    *,
    heldout: int,
    samples: int,
    shape: tuple[int, ...] | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Subject:
    """The model's held-out and search noises: its own splits of those names where its noise() knows them, else the
    first `samples` noises for the search and the next for the measurements."""
    own = getattr(source.model, "noise", None)
    split = own is not None and shape is None and source.takes_split
    seed = None if own is not None and shape is None else SEED

    def more(count: int) -> tuple[Tensor, dict[str, Tensor]]:
        if split:
            return source.noise(count, split="search", seed=None, shape=None)
        every, conds = source.noise(heldout + max(count, samples), split=None, seed=seed, shape=shape)
        some = [*range(samples), *range(samples + heldout, len(every))][:count]
        return every[some], {key: value[some] for key, value in conds.items()}

    if split:
        noise, cond = source.noise(heldout, split="heldout", seed=None, shape=None)
        search_noise, search_cond = source.noise(samples, split="search", seed=None, shape=None)
    else:
        every, conds = source.noise(samples + heldout, split=None, seed=seed, shape=shape)
        search_noise, noise = every[:samples], every[samples:]
        search_cond = {key: value[:samples] for key, value in conds.items()}
        cond = {key: value[samples:] for key, value in conds.items()}
    classes = getattr(source.model, "classes", None)
    labels = tuple(classes[k % len(classes)] for k in range(min(LABELS, heldout))) if classes else ()
    return Subject(source.spec, source.model, noise, search_noise, cond, search_cond, guidance, decode, labels, more)


def save(
    found: Comparison, rows: Sequence[Row], out: Path, about: dict[str, Any], *, figures: bool = True
) -> dict[str, Any]:
    """Writes compare.json, compare.csv and, where matplotlib is there, figures into `out`; returns what the JSON file
    holds, and "figures", their paths."""
    table = entries(found.cells, naive=found.cases[0].guide.grid)
    result: dict[str, Any] = {
        "seconds": found.seconds,
        **about,
        "cases": [
            {
                "subject": case.subject.name,
                "guidance": case.guidance,
                "heldout": len(case.noise),
                "samples": len(case.search_noise),
                "candidates": case.candidates,
                **case.guide.options,
                "reference_steps": case.guide.reference_steps,
                "model": case.model.describe(),
            }
            for case in found.cases
        ],
        "rows": table,
        "leaders": leaders(table),
        "left": found.left,
        "failed": found.failed,
    }
    with whole_file(out / "compare.json") as path:
        path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    with whole_file(out / "compare.csv") as path:
        path.write_text(as_csv(table), encoding="utf-8")
    drawn = draw(found, rows, out / "figures") if figures and find_spec("matplotlib") else []
    return result | {"figures": [str(path) for path in drawn]}


def environment(device: torch.device) -> dict[str, Any]:
    """When and where."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": build_info()["version"],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
    }


def bundled_features(device: torch.device) -> Features:
    """Distribution distances in the features of the bundled classifier, to the teacher's samples and, where the
    packages with the photographs are there, to crops of them."""
    images = None
    if find_spec("skimage") and find_spec("sklearn"):
        images = photos.Crops().draw(REAL, torch.Generator().manual_seed(0))[0]
    return Features(BUNDLED, zoo.features(device=device), images)


def _features(spec: str | None, real: str | None, models: Sequence[str], device: torch.device) -> Features | None:
    if spec is None and real is None and all(":" not in model for model in models):
        return bundled_features(device)
    if spec is None:
        if real is not None:
            raise ValueError("real: got one without features, which compare with it")
        return None
    network = _network(spec, device)
    images = None if real is None else import_function(real, "real")()
    if images is not None and not isinstance(images, Tensor):
        raise TypeError(f"real: {real} returned {type(images).__name__}, wanted a tensor [R, C, H, W]")
    return Features(spec, network, images)


def _network(spec: str, device: torch.device) -> torch.nn.Module:
    """A torch module, or what a function returns."""
    network = import_function(spec, "features")
    if not isinstance(network, torch.nn.Module):
        network = network()
    if not isinstance(network, torch.nn.Module):
        raise TypeError(f"features: {spec} is {type(network).__name__}, wanted a torch.nn.Module or what returns one")
    return network.to(device).eval()


def _costs(
    names: Sequence[str], features: str | None, models: Sequence[str], device: torch.device
) -> dict[str, CostOf]:
    """What --cost names: "x0", "features", and all submodules together as "perceptual"."""
    found: dict[str, CostOf] = {}
    layers = [name for name in dict.fromkeys(names) if name not in ("x0", "features")]
    if "x0" in names:
        found["x0"] = lambda case: "x0"
    if "features" in names:
        if features is None and any(":" in model for model in models):
            raise ValueError("cost: got features without --features, the module whose features they are")
        module = zoo.features(device=device) if features is None else _network(features, device)
        found["features of x0"] = lambda case: Feature(module)
    if layers:
        found["perceptual"] = lambda case: Perceptual(_inner(case.model), *layers)
    return found


def _inner(model: Denoiser) -> torch.nn.Module:
    """The network that a model evaluates."""
    for name in ("network", "fn"):
        module = getattr(model, name, None)
        if isinstance(module, torch.nn.Module):
            return module
    raise ValueError(
        f"cost: {type(model).__name__} holds no torch.nn.Module as .network or .fn, whose submodules are seen"
    )
