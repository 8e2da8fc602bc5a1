"""UniPC: predictor and corrector on x0 predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from oss_ext.solvers.integrals import exponential_moments, zero_where
from oss_ext.solvers.multistep import Interpolating, Multistep
from oss_ext.solvers.solver import Carries


class UniP(Interpolating):
    """UniPC's predictor alone (Zhao et al., arXiv 2302.04867, Algorithm 2), data prediction, B2(h) = e^h - 1, as in
    diffusers' `UniPCMultistepScheduler`. Of order 2 it is `dpmpp_2m` (the 1/2 that the paper allows there); of order 3
    x0 interpolated by a quadratic in lambda, integrated exactly."""

    carries: Carries = "x0"

    def __init__(self, order: int) -> None:
        self.name, self.order, self.history = f"unip_{order}", order, order - 1

    def moments(self, length: Tensor, third: Tensor) -> tuple[Tensor, Tensor]:
        mean, square = exponential_moments(length)
        return torch.where(third, mean, 0.5), square


class UniPC2(Multistep):
    """UniPC of order 2 with its corrector (Zhao et al., arXiv 2302.04867, Algorithms 1 and 2; data prediction, B2), as
    diffusers' `UniPCMultistepScheduler`, solver_order 2. The corrector raises the order to 3.

    The corrector mends the state at this node with the evaluation made there. Predicted and corrected state come from
    the same earlier state with the same factor, so their difference is one of x0 predictions alone: linear in the
    basis. It is added before the next predictor step. (Order 3's corrector needs a third earlier prediction.)
    """

    name = "unipc_2"
    order = 3
    history = 2
    carries: Carries = "x0"

    def __init__(self) -> None:
        self._predictor = UniP(2)

    def coefficients(self, t_history: Tensor, t_next: Tensor) -> Tensor:
        past, t_next = self._times(t_history, t_next)
        now, before, oldest = past
        plain = self._predictor.coefficients(torch.stack(past[:2], -1), t_next)
        log_snr = [self._predictor.variable(t) for t in past]
        # The step that led here: its length in lambda, and in x / t times t.
        length, weight = log_snr[0] - log_snr[1], (before - now) / before
        place = (log_snr[2] - log_snr[1]) / length
        first, second = exponential_moments(length)
        slope = (second - first) / (place - 1)
        young = torch.isnan(oldest)
        new = torch.where(young, 0.5, first - slope)  # of x0(now) - x0(before)
        old = zero_where(young, (slope - 0.5) / place)  # of x0(oldest) - x0(before), less the predictor's
        kept = zero_where(torch.isnan(before), t_next / now * weight)  # the part of the correction that the step keeps
        new, old = zero_where(kept == 0, kept * new), zero_where(kept == 0, kept * old)
        state, velocity, earlier = plain.unbind(-1)
        return torch.stack([state + new, velocity - now * new, earlier - new - old, old], -1)
