"""The rows of the schedules table: stock schedules, the published search, ours, and what was refined afterwards."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from typing import Any

from heldout import BATCH, HeldOut, Noises, gain, summary
from torch import Tensor

import oss_ext
from oss_ext import single_step
from oss_ext.auto import Auto
from oss_ext.candidates import default_count

GRIDS = ("flow", "edm", "logsnr", "ddim")
SOLVERS = ("euler", "ab2", "dpmpp_2m", "unipc")
SEARCHED = (*SOLVERS, "mixed", "fitted")
FULL = ("euler", "fitted")  # searched over all nodes too
FULL_STEPS = 10  # up to this budget
MOVED = ("dpmpp_2m", "fitted")
POLISHED = "fitted"
POLISH_BATCH = 1024  # network inputs whose activations are kept at once
REFINED_STEPS = 10  # up to this budget

Row = dict[str, Any]


class Rows:
    """Rows of one guidance scale, in the order they were added, and every noise's PSNR of each."""

    def __init__(self, held: HeldOut) -> None:
        self.held = held
        self.rows: list[Row] = []
        self.values: list[Tensor] = []

    def add(self, group: str, name: str, solver: str, steps: int, schedule: oss_ext.Schedule, **extra: Any) -> None:
        """`steps` is the budget that the row is listed under."""
        values = self.held.score(self.held.sample(schedule))
        self.put(group, name, solver, steps, schedule.steps, schedule.t.tolist(), values, **extra)

    def put(
        self, group: str, name: str, solver: str, steps: int, nfe: int, t: list[float], values: Tensor, **extra: Any
    ) -> None:
        row = {"guidance": self.held.guidance, "steps": steps, "group": group, "schedule": name, "solver": solver}
        self.rows.append(row | {"nfe": nfe} | summary(values) | {"t": t} | extra)
        self.values.append(values)

    def finish(self) -> list[Row]:
        """The rows with their gains: over the uniform schedule of the same solver, and over the best of group "stock"
        with the same budget, the best by each measure."""
        for row, values in zip(self.rows, self.values, strict=True):
            near = [k for k, one in enumerate(self.rows) if one["steps"] == row["steps"] and one["group"] == "stock"]
            uniform = [k for k in near if (self.rows[k]["schedule"], self.rows[k]["solver"]) == ("flow", row["solver"])]
            for measure, mean in (("psnr", False), ("mean_psnr", True)):
                best = max(near, key=lambda k: self.rows[k][measure])
                bases = {"uniform": self.values[uniform[0]] if uniform else None, "best_stock": self.values[best]}
                for name, base in bases.items():
                    over = (None, None) if base is None else gain(values, base, mean)
                    row[f"{measure}_over_{name}"], row[f"{measure}_over_{name}_error"] = over
        return self.rows


