"""Solvers of order 2 in flow coordinates, for steps that a schedule's own coefficients were not made for.

oss_ext.solvers has these and more; this is what the nodes need of it where oss_ext is not installed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def coefficients(t: Sequence[float], carries: str) -> tuple[tuple[float, ...], ...]:
    """[k, 3]: of [state, velocity, the earlier prediction] for each step along t [k + 1]; [k, 2] for "euler".

    carries: "velocity": Adams-Bashforth 2 in t. "x0": DPM-Solver++(2M) (arXiv 2211.01095), of order 1 to t = 0.
    "epsilon": iPNDM of order 2 (arXiv 2204.13902). The first step is Euler's.
    """
    rows: list[tuple[float, ...]] = []
    for step in range(len(t) - 1):
        now, then = t[step], t[step + 1]
        length = then - now
        before = t[step - 1] if step else None
        if carries == "euler":
            rows.append((1.0, length))
        elif before is None or (carries == "x0" and then == 0):
            rows.append((1.0, length, 0.0))
        elif carries == "velocity":
            ratio = length / (now - before)
            rows.append((1.0, length * (1 + ratio / 2), -length * ratio / 2))
        elif carries == "x0":
            half = (_lambda(then) - _lambda(now)) / (_lambda(now) - _lambda(before)) / 2  # 1 / (2 r)
            gain = -length / now  # x' = (then / now) x + gain ((1 + half) x0 - half old), x0 = x - now v
            rows.append((1 + gain * half, length * (1 + half), -gain * half))
        else:
            gain = length / (1 - now)  # x' = (1 - then) / (1 - now) x + gain (1.5 eps - 0.5 old), eps = x + (1 - now) v
            rows.append((1 + gain / 2, 1.5 * length, -gain / 2))
    return tuple(rows)


def _lambda(t: float) -> float:
    """Half the log-SNR; -inf at t = 1, where 1 / r becomes 0."""
    return math.log((1 - t) / t) if t < 1 else -math.inf
