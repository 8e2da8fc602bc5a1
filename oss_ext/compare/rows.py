"""Rows as data: how to come by a schedule of a budget, and what that costs. `catalogue` lists what is compared."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from oss_ext import baselines, grids, published, single_step
from oss_ext.auto import Auto
from oss_ext.calibration import amplitudes, fit_gains
from oss_ext.compare.case import Case
from oss_ext.costs import Cost
from oss_ext.models import Denoiser
from oss_ext.objective import judges
from oss_ext.refine import refine
from oss_ext.schedule import Schedule
from oss_ext.search import dp_search

LEARNED = "learned"
"""What tables call the solver of a rival that learns its coefficients."""
AT_ONCE = 2048
"""Network inputs whose activations are kept at once, at most, where many noises are learned from."""
CostOf = Callable[[Case], Cost | str]
"""What a case's searches judge steps by."""
TOGETHER = frozenset({"gits"})  # rivals that answer every budget in one run


@dataclass(frozen=True)
class Spent:
    """What finding a schedule took. nfe: network evaluations a noise by what for, and "total" (a backward pass counts
    as two); samples: noises; backpropagations: samples differentiated through all steps; seconds: of all budgets that
    were found together."""

    nfe: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    samples: int = 0
    backpropagations: int = 0

    def plus(self, nfe: dict[str, float], seconds: float, samples: int, backpropagations: int = 0) -> Spent:
        """This and more."""
        keys = dict.fromkeys(key for key in [*self.nfe, *nfe] if key != "total")
        whole = {key: self.nfe.get(key, 0) + nfe.get(key, 0) for key in keys}
        whole["total"] = self.nfe.get("total", 0) + nfe.get("total", 0)
        passes = self.backpropagations + backpropagations
        return Spent(whole, self.seconds + seconds, max(self.samples, samples), passes)

    def among(self, samples: int) -> Spent:
        """The same evaluations, told a noise of `samples`."""
        share = self.samples / samples
        return replace(self, nfe={key: value * share for key, value in self.nfe.items()}, samples=samples)


@dataclass(frozen=True, eq=False)
class Made:
    """A row's answer for a budget: a schedule, or, where there is none for all noises, images [n, ...] of the first n
    held-out ones and the evaluations a sample that they took. times: of several schedules, float64 [n, k + 1].
    notes: JSON values to keep."""

    spent: Spent = field(default_factory=Spent)
    schedule: Schedule | None = None
    images: Tensor | None = None
    nfe: int = 0
    times: Tensor | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Task:
    """What a row works on. budgets: all of the comparison that it answers; lookup: another row's answer."""

    case: Case
    budgets: tuple[int, ...]
    lookup: Callable[[Row, int], Made]


Make = Callable[[Task, tuple[int, ...]], Iterator[tuple[int, Made]]]
"""(task, the budgets that are wanted) -> each budget with its answer, as soon as it is known."""


@dataclass(frozen=True, eq=False)
class Row:
    """group, name, solver: what tables call it. recipe: JSON values that say all of how it is made.

    most: the largest budget that it answers; None: any. fits: whether it makes sense for a model. trained: by
    back-propagation. free: it evaluates no model. priority: rows with less of it are made first. pictured: whether its
    first samples are kept for sheets.
    """

    group: str
    name: str
    solver: str
    recipe: dict[str, Any]
    make: Make
    most: int | None = None
    fits: Callable[[Denoiser], bool] = lambda model: True
    trained: bool = False
    free: bool = False
    priority: int = 1
    pictured: bool = False

    @property
    def key(self) -> str:
        """group/name/solver: no two rows of a comparison share it."""
        return f"{self.group}/{self.name}/{self.solver}"


def open_ended(model: Denoiser) -> bool:
    """Whether the noisiest sigma is infinite, as of flow models."""
    return model.t_max >= 1


def stock(grid: str | None, solver: str, *, group: str = "stock", name: str | None = None, **row: Any) -> Row:
    """A named grid; None: the teacher's own."""

    def make(task: Task, wanted: tuple[int, ...]) -> Iterator[tuple[int, Made]]:
        for budget in wanted:
            yield budget, Made(schedule=task.case.stock(grid or task.case.guide.grid, budget, solver))

    label = name or grid or "naive"
    return Row(group, label, solver, {"kind": "stock", "grid": grid, "solver": solver}, make, free=True, **row)


