"""`oss-ext info`: this installation, or a schedule file."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from oss_ext import grids, solvers, zoo
from oss_ext.build import build_info
from oss_ext.cli_common import print_json, stdout
from oss_ext.cli_options import Json
from oss_ext.schedule import Schedule


def info(
    schedule: Annotated[Path | None, typer.Argument(help="A schedule file; without one, the installation.")] = None,
    json_: Json = False,
) -> None:
    """Show this installation, or what a schedule file holds."""
    if schedule is None:
        content = _installation()
        if json_:
            print_json(content)
        else:
            _show_installation(content, stdout())
        return
    loaded = Schedule.load(schedule)
    if json_:
        print_json(_schedule(loaded))
    else:
        _show_schedule(loaded, stdout())


def _installation() -> dict[str, Any]:
    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            seen = torch.cuda.get_device_properties(index)
            gpus.append({"name": seen.name, "memory_bytes": seen.total_memory, "capability": [seen.major, seen.minor]})
    return {
        **build_info(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "gpus": gpus,
        "solvers": solvers.names(),
        "grids": grids.names(),
        "models": zoo.names(),
    }


def _show_installation(content: dict[str, Any], console: Console) -> None:
    cuda = "not compiled in"
    if content["cuda"]:
        cuda = f"for {', '.join(content['cuda_architectures'])}, by {content['cuda_compiler']}"
    gpus = ", ".join(
        f"{gpu['name']} ({gpu['memory_bytes'] / 2**30:.0f} GiB, sm_{gpu['capability'][0]}{gpu['capability'][1]})"
        for gpu in content["gpus"]
    )
    view = Table(show_header=False, box=None, pad_edge=False)
    for name, value in (
        ("oss-ext", content["version"]),
        ("compiler", content["compiler"]),
        ("CUDA kernels", cuda),
        ("GPUs seen", gpus or "none"),
        ("python", content["python"]),
        ("torch", f"{content['torch']} (CUDA {content['torch_cuda'] or 'none'})"),
        ("solvers", ", ".join(content["solvers"])),
        ("grids", ", ".join(content["grids"])),
        ("models", ", ".join(content["models"])),
    ):
        view.add_row(f"[bold]{name}[/]", escape(value))
    console.print(view)


def _schedule(schedule: Schedule) -> dict[str, Any]:
    return {
        "steps": schedule.steps,
        "solver": schedule.solver,
        "parameterization": schedule.parameterization,
        "t": schedule.t.tolist(),
        "dt": (-schedule.t.diff()).tolist(),
        "sigmas": schedule.sigmas.tolist(),
        "timesteps": schedule.timesteps.tolist(),
        "nodes": None if schedule.nodes is None else schedule.nodes.tolist(),
        "noise_scale": schedule.noise_scale,
        "carries": schedule.carries,
        "coefficients": schedule.coefficients.tolist(),
        "network_t": None if schedule.network_t is None else schedule.network_t.tolist(),
        "calibration": None if schedule.calibration is None else schedule.calibration.model_dump(mode="json"),
        "provenance": schedule.provenance.model_dump(mode="json"),
    }


def _show_schedule(schedule: Schedule, console: Console) -> None:
    view = Table(
        title=f"{schedule.steps} steps of {schedule.solver}, {schedule.parameterization}", title_justify="left"
    )
    columns = ["step", "t", "to t", "dt", "sigma", "timestep"] + (["node"] if schedule.nodes is not None else [])
    for name in columns:
        view.add_column(name, justify="right")
    t, sigmas, timesteps = schedule.t.tolist(), schedule.sigmas.tolist(), schedule.timesteps.tolist()
    for step in range(schedule.steps):
        values = [t[step], t[step + 1], t[step] - t[step + 1], sigmas[step], timesteps[step]]
        node = [] if schedule.nodes is None else [str(int(schedule.nodes[step]))]
        view.add_row(str(step + 1), *[f"{value:.5g}" for value in values], *node)
    console.print(view)
    console.print(f"[bold]noise_scale[/] {schedule.noise_scale:.6g}", highlight=False)
    if schedule.calibration is not None:
        console.print(f"[bold]calibration[/] {escape(repr(schedule.calibration))}", soft_wrap=True, highlight=False)
    fields = schedule.provenance.model_dump(mode="json")
    for name, value in fields.items():
        if value not in (None, {}):
            console.print(f"[bold]{name}[/] {escape(str(value))}", soft_wrap=True, highlight=False)
