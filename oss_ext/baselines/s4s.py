"""S4S and S4S-Alt: solving for the solver (Frankel, Chen, Li, Koh, Ratliff, Oh, "S4S: Solving for a Diffusion Model
Solver", arXiv 2502.17423).

Every step of a multistep solver keeps its exponential form in x0 predictions D, x' = (sigma' / sigma) x + alpha' (1 -
e^-h) sum_j b_ij D_j, and has weights b_ij of its own for the newest `order` of them. They start from a known solver's
and are learned by back-propagation to end where a teacher ends. S4S leaves the times as they are; S4S-Alt learns
weights and times in turns, the others held. The student need not start at the teacher's noise: any start in a small
ball around it will do, and the start is learned too.

No code of the authors' is public. What their text leaves open, or could not be read, is as elsewhere here: LD3's ball
and the rate of its starts (`ld3`), the times' coordinates and the optimiser of the other learned solvers (`training`).
The learning noises alone have starts of their own: the judges start where samples will. The network may be told times
of its own, as in LD3, here factors of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from oss_ext import grids, solvers
from oss_ext.baselines.ends import grid_names, path_of
from oss_ext.baselines.found import Found, deployed_with
from oss_ext.baselines.ld3 import RADIUS, SHIFT
from oss_ext.baselines.student import Loss, at_the_end, check_loss
from oss_ext.baselines.training import DEFAULT, Gaps, Lesson, Task, Training, learn
from oss_ext.models import Denoiser
from oss_ext.progress import ProgressCallback
from oss_ext.refine_knobs import Numbers
from oss_ext.teacher import DEFAULT_SOLVER, DEFAULT_STEPS
from oss_ext.validate import check_model, real_number, whole_number

PAPER = "arXiv 2502.17423"
RATE = 0.01


def s4s(
    model: Denoiser,
    noise: Tensor,
    steps: int = 10,
    *,
    alternations: int = 4,
    nodes: str | Tensor | Sequence[str] | None = None,
    solver: str | solvers.Solver = "unip_3",
    order: int = 3,
    told: bool = True,
    loss: Loss | None = None,
    radius: float | None = None,
    training: Training = DEFAULT,
    teacher_steps: int = DEFAULT_STEPS,
    teacher_solver: str | solvers.Solver = DEFAULT_SOLVER,
    grid: str | Tensor = "flow",
    cond: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    progress: bool | ProgressCallback = False,
) -> Found:
    """A schedule of `steps` steps with learned weights, and learned times if there are alternations.

    noise: [B, ...], B >= 2; the last quarter judges. cond, batch_size, progress, teacher_steps, teacher_solver, grid:
        as for `dp_search`; the grid is the teacher's alone.
    alternations: how often weights and then times have their turn; 0: S4S, weights alone, else S4S-Alt.
    nodes: the times at first: flow times [steps + 1] or a name; of several names, the one that is best on the judging
        noises before training. None: `ends.starts_of`.
    solver: whose weights are learned on: a formula that steps along a mean of x0 predictions, "unip_2", "unip_3",
        "dpmpp_2m", "dpmpp_3m", or "euler".
    order: how many predictions have weights, 1 to 5, at least as many as the solver uses.
    told: whether the network is told times of its own, learned beside the others.
    loss: (ends, targets), both [b, ...], to [b], differentiable; None: the mean squared difference; the paper's: LPIPS.
    radius: of the ball of starts, for unit normal noise; None: LD3's, 0.001 D / steps^2; 0: the noise itself.
    training: its rate is 0.01 unless said.

    details: "loss" and "first_loss" (on the judging noises), "iterations", "backpropagations" (samples that were
    differentiated through all steps). Raises TypeError or ValueError that names the argument, before any evaluation;
    and for models that cut the graph.
    """
    check_model(model)
    check_loss(loss)
    steps = whole_number("steps", steps, least=1)
    alternations = whole_number("alternations", alternations, least=0)
    fine = grids.of_teacher(grid, teacher_steps, model)
    task = Task.check(model, noise, cond, fine, teacher_solver, training, RATE, batch_size, progress)
    known = _exponential(solver)
    order = whole_number("order", order, least=known.history + 1, most=solvers.MAX_HISTORY + 1)
    if not isinstance(told, bool):
        raise TypeError(f"told: got {type(told).__name__}, wanted True or False")
    ball = RADIUS * task.noise[0].numel() / steps**2 if radius is None else real_number("radius", radius, least=0)
    paths = (
        {"custom": nodes} if isinstance(nodes, Tensor) else {name: name for name in grid_names("nodes", nodes, model)}
    )

    def lesson(name: str, t: Tensor) -> Lesson:
        gaps, weights = Gaps(t, model.t_min), start_weights(known, t, order)
        stretched = torch.zeros(steps, dtype=torch.float64)

        def numbers() -> Numbers:
            now = gaps.times() if alternations else t
            if not (alternations and told):
                return Numbers(now, now[:-1], rows_of(weights, now), t[0])
            least = torch.minimum(now[:-1].detach(), t.new_tensor(model.t_min))
            fed = torch.maximum((now[:-1] * stretched.exp()).clamp(max=model.t_max), least)
            return Numbers(now, fed, rows_of(weights, now), t[0])

        times = [gaps.raw, stretched] if told else [gaps.raw]
        return Lesson(
            steps,
            "x0",
            numbers,
            [[weights], times] if alternations else [[weights]],
            at_the_end(loss, noise.shape),
            changes=max(alternations, 1),
            radius=ball,
            start_rate=SHIFT / (2 * steps),  # LD3's is of the mean over two
            name=f"{known.name} along {name}",
        )

    return learn(
        task,
        [lesson(name, path_of(path, steps, model)) for name, path in paths.items()],
        method="s4s_alt" if alternations else "s4s",
        paper=PAPER,
        grid="custom" if isinstance(grid, Tensor) else grid,
        settings={"order": order, "alternations": alternations, "radius": ball},
    )


def start_weights(solver: solvers.Solver, t: Tensor, order: int) -> Tensor:
    """float64 [k, order]: the weights b_ij of `solver` along t [k + 1], newest first."""
    steps = len(t) - 1
    weights = torch.zeros(steps, order, dtype=torch.float64)
    earlier = solvers.along(solver, t)[:, 2:] / (1 - t[1:] / t[:-1])[:, None]
    weights[:, 1 : 1 + earlier.shape[1]] = earlier
    weights[:, 0] = 1 - earlier.sum(1)
    return weights


def rows_of(weights: Tensor, t: Tensor) -> Tensor:
    """float64 [k, 1 + order]: coefficients of state, velocity and earlier x0 predictions. Differentiable.

    weights: float64 [k, order], newest first; those of predictions before the first are not read. t: float64 [k + 1].
    """
    ratio = t[1:] / t[:-1]  # sigma' / sigma, and alpha' / alpha in between, in flow coordinates
    shares = (1 - ratio)[:, None] * weights.tril()
    own = shares[:, :1]  # of x - t v
    return torch.cat([ratio[:, None] + own, -t[:-1, None] * own, shares[:, 1:]], 1)


def _exponential(solver: str | solvers.Solver) -> solvers.Solver:
    known = deployed_with(solver)
    usable = isinstance(known, solvers.Euler | solvers.UniP | solvers.DpmSolverPlusPlus2M | solvers.DpmSolverPlusPlus3M)
    if not usable:
        raise ValueError(f"solver: got {known.name!r}, wanted 'euler', 'unip_2', 'unip_3', 'dpmpp_2m' or 'dpmpp_3m'")
    return known
