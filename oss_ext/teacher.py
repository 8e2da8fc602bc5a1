"""The teacher: the fine grid integrated once."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from oss_ext import solvers
from oss_ext.ranks import ALONE, Ranks
from oss_ext.sums import squares
from oss_ext.transfer import empty

DEFAULT_STEPS, DEFAULT_SOLVER = 100, "unipc"
"""On the bundled model nearer to the exact solution than 200 Euler steps are, at half their evaluations
(benchmarks/results/schedules.json, "teachers")."""


class Ask(NamedTuple):
    """What a search wants to know: the velocities [b, m, *shape] of these samples at these states.

    states: [b, m, *shape], in flow coordinates. t: float64 [m] on the CPU, their flow times, all above 0.
    samples: which rows of the noise (and of cond) the b samples are.
    nodes: int64 [m] on the CPU, where the states stand at nodes of the grid; None elsewhere.
    purpose: what its evaluations are counted as; None: as the part of the search that it comes from.
    out: [b, m, *shape] in the states' dtype and beside them, any strides: the velocities may be written to it, and it
        be sent, which spares a copy. None: there is no such place.
    """

    states: Tensor
    t: Tensor
    samples: slice
    nodes: Tensor | None
    purpose: str | None = None
    out: Tensor | None = None

    def keep(self, sent: Tensor) -> Tensor:
        """`out`, with what was sent."""
        assert self.out is not None
        if sent is not self.out:
            self.out.copy_(sent)
        return self.out


@dataclass(frozen=True)
class Teacher:
    """states: [B, N + 1, D], one row a grid node. first_velocity: [B, D], the model's output at node 0.

    turning: float64 [N] on the CPU: the root mean square change of the velocity from node j - 1 to node j; 0 for j = 0.
    """

    states: Tensor
    first_velocity: Tensor
    turning: Tensor

    def at(self, nodes: Tensor) -> Teacher:
        """The teacher on these nodes alone, ascending from node 0 to the last."""
        states = empty((len(self.states), len(nodes), self.states.shape[2]), like=self.states)
        torch.index_select(self.states, 1, nodes.to(states.device), out=states)
        return Teacher(states, self.first_velocity, self.turning[nodes[:-1]])


def check_guide(solver: str | solvers.Solver) -> solvers.Solver:
    """The teacher's solver, checked. Raises TypeError or ValueError that names `teacher_solver`."""
    guide = solvers.get(solver)
    if solvers.is_searched(guide):
        raise ValueError(f"teacher_solver: got {guide.name!r}, wanted one of {', '.join(solvers.formulas())}")
    return guide


def integrate(
    noise: Tensor, t: Tensor, solver: solvers.Solver, samples: slice | None = None, *, ranks: Ranks = ALONE
) -> Generator[Ask, Tensor, Teacher]:
    """Asks for one node at a time, N in all, and returns the `Teacher`.

    noise: [B, *shape], float32 or float64; the trajectory starts at t[0] * noise. t: float64 [N + 1] on the CPU.
    solver: one whose coefficients follow from the flow times. samples: which rows of the search's noise these are.
    ranks: who has the other samples.
    """
    batch, shape = noise.shape[0], noise.shape[1:]
    states = empty((batch, len(t), shape.numel()), like=noise)
    walk = solvers.Walk(noise.flatten(1) * float(t[0]), solver.carries, solver.history)
    states[:, 0] = walk.state
    first = last = states.new_empty(0)
    turning = [torch.zeros(batch, dtype=torch.float64, device=noise.device)]
    for node, weights in enumerate(solvers.along(solver, t).tolist()):
        here = torch.tensor([node])
        state = states[:, node : node + 1].unflatten(2, shape)
        out = empty(state.shape, like=noise)  # one each: solvers carry them on
        ask = Ask(state, t[here], samples or slice(0, batch), here, out=out)
        output = ask.keep((yield ask)).flatten(1)
        if node == 0:
            first = output
        else:
            turning.append(squares(output - last))
        last = output
        walk.step(output, float(t[node]), weights)
        states[:, node + 1] = walk.state
    every = ranks.gather(torch.stack(turning, 1))
    return Teacher(states, first, (every.mean(0) / states.shape[2]).sqrt().cpu())
