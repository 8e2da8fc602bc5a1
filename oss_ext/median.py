"""The paper's schedule for many samples, "OSS-ave" (OSS, arXiv 2503.21774): elementwise medians, and their replay."""

from __future__ import annotations

from collections.abc import Generator

from torch import Tensor

from oss_ext import solvers
from oss_ext.teacher import Ask, Teacher


def elementwise_median(paths: Tensor) -> Tensor:
    """int64 [k + 1]: the median node of every position over B paths [B, k + 1] of strictly ascending nodes.

    Odd B: the middle one. Even B: the mean of the two middle ones, a half rounded to the noisier (smaller) node.
    The result is strictly ascending as well: where every path gains at least 1 from one position to the next, so does
    every order statistic, hence the mean of two, and rounding both down keeps a gain of 1.
    """
    ranked = paths.sort(dim=0).values
    count = len(ranked)
    return (ranked[(count - 1) // 2] + ranked[count // 2]) // 2


def replay(
    noise: Tensor, t: Tensor, nodes: Tensor, solver: solvers.Solver, teacher: Teacher, *, reuse_first: bool
) -> Generator[Ask, Tensor, Tensor]:
    """Runs `solver` along `nodes` of the grid `t`, asking for one node at a time; returns the final states [B, D].

    reuse_first: the path starts at node 0, where the teacher's evaluation serves.
    """
    batch, shape = noise.shape[0], noise.shape[1:]
    path = t[nodes]
    walk = solvers.Walk(noise.flatten(1) * float(path[0]), solver.carries, solver.history)
    for step, weights in enumerate(solvers.along(solver, path).tolist()):
        if step == 0 and reuse_first:
            output = teacher.first_velocity
        else:
            output = (yield walk.state.reshape(batch, 1, *shape), nodes[step : step + 1]).flatten(1)
        walk.step(output, float(path[step]), weights)
    return walk.state


def squared_error(state: Tensor, target: Tensor) -> Tensor:
    """float64 [B] on the CPU: mean squared difference of [B, D]."""
    return (state.double() - target.double()).square().mean(1).cpu()


def count_replays(steps: int, *, reuse_first: bool) -> int:
    """Evaluations a sample of one replay for each budget 1..steps."""
    return sum(budget - int(reuse_first) for budget in range(1, steps + 1))