def stock_rows(table: Rows, budgets: Iterable[int]) -> None:
    """Every stock grid with every stock solver, and Heun's method with as many steps as the evaluations allow."""
    held = table.held
    for budget in budgets:
        for grid in GRIDS:
            for solver in SOLVERS:
                table.add("stock", grid, solver, budget, held.stock(grid, budget, solver))
        for grid, method in (("flow", "heun_flow"), ("edm", "heun")):
            t = oss_ext.grids.for_model(grid, (budget + 1) // 2, held.model)  # k steps take 2 k - 1 evaluations
            images, nfe = single_step.sample(held.model, held.noise, t, method, held.cond, batch_size=BATCH)
            table.put("stock", grid, method, budget, nfe, t.tolist(), held.score(images))


def searched_rows(table: Rows, options: Namespace) -> None:
    """The published search, and ours with every solver; at some guidance scales over all nodes too."""
    budgets, largest, few = options.budget, max(options.budget), options.candidates
    _search(table, "published", "OSS median, all nodes", "euler", budgets, largest, share="median")
    for solver in SEARCHED:
        _search(table, "ours", "joint", solver, budgets, largest, candidates=few)
    short = [budget for budget in budgets if budget <= FULL_STEPS]
    for solver in FULL if short and table.held.guidance in options.study_guidance else ():
        _search(table, "ours", "joint, all nodes", solver, short, FULL_STEPS, candidates=table.held.teacher_steps)
    if short:
        _search(table, "ours", "joint, beam of 8", "fitted", short, FULL_STEPS, beam=8)
    _search(table, "ours", "joint, free start", "fitted", budgets, largest, candidates=few, start="free")
    for name, objective in (("auto", "mse"), ("auto, by PSNR", "psnr")):
        _search(
            table, "ours", name, Auto(budgets=tuple(budgets), objective=objective), budgets, largest, candidates=few
        )


def _search(
    table: Rows, group: str, name: str, solver: str | Auto, budgets: Iterable[int], steps: int, **options: Any
) -> None:
    result, seconds = table.held.search(solver, steps, **options)
    label = solver if isinstance(solver, str) else "auto"
    few = table.held.teacher_steps if "share" in options else options.get("candidates") or default_count(steps)
    spent = {"steps": steps, "samples": len(table.held.search_noise), "nfe": result.nfe, "seconds": seconds}
    for budget in budgets:
        extra: dict[str, Any] = {"search": spent | {"candidates": few}}
        if result.table is not None:
            tried = [entry for entry in result.table if entry["steps"] == budget]
            extra["chosen"] = min(tried, key=lambda entry: entry["cost"])
        table.add(group, name, label, budget, result.schedules[budget], **extra)


def refined_rows(table: Rows, options: Namespace) -> None:
    """Schedules of the table moved and polished afterwards. Group "moved": nodes moved without gradients, on the noises
    of the search. Group "polished": those then polished by back-propagation, which is training, on noises of its own
    number: numbers learned from few noises do not serve others."""
    held, largest = table.held, max(options.budget)
    spent = {"steps": largest, "samples": len(held.search_noise)}
    spent["candidates"] = options.candidates or default_count(largest)
    for solver in MOVED:
        result, seconds = held.search(solver, largest, candidates=options.candidates)
        for budget in [budget for budget in options.budget if budget <= REFINED_STEPS]:
            how: dict[str, Any] = {"method": "nodes"}
            moved, took = _refined(held, held.memory, result.schedules[budget], held.searching, result.teacher, how)
            made = spent | {"nfe": moved.provenance.nfe, "seconds": seconds + took}
            table.add("moved", "joint, nodes", solver, budget, moved, search=made, refine=how)
            if solver != POLISHED:
                continue
            how = {"method": "gradient", "batch_size": POLISH_BATCH}
            noise, cond, teacher, _ = held.lessons(options.polish_samples)
            # What learns by gradients asks the model itself, since answers from memory have none.
            polished, more = _refined(held, held.model, moved, (noise, cond), teacher, how)
            made = spent | {"nfe": polished.provenance.nfe, "seconds": seconds + took + more}
            how |= {"samples": options.polish_samples}
            table.add("polished", "joint, nodes, gradient", solver, budget, polished, search=made, refine=how)


def _refined(
    held: HeldOut, model: oss_ext.Denoiser, schedule: oss_ext.Schedule, noises: Noises, teacher: Tensor, how: Row
) -> tuple[oss_ext.Schedule, float]:
    """The schedule refined, and its seconds."""
    begin = held.clock()
    guide = {"teacher": teacher, "teacher_steps": held.teacher_steps, "teacher_solver": held.teacher_solver}
    schedule = oss_ext.refine(schedule, model, noises[0], cond=noises[1], **({"batch_size": BATCH} | guide | how))
    return schedule, held.clock() - begin


def best_stock(rows: list[Row], guidance: float, steps: int, measure: str = "psnr") -> Row:
    """The best row of group "stock" in a cell of the table."""
    cell = [row for row in rows if (row["guidance"], row["steps"], row["group"]) == (guidance, steps, "stock")]
    return max(cell, key=lambda row: row[measure])


def show(rows: list[Row]) -> str:
    """The rows of one guidance scale as text: a block for every budget, then the flow times that searches chose."""
    lines = []
    for steps in sorted({row["steps"] for row in rows}):
        cell = [row for row in rows if row["steps"] == steps]
        best = {measure: best_stock(rows, cell[0]["guidance"], steps, measure) for measure in ("psnr", "mean_psnr")}
        lines.append(f"\nguidance {cell[0]['guidance']:g}, {steps} evaluations (* the best stock row)")
        lines.append(
            f"{'schedule':>24} {'solver':>10} {'NFE':>3} {'PSNR':>6} {'+-':>5} {'uniform':>8} {'stock':>7} {'+-':>5} "
            f"{'mean':>7} {'+-':>5} {'uniform':>8} {'stock':>7} {'+-':>5} {'search':>7} {'s':>6}"
        )
        for row in cell:
            entries = [f"{row['schedule']:>24} {row['solver']:>10} {row['nfe']:3d}"]
            for measure in ("psnr", "mean_psnr"):
                mark = "*" if row is best[measure] else " "
                uniform = row[f"{measure}_over_uniform"]
                entries.append(
                    f"{row[measure]:6.2f}{mark}{row[f'{measure}_error']:5.2f} "
                    + (" " * 8 if uniform is None else f"{uniform:+8.2f}")
                    + f" {row[f'{measure}_over_best_stock']:+7.2f} {row[f'{measure}_over_best_stock_error']:5.2f} "
                )
            if "search" in row:
                entries.append(f"{row['search']['nfe']['total']:6.0f} {row['search']['seconds']:6.1f}")
            lines.append(" ".join(entries))
        for row in cell:
            if row["group"] != "stock":
                times = " ".join(f"{t:.4f}" for t in row["t"])
                chosen = row.get("chosen")
                how = "" if chosen is None else f" ({chosen['family']}: {chosen['path']}, {chosen['solver']})"
                lines.append(f"  t of {row['schedule']}, {row['solver']}{how}: {times}")
        lines.append(_headline(rows, steps))
    return "\n".join(lines)


def _headline(rows: list[Row], steps: int) -> str:
    ours = [row for row in rows if row["group"] == "ours" and row["steps"] == steps]
    if not ours:
        return ""
    lines = []
    for measure in ("psnr", "mean_psnr"):
        row = max(ours, key=lambda row: row[f"{measure}_over_best_stock"])
        over, error = row[f"{measure}_over_best_stock"], row[f"{measure}_over_best_stock_error"]
        best = f"{over:+.2f} +- {error:.2f} ({row['schedule']}, {row['solver']})"
        lines.append(f"  best of ours over the best stock row, {measure}: {best}")
    return "\n".join(lines)
