"""Puts a scheduler of ours into a pipeline, and takes it out again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from oss_ext.integrations.diffusers import describe, mismatch
from oss_ext.integrations.diffusers.applied import AppliedScheduler
from oss_ext.integrations.diffusers.family import Family, family_of
from oss_ext.integrations.diffusers.interface import PipelineScheduler
from oss_ext.integrations.diffusers.reschedule import is_formula
from oss_ext.schedule import Schedule

_MISSING = object()


@dataclass
class Applied:
    """What `apply` did. `undo()` puts back what was there; so does leaving a `with`.

    steps: network evaluations that a call of the pipeline makes. neutralised: settings of the pipeline's own scheduler
    that would have bent the schedule, and are not asked. notes: what else is to be known.
    """

    pipe: Any
    schedule: Schedule
    neutralised: dict[str, Any]
    notes: list[str]
    _before: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def steps(self) -> int:
        return self.schedule.steps

    def undo(self) -> None:
        """Again: nothing to do."""
        restore(self.pipe, self._before)
        self._before = {}

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def apply(pipe: Any, schedule: Schedule) -> Applied:
    """From now on `pipe` samples with `schedule`, whatever its own scheduler, step count, sigmas or timesteps say.

    pipe: a diffusers pipeline with a `scheduler`, of a flow, VP or EDM model. A schedule applied before is replaced.
    With an image-to-image `strength` below 1 it makes as many steps from the noise level that the strength stands for.

    Raises TypeError for things of another kind, ValueError for a schedule of another prediction type or outside the
    model's noise levels; warns (`ScheduleMismatchWarning`) of other circumstances that the schedule's provenance names.
    """
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule: got {type(schedule).__name__}, wanted a Schedule (a result has several: .schedule)")
    native = native_scheduler(pipe)
    family = family_of(native)
    mismatch.check(schedule, family, describe.pipeline(pipe, family))
    if isinstance(pipe.scheduler, AppliedScheduler):
        owner = pipe.scheduler.owner
        if isinstance(owner, Applied) and owner.pipe is pipe:
            owner.undo()
        else:  # it came with the parts of another pipeline
            vars(pipe)["scheduler"] = native
    scheduler = AppliedScheduler(native, family, schedule)
    hooks: dict[str, Any] = {"scheduler": scheduler}
    if callable(getattr(pipe, "prepare_latents", None)):
        hooks["prepare_latents"] = _scaling(pipe, pipe.prepare_latents)
    if callable(getattr(pipe, "get_timesteps", None)):
        hooks["get_timesteps"] = _by_strength(pipe, pipe.get_timesteps)
    applied = Applied(pipe, schedule, dict(family.settings), _notes(family, schedule), replace(pipe, hooks))
    scheduler.owner = applied
    return applied


@contextmanager
def applied(pipe: Any, schedule: Schedule) -> Iterator[Applied]:
    """`apply`, undone at the end of the block, after an exception too."""
    handle = apply(pipe, schedule)
    try:
        yield handle
    finally:
        handle.undo()


def native_scheduler(pipe: Any) -> Any:
    """The pipeline's own scheduler, also where one of ours stands in for it."""
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None:
        raise TypeError(f"pipe: got {type(pipe).__name__} without a scheduler, wanted a diffusers pipeline")
    return scheduler.native if isinstance(scheduler, PipelineScheduler) else scheduler


def replace(pipe: Any, attributes: dict[str, Any]) -> dict[str, Any]:
    """Sets attributes of this object alone, past the pipeline's registry; returns what `restore` needs."""
    before = {name: vars(pipe).get(name, _MISSING) for name in attributes}
    vars(pipe).update(attributes)
    return before


def restore(pipe: Any, before: dict[str, Any]) -> None:
    for name, value in before.items():
        if value is _MISSING:
            vars(pipe).pop(name, None)
        else:
            vars(pipe)[name] = value


def _notes(family: Family, schedule: Schedule) -> list[str]:
    notes = []
    told = family.told(schedule.told)
    if family.whole and not bool((told == told.round()).all()):
        notes.append(f"{family.scheduler} would truncate the timesteps; the network is told them whole and fraction")
    if not is_formula(schedule):
        notes.append(f"coefficients of {schedule.solver!r} hold for strength 1; below it a formula takes their place")
    if schedule.calibration is not None:
        notes.append("calibrated at strength 1 only")
    made = schedule.provenance.metadata.get(mismatch.KEY)
    given = made.get("arguments") if isinstance(made, dict) else None
    if isinstance(given, dict):
        notes.append("searched with " + ", ".join(f"{name}={value}" for name, value in given.items()))
    return notes


def _scaling(pipe: Any, prepare: Callable[..., Any]) -> Callable[..., Any]:
    """prepare_latents whose noise is as large as the schedule wants it, where the pipeline did not ask."""

    @functools.wraps(prepare)
    def prepared(*args: Any, **kwargs: Any) -> Any:
        scheduler = pipe.scheduler
        if not isinstance(scheduler, AppliedScheduler):  # its user has put another there since
            return prepare(*args, **kwargs)
        reads, noised = scheduler.scale_reads, scheduler.noised
        made = prepare(*args, **kwargs)
        scheduler.prepared = True
        scaled = scheduler.scale_reads > reads
        if scheduler.noised > noised or (scheduler.schedule.calibration is None and scaled):
            return made
        if isinstance(made, Tensor):
            return scheduler.started(made, scaled)
        if isinstance(made, tuple) and made and isinstance(made[0], Tensor):
            return (scheduler.started(made[0], scaled), *made[1:])
        scheduler.prepared = False
        return made

    return prepared


def _by_strength(pipe: Any, get_timesteps: Callable[..., Any]) -> Callable[..., Any]:
    """get_timesteps that starts the schedule at the strength's noise level; the pipeline would keep its tail alone."""
    signature = inspect.signature(get_timesteps)

    @functools.wraps(get_timesteps)
    def timesteps(*args: Any, **kwargs: Any) -> Any:
        cut = get_timesteps(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        strength, scheduler = given.get("strength"), pipe.scheduler
        known = isinstance(cut, tuple) and len(cut) == 2 and isinstance(cut[0], Tensor)
        if not isinstance(scheduler, AppliedScheduler) or not known:
            return cut
        if not isinstance(strength, int | float) or given.get("denoising_start") is not None:
            return cut
        scheduler.start_at(float(strength))
        return scheduler.timesteps, scheduler.steps

    return timesteps
