"""What the learned solvers share: noises and their teacher, times as free parameters, and the training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oss_ext import solvers
from oss_ext.baselines.found import Found
from oss_ext.baselines.student import Losses, Student, within
from oss_ext.drive import drive
from oss_ext.evaluate import pick_batch_size, state_dtype
from oss_ext.models import Denoiser
from oss_ext.objective import judges
from oss_ext.progress import Counter, ProgressCallback, check_progress
from oss_ext.provenance import Provenance
from oss_ext.refine_gradient import judged_at
from oss_ext.refine_knobs import Numbers
from oss_ext.schedule import Schedule
from oss_ext.teacher import check_guide, integrate
from oss_ext.validate import check_cond, check_noise, whole_number

JUDGED_EVERY = 20
ROOM = 1e-4  # the least share of the way to the cleanest time that a step has at first

Targets = Callable[[Numbers, Tensor], Tensor]
"""targets(the numbers, the teacher's states [b, N + 1, D] of some samples) -> [b, ...], what losses compare with."""


class Gaps:
    """Times between the first of `t`, float64 [k + 1], and `lowest`, as a softmax of `raw`, float64 [k]; the last is 0.

    At first those of `t`, but for gaps of less than `ROOM`."""

    def __init__(self, t: Tensor, lowest: float) -> None:
        self._first, self._lowest = t[:1], lowest
        gaps = torch.cat([-t[:-1].diff(), t[-2:-1] - lowest])
        shares = (gaps / gaps.sum()).clamp(min=ROOM) if float(gaps.sum()) > 0 else torch.ones_like(gaps)
        self.raw = (shares / shares.sum()).log()

    def times(self) -> Tensor:
        share = torch.softmax(self.raw, 0).cumsum(0)[:-1]
        return torch.cat([self._first, self._first - (self._first - self._lowest) * share, torch.zeros(1).double()])


@dataclass(frozen=True)
class Training:
    """How learned numbers are trained: by Adam with a cosine decay, for all alike and not the papers' own. The iterate
    that is best on noises that it did not learn from is kept, the first among them.

    iterations: each on `minibatch` noises, split where they are more than the method's batch_size / steps (a larger
        batch_size takes more memory and fewer launches). seed: of the order of the noises.
    rate: of all parameters, at first; None: the method's own, the best of those tried for a few hundred iterations.
    graph: on a GPU, captures an iteration's run and gradients as a CUDA graph and replays it; small networks, whose
        kernels are shorter than their launches, train several times faster. Only for models without a wait for the
        device and without Python that depends on values; others fail when it is captured.

    Raises TypeError or ValueError that names the setting.
    """

    iterations: int = 400
    rate: float | None = None
    minibatch: int = 40
    seed: int = 0
    graph: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.graph, bool):
            raise TypeError(f"graph: got {type(self.graph).__name__}, wanted True or False")
        for name, least in (("iterations", 0), ("minibatch", 1), ("seed", 0)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least=least))
        if self.rate is None:
            return
        if isinstance(self.rate, bool) or not isinstance(self.rate, int | float):
            raise TypeError(f"rate: got {type(self.rate).__name__}, wanted a number or None")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate: got {self.rate}, wanted a positive number")


DEFAULT = Training()


@dataclass(frozen=True)
class Task:
    """What a training run is of, checked. teacher: N + 1 flow times."""

    model: Denoiser
    noise: Tensor
    cond: dict[str, Tensor]
    fine: Tensor
    guide: solvers.Solver
    iterations: int
    rate: float
    few: int
    judges: int
    seed: int
    graph: bool
    rows: int
    progress: bool | ProgressCallback

    @classmethod
    def check(
        cls,
        model: Denoiser,
        noise: Any,
        cond: Any,
        fine: Tensor,
        teacher_solver: str | solvers.Solver,
        training: Training,
        rate: float,
        batch_size: int | None,
        progress: Any,
    ) -> Task:
        """rate: the method's own. Raises TypeError or ValueError that names the argument."""
        noise = check_noise(noise)
        given = check_cond(cond, noise)
        if len(noise) < 2:
            raise ValueError("noise: got 1 sample, wanted at least 2: some of them only judge")
        if not isinstance(training, Training):
            raise TypeError(f"training: got {type(training).__name__}, wanted a baselines.Training")
        judging = judges(len(noise))
        return cls(
            model,
            noise,
            given,
            fine,
            check_guide(teacher_solver),
            training.iterations,
            rate if training.rate is None else float(training.rate),
            min(training.minibatch, len(noise) - judging),
            judging,
            training.seed,
            training.graph,
            pick_batch_size(batch_size, noise[0].numel()),
            check_progress(progress),
        )


@dataclass(frozen=True)
class Lesson:
    """What is trained, and on what.

    numbers: what the parameters stand for. turns: groups of parameters; where there are several they are trained in
    turns, each `changes` times. losses, targets: see there. radius: noises learn starts of their own within a ball of
    this radius around them, by steps of `start_rate` down the slope of their own loss; judges do not. name: of what it
    starts from.
    """

    steps: int
    carries: solvers.Carries
    numbers: Callable[[], Numbers]
    turns: list[list[Tensor]]
    losses: Losses
    targets: Targets = lambda now, teacher: teacher[:, -1]
    changes: int = 1
    radius: float = 0.0
    start_rate: float = 0.0
    name: str = ""


