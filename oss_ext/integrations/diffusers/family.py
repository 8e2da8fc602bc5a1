"""What a diffusers scheduler's configuration says of the model behind it, in flow time.

A pipeline's loop holds latents, tells the network a timestep, and hands the network's output to its scheduler. `Family`
maps all three: x_t = (1 - t) x0 + t eps, and v = eps - x0. In the loop we keep the network's own input, so that
`scale_model_input` has nothing to do:

    flow   x_t                       output v (or -v, where the noise level runs upwards)
    VP     a x0 + s eps = (a + s) x_t    output eps, a eps - s x0, or x0
    EDM    c_in (x0 + sigma eps)         output F, denoised = c_skip x + c_out F (Karras et al., arXiv 2206.00364)
    VE     x0 + sigma eps                output eps: pipelines that precondition by themselves (Cosmos 2)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from oss_ext.models import Denoiser, EDMModel, EpsilonModel, FlowModel, VParamModel, X0Model

Network = Callable[[Tensor, Tensor], Tensor]
"""fn(what the loop feeds it [n, ...], timestep as the loop tells it, float [n]) -> what the scheduler is handed."""

_VP = {"epsilon": EpsilonModel, "v_prediction": VParamModel, "sample": X0Model}
_FLOW_TYPES = ("flow_prediction", "flow")
_EDM_TYPES = ("epsilon", "v_prediction")
_LEAST_ALPHA = 2.0**-24  # in place of 0 in tables with zero terminal signal-to-noise ratio, so that sigma is finite
_FLAGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "stochastic_sampling")


@dataclass(frozen=True, eq=False)
class Family:
    """parameterization: "flow", "epsilon", "v_param", "x0" or "edm". scheduler: the name of the class that was read.

    train_steps: what flow time 1 is called in timesteps (flow). inverted: the noise level runs from 0 to 1 (flow).
    alphas_cumprod: float64 [T] (VP).
    sigma_min, sigma_max, sigma_data: the range and scale; output_sign: of c_out (EDM).
    exploding: the VE form of EDM; held: what the pipeline multiplies its noise with by itself.
    whole: the scheduler's own class tells the network whole timesteps only.
    shift, dynamic_shift: of the configuration (flow). settings: all that bends its own noise levels, by name.
    """

    parameterization: str
    scheduler: str
    train_steps: int = 1000
    inverted: bool = False
    alphas_cumprod: Tensor | None = None
    sigma_min: float = 0.0
    sigma_max: float = 0.0
    sigma_data: float = 1.0
    output_sign: float = 1.0
    exploding: bool = False
    held: float = 1.0
    whole: bool = False
    shift: float = 1.0
    dynamic_shift: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def denoiser(self, network: Network) -> Denoiser:
        """The network of the pipeline's loop as a model that `Schedule.sample` and `dp_search` take."""
        if self.parameterization == "flow":
            sign = -1 if self.inverted else 1
            return FlowModel(lambda x, t: sign * network(x, self.told(t.double()).to(t)))
        if self.parameterization == "edm":
            return EDMModel(lambda x, sigma: self._denoised(network, x, sigma), self.sigma_min, self.sigma_max)
        assert self.alphas_cumprod is not None
        kinds = {kind.parameterization: kind for kind in _VP.values()}
        model: Any = kinds[self.parameterization](network, self.alphas_cumprod)
        return model

    def terms(self) -> Denoiser:
        """A model that knows the family's range and names, and no network."""
        return self._terms

    @cached_property
    def _terms(self) -> Denoiser:
        def missing(*_: Any) -> Tensor:
            raise RuntimeError("this model stands for a pipeline, whose loop evaluates the network")

        return self.denoiser(missing)

    def told(self, t: Tensor) -> Tensor:
        """float64: the timestep that the loop tells the network at flow times t > 0."""
        t = t.double()
        if self.parameterization == "flow":
            return self.train_steps * (1 - t if self.inverted else t)
        if self.parameterization == "edm":
            return self._told_of(t / (1 - t))
        return self.terms().timesteps(t)

    def levels(self, t: Tensor) -> Tensor:
        """float64: what a stock scheduler of the family would hold as `sigmas` at flow times t."""
        t = t.double()
        if self.parameterization == "flow":
            return 1 - t if self.inverted else t
        return t / (1 - t)

    def input_scale(self, t: float) -> float:
        """Network input / x_t. At t = 0, where the loop ends, 1: the latents are then x0."""
        if self.parameterization == "flow" or t == 0:
            return 1.0
        if self.exploding:
            return 1 / (1 - t)
        if self.parameterization == "edm":
            return 1 / math.hypot(t, self.sigma_data * (1 - t))
        return 1 / math.hypot(t, 1 - t)

    def velocity_weights(self, t: float) -> tuple[float, float]:
        """v = first * x_t + second * output."""
        kind = self.parameterization
        if kind == "flow":
            return 0.0, -1.0 if self.inverted else 1.0
        if kind == "epsilon" or self.exploding:
            return -1 / (1 - t), 1 / (1 - t)
        scale = self.input_scale(t)
        a, s = scale * (1 - t), scale * t
        if kind == "v_param":
            return (s - a) * scale, scale
        if kind == "x0":
            return 1 / t, -1 / t
        skip, out = self._preconditioning(t / (1 - t))
        return (1 - skip / (1 - t)) / t, -out / t

    def start(self, strength: float, shift: float) -> float:
        """The flow time at which a share `strength` of the way from data to noise begins, on the family's own grid of
        very many steps: timesteps for VP, shifted uniform times for flow, Karras' sigmas for EDM."""
        if self.parameterization == "flow":
            return shift * strength / (1 + (shift - 1) * strength)
        model = self.terms()
        if self.parameterization == "edm":
            low, high = self.sigma_min ** (1 / 7), self.sigma_max ** (1 / 7)
            sigma = (low + strength * (high - low)) ** 7
            return sigma / (1 + sigma)
        assert model.flow_table is not None
        table = model.flow_table
        return float(table[min(len(table) - 1, max(0, round(strength * len(table)) - 1))])

    def shift_of(self, mu: float | None) -> float:
        """The shift k of u -> k u / (1 + (k - 1) u) in force, with the `mu` that a pipeline hands `set_timesteps`."""
        if self.dynamic_shift is None or mu is None:
            return self.shift
        return math.exp(mu) if self.dynamic_shift == "exponential" else float(mu)

    def _told_of(self, sigma: Tensor) -> Tensor:
        """The timestep of a sigma (EDM)."""
        return self.train_steps * sigma if self.exploding else 0.25 * sigma.log()

    def _preconditioning(self, sigma: Any) -> tuple[Any, Any]:
        """(c_skip, c_out)."""
        total = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / total, self.output_sign * sigma * self.sigma_data / total**0.5

    def _denoised(self, network: Network, x: Tensor, sigma: Tensor) -> Tensor:
        column = sigma.double().reshape(-1, *[1] * (x.ndim - 1))
        skip, out = self._preconditioning(column)
        if self.exploding:
            return (x - column * network(x, self._told_of(sigma.double()).to(sigma))).to(x.dtype)
        scaled = (x * (column**2 + self.sigma_data**2).rsqrt()).to(x.dtype)
        output = network(scaled, self._told_of(sigma.double()).to(sigma))
        return (skip * x + out * output).to(x.dtype)


