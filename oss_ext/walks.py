"""Runs along one path, one evaluation a step: with given coefficients, or fitting them on the way."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from oss_ext import solvers
from oss_ext.proposals import fit
from oss_ext.ranks import ALONE, Ranks
from oss_ext.teacher import Ask, Teacher
from oss_ext.transfer import empty


def run(
    noise: Tensor,
    t: Tensor,
    coefficients: Tensor,
    carries: solvers.Carries,
    *,
    samples: slice,
    scale: float | None = None,
    nodes: Tensor | None = None,
    first_velocity: Tensor | None = None,
    network_t: Tensor | None = None,
) -> Generator[Ask, Tensor, Tensor]:
    """The final states [B, D] of the path t, float64 [k + 1], from scale * noise (None: t[0]).

    coefficients: float64 [k, P]. samples: which rows of the search's noise these are. nodes: what the asks call the
    path. first_velocity: [B, D], where the first evaluation is known. network_t: float64 [k], the flow times that the
    model is evaluated at; None: t[:-1].
    """
    walk = solvers.Walk(noise.flatten(1) * (float(t[0]) if scale is None else scale), carries, len(coefficients[0]) - 2)
    for step, weights in enumerate(coefficients.tolist()):
        told = t if network_t is None else network_t
        output = yield from _output(walk, noise, told, step, samples, nodes, first_velocity)
        walk.step(output, float(t[step]), weights)
    return walk.state


def fit_along(
    noise: Tensor,
    t: Tensor,
    nodes: Tensor,
    solver: solvers.Fitted,
    teacher: Teacher,
    *,
    samples: slice,
    ranks: Ranks = ALONE,
) -> Generator[Ask, Tensor, Tensor]:
    """float64 [k, P]: coefficients fitted step by step along nodes [k + 1] of the teacher's grid t, from node 0."""
    path = t[nodes]
    walk = solvers.Walk(noise.flatten(1) * float(path[0]), solver.carries, solver.history)
    rows = []
    for step in range(len(path) - 1):
        output = yield from _output(walk, noise, path, step, samples, nodes, teacher.first_velocity)
        rows.append(fit_step(walk, output, path, step, teacher.states[:, nodes[step + 1]], solver, ranks=ranks))
        walk.step(output, float(path[step]), rows[-1].tolist())
    return torch.stack(rows)


def fit_step(
    walk: solvers.Walk,
    output: Tensor,
    path: Tensor,
    step: int,
    target: Tensor,
    solver: solvers.Fitted,
    *,
    weight: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """float64 [2 + history] on the CPU: the coefficients of the step along `path` [k + 1] that `walk` is about to take
    with `output` [B, D], fitted to land at `target` [B, D]. weight: [B], of the samples' squared errors. ranks: who
    has the other samples."""
    size = None if weight is None else weight.sqrt().to(target)[:, None]

    def at_two_nodes(vectors: Tensor) -> Tensor:
        """Statistics are of steps to later nodes: the step is 0 -> 1."""
        return (vectors if size is None else vectors * size)[:, None].expand(-1, 2, -1)

    basis = [at_two_nodes(vectors) for vectors in walk.basis(output)]
    history = solvers.past_times(path, solver.history)[step]
    near = solver.coefficients(history, path[step + 1])[: len(basis)]
    weights = fit(basis, at_two_nodes(target), near.expand(2, 2, -1), (0, 1), solver.ridge, ranks=ranks)[0, 1].cpu()
    return torch.cat([weights, weights.new_zeros(2 + solver.history - len(weights))])


def _output(
    walk: solvers.Walk,
    noise: Tensor,
    t: Tensor,
    step: int,
    samples: slice,
    nodes: Tensor | None,
    first_velocity: Tensor | None,
) -> Generator[Ask, Tensor, Tensor]:
    if step == 0 and first_velocity is not None:
        return first_velocity
    here = slice(step, step + 1)
    state = walk.state.reshape(len(noise), 1, *noise.shape[1:])
    out = empty(state.shape, like=noise)
    ask = Ask(state, t[here], samples, None if nodes is None else nodes[here], out=out)
    return ask.keep((yield ask)).flatten(1)
