"""What the stages of a search hand on: rows of states, and which steps lead into them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Winners(NamedTuple):
    """The best steps into every row: values, backpointers and coefficients as in `stages.Stage`, on the device, and
    their states [B, R, D]. output: [B, R, D], the model's there, where finding the best took them."""

    values: Tensor
    backpointers: Tensor
    coefficients: Tensor | None
    states: Tensor
    output: Tensor | None = None


@dataclass
class Table:
    """The rows that a stage starts from. states, output: [B, R, D]. earlier: the predictions that the solver carries of
    the earlier nodes of each row's path, newest first, alike. past: float64 [R, h] or [B, R, h], their flow times, NaN
    where the path is younger. sources: for every rank the half-open range of nodes that hold a state. answered: the
    output is known."""

    states: Tensor
    output: Tensor
    earlier: list[Tensor]
    past: Tensor
    sources: list[tuple[int, int]]
    answered: bool = False


def neighbours(rows: Tensor, device: torch.device) -> slice | Tensor:
    """An index for ascending rows of a table: a slice, hence a view, where they are neighbours."""
    begin, count = int(rows[0]), len(rows)
    return slice(begin, begin + count) if int(rows[-1]) - begin + 1 == count else rows.to(device)


def rows_of(table: Tensor, source: Tensor) -> Tensor:
    """table[..., source[..., j], :] for every j: table [R, C] or [B, R, C], source [n] or [B, n]."""
    if source.ndim == 1:
        return table[..., source, :]
    if table.ndim == 2:
        return table[source]
    return table.gather(1, source[..., None].expand(-1, -1, table.shape[-1]))


def best_coefficients(coefficients: Tensor, backpointers: Tensor) -> Tensor:
    """[M, P] or [B, M, P]: the coefficients [M, M, P] or [B, M, M, P] of the step into each node."""
    source = backpointers.clamp(min=0).long()[..., None, :, None]
    shape = torch.broadcast_shapes(coefficients.shape[:-3], source.shape[:-3])
    index = source.expand(*shape, 1, source.shape[-2], coefficients.shape[-1])
    return coefficients.expand(*shape, *coefficients.shape[-3:]).gather(-3, index).squeeze(-3)


def check_reached(backpointers: Tensor, nodes: Tensor, budget: int, first: int) -> None:
    """Every node from number `first` on has a path of `budget` steps, unless all its costs overflowed.

    nodes: int64 [M], what errors call the nodes.
    """
    missing = backpointers[..., first:] < 0
    if bool(missing.any()):
        at = missing.nonzero()[0].tolist()
        sample = f", sample {at[0]}" if missing.ndim == 2 else ""
        raise ValueError(
            f"model: no finite cost reaches node {int(nodes[at[-1] + first])} in {budget} steps{sample}: the model's "
            "outputs or the noise are too large for the states' dtype"
        )
