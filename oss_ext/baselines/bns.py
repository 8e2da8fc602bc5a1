"""BNS: Bespoke Non-Stationary solvers (Shaul, Singer, Chen, Le, Thabet, Pumarola, Lipman, arXiv 2403.01329).

Every step has coefficients of its own for the start and for all velocities so far, x_(i+1) = a_i x_0 + sum_(j <= i)
b_ij u_j, a family that holds every linear multistep solver; these and the times are learned by back-propagation
through the steps, from those of a known solver. The loss is the mean over the noises of the logarithm of the squared
distance to the teacher's end, which is the PSNR up to its sign and scale. The best iterate on other noises is kept.

The optimiser's rate, its decay (cosine) and how long it runs are this library's; no code of the authors' is public.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from oss_ext import grids, solvers
from oss_ext.baselines.found import Found, deployed_with
from oss_ext.drive import drive
from oss_ext.evaluate import pick_batch_size, state_dtype
from oss_ext.models import Denoiser
from oss_ext.objective import logarithms
from oss_ext.progress import Counter, ProgressCallback, check_progress
from oss_ext.provenance import Provenance
from oss_ext.refine_gradient import Problem, walk
from oss_ext.refine_knobs import Numbers
from oss_ext.schedule import Schedule
from oss_ext.teacher import DEFAULT_SOLVER, DEFAULT_STEPS, check_guide
from oss_ext.validate import check_cond, check_model, check_noise, whole_number
from oss_ext.walks import run

PAPER = "arXiv 2403.01329"
JUDGES = 0.25
"""The share of the noises that only judges."""
JUDGED_EVERY = 20
ROOM = 1e-4  # the least share of the way to the cleanest time that a step has at first


def bns(
    model: Denoiser,
    noise: Tensor,
    steps: int = 10,
    *,
    start: Schedule | None = None,
    solver: str | solvers.Solver = "euler",
    start_grid: str = "edm",
    iterations: int = 1000,
    rate: float = 1e-3,
    minibatch: int = 40,
    seed: int = 0,
    teacher_steps: int = DEFAULT_STEPS,
    teacher_solver: str | solvers.Solver = DEFAULT_SOLVER,
    grid: str | Tensor = "flow",
    cond: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    progress: bool | ProgressCallback = False,
) -> Found:
    """A schedule of `steps` steps with all its coefficients and times learned, k (k + 5) / 2 - 1 numbers.

    noise: [B, ...], B >= 2; the last quarter judges. cond, batch_size, progress, teacher_steps, teacher_solver, grid:
        as for `dp_search`; the grid is the teacher's alone.
    start: the schedule to begin with, of `steps` steps, of any solver and told no times of its own; None: that of
        `solver` along `start_grid`.
    iterations: of Adam, each on `minibatch` noises. rate: of all parameters. seed: of the order of the noises.

    details: "loss" and "first_loss" (on the judging noises), "iterations", "backpropagations" (samples that were
    differentiated through all steps). Raises TypeError or ValueError that names the argument, before any evaluation;
    and for models that cut the graph.
    """
    check_model(model)
    noise = check_noise(noise)
    given = check_cond(cond, noise)
    if len(noise) < 2:
        raise ValueError("noise: got 1 sample, wanted at least 2: some of them only judge")
    steps = whole_number("steps", steps, least=1)
    guide = check_guide(teacher_solver)
    fine = grids.of_teacher(grid, teacher_steps, model)
    if start is None:
        start = Schedule.from_grid(grids.for_model(start_grid, steps, model), deployed_with(solver), model)
    _check_start(start, steps, model)
    iterations = whole_number("iterations", iterations, least=0)
    few = whole_number("minibatch", minibatch, least=1)
    whole_number("seed", seed, least=0)
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise TypeError(f"rate: got {type(rate).__name__}, wanted a number")
    if not 0 < rate < math.inf:
        raise ValueError(f"rate: got {rate}, wanted a positive number")
    progress = check_progress(progress)
    rows = pick_batch_size(batch_size, noise[0].numel())

    judges = max(1, round(JUDGES * len(noise)))
    learners = len(noise) - judges
    few = min(few, learners)
    judgements = len(_judged_at(iterations))
    total = len(noise) * (len(fine) - 1) + steps * (3 * few * iterations + judges * judgements)
    with torch.inference_mode(False), torch.enable_grad(), Counter(total, progress, "bns") as counter:
        states = noise.to(state_dtype(noise.dtype)).clone()
        given = {key: value.clone() for key, value in given.items()}
        with torch.no_grad():
            path = run(states, fine, solvers.along(guide, fine), guide.carries, samples=slice(0, len(noise)))
            target = drive(path, model, cond=given, dtype=noise.dtype, batch_size=rows, counter=counter)
        at_once = max(1, rows // steps)
        problem = Problem(model, states, target.clone(), given, noise.dtype, at_once, judges, "velocity", counter)
        numbers, first, best = _learn(problem, start, iterations, float(rate), few, seed)

    spent = counter.made / len(noise)
    differentiated = few * iterations
    nfe: dict[str, float] = {"teacher": len(fine) - 1, "train": spent - (len(fine) - 1), "total": spent}
    settings: dict[str, Any] = {"iterations": iterations, "rate": float(rate), "minibatch": few, "start": start.solver}
    origin = Provenance(
        grid="custom" if isinstance(grid, Tensor) else grid,
        teacher_steps=len(fine) - 1,
        teacher_solver=guide.name,
        samples=len(noise),
        model=model.describe(),
        metadata={"method": "bns", "paper": PAPER, "backpropagations": differentiated, **settings},
        nfe=dict(nfe),
    )
    fitted = solvers.Fitted(history=min(steps - 1, solvers.MAX_HISTORY))
    schedule = Schedule.from_grid(
        numbers.t, fitted, model, coefficients=numbers.rows, noise_scale=float(numbers.scale), provenance=origin
    )
    details = {"loss": best, "first_loss": first, "iterations": iterations, "backpropagations": differentiated}
    return Found({steps: replace(schedule, solver="bns")}, nfe, details)


def expand(rows: Tensor, t: Tensor, carries: solvers.Carries) -> tuple[Tensor, Tensor]:
    """(a [k], b [k, k] lower triangular), float64: the steps of a schedule written in its start and all velocities.

    rows: float64 [k, P], its coefficients. t: float64 [k + 1]."""
    steps = len(rows)
    symbols = torch.eye(1 + steps, dtype=torch.float64)  # the start, then the velocities
    chain = solvers.Walk(symbols[0], carries, rows.shape[1] - 2)
    states = []
    for step in range(steps):
        chain.step(symbols[1 + step], float(t[step]), rows[step].tolist())
        states.append(chain.state)
    whole = torch.stack(states)
    return whole[:, 0], whole[:, 1:]


def compress(a: Tensor, b: Tensor) -> Tensor:
    """float64 [k, 1 + k]: the same steps as coefficients of a schedule that carries velocities: of its state, its
    velocity, and the earlier ones, newest first. Differentiable; no a_i but the last may be 0."""
    steps = len(a)
    rows = []
    for step in range(steps):
        ratio = a[step] / a[step - 1] if step else a[0]
        own = b[step] - ratio * b[step - 1] if step else b[0]
        newest_first = own[: step + 1].flip(0)
        rows.append(torch.cat([ratio[None], newest_first, own.new_zeros(steps - step - 1)]))
    return torch.stack(rows)


def _learn(
    problem: Problem, start: Schedule, iterations: int, rate: float, few: int, seed: int
) -> tuple[Numbers, float, float]:
    """(the best numbers, the loss at first, theirs), of the judging noises."""
    t, scale = start.t, torch.tensor(start.noise_scale, dtype=torch.float64)
    lowest = problem.model.t_min
    gaps = torch.cat([-t[:-1].diff(), t[-2:-1] - lowest])
    shares = gaps / gaps.sum()
    raw = (shares.clamp(min=ROOM) / shares.clamp(min=ROOM).sum()).log()

    def times() -> Tensor:
        return torch.cat([t[:1], t[0] - (t[0] - lowest) * torch.softmax(raw, 0).cumsum(0)[:-1], t[-1:]])

    a, b = expand(start.coefficients, start.t, start.carries)
    parameters = [raw, a, b]
    for parameter in parameters:
        parameter.requires_grad_(True)
    adam = torch.optim.Adam(parameters, lr=rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(iterations, 1))
    order = torch.Generator().manual_seed(seed)
    learners = problem.learners.stop

    def numbers() -> Numbers:
        place = times()
        return Numbers(place, place[:-1], compress(a, b), scale)

    def judge() -> float:
        with torch.no_grad():
            now = numbers()
            errors = [
                (walk(problem, now, part).state - problem.target[part]).square().mean(1, dtype=torch.float64)
                for part in problem.parts(problem.judging)
            ]
            return float(logarithms(torch.cat(errors)).mean())

    best, least, first = None, math.inf, math.nan
    kept: list[int] = []
    judged = _judged_at(iterations)
    for iteration in range(iterations + 1):
        if iteration in judged:
            level = judge()
            first = level if iteration == 0 else first
            if level < least:
                with torch.no_grad():
                    best, least = Numbers(*(value.detach().clone() for value in numbers())), level
        if iteration == iterations:
            break
        if len(kept) < few:
            kept = kept + torch.randperm(learners, generator=order).tolist()
        which, kept = torch.tensor(kept[:few], device=problem.noise.device), kept[few:]
        adam.zero_grad()
        for part in which.split(problem.rows):
            cond = {key: value[part] for key, value in problem.cond.items()}
            some = replace(problem, noise=problem.noise[part], cond=cond)
            end = walk(some, numbers(), slice(0, len(part))).state
            error = (end - problem.target[part]).square().mean(1, dtype=torch.float64)
            (logarithms(error).sum() / few).backward()
            problem.counter.add(2 * len(t[1:]) * len(part))
        adam.step()
        decay.step()
    if best is None:
        raise ValueError("start: got a schedule whose ends on the judging noises are not finite")
    return best, first, least


def _judged_at(iterations: int) -> set[int]:
    return {*range(0, iterations, JUDGED_EVERY), iterations}


def _check_start(start: Schedule, steps: int, model: Denoiser) -> None:
    if not isinstance(start, Schedule):
        raise TypeError(f"start: got {type(start).__name__}, wanted a Schedule")
    if start.steps != steps:
        raise ValueError(f"start: got {start.steps} steps, wanted {steps}")
    if start.network_t is not None:
        raise ValueError("start: got a schedule that tells the network times of its own, wanted one without")
    start.check_range(model)
    a, _ = expand(start.coefficients, start.t, start.carries)
    if bool((a[:-1] == 0).any()):
        raise ValueError("start: got a step before the last that forgets the noise, wanted a_i other than 0")
