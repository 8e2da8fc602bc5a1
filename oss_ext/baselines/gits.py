"""GITS: Geometry-Inspired Time Scheduling (Chen, Zhou, Wang, Shen, Lyu, "On the Trajectory Regularity of ODE-based
Diffusion Sampling", arXiv 2405.11326).

One run of a teacher gives the cost of every jump of Euler's method between two of its nodes, from the teacher's state;
the path of least sum is found by dynamic programming. Where the paper leaves a choice open (which distance, which end
the coefficient discounts) it is the authors' published one (zju-pi/diff-sampler, gits-main).

What its schedules run with matters: on the bundled flow model under guidance 3 (24 noises, mean PSNR) the paper's
iPNDM(4) has 13.5, 19.8 and 26.7 dB at 5, 10 and 20 steps, iPNDM(3) 17.3, 27.5 and 33.7, DPM-Solver++(2M) 19.9, 28.0 and
33.1; under guidance 1 iPNDM(3) and (4) are within 0.7 dB of each other and ahead.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping

import torch
from torch import Tensor

from oss_ext import grids, kernels, solvers
from oss_ext.baselines.ends import edm_of
from oss_ext.baselines.found import Found, deployed_with, schedule_of
from oss_ext.drive import drive
from oss_ext.evaluate import pick_batch_size, state_dtype
from oss_ext.models import Denoiser
from oss_ext.progress import Counter, ProgressCallback, check_progress
from oss_ext.teacher import Ask, Teacher, check_guide, integrate
from oss_ext.validate import check_cond, check_model, check_noise, choice, whole_number

PAPER = "arXiv 2405.11326"
METRICS = ("deviation", "l2", "l1")
COORDINATES = ("ve", "flow")


@torch.no_grad()
def gits(
    model: Denoiser,
    noise: Tensor,
    steps: int = 10,
    *,
    teacher_steps: int = 60,
    grid: str | Tensor | None = None,
    solver: str | solvers.Solver = "ipndm_4",
    teacher_solver: str | solvers.Solver = "ipndm_4",
    metric: str = "deviation",
    coefficient: float = 1.15,
    coordinates: str = "ve",
    cond: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    progress: bool | ProgressCallback = False,
) -> Found:
    """Schedules of 1..`steps` steps along the teacher's grid, from one cost matrix. The paper's settings are the
    defaults: 61 nodes of the EDM grid, iPNDM of order 4, 256 samples.

    Theirs ends at sigma_min; the teacher and every schedule here end at 0, with as many evaluations. A flow model
    begins at sigma = inf; the grid then begins at 400 instead of their 80 (`ends.SIGMA_MAX` says why).

    noise, cond, batch_size, progress, teacher_steps, grid, teacher_solver: as for `dp_search`; no grid: as said.
    solver: what the schedules are to run with; the path does not depend on it.
    metric: the cost of a jump, a mean over the samples. "deviation": how much farther from the straight line between
        the ends of the trajectory it lands than the teacher's state lies; may be below 0. "l2", "l1": distance to the
        teacher's state in that norm.
    coefficient: gamma > 0: V_k(i) = min_j cost(i, j) + gamma V_(k-1)(j), so that later jumps weigh more above 1.
    coordinates: in which distances are measured. "ve": x0 + sigma eps, the paper's; a grid that starts at t = 1, where
        sigma is infinite, wants "flow": (1 - t) x0 + t eps.

    details: "cost" [N + 1, N + 1] float64, +inf where j <= i; "values" {steps: the sum} and "nodes" {steps: int64
        [k + 1]} of the paths.
    Evaluations a sample: teacher_steps. Raises TypeError or ValueError that names the argument, before any.
    """
    check_model(model)
    noise = check_noise(noise)
    given = check_cond(cond, noise)
    grid = edm_of(model) if grid is None else grid
    t = grids.of_teacher(grid, teacher_steps, model)
    steps = whole_number("steps", steps, least=1, most=len(t) - 1, most_is=", the teacher's steps")
    deployed, guide = deployed_with(solver), check_guide(teacher_solver)
    choice("metric", metric, METRICS)
    choice("coordinates", coordinates, COORDINATES)
    if isinstance(coefficient, bool) or not isinstance(coefficient, int | float):
        raise TypeError(f"coefficient: got {type(coefficient).__name__}, wanted a number")
    if not 0 < coefficient < math.inf:
        raise ValueError(f"coefficient: got {coefficient}, wanted a positive number")
    if coordinates == "ve" and float(t[0]) == 1:
        raise ValueError("coordinates: got 've' with a grid that starts at t = 1 (sigma = inf), wanted 'flow'")
    progress = check_progress(progress)
    rows = pick_batch_size(batch_size, noise[0].numel())

    total = len(noise) * (len(t) - 1)
    cost = torch.zeros(len(t), len(t), dtype=torch.float64)
    with Counter(total, progress, "gits") as counter:
        for begin in range(0, len(noise), rows):
            part = slice(begin, min(begin + rows, len(noise)))
            states, outputs = _trajectory(model, noise[part], t, guide, given, rows, counter, part)
            cost += jump_costs(states, outputs, t, metric=metric, coordinates=coordinates).sum(0).cpu()
    cost /= len(noise)
    values, paths = shortest(cost, steps, coefficient)

    nfe: dict[str, float] = {"teacher": len(t) - 1, "total": len(t) - 1}
    settings = {"metric": metric, "coefficient": float(coefficient), "coordinates": coordinates}
    schedules = {
        budget: schedule_of(
            t[path],
            deployed,
            model,
            method="gits",
            paper=PAPER,
            nodes=path,
            nfe=nfe,
            settings=settings,
            grid="custom" if isinstance(grid, Tensor) else grid,
            teacher_steps=len(t) - 1,
            teacher_solver=guide.name,
            samples=len(noise),
        )
        for budget, path in paths.items()
    }
    return Found(schedules, nfe, {"cost": cost, "values": values, "nodes": paths})


def jump_costs(states: Tensor, outputs: Tensor, t: Tensor, *, metric: str, coordinates: str) -> Tensor:
    """float64 [B, N + 1, N + 1]: the cost of Euler's jump from the teacher's state i to node j > i, +inf elsewhere.

    states: [B, N + 1, D], the teacher's, in flow coordinates. outputs: [B, N, D], the velocities there. t: float64
    [N + 1]. metric, coordinates: see `gits`.
    """
    few = max(1, 2**22 // states[0].numel())
    parts = zip(states.split(few), outputs.split(few), strict=True)
    return torch.cat([_costs(x.double(), v.double(), t.to(x.device), metric, coordinates) for x, v in parts])


def _costs(x: Tensor, v: Tensor, t: Tensor, metric: str, coordinates: str) -> Tensor:
    place = t
    if coordinates == "ve":
        v = x[:, :-1] + (1 - t[:-1, None]) * v  # epsilon is the slope of x0 + sigma eps over sigma
        x = x / (1 - t)[:, None]
        place = t / (1 - t)
    slope = torch.cat([v, torch.zeros_like(x[:, -1:])], 1)
    length = place[None, :] - place[:, None]
    if metric == "l1":
        cost = torch.full((len(x), len(t), len(t)), torch.inf, dtype=x.dtype, device=x.device)
        for i in range(len(t) - 1):
            jump = x[:, i, None] + length[i, i + 1 :, None] * slope[:, i, None]
            cost[:, i, i + 1 :] = (jump - x[:, i + 1 :]).abs().sum(-1)
        return cost
    coefficients = torch.stack([torch.ones_like(length), length], -1)
    if metric == "l2":
        return (x.shape[-1] * kernels.pairwise_cost([x, slope], coefficients, x)).sqrt()
    # Distances from the chord: what is left of vectors from the chord's end when their part along it is taken off.
    chord = x[:, :1] - x[:, -1:]
    size = chord.norm(dim=-1, keepdim=True)
    along = torch.where(size > 0, chord / size, 0.0)

    def off(vectors: Tensor) -> Tensor:
        return vectors - (vectors * along).sum(-1, keepdim=True) * along

    beside, slope = off(x - x[:, -1:]), off(slope)
    jumped = (x.shape[-1] * kernels.pairwise_cost([beside, slope], coefficients, torch.zeros_like(x))).sqrt()
    return jumped - beside.norm(dim=-1)[:, None]


def shortest(cost: Tensor, steps: int, coefficient: float = 1.0) -> tuple[dict[int, float], dict[int, Tensor]]:
    """{k: the least sum} and {k: int64 [k + 1], its nodes} of the paths from node 0 to the last with k = 1..`steps`
    jumps, V_k(i) = min_j cost(i, j) + coefficient * V_(k-1)(j), V_0 = 0 at the last node.

    cost: float64 [N + 1, N + 1]. `kernels.min_plus` runs from the front: the nodes are counted from the end.
    """
    last = len(cost) - 1
    values, sources = kernels.min_plus(cost.flip(0, 1).T.contiguous(), steps, discount=coefficient)
    sums, paths = {}, {}
    for k in range(1, steps + 1):
        path = [last]
        for stage in range(k, 0, -1):
            path.append(int(sources[stage - 1, path[-1]]))
        sums[k], paths[k] = float(values[k - 1, last]), last - torch.tensor(path)
    return sums, paths


def _trajectory(
    model: Denoiser,
    noise: Tensor,
    t: Tensor,
    guide: solvers.Solver,
    cond: Mapping[str, Tensor],
    rows: int,
    counter: Counter,
    samples: slice,
) -> tuple[Tensor, Tensor]:
    """The teacher's states [b, N + 1, D] and its outputs [b, N, D]. samples: which of all these noises are."""
    outputs: list[Tensor] = []

    def recorded() -> Generator[Ask, Tensor, Teacher]:
        core = integrate(noise.to(state_dtype(noise.dtype)), t, guide, samples)
        try:
            ask = next(core)
            while True:
                sent = yield ask
                outputs.append(sent.reshape(len(noise), -1))
                ask = core.send(sent)
        except StopIteration as done:
            teacher: Teacher = done.value
            return teacher

    teacher = drive(
        recorded(), model, cond=cond, dtype=noise.dtype, batch_size=rows, counter=counter, device=noise.device
    )
    return teacher.states, torch.stack(outputs, 1)
