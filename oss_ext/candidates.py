"""Which nodes of the teacher's grid a search looks at, where it does not look at all of them."""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 0.3
"""The share of the nodes that is spread evenly over the grid, whatever the velocity does."""

EARLY = 0.5
"""The power of the flow time that all of that is weighted by: what is off early grows on the way to the clean node. Of
0, 1/2, 3/4 and 1 the best on the bundled model for Euler and DPM-Solver++(2M), 24 candidates, 10 steps (16 noises to
search on, 40 others to measure); on the mixtures of the tests 0 is better."""


def default_count(steps: int) -> int:
    """How many candidates a joint search of so many steps takes unless told otherwise. With
    the default teacher an eighth of the published search's evaluations at 10 steps."""
    return max(24, -(-12 * steps // 5))


def place(t: Tensor, turning: Tensor, count: int, *, floor: float = FLOOR, early: float = EARLY) -> Tensor:
    """int64 [count + 1]: ascending nodes of the grid from 0 to N, dense where the teacher's velocity turns.

    Every interval between neighbours gets an equal share of the square root of the velocity's rate of change in flow
    time: a step of length h from where the velocity changes at rate r is off by about r h^2 / 2, so steps of length
    r^(-1/2) are off by as much everywhere. A part of the nodes is spread evenly over the grid; all are drawn early.

    t: float64 [N + 1]. turning: float64 [N], `Teacher.turning`. count: 1..N. floor: in [0, 1]. early: >= 0; see above.
    """
    last = len(t) - 1
    step = -t.diff()
    rate = turning / torch.cat([step[:1], step[:-1]])
    rate[0] = rate[min(1, last - 1)]  # nothing is known before node 0
    share = rate.sqrt() * step
    total = float(share.sum())
    even = torch.full_like(step, 1 / last)
    density = (1 - floor) * share / total + floor * even if total > 0 else even
    density = density * ((t[1:] + t[:-1]) / 2) ** early
    reached = torch.cat([density.new_zeros(1), density.cumsum(0)])
    wanted = torch.linspace(0, 1, count + 1, dtype=torch.float64) * reached[-1]
    above = torch.searchsorted(reached, wanted).clamp(1, last)
    nearer = (wanted - reached[above - 1] < reached[above] - wanted).long()
    return distinct(above - nearer, last)


def nearest(t: Tensor, times: Tensor, *, first: int | None = 0) -> Tensor:
    """int64 [k + 1]: the nodes of the grid t [N + 1] nearest to `times` [k + 1], all distinct, the last N; the first
    as for `distinct`."""
    return distinct((t[:, None] - times).abs().argmin(0), len(t) - 1, first=first)


def distinct(nodes: Tensor, last: int, *, first: int | None = 0) -> Tensor:
    """Ascending `nodes`, moved as little as makes them strictly so, the last `last`; the first `first`, or with None
    wherever there is room."""
    moved = nodes.tolist()
    if first is not None:
        moved[0] = first
    for k in range(1, len(moved)):
        moved[k] = max(moved[k], moved[k - 1] + 1)
    moved[-1] = last
    for k in range(len(moved) - 2, -1 if first is None else 0, -1):
        moved[k] = min(moved[k], moved[k + 1] - 1)
    return torch.tensor(moved)
