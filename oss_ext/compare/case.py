"""A model with its noises and its teacher: what every row of a comparison is searched and measured on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from oss_ext import grids
from oss_ext.auto import Auto
from oss_ext.compare.memory import Remembering
from oss_ext.metrics import psnr
from oss_ext.models import Denoiser
from oss_ext.result import SearchResult
from oss_ext.schedule import Schedule
from oss_ext.search import dp_search
from oss_ext.solvers import Solver
from oss_ext.teacher import DEFAULT_SOLVER, DEFAULT_STEPS

Searched = str | Solver | Auto
"""What `dp_search` takes as a solver."""
Decode = Callable[[Tensor], Tensor]
"""Samples [B, ...] -> images [B, C, H, W] in [-1, 1]."""
Draw = Callable[[int], tuple[Tensor, dict[str, Tensor]]]
"""A number of noises -> as many [count, ...], the search's first, none of them held out, and the condition."""

MEMORY = 0.25
"""The share of a device's free memory that the teacher's remembered answers may take."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and the noises that it is compared on.

    name: what tables call it; guidance: its scale, None where it has none to tell.
    noise, cond: held-out [B, ...], unit normal, and the condition; search_noise, search_cond: those that searches see.
    decode: for latents: what makes images of samples, for SSIM, distribution distances and sample sheets.
    labels: names of the first held-out samples, for sheets. more: draws more noises to learn from than searches see;
    None: there are no more.
    """

    name: str
    model: Denoiser
    noise: Tensor
    search_noise: Tensor
    cond: Mapping[str, Tensor] = field(default_factory=dict)
    search_cond: Mapping[str, Tensor] = field(default_factory=dict)
    guidance: float | None = None
    decode: Decode | None = None
    labels: tuple[str, ...] = ()
    more: Draw | None = None

    @property
    def title(self) -> str:
        return self.name if self.guidance is None else f"{self.name}, guidance {self.guidance:g}"