def teacher(name: str) -> Row:
    """The teacher's own samples, where they are measured to a finer reference."""

    def make(task: Task, wanted: tuple[int, ...]) -> Iterator[tuple[int, Made]]:
        case = task.case
        own = case.stock(case.guide.grid, case.guide.steps, case.guide.solver)
        for budget in wanted:
            yield budget, Made(images=case.sample(own), nfe=own.steps, times=own.t[None])

    return Row("teacher", name, "its own", {"kind": "teacher"}, make)


def heun(grid: str, method: str, **row: Any) -> Row:
    """Two evaluations a step: as many steps as the budget of evaluations allows, k steps taking 2 k - 1."""

    def make(task: Task, wanted: tuple[int, ...]) -> Iterator[tuple[int, Made]]:
        case = task.case
        for budget in wanted:
            t = grids.for_model(grid, (budget + 1) // 2, case.model)
            images, nfe = single_step.sample(case.model, case.noise, t, method, case.cond, batch_size=case.batch_size)  # type: ignore[arg-type]
            yield budget, Made(images=images, nfe=nfe, times=t[None])

    return Row("stock", grid, method, {"kind": "heun", "grid": grid, "method": method}, make, **row)


def table(name: str, solver: str, **row: Any) -> Row:
    """A published table of noise levels, with its log-linear interpolation for other counts than its own."""

    def make(task: Task, wanted: tuple[int, ...]) -> Iterator[tuple[int, Made]]:
        for budget in wanted:
            yield budget, Made(schedule=published.schedule(name, budget, solver=solver, model=task.case.model))

    first = published.get(name).sigmas[0]

    def fits(model: Denoiser) -> bool:
        return first / (1 + first) <= model.t_max + 1e-3

    recipe = {"kind": "table", "name": name, "solver": solver}
    return Row("published", name, solver, recipe, make, free=True, fits=fits, **row)


def searched(
    solver: str, *, group: str = "ours", name: str = "joint", samples: int | None = None, row: Any = None, **how: Any
) -> Row:
    """`dp_search` on the search noises, or on the first `samples` of them. how: its options. row: those of `Row`."""

    def make(task: Task, wanted: tuple[int, ...]) -> Iterator[tuple[int, Made]]:
        result, seconds = task.case.search(solver, max(task.budgets), samples, **how)
        spent = Spent(dict(result.nfe), seconds, samples or len(task.case.search_noise))
        for budget in wanted:
            schedule = result.schedules[budget]
            assert isinstance(schedule, Schedule)
            yield budget, Made(spent, schedule)

    return Row(
        group, name, solver, {"kind": "searched", "solver": solver, "samples": samples, **how}, make, **(row or {})
    )


def costed(name: str, cost: CostOf, solver: str = "euler", *, group: str = "ours", row: Any = None) -> Row:
    """A search whose steps are judged by another cost, of the case. It asks the model itself, which a cost may watch;
    its own run of the teacher is counted."""

    def make(task: Task, wanted: tuple[int, ...]) -> Iterator[tuple[int, Made]]:
        case = task.case
        begin = case.clock()
        result = dp_search(
            case.model, case.search_noise, max(task.budgets), solver=solver, cost=cost(case), cond=case.search_cond,
            candidates=case.candidates, batch_size=case.batch_size, **case.guide.options,
        )  # fmt: skip
        spent = Spent(dict(result.nfe), case.clock() - begin, len(case.search_noise))
        for budget in wanted:
            schedule = result.schedules[budget]
            assert isinstance(schedule, Schedule)
            yield budget, Made(spent, schedule)

    return Row(group, name, solver, {"kind": "costed", "cost": name, "solver": solver}, make, **(row or {}))


def auto(name: str = "auto", *, row: Any = None, **config: Any) -> Row:
    """`dp_search` with an `Auto` of the comparison's budgets. config: its other fields."""

    def make(task: Task, wanted: tuple[int, ...]) -> Iterator[tuple[int, Made]]:
        chosen = Auto(budgets=task.budgets, **config)
        result, seconds = task.case.search(chosen, max(task.budgets))
        spent = Spent(dict(result.nfe), seconds, len(task.case.search_noise))
        for budget in wanted:
            schedule = result.schedules[budget]
            assert isinstance(schedule, Schedule) and result.table is not None
            tried = [entry for entry in result.table if entry["steps"] == budget]
            yield budget, Made(spent, schedule, notes={"chosen": min(tried, key=lambda entry: entry["cost"])})

    return Row("ours", name, "auto", {"kind": "auto", **config}, make, **(row or {}))


def per_sample(
    solver: str = "euler", count: int = 64, *, group: str = "published", name: str = "OSS, per sample",
    cost: CostOf = lambda case: "x_t", row: Any = None,
) -> Row:  # fmt: skip
    """The paper's OSS: every held-out noise has a schedule of its own, searched on itself over all nodes. cost: of the
    case, as for `costed`; another one wants another name."""

    def make(task: Task, wanted: tuple[int, ...]) -> Iterator[tuple[int, Made]]:
        case = task.case
        noise, cond = case.noise[:count], {key: value[:count] for key, value in case.cond.items()}
        begin = case.clock()
        result = dp_search(
            case.model, noise, max(task.budgets), solver=solver, share="per_sample", cost=cost(case), cond=cond,
            batch_size=case.batch_size, **case.guide.options,
        )  # fmt: skip
        spent = Spent(dict(result.nfe), case.clock() - begin, len(noise))
        for budget in wanted:
            many = result.schedules[budget]
            assert isinstance(many, list)
            times = torch.stack([schedule.t for schedule in many])
            yield budget, Made(spent, images=result.endpoints[budget], nfe=budget, times=times)

    return Row(group, name, solver, {"kind": "per_sample", "count": count}, make, **(row or {}))


def refined(
    base: Row, name: str, *, group: str = "ours", samples: int | None = None, row: Any = None, **how: Any
) -> Row:
    """`refine` of another row's schedules, on the search noises or on `samples` noises. how: its options."""

    def make(task: Task, wanted: tuple[int, ...]) -> Iterator[tuple[int, Made]]:
        case = task.case
        gradient = how.get("method") == "gradient"
        for budget in wanted:
            before = task.lookup(base, budget)
            assert before.schedule is not None
            # What learns by gradients asks the model itself, since answers from memory have none.
            model = case.model if gradient else case.memory
            batch = case.batch_size
            if samples is None:
                noise, cond, teacher, taught = case.search_noise, case.search_cond, case.search_teacher, 0.0
            else:
                noise, cond, teacher, taught = case.lessons(samples)
                batch = None if batch is None else min(batch, AT_ONCE)
            begin = case.clock()
            schedule = refine(
                before.schedule, model, noise, cond=cond, teacher=teacher, batch_size=batch,
                **case.guide.options, **how,
            )  # fmt: skip
            seconds, count = case.clock() - begin, len(noise)
            passes = int(how.get("iterations", 100)) * (count - judges(count)) if gradient else 0
            nfe = dict(schedule.provenance.nfe)
            spent = Spent(nfe, before.spent.seconds + seconds, count, passes)
            if samples is not None:
                own = nfe["total"] - before.schedule.provenance.nfe["total"]
                more = {"teacher": case.guide.steps, "refine": own, "total": case.guide.steps + own}
                spent = before.spent.among(count).plus(more, taught + seconds, count, passes)
            yield budget, Made(spent, schedule)

    recipe = {"kind": "refined", "base": base.recipe, **how} | ({} if samples is None else {"samples": samples})
    options = {"trained": how.get("method") == "gradient", "most": base.most} | (row or {})
    return Row(group, name, base.solver, recipe, make, **options)


def along(base: Row, solver: str, *, row: Any = None) -> Row:
    """Another row's flow times with another solver; "fitted": with coefficients fitted on the search noises."""

    def make(task: Task, wanted: tuple[int, ...]) -> Iterator[tuple[int, Made]]:
        case = task.case
        for budget in wanted:
            before = task.lookup(base, budget)
            assert before.schedule is not None
            if solver != "fitted":
                yield budget, Made(before.spent, Schedule.from_grid(before.schedule.t, solver, case.model))
                continue
            begin = case.clock()
            found = baselines.fit_grid(
                case.memory, case.search_noise, before.schedule.t, cond=case.search_cond,
                batch_size=case.batch_size, **case.guide.options,
            )  # fmt: skip
            spent = before.spent.plus(found.nfe, case.clock() - begin, len(case.search_noise))
            yield budget, Made(spent, found.schedule)

    free = base.free and solver != "fitted"
    options = {"most": base.most, "fits": base.fits, "trained": base.trained, "free": free} | (row or {})
    return Row(base.group, base.name, solver, {"kind": "along", "base": base.recipe, "solver": solver}, make, **options)


def calibrated(base: Row, mode: str, *, row: Any = None) -> Row:
    """Another row's schedules with states brought to the teacher's amplitudes: "scale", "affine" or "gain"."""

    def make(task: Task, wanted: tuple[int, ...]) -> Iterator[tuple[int, Made]]:
        case = task.case
        options: dict[str, Any] = {"cond": case.search_cond, "batch_size": case.batch_size, **case.guide.options}
        for budget in wanted:
            before = task.lookup(base, budget)
            assert before.schedule is not None
            begin, steps = case.clock(), float(case.guide.steps)
            if mode == "gain":
                schedule = fit_gains(before.schedule, case.memory, case.search_noise, **options)
                nfe = {"calibration": budget + steps, "total": budget + steps}
            else:
                schedule = before.schedule.calibrated(amplitudes(case.memory, case.search_noise, **options), mode)
                nfe = {"calibration": steps, "total": steps}
            yield budget, Made(before.spent.plus(nfe, case.clock() - begin, len(case.search_noise)), schedule)

    options = {"most": base.most} | (row or {})
    recipe = {"kind": "calibrated", "base": base.recipe, "mode": mode}
    return Row("calibration", f"{base.name}, {mode}", base.solver, recipe, make, **options)


def rival(
    method: str, name: str, solver: str, *, group: str = "rivals", samples: int | None = None,
    shared_teacher: bool = False, row: Any = None, **how: Any,
) -> Row:  # fmt: skip
    """A function of `oss_ext.baselines` with these options, and what it takes of the noises, the condition, the batch
    size and the solver. An option that is a `Row` becomes that row's schedule of the budget. shared_teacher: whether it
    learns from the comparison's teacher; else from its own."""
    function = getattr(baselines, method)
    takes = inspect.signature(function).parameters

    def make(task: Task, wanted: tuple[int, ...]) -> Iterator[tuple[int, Made]]:
        case = task.case
        noise, cond = case.search_noises(samples)
        given: dict[str, Any] = {"cond": cond, "batch_size": case.batch_size, "solver": solver}
        if shared_teacher:
            given |= case.guide.options
        if solver == LEARNED:
            del given["solver"]
        given = {key: value for key, value in given.items() if key in takes} | how
        inputs = (case.model, noise) if "noise" in takes else (case.model,)
        found = None
        for budget in wanted:
            spent_before, own = Spent(), dict(given)
            for key, value in given.items():
                if isinstance(value, Row):
                    before = task.lookup(value, budget)
                    own[key], spent_before = before.schedule, before.spent
            begin = case.clock()
            if found is None or method not in TOGETHER:
                found = function(*inputs, max(wanted) if method in TOGETHER else budget, **own)
            passes = int(found.details.get("backpropagations", 0))
            used = len(noise) if "noise" in takes else 0
            spent = spent_before.plus(found.nfe, case.clock() - begin, used, passes)
            numbers = {key: value for key, value in found.details.items() if isinstance(value, int | float | str)}
            yield budget, Made(spent, found.schedules[budget], notes=numbers)

    plain = {key: _plain(value) for key, value in how.items() if key != "graph"}
    recipe = {"kind": "rival", "method": method, "solver": solver, "samples": samples, **plain}
    recipe["shared_teacher"] = shared_teacher
    return Row(group, name, solver, recipe, make, **(row or {}))


def _plain(value: Any) -> Any:
    """An option as JSON. Whether training replays a CUDA graph is no part of what is made."""
    if isinstance(value, Row):
        return value.recipe
    if isinstance(value, baselines.Training):
        return {key: each for key, each in asdict(value).items() if key != "graph"}
    return value
