"""BNS: Bespoke Non-Stationary solvers (Shaul, Singer, Chen, Le, Thabet, Pumarola, Lipman, arXiv 2403.01329).

Every step has coefficients of its own for the start and for all velocities so far, x_(i+1) = a_i x_0 + sum_(j <= i)
b_ij u_j, a family that holds every linear multistep solver; these and the times are learned by back-propagation
through the steps, from those of a known solver. The loss is the mean over the noises of the logarithm of the squared
distance to the teacher's end, which is the PSNR up to its sign and scale. The best iterate on other noises is kept.

The optimiser and how long it runs are this library's (`training`); no code of the authors' is public.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from oss_ext import grids, solvers
from oss_ext.baselines.ends import grid_names
from oss_ext.baselines.found import Found, deployed_with
from oss_ext.baselines.training import DEFAULT, Gaps, Lesson, Task, Training, learn
from oss_ext.models import Denoiser
from oss_ext.objective import logarithms
from oss_ext.progress import ProgressCallback
from oss_ext.refine_knobs import Numbers
from oss_ext.schedule import Schedule
from oss_ext.teacher import DEFAULT_SOLVER, DEFAULT_STEPS
from oss_ext.validate import check_model, whole_number

PAPER = "arXiv 2403.01329"
RATE = 0.01


def bns(
    model: Denoiser,
    noise: Tensor,
    steps: int = 10,
    *,
    start: Schedule | None = None,
    solver: str | solvers.Solver = "euler",
    start_grid: str | Sequence[str] | None = None,
    training: Training = DEFAULT,
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
        `solver` along `start_grid`; of several grids, along the one that is best on the judging noises
        (None: `ends.starts_of`).
    training: its rate is 0.01 unless said.

    details: "loss" and "first_loss" (on the judging noises), "iterations", "backpropagations" (samples that were
    differentiated through all steps). Raises TypeError or ValueError that names the argument, before any evaluation;
    and for models that cut the graph.
    """
    check_model(model)
    steps = whole_number("steps", steps, least=1)
    fine = grids.of_teacher(grid, teacher_steps, model)
    task = Task.check(model, noise, cond, fine, teacher_solver, training, RATE, batch_size, progress)
    known = deployed_with(solver)
    if start is None:
        names = grid_names("start_grid", start_grid, model)
        starts = {
            f"{known.name} along {name}": Schedule.from_grid(grids.for_model(name, steps, model), known, model)
            for name in names
        }
    else:
        starts = {"a schedule": start}
    for one in starts.values():
        _check_start(one, steps, model)
    return learn(
        task,
        [_lesson(name, one, model) for name, one in starts.items()],
        method="bns",
        paper=PAPER,
        grid="custom" if isinstance(grid, Tensor) else grid,
        settings={},
    )


def _lesson(name: str, start: Schedule, model: Denoiser) -> Lesson:
    gaps = Gaps(start.t, model.t_min)
    a, b = expand(start.coefficients, start.t, start.carries)
    scale = torch.tensor(start.noise_scale, dtype=torch.float64)

    def numbers() -> Numbers:
        t = gaps.times()
        return Numbers(t, t[:-1], compress(a, b), scale)

    return Lesson(start.steps, "velocity", numbers, [[gaps.raw, a, b]], _losses, name=name)


def _losses(states: list[Tensor], target: Tensor) -> Tensor:
    return logarithms((states[-1] - target).square().mean(1, dtype=torch.float64))


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
