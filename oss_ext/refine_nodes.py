"""Refinement without gradients: a schedule's nodes moved on the teacher's grid, its coefficients following."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from oss_ext import solvers
from oss_ext.candidates import nearest
from oss_ext.models import Denoiser
from oss_ext.mover import Trial, first_runs, move, nearer, scales
from oss_ext.objective import squared_error
from oss_ext.schedule import Schedule
from oss_ext.teacher import Ask, integrate
from oss_ext.walks import run


class Outcome(NamedTuple):
    """endpoint: [B, D]; error: float64 [B]."""

    schedule: Schedule
    endpoint: Tensor
    error: Tensor


@dataclass(frozen=True)
class Nodes:
    """The refinement of `schedule` on the nodes of the grid t, `solver`'s coefficients following. known: the teacher's
    endpoints [B, D] where they are."""

    schedule: Schedule
    model: Denoiser
    t: Tensor
    guide: solvers.Solver
    solver: solvers.Solver
    known: Tensor | None
    objective: str

    @property
    def _runs_teacher(self) -> bool:
        return self.known is None or solvers.is_searched(self.solver)

    def bound(self, evaluations: int) -> int:
        """Evaluations a sample, at most."""
        least = (1 + first_runs(self.solver, self.objective)) * self.schedule.steps
        return max(evaluations, least) + (len(self.t) - 1 if self._runs_teacher else 0)

    def core(self, noise: Tensor, evaluations: int) -> Generator[Ask, Tensor, Outcome]:
        """noise: [B, *shape], in the states' dtype."""
        old, t, everyone = self.schedule, self.t, slice(0, len(noise))
        states, target = None, self.known
        if solvers.is_searched(self.solver):
            teacher = yield from integrate(noise, t, self.guide, everyone)
            states = teacher.states
            target = states[:, -1] if target is None else target
        elif target is None:
            target = yield from run(noise, t, solvers.along(self.guide, t), self.guide.carries, samples=everyone)
        assert target is not None
        end = yield from replay(old, noise)
        best = Outcome(old, end, squared_error(end, target))
        scale_at = scales(float(old.t[0]), old.noise_scale, t, self.solver, noise, states)
        nodes = tuple(nearest(t, old.t, first=None).tolist())
        found = yield from move(
            nodes,
            noise,
            t,
            self.solver,
            states,
            target,
            scale_at,
            evaluations=evaluations - old.steps,
            objective=self.objective,
        )
        if not nearer(found.error, best.error, self.objective):
            return best
        return Outcome(self._schedule(found), found.endpoint, found.error)

    def _schedule(self, trial: Trial) -> Schedule:
        nodes = torch.tensor(trial.nodes)
        return Schedule.from_grid(
            self.t[nodes],
            self.solver,
            self.model,
            nodes=nodes,
            coefficients=trial.rows,
            noise_scale=trial.scale,
            provenance=self.schedule.provenance,
        )


def replay(schedule: Schedule, noise: Tensor) -> Generator[Ask, Tensor, Tensor]:
    """The final states [B, D] of `schedule.sample`, by asking. noise: [B, *shape], in the states' dtype."""
    return run(
        noise,
        schedule.t,
        schedule.coefficients,
        schedule.carries,
        samples=slice(0, len(noise)),
        scale=schedule.noise_scale,
        network_t=schedule.network_t,
    )
