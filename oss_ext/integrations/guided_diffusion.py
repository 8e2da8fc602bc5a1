"""openai/guided-diffusion (LSUN-Bedroom-256, ImageNet) and what descends from it (Dhariwal and Nichol, 2105.05233).

    model = guided_diffusion.denoiser(unet, clip_denoised=True)
    result = oss_ext.dp_search(model, noise, grid="ddim", nodes="integer")

network(x, timesteps, **cond) -> noise [n, C, H, W], or [n, 2C, H, W] with a learned variance, which is dropped.
noise: [B, C, H, W] in the dtype that the repository feeds. cond: {"y": int64 [B]} for class-conditional networks.

Its loops start at x_T = noise; here the first state is sqrt(1 - alphas_cumprod[T-1]) * noise, 0.99998 of it.
A schedule of solver "euler" on whole timesteps runs in the repository's own DDIM loop, see `use_timesteps`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from oss_ext.integrations.betas import alphas_cumprod
from oss_ext.integrations.outputs import prediction
from oss_ext.models import Denoiser, EpsilonModel, Network, X0Model, _VPModel
from oss_ext.schedule import Schedule
from oss_ext.validate import whole_number


class _Clipped(_VPModel):
    """The predicted clean sample is clipped to [-1, 1] before it is used, as with `clip_denoised`."""

    def velocity(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        at = t.to(device=x.device, dtype=wide).reshape(-1, *[1] * (x.ndim - 1))
        state = x.to(wide)
        clean = (state - at * super().velocity(x, t, cond).to(wide)).clamp(-1, 1)
        return ((state - clean) / at).to(x.dtype)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "clip_denoised": True}


class _ClippedEpsilon(_Clipped, EpsilonModel):
    pass


class _ClippedX0(_Clipped, X0Model):
    pass


_KINDS = {
    (False, False): EpsilonModel,
    (False, True): _ClippedEpsilon,
    (True, False): X0Model,
    (True, True): _ClippedX0,
}


def denoiser(
    network: Network,
    noise_schedule: str | Tensor = "linear",
    *,
    diffusion_steps: int = 1000,
    timestep_map: Iterable[int] | None = None,
    timestep_scale: float = 1.0,
    predict_xstart: bool = False,
    clip_denoised: bool = False,
) -> Denoiser:
    """The Denoiser of a network in guided-diffusion's form; see the module.

    noise_schedule: "linear", "cosine", or alphas_cumprod [T].
    timestep_map: [T] ascending: what the network is told at each of the table's timesteps; None: 0..T-1. Between them
        linear.
    timestep_scale: multiplies that; 1000 / diffusion_steps with the repository's `rescale_timesteps`.
    predict_xstart: the network predicts the clean sample.
    clip_denoised: that is clipped to [-1, 1], the default of its sampling scripts for pixels.
    """
    table = noise_schedule if isinstance(noise_schedule, Tensor) else alphas_cumprod(noise_schedule, diffusion_steps)
    told = None if timestep_map is None else _map(timestep_map, len(table))

    def fn(x: Tensor, timestep: Tensor, **cond: Tensor) -> Tensor:
        if told is not None:
            timestep = _between(told, timestep)
        return prediction(network(x, timestep * timestep_scale, **cond), x)

    model: Any = _KINDS[bool(predict_xstart), bool(clip_denoised)](fn, table)
    wrapped: Denoiser = model
    return wrapped


def from_diffusion(network: Network, diffusion: Any, *, clip_denoised: bool = False) -> Denoiser:
    """The Denoiser of a network and the repository's own `GaussianDiffusion` or `SpacedDiffusion` object.

    A respaced one gives a table of the kept timesteps only: nodes="integer" then keeps to those, and the network is
    told what the repository tells it. Raises ValueError where the object predicts x_{t-1}.
    """
    predicts = diffusion.model_mean_type.name
    if predicts not in ("EPSILON", "START_X"):
        raise ValueError(f"diffusion: got one that predicts {predicts}, wanted EPSILON or START_X")
    original = getattr(diffusion, "original_num_steps", diffusion.num_timesteps)
    return denoiser(
        network,
        torch.as_tensor(diffusion.alphas_cumprod, dtype=torch.float64),
        timestep_map=getattr(diffusion, "timestep_map", None),
        timestep_scale=1000 / original if getattr(diffusion, "rescale_timesteps", False) else 1.0,
        predict_xstart=predicts == "START_X",
        clip_denoised=clip_denoised,
    )


def respaced_grid(model: Denoiser, timesteps: Iterable[int]) -> Tensor:
    """float64 [n + 1]: the flow times of these whole timesteps of the model's table, in any order, then 0: the `grid`
    of a teacher that takes the repository's `space_timesteps(1000, "250")`."""
    table = model.flow_table
    if table is None:
        raise ValueError(f"model: got a {model.parameterization} model without a table, wanted one with timesteps")
    chosen = sorted({whole_number("timesteps", value, least=0) for value in timesteps}, reverse=True)
    if not chosen or chosen[0] >= len(table):
        raise ValueError(f"timesteps: got {chosen[:1] or 'none'}, wanted some of 0..{len(table) - 1}")
    return torch.cat([table[chosen], torch.zeros(1, dtype=torch.float64)])


def use_timesteps(schedule: Schedule) -> set[int]:
    """What `SpacedDiffusion(use_timesteps=...)` wants: its `ddim_sample_loop` (eta 0) then takes the schedule's steps.

    Raises ValueError unless the schedule is of solver "euler", which is DDIM, and on whole timesteps.
    """
    if schedule.solver != "euler" or schedule.network_t is not None or schedule.calibration is not None:
        raise ValueError(
            f"schedule: got solver {schedule.solver!r}, wanted 'euler', told its own times and not calibrated: the "
            "steps of DDIM"
        )
    whole = schedule.timesteps.round()
    if not torch.equal(whole, schedule.timesteps):
        raise ValueError(
            f"schedule: got the timesteps {schedule.timesteps.tolist()}, wanted whole ones: search with nodes='integer'"
        )
    return {int(value) for value in whole.tolist()}


def _map(values: Iterable[int], steps: int) -> Tensor:
    told = torch.tensor(list(values), dtype=torch.float64)
    if told.shape != (steps,) or not bool((told.diff() > 0).all()):
        raise ValueError(f"timestep_map: got {len(told)} values, wanted {steps} ascending ones")
    return told


def _between(told: Tensor, index: Tensor) -> Tensor:
    """told at a fractional index, in the dtype of index."""
    at = index.double().cpu()
    low = at.floor().clamp(0, len(told) - 2).long()
    return torch.lerp(told[low], told[low + 1], at - low).to(index)
