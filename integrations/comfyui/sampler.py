"""A sampler function for ComfyUI that applies a schedule's own coefficients, fitted ones or any multistep solver's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .levels import Levels, check_family
from .plan import Plan

Sampler = Callable[..., Tensor]


def sigmas_of(plan: Plan, levels: Levels) -> Tensor:
    """float32 [k + 1], the SIGMAS of the plan for a model."""
    return torch.tensor([levels.sigma(t) for t in plan.t], dtype=torch.float64).float()


@dataclass
class _Left:
    """Where a run along the first steps ended: step, x as returned, and the predictions that later steps may use."""

    step: int
    x: Tensor
    earlier: tuple[Tensor, ...]


def sampler_of(plan: Plan) -> Sampler:
    """A function of k-diffusion's signature, for comfy.samplers.KSAMPLER.

    Of a schedule split in two (SplitSigmas) the second part goes on with what the first left behind in this function;
    that is kept, since ComfyUI runs the second alone again where only the second changed.
    """
    left: list[_Left] = []

    @torch.no_grad()
    def sample_oss(
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        disable: bool | None = None,
    ) -> Tensor:
        """x [B, ...]: the noised latent at sigmas[0]. sigmas [m + 1]: the schedule's, or some of its steps."""
        model_sampling = model.inner_model.inner_model.model_sampling
        levels = Levels.of(model_sampling)
        check_family(plan, levels, model_sampling)
        begin = _place(plan, levels, sigmas)
        state = _start(model, x, plan, levels, begin)
        earlier = deque(_earlier(plan, begin, len(sigmas) - 1, x, left), maxlen=len(plan.coefficients[0]) - 2)
        ones = x.new_ones(len(x))
        for index, step in enumerate(_steps(range(begin, begin + len(sigmas) - 1), disable)):
            t, told = plan.t[step], plan.told[step]
            state = state if plan.calibration is None else plan.calibration.apply(state, step)
            sigma = sigmas[index].to(x) if told == t else x.new_tensor(levels.sigma(told))
            scaled = state * levels.scale(told)
            denoised = model(scaled, sigma * ones, **(extra_args or {}))
            velocity = (state - denoised) / told
            if callback is not None:
                callback({"x": scaled, "i": index, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            weights = plan.coefficients[step]
            following = weights[0] * state + weights[1] * velocity
            for weight, prediction in zip(weights[2:], earlier, strict=False):
                if weight != 0:
                    following = following + weight * prediction
            earlier.appendleft(_carried(plan.carries, state, velocity, t))
            state = following
        end = begin + len(sigmas) - 1
        if end == plan.steps:
            return _unmasked(model, state, extra_args or {})
        state = state * levels.scale(plan.t[end])
        left[:] = [_Left(end, state, tuple(earlier))]
        return state

    return sample_oss


def _unmasked(model: Any, x0: Tensor, extra_args: dict[str, Any]) -> Tensor:
    """x0 with the image where an inpainting mask covers it: steps whose coefficients are fitted, or of a high order,
    leave it there only nearly."""
    mask, image = extra_args.get("denoise_mask"), getattr(model, "latent_image", None)
    if mask is None or image is None or "denoise_mask_function" in extra_args.get("model_options", {}):
        return x0
    return x0 * mask + image * (1 - mask)


def _carried(carries: str, state: Tensor, velocity: Tensor, t: float) -> Tensor:
    if carries == "velocity":
        return velocity
    return state - t * velocity if carries == "x0" else state + (1 - t) * velocity


def _place(plan: Plan, levels: Levels, sigmas: Tensor) -> int:
    """Where in the plan these sigmas begin. Raises ValueError where they are not levels of it, one after the other."""
    given = [levels.t(value) for value in sigmas.double().tolist()]
    begin = min(range(plan.steps + 1), key=lambda node: abs(plan.t[node] - given[0]))
    nodes = plan.t[begin : begin + len(given)]
    if len(nodes) != len(given) or any(abs(a - b) > 1e-5 for a, b in zip(nodes, given, strict=True)):
        raise ValueError(
            f"sigmas: got {[round(value, 5) for value in sigmas.tolist()]}, which are not the schedule's "
            f"{[round(levels.sigma(t), 5) for t in plan.t]}: wire the SIGMAS and the SAMPLER of one OSS node"
        )
    return begin


def _earlier(plan: Plan, begin: int, steps: int, x: Tensor, left: list[_Left]) -> tuple[Tensor, ...]:
    """The predictions from before step `begin`, newest first. Raises ValueError where a step needs those of a run that
    did not end in x."""
    if begin == 0 or not any(
        any(weight != 0 for weight in plan.coefficients[step][2 + step - begin :])
        for step in range(begin, begin + steps)
    ):
        return ()
    for one in left:
        if one.step == begin and one.x.shape == x.shape:
            off = (one.x.to(x) - x).abs().max()
            if float(off) <= 1e-3 * float(x.abs().max()):
                return tuple(prediction.to(x) for prediction in one.earlier)
    raise ValueError(
        f"sigmas: begin at step {begin + 1} of the schedule, which uses earlier predictions: wire the SAMPLER that "
        "sampled the steps before it to here too, without new noise (for image-to-image set the node's denoise)"
    )


def _start(model: Any, x: Tensor, plan: Plan, levels: Levels, begin: int) -> Tensor:
    """The first state in flow coordinates: noise_scale * noise where there is nothing but noise, else the noised image.

    Made from the noise itself, since ComfyUI starts variance-exploding models at their last level from
    sqrt(1 + sigma^2) * noise instead of sigma * noise.
    """
    noise, image = getattr(model, "noise", None), getattr(model, "latent_image", None)
    empty = image is None or not bool(torch.count_nonzero(image))
    if begin == 0 and empty and noise is not None:
        return noise.to(x) * plan.noise_scale
    return x / levels.scale(plan.t[begin])


def _steps(steps: range, disable: bool | None) -> Any:
    from tqdm.auto import tqdm  # ComfyUI brings it

    return tqdm(steps, disable=disable)
