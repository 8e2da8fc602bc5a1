"""Integrals of powers under an exponential weight."""

from __future__ import annotations

import torch
from torch import Tensor


def zero_where(condition: Tensor, value: Tensor) -> Tensor:
    return torch.where(condition, 0.0, value)


def exponential_moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Means of s and of s^2 over [0, 1] under the weight exp(y s)."""
    first, second, third = _phi(-y)
    return second / first, 2 * third / first


def _phi(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """phi_k(z) = integral of e^((1 - s) z) s^(k - 1) / (k - 1)! over [0, 1], k = 1, 2, 3, to rounding.

    phi_(k+1) = (phi_k - 1 / k!) / z, which cancels for small z: there it is its power series, sum_n z^n / (n + k)!.
    """
    small = torch.where(z.abs() < 1, z, 0.0)
    third = torch.full_like(z, 1 / 6)
    term = third
    for n in range(1, 17):
        term = term * small / (n + 3)
        third = third + term
    series = [1 + small * (1 / 2 + small * third), 1 / 2 + small * third, third]
    one = torch.expm1(z) / z
    two = (one - 1) / z
    direct = [one, two, (two - 1 / 2) / z]
    one, two, three = (torch.where(z.abs() < 1, a, b) for a, b in zip(series, direct, strict=True))
    return one, two, three
