"""What a search decides: a schedule before it is put in the terms of a model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from oss_ext import solvers
from oss_ext.schedule_file import Calibration


@dataclass(frozen=True)
class Plan:
    """t: float64 [k + 1], flow times. solver: what the coefficients came from; float64 [k, P]. nodes: int64 [k + 1] of
    the teacher's grid, None where the times are not on it. noise_scale: the path starts at noise_scale * noise.
    calibration: of the states before they are evaluated."""

    t: Tensor
    solver: solvers.Solver
    coefficients: Tensor
    nodes: Tensor | None
    noise_scale: float
    calibration: Calibration | None = None

    @property
    def steps(self) -> int:
        return len(self.t) - 1
