"""Noise levels: between a ComfyUI model's sigmas and flow times, and a schedule that starts lower (denoise < 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from .formulas import coefficients
from .plan import Plan


@dataclass(frozen=True)
class Levels:
    """How a model's states x relate to flow coordinates x_t = (1 - t) x0 + t eps.

    flow: x = x_t, sigma = t (Flux, SD3, Wan, ...). Otherwise x = x0 + sigma eps (SD, SDXL, SVD, Cosmos, ...):
    t = sigma / (1 + sigma), x_t = x / (1 + sigma).
    """

    flow: bool

    @classmethod
    def of(cls, model_sampling: Any) -> Levels:
        """Found out by what its noise_scaling makes of an image of ones and of noise of ones at sigma = 0.5, so that it
        does not depend on ComfyUI's class names."""
        sigma = torch.tensor(0.5, dtype=torch.float64)
        zeros, ones = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        image = float(model_sampling.noise_scaling(sigma, zeros.clone(), ones.clone()))
        noise = float(model_sampling.noise_scaling(sigma, ones.clone(), zeros.clone()))
        for flow, wanted in ((True, 0.5), (False, 1.0)):
            if math.isclose(image, wanted, rel_tol=1e-6) and math.isclose(noise, 0.5, rel_tol=1e-6):
                return cls(flow)
        raise ValueError(
            f"model: at sigma 0.5 it mixes {image:.4g} of the image with {noise:.4g} of the noise, wanted 0.5 and 0.5 "
            "(flow) or 1 and 0.5 (variance exploding)"
        )

    def sigma(self, t: float) -> float:
        if self.flow:
            return t
        if t >= 1:
            raise ValueError("schedule: starts at pure noise (t = 1), which is sigma = inf for this model")
        return t / (1 - t)

    def t(self, sigma: float) -> float:
        return sigma if self.flow else sigma / (1 + sigma)

    def scale(self, t: float) -> float:
        """x / x_t."""
        return 1.0 if self.flow else 1 / (1 - t)


def check_family(plan: Plan, levels: Levels, model_sampling: Any) -> None:
    """Raises ValueError for a schedule of another family of models, or of noisier levels than the model knows."""
    known = plan.family in ("flow", "edm", "epsilon", "v_param", "x0")
    if known and (plan.family == "flow") != levels.flow:
        kind = "a flow model" if levels.flow else "no flow model"
        raise ValueError(f"schedule: made for a model of the family {plan.family!r}, but the loaded one is {kind}")
    largest, first = float(model_sampling.sigma_max), levels.sigma(plan.t[0])
    if first > largest * (1 + 1e-3):
        raise ValueError(
            f"schedule: starts at sigma {first:.6g}, but the loaded model ends at {largest:.6g}: made for another model"
        )


def start_level(model_sampling: Any, levels: Levels, denoise: float) -> float:
    """The flow time that a share `denoise` of the whole way starts at, by the model's own map, its shift included."""
    if not 0 < denoise <= 1:
        raise ValueError(f"denoise: got {denoise}, wanted a number above 0, at most 1")
    if denoise == 1:
        return 1.0
    return levels.t(float(model_sampling.percent_to_sigma(1 - denoise)))


def starting_at(plan: Plan, start: float, least: float = 0.0) -> Plan:
    """As many steps as `plan` has, from flow time `start` to 0, none but the last below `least`.

    The plan's times, as a piecewise linear function of the steps made, are read off at equally many equal parts of what
    is left of it below `start`. Fitted coefficients hold for their own steps only: here a formula of order 2 (Euler's
    stays Euler's) on the prediction that the plan carries takes their place; the network is told the true times, and
    states are not calibrated.
    """
    if start >= plan.t[0] * (1 - 1e-6):
        return plan
    after = next(index for index, value in enumerate(plan.t) if value <= start)
    begin = after - (start - plan.t[after]) / (plan.t[after - 1] - plan.t[after])
    times = [start]
    for step in range(1, plan.steps):
        place = begin + (plan.steps - begin) * step / plan.steps
        low = min(int(place), plan.steps - 1)
        times.append(plan.t[low] + (place - low) * (plan.t[low + 1] - plan.t[low]))
    times = _above(times, least)
    t = (*times, 0.0)
    return Plan(
        t=t,
        told=t[:-1],
        coefficients=coefficients(t, "euler" if plan.solver == "euler" else plan.carries),
        carries=plan.carries,
        noise_scale=t[0],
        solver=plan.solver,
        family=plan.family,
    )


def _above(times: list[float], least: float) -> list[float]:
    """Those below `least`, the model's cleanest level, spread by their logarithms between it and the last above it."""
    keep = sum(value > least for value in times)
    if keep == len(times):
        return times
    if keep == 0:
        raise ValueError(f"denoise: starts at flow time {times[0]:.4g}, below {least:.4g}, the model's cleanest")
    top, parts = times[keep - 1], len(times) - keep
    return times[:keep] + [top * (least / top) ** ((part + 1) / parts) for part in range(parts)]
