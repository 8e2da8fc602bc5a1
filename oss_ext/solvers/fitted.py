"""The solver whose coefficients the search itself fits."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from oss_ext.solvers.flow_time import AdamsBashforth, Euler
from oss_ext.solvers.solver import Carries


@dataclass
class Fitted:
    """Every step's coefficients are the search's own: ridge least squares of the teacher's state at the step's end on
    the node's basis, over the samples of a joint search (`fitting.least_squares`). They are kept in the schedule.

    history: how many earlier velocities a step uses, 0 to 2. ridge: >= 0, without units; how strongly coefficients are
    held near those of Adams-Bashforth of order min(history, 1) + 1: few samples want more of it.
    """

    history: int = 2
    ridge: float = 1e-3
    name: str = field(default="fitted", init=False)
    order: int = field(default=1, init=False)  # of the worst start; a fit has no order of its own
    carries: Carries = field(default="velocity", init=False)

    def coefficients(self, t_history: Tensor, t_next: Tensor) -> Tensor:
        """What the fit is held near: Euler's or two-step Adams-Bashforth's coefficients, 0 for what is older."""
        near = AdamsBashforth(2) if self.history else Euler()
        known = near.coefficients(t_history[..., : 1 + near.history], t_next)
        older = known.new_zeros(*known.shape[:-1], self.history - near.history)
        return torch.cat([known, older], -1)
