"""DS-Solver (Wang, Li, Zhang, Song, Li, Ge, Zheng, Wang, "Differentiable Solver Search for Fast Diffusion Sampling",
arXiv 2505.21114).

A step goes along a mean of all velocities so far, whose weights sum to 1: v = sum_(j < i) c_ij v_j + (1 - sum_j c_ij)
v_i. The weights c, 0 at first, and the steps, equal at first, are learned. The loss is the mean squared distance to the
teacher's state at the nearest of its nodes, summed over the student's, and 1000 times a Huber loss (its corner at
0.001) at the end, as in the authors' published code (MCG-NJU/NeuralSolver, TrajsReWeightTrainer); as there, the last
two of at most 6 steps use one earlier velocity alone. They train by Lion (rate 0.01) on batches of 4, for up to 20
epochs of 50,000 fresh noises, with a teacher of 100 Euler steps; here see `Training`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from oss_ext import grids, solvers
from oss_ext.baselines.found import Found
from oss_ext.baselines.training import DEFAULT, Gaps, Lesson, Task, Training, learn
from oss_ext.models import Denoiser
from oss_ext.progress import ProgressCallback
from oss_ext.refine_knobs import Numbers
from oss_ext.teacher import DEFAULT_SOLVER, DEFAULT_STEPS
from oss_ext.validate import check_model, whole_number

PAPER = "arXiv 2505.21114"
RATE = 0.03
HUBER, WEIGHT = 0.001, 1000.0
FEW = 6


def ds_solver(
    model: Denoiser,
    noise: Tensor,
    steps: int = 10,
    *,
    training: Training = DEFAULT,
    teacher_steps: int = DEFAULT_STEPS,
    teacher_solver: str | solvers.Solver = DEFAULT_SOLVER,
    grid: str | Tensor = "flow",
    cond: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    progress: bool | ProgressCallback = False,
) -> Found:
    """A schedule of `steps` steps with weights and times learned, from Euler's on equal steps of flow time.

    noise: [B, ...], B >= 2; the last quarter judges. teacher_steps, teacher_solver, grid, cond, batch_size, progress:
        as for `dp_search`; the student starts where the teacher does.
    training: its rate is 0.03 unless said.

    details: "loss" and "first_loss" (on the judging noises), "iterations", "backpropagations" (samples that were
    differentiated through all steps). Raises TypeError or ValueError that names the argument, before any evaluation;
    and for models that cut the graph.
    """
    check_model(model)
    steps = whole_number("steps", steps, least=1)
    fine = grids.of_teacher(grid, teacher_steps, model)
    task = Task.check(model, noise, cond, fine, teacher_solver, training, RATE, batch_size, progress)
    equal = torch.linspace(float(fine[0]), 0, steps + 1, dtype=torch.float64)
    lowest = min(model.t_min, float(fine[-2]))
    gaps = Gaps(equal if lowest == 0 else _above(equal, lowest), lowest)
    weights = torch.zeros(steps, steps, dtype=torch.float64)

    def numbers() -> Numbers:
        t = gaps.times()
        return Numbers(t, t[:-1], rows_of(weights, t), fine[0])

    def targets(now: Numbers, teacher: Tensor) -> Tensor:
        near = (fine[:, None] - now.t.detach()).abs().argmin(0)
        return teacher[:, near[1:].to(teacher.device)]

    return learn(
        task,
        [Lesson(steps, "velocity", numbers, [[gaps.raw, weights]], _losses, targets)],
        method="ds_solver",
        paper=PAPER,
        grid="custom" if isinstance(grid, Tensor) else grid,
        settings={},
    )


def _losses(states: list[Tensor], targets: Tensor) -> Tensor:
    """targets: [b, k, D], the teacher's states nearest to every node but the first."""
    passed = (torch.stack(states[1:], 1) - targets).square().mean(2).sum(1)
    last = torch.nn.functional.huber_loss(states[-1], targets[:, -1], reduction="none", delta=HUBER).mean(1)
    return passed + WEIGHT * last


def rows_of(weights: Tensor, t: Tensor) -> Tensor:
    """float64 [k, 1 + k]: coefficients of state, velocity and earlier velocities, newest first. Differentiable.

    weights: float64 [k, k], c_ij below the diagonal; the rest is not read. t: float64 [k + 1]."""
    steps = len(weights)
    rows = []
    for step in range(steps):
        earlier = weights[step, :step].flip(0)
        if steps <= FEW and step >= steps - 2:
            earlier = torch.cat([earlier[:1], torch.zeros_like(earlier[1:])])
        length = t[step + 1] - t[step]
        share = torch.cat([(1 - earlier.sum())[None], earlier])
        rows.append(torch.cat([share.new_ones(1), length * share, share.new_zeros(steps - step - 1)]))
    return torch.stack(rows)


def _above(t: Tensor, lowest: float) -> Tensor:
    """The nodes but the last moved to lie between the first and `lowest`."""
    inner = t[0] - (t[0] - lowest) * (t[0] - t[:-1]) / t[0]
    return torch.cat([inner, t[-1:]])
