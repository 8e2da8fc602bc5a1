"""Thin wrappers of the compiled kernels: the only user of `oss_ext._C` besides `build`.

Tensors decide where a kernel runs: CPU tensors on `torch.get_num_threads()` threads, CUDA tensors on the current stream
of their device. Every result is bitwise the same from run to run. Shapes: B samples, M = N + 1 grid nodes, D numbers a
sample, P basis vectors a node. "Accumulate dtype" is float64 for float64 inputs and float32 for the others.

Wrong input raises ValueError or TypeError that names the argument, what came and what was wanted; a CUDA call that
cannot run (no driver, no GPU, a CPU-only build) raises RuntimeError that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from oss_ext.build import _C

__all__ = [
    "MAX_BASIS",
    "advance",
    "best_step",
    "can_best_step",
    "gram",
    "min_plus",
    "min_reduce",
    "pairwise_cost",
    "summed_bounds",
]

MAX_BASIS: int = _C.MAX_BASIS
"""Most vectors a basis may hold: a node's state, its model output and four earlier predictions."""


LONGEST_SUMMED = 64
"""Joint costs of longer rows are a sample's each."""


def _launch(device: torch.device, samples: int | None = None) -> _C.Launch:
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    more = () if samples is None else (samples,)
    return _C.Launch(
        torch.get_num_threads(), stream, lambda size: torch.empty(size, dtype=torch.uint8, device=device), *more
    )


def _accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _first(basis: Sequence[Tensor]) -> Tensor:
    if isinstance(basis, Tensor) or not isinstance(basis, Sequence) or not basis:
        came = f"a tensor of shape {list(basis.shape)}" if isinstance(basis, Tensor) else repr(basis)
        raise TypeError(f"basis: got {came}, wanted a sequence of 1 to {MAX_BASIS} tensors [batch, nodes, dim]")
    first = basis[0]
    if not isinstance(first, Tensor):
        raise TypeError(f"basis[0]: got {type(first).__name__}, wanted a torch.Tensor")
    if first.dim() != 3:
        raise ValueError(f"basis[0]: got shape {list(first.shape)}, wanted [batch, nodes, dim]")
    return first


def _floating(name: str, tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """`tensor` in `dtype`, contiguous: for the small arguments, where a copy costs nothing."""
    if tensor is None:
        return None
    if not isinstance(tensor, Tensor) or not tensor.dtype.is_floating_point:
        came = f"dtype {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name}: got {came}, wanted a floating-point tensor")
    return tensor.to(dtype).contiguous()


def _sources(sources: tuple[int, int] | None, nodes: int) -> tuple[int, int]:
    return (0, nodes) if sources is None else (int(sources[0]), int(sources[1]))


def pairwise_cost(
    basis: Sequence[Tensor],
    coefficients: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    target_weight: Tensor | None = None,
    sources: tuple[int, int] | None = None,
    joint: bool = False,
    samples: int | None = None,
) -> Tensor:
    """Distance of every candidate step i -> j to the teacher's state at j (OSS, arXiv 2503.21774, Algorithm 1).

    `cost[b, i, j] = target_weight_j * mean_d weight_d (sum_p C[b, i, j, p] u_p[b, i, d] - target[b, j, d])^2` for i < j
    and i in `sources`; +inf elsewhere. The N x N x D candidates are never stored.

    Args:
        basis: P = 1..`MAX_BASIS` tensors [B, M, D] of one dtype (float32, bfloat16, float16 or float64): the vectors
            u_p(i) of node i. The last dimension is contiguous, the other strides are free.
        coefficients: [M, M, P], shared by the batch, or [B, M, M, P]; cast to the accumulate dtype.
        target: [B, M, D], the dtype of the basis: the teacher's states.
        weight: [D], or None for ones.
        target_weight: [M], or None for ones.
        sources: half-open range of source nodes to compute; None for all.
        joint: sum the costs over groups of neighbouring samples, for `min_reduce(cost, joint=True)`, which adds the
            groups: much less to write and to read where D is small.
        samples: of how many these are a part: sums over a row are then cut as for all of them, so that a sample's cost
            has the same bits in every part, with `joint` for D > `LONGEST_SUMMED`. None: these are all.

    Returns:
        [B, M, M] in the accumulate dtype. joint: [G, M, M] with 1 <= G <= B, chosen for speed: it depends on sizes,
        dtype, `sources` and the device. Few groups where D is small; G = B for D > `LONGEST_SUMMED` (on CUDA for
        D > 60, float64: 28), where the costs are little beside the rows. A cost that is not finite makes its group's
        sum so.
    """
    first = _first(basis)
    nodes, accumulate = first.shape[1], _accumulate_dtype(first.dtype)
    cost: Tensor = _C.pairwise_cost(
        list(basis),
        _floating("coefficients", coefficients, accumulate),
        target,
        _floating("weight", weight, accumulate),
        _floating("target_weight", target_weight, accumulate),
        *_sources(sources, nodes),
        joint,
        lambda parts: torch.empty((parts, nodes, nodes), dtype=accumulate, device=first.device),
        _launch(first.device, None if samples == first.shape[0] else samples),
    )
    return cost


