"""Amplitudes of a teacher, or of any schedule, and gains fitted to a teacher.

OSS (arXiv 2503.21774), "amplitude calibration".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from oss_ext import grids, solvers
from oss_ext.fitting import gain_of
from oss_ext.models import Denoiser
from oss_ext.progress import ProgressCallback
from oss_ext.schedule import Schedule
from oss_ext.schedule_calibration import QUANTILES, Amplitudes, check_quantiles, of_gains, quantiles_of
from oss_ext.teacher import DEFAULT_SOLVER, DEFAULT_STEPS, check_guide
from oss_ext.validate import check_model


def amplitudes(
    model: Denoiser,
    noise: Tensor,
    *,
    cond: Mapping[str, Tensor] | None = None,
    teacher_steps: int = DEFAULT_STEPS,
    grid: str | Tensor = "flow",
    teacher_solver: str | solvers.Solver = DEFAULT_SOLVER,
    quantiles: tuple[float, float] = QUANTILES,
    batch_size: int | None = None,
    progress: bool | ProgressCallback = False,
) -> Amplitudes:
    """The teacher's amplitudes, to hand to `Schedule.calibrated`: teacher_steps evaluations a sample.

    quantiles: two ascending shares. The other arguments, and the errors, are those of `dp_search`. The paper takes 512
    samples.
    """
    teacher = _teacher(model, grid, teacher_steps, teacher_solver)
    return amplitudes_of(
        teacher, model, noise, cond=cond, quantiles=quantiles, batch_size=batch_size, progress=progress
    )


@torch.no_grad()
def amplitudes_of(
    schedule: Schedule,
    model: Denoiser,
    noise: Tensor,
    *,
    cond: Mapping[str, Tensor] | None = None,
    quantiles: tuple[float, float] = QUANTILES,
    batch_size: int | None = None,
    progress: bool | ProgressCallback = False,
) -> Amplitudes:
    """The amplitudes of what `schedule` goes through, calibrated where it calibrates.

    quantiles: as for `amplitudes`. The other arguments, and the errors, are those of `Schedule.sample`.
    """
    shares = check_quantiles(quantiles)
    states = schedule.states(model, noise, cond, batch_size=batch_size, progress=progress)
    levels = torch.stack([quantiles_of(state.flatten(1), shares).mean(0).cpu() for state in states])
    return Amplitudes(
        quantiles=shares,
        samples=len(noise),
        t=tuple(schedule.t.tolist()),
        low=tuple(levels[:, 0].tolist()),
        high=tuple(levels[:, 1].tolist()),
        model=model.describe(),
    )


@torch.no_grad()
def fit_gains(
    schedule: Schedule,
    model: Denoiser,
    noise: Tensor,
    *,
    cond: Mapping[str, Tensor] | None = None,
    teacher_steps: int = DEFAULT_STEPS,
    grid: str | Tensor = "flow",
    teacher_solver: str | solvers.Solver = DEFAULT_SOLVER,
    batch_size: int | None = None,
    progress: bool | ProgressCallback = False,
) -> Schedule:
    """`schedule` with every state multiplied, before its evaluation, by the number that brings it nearest to the
    teacher's: <x, y> / <x, x>, summed over the samples, x being the student's state after the gains before and y the
    teacher's at that flow time, linear between the nodes of its grid.

    Takes teacher_steps + schedule.steps evaluations a sample; progress counts twice. What calibration there was is
    replaced, and the cost in `provenance`, which was another schedule's, dropped. The arguments, and the errors, are
    those of `dp_search`; ValueError too for a schedule that begins above the teacher's grid.
    """
    teacher = _teacher(model, grid, teacher_steps, teacher_solver)
    if float(schedule.t[0]) > float(teacher.t[0]) * (1 + grids.SLACK):
        raise ValueError(
            f"schedule: got the first flow time {float(schedule.t[0]):.9g}, wanted at most {float(teacher.t[0]):.9g}, "
            "the teacher's"
        )
    found: list[Tensor] = []

    def fitted(state: Tensor, step: int) -> Tensor:
        gain = gain_of(state.flatten(1), targets[step].flatten(1), joint=True)
        found.append(gain.cpu())
        return state * float(gain)

    student = schedule.states(model, noise, cond, batch_size=batch_size, progress=progress, calibrate=fitted)
    path = teacher.states(model, noise, cond, batch_size=batch_size, progress=progress)
    targets = _states_at(schedule.t[:-1].tolist(), teacher.t.tolist(), path)
    for _ in student:
        pass
    return schedule.with_calibration(of_gains(torch.stack(found)))


def _teacher(model: Denoiser, grid: str | Tensor, teacher_steps: int, teacher_solver: str | solvers.Solver) -> Schedule:
    check_model(model)
    return Schedule.from_grid(grids.of_teacher(grid, teacher_steps, model), check_guide(teacher_solver), model)


def _states_at(wanted: list[float], times: list[float], states: Iterable[Tensor]) -> list[Tensor]:
    """States at the descending flow times `wanted`, linear between those at `times`."""
    found: list[Tensor] = []
    before, now = None, 0.0
    for time, state in zip(times, states, strict=True):
        while len(found) < len(wanted) and wanted[len(found)] >= time:
            share = 0.0 if before is None else (wanted[len(found)] - time) / (now - time)
            found.append(state if before is None or share == 0 else torch.lerp(state, before, share))
        before, now = state, time
    return found
