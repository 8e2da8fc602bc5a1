"""The paper's schedule for many samples, "OSS-ave" (OSS, arXiv 2503.21774): elementwise medians."""

from __future__ import annotations

from torch import Tensor


def elementwise_median(paths: Tensor) -> Tensor:
    """int64 [k + 1]: the median node of every position over B paths [B, k + 1] of strictly ascending nodes.

    Odd B: the middle one. Even B: the mean of the two middle ones, a half rounded to the noisier (smaller) node.
    The result is strictly ascending as well: where every path gains at least 1 from one position to the next, so does
    every order statistic, hence the mean of two, and rounding both down keeps a gain of 1.
    """
    ranked = paths.sort(dim=0).values
    count = len(ranked)
    return (ranked[(count - 1) // 2] + ranked[count // 2]) // 2