def min_reduce(cost: Tensor, *, joint: bool = False) -> tuple[Tensor, Tensor]:
    """Best source of every target: `values[j] = min_i cost[i, j]` and its argmin.

    Only finite candidates count; among equals the smallest i wins (the noisiest source, the longest step); a target
    without a finite candidate has value +inf and backpointer -1.

    Args:
        cost: [B, S, T], float32 or float64, last dimension contiguous.
        joint: sum the costs over the samples (in float64, in their order) before the minimum.

    Returns:
        values float64 and backpointers int32, both [B, T]; [T] if joint.
    """
    if not isinstance(cost, Tensor):
        raise TypeError(f"cost: got {type(cost).__name__}, wanted a torch.Tensor")
    if cost.dim() != 3:
        raise ValueError(f"cost: got shape {list(cost.shape)}, wanted [batch, sources, targets]")
    shape = cost.shape[2:] if joint else (cost.shape[0], cost.shape[2])
    values = torch.empty(shape, dtype=torch.float64, device=cost.device)
    backpointers = torch.empty(shape, dtype=torch.int32, device=cost.device)
    _C.min_reduce(cost, joint, values, backpointers, _launch(cost.device))
    return values, backpointers


def advance(
    basis: Sequence[Tensor], coefficients: Tensor, backpointers: Tensor, *, out: Tensor | None = None
) -> Tensor:
    """States of the winning steps: `out[b, j] = sum_p C[b, i, j, p] u_p[b, i]` with i = backpointers[b, j].

    Args:
        basis, coefficients: as for `pairwise_cost`.
        backpointers: int32 [M], shared by the batch, or [B, M]; -1 for an unreached target.
        out: contiguous [B, M, D] in the dtype of the basis, to be written and returned; None: a new tensor.

    Returns:
        [B, M, D] in the dtype of the basis; the rows of unreached targets are NaN.
    """
    first = _first(basis)
    if out is None:
        out = torch.empty(first.shape, dtype=first.dtype, device=first.device)
    _C.advance(
        list(basis),
        _floating("coefficients", coefficients, _accumulate_dtype(first.dtype)),
        backpointers,
        out,
        _launch(first.device),
    )
    return out


def can_best_step(
    basis: Sequence[Tensor],
    coefficients: Tensor,
    target: Tensor,
    *,
    sources: tuple[int, int] | None = None,
    joint: bool = False,
) -> bool:
    """Whether `best_step` takes these: not on the CPU, float64, more than two basis vectors or 4096 nodes, rows that
    are not made of whole aligned 16 bytes, coefficients of each sample's own with `joint`, and GPUs of little shared
    memory."""
    first = _first(basis)
    if first.device.type != "cuda":
        return False
    floating = _floating("coefficients", coefficients, _accumulate_dtype(first.dtype))
    can: bool = _C.can_best_step(list(basis), floating, target, *_sources(sources, first.shape[1]), joint)
    return can


