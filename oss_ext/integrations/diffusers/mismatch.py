"""What differs between the pipeline that a schedule was made for and the one that it is applied to."""

from __future__ import annotations

import warnings
from typing import Any

from oss_ext.integrations.diffusers.family import Family
from oss_ext.schedule import Schedule

KEY = "pipeline"
"""Where a search through a pipeline keeps what `describe` says, in the schedule's metadata."""

_TOLD_SLACK = 0.05  # timesteps: what tables saved in float32 may differ by
_SHIFT_SLACK = 0.05  # relative


class ScheduleMismatchWarning(UserWarning):
    """The schedule runs, but was made under other circumstances."""


def check(schedule: Schedule, family: Family, here: dict[str, Any]) -> None:
    """Raises ValueError where the schedule cannot mean this pipeline's noise levels; warns of other differences.

    here: what `describe` says of this pipeline.
    """
    if schedule.parameterization != family.parameterization:
        raise ValueError(
            f"schedule: got one of a model of {schedule.parameterization!r} prediction, wanted "
            f"{family.parameterization!r}, that of the pipeline's {family.scheduler}"
        )
    model = family.terms()
    schedule.check_range(model)
    differs = []
    timesteps = model.timesteps(schedule.told)
    off = float((timesteps - schedule.timesteps).abs().max())
    if family.alphas_cumprod is not None and off > _TOLD_SLACK:
        differs.append(f"its noise levels are up to {off:.3g} timesteps from those of this pipeline's table")
    made = schedule.provenance.metadata.get(KEY)
    if isinstance(made, dict):
        for name, value in made.items():
            if name in here and here[name] != value and name not in ("shift", "arguments", "latents", "diffusers"):
                differs.append(f"{name}: made with {value}, here {here[name]}")
    if differs:
        _warn(differs)


def check_shift(schedule: Schedule, family: Family, mu: float | None) -> None:
    """Warns where the shift that the pipeline would use here is not the one that the schedule was searched under."""
    made = schedule.provenance.metadata.get(KEY)
    was = made.get("shift") if isinstance(made, dict) else None
    if not isinstance(was, int | float) or family.parameterization != "flow":
        return
    shift = family.shift_of(mu)
    if abs(shift - was) > _SHIFT_SLACK * was:
        _warn([f"shift: made at {was:.4g}, here the pipeline's own would be {shift:.4g} (another resolution or model)"])


def _warn(differs: list[str]) -> None:
    warnings.warn(
        "the schedule was made for something else: " + "; ".join(differs), ScheduleMismatchWarning, stacklevel=4
    )
