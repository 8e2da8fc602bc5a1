"""`oss-ext export` and `oss-ext import`: schedules for other tools, and from their lists."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from oss_ext import published
from oss_ext.cli_common import speaker, stderr
from oss_ext.export import make, takes_several, targets
from oss_ext.files import whole_file
from oss_ext.schedule import Schedule
from oss_ext.sigma_text import DECIMALS, parse_sigmas


def export(
    schedule: Annotated[
        str, typer.Argument(help="A schedule file, the folder that search writes, or the name of a published table.")
    ],
    to: Annotated[str, typer.Option(help=f"One of {', '.join(targets())}.")],
    steps: Annotated[
        int | None, typer.Option(help="Which budget of a folder, or the steps of a published table.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="A file for the text; without one, standard output.")] = None,
    decimals: Annotated[int, typer.Option(help="Decimals of the noise levels.")] = DECIMALS,
) -> None:
    """Write a schedule as the text that another tool takes; where to paste it, and what it loses, go to stderr."""
    made = make(_read(schedule, steps, to), to, decimals=decimals)
    console = stderr()
    for note in made.notes:
        console.print(f"[yellow]note:[/] {escape(note)}.", soft_wrap=True, highlight=False)
    if output is None:
        print(made.text)
    else:
        with whole_file(output) as place:
            place.write_text(made.text + "\n", encoding="utf-8")
        console.print(f"Wrote {escape(str(output))}.", soft_wrap=True, highlight=False)
    console.print(escape(made.where), soft_wrap=True, highlight=False)


def import_(
    source: Annotated[
        str,
        typer.Argument(help="A list of noise levels, a file with one, - for standard input, or a table's name."),
    ],
    out: Annotated[Path, typer.Option(help="The schedule file.")],
    family: Annotated[
        str, typer.Option(help=f"Whose noise levels a list has: {', '.join(published.FAMILIES)}; tables know theirs.")
    ] = "flow",
    solver: Annotated[str, typer.Option(help="What takes the steps: a solver of `oss-ext info`.")] = "euler",
    steps: Annotated[int | None, typer.Option(help="Steps of a published table, if not its own.")] = None,
    ending: Annotated[str, typer.Option(help="How a table ends: replace (ComfyUI) or append (A1111).")] = "replace",
) -> None:
    """Make a schedule file of a pasted list of noise levels, or of a published table."""
    if source in published.names():
        made = published.schedule(source, steps, solver=solver, ending=ending)
    else:
        if steps is not None:
            raise ValueError(f"steps: got {steps} with a list, whose length says it")
        text = sys.stdin.read() if source == "-" else _text(source)
        made = published.from_sigmas(parse_sigmas(text), model=family, solver=solver)
    made.save(out)
    speaker(False).print(f"Wrote {escape(str(out))}: {escape(repr(made))}", soft_wrap=True, highlight=False)


def _text(source: str) -> str:
    """The text of the file of that name, if there is one, else the source itself."""
    if any(letter in source for letter in "\n,["):
        return source
    path = Path(source)
    return path.read_text(encoding="utf-8") if path.is_file() else source


def _read(source: str, steps: int | None, to: str) -> Schedule | dict[int, Schedule]:
    if source in published.names():
        return published.schedule(source, steps)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, folder or table (tables: {', '.join(published.names())})")
    if not path.is_dir():
        schedule = Schedule.load(path)
        if steps is not None and schedule.steps != steps:
            raise ValueError(f"steps: got {steps}, but {path} has {schedule.steps}")
        return schedule
    budgets: dict[int, Schedule] = {}
    for file in sorted(path.glob("*.json")):
        one = Schedule.load(file)
        if one.steps in budgets:
            raise ValueError(f"{path}: holds several schedules of {one.steps} steps; name a file in it")
        budgets[one.steps] = one
    if not budgets:
        raise ValueError(f"{path}: holds no schedule files")
    counts = ", ".join(str(count) for count in budgets)
    if steps is None:
        if len(budgets) == 1 or takes_several(to):
            return budgets
        raise ValueError(f"steps: {path} holds schedules of {counts} steps; say which")
    if steps not in budgets:
        raise ValueError(f"steps: got {steps}, but {path} holds schedules of {counts} steps")
    return budgets[steps]