def best_step(
    basis: Sequence[Tensor],
    coefficients: Tensor,
    target: Tensor,
    *,
    place: Tensor | None = None,
    sources: tuple[int, int] | None = None,
    joint: bool = False,
    out: Tensor | None = None,
    exchange: Callable[[str, Tensor, int], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """What `pairwise_cost`, `min_reduce` and `advance` find, for little more than the price of reading the rows twice:
    on a GPU, tensor cores bound all costs, and only those that may be the least are computed, in float64.

    The bounds are proven (csrc/include/oss_ext/cuda/screen_bound.cuh), so that the backpointers are those of exact
    costs. They are close, and this is fast, where the coefficients of a step are affine in `place`, as Euler's are.

    Args:
        basis, coefficients, target, sources: as for `pairwise_cost`.
        place: float64 [M], where along the trajectory the nodes are, such as their flow times; None: evenly spaced. Any
            numbers give the same result.
        joint: the samples share one choice, and `coefficients` are shared too.
        out: as for `advance`.
        exchange: for samples that are shared among processes. It is called twice, as exchange(what, rows, size) with
            uint8 rows of `size` bytes each, and returns those of all processes in their order: "bounds", where rows
            may be summed first (`summed_bounds`), and "exact", a row a sample.

    Returns:
        (values, backpointers, states) as from `min_reduce` and `advance`; None unless `can_best_step`.
    """
    first = _first(basis)
    batch, nodes, _ = first.shape
    if first.device.type != "cuda":
        return None
    if place is None:
        place = torch.linspace(1, 0, nodes, dtype=torch.float64, device=first.device)
    if out is None:
        out = torch.empty(first.shape, dtype=first.dtype, device=first.device)
    shape = (nodes,) if joint else (batch, nodes)
    values = torch.empty(shape, dtype=torch.float64, device=first.device)
    backpointers = torch.empty(shape, dtype=torch.int32, device=first.device)
    done = _C.best_step(
        list(basis),
        _floating("coefficients", coefficients, _accumulate_dtype(first.dtype)),
        target,
        _floating("place", place, torch.float64),
        *_sources(sources, nodes),
        joint,
        values,
        backpointers,
        out,
        exchange,
        _launch(first.device),
    )
    return (values, backpointers, out) if done else None


def summed_bounds(rows: Tensor, size: int) -> Tensor:
    """One row [size] of the rows that `best_step` hands to exchange("bounds", rows, size): the least and the most of a
    sum are the sums of the least and of the most, here widened by what rounding to float32 may take."""
    pairs = rows.view(torch.float32).view(-1, size // 8, 2).sum(0, dtype=torch.float64)
    slack = torch.tensor([1 - 2.0**-22, 1 + 2.0**-22], dtype=torch.float64, device=rows.device)
    return (pairs * slack).float().view(torch.uint8).flatten()


def gram(
    basis: Sequence[Tensor],
    target: Tensor,
    *,
    weight: Tensor | None = None,
    sources: tuple[int, int] | None = None,
    samples: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Inner products that least-squares coefficients need, summed in float64 whatever the input.

    `gram[b, i, p, q] = sum_d weight_d u_p u_q`, and `moment[b, i, j, p] = sum_d weight_d u_p(i) (target(j) - u_0(i))`
    for i < j; 0 elsewhere and outside `sources`.

    Args:
        basis, target, sources, samples: as for `pairwise_cost`.
        weight: [D], or None for ones.

    Returns:
        gram [B, M, P, P] and moment [B, M, M, P], float64.
    """
    first = _first(basis)
    batch, nodes, _ = first.shape
    count = len(basis)
    products = torch.empty((batch, nodes, count, count), dtype=torch.float64, device=first.device)
    moment = torch.empty((batch, nodes, nodes, count), dtype=torch.float64, device=first.device)
    _C.gram(
        list(basis),
        target,
        _floating("weight", weight, torch.float64),
        *_sources(sources, nodes),
        products,
        moment,
        _launch(first.device, None if samples == batch else samples),
    )
    return products, moment


def min_plus(
    cost: Tensor, steps: int, *, initial: Tensor | None = None, discount: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Shortest paths of exactly k = 1..steps edges over additive costs, as GITS (arXiv 2405.11326) needs them.

    `V_0 = initial; V_k[j] = min_{i < j} cost[i, j] + discount * V_{k-1}[i]`, with the tie and NaN rule of `min_reduce`.

    Args:
        cost: [B, M, M] or [M, M], float32 or float64; entries with j <= i are not read.
        steps: K >= 1.
        initial: float64 [M]; None: 0 at node 0, +inf elsewhere (every path starts at node 0).
        discount: factor on the value of the path so far (GITS calls it the coefficient; 1: plain shortest path).

    Returns:
        values float64 and backpointers int32, [K, B, M], or [K, M] for a cost of [M, M].
    """
    if not isinstance(cost, Tensor):
        raise TypeError(f"cost: got {type(cost).__name__}, wanted a torch.Tensor")
    if cost.dim() not in (2, 3) or cost.shape[-1] != cost.shape[-2] or cost.shape[-1] < 1:
        raise ValueError(
            f"cost: got shape {list(cost.shape)}, wanted [nodes, nodes] or [batch, nodes, nodes], nodes >= 1"
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: got {steps!r}, wanted an integer >= 1")
    batched = cost if cost.dim() == 3 else cost.unsqueeze(0)
    batch, nodes, _ = batched.shape
    if initial is None:
        initial = torch.full((nodes,), float("inf"), dtype=torch.float64, device=cost.device)
        initial[0] = 0.0
    values = torch.empty((steps, batch, nodes), dtype=torch.float64, device=cost.device)
    backpointers = torch.empty((steps, batch, nodes), dtype=torch.int32, device=cost.device)
    _C.min_plus(
        batched,
        steps,
        _floating("initial", initial, torch.float64),
        float(discount),
        values,
        backpointers,
        _launch(cost.device),
    )
    return (values, backpointers) if cost.dim() == 3 else (values[:, 0], backpointers[:, 0])
