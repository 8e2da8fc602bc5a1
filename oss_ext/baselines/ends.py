"""The noise levels that a baseline's schedules run between, or begin with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oss_ext import grids
from oss_ext.models import Denoiser


def lambda_ends(model: Denoiser, sigma_min: float | None, sigma_max: float | None) -> Tensor:
    """float64 [2]: -log sigma at sigma_max, then at sigma_min; None: the model's own, or 80 and 0.002 where it leaves
    them open. Raises TypeError, or ValueError in the words of `grids.make`."""
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
