"""Sums over the numbers of each sample, in double, with bits that do not depend on the other samples."""

from __future__ import annotations

from torch import Tensor

from oss_ext import kernels

LONGEST = 2**16  # of a row that one kernel's block sums


def squares(rows: Tensor, weight: Tensor | None = None) -> Tensor:
    """float64 [b]: sum_d w_d x_d^2 of every row x of [b, D]. weight: [D]."""
    return products(rows, rows, weight)


def products(rows: Tensor, others: Tensor, weight: Tensor | None = None) -> Tensor:
    """float64 [b]: sum_d w_d x_d y_d of every two rows x, y of [b, D]. weight: [D]."""
    numbers = rows.double() * others.double()
    return _total(numbers if weight is None else numbers * weight.double())


def _total(numbers: Tensor) -> Tensor:
    while numbers.shape[1] > LONGEST:
        half = numbers.shape[1] // 2
        folded = numbers[:, :half] + numbers[:, half : 2 * half]
        if numbers.shape[1] % 2:
            folded[:, 0] += numbers[:, -1]
        numbers = folded
    ones = numbers.new_ones(1, 1, numbers.shape[1]).expand(len(numbers), -1, -1)
    row = numbers[:, None]
    return kernels.gram([row, ones], row)[0][:, 0, 0, 1]
