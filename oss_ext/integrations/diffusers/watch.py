"""Checks of what is on a GPU without waiting for it: what is wrong is said as soon as it is known."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Pending(NamedTuple):
    holds: Tensor  # bool [] in pinned memory, once `known`
    known: torch.cuda.Event
    error: Callable[[], Exception]


class Watch:
    """Conditions in the order in which they were handed in; the first that does not hold is raised.

    A stalled GPU has nothing queued when it goes on: with a check waited for at every step a search would spend the
    launch of a network's first kernels at every step too.
    """

    def __init__(self) -> None:
        self._pending: deque[_Pending] = deque()

    def expect(self, holds: Tensor, error: Callable[[], Exception]) -> None:
        """holds: bool []. Raises what `error` makes, now (CPU, or an earlier one that is known by now) or later."""
        if holds.device.type != "cuda":
            if not bool(holds):
                raise error()
            return
        with torch.cuda.device(holds.device):
            copy = torch.empty((), dtype=torch.bool, pin_memory=True)
            copy.copy_(holds, non_blocking=True)
            known = torch.cuda.Event()
            known.record()
        self._pending.append(_Pending(copy, known, error))
        while self._pending and self._pending[0].known.query():
            self._next()

    def settle(self) -> None:
        """Waits until all are known."""
        while self._pending:
            self._pending[0].known.synchronize()
            self._next()

    def _next(self) -> None:
        first = self._pending.popleft()
        if not bool(first.holds):
            self._pending.clear()
            raise first.error()


class Handed(NamedTuple):
    """Latents given to a pipeline's loop, and how often they had been written to by then. Inference tensors do not
    count that: of them a copy is kept, and None."""

    latents: Tensor
    writes: int | None

    @staticmethod
    def of(latents: Tensor) -> Handed:
        return Handed(latents.clone(), None) if latents.is_inference() else Handed(latents, latents._version)

    @property
    def overwritten(self) -> bool:
        return self.writes is not None and self.latents._version != self.writes

    def same(self, sample: Tensor) -> bool:
        """Whether the loop surely comes back with them: the very tensor, not overwritten. Looks at no number."""
        return sample is self.latents and not self.overwritten

    def rounding(self, sample: Tensor) -> torch.dtype | None:
        """The dtype that a loop which changes nothing else has rounded them to on the way: their own where it did not;
        None where it changed them."""
        ways = (self.latents.dtype, torch.bfloat16, torch.float16)
        return next((way for way in ways if bool(self.unchanged(sample, way))), None)

    def unchanged(self, sample: Tensor, way: torch.dtype) -> Tensor:
        """bool []: whether `sample` are these latents rounded to `way`."""
        if sample.shape != self.latents.shape or self.overwritten:
            return torch.zeros((), dtype=torch.bool)
        return (self.latents.to(way).to(sample.dtype) == sample).all()


def is_element(value: Any, of: Tensor, index: int | None = None) -> bool:
    """Whether `value` is a view of the tensor's element `index` (None: of any), so that it need not be read."""
    if not isinstance(value, Tensor) or value.untyped_storage().data_ptr() != of.untyped_storage().data_ptr():
        return False
    return index is None or (value.numel() == 1 and value.storage_offset() == of.storage_offset() + index)
