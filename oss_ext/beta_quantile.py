"""Quantiles of the beta distribution, which torch lacks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TERMS = 300  # of the continued fraction; a few dozen do unless a or b is large
_HALVINGS = 64  # of the interval [0, 1]: more than float64 tells apart


def beta_quantile(share: Tensor, a: float, b: float) -> Tensor:
    """float64, like `share`: the x in [0, 1] below which this share of the Beta(a, b) distribution lies.

    share: floating [...], in [0, 1]. a, b: finite, above 0. Found by bisection: to about 1e-16, absolutely.
    """
    share = share.double()
    low, high = torch.zeros_like(share), torch.ones_like(share)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = beta_cdf(middle, a, b) < share
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    middle = (low + high) / 2
    return torch.where(share <= 0, 0.0, torch.where(share >= 1, 1.0, middle))


def beta_cdf(x: Tensor, a: float, b: float) -> Tensor:
    """float64, like `x`: the share of Beta(a, b) below x, the regularised incomplete beta function I_x(a, b).

    x: floating [...], in [0, 1]. By its continued fraction (Abramowitz and Stegun, 26.5.8), on the side of the mean
    where that converges fast: I_x(a, b) = 1 - I_(1-x)(b, a).
    """
    x = x.double()
    mirrored = x > (a + 1) / (a + b + 2)
    side = torch.where(mirrored, 1 - x, x)
    p, q = torch.full_like(x, a), torch.full_like(x, b)  # numbers alone would make where's result a float32
    p, q = torch.where(mirrored, q, p), torch.where(mirrored, p, q)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    front = torch.exp(p * side.log() + q * torch.log1p(-side) - log_beta) / p
    value = torch.where(side > 0, front * _fraction(side, p, q), 0.0)
    return torch.where(mirrored, 1 - value, value)


def _fraction(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """1 / (1 + d_1 / (1 + d_2 / (1 + ...))), from the front (the modified method of Lentz), which stops by itself."""
    tiny = torch.finfo(x.dtype).tiny

    def safe(value: Tensor) -> Tensor:
        return torch.where(value.abs() < tiny, tiny, value)

    above = torch.ones_like(x)
    below = 1 / safe(1 - (p + q) * x / (p + 1))
    result = below
    for m in range(1, _TERMS):
        even = m * (q - m) * x / ((p + 2 * m - 1) * (p + 2 * m))
        odd = -(p + m) * (p + q + m) * x / ((p + 2 * m) * (p + 2 * m + 1))
        for term in (even, odd):
            below = 1 / safe(1 + term * below)
            above = safe(1 + term / above)
            change = below * above
            result = result * change
        if bool(((change - 1).abs() < 1e-15).all()):
            break
    return result
