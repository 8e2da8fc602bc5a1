"""The search as a generator that asks for model evaluations and never makes one.

OSS (arXiv 2503.21774), Algorithm 1, with exactly k steps at stage k, any linear multistep solver, and costs that many
samples may share.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from oss_ext import costs, grids, solvers
from oss_ext.auto import Auto, MakeGrid, Row, run_auto
from oss_ext.candidates import default_count
from oss_ext.costs import Cost
from oss_ext.distil import distil
from oss_ext.drive import answer
from oss_ext.evaluate import state_dtype
from oss_ext.median import elementwise_median
from oss_ext.objective import OBJECTIVES, squared_error
from oss_ext.plan import Plan
from oss_ext.ranks import ALONE, Ranks
from oss_ext.schedule_calibration import MODES
from oss_ext.store import home, keep, place, states_of_cost, states_of_search
from oss_ext.teacher import DEFAULT_SOLVER, Ask, Teacher, check_guide, integrate
from oss_ext.validate import check_noise, check_weight, choice, whole_number
from oss_ext.walks import run

SHARES = ("joint", "median", "per_sample")
STARTS = ("fixed", "free")


@dataclass(frozen=True)
class Found:
    """What a search found, over B samples and the N + 1 nodes of the grid t. D numbers a sample.

    plans: {k: one plan, or with share "per_sample" B of them}, for every budget k.
    costs: {k: float64 [B] on the CPU}: mean squared distance to the teacher at the clean node along the plans.
    endpoints: {k: [B, *shape]}, the states there; teacher: [B, *shape], the teacher's. In the states' dtype. Where
        several ranks share the samples, those of this rank; all else is of all samples.
    values: float64 on the CPU, [K, N + 1] (joint; mean over the samples) or [K, B, N + 1]; +inf where unreached. Of the
        search's own cost.
    backpointers: int32, as `values`; -1 where unreached. For share "median" those of its per-sample searches.
    nfe: network evaluations a sample: "teacher", "search", what else was spent, "total". Fractions where only some of
        the samples were evaluated.
    settings: what else the search was told: "teacher_solver", "candidates", "beam", "judged_by".
    store: where the states were kept: a device, or "cpu (pinned)".
    table: with solver "auto" everything that was tried. B is then the number of validation samples, and values and
        backpointers are None.
    """

    t: Tensor
    solver: str
    share: str
    start: str
    samples: int
    plans: dict[int, list[Plan]]
    costs: dict[int, Tensor]
    endpoints: dict[int, Tensor]
    teacher: Tensor
    values: Tensor | None
    backpointers: Tensor | None
    nfe: dict[str, float]
    settings: dict[str, Any]
    store: str
    table: list[Row] | None = None


Core: TypeAlias = Generator[Ask, Tensor, Found]


def dp_core(
    noise: Tensor,
    t: Tensor,
    steps: int,
    *,
    solver: str | solvers.Solver | Auto = "euler",
    share: str = "joint",
    start: str = "fixed",
    teacher_solver: str | solvers.Solver = DEFAULT_SOLVER,
    candidates: int | None = None,
    beam: int = 1,
    weight: Tensor | None = None,
    calibration: str | None = None,
    cost: str | Cost = "x_t",
    store: str = "device",
    make_grid: MakeGrid = grids.make,
    ranks: Ranks = ALONE,
) -> Core:
    """Checks its input and returns a generator: it yields an `Ask`, is sent velocities, and returns a `Found`.

    noise: [B, *shape], unit normal. t: [N + 1], a grid. make_grid: makes the stock grids that "auto" tries. ranks: who
    has the other samples; then B >= 0. The other arguments, and the errors, are those of `dp_search`.
    Asked: states [b, m, *shape] in flow coordinates, float32 (float64 for float64 noise), valid until the next `send`;
    their m flow times; which b samples. Sent: velocities [b, m, *shape], floating, where the states are (`store`).

        core = dp_core(noise, t, 10)
        try:
            ask = next(core)
            while True:
                ask = core.send(velocities(ask.states, ask.t, cond[ask.samples]))
        except StopIteration as done:
            found = done.value
    """
    noise, t = check_noise(noise, least=1 if ranks.alone else 0), grids.check(t)
    samples = ranks.count(len(noise))
    last = len(t) - 1
    steps = whole_number("steps", steps, least=1, most=last, most_is=", the steps of the grid")
    choice("share", share, SHARES)
    choice("start", start, STARTS)
    guide = check_guide(teacher_solver)
    if candidates is None:
        candidates = min(default_count(steps), last) if share == "joint" else None
    else:
        candidates = min(whole_number("candidates", candidates, least=steps), last)
    beam = whole_number("beam", beam, least=1)
    if beam > 1 and share != "joint":
        raise ValueError(f"share: got {share!r} with a beam of {beam}, wanted 'joint'")
    config = Auto() if solver == "auto" else solver
    scheme = config if isinstance(config, Auto) else solvers.get(config)
    if isinstance(scheme, Auto):
        _check_auto(scheme, samples, steps, make_grid)
    if isinstance(scheme, Auto | solvers.Fitted) and share != "joint":
        raise ValueError(f"share: got {share!r} with solver {scheme.name!r}, which all samples share, wanted 'joint'")
    if isinstance(scheme, solvers.Mixed) and share == "median":
        raise ValueError("share: got 'median' with solver 'mixed', whose choices have no median, wanted another")
    if calibration is not None:
        _check_calibration(calibration, scheme, share, beam, weight)
    judged_by = costs.check(cost)
    if judged_by is not None:
        _check_cost(judged_by, scheme, beam, weight, calibration)
    device, noise = noise.device, noise.to(state_dtype(noise.dtype))
    tried = [*scheme.searched, *scheme.free] if isinstance(scheme, Auto) else [scheme]
    history = max(solvers.get(each).history for each in tried)
    felt = check_weight(weight, noise)
    if felt is not None and isinstance(scheme, Auto):
        raise ValueError("weight: got one with solver 'auto', which judges by the unweighted distance, wanted another")
    held = states_of_search(last + 1, 1 + (candidates or last), history, beam)
    if calibration is not None:
        held += 1 + (candidates or last)
    if judged_by is not None:
        held += states_of_cost(1 + (candidates or last))
    if not ranks.alone:  # the same everywhere: it decides which kernels run
        on_host = home(store, noise, held).type != device.type
        store = "host" if ranks.most(on_host) else "device"
    noise = keep(store, noise, held)
    felt = None if felt is None else felt.flatten().to(noise)
    tally = _Tally(samples, ranks)
    options: dict[str, Any] = {"free": start == "free", "candidates": candidates, "beam": beam}
    if isinstance(scheme, Auto):
        core = _auto(noise, t, steps, scheme, make_grid, guide, tally, options, ranks)
    else:
        options = {**options, "calibration": calibration, "cost": judged_by}
        core = _one(noise, t, steps, scheme, share, guide, tally, options, felt, ranks)
    return _checked(core, device, ranks)


def rehearse(core: Core, count: Callable[[Ask], int] | None = None) -> int:
    """Evaluations of all its samples together that a core asks for, found by answering every ask with random numbers.

    For a core whose noise has the true number of samples but one number each, so that it costs next to nothing.
    count: of an ask, where something else is counted.
    """
    total, generator = 0, torch.Generator().manual_seed(0)

    def reply(ask: Ask) -> Tensor:
        nonlocal total
        total += ask.states.shape[0] * ask.states.shape[1] if count is None else count(ask)
        return torch.randn(ask.states.shape, generator=generator)

    answer(core, reply)
    return total


class _Tally:
    """Counts evaluations by what they are for, of all ranks."""

    def __init__(self, samples: int, ranks: Ranks) -> None:
        self._samples, self._ranks = samples, ranks
        self._made: dict[str, int] = {}

    def __call__(self, name: str, part: Generator[Ask, Tensor, Any]) -> Generator[Ask, Tensor, Any]:
        self._made.setdefault(name, 0)
        try:
            ask = next(part)
            while True:
                purpose = ask.purpose or name
                self._made[purpose] = self._made.get(purpose, 0) + ask.states.shape[0] * ask.states.shape[1]
                ask = part.send((yield ask))
        except StopIteration as done:
            return done.value

    def per_sample(self) -> dict[str, float]:
        every = self._ranks.total([*self._made.values(), sum(self._made.values())])
        made = dict(zip([*self._made, "total"], every, strict=True))
        return {
            name: count // self._samples if count % self._samples == 0 else count / self._samples
            for name, count in made.items()
        }


def _check_calibration(
    calibration: str, scheme: solvers.Solver | Auto, share: str, beam: int, weight: Tensor | None
) -> None:
    choice("calibration", calibration, MODES)
    if isinstance(scheme, Auto):
        raise ValueError(f"calibration: got {calibration!r} with solver 'auto', wanted None")
    if share == "median":
        raise ValueError(f"calibration: got {calibration!r} with share 'median', wanted None")
    if calibration == "gain" and beam > 1:
        raise ValueError(f"calibration: got 'gain' with a beam of {beam}, wanted 'scale', 'affine' or None")
    if calibration == "gain" and weight is not None:
        raise ValueError("calibration: got 'gain' with a weight, wanted 'scale', 'affine' or None")


def _check_cost(
    cost: Cost, scheme: solvers.Solver | Auto, beam: int, weight: Tensor | None, calibration: str | None
) -> None:
    if isinstance(scheme, Auto):
        raise ValueError(f"cost: got {cost.name!r} with solver 'auto', wanted 'x_t'")
    if beam > 1:
        raise ValueError(f"beam: got {beam} with cost {cost.name!r}, wanted 1")
    if calibration is not None:
        raise ValueError(f"calibration: got {calibration!r} with cost {cost.name!r}, wanted None")
    if weight is not None and not cost.weighted:
        raise ValueError(f"weight: got one with cost {cost.name!r}, which is no distance of states, wanted None")


def _check_auto(config: Auto, samples: int, steps: int, make_grid: MakeGrid) -> None:
    if samples < 2:
        raise ValueError("noise: got 1 sample with solver 'auto', wanted at least 2: some of them only judge")
    for name in ("searched", "free", "grids", "stock", "budgets"):
        value = getattr(config, name)
        if not isinstance(value, tuple | list) and not (name == "budgets" and value is None):
            raise TypeError(f"{name}: got {value!r}, wanted a tuple")
    if not config.searched:
        raise ValueError("searched: got none, wanted at least one solver")
    for solver in (*config.searched, *config.free):
        solvers.get(solver)
    for solver in config.stock:
        if solvers.is_searched(solvers.get(solver)):
            raise ValueError(f"stock: got {solver!r}, wanted solvers of {', '.join(solvers.formulas())}")
    for budget in config.budgets or ():
        whole_number("budgets", budget, least=1, most=steps, most_is=", the steps of the search")
    for grid in config.grids:
        for budget in config.budgets or range(1, steps + 1):
            make_grid(grid, budget)
    choice("objective", config.objective, OBJECTIVES)
    whole_number("moves", config.moves, least=0)
    if isinstance(config.validation, bool) or not isinstance(config.validation, int | float):
        raise TypeError(f"validation: got {config.validation!r}, wanted a share between 0 and 1")
    if not 0 < config.validation < 1:
        raise ValueError(f"validation: got {config.validation}, wanted a share between 0 and 1")


def _checked(core: Core, device: torch.device, ranks: Ranks) -> Core:
    """Passes asks and answers through, the answers checked and in the states' dtype; a rank without samples asks
    nothing. device: for what is found."""
    ask = next(core)
    while True:
        sent = (yield ask) if len(ask.states) else ask.states
        wanted = ask.states
        if not isinstance(sent, Tensor) or not sent.is_floating_point():
            came = f"a tensor of {sent.dtype}" if isinstance(sent, Tensor) else type(sent).__name__
            raise TypeError(f"velocities: got {came}, wanted a floating tensor {list(wanted.shape)}")
        if sent.shape != wanted.shape:
            raise ValueError(
                f"velocities: got shape {list(sent.shape)}, wanted that of the states, {list(wanted.shape)}"
            )
        if sent.device != wanted.device:
            raise ValueError(f"velocities: got device {sent.device}, wanted {wanted.device}, where the states are")
        try:
            ask = core.send(sent if sent is ask.out else sent.detach().to(wanted.dtype))
        except StopIteration as done:
            found: Found = done.value
            ranks.agree(_decided(found), "from the same costs: wanted the same hardware and libraries on every rank")
            endpoints = {budget: state.to(device) for budget, state in found.endpoints.items()}
            return replace(found, endpoints=endpoints, teacher=found.teacher.to(device))


def _decided(found: Found) -> dict[str, Any]:
    """What all ranks have in common, bit by bit."""
    return {
        f"schedule of {budget} steps": [
            [plan.t.tolist(), plan.coefficients.tolist(), plan.noise_scale, repr(plan.calibration)] for plan in plans
        ]
        for budget, plans in found.plans.items()
    }


def _one(
    noise: Tensor,
    t: Tensor,
    steps: int,
    solver: solvers.Solver,
    share: str,
    guide: solvers.Solver,
    tally: _Tally,
    options: dict[str, Any],
    weight: Tensor | None,
    ranks: Ranks,
) -> Core:
    everyone = slice(0, len(noise))
    teacher: Teacher = yield from tally("teacher", integrate(noise, t, guide, everyone, ranks=ranks))
    search = distil(
        noise,
        t,
        steps,
        solver,
        teacher,
        samples=everyone,
        joint=share == "joint",
        weight=weight,
        ranks=ranks,
        **options,
    )
    distilled = yield from tally("search", search)
    plans, endpoints = distilled.plans, distilled.endpoints
    if share == "median":
        plans = [[_median(each, t)] for each in plans]
        endpoints = []
        for (plan,) in plans:
            known = teacher.first_velocity if not options["free"] else None
            again = run(
                noise,
                plan.t,
                plan.coefficients,
                solver.carries,
                samples=everyone,
                nodes=plan.nodes,
                first_velocity=known,
            )
            endpoints.append((yield from tally("replay", again)))
    target = teacher.states[:, -1].clone()  # a view would keep the whole trajectory alive
    return Found(
        t=t,
        solver=solver.name,
        share=share,
        start="free" if options["free"] else "fixed",
        samples=ranks.count(len(noise)),
        plans=dict(enumerate(plans, start=1)),
        costs={k: ranks.gather(squared_error(state, target, weight)) for k, state in enumerate(endpoints, start=1)},
        endpoints={k: state.view(noise.shape) for k, state in enumerate(endpoints, start=1)},
        teacher=target.view(noise.shape),
        values=distilled.values,
        backpointers=distilled.backpointers,
        nfe=tally.per_sample(),
        settings=_settings(guide, options),
        store=place(noise),
    )


def _settings(guide: solvers.Solver, options: dict[str, Any]) -> dict[str, Any]:
    by: Cost | None = options.get("cost")
    return {
        "teacher_solver": guide.name,
        "candidates": options["candidates"],
        "beam": options["beam"],
        "judged_by": {} if by is None else by.describe(),
    }


def _median(plans: list[Plan], t: Tensor) -> Plan:
    """The elementwise median of every sample's own."""
    nodes = elementwise_median(torch.stack([plan.nodes for plan in plans if plan.nodes is not None]))
    path, solver = t[nodes], plans[0].solver
    return Plan(path, solver, solvers.along(solver, path), nodes, float(path[0]))


def _auto(
    noise: Tensor,
    t: Tensor,
    steps: int,
    config: Auto,
    make_grid: MakeGrid,
    guide: solvers.Solver,
    tally: _Tally,
    options: dict[str, Any],
    ranks: Ranks,
) -> Core:
    judged = yield from run_auto(
        noise, t, steps, config, make_grid, teacher_solver=guide, tally=tally, ranks=ranks, **options
    )
    shape = (len(judged.target), *noise.shape[1:])
    return Found(
        t=t,
        solver="auto",
        share="joint",
        start="free" if options["free"] else "fixed",
        samples=ranks.count(len(noise)),
        plans={row.steps: [row.plan] for row, _ in judged.best},
        costs={row.steps: row.error for row, _ in judged.best},
        endpoints={row.steps: endpoint.view(shape) for row, endpoint in judged.best},
        teacher=judged.target.view(shape),
        values=None,
        backpointers=None,
        nfe=tally.per_sample(),
        settings=_settings(guide, options),
        store=place(noise),
        table=judged.table,
    )
