"""PSNR over many noises: two averages of it, differences of rows on the same noises, and their standard errors."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from oss_ext.metrics import pooled_psnr

DRAWS = 2000


class Spread:
    """PSNRs of several rows on the same noises, float64 [rows, n], and their paired bootstrap.

    "pooled" (`pooled_psnr`) and "mean" (the mean of the noises' own), each [rows]; drawn: [DRAWS, rows].
    """

    def __init__(self, values: Tensor) -> None:
        values = values.double()
        weights = _weights(values.shape[1])
        self.values = {"pooled": pooled_psnr(values), "mean": values.mean(-1)}
        error = 10 ** (-values / 10)
        self.drawn = {"pooled": -10 * torch.log10(weights @ error.T), "mean": weights @ values.T}

    def error(self, measure: str, row: int) -> float:
        """The standard error of a row's average."""
        return float(self.drawn[measure][:, row].std())

    def gain(self, measure: str, row: int, base: int) -> tuple[float, float]:
        """What a row is above another, and its standard error."""
        drawn = self.drawn[measure]
        over = float(self.values[measure][row] - self.values[measure][base])
        return over, float((drawn[:, row] - drawn[:, base]).std())


def summary(values: Tensor) -> dict[str, float]:
    """ "psnr" (`pooled_psnr`) and "mean_psnr" (their mean) of the noises' own, float64 [n], each with its bootstrap
    standard error."""
    spread = Spread(values[None])
    return {
        "psnr": float(spread.values["pooled"][0]),
        "psnr_error": spread.error("pooled", 0),
        "mean_psnr": float(spread.values["mean"][0]),
        "mean_psnr_error": spread.error("mean", 0),
    }


def gain(values: Tensor, base: Tensor, mean: bool) -> tuple[float, float]:
    """What `values` are above `base`, the same noises' [n]: of means or of pooled PSNRs; its bootstrap error."""
    return Spread(torch.stack([values, base])).gain("mean" if mean else "pooled", 0, 1)


@cache
def _weights(count: int) -> Tensor:
    """float64 [DRAWS, count]: the share of each noise in every bootstrap sample."""
    drawn = torch.randint(count, (DRAWS, count), generator=torch.Generator().manual_seed(0))
    ones = torch.ones(DRAWS, count, dtype=torch.float64)
    return torch.zeros(DRAWS, count, dtype=torch.float64).scatter_add_(1, drawn, ones) / count
