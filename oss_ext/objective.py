"""How the errors of several samples become one number."""

from __future__ import annotations

import torch
from torch import Tensor

OBJECTIVES = ("mse", "psnr")


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
