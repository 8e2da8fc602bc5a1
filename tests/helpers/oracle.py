"""Slow, plain searches that share no code with the library: the dynamic programme in loops, and brute force."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]  # (x [B, D], t) -> [B, D]


def run(velocity: Velocity, start: Tensor, times: list[float]) -> list[Tensor]:
    """Euler's states along `times`, the first being `start`."""
    states = [start]
    for now, after in itertools.pairwise(times):
        states.append(states[-1] + (after - now) * velocity(states[-1], now))
    return states


def plain_search(velocity: Velocity, noise: Tensor, times: list[float], steps: int, free: bool) -> dict[int, list[int]]:
    """OSS, Algorithm 1, joint over the samples: {k: nodes}. States travel with their whole path."""
    last = len(times) - 1
    teacher = run(velocity, times[0] * noise, times)
    reached = {i: ([i], times[i] * noise) for i in (range(last) if free else [0])}
    found = {}
    for budget in range(1, steps + 1):
        best: dict[int, tuple[float, list[int], Tensor]] = {}
        for i, (path, x) in sorted(reached.items()):
            v = velocity(x, times[i])
            for j in range(i + 1, last + 1):
                z = x + (times[j] - times[i]) * v
                cost = float((z - teacher[j]).square().mean(1).sum())
                if j not in best or cost < best[j][0]:
                    best[j] = (cost, [*path, j], z)
        found[budget] = best[last][1]
        reached = {j: (path, z) for j, (_, path, z) in best.items() if j < last}
    return found


def plain_cost_search(
    velocity: Velocity,
    noise: Tensor,
    times: list[float],
    steps: int,
    *,
    features: Callable[[Tensor, Tensor | None, float], Tensor],
    sources: int,
    free: bool = False,
    clean: bool = False,
) -> tuple[dict[int, list[int]], dict[tuple[int, int], float], int]:
    """`plain_search`, but of the `sources` steps into a node that land nearest the one is kept whose features are
    nearest to the teacher's. features(states, velocity or None at the clean node, t); clean: at the clean node too.

    Returns ({k: nodes}, {(k, node): its least cost, mean over the samples}, evaluations a sample at the candidates).
    """
    last = len(times) - 1
    teacher = run(velocity, times[0] * noise, times)
    wanted = [features(y, velocity(y, t) if t > 0 else None, t) for y, t in zip(teacher, times, strict=True)]
    reached = {i: ([i], times[i] * noise) for i in (range(last) if free else [0])}
    found, values, spent = {}, {}, 0
    for budget in range(1, steps + 1):
        offers: dict[int, list[tuple[float, int, list[int], Tensor]]] = {}
        for i, (path, x) in sorted(reached.items()):
            v = velocity(x, times[i])
            for j in range(i + 1, last + 1):
                z = x + (times[j] - times[i]) * v
                offers.setdefault(j, []).append((float((z - teacher[j]).square().mean()), i, [*path, j], z))
        kept = {}
        for j, several in offers.items():
            if j < last and budget == steps:
                continue
            judged = []
            for near, i, path, z in sorted(several, key=lambda offer: offer[:2])[:sources]:
                if j < last or clean:
                    near = float(
                        (features(z, velocity(z, times[j]) if j < last else None, times[j]) - wanted[j]).square().mean()
                    )
                    spent += j < last
                judged.append((near, i, path, z))
            values[budget, j], _, path, z = min(judged, key=lambda offer: offer[:2])
            kept[j] = (path, z)
        found[budget] = kept[last][0]
        reached = {j: entry for j, entry in kept.items() if j < last}
    return found, values, spent


def brute_force(velocity: Velocity, noise: Tensor, times: list[float], steps: int, free: bool) -> dict[tuple, float]:
    """{nodes: mean squared distance to the teacher at the clean node} over every schedule of exactly `steps` steps."""
    last = len(times) - 1
    clean = run(velocity, times[0] * noise, times)[-1]
    costs: dict[tuple, float] = {}

    def grow(path: list[int], x: Tensor, left: int) -> None:
        v = velocity(x, times[path[-1]])
        for j in [last] if left == 1 else range(path[-1] + 1, last - left + 2):
            z = x + (times[j] - times[path[-1]]) * v
            if left == 1:
                costs[(*path, j)] = float((z - clean).square().mean())
            else:
                grow([*path, j], z, left - 1)

    for i in range(last - steps + 1) if free else [0]:
        grow([i], times[i] * noise, steps)
    return costs
