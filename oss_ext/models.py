"""The one interface to every network: flow-time velocity, whatever the network itself predicts.

Canonical coordinates (all modules): x_t = (1 - t) x0 + t eps, flow time t in [0, 1], velocity v = eps - x0 = dx_t/dt.

    flow    x = x_t                                    v = network(x, t)
    EDM/VE  x = x0 + s eps,    t = s/(1+s)             x = x_t (1+s),  v = (x_t - denoised)/t
    VP      x = a x0 + s eps,  t = s/(a+s), a^2+s^2=1  x = x_t (a+s),  the prediction turned into v
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

Network = Callable[..., Tensor]
"""fn(x [n, ...], noise level [n], **cond) -> [n, ...] of the shape and dtype of x."""

_SLACK = 1e-6  # relative: what a flow time may pass t_max or t_min by, as in grids.check


@runtime_checkable
class Denoiser(Protocol):
    """A network in canonical coordinates. Anything with these members will do; the classes below wrap plain functions.

    t_max, t_min: the noisiest and the cleanest flow time that the network knows; t_min = 0 means "any t > 0".
    flow_table: float64 [T], ascending: the flow time of each discrete timestep 0..T-1; None without such a table.
    parameterization: what the network predicts: "flow", "edm", "epsilon", "v_param", "x0", or a name of your own.

    A network that takes one noise level for its whole batch: set the model's attribute `one_time` to True; all entries
    of t are then equal, in a search too, whose batches otherwise mix them.
    """

    t_max: float
    t_min: float
    flow_table: Tensor | None
    parameterization: str

    def velocity(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """v at x [n, ...] and t float64 [n] with t > 0 (on the CPU, or where x is), in the shape and dtype of x."""

    def sigmas(self, t: Tensor) -> Tensor:
        """float64: the family's noise level at flow time t, of any shape."""

    def timesteps(self, t: Tensor) -> Tensor:
        """float64: what the network is fed at flow time t > 0, of any shape."""

    def describe(self) -> dict[str, Any]:
        """What a schedule's provenance records of the model: plain JSON values."""


