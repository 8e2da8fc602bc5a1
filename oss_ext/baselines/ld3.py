"""LD3: learned discretisation (Tong, Hoang, Liu, Van den Broeck, Niepert, "Learning to Discretize Denoising Diffusion
ODEs", arXiv 2405.15506).

The times of a few-step sampler are learned by back-propagation through its steps, to end where a teacher ends. A second
set of times is what the network is told, near the first. The student need not start at the teacher's noise: any start
in a small ball around it will do (the paper's surrogate loss), and the start is learned too. Where the paper leaves a
choice open (parametrisation, optimisers, rates, rounds) it is the authors' published one (vinhsuhi/LD3), except:
- the second times move by at most `window` times the smallest gap between the first in the coordinate that is learned,
  as in their mode "time"; their mode "lambda" takes the gap between its raw parameters, which is 0 at first;
- validation is on all of the validation noises from the beginning, and the learned starts change between rounds only;
- `Schedule.network_t` scales what the network is fed for the time that it is told, theirs for the state's.

They learn on 50 noises and judge on 50, in batches of 2: 175 iterations in all. On a flow model (a mixture of
Gaussians, 100 noises, mean PSNR, UniPC(3)) learned gaps of flow time have 38.2 dB at 5 steps and gaps of lambda 31.9;
without the second times 36.1 and 29.3. Batches of 10 take a fifth of the iterations and lose up to 9 dB at 10 steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from oss_ext import grids, solvers
from oss_ext.baselines.ends import lambda_ends, teacher_of
from oss_ext.baselines.found import Found, deployed_with, schedule_of
from oss_ext.baselines.student import Loss, Student, at_the_end, check_loss, within
from oss_ext.drive import drive
from oss_ext.evaluate import pick_batch_size, state_dtype
from oss_ext.models import Denoiser
from oss_ext.progress import Counter, ProgressCallback, check_progress
from oss_ext.refine_knobs import Follow, Numbers
from oss_ext.teacher import DEFAULT_SOLVER, DEFAULT_STEPS, check_guide
from oss_ext.validate import check_cond, check_model, check_noise, choice, real_number, whole_number
from oss_ext.walks import run

PAPER = "arXiv 2405.15506"
MODES = ("lambda", "time")
RATE, RATE_2, SHIFT = 0.005, 0.1, 12.0  # of the times; of the second times and of the starts, over the steps
LEAST_RATE, LEAST_RATE_2, DECAY, PATIENCE = 5e-5, 1e-6, 0.8, 5
RADIUS = 0.001  # times the numbers of a sample over the steps squared: of the ball


class _Times(NamedTuple):
    """t: float64 [k + 1], ends in 0. network_t: [k]."""

    t: Tensor
    network_t: Tensor


def ld3(
    model: Denoiser,
    noise: Tensor,
    steps: int = 10,
    *,
    solver: str | solvers.Solver = "unipc_3",
    mode: str | None = None,
    second: bool = True,
    loss: Loss | None = None,
    rounds: tuple[int, int] = (2, 5),
    minibatch: int = 2,
    radius: float | None = None,
    window: float = 0.5,
    seed: int = 0,
    graph: bool = False,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    teacher_steps: int = DEFAULT_STEPS,
    teacher_solver: str | solvers.Solver = DEFAULT_SOLVER,
    grid: str | Tensor | None = None,
    cond: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    progress: bool | ProgressCallback = False,
) -> Found:
    """The schedule of `steps` steps that is best on half of the noises, of those met while learning on the other half.

    Theirs ends at sigma_min; here that last time becomes 0, with as many evaluations.

    noise: [B, ...], B >= 2; the paper takes 50 to learn and 50 to judge. cond, batch_size, progress, teacher_steps,
        teacher_solver, grid: as for `dp_search`; the grid is the teacher's alone, None: "edm", or "flow" for flow
        models.
    solver: what the schedule is learned for.
    mode: what is learned: gaps of "lambda" = -log sigma between sigma_max and sigma_min (theirs in pixels), or of flow
        "time" between the model's ends. None: "lambda" where the noisiest sigma is finite.
    second: whether the network is told times of its own, in the later rounds.
    loss: None: the mean squared difference; the paper's is LPIPS.
    rounds: over the learning noises: on the times alone, then on both sets. minibatch: noises a gradient is of.
    radius: of the ball of starts, for unit normal noise; None: 0.001 D / steps^2; 0: the teacher's noise.
    seed: of the order of the noises. graph: as `baselines.Training`'s.

    details: "loss" (of the schedule, on the judging noises with their learned starts), "first_loss", "iterations",
    "backpropagations" (samples that were differentiated through all steps).
    Raises TypeError or ValueError that names the argument, before any evaluation; and for models that cut the graph.
    """
    check_model(model)
    noise = check_noise(noise)
    given = check_cond(cond, noise)
    if len(noise) < 2:
        raise ValueError("noise: got 1 sample, wanted at least 2: half of them only judge")
    steps = whole_number("steps", steps, least=1)
    deployed, guide = deployed_with(solver), check_guide(teacher_solver)
    grid = teacher_of(grid, model)
    fine = grids.of_teacher(grid, teacher_steps, model)
    kind = ("lambda" if model.t_max < 1 else "time") if mode is None else choice("mode", mode, MODES)
    if not isinstance(second, bool):
        raise TypeError(f"second: got {type(second).__name__}, wanted True or False")
    check_loss(loss)
    first, later = _rounds(rounds)
    few = whole_number("minibatch", minibatch, least=1)
    dim = noise[0].numel()
    ball = RADIUS * dim / steps**2 if radius is None else real_number("radius", radius, least=0)
    window = real_number("window", window, least=0, most=0.5)
    ends = lambda_ends(model, sigma_min, sigma_max)
    if kind == "time":
        ends = torch.tensor([model.t_max, model.t_min], dtype=torch.float64)
    whole_number("seed", seed, least=0)
    progress = check_progress(progress)
    rows = pick_batch_size(batch_size, dim)

    half = len(noise) // 2
    judged = steps * (len(noise) - half)
    each_round = 4 * steps * half + -(-half // few) * judged + (5 * judged if ball else 0)
    total = len(noise) * (len(fine) - 1) + (judged + each_round * (first + later) if steps > 1 else 0)
    with torch.inference_mode(False), torch.enable_grad(), Counter(total, progress, "ld3") as counter:
        states = noise.to(state_dtype(noise.dtype)).clone()
        given = {key: value.clone() for key, value in given.items()}
        with torch.no_grad():
            path = run(states, fine, solvers.along(guide, fine), guide.carries, samples=slice(0, len(noise)))
            target = drive(path, model, cond=given, dtype=noise.dtype, batch_size=rows, counter=counter)
        losses = at_the_end(loss, noise.shape)
        at_once = max(1, rows // steps)
        student = Student(model, deployed.carries, noise.dtype, at_once, rows, counter, losses, graph)
        learner = _Learner(student, states, target, given, deployed, steps, kind, ends, window, ball)
        if steps > 1:
            learner.learn(first, later if second else 0, few, torch.Generator().manual_seed(seed))
        times, best = learner.best()
        counter.finish()

    spent = counter.made / len(noise)
    nfe: dict[str, float] = {"teacher": len(fine) - 1, "train": spent - (len(fine) - 1), "total": spent}
    settings = {"mode": kind, "rounds": [first, later], "minibatch": few, "radius": ball, "window": window}
    schedule = schedule_of(
        times.t,
        deployed,
        model,
        method="ld3",
        paper=PAPER,
        nfe=nfe,
        settings={**settings, "backpropagations": learner.differentiated},
        grid="custom" if isinstance(grid, Tensor) else grid,
        teacher_steps=len(fine) - 1,
        teacher_solver=guide.name,
        samples=len(noise),
    )
    if not torch.equal(times.network_t, times.t[:-1]):
        told = times.network_t.clamp(model.t_min, model.t_max)
        schedule = replace(schedule, network_t=told, timesteps=model.timesteps(told))
    details = {
        "loss": best,
        "first_loss": learner.first_loss,
        "iterations": learner.iterations,
        "backpropagations": learner.differentiated,
    }
    return Found({steps: schedule}, nfe, details)


def place(raw: Tensor, moved: Tensor, ends: Tensor, mode: str, window: float) -> _Times:
    """The times that the parameters stand for; differentiable.

    raw: float64 [k + 1], logarithms of shares (softmax) whose sums are the places between the ends. moved: float64
    [k + 1], what is added for the network. ends: float64 [2], noisiest first, lambdas or flow times.
    """
    reached = torch.softmax(raw, 0).cumsum(0)
    if mode == "time":
        reached = reached.flip(0)
    share = (reached - reached[0]) / (reached[-1] - reached[0])
    places = ends[0] + share * (ends[1] - ends[0])
    most = window * float(places.detach().diff().abs().min())
    inner = torch.ones_like(share)
    inner[0] = inner[-1] = 0
    told = places + moved.clamp(-most, most) * inner
    if mode == "lambda":
        places, told = torch.sigmoid(-places), torch.sigmoid(-told)
    return _Times(torch.cat([places[:-1], places.new_zeros(1)]), told[:-1])


class _Learner:
    """The first half of the problem's noises teaches, the others judge."""

    def __init__(
        self,
        student: Student,
        noise: Tensor,
        target: Tensor,
        cond: Mapping[str, Tensor],
        solver: solvers.Solver,
        steps: int,
        mode: str,
        ends: Tensor,
        window: float,
        radius: float,
    ) -> None:
        self._student, self._noise, self._target, self._cond = student, noise, target, cond
        self._solver, self._steps, self._radius = solver, steps, radius
        self._mode, self._ends, self._window = mode, ends, window
        half = len(noise) // 2
        self._halves = torch.arange(half), torch.arange(half, len(noise))
        self._starts = noise.clone()
        self.raw = torch.ones(steps + 1, dtype=torch.float64, requires_grad=True)
        self.moved = torch.zeros(steps + 1, dtype=torch.float64, requires_grad=True)
        self._kept = self.raw.detach().clone(), self.moved.detach().clone()
        self._least = self.first_loss = math.nan
        self.iterations = self.differentiated = 0

    def best(self) -> tuple[_Times, float]:
        with torch.no_grad():
            return place(*self._kept, self._ends, self._mode, self._window), self._least

    def losses(self, which: Tensor, starts: Tensor) -> Tensor:
        """float64 [b]: of the student from `starts` [b, *shape], against the targets of noises `which`."""
        target, cond = self._of(which)
        with torch.no_grad():
            return self._student.judge(starts, cond, target, self._numbers())

    def _of(self, which: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        which = which.to(self._target.device)
        return self._target[which], {key: value[which] for key, value in self._cond.items()}

    def _numbers(self) -> Numbers:
        times = place(self.raw, self.moved, self._ends, self._mode, self._window)
        return Numbers(times.t, times.network_t, Follow.apply(times.t, self._solver), times.t[0])

    def learn(self, first: int, later: int, few: int, order: torch.Generator) -> None:
        fast = torch.optim.RMSprop([self.raw], lr=RATE, momentum=0.9)
        slow = torch.optim.SGD([self.moved], lr=RATE_2 / self._steps)
        self._least = self.first_loss = self._judge()
        worse = hits = 0
        for number in range(first + later):
            both = number >= first
            self.moved.requires_grad_(both)
            self._load()
            worse = 0
            teaching, judging = self._halves
            fresh = self._starts.clone()
            for which in teaching[torch.randperm(len(teaching), generator=order)].split(few):
                slopes = self._slopes(which)
                torch.nn.utils.clip_grad_norm_([self.raw], 1.0)
                if both:
                    torch.nn.utils.clip_grad_norm_([self.moved], 1.0)
                fast.step()
                slow.step()
                self.iterations += 1
                level = self._judge()
                if level < self._least:
                    self._least, worse = level, 0
                    self._kept = self.raw.detach().clone(), self.moved.detach().clone()
                else:
                    worse += 1
                if worse >= PATIENCE:
                    self._load()
                    worse = 0
                    for group in fast.param_groups:
                        group["lr"] = max(DECAY * group["lr"], LEAST_RATE)
                    for group in slow.param_groups if both else []:
                        group["lr"] = max(DECAY * group["lr"], LEAST_RATE_2)
                        hits += group["lr"] <= LEAST_RATE_2
                if hits >= PATIENCE:
                    return
                self._shift(fresh, which, *slopes)
            if self._radius > 0:
                for which in judging.split(few):
                    self._shift(fresh, which, *self._slopes(which))
                self._starts = fresh
                self._least = self._judge(self._kept)

    def _load(self) -> None:
        self.raw.data.copy_(self._kept[0])
        self.moved.data.copy_(self._kept[1])

    def _judge(self, parameters: tuple[Tensor, Tensor] | None = None) -> float:
        """The mean loss of the judging noises, with the parameters as they are or these."""
        held = self.raw.detach().clone(), self.moved.detach().clone()
        if parameters is not None:
            self.raw.data.copy_(parameters[0])
            self.moved.data.copy_(parameters[1])
        level = float(self.losses(self._halves[1], self._rows(self._halves[1])).mean())
        self.raw.data.copy_(held[0])
        self.moved.data.copy_(held[1])
        return level

    def _rows(self, which: Tensor) -> Tensor:
        return self._starts[which.to(self._starts.device)]

    def _slopes(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """Sets the parameters' gradients; returns those of the starts, and the losses, both detached."""
        target, cond = self._of(which)
        self.raw.grad = self.moved.grad = None
        losses, slope = self._student.slopes(self._rows(which), cond, target, self._numbers(), by_starts=True)
        self.differentiated += len(which)
        assert slope is not None
        return slope, losses

    @torch.no_grad()
    def _shift(self, fresh: Tensor, which: Tensor, slope: Tensor, before: Tensor) -> None:
        """Moves starts down their slope within the ball, where the loss falls by it; into `fresh`."""
        if self._radius == 0:
            return
        rows = which.to(fresh.device)
        moved = within(self._starts[rows] - SHIFT / self._steps * slope, self._noise[rows], self._radius)
        better = self.losses(which, moved) < before
        fresh[rows[better]] = moved[better]


def _rounds(rounds: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(rounds, tuple | list) or len(rounds) != 2:
        raise TypeError(f"rounds: got {rounds!r}, wanted two whole numbers")
    return whole_number("rounds", rounds[0], least=0), whole_number("rounds", rounds[1], least=0)
