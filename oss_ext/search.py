"""dp_search: the schedules of every budget for a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from oss_ext import costs, grids, solvers
from oss_ext.auto import Auto, moved_budgets
from oss_ext.checkpoint import Checkpoint
from oss_ext.costs import Cost
from oss_ext.drive import drive
from oss_ext.evaluate import pick_pace
from oss_ext.facts import fact
from oss_ext.models import Denoiser
from oss_ext.pace import Pace
from oss_ext.progress import Counter, ProgressCallback, check_progress
from oss_ext.provenance import Provenance
from oss_ext.ranks import ALONE, TIMEOUT, Meeting, Ranks
from oss_ext.refine import METHODS, run_refinement
from oss_ext.result import SearchResult
from oss_ext.schedule import Schedule
from oss_ext.search_core import Core, dp_core, rehearse
from oss_ext.store import give_back
from oss_ext.teacher import DEFAULT_SOLVER, DEFAULT_STEPS
from oss_ext.validate import check_cond, check_model, check_noise, check_weight, choice


@torch.no_grad()
def dp_search(
    model: Denoiser,
    noise: Tensor,
    steps: int = 10,
    *,
    teacher_steps: int = DEFAULT_STEPS,
    grid: str | Tensor = "flow",
    solver: str | solvers.Solver | Auto = "euler",
    share: str = "joint",
    start: str = "fixed",
    teacher_solver: str | solvers.Solver = DEFAULT_SOLVER,
    candidates: int | None = None,
    nodes: str = "any",
    beam: int = 1,
    refine: str | None = None,
    weight: Tensor | None = None,
    calibration: str | None = None,
    cost: str | Cost = "x_t",
    cond: Mapping[str, Tensor] | None = None,
    batch_size: int | str | None = None,
    store: str = "auto",
    process_group: Any = None,
    timeout: float = TIMEOUT,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | ProgressCallback = False,
    metadata: Mapping[str, Any] | None = None,
) -> SearchResult:
    """Distils schedules of 1..`steps` steps from the model's own trajectory of `teacher_steps` steps.

    OSS (Pei, Han, Gu, arXiv 2503.21774), Algorithm 1: of all steps i -> j into a node, the one that lands nearest to
    the teacher's state there is kept; exactly k steps at stage k.

    model: FlowModel, EDMModel, EpsilonModel, VParamModel, X0Model, or any `Denoiser`.
    noise: [B, ...], unit normal, on the CPU or a GPU: float32, float64, or bfloat16 or float16, which the network is
        then fed while states are kept in float32.
    steps: the largest budget K, 1..teacher_steps.
    grid: a name with parameters ("flow", "flow:shift=3", "edm:rho=7", see `grids.make`), or a floating tensor of flow
        times [N + 1], descending and ending in 0; teacher_steps is then N, whatever was given.
    solver: a name of `solvers.names()` or a `Solver`: what the schedule will be deployed with. "fitted": least-squares
        coefficients; "mixed": every step its own order; both are kept in the schedule. "auto" or an `Auto`: several
        families, judged on a quarter of the samples; `result.table` says what was tried.
    share: "joint": one schedule for all samples, costs summed over them; "median": the paper's OSS-ave, the
        elementwise median of every sample's own schedule; "per_sample": one for each.
    start: "fixed": the first step leaves node 0; "free": it may leave any node i, from the state t_i * noise (fitted:
        c_i * noise with the c_i that comes nearest to the teacher).
    teacher_solver: a name of `solvers.formulas()`, what the teacher is integrated with.
    candidates: search on this many nodes of the grid, placed where the teacher's velocity turns; as many as the grid
        has: on all. None: max(24, 2.4 steps) with share "joint", else all.
    nodes: "integer": only flow times of whole timesteps, for deployed samplers that truncate them.
    beam: how many states a node keeps; above 1 only with share "joint".
    refine: "nodes" or "gradient": brings the schedule of the largest budget, and that alone, nearer to the teacher
        (`oss_ext.refine` with its defaults, same noises and grid; progress then counts anew); only with share "joint".
    weight: [...], as one sample, >= 0: of the squared differences in every cost, and in least squares; mean 1 keeps
        costs in the usual units (`integrations.video.cost_weight` for some frames and channels). Candidates are placed
        without it. Not with solver "auto" or `refine`.
    calibration: "scale", "affine" or "gain" (`schedule.calibration` says what they are): every state of the search is
        brought to the amplitudes of this teacher on these noises (or to the multiple nearest to the teacher) before it
        is evaluated, and the schedules do the same. Not with solver "auto", share "median" or `refine`; "gain" not with
        a beam or a weight.
    cost: what steps are judged by: "x_t": the distance of the states; "x0": that of the x0 predictions there; or one of
        `oss_ext.costs`: features, the network's activations, x0 with another number of candidates a node. The few steps
        into each node that "x_t" ranks first are judged; least squares and orders ("fitted", "mixed") follow "x_t"
        still, and `result.costs` are distances of the clean states as ever. Not with solver "auto", a beam or
        `calibration`; features and activations not with `weight` or `refine`.
    cond: tensors [B, ...], handed to the network by name.
    batch_size: network inputs a batch; None: 2^20 numbers, at most 256 inputs. "fastest": what is fastest here and
        fits into memory, found on the search's own batches; a network whose bits depend on the batch may then not
        repeat them. A model whose attribute `one_time` is true gets one flow time a batch.
    store: where the states are kept: "device": beside the noise; "host": in host memory, pinned beside a GPU where half
        of what is available holds them, from where batches go to the network, and the CPU's kernels do the rest;
        "auto": "host" where they would take more than 0.8 of the device's free memory. `result.store` says where.
    process_group: a group of torch.distributed, with gloo or NCCL, whose ranks share the samples: all call this with
        the same arguments but their own `noise` and `cond`, of any number of samples, 0 too. Every rank returns the
        same schedules, those that one process finds with the ranks' noises one after another, bit by bit if the
        model's outputs do not depend on the rest of a batch (batch_size=1 makes sure). A stage's costs go round,
        candidates^2 numbers a sample. `result.endpoints` and `teacher` are of a rank's own samples, all else is of
        all. An error on one rank ends the others with a `RuntimeError` that tells it. Not with `refine`.
    checkpoint: a folder for the model's outputs, new or of this very search, which then goes on where it was stopped
        and ends with the same bits; Ctrl-C saves what was not yet saved. Written after every stage, and every half
        minute between. It takes B * evaluations a sample * D numbers, and stays: the same call again evaluates nothing
        but a first output, by which another model is told. Ranks have a folder each in it. `refine` begins anew. Not
        with `costs.Perceptual`.
    timeout: seconds that a rank waits for the slowest one; a rank that died is noticed at once.
    progress: True for a bar with evaluations and time left (with a group: rank 0's), or a callback (evaluations made,
        in all).
    metadata: JSON values to keep in the schedules' provenance (guidance scale, checkpoint, ...).

    Memory: a few times B * teacher_steps * D numbers, and beam times B * candidates * D. Evaluations a sample:
    teacher_steps, and at most beam * candidates a budget; a cost that evaluates S candidates a node: candidates, and S
    times as many a budget.

    Raises TypeError or ValueError that names the argument, before any evaluation; and for outputs of another shape,
    dtype or device, or with NaN or inf (the node, its flow time and the sample are named).
    """
    with Meeting(process_group, timeout) as everyone:
        check_model(model)
        noise = check_noise(noise, least=0 if process_group is not None else 1)
        given = check_cond(cond, noise)
        choice("nodes", nodes, grids.NODES)
        t = grids.on_nodes(grids.of_teacher(grid, teacher_steps, model), model, nodes)
        progress = check_progress(progress)
        rows = pick_pace(batch_size, noise.shape[1:].numel())
        _check_metadata(metadata)
        if checkpoint is not None and type(cost) is costs.Perceptual:
            raise ValueError(f"checkpoint: got one with cost {cost.name!r}, which watches the model, wanted None")
        _check_refine(refine, noise, share, nodes, weight, calibration, cost)
        if refine is not None and process_group is not None:
            raise ValueError(f"process_group: got one with refine {refine!r}, wanted None")

        def make_grid(name: str, count: int) -> Tensor:
            return grids.on_nodes(grids.for_model(name, count, model), model, nodes)

        def core_on(
            noise: Tensor,
            solver: str | solvers.Solver | Auto,
            cost: str | Cost,
            weight: Tensor | None = None,
            ranks: Ranks = ALONE,
        ) -> Core:
            return dp_core(
                noise,
                t,
                steps,
                solver=solver,
                share=share,
                start=start,
                teacher_solver=teacher_solver,
                candidates=candidates,
                beam=beam,
                weight=weight,
                calibration=calibration,
                cost=cost,
                store=store,
                make_grid=make_grid,
                ranks=ranks,
            )

        def told() -> dict[str, Any]:
            """What must be the same on every rank, as JSON values."""
            given_weight = check_weight(weight, noise)
            facts: dict[str, Any] = fact(
                {
                    "model": model.describe(),
                    "samples of": list(noise.shape[1:]),
                    "dtype": str(noise.dtype),
                    "device": noise.device.type,
                    "steps": steps,
                    "teacher_steps": len(t) - 1,
                    "grid": t,
                    "solver": solver,
                    "share": share,
                    "start": start,
                    "teacher_solver": teacher_solver,
                    "candidates": candidates,
                    "nodes": nodes,
                    "beam": beam,
                    "weight": given_weight,
                    "calibration": calibration,
                    "cost": cost.describe() if isinstance(cost, Cost) else cost,
                    "store": store,
                    "cond": sorted(given),
                }
            )
            return facts

        ranks = everyone.sharing(len(noise))
        if not ranks.alone:
            ranks.agree(told(), "wanted the same on every rank")
        core = core_on(noise, solver, cost, weight, ranks)
        progress = progress if ranks.rank == 0 or callable(progress) else False
        samples, counting = ranks.count(len(noise)), partial(core_on, cost=costs.for_counting(cost))
        total = _count(counting, samples, steps, solver) * len(noise) // samples if progress else 0
        watching = cost.watching(model) if isinstance(cost, Cost) else nullcontext(model)
        kept: Checkpoint | None = None
        with ExitStack() as open_now:
            counter = open_now.enter_context(Counter(total, progress, "search"))
            asked = open_now.enter_context(watching)
            if checkpoint is not None:
                own = {"noise": noise, "cond": given, "rank": [ranks.rank, samples]}
                kept = open_now.enter_context(_open(checkpoint, {**told(), **fact(own)}, noise.dtype, ranks))
            found = drive(
                core,
                asked,
                cond=given,
                dtype=noise.dtype,
                batch_size=rows,
                counter=counter,
                device=noise.device,
                checkpoint=kept,
            )
            counter.finish()
    give_back(found.store)
    result = SearchResult.build(found, model, grid="custom" if isinstance(grid, Tensor) else grid, metadata=metadata)
    if refine is None:
        return result
    searched = result.schedule
    assert isinstance(searched, Schedule)
    judged = result.table is not None  # the teacher is then known of the samples that judged, the last ones
    refined = run_refinement(
        searched,
        model,
        noise,
        method=refine,
        cond=cond,
        grid=t,
        teacher_solver=teacher_solver,
        teacher=None if judged else result.teacher,
        solver=None if judged or isinstance(solver, Auto) else solver,
        batch_size=rows.size if isinstance(rows, Pace) else rows,
        store=store,
        progress=progress,
    )
    return result.refined(refined.schedule, refined.error, refined.endpoint)


def _open(path: str | os.PathLike[str], facts: dict[str, Any], dtype: torch.dtype, ranks: Ranks) -> Checkpoint:
    """This rank's: a folder of its own within `path` where there are several."""
    if ranks.alone:
        return Checkpoint(path, facts, dtype)
    if Path(path).absolute().parent.is_dir() and not Path(path).is_file():
        Path(path).mkdir(exist_ok=True)
    return Checkpoint(Path(path) / f"rank_{ranks.rank:03d}", facts, dtype)


