"""The solvers whose coefficients, or whose order, the search itself chooses."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from oss_ext.solvers.dpm_solver import DpmSolverPlusPlus2M
from oss_ext.solvers.flow_time import AdamsBashforth, Euler
from oss_ext.solvers.solver import Carries, Solver
from oss_ext.solvers.unipc import UniP, UniPC


@dataclass
class Fitted:
    """Every step's coefficients are the search's own: ridge least squares of the teacher's state at the step's end on
    the node's basis, over the samples of a joint search (`fitting.least_squares`). They are kept in the schedule.

    history: how many earlier velocities a step uses, 0 to 4. ridge: >= 0, without units; how strongly coefficients are
    held near those of Adams-Bashforth of order min(history, 1) + 1. None: chosen for every step by cross-validation
    over the samples (`fitting.cross_validated`); with one sample, 1e-3.
    """

    history: int = 3
    ridge: float | None = None
    name: str = field(default="fitted", init=False)
    order: int = field(default=1, init=False)  # of the worst start; a fit has no order of its own
    carries: Carries = field(default="velocity", init=False)

    def coefficients(self, t_history: Tensor, t_next: Tensor) -> Tensor:
        """What the fit is held near: Euler's or two-step Adams-Bashforth's coefficients, 0 for what is older."""
        return padded(AdamsBashforth(2) if self.history else Euler(), self.history, t_history, t_next)


@dataclass
class Mixed:
    """Every step takes whichever of `members` lands nearest to the teacher: any mix of orders. The coefficients of the
    steps are kept in the schedule.

    members: solvers that carry the same prediction (one without history goes with all), the first wins ties.
    """

    members: tuple[Solver, ...] = (Euler(), DpmSolverPlusPlus2M(), UniP(3), UniPC(2), UniPC(3))
    name: str = field(default="mixed", init=False)

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("members: got none, wanted at least one solver")
        for member in self.members:
            if isinstance(member, type) or not isinstance(member, Solver):
                raise TypeError(f"members: got {member!r}, wanted Solver instances, as of `solvers.get`")
            if is_searched(member):
                raise ValueError(f"members: got {member.name!r}, wanted solvers whose coefficients are a formula")
        carries = {member.carries for member in self.members if member.history}
        if len(carries) > 1:
            raise ValueError(f"members: got solvers that carry {', '.join(sorted(carries))}, wanted one of them")
        self.carries: Carries = carries.pop() if carries else "velocity"
        self.history = max(member.history for member in self.members)
        self.order = min(member.order for member in self.members)

    def coefficients(self, t_history: Tensor, t_next: Tensor) -> Tensor:
        """Those of the first member."""
        return padded(self.members[0], self.history, t_history, t_next)

    def choices(self, t_history: Tensor, t_next: Tensor) -> list[Tensor]:
        """Those of every member, each [..., 2 + history]."""
        return [padded(member, self.history, t_history, t_next) for member in self.members]


def padded(solver: Solver, history: int, t_history: Tensor, t_next: Tensor) -> Tensor:
    """float64 [..., 2 + history]: the coefficients of a solver of at most that history, 0 for what it does not use."""
    known = solver.coefficients(t_history[..., : 1 + solver.history], t_next)
    return torch.cat([known, known.new_zeros(*known.shape[:-1], history - solver.history)], -1)


def is_searched(solver: Solver) -> bool:
    """Whether the coefficients of a step are a search's choice, rather than what the flow times say."""
    return isinstance(solver, Fitted | Mixed)
