"""What a sample's error is, which samples judge, and how the errors of several become one number."""

from __future__ import annotations

import torch
from torch import Tensor

from oss_ext.sums import squares

OBJECTIVES = ("mse", "psnr")
JUDGES = 0.25
"""The share of the samples that only judges what the others led to."""


def squared_error(state: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """float64 [B] on the CPU: mean squared difference of [B, D]; weight: [D], of the squares."""
    return (squares(state.double() - target.double(), weight) / target.shape[1]).cpu()


def judges(samples: int, share: float = JUDGES) -> int:
    """How many of the last of `samples` >= 2 only judge: about this share of them, at least one, not all."""
    return min(max(1, round(share * samples)), samples - 1)


def level(error: Tensor, objective: str) -> float:
    """What is to be lowered. error: float64 [B], every sample's mean squared distance to the teacher.

    "mse": their mean; the samples that are far off have most of it. "psnr": their geometric mean, which falls by a
    factor of 10 where the mean of the samples' PSNRs rises by 10 dB: every sample counts alike.
    """
    if objective == "mse":
        return float(error.mean())
    return float(logarithms(error).mean().exp())


def steepness(error: Tensor, objective: str) -> Tensor:
    """float64 [B], of mean 1: near these errors their mean with these weights falls as `level` does."""
    if objective == "mse":
        return torch.ones_like(error)
    weight = (-logarithms(error)).softmax(0)
    return weight * len(error)


def logarithms(error: Tensor) -> Tensor:
    """Of 0, that of the smallest number."""
    return error.clamp(min=torch.finfo(error.dtype).tiny).log()
