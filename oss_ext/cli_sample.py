"""`oss-ext sample`: samples of a model along a schedule file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from safetensors.torch import save_file
from torch import Tensor

from oss_ext.cli_common import (
    load_model,
    parse_model_args,
    parse_shape,
    pick_device,
    pick_dtype,
    print_json,
    progress_bars,
    speaker,
)
from oss_ext.cli_options import BatchSize, Device, Dtype, Guidance, Json, ModelArgs, ModelName, Shape
from oss_ext.files import whole_file, whole_folder
from oss_ext.plot import is_image, write_sheet
from oss_ext.schedule import Schedule


def sample(
    model: ModelName,
    schedule: Annotated[Path, typer.Argument(help="A schedule file, as search writes it.")],
    out: Annotated[
        Path,
        typer.Option(
            help="A .png sheet, a .safetensors file, or a folder for both (the sheet where there are images)."
        ),
    ] = Path("samples"),
    samples: Annotated[int, typer.Option(help="How many.")] = 16,
    split: Annotated[
        str | None, typer.Option(help="Which of a bundled model's noises: heldout (the default there) or search.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise, instead of the model's own.")] = None,
    batch_size: BatchSize = None,
    guidance: Guidance = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    shape: Shape = None,
    model_arg: ModelArgs = None,
    json_: Json = False,
) -> None:
    """Sample a model along a schedule."""
    if split is not None and seed is not None:
        raise ValueError("split, seed: both given; a split has noises of its own")
    began = time.perf_counter()
    console = speaker(json_)
    plan = Schedule.load(schedule)
    arguments = parse_model_args(model_arg or [])
    source = load_model(model, arguments, guidance=guidance, device=pick_device(device), dtype=pick_dtype(dtype))
    if split is None and seed is None and ":" not in model:
        split = "heldout"
    noise, cond = source.noise(samples, split=split, seed=seed, shape=parse_shape(shape))
    if out.suffix == ".png" and not is_image(noise):
        raise ValueError(f"out: a .png needs samples [3 or 1, H, W], these are {list(noise.shape[1:])}")
    one_file = out.suffix in (".png", ".safetensors")
    with (whole_file if one_file else whole_folder)(out) as place, progress_bars(console) as bars:
        made = plan.sample(
            source.model, noise, cond, batch_size=batch_size, progress=bars.add(f"{plan.steps} steps of {plan.solver}")
        )
        files = [out] if one_file else []
        if out.suffix == ".png":
            _sheet(made, place)
        elif one_file:
            _tensors(made, cond, place, model, schedule)
        else:
            _tensors(made, cond, place / "samples.safetensors", model, schedule)
            files.append(out / "samples.safetensors")
            if is_image(made):
                _sheet(made, place / "samples.png")
                files.append(out / "samples.png")
    seconds = time.perf_counter() - began
    if json_:
        print_json(
            {
                "files": [str(path) for path in files],
                "model": source.model.describe(),
                "steps": plan.steps,
                "solver": plan.solver,
                "samples": samples,
                "shape": list(made.shape),
                "seconds": seconds,
            }
        )
        return
    names = ", ".join(escape(str(path)) for path in files)
    console.print(f"Wrote {names} in {seconds:.0f} s.", soft_wrap=True, highlight=False)


def _sheet(images: Tensor, path: Path) -> None:
    write_sheet(images, path, scale=max(1, 96 // images.shape[2]))


def _tensors(samples: Tensor, cond: dict[str, Tensor], path: Path, model: str, schedule: Path) -> None:
    """samples [B, ...] and every condition as cond.NAME."""
    tensors = {"samples": samples, **{f"cond.{name}": value for name, value in cond.items()}}
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
        path,
        metadata={"model": model, "schedule": str(schedule)},
    )
