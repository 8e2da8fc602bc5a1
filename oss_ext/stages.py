"""The stages of the dynamic programme: budget k from the states that k - 1 steps reach.

OSS (arXiv 2503.21774), Algorithm 1. Nothing is carried over from one budget to the next but the states, so that walking
back gives the very path that was scored.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from oss_ext import kernels, solvers
from oss_ext.fitting import least_squares
from oss_ext.teacher import Ask, Teacher

_CHUNK = 2**23  # coefficients held at once where every sample has its own


@dataclass(frozen=True)
class Stage:
    """What one budget leaves behind; N + 1 targets, B samples.

    values: float64 [N + 1] (joint: summed over the samples) or [B, N + 1]. backpointers: int32, alike. On the CPU.
    cost: float64 [B] on the CPU, of the best candidate at the clean node. endpoint: [B, D], that candidate.
    coefficients: float64 [N + 1, P] on the CPU, of the best step into each node, where the solver is fitted; else None.
    """

    values: Tensor
    backpointers: Tensor
    cost: Tensor
    endpoint: Tensor
    coefficients: Tensor | None


@dataclass(frozen=True)
class _Winners:
    values: Tensor
    backpointers: Tensor
    states: Tensor
    cost: Tensor
    coefficients: Tensor | None


def run_stages(
    noise: Tensor, t: Tensor, steps: int, solver: solvers.Solver, teacher: Teacher, *, joint: bool, free: bool
) -> Generator[Ask, Tensor, list[Stage]]:
    """Stages 1..steps. Stage k evaluates the nodes that k - 1 steps reach, k - 1..N - 1, and nothing else; stage 1 has
    the teacher's evaluation at node 0, and with `free` evaluates the others at the states t_i * noise.

    noise: [B, *shape], float32 or float64. t: float64 [N + 1] on the CPU.
    """
    shape, last = noise.shape[1:], len(t) - 1
    times = t.to(noise.device)
    states = noise.flatten(1).unsqueeze(1) * times.to(noise.dtype)[:, None] if free else teacher.states
    output = torch.empty_like(teacher.states)
    # What the solver carries of the earlier nodes of each node's path, newest first.
    past_outputs: list[Tensor] = [torch.zeros_like(teacher.states) for _ in range(solver.history)]
    # Times of the evaluations that made each node's history; a sample of its own where the backpointers are its own.
    past_times = torch.full((last + 1, solver.history), torch.nan, dtype=torch.float64, device=noise.device)
    stages = []
    for budget in range(1, steps + 1):
        sources = (budget - 1, last) if budget > 1 or free else (0, 1)
        begin = sources[0]
        if budget == 1:
            output[:, 0] = teacher.first_velocity
            begin = 1
        if begin < sources[1]:
            asked = states[:, begin : sources[1]]
            sent = yield asked.unflatten(2, shape), torch.arange(begin, sources[1])
            output[:, begin : sources[1]] = sent.flatten(2)
        basis = [states, output, *past_outputs]
        won = _winners(basis, times, past_times, teacher.states, solver, sources, joint)
        _check_reached(won.backpointers, budget)
        stages.append(
            Stage(
                won.values.cpu(),
                won.backpointers.cpu(),
                won.cost.double().cpu(),
                won.states[:, last].clone(),
                won.coefficients,
            )
        )
        if solver.history and budget < steps:
            source = won.backpointers.clamp(min=0).long()
            kept = solvers.carried(solver.carries, states, output, times.to(noise.dtype)[:, None])
            past_outputs = [_rows(vectors, source) for vectors in [kept, *past_outputs[:-1]]]
            now = times.expand(source.shape)
            past_times = torch.cat([now.gather(-1, source)[..., None], _rows(past_times, source)[..., :-1]], -1)
        states = won.states
    return stages


def _rows(table: Tensor, source: Tensor) -> Tensor:
    """table[..., source[..., j], :] for every j: table [M, C] or [B, M, C], source [M] or [B, M]."""
    if source.ndim == 1:
        return table[..., source, :]
    if table.ndim == 2:
        return table[source]
    return table.gather(1, source[..., None].expand(-1, -1, table.shape[-1]))


def _winners(
    basis: list[Tensor],
    times: Tensor,
    past_times: Tensor,
    target: Tensor,
    solver: solvers.Solver,
    sources: tuple[int, int],
    joint: bool,
) -> _Winners:
    """Costs, minima and winning states of one stage. Coefficients of samples with paths of their own come in chunks."""
    batch, count = basis[0].shape[:2]
    own = past_times.ndim == 3
    fitted = solver if isinstance(solver, solvers.Fitted) else None
    rows = max(1, _CHUNK // (count * count * len(basis))) if own else batch
    parts = []
    for low in range(0, batch, rows):
        piece = [vectors[low : low + rows] for vectors in basis]
        past = past_times[low : low + rows] if own else past_times
        history = torch.cat([times.expand(past.shape[:-1])[..., None], past], -1)
        coefficients = solver.coefficients(history.unsqueeze(-2), times)
        if fitted:  # joint, hence all samples in one piece
            coefficients = _fit(piece, target, coefficients, sources, fitted.ridge)
        cost = kernels.pairwise_cost(piece, coefficients, target[low : low + rows], sources=sources)
        values, backpointers = kernels.min_reduce(cost, joint=joint)
        states = kernels.advance(piece, coefficients, backpointers)
        source = backpointers.clamp(min=0).long()
        final = source[..., -1].expand(len(cost))
        best = coefficients[source, torch.arange(count, device=source.device)].cpu() if fitted else None
        parts.append(_Winners(values, backpointers, states, cost[:, :, -1].gather(1, final[:, None])[:, 0], best))
    if len(parts) == 1:
        return parts[0]
    return _Winners(
        torch.cat([part.values for part in parts]),
        torch.cat([part.backpointers for part in parts]),
        torch.cat([part.states for part in parts]),
        torch.cat([part.cost for part in parts]),
        None,
    )


def _fit(basis: list[Tensor], target: Tensor, near: Tensor, sources: tuple[int, int], ridge: float) -> Tensor:
    """float64 [M, M, P] of every step, over all samples; the moments of a few samples at a time."""
    batch, count = basis[0].shape[:2]
    rows = max(1, _CHUNK // (count * count * len(basis)))
    gram = torch.zeros(count, len(basis), len(basis), dtype=torch.float64)
    moment = torch.zeros(count, count, len(basis), dtype=torch.float64)
    for low in range(0, batch, rows):
        part = slice(low, low + rows)
        products, moments = kernels.gram([vectors[part] for vectors in basis], target[part], sources=sources)
        gram += products.sum(0).cpu()
        moment += moments.sum(0).cpu()
    return least_squares(gram, moment, near.cpu(), ridge=ridge).to(target.device)


def _check_reached(backpointers: Tensor, budget: int) -> None:
    """Every node from `budget` on has a path of `budget` steps, unless all its costs overflowed."""
    missing = backpointers[..., budget:] < 0
    if bool(missing.any()):
        at = missing.nonzero()[0].tolist()
        sample = f", sample {at[0]}" if missing.ndim == 2 else ""
        raise ValueError(
            f"model: no finite cost reaches node {at[-1] + budget} in {budget} steps{sample}: the model's outputs or "
            "the noise are too large for the states' dtype"
        )