def family_of(scheduler: Any) -> Family:
    """The family that a diffusers scheduler's configuration tells of. Raises ValueError for one that has none of the
    known forms, and says what it looked for."""
    config: Mapping[str, Any] = getattr(scheduler, "config", None) or {}
    name = type(scheduler).__name__
    kind = config.get("prediction_type")
    train_steps = int(config.get("num_train_timesteps", 1000))
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if "FlowMatch" in name and config.get("sigma_data") is not None:  # a form that pipelines write into it
        return replace(_edm(config, name, 1.0, 1.0), exploding=True, held=float(config["sigma_max"]))
    if kind in _FLOW_TYPES or config.get("use_flow_sigmas") or (kind is None and _flow_like(scheduler, config, alphas)):
        dynamic = config.get("time_shift_type", "exponential") if config.get("use_dynamic_shifting") else None
        shift = config.get("flow_shift") if config.get("use_flow_sigmas") else config.get("shift")
        return Family(
            "flow",
            name,
            train_steps=train_steps,
            inverted=bool(config.get("invert_sigmas")),
            whole=_truncates(name),
            shift=1.0 if dynamic or shift is None else float(shift),
            dynamic_shift=dynamic,
            settings=_settings(config, ("shift", "flow_shift", "shift_terminal", "invert_sigmas", *_FLAGS), dynamic),
        )
    if config.get("sigma_data") is not None and kind in _EDM_TYPES:
        return _edm(config, name, float(config["sigma_data"]), -1.0 if kind == "v_prediction" else 1.0)
    if config.get("timestep_type") == "continuous" and kind in _EDM_TYPES and config.get("sigma_max"):
        if kind == "epsilon":
            raise ValueError(f"scheduler: got {name} with continuous timesteps and 'epsilon', wanted 'v_prediction'")
        return _edm(config, name, 1.0, -1.0)
    if isinstance(alphas, Tensor) and (kind or "epsilon") in _VP:
        return Family(
            _VP[kind or "epsilon"].parameterization,
            name,
            train_steps=train_steps,
            alphas_cumprod=alphas.detach().to("cpu", torch.float64).clamp(min=_LEAST_ALPHA),
            whole=_truncates(name),
            settings=_settings(config, ("timestep_spacing", *_FLAGS, "clip_sample", "thresholding"), None),
        )
    raise ValueError(
        f"scheduler: got {name} with prediction_type {kind!r}, wanted one of a flow model (FlowMatch..., or "
        "use_flow_sigmas), of a VP model (alphas_cumprod; epsilon, v_prediction or sample), or of EDM (sigma_data)"
    )


def _flow_like(scheduler: Any, config: Mapping[str, Any], alphas: Any) -> bool:
    """FlowMatch schedulers name no prediction type; they have a shift or the name, and no table of betas."""
    named = "FlowMatch" in type(scheduler).__name__
    return (named or "shift" in config) and alphas is None and "beta_start" not in config


def _edm(config: Mapping[str, Any], name: str, sigma_data: float, sign: float) -> Family:
    return Family(
        "edm",
        name,
        sigma_min=float(config["sigma_min"]),
        sigma_max=float(config["sigma_max"]),
        sigma_data=sigma_data,
        output_sign=sign,
        settings=_settings(config, ("sigma_schedule", "rho", *_FLAGS), None),
    )


def _settings(config: Mapping[str, Any], names: tuple[str, ...], dynamic: str | None) -> dict[str, Any]:
    """Those of the configuration's settings that do something, and the dynamic shift."""
    idle = {"shift": 1.0, "flow_shift": 1.0}
    found = {name: config[name] for name in names if config.get(name) and config[name] != idle.get(name)}
    return found if dynamic is None else {**found, "dynamic_shift": dynamic}


def _truncates(name: str) -> bool:
    """Euler, Heun, LMS, KDPM2 and the FlowMatch schedulers tell fractional timesteps; all others whole ones."""
    return not any(part in name for part in ("FlowMatch", "Euler", "Heun", "LMS", "KDPM2"))