def learn(
    task: Task, lessons: Sequence[Lesson], *, method: str, paper: str, grid: str, settings: Mapping[str, Any]
) -> Found:
    """Trains a method's parameters; see the methods' files. Of several lessons, which differ in where they start, it is
    the one with the least loss on the judging noises before training."""
    steps, count = lessons[0].steps, len(task.noise)
    judgements = len(judged_at(task.iterations, JUDGED_EVERY)) + (len(lessons) if len(lessons) > 1 else 0)
    total = count * (len(task.fine) - 1) + steps * (3 * task.few * task.iterations + task.judges * judgements)
    with torch.inference_mode(False), torch.enable_grad(), Counter(total, task.progress, method) as counter:
        noise = task.noise.to(state_dtype(task.noise.dtype)).clone()
        cond = {key: value.clone() for key, value in task.cond.items()}
        with torch.no_grad():
            teacher = drive(
                integrate(noise, task.fine, task.guide),
                task.model,
                cond=cond,
                dtype=task.noise.dtype,
                batch_size=task.rows,
                counter=counter,
            ).states
        at_once = max(1, task.rows // steps)
        student = Student(
            task.model, lessons[0].carries, task.noise.dtype, at_once, task.rows, counter, lessons[0].losses, task.graph
        )
        data = _Data(noise, cond, teacher, count - task.judges)
        lesson = lessons[0]
        if len(lessons) > 1:
            lesson = min(lessons, key=lambda one: _finite(_judged(one, student, data)[1]))
        best, first, least = _train(task, lesson, student, data)

    spent = counter.made / count
    differentiated = task.few * task.iterations
    nfe: dict[str, float] = {"teacher": len(task.fine) - 1, "train": spent - (len(task.fine) - 1), "total": spent}
    ran: dict[str, Any] = {"iterations": task.iterations, "rate": task.rate, "minibatch": task.few}
    origin = Provenance(
        grid=grid,
        teacher_steps=len(task.fine) - 1,
        teacher_solver=task.guide.name,
        samples=count,
        model=task.model.describe(),
        metadata={
            "method": method,
            "paper": paper,
            "backpropagations": differentiated,
            **({"start": lesson.name} if lesson.name else {}),
            **ran,
            **settings,
        },
        nfe=dict(nfe),
    )
    model = task.model
    told = None if torch.equal(best.network_t, best.t[:-1]) else best.network_t
    schedule = Schedule(
        best.t,
        best.rows,
        method,
        model.sigmas(best.t),
        model.timesteps(best.t[:-1] if told is None else told),
        model.parameterization,
        None,
        origin,
        lesson.carries,
        float(best.scale),
        told,
    )
    details = {"loss": least, "first_loss": first, "iterations": task.iterations, "backpropagations": differentiated}
    return Found({steps: schedule}, nfe, details)


@dataclass(frozen=True)
class _Data:
    """noise: [B, *shape] in the states' dtype. teacher: [B, N + 1, D]. learners: how many noises learn."""

    noise: Tensor
    cond: Mapping[str, Tensor]
    teacher: Tensor
    learners: int


def _train(task: Task, lesson: Lesson, student: Student, data: _Data) -> tuple[Numbers, float, float]:
    """(the best numbers, the loss on the judging noises at first, theirs)."""
    parameters = [one for group in lesson.turns for one in group]
    for parameter in parameters:
        parameter.requires_grad_(True)
    adam = torch.optim.Adam(parameters, lr=task.rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(task.iterations, 1))
    order = torch.Generator().manual_seed(task.seed)
    noise, starts = data.noise, data.noise.clone()
    judged = judged_at(task.iterations, JUDGED_EVERY)
    best, least, first = None, math.inf, math.nan
    queue: list[int] = []
    for iteration in range(task.iterations + 1):
        if iteration in judged:
            fixed, level = _judged(lesson, student, data)
            first = level if iteration == 0 else first
            if level < least:
                best, least = fixed, level
        if iteration == task.iterations:
            break
        if len(queue) < task.few:
            queue = queue + torch.randperm(data.learners, generator=order).tolist()
        which, queue = torch.tensor(queue[: task.few], device=noise.device), queue[task.few :]
        adam.zero_grad()
        now = lesson.numbers()
        some = {key: value[which] for key, value in data.cond.items()}
        targets = lesson.targets(now, data.teacher[which])
        _, slope = student.slopes(starts[which], some, targets, now, by_starts=lesson.radius > 0)
        turn = iteration * lesson.changes * len(lesson.turns) // task.iterations % len(lesson.turns)
        for parameter in (one for number, group in enumerate(lesson.turns) if number != turn for one in group):
            parameter.grad = None  # which Adam leaves alone
        adam.step()
        decay.step()
        if slope is not None:
            moved = starts[which] - lesson.start_rate * task.few * slope
            starts[which] = within(moved, noise[which], lesson.radius)
    if best is None:
        raise ValueError("start: got a schedule whose loss on the judging noises is not finite")
    return best, first, least


def _judged(lesson: Lesson, student: Student, data: _Data) -> tuple[Numbers, float]:
    """The numbers as they are, and their loss on the judging noises."""
    with torch.no_grad():
        now = Numbers(*(value.clone() for value in lesson.numbers()))
    judging = slice(data.learners, None)
    cond = {key: value[judging] for key, value in data.cond.items()}
    targets = lesson.targets(now, data.teacher[judging])
    return now, float(student.judge(data.noise[judging], cond, targets, now).mean())


def _finite(level: float) -> float:
    return level if math.isfinite(level) else math.inf
