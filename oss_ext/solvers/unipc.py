"""UniPC: predictor and corrector on x0 predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from oss_ext.solvers.integrals import exponential_moments, polynomial_shares, zero_where
from oss_ext.solvers.multistep import Interpolating, log_snr, split
from oss_ext.solvers.solver import Carries


class UniP(Interpolating):
    """UniPC's predictor alone (Zhao et al., arXiv 2302.04867, Algorithm 2), data prediction, B2(h) = e^h - 1, as in
    diffusers' `UniPCMultistepScheduler`. Of order 2 it is `dpmpp_2m` (the 1/2 that the paper allows there); of order 3
    x0 interpolated by a quadratic in lambda, integrated exactly."""

    carries: Carries = "x0"

    def __init__(self, order: int) -> None:
        self.name, self.order, self.history = f"unip_{order}", order, order - 1

    def moments(self, length: Tensor, earlier: Tensor) -> list[Tensor]:
        mean, *higher = exponential_moments(length, self.history)
        return [torch.where(earlier == 1, 0.5, mean), *higher]


class UniPC:
    """UniPC with its corrector (Zhao et al., arXiv 2302.04867, Algorithms 1 and 2; data prediction, B2), as diffusers'
    `UniPCMultistepScheduler` with solver_order 2 (its default) or 3. The corrector raises the order by one.

    The corrector mends the state at this node with the evaluation made there: the step that led here is taken again,
    from the same state, with x0 interpolated through this node's prediction too. Predicted and corrected state differ
    by x0 predictions alone, so that the correction is linear in the basis; it is added before the next predictor step.
    The predictor's earliest node is one step older for the step that led here: hence `history` is the order that
    diffusers names, one more than the predictor's.
    """

    carries: Carries = "x0"

    def __init__(self, order: int) -> None:
        self.name, self.order, self.history = f"unipc_{order}", order + 1, order
        self._predictor = UniP(order)

    def coefficients(self, t_history: Tensor, t_next: Tensor) -> Tensor:
        past, t_next = split(t_history, t_next)
        now, before, *older = past
        state, velocity, *earlier = self._predictor.coefficients(torch.stack(past[:-1], -1), t_next).unbind(-1)
        kept = zero_where(before.isnan(), t_next / now * (before - now) / before)  # of the step's length in x / t
        predicted = self._predictor.shares(past[1:], now)
        first, new, *others = self._corrected(now, before, older)
        gains = [a - b for a, b in zip([first, *others], predicted, strict=True)]
        new, *gains = [zero_where(kept == 0, kept * each) for each in (new, *gains)]
        late = [a + b for a, b in zip([*earlier, torch.zeros_like(state)], gains, strict=True)]
        return torch.stack([state + new, velocity - now * new, *late], -1)

    def _corrected(self, now: Tensor, before: Tensor, older: list[Tensor]) -> list[Tensor]:
        """Shares in the step before -> now of the x0 predictions at before, now, and the older nodes."""
        start, end = log_snr(before), log_snr(now)
        length = end - start
        mean, *higher = exponential_moments(length, 1 + len(older))
        missing = [t.isnan() for t in older]
        mean = torch.where(missing[0], 0.5, mean)  # the corrector of order 1, which the paper allows
        places = [torch.ones_like(length), *[(log_snr(t) - start) / length for t in older]]
        return polynomial_shares(places, [before.isnan(), *missing], [mean, *higher])
