"""DyWeight: dynamic gradient weighting (Zhao, Lei, Yuan, Yang, Song, Wang, Zhu, Zhang, "DyWeight: Dynamic Gradient
Weighting for Few-Step Diffusion Sampling", arXiv 2603.11607).

In the coordinates x0 + sigma eps, x' = x + (sigma_next - sigma) sum_j w_ij eps_j, with weights of all noise predictions
so far that need not sum to 1. They tell where the step leads: its true end is sigma + (sum w_ij) (sigma_next - sigma),
from which the next step goes to the next node of a fixed grid. A factor s_i scales the sigma that the network is told.
Weights and factors are learned, from iPNDM's and 1, on the squared distance to the teacher's end, one of the losses of
the authors' published code (Westlake-AGI-Lab/DyWeight), whose further ones can be handed in.

Theirs ends at sigma_min, taken for clean; here the last node is 0, and so is the last step's end, whatever its weights.
They train on 10,000 noises in batches of 16, at rates from 0.005 to 0.03, for pixels, and on 5,000 in batches of 2, at
0.0005, under guidance, with at most three earlier predictions; here see `Training`. True ends are kept descending.
`Schedule.network_t` scales what the network is fed for the level that it is told, theirs for the state's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from oss_ext import grids, solvers
from oss_ext.baselines.ends import edm_of, path_of, teacher_of
from oss_ext.baselines.found import Found
from oss_ext.baselines.student import Loss, at_the_end, check_loss
from oss_ext.baselines.training import DEFAULT, Lesson, Task, Training, learn
from oss_ext.models import Denoiser
from oss_ext.progress import ProgressCallback
from oss_ext.refine_knobs import Numbers
from oss_ext.teacher import DEFAULT_SOLVER, DEFAULT_STEPS
from oss_ext.validate import check_model, whole_number

PAPER = "arXiv 2603.11607"
RATE = 0.015
TINY = 1e-9  # what keeps true ends apart, relatively, and told levels above 0


def dyweight(
    model: Denoiser,
    noise: Tensor,
    steps: int = 10,
    *,
    nodes: str | Tensor | None = None,
    start: str = "ipndm_4",
    history: int | None = None,
    told: bool = True,
    loss: Loss | None = None,
    training: Training = DEFAULT,
    teacher_steps: int = DEFAULT_STEPS,
    teacher_solver: str | solvers.Solver = DEFAULT_SOLVER,
    grid: str | Tensor | None = None,
    cond: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    progress: bool | ProgressCallback = False,
) -> Found:
    """A schedule of `steps` steps with learned weights and told levels.

    noise: [B, ...], B >= 2; the last quarter judges. teacher_steps, teacher_solver, grid, cond, batch_size, progress:
        as for `dp_search`; grid is the teacher's alone, None: "edm", or "flow" for flow models.
    nodes: the student's grid, a name or flow times [steps + 1], from below t = 1, where sigma is infinite. None:
        theirs, the steps + 1 nodes of "edm" that lead to sigma_min, the last of which becomes 0. Flow models begin at
        sigma = 400 (`ends.SIGMA_MAX` says why).
    start: "ipndm_4" or another order of it, or "euler": the weights at first.
    history: how many earlier predictions have weights; None: all.
    told: whether the levels that the network is told are learned too.
    loss: (ends, targets), both [b, ...], to [b], differentiable; None: the mean squared difference.
    training: its rate is 0.015 unless said.

    details: "loss" and "first_loss" (on the judging noises), "iterations", "backpropagations" (samples that were
    differentiated through all steps). Raises TypeError or ValueError that names the argument, before any evaluation;
    and for models that cut the graph.
    """
    check_model(model)
    check_loss(loss)
    steps = whole_number("steps", steps, least=1)
    grid = teacher_of(grid, model)
    fine = grids.of_teacher(grid, teacher_steps, model)
    task = Task.check(model, noise, cond, fine, teacher_solver, training, RATE, batch_size, progress)
    t = _nodes(nodes, steps, model)
    first = solvers.get(start) if isinstance(start, str) and start.startswith(("ipndm", "euler")) else None
    if first is None:
        raise ValueError(f"start: got {start!r}, wanted 'euler' or an order of iPNDM, such as 'ipndm_4'")
    most = steps - 1 if history is None else whole_number("history", history, least=0)
    if not isinstance(told, bool):
        raise TypeError(f"told: got {type(told).__name__}, wanted True or False")

    weights = start_weights(first, t)
    mask = torch.ones_like(weights).tril().triu(-most)
    factors = torch.ones(steps, dtype=torch.float64)
    named = "custom" if isinstance(nodes, Tensor) else nodes or "edm, the last replaced"
    lowest = min(model.t_min, float(t[-2]))

    def numbers() -> Numbers:
        masked = weights * mask
        true = true_times(masked, t, lowest)
        sigma = (factors * true[:-1] / (1 - true[:-1])).abs()
        known = (sigma / (1 + sigma)).clamp(max=model.t_max)
        known = torch.maximum(known, torch.minimum(true[:-1], torch.full_like(known, model.t_min + TINY)))
        return Numbers(true, known if told else true[:-1], rows_of(masked, true, t), t[0])

    return learn(
        task,
        [Lesson(steps, "epsilon", numbers, [[weights, factors] if told else [weights]], at_the_end(loss, noise.shape))],
        method="dyweight",
        paper=PAPER,
        grid="custom" if isinstance(grid, Tensor) else grid,
        settings={"nodes": named, "start": start, "history": most},
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


def true_times(weights: Tensor, t: Tensor, lowest: float) -> Tensor:
    """float64 [k + 1]: the flow times where steps with these weights lead, the last 0. Differentiable.

    weights: float64 [k, k], lower triangular. t: float64 [k + 1], the grid. lowest: what no inner one goes below."""
    sigma = t / (1 - t)
    floor = lowest / (1 - lowest) if lowest > 0 else TINY * float(sigma[0])
    reached = [sigma[0]]
    for step in range(len(t) - 2):
        end = reached[-1] + weights[step].sum() * (sigma[step + 1] - reached[-1])
        least = floor * (1 + TINY * (len(t) - 3 - step))
        reached.append(torch.minimum(end.clamp(min=least), reached[-1] * (1 - TINY)))
    ends = torch.stack(reached)
    return torch.cat([ends / (1 + ends), t[-1:]])


def rows_of(weights: Tensor, true: Tensor, t: Tensor) -> Tensor:
    """float64 [k, 1 + k]: coefficients of state, velocity and earlier epsilon predictions, newest first.
    Differentiable. weights: float64 [k, k], lower triangular. true: float64 [k + 1], `true_times` along the grid t."""
    steps = len(weights)
    rows = []
    for step in range(steps):
        now, after = true[step], true[step + 1]
        length = (1 - after) * (t[step + 1] / (1 - t[step + 1]) - now / (1 - now))
        earlier = length * weights[step, :step].flip(0)
        own = length * weights[step, step]
        state = (1 - after) / (1 - now) + own  # this node's epsilon is x + (1 - t) v
        row = [state[None], ((1 - now) * own)[None], earlier, earlier.new_zeros(steps - step - 1)]
        rows.append(torch.cat(row))
    return torch.stack(rows)


def _nodes(nodes: str | Tensor | None, steps: int, model: Denoiser) -> Tensor:
    if nodes is None:
        t = grids.for_model(edm_of(model), steps + 1, model)[:-1]
        t[-1] = 0
    else:
        t = path_of(nodes, steps, model)
    if float(t[0]) == 1:
        raise ValueError("nodes: got t = 1 first, where sigma is infinite, wanted a grid from below it")
    return t
