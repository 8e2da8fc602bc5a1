"""Many schedules sampled in one go, so that a GPU's batches are full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from oss_ext import solvers
from oss_ext.evaluate import evaluate, pick_batch_size, state_dtype
from oss_ext.models import Denoiser
from oss_ext.schedule import Schedule
from oss_ext.schedule_calibration import calibrate
from oss_ext.validate import check_cond, check_model, check_noise


@torch.no_grad()
def sample_together(
    schedules: Sequence[Schedule],
    model: Denoiser,
    noise: Tensor,
    cond: Mapping[str, Tensor] | None = None,
    *,
    batch_size: int | None = None,
) -> list[Tensor]:
    """What `Schedule.sample` gives of each, to rounding: [B, ...] a schedule; all of one number of steps.

    The arguments, and the errors, are those of `Schedule.sample`; the node that an error names is the schedule's place
    in the list. Memory: the states, and what the solvers carry, of all schedules at once.
    """
    check_model(model)
    noise = check_noise(noise)
    given = check_cond(cond, noise)
    rows = pick_batch_size(batch_size, noise[0].numel())
    steps = {schedule.steps for schedule in schedules}
    if len(steps) != 1:
        raise ValueError(f"schedules: got {sorted(steps)} steps, wanted one number of them")
    for schedule in schedules:
        schedule.check_range(model)
    states = noise.to(state_dtype(noise.dtype))
    walks = [
        solvers.Walk(states * schedule.noise_scale, schedule.carries, schedule.coefficients.shape[1] - 2)
        for schedule in schedules
    ]
    for step in range(steps.pop()):
        for walk, schedule in zip(walks, schedules, strict=True):
            if schedule.calibration is not None:
                walk.state = calibrate(walk.state, schedule.calibration, step)
        outputs = evaluate(
            model,
            torch.stack([walk.state for walk in walks], 1),
            torch.stack([schedule.told[step] for schedule in schedules]),
            cond=given,
            dtype=noise.dtype,
            batch_size=rows,
            labels=list(range(len(schedules))),
            tick=lambda made: None,
        )
        for place, (walk, schedule) in enumerate(zip(walks, schedules, strict=True)):
            walk.step(outputs[:, place], float(schedule.t[step]), schedule.coefficients[step].tolist())
    return [walk.state.to(noise.dtype) for walk in walks]
