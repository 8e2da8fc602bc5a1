"""Amplitudes of states, and states brought to given ones (OSS, arXiv 2503.21774, "amplitude calibration")."""

from __future__ import annotations

import os
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from torch import Tensor

from oss_ext import grids, schedule_file
from oss_ext.schedule_file import Calibration, FlowTime, Share, check_levels
from oss_ext.validate import choice

MODES = ("scale", "affine", "gain")
QUANTILES = (0.05, 0.95)
CHUNK = 2**24  # numbers ranked at once


class Amplitudes(BaseModel):
    """Quantiles of a trajectory's states over flow time, in flow coordinates: over all numbers of a sample, then the
    mean over the samples. Equality is by value.

    quantiles: which two, as shares. t: flow times, descending to 0. low, high: the quantiles there. samples: how many.
    model: `Denoiser.describe()`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    format: Literal["oss_ext.amplitudes"] = "oss_ext.amplitudes"
    version: Literal[1] = 1
    quantiles: tuple[Share, Share]
    samples: int = Field(ge=1)
    t: tuple[FlowTime, ...] = Field(min_length=2)
    low: tuple[float, ...]
    high: tuple[float, ...]
    model: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Amplitudes:
        grids.check(torch.tensor(self.t, dtype=torch.float64), name="t")
        check_levels(self.quantiles, self.low, self.high)
        if len(self.low) != len(self.t):
            raise ValueError(f"low: got {len(self.low)} entries, wanted {len(self.t)}, one a flow time")
        return self

    def at(self, t: Tensor) -> Tensor:
        """float64 [..., 2], (low, high) at flow times `t` [...], linear between the known ones. On the CPU.

        Raises ValueError for a time below 0 or above the first known one.
        """
        if not isinstance(t, Tensor) or not t.is_floating_point():
            raise TypeError(f"t: got {getattr(t, 'dtype', type(t).__name__)}, wanted a floating tensor")
        t = t.detach().to("cpu", torch.float64)
        known = torch.tensor(self.t, dtype=torch.float64).flip(0)
        if bool(((t < 0) | ~(t <= known[-1] * (1 + grids.SLACK))).any()):
            raise ValueError(f"t: got {t.tolist()}, wanted 0 to {float(known[-1]):.9g}, the range of the amplitudes")
        levels = torch.tensor([self.low, self.high], dtype=torch.float64).T.flip(0)
        before = (torch.searchsorted(known, t.contiguous(), right=True) - 1).clamp(0, len(known) - 2)
        share = ((t - known[before]) / (known[before + 1] - known[before])).clamp(max=1)[..., None]
        return torch.lerp(levels[before], levels[before + 1], share)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON file `path`, whole or not at all. Every float survives bit for bit."""
        schedule_file.write(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Amplitudes:
        """Raises FileNotFoundError, or ValueError naming the file and the field at fault."""
        return schedule_file.read_as(cls, path, "a file of amplitudes")

    def __repr__(self) -> str:
        return f"Amplitudes({len(self.t)} flow times, quantiles {self.quantiles}, {self.samples} samples)"


def calibration_of(amplitudes: Amplitudes, t: Tensor, mode: str) -> Calibration:
    """The calibration of evaluations at the flow times t [k] to `amplitudes`. mode: "scale" or "affine"."""
    if not isinstance(amplitudes, Amplitudes):
        raise TypeError(f"amplitudes: got {type(amplitudes).__name__}, wanted Amplitudes")
    choice("mode", mode, MODES[:2])
    return of_levels(mode, amplitudes.quantiles, amplitudes.at(t))


def of_levels(mode: str, quantiles: tuple[float, float], levels: Tensor) -> Calibration:
    """levels: float64 [k, 2], low and high at every evaluation."""
    low, high = (tuple(column) for column in levels.T.tolist())
    return made({"mode": mode, "quantiles": quantiles, "low": low, "high": high})


def of_gains(gains: Tensor) -> Calibration:
    """gains: float64 [k], finite."""
    return made({"mode": "gain", "gain": tuple(gains.tolist())})


def made(fields: dict[str, Any]) -> Calibration:
    """Raises ValueError in one line where pydantic would in several."""
    try:
        return Calibration(**fields)
    except ValidationError as error:
        raise ValueError(f"calibration: {schedule_file.explain(error)}") from None


def check_quantiles(value: Any) -> tuple[float, float]:
    """Two ascending shares as floats. Raises TypeError or ValueError."""
    if not isinstance(value, tuple | list) or any(
        isinstance(each, bool) or not isinstance(each, int | float) for each in value
    ):
        raise TypeError(f"quantiles: got {value!r}, wanted two numbers")
    if len(value) != 2 or not 0 <= value[0] < value[1] <= 1:
        raise ValueError(f"quantiles: got {value!r}, wanted two ascending shares between 0 and 1")
    return float(value[0]), float(value[1])


def quantiles_of(rows: Tensor, shares: tuple[float, float]) -> Tensor:
    """float64 [n, 2]: quantiles of each row [n, D], linear between the ranks as torch.quantile, for any D."""
    place = torch.tensor(shares, dtype=torch.float64, device=rows.device) * (rows.shape[1] - 1)
    below, above = place.floor().long(), place.ceil().long()
    parts = []
    for part in rows.split(max(1, CHUNK // rows.shape[1])):
        ranked = part.sort(1).values
        parts.append(torch.lerp(ranked[:, below].double(), ranked[:, above].double(), place - below))
    return torch.cat(parts)


def matched(rows: Tensor, mode: str, shares: tuple[float, float], low: float, high: float) -> Tensor:
    """Rows [n, D], each on its own brought to the quantiles `low` and `high`, or to their distance ("scale")."""
    mine = quantiles_of(rows, shares)
    factor = (high - low) / (mine[:, 1] - mine[:, 0])
    known = factor.to(rows.dtype).isfinite()  # not where the row's two quantiles are equal
    factor = torch.where(known, factor, 1.0)
    out = rows * factor.to(rows.dtype)[:, None]
    if mode == "affine":
        shift = torch.where(known, low - factor * mine[:, 0], 0.0)
        out += shift.to(rows.dtype)[:, None]
    return out


def calibrate(state: Tensor, calibration: Calibration, step: int) -> Tensor:
    """The state [B, ...] that evaluation `step` gets instead of `state`; each sample on its own."""
    if calibration.gain is not None:
        return state * calibration.gain[step]
    assert calibration.quantiles is not None and calibration.low is not None and calibration.high is not None
    low, high = calibration.low[step], calibration.high[step]
    return matched(state.flatten(1), calibration.mode, calibration.quantiles, low, high).view(state.shape)
