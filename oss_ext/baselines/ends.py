"""The noise levels that a baseline's schedules run between, or begin with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from oss_ext import grids
from oss_ext.models import Denoiser

SIGMA_MAX = 400.0
"""Where grids of sigma begin on models that leave it open: flow models, from sigma = inf. The papers' 80 is EDM's, and
the state there is not the noise yet. On the bundled flow model DM with UniPC(3) then has 22.6, 29.4 and 33.4 dB at 5,
10 and 20 steps (mean over 24 noises, guidance 1); from 400 on 24.6, 35.1 and 45.2, from 1000 on 24.6, 34.2 and 46.1."""


def edm_of(model: Denoiser) -> str:
    """The name of EDM's grid over the sigmas of the model, or to `SIGMA_MAX`."""
    return f"edm:sigma_max={SIGMA_MAX:g}" if model.t_max >= 1 else "edm"


def starts_of(model: Denoiser) -> tuple[str, ...]:
    """Names of grids, on the best of which learned solvers begin. Their first time is not learned: on flow models it is
    near or at the teacher's."""
    if model.t_max >= 1:
        return "flow", "flow:shift=3", edm_of(model), f"logsnr:sigma_max={SIGMA_MAX:g}"
    return "flow", "edm", "logsnr", "ddim"


def teacher_of(grid: str | Tensor | None, model: Denoiser) -> str | Tensor:
    """`grid`; None: the papers' "edm", or "flow" where sigma begins at inf."""
    return grid if grid is not None else "flow" if model.t_max >= 1 else "edm"


def lambda_ends(model: Denoiser, sigma_min: float | None, sigma_max: float | None) -> Tensor:
    """float64 [2]: -log sigma at sigma_max, then at sigma_min; None: the model's own, or `SIGMA_MAX` and 0.002 where it
    leaves them open. Raises TypeError, or ValueError in the words of `grids.make`."""
    if sigma_max is None and model.t_max >= 1:
        sigma_max = SIGMA_MAX
    given = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for name, value in asked.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name}: got {type(value).__name__}, wanted a number")
    t = grids.make("logsnr", 2, t_max=model.t_max, t_min=model.t_min, **asked)
    return -torch.log(t[:2] / (1 - t[:2]))


def path_of(nodes: str | Tensor, steps: int, model: Denoiser) -> Tensor:
    """float64 [steps + 1]: a student's flow times, by name or checked. Raises TypeError or ValueError."""
    if not isinstance(nodes, Tensor):
        return grids.for_model(nodes, steps, model)
    t = grids.check(nodes, t_max=model.t_max, t_min=model.t_min, name="nodes")
    if len(t) != steps + 1:
        raise ValueError(f"nodes: got {len(t) - 1} steps, wanted {steps}")
    return t


def grid_names(name: str, value: str | Sequence[str] | None, model: Denoiser) -> tuple[str, ...]:
    """One or more names of grids as a tuple; None: `starts_of`. Raises ValueError that names the argument, for none."""
    names = starts_of(model) if value is None else (value,) if isinstance(value, str) else tuple(value)
    if not names:
        raise ValueError(f"{name}: got none, wanted one or more names of grids")
    return names
