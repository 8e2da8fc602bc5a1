"""DPM-Solver++: multistep solvers on x0 predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from oss_ext.solvers.integrals import exponential_moments
from oss_ext.solvers.multistep import Interpolating
from oss_ext.solvers.solver import Carries


class DpmSolverPlusPlus2M(Interpolating):
    """DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, Algorithm 2), as k-diffusion's `sample_dpmpp_2m` and diffusers'
    `DPMSolverMultistepScheduler`: x0 extrapolated to the middle of the step in lambda."""

    name = "dpmpp_2m"
    order = 2
    history = 1
    carries: Carries = "x0"

    def moments(self, length: Tensor, earlier: Tensor) -> list[Tensor]:
        return [torch.full_like(length, 1 / 2)]


class DpmSolverPlusPlus3M(Interpolating):
    """DPM-Solver++(3M), as diffusers' `DPMSolverMultistepScheduler` with solver_order 3 and k-diffusion's
    `sample_dpmpp_3m_sde` with eta = 0.

    Its global error is of order 2: they weigh the second difference by half of what the integral of the quadratic gives
    (which `unip_3` is). It is kept as deployed. The step after one of order 1 is DPM-Solver++(2M)'s.
    """

    name = "dpmpp_3m"
    order = 2
    history = 2
    carries: Carries = "x0"

    def moments(self, length: Tensor, earlier: Tensor) -> list[Tensor]:
        mean, square = exponential_moments(length, 2)
        return [torch.where(earlier == 1, 0.5, mean), square / 2]
