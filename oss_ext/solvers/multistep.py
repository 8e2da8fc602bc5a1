"""Multistep formulae as shares of the predictions in a step."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from oss_ext.solvers.integrals import zero_where
from oss_ext.solvers.solver import Carries


class Multistep:
    """Shares of the predictions in a step, and what they come to in the basis.

    In the coordinates in which a formula is published (x, x / t or x / (1 - t)), a step adds its length times a mean of
    the predictions: the shares are the weights in that mean, and sum to 1.
    """

    carries: Carries
    history: int

    def _times(self, t_history: Tensor, t_next: Tensor) -> tuple[list[Tensor], Tensor]:
        *past, t_next = torch.broadcast_tensors(*t_history.unbind(-1), t_next)
        return past, t_next

    def shares(self, past: list[Tensor], t_next: Tensor) -> list[Tensor]:
        """1 + history tensors [...]: of this node's prediction, then of the earlier ones."""
        raise NotImplementedError

    def coefficients(self, t_history: Tensor, t_next: Tensor) -> Tensor:
        past, t_next = self._times(t_history, t_next)
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

    With s = (u - u_now) / (u_next - u_now), `moments` are the means of s and s^2 over the step, under its measure.
    """

    final_is_first_order: ClassVar[bool] = True

    def variable(self, t: Tensor) -> Tensor:
        """u. Here lambda = log((1 - t) / t)."""
        return torch.log1p(-t) - torch.log(t)

    def moments(self, length: Tensor, third: Tensor) -> tuple[Tensor, Tensor]:
        """Means of s and of s^2. length: u_next - u_now, [...]. third: bool [...], whether s^2 will be used."""
        raise NotImplementedError

    def shares(self, past: list[Tensor], t_next: Tensor) -> list[Tensor]:
        now, *earlier = [self.variable(t) for t in past]
        length = self.variable(t_next) - now
        first_order = (t_next == 0) if self.final_is_first_order else torch.zeros_like(t_next, dtype=torch.bool)
        place = [(u - now) / length for u in earlier]
        missing = [torch.isnan(t) | first_order for t in past[1:]]
        third = ~missing[1] if len(place) == 2 else torch.zeros_like(first_order)
        mean, square = self.moments(length, third)
        # Newton: f0 + s f[0,1] + s (s - s1) f[0,1,2]; a node at infinity has divided differences of 0.
        near, far = mean / place[0], torch.zeros_like(length)
        if len(place) == 2:
            bend = zero_where(missing[1], (square - place[0] * mean) / place[1])
            far = zero_where(missing[1], bend / (place[1] - place[0]))
            near = near - zero_where(missing[1], bend / place[0])
        near = zero_where(missing[0], near)
        return [1 - near, near - far, far][: 1 + self.history]
