"""solver="auto": several families of schedules in one run, the best of each budget picked on samples set apart."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from oss_ext import solvers
from oss_ext.candidates import nearest
from oss_ext.distil import distil
from oss_ext.mover import move, scales
from oss_ext.objective import JUDGES, judges, level, squared_error
from oss_ext.plan import Plan
from oss_ext.ranks import ALONE, Ranks
from oss_ext.teacher import Ask, Teacher, integrate
from oss_ext.walks import fit_along, run


@dataclass(frozen=True)
class Auto:
    """What `solver="auto"` tries.

    searched: solvers that a search is made with; free: those that are searched once more from a free start.
    grids: stock grids; each is tried with every solver of `stock`, and with coefficients fitted along it.
    budgets: those that are wanted; None: all. validation: the share of the samples that only judges: at least one of
        them, and not all.
    moves: evaluations a sample, for each of `budgets` (None: for the largest), to move the nodes of the best row with
        fitted coefficients, as `refine` does; 0: none.
    objective: "mse" or "psnr", what the nodes are moved and the rows judged by; see `refine`.
    """

    searched: tuple[str | solvers.Solver, ...] = ("euler", "ab2", "dpmpp_2m", "unipc", "mixed", "fitted")
    free: tuple[str | solvers.Solver, ...] = ("fitted",)
    grids: tuple[str, ...] = ("flow", "edm", "logsnr", "ddim")
    stock: tuple[str | solvers.Solver, ...] = ("euler", "ab2", "dpmpp_2m", "unipc")
    budgets: tuple[int, ...] | None = None
    validation: float = JUDGES
    moves: int = 400
    objective: str = "mse"
    name: str = field(default="auto", init=False)


@dataclass(frozen=True)
class Row:
    """One schedule that was tried. family: "searched", "stock", "fitted along" or "moved". path: where its times are
    from. error: float64 [samples], mean squared distance to the teacher on the validation samples. cost: the level of
    that."""

    family: str
    path: str
    plan: Plan
    error: Tensor
    cost: float

    @property
    def steps(self) -> int:
        return self.plan.steps

    def describe(self) -> dict[str, Any]:
        """JSON values: steps, family, path, solver, cost."""
        return {
            "steps": self.steps,
            "family": self.family,
            "path": self.path,
            "solver": self.plan.solver.name,
            "cost": self.cost,
        }


@dataclass(frozen=True)
class Judged:
    """best: for each budget a row and its endpoints [samples, D]. table: all rows. target: [samples, D], the teacher's
    endpoints of the judges."""

    best: list[tuple[Row, Tensor]]
    table: list[Row]
    target: Tensor


MakeGrid = Callable[[str, int], Tensor]
"""(a grid's name, steps) -> flow times, float64 [steps + 1]."""


def run_auto(
    noise: Tensor,
    t: Tensor,
    steps: int,
    config: Auto,
    make_grid: MakeGrid,
    *,
    teacher_solver: solvers.Solver,
    free: bool,
    candidates: int | None,
    beam: int,
    tally: Callable[[str, Generator[Ask, Tensor, Any]], Generator[Ask, Tensor, Any]],
    ranks: Ranks = ALONE,
) -> Generator[Ask, Tensor, Judged]:
    """noise: [B, *shape], B >= 2; the last samples judge. tally: counts what a part asks for under its name. ranks: who
    has the other samples; rows hold the errors of all judges, endpoints and target are this rank's."""
    samples = ranks.count(len(noise))
    learners = samples - judges(samples, config.validation)
    (fit, learning), (judge, judging) = ranks.part(0, learners), ranks.part(learners, samples)
    teacher: Teacher = yield from tally("teacher", integrate(noise[fit], t, teacher_solver, fit, ranks=learning))
    seen: Teacher = yield from tally("teacher", integrate(noise[judge], t, teacher_solver, judge))
    target, first = seen.states[:, -1].clone(), seen.first_velocity
    del seen
    budgets = config.budgets or tuple(range(1, steps + 1))
    tried: list[tuple[str, str, Plan]] = []

    memory: list[tuple[Ask, Tensor]] = []
    searches = [(name, free) for name in config.searched] + [(name, True) for name in config.free if not free]
    for name, anywhere in searches:
        solver = solvers.get(name)
        search = distil(
            noise[fit],
            t,
            steps,
            solver,
            teacher,
            samples=fit,
            joint=True,
            free=anywhere,
            candidates=candidates,
            beam=beam,
            ranks=learning,
        )
        found = yield from tally("search", _remembering(search, memory, ranks))
        path = "search, free start" if anywhere else "search"
        tried += [("searched", path, found.plans[budget - 1][0]) for budget in budgets]

    fitted = next((s for s in map(solvers.get, config.searched) if isinstance(s, solvers.Fitted)), solvers.Fitted())
    paths = [
        (f"search with {plan.solver.name}", plan.nodes)
        for _, _, plan in tried
        if plan.nodes is not None and not solvers.is_searched(plan.solver)
    ]
    for grid in config.grids:
        for budget in budgets:
            times = make_grid(grid, budget)
            for name in config.stock:
                solver = solvers.get(name)
                plan = Plan(times, solver, solvers.along(solver, times), None, float(times[0]))
                tried.append(("stock", grid, plan))
            paths.append((grid, nearest(t, times)))
    for name, nodes in paths:
        if int(nodes[0]) == 0:
            along = fit_along(noise[fit], t, nodes, fitted, teacher, samples=fit, ranks=learning)
            rows = yield from tally("fit", along)
            tried.append(("fitted along", name, Plan(t[nodes], fitted, rows, nodes, float(t[0]))))

    table: list[Row] = []
    best: dict[int, tuple[Row, Tensor]] = {}

    def judged(family: str, path: str, plan: Plan) -> Generator[Ask, Tensor, None]:
        known = first if float(plan.t[0]) == float(t[0]) == plan.noise_scale else None
        walk = run(
            noise[judge],
            plan.t,
            plan.coefficients,
            plan.solver.carries,
            samples=judge,
            scale=plan.noise_scale,
            nodes=plan.nodes,
            first_velocity=known,
        )
        end = yield from tally("validation", walk)
        error = judging.gather(squared_error(end, target))
        row = Row(family, path, plan, error, level(error, config.objective))
        table.append(row)
        if row.steps not in best or row.cost < best[row.steps][0].cost:
            best[row.steps] = (row, end)

    for family, path, plan in tried:
        yield from judged(family, path, plan)
    for budget in moved_budgets(config, steps):
        row = min(
            (row for row in table if row.steps == budget and _can_move(row)), key=lambda row: row.cost, default=None
        )
        if row is not None:
            plan = yield from tally("moves", _moved(row.plan, noise[fit], t, teacher, config, learning))
            yield from judged("moved", row.path, plan)
    return Judged([best[budget] for budget in budgets], table, target)


def moved_budgets(config: Auto, steps: int) -> tuple[int, ...]:
    """Those whose best fitted schedule has its nodes moved."""
    return (config.budgets or (steps,)) if config.moves else ()


def _can_move(row: Row) -> bool:
    return row.plan.nodes is not None and isinstance(row.plan.solver, solvers.Fitted)


def _moved(
    plan: Plan, noise: Tensor, t: Tensor, teacher: Teacher, config: Auto, ranks: Ranks
) -> Generator[Ask, Tensor, Plan]:
    assert plan.nodes is not None
    states = teacher.states
    trial = yield from move(
        tuple(plan.nodes.tolist()),
        noise,
        t,
        plan.solver,
        states,
        states[:, -1],
        scales(float(plan.t[0]), plan.noise_scale, t, plan.solver, noise, states, ranks=ranks),
        evaluations=config.moves,
        objective=config.objective,
        ranks=ranks,
    )
    nodes = torch.tensor(trial.nodes)
    return Plan(t[nodes], plan.solver, trial.rows, nodes, trial.scale)


def _remembering(
    core: Generator[Ask, Tensor, Any], memory: list[tuple[Ask, Tensor]], ranks: Ranks, keep: int = 2
) -> Generator[Ask, Tensor, Any]:
    """Answers from `memory` what was asked before; the first `keep` asks of the first search are put there: searches
    that start with Euler's step agree in those."""
    learning, count = not memory, 0
    try:
        ask = next(core)
        while True:
            known = next((sent for old, sent in memory if _same(ask, old, ranks)), None)
            if known is None:
                known = yield ask
                if learning and count < keep:
                    memory.append((ask._replace(states=ask.states.clone(), out=None), known.clone()))
            count += 1
            ask = core.send(known)
    except StopIteration as done:
        return done.value


def _same(one: Ask, other: Ask, ranks: Ranks) -> bool:
    """The same states to rounding, of all ranks: a basis of another width may be summed with other bits."""
    if one.states.shape != other.states.shape or not torch.equal(one.t, other.t):
        return False
    room = 4 * torch.finfo(one.states.dtype).eps * ranks.most(_largest(one.states))
    return ranks.most(_largest(one.states - other.states)) <= room


def _largest(states: Tensor) -> float:
    return float(states.abs().amax()) if states.numel() else 0.0
