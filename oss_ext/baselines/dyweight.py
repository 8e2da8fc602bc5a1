"""DyWeight: dynamic gradient weighting (Zhao, Lei, Yuan, Yang, Song, Wang, Zhu, Zhang, "DyWeight: Dynamic Gradient
Weighting for Few-Step Diffusion Sampling", arXiv 2603.11607).

On a fixed grid, x' = x + (sigma' - sigma) sum_j w_ij eps_j in the coordinates x0 + sigma eps, with weights of all noise
predictions so far that need not sum to 1, and a factor s_i on the sigma that the network is told. Both are learned,
from iPNDM's weights and 1, on the squared distance to the teacher's end, one of the losses of the authors' published code
(Westlake-AGI-Lab/DyWeight); others are a function of one's own. `Schedule.network_t` scales what the network is fed for
the level that it is told, theirs for the state's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from oss_ext import grids, solvers
from oss_ext.baselines.found import Found
from oss_ext.baselines.ld3 import Loss
from oss_ext.baselines.training import Task, learn
from oss_ext.models import Denoiser
from oss_ext.progress import ProgressCallback
from oss_ext.refine_gradient import Problem, walk
from oss_ext.refine_knobs import Numbers
from oss_ext.teacher import DEFAULT_SOLVER, DEFAULT_STEPS
from oss_ext.validate import check_model, whole_number

PAPER = "arXiv 2603.11607"


def dyweight(
    model: Denoiser,
    noise: Tensor,
    steps: int = 10,
    *,
    nodes: str | Tensor = "edm",
    start: str = "ipndm_4",
    history: int | None = None,
    told: bool = True,
    loss: Loss | None = None,
    iterations: int = 1000,
    rate: float = 0.005,
    minibatch: int = 40,
    seed: int = 0,
    teacher_steps: int = DEFAULT_STEPS,
    teacher_solver: str | solvers.Solver = DEFAULT_SOLVER,
    grid: str | Tensor = "edm",
    cond: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    progress: bool | ProgressCallback = False,
) -> Found:
    """A schedule of `steps` steps with learned weights and told levels.

    noise: [B, ...], B >= 2; the last quarter judges. teacher_steps, teacher_solver, grid, cond, batch_size, progress:
        as for `dp_search`; grid is the teacher's alone.
    nodes: the student's grid, a name or flow times [steps + 1], from below t = 1, where sigma is infinite.
    start: "ipndm_4" or another order of it, or "euler": the weights at first.
    history: how many earlier predictions have weights; None: all.
    told: whether the levels that the network is told are learned too.
    loss: (ends, targets), both [b, ...], to [b], differentiable; None: the mean squared difference.
    iterations: of the optimiser, each on `minibatch` noises. rate: of all parameters. seed: of the order of the noises.

    details: "loss" and "first_loss" (on the judging noises), "iterations", "backpropagations" (samples that were
    differentiated through all steps). Raises TypeError or ValueError that names the argument, before any evaluation;
    and for models that cut the graph.
    """
    check_model(model)
    steps = whole_number("steps", steps, least=1)
    fine = grids.of_teacher(grid, teacher_steps, model)
    task = Task.check(model, noise, cond, fine, teacher_solver, iterations, rate, minibatch, seed, batch_size, progress)
    t = _nodes(nodes, steps, model)
    first = solvers.get(start) if isinstance(start, str) and start.startswith(("ipndm", "euler")) else None
    if first is None:
        raise ValueError(f"start: got {start!r}, wanted 'euler' or an order of iPNDM, such as 'ipndm_4'")
    most = steps - 1 if history is None else whole_number("history", history, least=0)
    if not isinstance(told, bool):
        raise TypeError(f"told: got {type(told).__name__}, wanted True or False")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss: got {type(loss).__name__}, wanted a function (ends, targets) -> [b]")

    weights = start_weights(first, t)
    mask = torch.ones_like(weights).tril().triu(-most)
    factors = torch.ones(steps, dtype=torch.float64)
    sigma = t[:-1] / (1 - t[:-1])

    def numbers() -> Numbers:
        level = (sigma * factors).clamp(min=1e-12)
        known = (level / (1 + level)).clamp(max=model.t_max)
        known = torch.maximum(known, torch.minimum(t[:-1], torch.full_like(known, model.t_min)))
        return Numbers(t, known if told else t[:-1], rows_of(weights * mask, t), t[0])

    def losses(problem: Problem, now: Numbers, teacher: Tensor) -> Tensor:
        end, target = walk(problem, now, slice(0, len(teacher))).state, teacher[:, -1]
        if loss is None:
            return (end - target).square().mean(1)
        shape = problem.noise.shape[1:]
        return loss(end.unflatten(1, shape), target.unflatten(1, shape))

    return learn(
        task,
        steps,
        "epsilon",
        [weights, factors] if told else [weights],
        numbers,
        losses,
        method="dyweight",
        paper=PAPER,
        grid="custom" if isinstance(grid, Tensor) else grid,
        settings={"nodes": "custom" if isinstance(nodes, Tensor) else nodes, "start": start, "history": most},
    )


def start_weights(solver: solvers.Solver, t: Tensor) -> Tensor:
    """float64 [k, k]: the weights w_ij of `solver`, "euler" or iPNDM, along t [k + 1]."""
    steps = len(t) - 1
    weights = torch.eye(steps, dtype=torch.float64)
    if solver.history == 0:
        return weights
    rows = solvers.along(solver, t)
    length = (t[1:] - t[:-1]) / (1 - t[:-1])
    for step in range(steps):
        for age in range(1, min(step, solver.history) + 1):
            weights[step, step - age] = rows[step, 1 + age] / length[step]
        weights[step, step] = 1 - weights[step, :step].sum()
    return weights


def rows_of(weights: Tensor, t: Tensor) -> Tensor:
    """float64 [k, 1 + k]: coefficients of state, velocity and earlier epsilon predictions, newest first.
    Differentiable. weights: float64 [k, k], below the diagonal and on it. t: float64 [k + 1], below 1."""
    steps = len(weights)
    length = (t[1:] - t[:-1]) / (1 - t[:-1])  # of the step in sigma, in flow coordinates
    rows = []
    for step in range(steps):
        earlier = length[step] * weights[step, :step].flip(0)
        own = length[step] * weights[step, step]
        state = (1 - t[step + 1]) / (1 - t[step]) + own  # this node's epsilon is x + (1 - t) v
        row = [state[None], ((1 - t[step]) * own)[None], earlier, earlier.new_zeros(steps - step - 1)]
        rows.append(torch.cat(row))
    return torch.stack(rows)


def _nodes(nodes: str | Tensor, steps: int, model: Denoiser) -> Tensor:
    if isinstance(nodes, Tensor):
        t = grids.check(nodes, t_max=model.t_max, t_min=model.t_min, name="nodes")
        if len(t) != steps + 1:
            raise ValueError(f"nodes: got {len(t) - 1} steps, wanted {steps}")
    else:
        t = grids.for_model(nodes, steps, model)
    if float(t[0]) == 1:
        raise ValueError("nodes: got t = 1 first, where sigma is infinite, wanted a grid from below it")
    return t