def _level(value: Tensor, like: Tensor) -> Tensor:
    """A float64 noise level [n] as the network takes it: on x's device, in x's dtype, float32 where x is half."""
    return value.to(device=like.device, dtype=_wide(like.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _column(value: Tensor, like: Tensor) -> Tensor:
    """A float64 coefficient [n] as [n, 1, ...] beside x, cast last."""
    return _level(value, like).reshape(-1, *[1] * (like.ndim - 1))


def _call(fn: Network, x: Tensor, level: Tensor, cond: Mapping[str, Tensor] | None) -> Tensor:
    """The network's output, checked for type, shape, dtype and device before arithmetic hides what it was."""
    out = fn(x, _level(level, x), **(cond or {}))
    if not isinstance(out, Tensor):
        raise TypeError(f"model: the network returned {type(out).__name__}, wanted a tensor {list(x.shape)}")
    if out.shape != x.shape:
        raise ValueError(
            f"model: the network returned shape {list(out.shape)}, wanted that of its input, {list(x.shape)}"
        )
    if out.dtype != x.dtype:
        raise TypeError(f"model: the network returned {out.dtype}, wanted that of its input, {x.dtype}")
    if out.device != x.device:
        raise ValueError(f"model: the network returned a tensor on {out.device}, wanted {x.device}")
    return out


def _check_fn(fn: Any) -> Network:
    if not callable(fn):
        raise TypeError(f"fn: got {type(fn).__name__}, wanted a function (x, noise level, **cond) -> tensor like x")
    return fn


class FlowModel:
    """A rectified-flow / flow-matching network. fn(x, t, **cond) -> velocity; t [n] in (0, 1].

    A network that wants 1000 t, or predicts x0 - eps, is adapted in fn.
    """

    parameterization = "flow"
    t_max = 1.0
    t_min = 0.0
    flow_table: Tensor | None = None

    def __init__(self, fn: Network) -> None:
        self.fn = _check_fn(fn)

    def velocity(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        return _call(self.fn, x, t, cond)

    def sigmas(self, t: Tensor) -> Tensor:
        return t.double()

    def timesteps(self, t: Tensor) -> Tensor:
        return t.double()

    def describe(self) -> dict[str, Any]:
        return {"parameterization": self.parameterization}


class EDMModel:
    """An EDM-preconditioned denoiser (Karras et al., arXiv 2206.00364). fn(x, sigma, **cond) -> denoised; sigma [n].

    sigma_min, sigma_max: the range that the network was trained on, 0 < sigma_min < sigma_max < inf.
    """

    parameterization = "edm"
    flow_table: Tensor | None = None

    def __init__(self, fn: Network, sigma_min: float, sigma_max: float) -> None:
        self.fn = _check_fn(fn)
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        if not 0 < self.sigma_min < self.sigma_max < float("inf"):
            raise ValueError(
                f"sigma_min, sigma_max: got {sigma_min} and {sigma_max}, wanted 0 < sigma_min < sigma_max < inf"
            )
        self.t_min = self.sigma_min / (1 + self.sigma_min)
        self.t_max = self.sigma_max / (1 + self.sigma_max)

    def velocity(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        wide = x.to(_wide(x.dtype))
        scaled = (wide * _column(1 / (1 - t), x)).to(x.dtype)
        denoised = _call(self.fn, scaled, self.sigmas(t), cond)
        return ((wide - denoised.to(wide.dtype)) * _column(1 / t, x)).to(x.dtype)

    def sigmas(self, t: Tensor) -> Tensor:
        t = t.double()
        return t / (1 - t)

    def timesteps(self, t: Tensor) -> Tensor:
        return self.sigmas(t)

    def describe(self) -> dict[str, Any]:
        return {"parameterization": self.parameterization, "sigma_min": self.sigma_min, "sigma_max": self.sigma_max}


class _VPModel:
    """Variance-preserving networks with a discrete table. fn(x, timestep, **cond) -> prediction.

    alphas_cumprod: [T], strictly descending in (0, 1): a^2 of timestep 0..T-1. timestep [n] is a floating tensor: whole
    numbers at the table's own noise levels, between them linear interpolation of log sigma (sigma = s/a).
    `sigmas` are those of variance-exploding form, s/a, as k-diffusion and diffusers report them.
    """

    parameterization = ""

    def __init__(self, fn: Network, alphas_cumprod: Tensor) -> None:
        self.fn = _check_fn(fn)
        table = torch.as_tensor(alphas_cumprod).detach().to("cpu", torch.float64)
        if table.ndim != 1 or len(table) < 2:
            raise ValueError(f"alphas_cumprod: got shape {list(table.shape)}, wanted [T] with T >= 2")
        if not bool(((table > 0) & (table < 1)).all()) or not bool((table.diff() < 0).all()):
            raise ValueError(
                "alphas_cumprod: wanted strictly descending values inside (0, 1); for a table with zero terminal "
                "signal-to-noise ratio hand in alphas_cumprod[:-1]"
            )
        sigma = ((1 - table) / table).sqrt()
        with torch.inference_mode(False):  # so that a backward pass may keep it
            self._log_sigma = {torch.device("cpu"): sigma.log()}
        self.flow_table = sigma / (1 + sigma)
        self.t_min, self.t_max = float(self.flow_table[0]), float(self.flow_table[-1])

    def sigmas(self, t: Tensor) -> Tensor:
        t = t.double()
        return t / (1 - t)

    def timesteps(self, t: Tensor) -> Tensor:
        """Differentiable; at the table's own levels the slope is that on one side.

        Raises ValueError beyond the table's ends (a CUDA t costs a synchronisation), unless a graph is being captured.
        """
        known = t.double()
        if not (known.is_cuda and torch.cuda.is_current_stream_capturing()):
            low_end, high_end = self.t_min * (1 - _SLACK), self.t_max * (1 + _SLACK)
            if bool(((known < low_end) | (known > high_end)).any()):
                raise ValueError(
                    f"t: got {t.min():.9g}..{t.max():.9g}, wanted {self.t_min:.9g}..{self.t_max:.9g}, the table's range"
                )
        table, log_sigma = self._table_on(known.device), self.sigmas(known).log()
        low = (torch.searchsorted(table, log_sigma.detach().contiguous(), right=True) - 1).clamp(0, len(table) - 2)
        step = low + ((log_sigma - table[low]) / (table[low + 1] - table[low])).clamp(0, 1)
        off = step.detach() - step.detach().round()
        return step - torch.where(off.abs() < 1e-9, off, 0.0)

    def _table_on(self, device: torch.device) -> Tensor:
        """float64 [T], log sigma."""
        if device not in self._log_sigma:
            with torch.inference_mode(False):
                self._log_sigma[device] = self._log_sigma[torch.device("cpu")].to(device)
        return self._log_sigma[device]

    def velocity(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        sigma = self.sigmas(t)
        a = 1 / (1 + sigma * sigma).sqrt()
        s = sigma * a
        wide = x.to(_wide(x.dtype))
        scaled = (wide * _column(a + s, x)).to(x.dtype)
        out = _call(self.fn, scaled, self.timesteps(t), cond).to(wide.dtype)
        of_state, of_output = self._velocity_weights(t, a, s)
        return (wide * _column(of_state, x) + out * _column(of_output, x)).to(x.dtype)

    def _velocity_weights(self, t: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """float64 [n] each: v = first * x_t + second * prediction."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        assert self.flow_table is not None
        ends = self.sigmas(self.flow_table[[0, -1]]).tolist()
        return {
            "parameterization": self.parameterization,
            "timesteps": len(self.flow_table),
            "sigma_min": ends[0],
            "sigma_max": ends[1],
        }


class EpsilonModel(_VPModel):
    """A noise-predicting VP network. fn(x, timestep, **cond) -> eps; alphas_cumprod [T], descending in (0, 1)."""

    parameterization = "epsilon"

    def _velocity_weights(self, t: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return -1 / (1 - t), 1 / (1 - t)  # x0 = (x_t - t eps)/(1-t)


class VParamModel(_VPModel):
    """A VP network with v-prediction (Salimans and Ho, arXiv 2202.00512): fn(x, timestep, **cond) -> a eps - s x0."""

    parameterization = "v_param"

    def _velocity_weights(self, t: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return (s - a) * (a + s), a + s  # x0 = a x - s out, eps = s x + a out, x = (a+s) x_t


class X0Model(_VPModel):
    """A VP network that predicts the clean sample. fn(x, timestep, **cond) -> x0; alphas_cumprod [T] as elsewhere."""

    parameterization = "x0"

    def _velocity_weights(self, t: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return 1 / t, -1 / t
