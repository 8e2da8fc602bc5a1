"""Copies of states between a GPU and host memory, made while the host goes on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def is_pinned(x: Tensor) -> bool:
    """Whether a GPU copies from and to these numbers in host memory by itself, while the host goes on."""
    return x.device.type == "cpu" and torch.cuda.is_initialized() and x.is_pinned()


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """Uninitialised, in the dtype of `like` and where that is: pinned too where it is and where that can be had."""
    if is_pinned(like):
        try:
            return _pinned(shape, like.dtype)
        except RuntimeError as error:
            warnings.warn(not_pinned(torch.Size(shape).numel() * like.element_size(), str(error)), stacklevel=2)
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def not_pinned(size: int, reason: str) -> str:
    return (
        f"store: {size / 2**30:.3g} GiB of states are kept in host memory that is not pinned, whose copies the GPU and "
        f"the host wait for; the results are the same ({reason.splitlines()[0]})"
    )


def _pinned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, pin_memory=True)


class Copies:
    """Copies that are queued behind the work that makes their numbers. Until `wait` has returned, the host may neither
    read what they write nor write what they read."""

    def __init__(self) -> None:
        self._streams: set[torch.cuda.Stream] = set()

    def copy(self, to: Tensor, source: Tensor) -> None:
        """source: of the shape of `to`. Other dtypes are converted on the GPU, where one of the two is."""
        if to.device == source.device:
            to.copy_(source)
            return
        gpu = to.device if to.device.type == "cuda" else source.device
        if source.device == gpu:
            source = source.to(to.dtype).contiguous()
        elif source.dtype != to.dtype:
            to.copy_(self.at(source, gpu))
            return
        if to.ndim > 1 and not (to.is_contiguous() and source.is_contiguous()):
            for row, its in zip(to, source, strict=True):  # as a whole it would be packed in pageable memory first
                self.copy(row, its)
            return
        alone = is_pinned(source if to.device == gpu else to)
        to.copy_(source, non_blocking=alone)
        if alone:
            self._streams.add(torch.cuda.current_stream(gpu))

    def at(self, source: Tensor, device: torch.device) -> Tensor:
        """The numbers on `device`; `source` itself where it is there."""
        if source.device == device:
            return source
        found = torch.empty(source.shape, dtype=source.dtype, device=device)
        self.copy(found, source)
        return found

    def wait(self) -> None:
        """Until all of them have ended."""
        while self._streams:
            self._streams.pop().synchronize()


def rectangles(begin: int, end: int, width: int) -> Iterator[tuple[slice, slice, slice]]:
    """Cells begin..end - 1 of a table with rows of `width`, read row by row, as at most three rectangles: which of the
    cells, counted from `begin`; rows; columns."""
    at = begin
    while at < end:
        row, column = divmod(at, width)
        if column or end - at < width:
            rows, count = 1, min(width - column, end - at)
        else:
            rows = (end - at) // width
            count = rows * width
        yield (
            slice(at - begin, at - begin + count),
            slice(row, row + rows),
            slice(column, column + count // rows),
        )
        at += count
