"""What `dp_search` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from oss_ext.models import Denoiser
from oss_ext.plan import Plan
from oss_ext.provenance import Provenance
from oss_ext.schedule import Schedule
from oss_ext.search_core import Found


@dataclass(frozen=True, eq=False, repr=False)
class SearchResult:
    """Schedules for every budget k = 1..K, and what the search knew of them. B samples, N teacher steps.

    schedules: {k: Schedule}, or {k: [Schedule] * B} with share "per_sample".
    costs: {k: float64 [B]}: mean squared distance to the teacher's clean states, each sample along its schedule.
    endpoints: {k: [B, ...]}: the clean states that they end in. teacher: [B, ...], the teacher's. On the device of the
        noise, float32 for half types.
    t: float64 [N + 1], the teacher's grid; grid: its name, "custom" for a tensor.
    values: float64 [K, N + 1] (joint, mean over the samples) or [K, B, N + 1]: entry [k - 1, ..., j] is the least cost
        found of reaching node j with exactly k steps, +inf where that is impossible or j was no candidate.
        backpointers: int32, alike, -1; with a beam, of the best state. Both None with solver "auto".
    store: the device that kept the states of the search, "cpu" or "cpu (pinned)" where it was host memory.
        With another `cost` than "x_t" they are of that, of the largest budget at the clean node alone.
    nfe: network evaluations a sample: "teacher", "search", what else was spent ("cost", by a cost that evaluates
        candidates; "refine", where a backward pass counts as two more), "total"; a guided one counts once.
    table: with solver "auto" all schedules that were tried, a dict each (steps, family, path, solver, cost); costs,
        endpoints and teacher are then those of the samples that judged, the last ones. None otherwise.
    """

    schedules: dict[int, Schedule | list[Schedule]]
    costs: dict[int, Tensor]
    endpoints: dict[int, Tensor]
    teacher: Tensor
    t: Tensor
    grid: str
    values: Tensor | None
    backpointers: Tensor | None
    nfe: dict[str, float]
    solver: str
    share: str
    start: str
    store: str
    table: list[dict[str, Any]] | None = None

    @property
    def steps(self) -> int:
        """K, the largest budget."""
        return max(self.schedules)

    @property
    def schedule(self) -> Schedule | list[Schedule]:
        """`schedules[K]`."""
        return self.schedules[self.steps]

    @classmethod
    def build(
        cls, found: Found, model: Denoiser, *, grid: str, metadata: Mapping[str, Any] | None = None
    ) -> SearchResult:
        """The result in the terms of `model`. grid: a name for provenance. metadata: JSON values for provenance."""
        common: dict[str, Any] = {
            "grid": grid,
            "teacher_steps": len(found.t) - 1,
            **found.settings,
            "share": found.share,
            "start": found.start,
            "samples": found.samples,
            "model": model.describe(),
            "metadata": dict(metadata or {}),
            "nfe": found.nfe,
        }
        schedules: dict[int, Schedule | list[Schedule]] = {}
        for budget, plans in found.plans.items():
            cost = found.costs[budget]
            if found.share == "per_sample":
                schedules[budget] = [
                    _schedule(plan, model, {**common, "sample": sample, "cost": float(cost[sample])})
                    for sample, plan in enumerate(plans)
                ]
            else:
                score = "replayed_cost" if found.share == "median" else "cost"
                schedules[budget] = _schedule(plans[0], model, {**common, score: float(cost.mean())})
        return cls(
            schedules=schedules,
            costs=found.costs,
            endpoints=found.endpoints,
            teacher=found.teacher,
            t=found.t,
            grid=grid,
            values=found.values,
            backpointers=found.backpointers,
            nfe=found.nfe,
            solver=found.solver,
            share=found.share,
            start=found.start,
            store=found.store,
            table=None if found.table is None else [row.describe() for row in found.table],
        )

    def refined(self, schedule: Schedule, error: Tensor, endpoint: Tensor) -> SearchResult:
        """This result with another schedule of the largest budget. error: float64 [samples], endpoint: [samples, ...];
        the last B of them are kept. `values` stay the search's."""
        count = len(self.teacher)
        return replace(
            self,
            schedules={**self.schedules, self.steps: schedule},
            costs={**self.costs, self.steps: error[-count:]},
            endpoints={**self.endpoints, self.steps: endpoint[-count:]},
            nfe=dict(schedule.provenance.nfe),
        )

    def __repr__(self) -> str:
        costs = ", ".join(f"{budget}: {float(cost.mean()):.3e}" for budget, cost in self.costs.items())
        return (
            f"SearchResult({self.solver}, {self.share}, {self.start} start, {len(self.teacher)} samples, "
            f"grid {self.grid!r} of {len(self.t) - 1} steps, {self.nfe['total']:g} evaluations a sample, "
            f"cost by budget {{{costs}}})"
        )


def _schedule(plan: Plan, model: Denoiser, origin: dict[str, Any]) -> Schedule:
    return Schedule.from_grid(
        plan.t,
        plan.solver,
        model,
        nodes=plan.nodes,
        coefficients=plan.coefficients,
        noise_scale=plan.noise_scale,
        calibration=plan.calibration,
        provenance=Provenance(**origin),
    )
