"""`oss-ext search`: the schedules of a model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from oss_ext.cli_common import (
    load_model,
    parse_model_args,
    parse_shape,
    pick_device,
    pick_dtype,
    print_json,
    progress_bars,
    speaker,
    stderr,
)
from oss_ext.cli_options import (
    Beam,
    Candidates,
    Device,
    Dtype,
    Guidance,
    Json,
    ModelArgs,
    ModelName,
    Shape,
    SolverName,
)
from oss_ext.cli_ranks import crew
from oss_ext.cli_tables import found_table, solver_of, tried_table
from oss_ext.costs import SOURCES, X0
from oss_ext.files import whole_file, whole_folder
from oss_ext.ranks import TIMEOUT
from oss_ext.result import SearchResult
from oss_ext.schedule import Schedule
from oss_ext.search import dp_search
from oss_ext.teacher import DEFAULT_SOLVER, DEFAULT_STEPS


def search(
    model: ModelName,
    out: Annotated[
        Path, typer.Option(help="A .json file for the schedule of the largest budget, or a folder for every budget's.")
    ] = Path("schedule.json"),
    steps: Annotated[int, typer.Option(help="Largest budget K.")] = 10,
    teacher_steps: Annotated[int, typer.Option(help="Steps of the teacher.")] = DEFAULT_STEPS,
    grid: Annotated[str, typer.Option(help="Teacher's grid, with parameters: flow:shift=3, edm:rho=7, ...")] = "flow",
    solver: SolverName = "euler",
    teacher_solver: Annotated[str, typer.Option(help="What the teacher is integrated with.")] = DEFAULT_SOLVER,
    candidates: Candidates = None,
    nodes: Annotated[str, typer.Option(help="any, or integer: flow times of whole timesteps only.")] = "any",
    beam: Beam = 1,
    refine: Annotated[
        str | None,
        typer.Option(help="Of the largest budget: nodes moves its nodes; gradient polishes all, which is training."),
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="States brought to the teacher's amplitudes: scale (Eq. 13), affine or gain.")
    ] = None,
    cost: Annotated[str, typer.Option(help="What steps are judged by: x_t, or x0 (predicted again there).")] = "x_t",
    cost_sources: Annotated[
        int | None, typer.Option(help=f"With --cost x0: candidates judged a node; default {SOURCES}.")
    ] = None,
    share: Annotated[str, typer.Option(help="joint, median or per_sample (then --out is a folder).")] = "joint",
    start: Annotated[str, typer.Option(help="fixed or free.")] = "fixed",
    samples: Annotated[int, typer.Option(help="Noises to search on.")] = 8,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the noise; default the model's own noise(), else 0.")
    ] = None,
    batch_size: Annotated[
        str | None, typer.Option(help="Network inputs a batch; fastest: found on the search's own batches.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Under torchrun: seconds that a process waits for the slowest one.")
    ] = TIMEOUT,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A folder to keep the model's outputs in: the same command goes on where it was stopped."),
    ] = None,
    guidance: Guidance = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    shape: Shape = None,
    model_arg: ModelArgs = None,
    json_: Json = False,
) -> None:
    """Search a model's schedules and write them as JSON.

    Under torchrun (torchrun --nproc-per-node=8 -m oss_ext search ...) the processes share the samples, a GPU each.
    """
    if cost_sources is not None and cost != "x0":
        raise ValueError(f"cost_sources: got {cost_sources} with cost {cost!r}, wanted cost 'x0'")
    one_file = out.suffix == ".json"
    if one_file and share == "per_sample":
        raise ValueError(f"out: per_sample finds a schedule for each sample, wanted a folder, got {str(out)!r}")
    began = time.perf_counter()
    console = speaker(json_)
    arguments = parse_model_args(model_arg or [])
    with crew(device) as us:
        at = pick_device(us.device)
        source = load_model(model, arguments, guidance=guidance, device=at, dtype=pick_dtype(dtype))
        noise, cond = source.noise(samples, split=None, seed=seed, shape=parse_shape(shape))
        own, own_cond = us.share(noise, cond)
        written = us.leading((whole_file if one_file else whole_folder)(out))
        with written as place, us.leading(progress_bars(console)) as bars:
            try:
                result = dp_search(
                    source.model,
                    own,
                    steps,
                    teacher_steps=teacher_steps,
                    grid=grid,
                    solver=solver,
                    share=share,
                    start=start,
                    teacher_solver=teacher_solver,
                    candidates=candidates,
                    nodes=nodes,
                    beam=beam,
                    refine=refine,
                    calibration=calibration,
                    cost=cost if cost_sources is None else X0(cost_sources),
                    cond=own_cond,
                    batch_size=_batch_size(batch_size),
                    process_group=us.group,
                    timeout=timeout,
                    checkpoint=checkpoint,
                    progress=False if bars is None else bars.add("Teacher and search"),
                    metadata={"source": model, **({"model_arg": arguments} if arguments else {})},
                )
            except KeyboardInterrupt:
                if checkpoint is None:
                    raise
                stderr().print(f"Interrupted; the same command goes on from {escape(str(checkpoint))}.", soft_wrap=True)
                raise typer.Exit(130) from None
            files = [] if place is None else _write(result, place, one_file)
    if not us.leads:
        return
    seconds = time.perf_counter() - began
    if not json_:
        if result.table is not None:
            console.print(tried_table(result.table, result.steps))
        console.print(found_table(result))
        console.print(f"Wrote {escape(str(out))} in {seconds:.0f} s.", soft_wrap=True, highlight=False)
        return
    print_json(
        {
            "out": str(out),
            "files": [str(out)] if one_file else [str(out / name) for name in files],
            "model": source.model.describe(),
            "steps": result.steps,
            "grid": result.grid,
            "teacher_steps": len(result.t) - 1,
            "teacher_solver": teacher_solver,
            "solver": result.solver,
            "candidates": candidates,
            "nodes": nodes,
            "beam": beam,
            "refine": refine,
            "calibration": calibration,
            "cost": cost,
            "share": result.share,
            "start": result.start,
            "samples": len(noise),
            "store": result.store,
            "budgets": {
                str(budget): {
                    "t": one.t.tolist() if isinstance(one, Schedule) else [each.t.tolist() for each in one],
                    "solver": solver_of(one),
                    "cost": float(result.costs[budget].mean()),
                }
                for budget, one in result.schedules.items()
            },
            "nfe": result.nfe,
            "tried": result.table,
            "seconds": seconds,
        }
    )


def _batch_size(text: str | None) -> int | str | None:
    if text is None or not text.lstrip("-").isdecimal():
        return text
    return int(text)


def _write(result: SearchResult, place: Path, one_file: bool) -> list[str]:
    """Writes the largest budget's schedule to `place`, or every schedule into it; the names in the folder."""
    largest = result.schedule
    if one_file and isinstance(largest, Schedule):
        largest.save(place)
        return []
    names = {}
    for budget, one in result.schedules.items():
        if isinstance(one, Schedule):
            names[f"steps_{budget:02d}.json"] = one
        else:
            names.update({f"steps_{budget:02d}_sample_{k:03d}.json": each for k, each in enumerate(one)})
    for name, schedule in names.items():
        schedule.save(place / name)
    return list(names)
