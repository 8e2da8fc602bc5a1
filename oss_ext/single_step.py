"""Samplers of two network evaluations a step, for comparison: Heun's method and DPM-Solver-2.

They are no `solvers`, and no search runs over them: a step i -> j evaluates the network at a state that depends on
both i and j, so that a stage would cost N^2 / 2 evaluations a sample instead of N.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from oss_ext import grids
from oss_ext.evaluate import evaluate, pick_batch_size, state_dtype
from oss_ext.models import Denoiser
from oss_ext.validate import check_cond, check_model, check_noise, choice

Method: TypeAlias = Literal["heun", "heun_flow", "dpm_2"]
METHODS: tuple[Method, ...] = ("heun", "heun_flow", "dpm_2")

_Velocity: TypeAlias = Callable[[Tensor, float], Tensor]
_Step: TypeAlias = Callable[[_Velocity, Tensor, Tensor, float, float], Tensor]


def _heun(velocity: _Velocity, x: Tensor, v: Tensor, t: float, t_next: float) -> Tensor:
    # Over sigma, on x / (1 - t), the slope is epsilon = x + (1 - t) v. Euler's step, then half of the slope's change.
    end = x + (t_next - t) * v
    change = end + (1 - t_next) * velocity(end, t_next) - (x + (1 - t) * v)
    return end + (t_next - t) / (1 - t) / 2 * change


def _heun_flow(velocity: _Velocity, x: Tensor, v: Tensor, t: float, t_next: float) -> Tensor:
    end = x + (t_next - t) * v
    return x + (t_next - t) / 2 * (v + velocity(end, t_next))


def _dpm_2(velocity: _Velocity, x: Tensor, v: Tensor, t: float, t_next: float) -> Tensor:
    sigma = (t / (1 - t) * t_next / (1 - t_next)) ** 0.5
    middle = sigma / (1 + sigma)
    there = x + (middle - t) * v
    epsilon = there + (1 - middle) * velocity(there, middle)
    return (1 - t_next) / (1 - t) * x + (t_next - t) / (1 - t) * epsilon


_STEPS: dict[str, _Step] = {"heun": _heun, "heun_flow": _heun_flow, "dpm_2": _dpm_2}


@torch.no_grad()
def sample(
    model: Denoiser,
    noise: Tensor,
    t: Tensor,
    method: Method = "heun",
    cond: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
) -> tuple[Tensor, int]:
    """(x0, nfe): x0 [B, ...] in the dtype of `noise`, and the network evaluations that each sample took.

    A step takes two evaluations and the last one, to 0, one (Euler's): 2 k - 1 for k steps.

    noise: [B, ...], unit normal; the first state is t[0] * noise. t: a floating [k + 1], flow times, descending, the
    last 0. cond, batch_size: as for `Schedule.sample`.
    method:
        "heun": Karras et al., arXiv 2206.00364, Algorithm 1 without churn, which is k-diffusion's `sample_heun`: the
            trapezoidal rule over sigma = t / (1 - t). Wants t[0] < 1.
        "heun_flow": the trapezoidal rule over the flow time, as diffusers' `FlowMatchHeunDiscreteScheduler`.
        "dpm_2": DPM-Solver-2 (Lu et al., arXiv 2206.00927, Algorithm 1, r = 1/2), which is k-diffusion's
            `sample_dpm_2`: epsilon from the middle of the step in log sigma. Wants t[0] < 1.

    Raises TypeError or ValueError for bad input before any evaluation, and for outputs of another shape or dtype or
    with NaN or inf.
    """
    check_model(model)
    noise = check_noise(noise)
    given = check_cond(cond, noise)
    rows = pick_batch_size(batch_size, noise[0].numel())
    choice("method", method, METHODS)
    times = grids.check(t, t_max=model.t_max, t_min=model.t_min, name="t").tolist()
    if times[0] == 1 and method != "heun_flow":
        raise ValueError(f"t: got the first node 1, where sigma is infinite; {method!r} wanted it below 1")
    spent = 0

    def count(evaluations: int) -> None:
        nonlocal spent
        spent += evaluations

    def velocity(node: int, x: Tensor, at: float) -> Tensor:
        where = torch.tensor([at], dtype=torch.float64)
        out = evaluate(
            model, x[:, None], where, cond=given, dtype=noise.dtype, batch_size=rows, labels=[node], tick=count
        )
        return out.squeeze(1)

    state = noise.to(state_dtype(noise.dtype)) * times[0]
    for node, (now, after) in enumerate(pairwise(times)):
        evaluated = partial(velocity, node)
        v = evaluated(state, now)
        state = state + (after - now) * v if after == 0 else _STEPS[method](evaluated, state, v, now, after)
    return state.to(noise.dtype), spent // len(noise)
