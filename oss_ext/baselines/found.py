"""What every baseline returns, and how it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from oss_ext import solvers
from oss_ext.models import Denoiser
from oss_ext.provenance import Provenance
from oss_ext.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Found:
    """schedules: {steps: Schedule}, one for each budget that the method answers at once.

    nfe: network evaluations a sample, by what for, and "total". A backward pass counts as two more, as in `refine`.
    details: what the method knows besides: numbers, lists and tensors by name; its docstring says which.
    """

    schedules: dict[int, Schedule]
    nfe: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """The largest budget."""
        return max(self.schedules)

    @property
    def schedule(self) -> Schedule:
        """`schedules[steps]`."""
        return self.schedules[self.steps]


def schedule_of(
    t: Tensor,
    solver: str | solvers.Solver,
    model: Denoiser,
    *,
    method: str,
    paper: str,
    nodes: Tensor | None = None,
    nfe: Mapping[str, float] | None = None,
    settings: Mapping[str, Any] | None = None,
    **provenance: Any,
) -> Schedule:
    """The schedule of `solver` along `t` [k + 1], with what made it. settings: JSON values for the metadata.
    provenance: other fields of `Provenance`."""
    origin = Provenance(
        model=model.describe(),
        metadata={"method": method, "paper": paper, **(settings or {})},
        nfe=dict(nfe or {}),
        **provenance,
    )
    return Schedule.from_grid(t, solver, model, nodes=nodes, provenance=origin)


def deployed_with(solver: str | solvers.Solver) -> solvers.Solver:
    """The solver, checked; one whose coefficients follow from the flow times. Raises TypeError or ValueError."""
    known = solvers.get(solver)
    if solvers.is_searched(known):
        raise ValueError(f"solver: got {known.name!r}, whose coefficients come from a search, wanted a formula")
    return known
