"""Solvers on velocities, in flow time: Euler and Adams-Bashforth."""

from __future__ import annotations

import torch
from torch import Tensor

from oss_ext.solvers.integrals import plain_moments
from oss_ext.solvers.multistep import Interpolating
from oss_ext.solvers.solver import Carries


class Euler:
    """x + (t_next - t) v. The same as DDIM."""

    name = "euler"
    order = 1
    history = 0
    carries: Carries = "velocity"

    def coefficients(self, t_history: Tensor, t_next: Tensor) -> Tensor:
        step = t_next - t_history[..., 0]
        return torch.stack([torch.ones_like(step), step], -1)


class AdamsBashforth(Interpolating):
    """Adams-Bashforth with variable steps in flow time (Hairer, Norsett, Wanner, Solving ODEs I, III.5), order >= 2."""

    carries: Carries = "velocity"
    final_is_first_order = False

    def __init__(self, order: int) -> None:
        self.name, self.order, self.history = f"ab{order}", order, order - 1

    def variable(self, t: Tensor) -> Tensor:
        return t

    def moments(self, length: Tensor, earlier: Tensor) -> list[Tensor]:
        return plain_moments(length, self.history)
