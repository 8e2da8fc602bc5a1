"""What a stage of the search costs without our kernels: the same result from plain torch, written from the formulae.

Each takes x, v, y [B, M, D] and the flow times t [M], and returns the joint (backpointers [M], states [B, M, D])."""

from __future__ import annotations

import torch
from torch import Tensor


def _pick(total: Tensor, x: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Winners of a joint cost [M, M] and their states."""
    pointers = total.argmin(0)
    step = (t - t[pointers]).to(x.dtype)
    return pointers, torch.addcmul(x[:, pointers], v[:, pointers], step[None, :, None])


def source_loop(x: Tensor, v: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The published search's loop, batched over samples: one source at a time against its targets, the best kept."""
    nodes = x.shape[1]
    best = torch.full((nodes,), float("inf"), device=x.device)
    pointers = torch.zeros(nodes, dtype=torch.int64, device=x.device)
    states = torch.zeros_like(x)
    for i in range(nodes - 1):
        step = (t[i + 1 :] - t[i]).to(x.dtype)
        candidate = x[:, i, None] + step[None, :, None] * v[:, i, None]
        cost = (candidate - y[:, i + 1 :]).square_().mean(2).sum(0)
        better = cost < best[i + 1 :]
        best[i + 1 :] = torch.where(better, cost, best[i + 1 :])
        pointers[i + 1 :] = torch.where(better, i, pointers[i + 1 :])
        states[:, i + 1 :] = torch.where(better[None, :, None], candidate, states[:, i + 1 :])
    return pointers, states


def gram_form(x: Tensor, v: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """|x_i + h v_i - y_j|^2 multiplied out into matrix products: fast on tensor cores, but small costs cancel."""
    nodes = x.shape[1]
    step = (t[None, :] - t[:, None]).to(x.dtype)
    y_t = y.transpose(1, 2)
    xy, vy = torch.bmm(x, y_t), torch.bmm(v, y_t)
    xx, vv, yy, xv = x.square().sum(2), v.square().sum(2), y.square().sum(2), (x * v).sum(2)
    cost = xx[:, :, None] + yy[:, None, :] - 2 * xy
    cost += step * (2 * xv[:, :, None] - 2 * vy) + step.square() * vv[:, :, None]
    total = cost.sum(0) / x.shape[2]
    lower = torch.ones(nodes, nodes, dtype=torch.bool, device=x.device).tril()
    return _pick(total.masked_fill(lower, float("inf")), x, v, t)


def broadcast(x: Tensor, v: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """All sources against one target at a time, in whole-tensor operations."""
    nodes = x.shape[1]
    total = torch.full((nodes, nodes), float("inf"), device=x.device)
    for j in range(1, nodes):
        step = (t[j] - t[:j]).to(x.dtype)
        off = torch.addcmul(x[:, :j] - y[:, j, None], v[:, :j], step[None, :, None])
        total[:j, j] = torch.linalg.vector_norm(off, dim=2).square_().sum(0)
    return _pick(total / x.shape[2], x, v, t)
