"""A schedule that begins at a lower noise level, with as many steps: what image-to-image wants."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from oss_ext import grids, solvers
from oss_ext.models import Denoiser
from oss_ext.schedule import Schedule

_FORMULA = {"velocity": "ab2", "x0": "dpmpp_2m", "epsilon": "ipndm_2"}
"""What continues a schedule whose coefficients hold for its own steps only, by what it carries."""


def starting_at(schedule: Schedule, t: float, model: Denoiser) -> Schedule:
    """As many steps as `schedule` has, from flow time t to 0.

    The schedule's flow times, as a piecewise linear function of the number of steps made, are read off at equally many
    equal parts of what is left of it below t. Solvers with a formula give the new coefficients; fitted ones hold for
    the old steps only, and the nearest formula of order 2 takes their place. What holds for the old times only
    (network times, calibration, scale of the noise) is left out. Whole timesteps of a
    table stay whole.
    """
    if t >= float(schedule.t[0]) * (1 - 1e-6):
        return schedule
    steps = schedule.steps
    times = schedule.t
    after = int((times <= t).nonzero()[0])
    at = after - (t - float(times[after])) / float(times[after - 1] - times[after])
    where = torch.linspace(at, steps, steps + 1, dtype=torch.float64)
    low = where.floor().long().clamp(max=steps - 1)
    moved = times[low] + (where - low) * (times[low + 1] - times[low])
    moved[0], moved[-1] = t, 0.0
    moved = _above(moved, model.t_min)
    if model.flow_table is not None and bool((schedule.timesteps == schedule.timesteps.round()).all()):
        snapped = grids.on_whole_timesteps(moved, model)
        moved = snapped if len(snapped) == len(moved) else moved  # whole timesteps, as before, while there are enough
    return _along(schedule, moved, model)


def tail(schedule: Schedule, begin: int, model: Denoiser) -> Schedule:
    """The steps of `schedule` from its node `begin` on, with coefficients for a path that starts there."""
    return schedule if begin == 0 else _along(schedule, schedule.t[begin:], model)


def is_formula(schedule: Schedule) -> bool:
    """Whether new coefficients of the schedule's own solver can be had."""
    return schedule.solver in solvers.formulas()


def _above(t: Tensor, least: float) -> Tensor:
    """Nodes but the last raised to the model's cleanest level: those it would go below are spread, by their logarithms,
    between the last that it does not and that level."""
    if least <= 0 or float(t[-2]) >= least:
        return t
    keep = int((t[:-1] > least).sum())
    if keep == 0:
        raise ValueError(
            f"strength: got a start at flow time {float(t[0]):.9g}, below {least:.9g}, the model's cleanest"
        )
    spread = torch.linspace(math.log(float(t[keep - 1])), math.log(least), len(t) - keep, dtype=torch.float64).exp()
    return torch.cat([t[: keep - 1], spread, t[-1:]])


def _along(schedule: Schedule, t: Tensor, model: Denoiser) -> Schedule:
    solver = schedule.solver if is_formula(schedule) else _FORMULA[schedule.carries]
    made = Schedule.from_grid(t, solver, model, provenance=schedule.provenance)
    return replace(made, parameterization=schedule.parameterization)
