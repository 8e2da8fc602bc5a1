"""A Denoiser that counts what it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from oss_ext.models import Denoiser


class Counting:
    """Passes everything on to `model`. evaluations: network inputs so far; calls: (n, t of each)."""

    def __init__(self, model: Denoiser) -> None:
        self.model = model
        self.evaluations = 0
        self.calls: list[list[float]] = []

    def velocity(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        self.evaluations += len(x)
        self.calls.append(t.tolist())
        return self.model.velocity(x, t, cond)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)
