"""Plain torch oracle of `oss_ext.kernels`: the same functions, written to be obviously right, computed in float64.

Shares no code with the kernels; imported by tests and benchmarks only. Loops over sources, so that no tensor is larger
than the inputs. A basis is a sequence of P tensors [B, M, D] (B samples, M nodes, D numbers a node).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

UNREACHED = -1


def _accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _per_sample(coefficients: Tensor, batch: int) -> Tensor:
    """[B, M, M, P] from shared [M, M, P] or from [B, M, M, P]."""
    return coefficients if coefficients.dim() == 4 else coefficients.expand(batch, *coefficients.shape)


def pairwise_cost(
    basis: Sequence[Tensor],
    coefficients: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    target_weight: Tensor | None = None,
    sources: tuple[int, int] | None = None,
    joint: bool = False,
) -> Tensor:
    """cost[b,i,j] = target_weight_j * mean_d w_d (sum_p C_ijp u_p(i) - y_j)^2 for j > i in sources, +inf elsewhere.

    Coefficients and weights are first rounded to the accumulate dtype, as the kernels round them.
    Returns [B, M, M] in that dtype; joint: [1, M, M], summed over the samples ([0, M, M] if there are none).
    """
    batch, nodes, dim = target.shape
    accumulate = _accumulate_dtype(target.dtype)
    begin, end = (0, nodes) if sources is None else sources
    c = _per_sample(coefficients.to(accumulate).double(), batch)
    u = [vector.double() for vector in basis]
    y = target.double()
    w = torch.ones(dim, dtype=torch.float64, device=target.device) if weight is None else weight.to(accumulate).double()
    cost = torch.full((batch, nodes, nodes), math.inf, dtype=torch.float64, device=target.device)
    for b in range(batch):
        for i in range(begin, end):
            later = slice(i + 1, nodes)
            step = sum((c[b, i, later, p, None] * u[p][b, i] for p in range(len(u))), torch.zeros_like(y[b, later]))
            cost[b, i, later] = (w * (step - y[b, later]) ** 2).sum(dim=-1) / dim
            if target_weight is not None:
                cost[b, i, later] *= target_weight.to(accumulate).double()[later]
    if joint:
        cost = cost.sum(dim=0, keepdim=True)[:batch]
    return cost.to(accumulate)


def min_reduce(cost: Tensor, *, joint: bool = False) -> tuple[Tensor, Tensor]:
    """values[b,j] = min_i cost[b,i,j] over finite candidates, and its smallest i; none: +inf and -1.

    joint: the costs are summed over the samples first, in order; the results are [T].
    """
    candidates = cost.double().cpu()
    if joint:
        total = torch.zeros(cost.shape[1:], dtype=torch.float64)
        for sample in candidates:
            total = total + sample
        candidates = total[None]
    batch, sources, targets = candidates.shape
    values = torch.full((batch, targets), math.inf, dtype=torch.float64)
    backpointers = torch.full((batch, targets), UNREACHED, dtype=torch.int32)
    for b in range(batch):
        for j in range(targets):
            column = candidates[b, :, j].tolist()
            for i in range(sources):
                if math.isfinite(column[i]) and column[i] < values[b, j]:
                    values[b, j] = column[i]
                    backpointers[b, j] = i
    if joint:
        values, backpointers = values[0], backpointers[0]
    return values.to(cost.device), backpointers.to(cost.device)


def advance(basis: Sequence[Tensor], coefficients: Tensor, backpointers: Tensor) -> Tensor:
    """out[b,j] = sum_p C[b,i,j,p] u_p[b,i] with i = backpointers[b,j]; NaN where i = -1.

    Returns [B, M, D] in the basis dtype.
    """
    batch, nodes, _ = basis[0].shape
    c = _per_sample(coefficients.to(_accumulate_dtype(basis[0].dtype)).double(), batch)
    chosen = backpointers.expand(batch, nodes).tolist()
    out = torch.full(basis[0].shape, math.nan, dtype=torch.float64, device=basis[0].device)
    for b in range(batch):
        for j in range(nodes):
            i = chosen[b][j]
            if i != UNREACHED:
                out[b, j] = 0.0
                for p, vector in enumerate(basis):
                    out[b, j] += c[b, i, j, p] * vector[b, i].double()
    return out.to(basis[0].dtype)


def gram(
    basis: Sequence[Tensor],
    target: Tensor,
    *,
    weight: Tensor | None = None,
    sources: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted products of the basis with itself, [B, M, P, P], and with y_j - u_0(i), [B, M, M, P]; float64.

    Zero for sources outside the range; the second also for j <= i.
    """
    batch, nodes, dim = target.shape
    begin, end = (0, nodes) if sources is None else sources
    count = len(basis)
    w = torch.ones(dim, dtype=torch.float64, device=target.device) if weight is None else weight.double()
    products = torch.zeros(batch, nodes, count, count, dtype=torch.float64, device=target.device)
    moment = torch.zeros(batch, nodes, nodes, count, dtype=torch.float64, device=target.device)
    for b in range(batch):
        for i in range(begin, end):
            u = [vector[b, i].double() for vector in basis]
            for p in range(count):
                for q in range(count):
                    products[b, i, p, q] = (w * u[p] * u[q]).sum()
                moment[b, i, i + 1 :, p] = (w * u[p] * (target[b, i + 1 :].double() - u[0])).sum(dim=-1)
    return products, moment


def min_plus(
    cost: Tensor, steps: int, *, initial: Tensor | None = None, discount: float = 1.0
) -> tuple[Tensor, Tensor]:
    """V_k[j] = min_{i<j} cost[i,j] + discount V_{k-1}[i] and its smallest argmin, k = 1..steps.

    Only finite candidates count, as in min_reduce. Returns [K, B, M], or [K, M] for a cost of [M, M].
    """
    batched = cost.dim() == 3
    costs = (cost if batched else cost[None]).double().tolist()
    nodes = cost.shape[-1]
    start = [0.0] + [math.inf] * (nodes - 1) if initial is None else initial.double().tolist()
    values = torch.full((steps, len(costs), nodes), math.inf, dtype=torch.float64)
    backpointers = torch.full((steps, len(costs), nodes), UNREACHED, dtype=torch.int32)
    for b, edge in enumerate(costs):
        before = start
        for k in range(steps):
            after = [math.inf] * nodes
            for j in range(nodes):
                for i in range(j):
                    candidate = edge[i][j] + discount * before[i]
                    if math.isfinite(candidate) and candidate < after[j]:
                        after[j] = candidate
                        backpointers[k, b, j] = i
            values[k, b] = torch.tensor(after, dtype=torch.float64)
            before = after
    if not batched:
        values, backpointers = values[:, 0], backpointers[:, 0]
    return values.to(cost.device), backpointers.to(cost.device)
