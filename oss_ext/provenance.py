"""Where a schedule came from. Part of the schedule file."""

from __future__ import annotations

from importlib import metadata

from pydantic import BaseModel, ConfigDict, Field, JsonValue


def library_version() -> str:
    """The installed version of this package, "not installed" where only its source folder is on the path."""
    try:
        return metadata.version("oss-ext")
    except metadata.PackageNotFoundError:
        return "not installed"


class Provenance(BaseModel):
    """What made a schedule. None: does not apply (a stock schedule has no teacher).

    grid: the grid's name with its parameters, "custom" for a tensor. teacher_steps: intervals of the teacher's grid.
    teacher_solver, candidates (None: all nodes), beam, share, start: as given to `dp_search`. samples: how many noises
    were searched; sample: which of them a per_sample schedule belongs to.
    judged_by: what steps were judged by, `costs.Cost.describe()`; empty: the distance to the teacher's states.
    cost: mean squared distance to the teacher at the clean node, as the search, or `refine`, scored this very schedule.
    replayed_cost: the same distance from running the schedule again (median schedules, which no search scores).
    model: `Denoiser.describe()`. metadata: the caller's own (guidance, checkpoint, ...), JSON values.
    nfe: network evaluations a sample spent by the search in which this schedule was found; a guided one counts once.
    refined: what `refine` did after that: method, samples, evaluations (a sample) and more; empty where it did nothing.
    version: of this library.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    grid: str | None = None
    teacher_steps: int | None = Field(default=None, ge=1)
    teacher_solver: str | None = None
    candidates: int | None = Field(default=None, ge=1)
    beam: int | None = Field(default=None, ge=1)
    share: str | None = None
    start: str | None = None
    samples: int | None = Field(default=None, ge=1)
    sample: int | None = Field(default=None, ge=0)
    judged_by: dict[str, JsonValue] = Field(default_factory=dict)
    cost: float | None = Field(default=None, ge=0)
    replayed_cost: float | None = Field(default=None, ge=0)
    model: dict[str, JsonValue] = Field(default_factory=dict)
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    nfe: dict[str, int | float] = Field(default_factory=dict)
    refined: dict[str, JsonValue] = Field(default_factory=dict)
    version: str = Field(default_factory=library_version)
