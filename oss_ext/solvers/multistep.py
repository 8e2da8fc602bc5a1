"""Multistep formulae as shares of the predictions in a step."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from oss_ext.solvers.integrals import polynomial_shares, zero_where
from oss_ext.solvers.solver import Carries


def split(t_history: Tensor, t_next: Tensor) -> tuple[list[Tensor], Tensor]:
    """1 + history flow times, newest first, and where the step goes, all broadcast to one shape [...]."""
    *past, t_next = torch.broadcast_tensors(*t_history.unbind(-1), t_next)
    return past, t_next


def log_snr(t: Tensor) -> Tensor:
    """lambda = log((1 - t) / t): half of the log-SNR."""
    return torch.log1p(-t) - torch.log(t)


class Multistep:
    """Shares of the predictions in a step, and what they come to in the basis.

    In the coordinates in which a formula is published (x, x / t or x / (1 - t)), a step adds its length times a mean of
    the predictions: the shares are the weights in that mean, and sum to 1.
    """

    carries: Carries
    history: int

    def shares(self, past: list[Tensor], t_next: Tensor) -> list[Tensor]:
        """1 + history tensors [...]: of this node's prediction, then of the earlier ones."""
        raise NotImplementedError

    def coefficients(self, t_history: Tensor, t_next: Tensor) -> Tensor:
        past, t_next = split(t_history, t_next)
        share = self.shares(past, t_next)
        t, step = past[0], t_next - past[0]
        if self.carries == "velocity":
            return torch.stack([torch.ones_like(step), *[step * each for each in share]], -1)
        # x0: x' = (t'/t) x + length x0. epsilon: x' = (1 - t')/(1 - t) x + length eps. With this node's own prediction
        # written in its state and velocity, a share of 1 leaves Euler's step.
        length = -step / t if self.carries == "x0" else step / (1 - t)
        parts = [zero_where(each == 0, length * each) for each in [share[0] - 1, *share[1:]]]
        return torch.stack([1 + parts[0], step * share[0], *parts[1:]], -1)


class Interpolating(Multistep):
    """Predictions interpolated by a polynomial in some u, and integrated exactly over the step.

    With s = (u - u_now) / (u_next - u_now), `moments` are the means of s, s^2, ... over the step, under its measure.
    """

    final_is_first_order: ClassVar[bool] = True

    def variable(self, t: Tensor) -> Tensor:
        """u. Here lambda."""
        return log_snr(t)

    def moments(self, length: Tensor, earlier: Tensor) -> list[Tensor]:
        """Means of s, ..., s^history. length: u_next - u_now, [...]. earlier: int64 [...], how many earlier predictions
        the step uses."""
        raise NotImplementedError

    def shares(self, past: list[Tensor], t_next: Tensor) -> list[Tensor]:
        now, *before = [self.variable(t) for t in past]
        length = self.variable(t_next) - now
        gone = (t_next == 0) & self.final_is_first_order
        missing = []
        for t in past[1:]:
            gone = gone | torch.isnan(t)
            missing.append(gone)
        earlier = torch.stack(missing).logical_not().sum(0)
        return polynomial_shares([(u - now) / length for u in before], missing, self.moments(length, earlier))
