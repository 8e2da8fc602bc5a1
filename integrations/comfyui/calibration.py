"""Amplitude calibration (OSS, arXiv 2503.21774): what a schedule may do to a state before the network sees it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MODES = ("scale", "affine", "gain")


@dataclass(frozen=True)
class Calibration:
    """mode: "gain": the state times gain[step]. "scale": each sample times the number that brings the distance of its
    two quantiles to high[step] - low[step] (Eq. 13). "affine": times that and shifted, so that both quantiles are met.
    quantiles: two shares. low, high, gain: [k]; those that the mode has no use for are empty."""

    mode: str
    quantiles: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    gain: tuple[float, ...]

    @classmethod
    def of(cls, content: Any, steps: int) -> Calibration:
        """Of the "calibration" of a schedule file. Raises ValueError."""
        known = {"mode", "quantiles", "low", "high", "gain"}
        if not isinstance(content, dict) or not set(content) <= known or content.get("mode") not in MODES:
            raise ValueError(f"calibration: got {content!r}, wanted mode {', '.join(MODES)}: update these nodes")
        lists = {name: tuple(content.get(name) or ()) for name in ("quantiles", "low", "high", "gain")}
        wanted = {"gain": steps} if content["mode"] == "gain" else {"quantiles": 2, "low": steps, "high": steps}
        for name, count in wanted.items():
            if len(lists[name]) != count or not all(math.isfinite(value) for value in lists[name]):
                raise ValueError(f"calibration: {name}: got {list(lists[name])}, wanted {count} finite numbers")
        return cls(content["mode"], **lists)

    def apply(self, state: Tensor, step: int) -> Tensor:
        """The state [B, ...] that is evaluated and stepped on from. Where both quantiles are equal, it stays."""
        if self.mode == "gain":
            return state * self.gain[step]
        ranked = state.flatten(1).double().sort(1).values
        places = [share * (ranked.shape[1] - 1) for share in self.quantiles]
        mine = [
            torch.lerp(ranked[:, math.floor(place)], ranked[:, math.ceil(place)], place - math.floor(place))
            for place in places
        ]
        factor = (self.high[step] - self.low[step]) / (mine[1] - mine[0])
        known = factor.isfinite()
        factor = torch.where(known, factor, 1.0)
        shift = torch.where(known, self.low[step] - factor * mine[0], 0.0) if self.mode == "affine" else factor * 0
        column = (len(state), *[1] * (state.ndim - 1))
        return state * factor.to(state).view(column) + shift.to(state).view(column)
