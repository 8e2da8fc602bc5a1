"""Runs a Denoiser over (sample, node) pairs in batches, and checks what comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from oss_ext.models import Denoiser
from oss_ext.pace import Pace
from oss_ext.transfer import Copies, empty, rectangles
from oss_ext.validate import choice, whole_number


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """What states are kept in beside noise of `dtype`: float32 for half types, else `dtype`."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def pick_pace(batch_size: int | str | None, dim: int) -> int | Pace:
    """`pick_batch_size`, and "fastest"."""
    if isinstance(batch_size, str):
        choice("batch_size", batch_size, ("fastest",))
        return Pace()
    return pick_batch_size(batch_size, dim)


def pick_batch_size(batch_size: int | None, dim: int) -> int:
    """`batch_size`, checked; where it is None, 2^20 numbers in all, which is 1 to 256 inputs of `dim` numbers."""
    if batch_size is None:
        return max(1, min(256, 2**20 // dim))
    return whole_number("batch_size", batch_size, least=1)


def evaluate(
    model: Denoiser,
    states: Tensor,
    t: Tensor,
    *,
    cond: Mapping[str, Tensor],
    dtype: torch.dtype,
    batch_size: int | Pace,
    labels: Sequence[int] | None,
    tick: Callable[[int], None],
    first_sample: int = 0,
    device: torch.device | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Velocities [B, m, ...], in the dtype of `states` and where those are.

    states: [B, m, ...], any strides. t: float64 [m], flow times > 0. cond: tensors [B, ...].
    Batches go through the samples node by node; where the model has a true attribute `one_time`, a batch has one flow
    time. dtype: what the network is fed. labels: [m], the node numbers that errors name, None where there are none.
    device: where the network is; None: where the states are, else they go there a batch at a time.
    first_sample: the number of the first sample, for errors. tick: told the evaluations made, after every batch.
    out: what to write them to and to return, [B, m, ...], any strides; None: a new tensor.

    Raises ValueError or TypeError for an output of another shape, dtype or device, and for NaN or inf in one: that
    error names the node, its flow time and the sample, as soon as the whole of `states` has been evaluated.
    """
    batch, nodes = states.shape[:2]
    total = batch * nodes
    device = states.device if device is None else device
    out = empty(states.shape, like=states) if out is None else out
    # Batches are read from a table row by row: a row is a sample, or a node where a batch must have one time.
    one_time = bool(getattr(model, "one_time", False))
    table, into = (states.transpose(0, 1), out.transpose(0, 1)) if one_time else (states, out)
    width = table.shape[1]
    copies = Copies()
    finite = torch.empty(total, dtype=torch.bool, device=device)
    pace = batch_size if isinstance(batch_size, Pace) else None
    begin = 0
    while begin < total:
        size = pace.size if pace is not None else batch_size
        assert isinstance(size, int)
        end = min(begin + size, total)
        if one_time:
            end = min(end, (begin // width + 1) * width)
        pair = torch.arange(begin, end)
        row, column = pair // width, pair % width
        sample, node = (column, row) if one_time else (row, column)
        parts = list(rectangles(begin, end, width))
        if pace is not None:
            pace.begin(device)
        try:
            x = torch.empty(len(pair), *states.shape[2:], dtype=states.dtype, device=device)
            for pairs, rows, columns in parts:
                source = table[rows, columns]
                copies.copy(x[pairs].view(source.shape), source)
            x = x.to(dtype)
            on_device = sample.to(device)
            velocity = model.velocity(x, t[node], {key: value[on_device] for key, value in cond.items()})
        except torch.OutOfMemoryError:
            if pace is None or not pace.shrink(len(pair)):
                raise
            continue
        _check_output(velocity, x)
        finite[begin:end] = _finite_rows(velocity)
        for pairs, rows, columns in parts:
            to = into[rows, columns]
            copies.copy(to, velocity[pairs].reshape(to.shape))
        if pace is not None:
            pace.end(len(pair), device)
        tick(len(pair))
        begin = end
    copies.wait()
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        at, which = (first // width, first % width) if one_time else (first % width, first // width)
        time = f"flow time {float(t[at]):.9g}"
        where = time if labels is None else f"node {labels[at]} ({time})"
        raise ValueError(f"model: returned NaN or inf at {where}, sample {first_sample + which}; wanted finite numbers")
    return out


def _finite_rows(values: Tensor) -> Tensor:
    """bool [n]: no NaN or inf in the row. Both extremes propagate NaN, and cost a tenth of isfinite on every number."""
    rows = values.flatten(1)
    return torch.isfinite(rows.amax(1)) & torch.isfinite(rows.amin(1))


def _check_output(velocity: Tensor, x: Tensor) -> None:
    if not isinstance(velocity, Tensor):
        raise TypeError(f"model: velocity() returned {type(velocity).__name__}, wanted a tensor {list(x.shape)}")
    if velocity.shape != x.shape:
        raise ValueError(f"model: velocity() returned shape {list(velocity.shape)}, wanted {list(x.shape)}")
    if velocity.dtype != x.dtype:
        raise TypeError(f"model: velocity() returned {velocity.dtype}, wanted {x.dtype}, the dtype of the noise")
    if velocity.device != x.device:
        raise ValueError(f"model: velocity() returned a tensor on {velocity.device}, wanted {x.device}")
