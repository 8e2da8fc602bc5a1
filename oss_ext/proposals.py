"""What steps a solver offers at one stage: the coefficients of every step i -> j, and how far each lands from the
teacher."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from oss_ext import kernels, solvers
from oss_ext.fitting import cross_validated, least_squares
from oss_ext.ranks import ALONE, Ranks

CHUNK = 2**23  # numbers of a [B, M, M, P] tensor held at once
FOLDS = 4
LONE_RIDGE = 1e-3  # where there is one sample, hence nothing to validate on


class Proposal(NamedTuple):
    """coefficients: float64 [M, M, P], or [B, M, M, P] where every sample has its own. cost: [B, M, M], +inf for steps
    that are not on offer; joint: parts [G, M, M] to be summed."""

    coefficients: Tensor
    cost: Tensor


def propose(
    solver: solvers.Solver,
    basis: list[Tensor],
    target: Tensor,
    past: Tensor,
    times: Tensor,
    sources: tuple[int, int],
    joint: bool,
    weight: Tensor | None = None,
    *,
    samples: int | None = None,
    ranks: Ranks = ALONE,
) -> Proposal:
    """basis: P tensors [B, M, D]. target: [B, M, D], the teacher's states. past: float64 [M, P - 2] or [B, M, P - 2],
    the flow times of the earlier evaluations in each node's basis, NaN where there are fewer. times: float64 [M].
    sources: the half-open range of nodes that steps leave from. joint: the samples share one choice. weight: [D], of
    the numbers of a state; None: all 1. samples: of how many these are a part, for one choice a sample. ranks: who has
    the other samples of a joint choice; costs are of all."""
    if joint:
        basis, target, ranks = _with_others(basis, target, ranks)
        samples = ranks.count(len(target))
    history = torch.cat([times.expand(past.shape[:-1])[..., None], past], -1).unsqueeze(-2)

    def cost_of(coefficients: Tensor) -> Tensor:
        cost = kernels.pairwise_cost(
            basis, coefficients, target, weight=weight, sources=sources, joint=joint, samples=samples
        )
        return ranks.gather(cost) if joint else cost

    if isinstance(solver, solvers.Mixed):
        offers = [Proposal(each, cost_of(each)) for each in solver.choices(history, times)]
        return _nearest(offers, joint)
    coefficients = solver.coefficients(history, times)
    if isinstance(solver, solvers.Fitted):
        coefficients = fit(basis, target, coefficients, sources, solver.ridge, weight, ranks=ranks)
    return Proposal(coefficients, cost_of(coefficients))


class Nearest(NamedTuple):
    """values: float64 [M] (joint: summed over the samples) or [B, M]; backpointers: int32, alike; of the nearest step
    into every node. coefficients: of every step, as in `Proposal`."""

    values: Tensor
    backpointers: Tensor
    coefficients: Tensor


def nearest(
    solver: solvers.Solver,
    basis: list[Tensor],
    target: Tensor,
    past: Tensor,
    times: Tensor,
    sources: tuple[int, int],
    joint: bool,
    weight: Tensor | None = None,
    *,
    out: Tensor,
    samples: int | None = None,
    ranks: Ranks = ALONE,
) -> Nearest:
    """The steps that land nearest to the teacher, and where: `out` [B, M, D] is written. The other arguments are those
    of `propose`."""
    if weight is None and isinstance(solver, solvers.Euler):
        found = _nearest_even(solver, basis, target, times, sources, joint, out, ranks)
        if found is not None:
            return found
    offer = propose(solver, basis, target, past, times, sources, joint, weight, samples=samples, ranks=ranks)
    values, backpointers = kernels.min_reduce(offer.cost, joint=joint)
    kernels.advance(basis, offer.coefficients, backpointers, out=out)
    return Nearest(values, backpointers, offer.coefficients)


def _nearest_even(
    solver: solvers.Euler,
    basis: list[Tensor],
    target: Tensor,
    times: Tensor,
    sources: tuple[int, int],
    joint: bool,
    out: Tensor,
    ranks: Ranks,
) -> Nearest | None:
    """Of steps that move evenly with the flow time: on GPUs without the cost of every pair. None where that cannot be,
    here or for another rank."""
    coefficients = solver.coefficients(times[:, None, None], times)
    here, sharing = ranks, ALONE  # every sample has its own choice
    if joint:
        basis, target, sharing = _with_others(basis, target, ranks)
    states = out if target.shape == out.shape else torch.empty_like(target)
    can = kernels.can_best_step(basis, coefficients, target, sources=sources, joint=joint)
    if not sharing.alone and out.device.type == "cuda":
        can = sharing.most(0.0 if can else 1.0) == 0.0
    if not can:
        return None

    def exchange(what: str, rows: Tensor, size: int) -> Tensor:
        if what == "bounds":
            return sharing.each(kernels.summed_bounds(rows, size)).flatten()
        return sharing.gather(rows.view(-1, size)).flatten()

    found = kernels.best_step(
        basis,
        coefficients,
        target,
        place=times,
        sources=sources,
        joint=joint,
        out=states,
        exchange=None if sharing.alone else exchange,
    )
    assert found is not None  # can_best_step
    if states is not out:
        out.copy_(here.mine(states))
    return Nearest(found[0], found[1], coefficients)


def _nearest(offers: list[Proposal], joint: bool) -> Proposal:
    """The offer of least cost for each step; the earlier one wins ties."""

    def whole(offer: Proposal) -> Tensor:
        return offer.cost.sum(0, dtype=torch.float64) if joint else offer.cost

    best, *others = offers
    least = whole(best)
    for other in others:
        cost = whole(other)
        better = cost < least
        least = torch.where(better, cost, least)
        best = Proposal(
            torch.where(better[..., None], other.coefficients, best.coefficients),
            torch.where(better, other.cost, best.cost),
        )
    return best


def fit(
    basis: list[Tensor],
    target: Tensor,
    near: Tensor,
    sources: tuple[int, int],
    ridge: float | None,
    weight: Tensor | None = None,
    *,
    ranks: Ranks = ALONE,
) -> Tensor:
    """float64 [M, M, P]: the least-squares coefficients of every step, over all samples; elsewhere `near`.

    ridge: None: cross-validated. The moments come a few samples at a time. The other arguments are those of `propose`.
    """
    basis, target, ranks = _with_others(basis, target, ranks)
    (here, count), width = basis[0].shape[:2], len(basis)
    batch = ranks.count(here)
    folds = min(batch, FOLDS) if ridge is None else 1
    rows = -(-max(1, CHUNK // (count * count * width)) // folds) * folds  # whole rounds of the folds
    gram = torch.zeros(folds, count, width, width, dtype=torch.float64)
    moment = torch.zeros(folds, count, count, width, dtype=torch.float64)
    for low in range(0, batch, rows):
        part, holders = ranks.part(low, low + rows)
        products, moments = kernels.gram(
            [vectors[part] for vectors in basis],
            target[part],
            weight=weight,
            sources=sources,
            samples=min(rows, batch),
        )
        products, moments = holders.gather(products), holders.gather(moments)
        for fold in range(folds):  # sample b is in fold b % folds
            gram[fold] += products[fold::folds].sum(0).cpu()
            moment[fold] += moments[fold::folds].sum(0).cpu()
    begin, end = sources
    fitted = near.cpu().clone()
    steps = fitted[begin:end]
    gram, moment = gram[:, begin:end], moment[:, begin:end]
    if folds > 1:
        fitted[begin:end] = cross_validated(gram, moment, steps)[0]
    else:
        fitted[begin:end] = least_squares(gram[0], moment[0], steps, ridge=LONE_RIDGE if ridge is None else ridge)
    return fitted.to(target.device)


def _with_others(basis: list[Tensor], target: Tensor, ranks: Ranks) -> tuple[list[Tensor], Tensor, Ranks]:
    """Short rows are less than what is computed from them, and their costs are summed over neighbouring samples on the
    way: every rank takes those of all."""
    if ranks.alone or target.shape[2] > kernels.LONGEST_SUMMED:
        return basis, target, ranks
    return [ranks.gather(vectors) for vectors in basis], ranks.gather(target), ALONE