def _count(
    core_on: Callable[[Tensor, str | solvers.Solver | Auto], Core],
    samples: int,
    steps: int,
    solver: str | solvers.Solver | Auto,
) -> int:
    """Evaluations that a search over this many samples will make at most, all samples together."""
    if solver == "auto":
        solver = Auto()
    if isinstance(solver, Auto):
        moves = sum(max(solver.moves, 2 * budget) + budget for budget in moved_budgets(solver, steps))
        return rehearse(core_on(torch.ones(samples, 1), replace(solver, moves=0))) + samples * moves
    few = min(samples, 2)  # what is asked of each sample is alike
    return rehearse(core_on(torch.ones(few, 1), solver)) * samples // few


def _check_refine(
    refine: Any, noise: Tensor, share: str, nodes: str, weight: Tensor | None, calibration: Any, cost: str | Cost
) -> None:
    if refine is None:
        return
    choice("refine", refine, METHODS)
    if share != "joint":
        raise ValueError(f"share: got {share!r} with refine {refine!r}, wanted 'joint'")
    if refine == "gradient" and nodes == "integer":
        raise ValueError("refine: got 'gradient' with nodes 'integer', off which it moves the times, wanted 'nodes'")
    if weight is not None:
        raise ValueError(f"weight: got one with refine {refine!r}, which lowers the unweighted distance, wanted None")
    if calibration is not None:
        raise ValueError(f"calibration: got {calibration!r} with refine {refine!r}, wanted None")
    if isinstance(cost, Cost) and cost.clean:
        raise ValueError(f"cost: got {cost.name!r} with refine {refine!r}, which lowers the distance of clean states")
    if refine == "gradient" and len(noise) < 2:
        raise ValueError("noise: got 1 sample with refine 'gradient', wanted at least 2: some of them only judge")


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
