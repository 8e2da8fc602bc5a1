"""Solvers on noise predictions: LMS, DEIS, iPNDM."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from oss_ext.solvers.integrals import exponential_moments, plain_moments
from oss_ext.solvers.multistep import Interpolating, Multistep
from oss_ext.solvers.solver import Carries


class LinearMultistep(Interpolating):
    """k-diffusion's `sample_lms` (default order 4): epsilon interpolated in sigma, integrated exactly, the last step
    too. order >= 2."""

    carries: Carries = "epsilon"
    final_is_first_order = False

    def __init__(self, order: int) -> None:
        self.name, self.order, self.history = f"lms_{order}", order, order - 1

    def variable(self, t: Tensor) -> Tensor:
        return t / (1 - t)

    def moments(self, length: Tensor, earlier: Tensor) -> list[Tensor]:
        return plain_moments(length, self.history)


class Deis(Interpolating):
    """DEIS, tAB (Zhang, Chen, arXiv 2204.13902), as diffusers' `DEISMultistepScheduler` deploys it ("logrho"): epsilon
    interpolated in log sigma, integrated over sigma. To t = 0, where theirs gives NaN, the step of order 1."""

    carries: Carries = "epsilon"

    def __init__(self, order: int) -> None:
        self.name, self.order, self.history = f"deis_{order}", order, order - 1

    def moments(self, length: Tensor, earlier: Tensor) -> list[Tensor]:
        return exponential_moments(-length, self.history)


class Ipndm(Multistep):
    """iPNDM (Zhang, Chen, arXiv 2204.13902; after Liu et al., arXiv 2202.09778): Adams-Bashforth's weights for equal
    steps, on epsilon, whatever the steps, the last one too. Order 4 is diffusers' `IPNDMScheduler`.

    Orders 3 and 4 are reached on equal steps of sigma only; on other smooth grids it is 2.
    """

    carries: Carries = "epsilon"
    _WEIGHTS: ClassVar[list[list[float]]] = [
        [1, 0, 0, 0],
        [3 / 2, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]

    def __init__(self, order: int) -> None:
        self.name, self.order, self.history = f"ipndm_{order}", order, order - 1

    def shares(self, past: list[Tensor], t_next: Tensor) -> list[Tensor]:
        table = past[0].new_tensor(self._WEIGHTS)
        age = torch.stack(past[1:]).isnan().logical_not().sum(0)
        return list(table[age].unbind(-1))[: 1 + self.history]
