"""Means over one step: of powers under an exponential weight, and of the polynomial through some predictions."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_NEAR = 6.0  # up to this |y| by quadrature, whose 16 points leave 1e-20; beyond it by recurrence
_POINTS, _WEIGHTS = (values.tolist() for values in np.polynomial.legendre.leggauss(16))


def zero_where(condition: Tensor, value: Tensor) -> Tensor:
    return torch.where(condition, 0.0, value)


def exponential_moments(y: Tensor, count: int) -> list[Tensor]:
    """Means of s, s^2, ..., s^count over [0, 1] under the weight exp(y s), to rounding for any y and count <= 8.

    These are n! phi_(n+1)(-y) / phi_1(-y) in the functions of exponential integrators. Their recurrence, which is
    integration by parts, m_n = 1 / (1 - e^-y) - (n / y) m_(n-1), cancels for small y; a Gauss-Legendre sum of positive
    terms does not.
    """
    small = torch.where(y.abs() < _NEAR, y, 0.0)
    sums = [torch.zeros_like(y) for _ in range(count + 1)]
    for point, weight in zip(_POINTS, _WEIGHTS, strict=True):
        s = (point + 1) / 2
        term = torch.exp(small * s) * weight
        for n in range(count + 1):
            sums[n] = sums[n] + term * s**n
    end, mean, means = -1 / torch.expm1(-y), torch.ones_like(y), []
    for n in range(1, count + 1):
        mean = end - n / y * mean
        means.append(torch.where(y.abs() < _NEAR, sums[n] / sums[0], mean))
    return means


def plain_moments(like: Tensor, count: int) -> list[Tensor]:
    """Means of s, s^2, ..., s^count over [0, 1]."""
    return [torch.full_like(like, 1 / (n + 1)) for n in range(1, count + 1)]


def polynomial_shares(places: list[Tensor], missing: list[Tensor], moments: list[Tensor]) -> list[Tensor]:
    """What each value weighs in the mean of the polynomial through the values at 0 and at `places`: they sum to 1.

    places: the other nodes, one or more, in units of the step, each [...]. missing: bool [...] each, true for a node
    that is to be left out, and then for those after it too. moments: the means of s, s^2, ..., one for each place.

    Newton's form, sum_k f[0..k] mean of s (s - s_1)...(s - s_(k-1)), each factor but the first divided by -s_m here and
    multiplied back below, so that steps far shorter than those before do not overflow. In nodes that go back in order
    its sums have terms of one sign each: nothing cancels. A last node at infinity drops out: its divided differences
    are 0.
    """
    zero, one = torch.zeros_like(moments[0]), torch.ones_like(moments[0])
    nodes, shares = [zero, *places], [one, *[zero] * len(places)]
    power = [one]  # coefficients of (1 - s / s_1)...(1 - s / s_(k-1)), the constant first
    for k, (left_out, place) in enumerate(zip(missing, places, strict=True), start=1):
        mean = sum((c * m for c, m in zip(power, moments, strict=False)), start=zero)
        for i in range(k + 1):
            weight = 1 / place if i == k else (1 if i == 0 else -1) / (nodes[i] - place)
            others = (nodes[m] / (nodes[m] - nodes[i]) for m in range(1, k) if m != i)
            shares[i] = shares[i] + zero_where(left_out, mean * math.prod(others, start=weight))
        power = [high - low / place for low, high in zip([zero, *power], [*power, zero], strict=True)]
    return shares
