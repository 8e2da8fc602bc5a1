"""What a search found, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from oss_ext.result import SearchResult
from oss_ext.schedule import Schedule


def solver_of(found: Schedule | Sequence[Schedule]) -> str:
    """The solver of a budget's schedule, or schedules, which have one in common."""
    return found.solver if isinstance(found, Schedule) else found[0].solver


def found_table(result: SearchResult) -> Table:
    """Every budget's flow times and cost."""
    view = Table(
        title=f"{result.solver}, {result.share}, {result.nfe['total']:g} evaluations a sample", title_justify="left"
    )
    view.add_column("steps", justify="right")
    view.add_column("solver")
    view.add_column("cost", justify="right")
    view.add_column("flow times")
    for budget, one in result.schedules.items():
        times = " ".join(f"{t:.3f}" for t in one.t.tolist()) if isinstance(one, Schedule) else f"{len(one)} schedules"
        view.add_row(str(budget), solver_of(one), f"{float(result.costs[budget].mean()):.3e}", times)
    return view


def tried_table(tried: Sequence[dict[str, Any]], steps: int) -> Table:
    """What solver "auto" tried for a budget, the best first. tried: `SearchResult.table`."""
    view = Table(title=f"Tried for {steps} steps, cost on the noises that only judge", title_justify="left")
    for name in ("flow times", "coefficients"):
        view.add_column(name)
    view.add_column("cost", justify="right")
    entries = sorted((entry for entry in tried if entry["steps"] == steps), key=lambda entry: entry["cost"])
    for rank, entry in enumerate(entries):
        times = f"search with {entry['solver']}" if entry["family"] == "searched" else entry["path"]
        view.add_row(times, entry["solver"], f"{entry['cost']:.3e}", style="bold" if rank == 0 else None)
    return view