@dataclass(frozen=True)
class Guide:
    """The teacher that is searched with, and the reference that samples are measured to.

    grid, steps, solver: the teacher's, as for `dp_search`. reference_steps: of the same grid and solver; None: the
    teacher itself is the reference.
    """

    grid: str = "flow"
    steps: int = DEFAULT_STEPS
    solver: str = DEFAULT_SOLVER
    reference_steps: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The teacher in the words of `dp_search`."""
        return {"grid": self.grid, "teacher_steps": self.steps, "teacher_solver": self.solver}


class Case:
    """A subject under one guide. Searches share one run of the teacher on the search noises, and each is made once.

    batch_size: network inputs a batch. candidates: nodes that searches look at unless they say otherwise.
    data_range: of the samples, for PSNR. Nothing is evaluated before it is asked for.
    """

    def __init__(
        self,
        subject: Subject,
        guide: Guide | None = None,
        *,
        batch_size: int | None = None,
        candidates: int | None = None,
        data_range: float = 2.0,
    ) -> None:
        self.subject, self.guide = subject, guide or Guide()
        self.model, self.guidance = subject.model, subject.guidance
        self.noise, self.cond = subject.noise, dict(subject.cond)
        self.search_noise, self.search_cond = subject.search_noise, dict(subject.search_cond)
        self.device = subject.noise.device
        self.batch_size, self.candidates, self.data_range = batch_size, candidates, data_range
        self.teacher_steps, self.teacher_solver = self.guide.steps, self.guide.solver
        self._seconds_each = 0.0
        self._memory: Remembering | None = None
        self._reference: Tensor | None = None
        self._endpoints: Tensor | None = None
        self._lessons: dict[int, tuple[Tensor, dict[str, Tensor], Tensor, float]] = {}
        self._searches: dict[tuple[Any, ...], tuple[SearchResult, float, dict[str, Any]]] = {}

    @property
    def teacher(self) -> Tensor:
        """[heldout, ...]: what samples are measured to."""
        if self._reference is None:
            steps = self.guide.reference_steps or self.guide.steps
            self._reference = self.sample(self.stock(self.guide.grid, steps, self.guide.solver))
        return self._reference

    @teacher.setter
    def teacher(self, images: Tensor) -> None:
        self._reference = images

    @property
    def memory(self) -> Remembering:
        """The model, with the teacher's answers on the search noises known where there is room for them."""
        if self._memory is None:
            self._memory = Remembering(self.model)
            if self._room():
                self._memory.learning, begin = True, self.clock()
                fine = self.stock(self.guide.grid, self.guide.steps, self.guide.solver)
                count = len(self.search_noise)
                fine.sample(self._memory, self.search_noise, self.search_cond, batch_size=self.batch_size)
                self._memory.learning = False
                self._seconds_each = (self.clock() - begin) / (count * self.guide.steps)
        return self._memory

    @property
    def search_teacher(self) -> Tensor:
        """[samples, ...]: the teacher's endpoints on the search noises, with answers from memory where it has them."""
        if self._endpoints is None:
            memory, answered = self.memory, self.memory.answered
            fine = self.stock(self.guide.grid, self.guide.steps, self.guide.solver)
            self._endpoints = fine.sample(memory, self.search_noise, self.search_cond, batch_size=self.batch_size)
            memory.answered = answered
        return self._endpoints

    def lessons(self, count: int) -> tuple[Tensor, dict[str, Tensor], Tensor, float]:
        """`count` noises to learn from, their condition, the teacher's endpoints, run once, and the seconds it took.

        Raises ValueError where the subject draws none.
        """
        if count not in self._lessons:
            if self.subject.more is None:
                raise ValueError(f"samples: got {count}, but {self.subject.title} draws no more")
            noise, cond = self.subject.more(count)
            begin = self.clock()
            fine = self.stock(self.guide.grid, self.guide.steps, self.guide.solver)
            teacher = fine.sample(self.model, noise, cond, batch_size=self.batch_size)
            self._lessons[count] = (noise, cond, teacher, self.clock() - begin)
        return self._lessons[count]

    def _room(self) -> bool:
        wanted = 2 * self.guide.steps * self.search_noise.numel() * self.search_noise.element_size()
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 2**33
        return wanted <= MEMORY * free

    def forget(self) -> None:
        """Gives the memory of the teacher back."""
        self._memory, self._seconds_each = None, 0.0
        self._lessons.clear()
        self._searches.clear()

    def clock(self) -> float:
        """Seconds, those included that answers from memory would have taken."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        answered = 0 if self._memory is None else self._memory.answered
        return time.perf_counter() + answered * self._seconds_each

    def stock(self, grid: str, steps: int, solver: str | Solver) -> Schedule:
        return Schedule.from_grid(grids.for_model(grid, steps, self.model), solver, self.model)

    def sample(self, schedule: Schedule) -> Tensor:
        return schedule.sample(self.model, self.noise, self.cond, batch_size=self.batch_size)

    def score(self, images: Tensor) -> Tensor:
        """float64 [n]: the PSNRs of the first n held-out samples to the reference, in dB."""
        return psnr(images, self.teacher[: len(images)], data_range=self.data_range).double().cpu()

    def search_noises(self, count: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The first `count` noises of the search and their condition; None: all."""
        return self.search_noise[:count], {name: value[:count] for name, value in self.search_cond.items()}

    def search(
        self, solver: Searched, steps: int, samples: int | None = None, **options: Any
    ) -> tuple[SearchResult, float]:
        """`dp_search` on the first `samples` search noises, with this teacher unless told otherwise, and its seconds:
        the teacher's are counted every time, though only measured once. A search asked for again is not made again."""
        noise, cond = self.search_noises(samples)
        every = self.guide.options | {"candidates": self.candidates} | options
        if every.get("share", "joint") != "joint":  # the paper's, over all nodes unless told otherwise
            every["candidates"] = options.get("candidates")
        key = (repr(solver), steps, len(noise), *sorted((name, repr(value)) for name, value in every.items()))
        if key not in self._searches:
            memory = self.memory
            begin = self.clock()
            result = dp_search(memory, noise, steps, solver=solver, cond=cond, batch_size=self.batch_size, **every)
            # The options are kept too: a cost goes by its address in the key, which another would be given.
            self._searches[key] = (result, self.clock() - begin, every)
        found, seconds, _ = self._searches[key]
        return found, seconds
