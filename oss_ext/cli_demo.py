"""`oss-ext demo`: search on a bundled model, and what it is worth on held-out noises."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from oss_ext import grids, solvers, zoo
from oss_ext.cli_common import pick_device, print_json, progress_bars, shifted, speaker
from oss_ext.cli_options import Candidates, Device, Json, SolverName
from oss_ext.files import whole_folder
from oss_ext.metrics import pooled_psnr, psnr
from oss_ext.plot import plot_comparison, plot_schedules
from oss_ext.schedule import Schedule
from oss_ext.search import dp_search
from oss_ext.teacher import DEFAULT_SOLVER, DEFAULT_STEPS
from oss_ext.zoo import ZooModel

Column = dict[int, float | None]
SHOWN = 9  # samples in the picture: one a class
USUAL = "dpmpp_2m"  # what the stock schedules run with where the search has no formula to compare with


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the schedules and the pictures.")] = Path("oss-demo"),
    name: Annotated[str, typer.Option("--model", help=f"{' or '.join(zoo.names())}.")] = "photo32",
    steps: Annotated[int, typer.Option(help="Largest budget K; every budget 1..K is found.")] = 10,
    teacher_steps: Annotated[int, typer.Option(help="Steps of the teacher.")] = DEFAULT_STEPS,
    samples: Annotated[int, typer.Option(help="Noises to search on.")] = 9,
    heldout: Annotated[int, typer.Option(help="Other noises to measure on.")] = 18,
    solver: SolverName = "euler",
    candidates: Candidates = None,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1: none.")] = 1.0,
    device: Device = "auto",
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Show the picture at the end.")] = False,
    json_: Json = False,
) -> None:
    """Search schedules for a bundled model, measure them on held-out noises, draw pictures. About half a minute."""
    began = time.perf_counter()
    console = speaker(json_)
    _check(steps, teacher_steps, samples, heldout)
    known = solver in solvers.formulas() or solver in solvers.ALIASES
    if solver != "auto":
        solvers.get(solver)
    stock = solver if known else USUAL
    where = pick_device(device)
    model = zoo.load(name, guidance_scale=guidance, device=where)
    with whole_folder(out) as folder:
        console.print(
            f"Model   [bold]{name}[/], {model.parameter_count / 1e6:.1f} M parameters, guidance {guidance:g}, "
            f"on {_device_name(where)}\n"
            f"Search  {samples} noises, a teacher of {teacher_steps} {DEFAULT_SOLVER} steps, budgets 1 to {steps}\n"
            f"Test    {heldout} other noises: {stock} on uniform and EDM flow times, {solver} on those of OSS,\n"
            "        PSNR to the teacher from the same noises, in dB (of the error averaged over all of them)",
            highlight=False,
            soft_wrap=True,
        )
        found = _run(model, steps, teacher_steps, samples, heldout, solver, stock, candidates, console)
        schedules, table, pictures, nfe = found
        console.print(_table(table))
        schedules[steps].save(folder / "schedule.json")
        (folder / "schedules").mkdir()
        for budget, schedule in schedules.items():
            schedule.save(folder / "schedules" / f"steps_{budget:02d}.json")
        plot_schedules(schedules, folder / "schedules.png")
        names = [model.classes[k % len(model.classes)] for k in range(min(heldout, SHOWN))]
        plot_comparison(pictures, folder / "comparison.png", labels=names)
    seconds = time.perf_counter() - began
    files = {
        "schedule": (out / "schedule.json", f"the {steps}-step schedule"),
        "schedules": (out / "schedules", f"budgets 1 to {steps}, one file each"),
        "schedules_png": (out / "schedules.png", "where each budget spends its steps"),
        "comparison_png": (out / "comparison.png", f"teacher, OSS and uniform at {steps} steps"),
    }
    for path, what in files.values():
        console.print(f"  {escape(str(path)):<32} {what}", soft_wrap=True, highlight=False)
    console.print(f"Done in {seconds:.0f} s.")
    if json_:
        print_json(
            {
                "model": model.describe(),
                "device": str(where),
                "steps": steps,
                "teacher_steps": teacher_steps,
                "samples": samples,
                "heldout": heldout,
                "solver": solver,
                "stock_solver": stock,
                "candidates": candidates,
                "psnr_db": {name: {str(k): value for k, value in column.items()} for name, column in table.items()},
                "t": schedules[steps].t.tolist(),
                "nfe": nfe,
                "files": {name: str(path) for name, (path, _) in files.items()},
                "seconds": seconds,
            }
        )
    if open_:
        typer.launch(str(out / "comparison.png"))


def _check(steps: int, teacher_steps: int, samples: int, heldout: int) -> None:
    for name, value in (("teacher-steps", teacher_steps), ("samples", samples), ("heldout", heldout)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, wanted at least 1")
    if not 1 <= steps <= teacher_steps:
        raise ValueError(f"steps: got {steps}, wanted 1 to {teacher_steps}, the teacher's")
    psnr(torch.zeros(1, 2), torch.ones(1, 2))  # a missing extra is better known now than after the search


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads"


def _run(
    model: ZooModel,
    steps: int,
    teacher_steps: int,
    samples: int,
    heldout: int,
    solver: str,
    stock: str,
    candidates: int | None,
    console: Console,
) -> tuple[dict[int, Schedule], dict[str, Column], dict[str, Tensor], dict[str, float]]:
    """(OSS schedules by budget, PSNR by sampler and budget, pictures by title, evaluations a sample)."""
    noise, cond = model.noise(samples, "search")
    unseen, labels = model.noise(heldout, "heldout")
    budgets = range(1, steps + 1)
    with progress_bars(console) as bars:
        result = dp_search(
            model,
            noise,
            steps,
            teacher_steps=teacher_steps,
            solver=solver,
            candidates=candidates,
            cond=cond,
            progress=bars.add("Teacher and search"),
        )
        found = {k: one for k, one in result.schedules.items() if isinstance(one, Schedule)}
        samplers = {
            "uniform": {k: Schedule.from_grid(grids.for_model("flow", k, model), stock, model) for k in budgets},
            "EDM": {k: Schedule.from_grid(grids.for_model("edm", k, model), stock, model) for k in budgets},
            "OSS": found,
        }
        fine = Schedule.from_grid(result.t, DEFAULT_SOLVER, model)
        teacher = fine.sample(model, unseen, labels, progress=bars.add("Test: teacher"))
        move = bars.add("Test: 3 samplers", heldout * len(samplers) * sum(budgets))
        done = 0
        pictures: dict[str, Tensor] = {}
        table: dict[str, Column] = {}
        for name, by_budget in samplers.items():
            table[name] = {}
            for budget, schedule in by_budget.items():
                images = schedule.sample(model, unseen, labels, progress=shifted(move, done))
                done += budget * heldout
                score = float(pooled_psnr(psnr(images, teacher)))
                table[name][budget] = score if score < float("inf") else None
            if name != "EDM":
                pictures[name] = images[:SHOWN]
    count = f"{steps} step{'s' if steps > 1 else ''}"
    titles = {f"OSS, {count}": pictures["OSS"], f"Uniform, {count}": pictures["uniform"]}
    return found, table, {f"Teacher, {teacher_steps} steps": teacher[:SHOWN], **titles}, result.nfe


def _table(table: dict[str, Column]) -> Table:
    view = Table(title="PSNR to the teacher on held-out noises, dB", title_justify="left")
    view.add_column("steps", justify="right")
    for name in table:
        view.add_column(name, justify="right")
    view.add_column("OSS - uniform", justify="right")
    for budget, oss in table["OSS"].items():
        row = {name: column[budget] for name, column in table.items()}
        known = [value for value in row.values() if value is not None]
        cells = []
        for value in row.values():
            text = "same" if value is None else f"{value:.2f}"
            best = value is None or (len(known) == len(row) and value == max(known))
            cells.append(f"[bold]{text}[/]" if best else text)
        uniform = table["uniform"][budget]
        gain = "" if oss is None or uniform is None else f"{oss - uniform:+.2f}"
        view.add_row(str(budget), *cells, gain)
    return view
