"""dp_search: the schedules of every budget for a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from oss_ext import grids, solvers
from oss_ext.evaluate import evaluate, pick_batch_size
from oss_ext.models import Denoiser
from oss_ext.progress import Counter, ProgressCallback, check_progress
from oss_ext.provenance import Provenance
from oss_ext.result import SearchResult
from oss_ext.search_core import Core, Found, count_evaluations, dp_core
from oss_ext.validate import check_cond, check_model, check_noise, whole_number


@torch.no_grad()
def dp_search(
    model: Denoiser,
    noise: Tensor,
    steps: int = 10,
    *,
    teacher_steps: int = 200,
    grid: str | Tensor = "flow",
    solver: str | solvers.Solver = "euler",
    share: str = "joint",
    start: str = "fixed",
    cond: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    progress: bool | ProgressCallback = False,
    metadata: Mapping[str, Any] | None = None,
) -> SearchResult:
    """Distils schedules of 1..`steps` steps from the model's own trajectory of `teacher_steps` Euler steps.

    OSS (Pei, Han, Gu, arXiv 2503.21774), Algorithm 1: of all steps i -> j into a node, the one that lands nearest to
    the teacher's state there is kept; exactly k steps at stage k.

    model: FlowModel, EDMModel, EpsilonModel, VParamModel, X0Model, or any `Denoiser`.
    noise: [B, ...], unit normal, on the CPU or a GPU: float32, float64, or bfloat16 or float16, which the network is
        then fed while states are kept in float32.
    steps: the largest budget K, 1..teacher_steps.
    grid: a name with parameters ("flow", "flow:shift=3", "edm:rho=7", see `grids.make`), or a floating tensor of flow
        times [N + 1], descending and ending in 0; teacher_steps is then N, whatever was given.
    solver: a name of `solvers.names()` or a `Solver`: what the schedule will be deployed with.
    share: "joint": one schedule for all samples, costs summed over them; "median": the paper's OSS-ave, the
        elementwise median of every sample's own schedule; "per_sample": one for each.
    start: "fixed": the first step leaves node 0; "free": it may leave any node i, from the state t_i * noise.
    cond: tensors [B, ...], handed to the network by name.
    batch_size: network inputs a batch; None: 2^20 numbers, at most 256 inputs.
    progress: True for a bar with evaluations and time left, or a callback (evaluations made, in all).
    metadata: JSON values to keep in the schedules' provenance (guidance scale, checkpoint, ...).

    Memory: a few times B * teacher_steps * D numbers. Evaluations a sample: teacher_steps, and at most teacher_steps a
    budget.

    Raises TypeError or ValueError that names the argument, before any evaluation; and for outputs of another shape,
    dtype or device, or with NaN or inf (the node, its flow time and the sample are named).
    """
    check_model(model)
    noise = check_noise(noise)
    given = check_cond(cond, noise)
    t, grid_name = _grid(grid, teacher_steps, model)
    progress = check_progress(progress)
    rows = pick_batch_size(batch_size, noise[0].numel())
    _check_metadata(metadata)
    core = dp_core(noise, t, steps, solver=solver, share=share, start=start)
    total = count_evaluations(len(t) - 1, steps, share, start)["total"] * len(noise)
    with Counter(total, progress, "search") as counter:
        found = drive(core, model, t, cond=given, dtype=noise.dtype, batch_size=rows, counter=counter)
    return SearchResult.build(found, model, grid=grid_name, metadata=metadata)


def drive(
    core: Core,
    model: Denoiser,
    t: Tensor,
    *,
    cond: Mapping[str, Tensor],
    dtype: torch.dtype,
    batch_size: int,
    counter: Counter,
) -> Found:
    """Answers every ask of `core` with `model`; see `evaluate` for the arguments and the errors."""
    try:
        states, nodes = next(core)
        while True:
            velocities = evaluate(
                model,
                states,
                t[nodes],
                cond=cond,
                dtype=dtype,
                batch_size=batch_size,
                labels=nodes.tolist(),
                tick=counter.add,
            )
            states, nodes = core.send(velocities)
    except StopIteration as done:
        found: Found = done.value
        return found


def _check_metadata(metadata: Any) -> None:
    """A TypeError or ValueError now rather than after the search."""
    if metadata is None:
        return
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata: got {type(metadata).__name__}, wanted a dict of JSON values")
    try:
        Provenance(metadata=dict(metadata))
    except ValidationError as error:
        raise ValueError(f"metadata: got {dict(metadata)!r}, wanted JSON values ({error.errors()[0]['msg']})") from None


def _grid(grid: str | Tensor, teacher_steps: int, model: Denoiser) -> tuple[Tensor, str]:
    """(flow times, name for provenance)."""
    if isinstance(grid, Tensor):
        return grids.check(grid, t_max=model.t_max, t_min=model.t_min), "custom"
    count = whole_number("teacher_steps", teacher_steps, least=1)
    return grids.for_model(grid, count, model), grid
