"""Counts model evaluations as they are made: a tqdm bar (evaluations left, time left), a callback, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm import tqdm

ProgressCallback = Callable[[int, int], None]
"""callback(evaluations made, evaluations in all), after every batch."""


def check_progress(progress: Any) -> bool | ProgressCallback:
    """Raises TypeError unless `progress` is a bool or callable."""
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(f"progress: got {type(progress).__name__}, wanted True, False or a callback (made, in all)")
    return progress


class Counter:
    """`made` evaluations of `total`, shown as `progress` says. A context manager: leaving it closes the bar."""

    def __init__(self, total: int, progress: bool | ProgressCallback, description: str) -> None:
        self.total, self.made = total, 0
        self._callback = None if isinstance(progress, bool) else progress
        self._bar = tqdm(total=total, desc=description, unit="eval", smoothing=0.05) if progress is True else None

    def add(self, evaluations: int) -> None:
        self.made += evaluations
        if self._bar is not None:
            self._bar.update(evaluations)
            self._bar.set_postfix_str(f"{self.total - self.made} left", refresh=False)
        if self._callback is not None:
            self._callback(self.made, self.total)

    def finish(self) -> None:
        """Nothing more will be made: the total, where it was only a bound, becomes what was made."""
        self.total = self.made
        if self._bar is not None:
            self._bar.total = self.made
        self.add(0)

    def __enter__(self) -> Counter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
