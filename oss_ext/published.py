"""Schedules that others published, and lists that people paste, as `Schedule`s to compare with.

The numbers are quoted from the sources that each table names. How they become steps is what ComfyUI does: the last
level becomes 0, and for another count the logarithms are interpolated over the index first, as AYS states it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oss_ext import solvers
from oss_ext.models import Denoiser, EDMModel, EpsilonModel, FlowModel, VParamModel, X0Model
from oss_ext.provenance import Provenance
from oss_ext.schedule import Schedule
from oss_ext.sigma_text import parse_sigmas
from oss_ext.validate import choice, whole_number

ENDINGS = ("replace", "append")
_VP: dict[str, Any] = {kind.parameterization: kind for kind in (EpsilonModel, VParamModel, X0Model)}
FAMILIES = ("flow", "edm", *_VP)

_AYS = "https://research.nvidia.com/labs/toronto-ai/AlignYourSteps/howto.html"
_COMFY = "https://github.com/comfyanonymous/ComfyUI/blob/master/comfy_extras/"


@dataclass(frozen=True)
class Table:
    """A published table.

    sigmas: the noise levels as published, of one step more than they are steps. family: whose levels they are, "flow"
    or "epsilon" or "edm" (these two variance-exploding). timesteps: the whole timesteps, where published.
    source: where the numbers are from. paper: what they are of.
    """

    name: str
    family: str
    sigmas: tuple[float, ...]
    source: str
    paper: str
    timesteps: tuple[int, ...] | None = None

    @property
    def steps(self) -> int:
        """The count that the table was made for."""
        return len(self.sigmas) - 1

    def at(self, steps: int | None = None, *, ending: str = "replace") -> list[float]:
        """The noise levels of `steps` steps, steps + 1 of them, the last 0.

        steps: None: the table's own. Others are interpolated, not optimised: that is all the tables say of them.
        ending: "replace": the last level becomes 0 (ComfyUI). "append": `steps` levels down to the last one, then 0
            (A1111, Forge).
        """
        count = self.steps if steps is None else whole_number("steps", steps, least=1)
        choice("ending", ending, ENDINGS)
        if ending == "append":
            return [*log_linear(self.sigmas, count), 0.0]
        return [*log_linear(self.sigmas, count + 1)[:-1], 0.0]


_DATA = {
    # name: (family, sigmas, timesteps, file and entry in ComfyUI, what of)
    "ays-sd15": (
        "epsilon",
        "14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092, 0.9642583904, "
        "0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582",
        (999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0),
        f"{_COMFY}nodes_align_your_steps.py (SD1); timesteps: {_AYS}",
        "Align Your Steps (Sabour, Fidler, Kreis, arXiv 2404.14507), Stable Diffusion 1.5",
    ),
    "ays-sdxl": (
        "epsilon",
        "14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141, 0.5550693289, "
        "0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582",
        (999, 845, 730, 587, 443, 310, 193, 116, 53, 13, 0),
        f"{_COMFY}nodes_align_your_steps.py (SDXL); timesteps: {_AYS}",
        "Align Your Steps (arXiv 2404.14507), SDXL",
    ),
    "ays-svd": (
        "edm",
        "700, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002",
        None,
        f"{_COMFY}nodes_align_your_steps.py (SVD)",
        "Align Your Steps (arXiv 2404.14507), Stable Video Diffusion",
    ),
    "oss-flux": (
        "flow",
        "0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808, 0.001",
        None,
        f"{_COMFY}nodes_optimalsteps.py (FLUX)",
        "Optimal Stepsize for Diffusion Sampling (arXiv 2503.21774), FLUX.1-dev",
    ),
    "oss-wan": (
        "flow",
        "1.0, 0.997, 0.995, 0.993, 0.991, 0.989, 0.987, 0.985, 0.98, 0.975, 0.973, 0.968, 0.96, 0.946, 0.927, 0.902, "
        "0.864, 0.776, 0.539, 0.208, 0.001",
        None,
        f"{_COMFY}nodes_optimalsteps.py (Wan)",
        "Optimal Stepsize for Diffusion Sampling (arXiv 2503.21774), Wan 2.1",
    ),
    "oss-chroma": (
        "flow",
        "0.992, 0.99, 0.988, 0.985, 0.982, 0.978, 0.973, 0.968, 0.961, 0.953, 0.943, 0.931, 0.917, 0.9, 0.881, 0.858, "
        "0.832, 0.802, 0.769, 0.731, 0.69, 0.646, 0.599, 0.55, 0.501, 0.451, 0.402, 0.355, 0.311, 0.27, 0.232, 0.199, "
        "0.169, 0.143, 0.12, 0.101, 0.084, 0.07, 0.058, 0.048, 0.001",
        None,
        f"{_COMFY}nodes_optimalsteps.py (Chroma)",
        "ComfyUI's OptimalSteps table for Chroma",
    ),
}
_TABLES = {
    name: Table(name, family, tuple(parse_sigmas(sigmas)), source, paper, timesteps)
    for name, (family, sigmas, timesteps, source, paper) in _DATA.items()
}


def names() -> list[str]:
    """The names of the tables."""
    return list(_TABLES)


def get(name: str) -> Table:
    """The table of that name. Raises ValueError that lists the names."""
    return _TABLES[choice("name", name, tuple(_TABLES))]


def log_linear(sigmas: Sequence[float], count: int) -> list[float]:
    """`count` levels from the first to the last of `sigmas`, all positive: logarithms linear over the index.

    The very levels where `count` is theirs. Of one, the first.
    """
    if len(sigmas) < 2 or not all(value > 0 for value in sigmas):
        raise ValueError(f"sigmas: got {list(sigmas)}, wanted at least two positive levels")
    if count == len(sigmas):
        return [float(value) for value in sigmas]
    made = []
    for index in range(count):
        place = index * (len(sigmas) - 1) / max(count - 1, 1)
        low = min(int(place), len(sigmas) - 2)
        begin, end = math.log(sigmas[low]), math.log(sigmas[low + 1])
        made.append(math.exp(begin + (place - low) * (end - begin)))
    return made


def schedule(
    name: str,
    steps: int | None = None,
    *,
    solver: str | solvers.Solver = "euler",
    model: Denoiser | None = None,
    ending: str = "replace",
) -> Schedule:
    """The published table as a schedule of `solver`, in the terms of `model`, or of the model that it was made for.

    steps, ending: see `Table.at`. A variance-exploding table serves any model: level s is flow time s / (1 + s).
    Raises ValueError (name, a level that the model does not know) or TypeError.
    """
    table = get(name)
    origin: dict[str, str | int | float | bool] = {
        "published": name,
        "source": table.source,
        "paper": table.paper,
        "table_steps": table.steps,
        "interpolated": steps is not None and steps != table.steps,
    }
    return from_sigmas(
        table.at(steps, ending=ending),
        model=_native(table.family) if model is None else model,
        solver=solver,
        levels="flow" if table.family == "flow" else "ve",
        metadata=origin,
    )


def from_sigmas(
    sigmas: Sequence[float] | Tensor,
    *,
    model: Denoiser | str = "flow",
    solver: str | solvers.Solver = "euler",
    levels: str | None = None,
    metadata: dict[str, str | int | float | bool] | None = None,
) -> Schedule:
    """A schedule along noise levels from elsewhere.

    sigmas: k + 1 levels ending in 0, strictly descending. k levels without the 0 get one; a last level other than 0 is
        kept and steps to 0.
    model: in whose terms the schedule is, or a family: "flow"; "epsilon", "v_param", "x0": Stable Diffusion's table of
        1000 timesteps (scaled-linear beta, 0.00085 to 0.012); "edm": levels from the list's own to its largest.
    levels: "flow" (sigma is flow time) or "ve" (x = x0 + sigma eps); None: as the family has them.
    Raises ValueError or TypeError that names the argument.
    """
    values = _levels(sigmas)
    family = model if isinstance(model, str) else model.parameterization
    if isinstance(model, str):
        model = _native(choice("model", model, FAMILIES), values)
    if levels is None:
        levels = "flow" if family == "flow" else "ve"
    choice("levels", levels, ("flow", "ve"))
    t = values if levels == "flow" else values / (1 + values)
    if float(t[0]) > 1:
        raise ValueError(f"sigmas: got {float(values[0]):.6g} first, wanted at most 1, or levels 've'")
    t = _onto(t, model)
    origin = Provenance(grid="custom", model=model.describe(), metadata=dict(metadata or {}))
    return Schedule.from_grid(t, solver, model, provenance=origin)


def _levels(sigmas: Sequence[float] | Tensor) -> Tensor:
    values = torch.as_tensor(sigmas, dtype=torch.float64).detach().cpu()
    if values.ndim != 1 or len(values) < 1:
        raise ValueError(f"sigmas: got shape {list(values.shape)}, wanted a list of noise levels")
    if not bool(torch.isfinite(values).all()) or bool((values < 0).any()):
        raise ValueError(f"sigmas: got {values.tolist()}, wanted finite levels, none below 0")
    if float(values[-1]) != 0:
        values = torch.cat([values, values.new_zeros(1)])
    if len(values) < 2 or not bool((values.diff() < 0).all()):
        raise ValueError(f"sigmas: got {values.tolist()}, wanted strictly descending levels with at least one above 0")
    return values


def _onto(t: Tensor, model: Denoiser) -> Tensor:
    """Levels beyond the model's ends by no more than what lists are rounded by (1 % of the level) are put on them."""
    positive = t[:-1]
    for end, beyond in ((model.t_max, positive > model.t_max), (model.t_min, positive < model.t_min)):
        near = (positive - end).abs() <= 1e-2 * end * (1 - end)  # d log sigma = dt / (t (1 - t))
        positive = torch.where(beyond & near, torch.full_like(positive, end), positive)
    return torch.cat([positive, t[-1:]])


def _native(family: str, values: Tensor | None = None) -> Denoiser:
    """A model of the family, with the ranges and timesteps of its best-known members; never evaluated."""
    if family == "flow":
        return FlowModel(_unused)
    if family == "edm":
        if values is None:
            return EDMModel(_unused, 0.002, 700.0)  # Stable Video Diffusion
        low, high = float(values[-2]), float(values[0])
        return EDMModel(_unused, low if low < high else low / 2, high)
    beta = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64).square()
    model: Denoiser = _VP[family](_unused, (1 - beta).cumprod(0))
    return model


def _unused(*_: object, **__: object) -> Tensor:
    raise AssertionError("a model that only states its range was evaluated")
