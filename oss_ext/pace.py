"""How many inputs at a time a network is fastest with, found while it works."""

from __future__ import annotations

import logging
import time

import torch

GAIN = 0.05
"""How much faster twice the inputs must be, as a share of the time of one."""
FIRST = 4
_LOG = logging.getLogger("oss_ext")


class Pace:
    """Sizes are tried on the search's own batches, so that no evaluation is spent on it: 4 inputs, 8, 16, ..., two
    batches each, of which the second counts, until twice as many are no faster or do not fit into memory.

    size: of the next batch. A batch that is smaller, because no more was asked for, says nothing.
    """

    def __init__(self) -> None:
        self.size = FIRST
        self._best, self._best_time = FIRST, float("inf")
        self._seen = 0  # batches of this size
        self._begun = 0.0
        self.settled = False

    def begin(self, device: torch.device) -> None:
        """Before a batch."""
        if not self.settled:
            self._begun = _now(device)

    def end(self, inputs: int, device: torch.device) -> None:
        """After it."""
        if self.settled or inputs != self.size:
            return
        self._seen += 1
        if self._seen < 2:
            return
        spent = (_now(device) - self._begun) / inputs
        if spent > (1 - GAIN) * self._best_time:
            self._settle(self._best if self._best_time <= spent else self.size)
            return
        self._best, self._best_time = self.size, spent
        self.size, self._seen = 2 * self.size, 0

    def shrink(self, inputs: int) -> bool:
        """A batch of so many did not fit: False where it was the least possible."""
        if inputs == 1:
            return False
        self._settle(min(self._best, self.size // 2) if inputs == self.size else max(1, inputs // 2))
        torch.cuda.empty_cache()
        return True

    def _settle(self, size: int) -> None:
        self.size, self.settled = max(1, size), True
        _LOG.info("batch_size: %d inputs a batch", self.size)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
