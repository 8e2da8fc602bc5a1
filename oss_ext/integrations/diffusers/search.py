"""A search through a pipeline's own loop."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from tqdm import tqdm

from oss_ext import costs, grids, solvers
from oss_ext.auto import Auto
from oss_ext.costs import Cost
from oss_ext.integrations.diffusers import describe, mismatch
from oss_ext.integrations.diffusers.attach import native_scheduler, replace, restore
from oss_ext.integrations.diffusers.calls import Call
from oss_ext.integrations.diffusers.conduct import Trial, conduct, count, try_out
from oss_ext.integrations.diffusers.family import Family, family_of
from oss_ext.integrations.diffusers.loops import SearchScheduler, free, run_one, run_several
from oss_ext.integrations.diffusers.watch import Watch
from oss_ext.progress import Counter, ProgressCallback, check_progress
from oss_ext.provenance import Provenance
from oss_ext.result import SearchResult
from oss_ext.search_core import Core, dp_core
from oss_ext.store import give_back
from oss_ext.teacher import DEFAULT_SOLVER, DEFAULT_STEPS
from oss_ext.validate import choice, whole_number

LEAST_SAMPLES = 4
_LOG = logging.getLogger("oss_ext")


@torch.no_grad()
def search(
    pipe: Any,
    steps: int = 10,
    *,
    solver: str | solvers.Solver | Auto = "unipc",
    samples: int | None = None,
    seed: int = 0,
    calls: Sequence[Mapping[str, Any]] | None = None,
    teacher_steps: int = DEFAULT_STEPS,
    grid: str | Tensor | None = None,
    nodes: str | None = None,
    share: str = "joint",
    start: str = "fixed",
    teacher_solver: str | solvers.Solver = DEFAULT_SOLVER,
    candidates: int | None = None,
    beam: int = 1,
    weight: Tensor | None = None,
    calibration: str | None = None,
    cost: str | Cost = "x_t",
    store: str = "auto",
    loop: str = "auto",
    progress: bool | ProgressCallback = True,
    metadata: Mapping[str, Any] | None = None,
    **pipeline_arguments: Any,
) -> SearchResult:
    """`dp_search` on what a diffusers pipeline samples, with its own prompts, guidance, adapters, offloading and dtype.

    The pipeline is called with `pipeline_arguments`, and a scheduler of ours hands its loop the states that the search
    asks for. Its class need not be known. Nothing is decoded. The pipe is left as it was, after an exception too.

    steps, solver, teacher_steps, share, start, teacher_solver, candidates, beam, weight (as one sample of the
        loop's latents), calibration, cost, store, metadata: as for `dp_search`; `costs.Feature` sees latents, and
        `costs.Perceptual` is refused: the pipeline calls its network as it likes.
    samples: how many noises, a multiple of what one call of the pipeline gives; None: one call, or as many as make 4.
        Every call's state is kept: raise num_images_per_prompt where the memory allows, else several calls take turns.
    calls: further arguments, one dict a call, used in turn: calls=[{"prompt": p} for p in prompts].
    seed: of the noise, on the CPU; generators among the arguments are copied, not used up.
    grid: as for `dp_search`; None: "flow" with the pipeline's own shift, "ddim" or "edm".
    nodes: "any"; "integer": whole timesteps only; None: "integer" where the pipeline's scheduler tells no others.
    loop: "live": timesteps are written as the pipeline runs; "planned": set before a call, which is made again where
        the search wants others; "auto": live if a short trial shows that the network is told them.
    progress: True: a bar over the loops' steps, and before it an estimate of the time; or a callback (made, in all).

    Returns a `SearchResult`; costs and endpoints are of latents. One step of every call, and up to six of the first,
    are spent beside what `nfe` counts. Control and guidance intervals given as shares of the steps see none of them.

    Raises TypeError or ValueError for bad input; RuntimeError for a pipeline that changes latents between steps, has
    several loops, or ends early.
    """
    native = native_scheduler(pipe)
    family = family_of(native)
    steps = whole_number("steps", steps, least=1)
    choice("loop", loop, ("auto", "live", "planned"))
    progress = check_progress(progress)
    given = [{**pipeline_arguments, **more} for more in (calls if calls is not None else [{}])]
    if not given:
        raise ValueError("calls: got none, wanted at least one dict of arguments")
    _check_names(pipe, given)
    if samples is not None:
        samples = whole_number("samples", samples, least=1)
    if nodes is None:
        nodes = "integer" if family.whole and family.alphas_cumprod is not None else "any"
    choice("nodes", nodes, grids.NODES)
    _no_caches(pipe)
    _check_metadata(metadata)
    if isinstance(cost, costs.Perceptual):
        raise ValueError("cost: got a perceptual one, which dp_search alone can make, wanted another")
    model = family.terms()
    whole = nodes == "integer" and family.alphas_cumprod is not None
    watch = Watch()

    def call(number: int, live: bool) -> Call:
        round_, which = divmod(number, len(given))
        return Call(given[which], seed + number, family, whole, live, float(t[0]), watch, round_)

    def on_nodes(times: Tensor) -> Tensor:
        return grids.on_nodes(times, model, nodes)

    def core_on(noise: Tensor) -> Core:
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
            weight=weight if noise.shape[1:] != (1,) else None,
            calibration=calibration,
            cost=cost if noise.shape[1:] != (1,) else costs.for_counting(cost),
            store=store,
            make_grid=lambda name, budget: on_nodes(grids.for_model(name, budget, model)),
        )

    t = on_nodes(grids.of_teacher("flow" if grid is None else grid, teacher_steps, model))  # its ends, and its errors
    count(core_on(torch.ones(max(2, samples or 0), 1)), 1)  # every complaint before anything is evaluated
    scheduler = SearchScheduler(native, family)
    with _borrowed(pipe, scheduler):
        middle = [float(t[len(t) // 3]), float(t[2 * len(t) // 3])] if len(t) > 3 else [float(t[0])]
        trial = run_one(pipe, scheduler, try_out(call(0, live=False), middle))
        free(pipe)
        shift = family.shift_of(scheduler.mu)
        name = grid if isinstance(grid, str) else "custom" if grid is not None else _grid_of(family, shift)
        t = on_nodes(grids.of_teacher(name if grid is None else grid, teacher_steps, model))
        batch = len(trial.noise)
        number = _calls(samples, batch, len(given))
        all_calls = [call(n, live=loop != "planned") for n in range(number)]
        total = count(core_on(torch.ones(number * batch, 1)), batch)
        _announce(total, trial, number, progress)
        with Counter(total, progress, "search") as counter:
            conductor = conduct(all_calls, core_on, t[:-1].tolist(), trial, loop == "auto", watch, counter)
            if number == 1:
                found = run_one(pipe, scheduler, conductor)
            else:
                found = run_several(pipe, scheduler, conductor, all_calls)
            counter.finish()
    give_back(found.store)
    origin = {
        mismatch.KEY: {
            **describe.pipeline(pipe, family),
            "arguments": describe.arguments(pipe, given[0]),
            "latents": list(trial.noise.shape[1:]),
            "seed": seed,
            "shift": shift,
            "diffusers": describe.version(),
        }
    }
    return SearchResult.build(found, model, grid=name, metadata={**origin, **(metadata or {})})


def _grid_of(family: Family, shift: float) -> str:
    if family.parameterization == "flow":
        return "flow" if shift == 1 else f"flow:shift={shift:.6g}"
    return "edm" if family.parameterization == "edm" else "ddim"


def _calls(samples: int | None, batch: int, arguments: int) -> int:
    """How many calls give `samples` noises."""
    if samples is None:
        return max(arguments, -(-LEAST_SAMPLES // batch))
    if samples % batch:
        raise ValueError(f"samples: got {samples}, wanted a multiple of {batch}, what one call of the pipeline gives")
    if samples // batch < arguments:
        raise ValueError(
            f"samples: got {samples} with {arguments} calls of {batch} each, wanted at least {batch * arguments}"
        )
    return samples // batch


def _announce(total: int, trial: Trial, calls: int, progress: bool | ProgressCallback) -> None:
    seconds, samples = total * trial.seconds, len(trial.noise)
    text = (
        f"search: {total} steps of {calls} pipeline {'loop' if calls == 1 else 'loops'} of {samples} "
        f"{'sample' if samples == 1 else 'samples'}, "
        f"{trial.seconds:.3g} s a step: about {_duration(seconds)}"
    )
    _LOG.info(text)
    if progress is True:
        tqdm.write(text)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextmanager
def _borrowed(pipe: Any, scheduler: SearchScheduler) -> Iterator[None]:
    """The pipe with our scheduler and without progress bars of its own; then all its attributes as they were."""
    before = dict(vars(pipe))
    hooks: dict[str, Any] = {
        "scheduler": scheduler,
        "_progress_bar_config": {**(getattr(pipe, "_progress_bar_config", None) or {}), "disable": True},
    }
    if callable(getattr(pipe, "get_timesteps", None)):
        hooks["get_timesteps"] = _uncut(pipe.get_timesteps, scheduler)
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        undo = replace(pipe, hooks)
        try:
            yield
        finally:
            restore(pipe, undo)
            free(pipe)
            kept = {name: value for name, value in vars(pipe).items() if name == "_all_hooks"}
            vars(pipe).clear()
            vars(pipe).update({**before, **kept})


def _uncut(get_timesteps: Callable[..., Any], scheduler: SearchScheduler) -> Callable[..., Any]:
    """Image-to-image pipelines cut the timesteps by their strength; a search runs from noise."""

    def timesteps(*args: Any, **kwargs: Any) -> Any:
        cut = get_timesteps(*args, **kwargs)
        if isinstance(cut, tuple) and len(cut) == 2 and isinstance(cut[0], Tensor):
            return scheduler.timesteps, len(scheduler.timesteps)
        return cut

    return timesteps


def _check_names(pipe: Any, given: Sequence[Mapping[str, Any]]) -> None:
    parameters = inspect.signature(pipe.__call__).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in {name for each in given for name in each}:
        if name not in parameters:
            raise TypeError(f"{name}: no argument of search, nor of {type(pipe).__name__}")


def _check_metadata(metadata: Any) -> None:
    """A TypeError or ValueError now rather than after the search."""
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(f"metadata: got {type(metadata).__name__}, wanted a dict of JSON values")
    try:
        Provenance(metadata=dict(metadata or {}))
    except ValidationError as error:
        raise ValueError(f"metadata: wanted JSON values ({error.errors()[0]['msg']})") from None


def _no_caches(pipe: Any) -> None:
    """Caches that reuse outputs of the step before see a search's steps in another order."""
    for name, part in getattr(pipe, "components", {}).items():
        if getattr(part, "is_cache_enabled", False) is True:
            raise ValueError(f"pipe: its {name} has a cache enabled, wanted it off for a search (disable_cache())")
