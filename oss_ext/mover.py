"""Paths over the nodes of the teacher's grid, tried and moved, the coefficients following."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from oss_ext import solvers
from oss_ext.fitting import gain_of
from oss_ext.objective import level, squared_error, steepness
from oss_ext.ranks import ALONE, Ranks
from oss_ext.teacher import Ask
from oss_ext.transfer import empty
from oss_ext.walks import fit_step

ROUNDING = 1e-6
"""What a gain must exceed, as a share of the error."""


@dataclass(frozen=True)
class Trial:
    """A path that was run. nodes: of the teacher's grid, k + 1. rows: float64 [k, P]. scale: of the noise.
    outputs: the k velocities [B, D]. endpoint: [B, D]. error: float64 [B], mean squared distance to the teacher."""

    nodes: tuple[int, ...]
    rows: Tensor
    scale: float
    outputs: list[Tensor]
    endpoint: Tensor
    error: Tensor


class Mover:
    """Runs paths over the nodes of the grid t, float64 [N + 1].

    noise: [B, *shape], in the states' dtype. states: the teacher's [B, N + 1, D], which fitted and mixed coefficients
    follow; None: the solver has a formula. target: [B, D], the teacher's endpoints. scale_at: what the noise is
    multiplied with on a path that starts at a node. weight: float64 [B], of the samples, where coefficients are fitted.
    ranks: who has the other samples; a trial's error is of all.
    """

    def __init__(
        self,
        noise: Tensor,
        t: Tensor,
        solver: solvers.Solver,
        states: Tensor | None,
        target: Tensor,
        scale_at: Callable[[int], float],
        weight: Tensor | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._noise, self._t, self._solver, self._states, self._target = noise, t, solver, states, target
        self._scale_at, self._weight, self._ranks = scale_at, weight, ranks

    def run(self, nodes: tuple[int, ...], like: Trial | None = None) -> Generator[Ask, Tensor, Trial]:
        """One evaluation a step, but for the steps from nodes that `like` visits after the same steps: the state there
        is the same."""
        at = torch.tensor(nodes)
        path, scale = self._t[at], self._scale_at(nodes[0])
        known = 0
        if like is not None and like.scale == scale:
            known = next(n for n, (a, b) in enumerate(zip(like.nodes, nodes, strict=True)) if a != b)
        walk = solvers.Walk(self._noise.flatten(1) * scale, self._solver.carries, self._solver.history)
        formula = None if solvers.is_searched(self._solver) else solvers.along(self._solver, path)
        outputs, rows = [], []
        for step in range(len(path) - 1):
            if like is not None and step < known:
                output = like.outputs[step]
            else:
                state = walk.state.reshape(len(self._noise), 1, *self._noise.shape[1:])
                here = slice(step, step + 1)
                out = empty(state.shape, like=self._noise)
                ask = Ask(state, path[here], slice(0, len(self._noise)), at[here], out=out)
                output = ask.keep((yield ask)).flatten(1)
            if like is not None and step + 1 < known:
                row = like.rows[step]
            else:
                row = formula[step] if formula is not None else self._row(walk, output, path, step, nodes[step + 1])
            walk.step(output, float(path[step]), row.tolist())
            outputs.append(output)
            rows.append(row)
        error = self._ranks.gather(squared_error(walk.state, self._target))
        return Trial(nodes, torch.stack(rows), scale, outputs, walk.state, error)

    def _row(self, walk: solvers.Walk, output: Tensor, path: Tensor, step: int, goal: int) -> Tensor:
        """The coefficients of a step that land it nearest to the teacher."""
        assert self._states is not None
        target = self._states[:, goal]
        if isinstance(self._solver, solvers.Fitted):
            return fit_step(walk, output, path, step, target, self._solver, weight=self._weight, ranks=self._ranks)
        assert isinstance(self._solver, solvers.Mixed)
        past = solvers.past_times(path, self._solver.history)[step]
        offers = self._solver.choices(past, path[step + 1])
        basis = walk.basis(output)

        def miss(row: Tensor) -> float:
            state = sum((u * w for u, w in zip(basis[1:], row[1:].tolist(), strict=False)), basis[0] * float(row[0]))
            return float(self._ranks.gather(squared_error(state, target)).mean())

        return min(offers, key=miss)


def nearer(error: Tensor, than: Tensor, objective: str = "mse") -> bool:
    """Whether the `level` of the errors, float64 [B], fell by more than rounding, and at least half of them fell.

    Few samples often have most of the error. What mends those alone mends little on noises not seen.
    """
    fell = level(error, objective) < (1 - ROUNDING) * level(than, objective)
    return fell and 2 * int((error < than).sum()) >= len(error)


def move(
    nodes: tuple[int, ...],
    noise: Tensor,
    t: Tensor,
    solver: solvers.Solver,
    states: Tensor | None,
    target: Tensor,
    scale_at: Callable[[int], float],
    *,
    evaluations: int,
    objective: str = "mse",
    ranks: Ranks = ALONE,
) -> Generator[Ask, Tensor, Trial]:
    """Coordinate descent from `nodes` on what `objective` makes of the errors; the best path, which may be the first.

    evaluations: a sample, at most, where `first_runs` allow. The rest as for `Mover`.
    """
    mover = Mover(noise, t, solver, states, target, scale_at, ranks=ranks)
    start = yield from mover.run(nodes)
    if first_runs(solver, objective) > 1:
        # Least squares with the objective's derivatives as weights falls like the objective.
        weight = ranks.mine(steepness(start.error, objective))
        mover = Mover(noise, t, solver, states, target, scale_at, weight, ranks)
        start = yield from mover.run(nodes)
    left = evaluations - first_runs(solver, objective) * (len(nodes) - 1)
    return (yield from _descend(mover, start, len(t) - 1, left, objective))


def first_runs(solver: solvers.Solver, objective: str) -> int:
    """How often `move` runs the path that it starts from."""
    return 2 if objective != "mse" and isinstance(solver, solvers.Fitted) else 1


def _descend(mover: Mover, start: Trial, last: int, left: int, objective: str) -> Generator[Ask, Tensor, Trial]:
    """Moves of one node by +-s, s = a power of 2 that falls to 1, each kept if it is `nearer`; over again until no move
    of any size helps, or until another run might take more than the evaluations `left`.

    last: N; the clean node stays, and node 0 where the path starts there.
    """
    best, steps = start, len(start.nodes) - 1
    first = 1 if start.nodes[0] == 0 else 0
    seen = {start.nodes}
    size = 1
    while size * 2 * 4 * steps <= last:  # a quarter of a step of even length, at most
        size *= 2
    sizes = [size >> shift for shift in range(size.bit_length())]
    improved = True
    while improved:
        improved = False
        for size in sizes:
            moved = True
            while moved:
                moved = False
                for place in range(first, steps):
                    for way in (-size, size):
                        nodes = _moved(best.nodes, place, way)
                        while nodes is not None and nodes not in seen:
                            if left < steps - place:
                                return best
                            left -= steps - place
                            seen.add(nodes)
                            trial = yield from mover.run(nodes, best)
                            if not nearer(trial.error, best.error, objective):
                                break
                            best, moved, improved = trial, True, True
                            nodes = _moved(best.nodes, place, way)
    return best


def _moved(nodes: tuple[int, ...], place: int, way: int) -> tuple[int, ...] | None:
    """`nodes` with one of them moved, None where it would meet a neighbour or the grid's end."""
    to = nodes[place] + way
    low = nodes[place - 1] + 1 if place else 0
    return (*nodes[:place], to, *nodes[place + 1 :]) if low <= to < nodes[place + 1] else None


def scales(
    first: float,
    scale: float,
    t: Tensor,
    solver: solvers.Solver,
    noise: Tensor,
    states: Tensor | None,
    *,
    ranks: Ranks = ALONE,
) -> Callable[[int], float]:
    """What the noise is multiplied with on a path from a node: `scale` at the flow time `first`; elsewhere in
    proportion to the time, or with fitted coefficients what comes nearest to the teacher's states there."""
    unit = noise.flatten(1)

    def scale_at(node: int) -> float:
        here = float(t[node])
        if here == first or states is None or not isinstance(solver, solvers.Fitted):
            return scale if here == first else scale * here / first
        return float(gain_of(unit, states[:, node], joint=True, ranks=ranks))

    return scale_at
