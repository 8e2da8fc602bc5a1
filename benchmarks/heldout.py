"""The bundled model at one guidance scale: its teacher on held-out noises, searches on others, and scores in PSNR."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import oss_ext
from oss_ext.auto import Auto
from oss_ext.metrics import pooled_psnr, psnr

BATCH = 4096

Solver = str | oss_ext.Solver | Auto
Noises = tuple[Tensor, dict[str, Tensor]]


class Remembering:
    """A model that answers from memory what it was asked while it learned: many searches, one teacher.

    Only whole batches of one flow time are looked up, by value, so an answer is one that the model has given.
    """

    def __init__(self, model: oss_ext.Denoiser) -> None:
        self.model, self.learning, self.answered = model, False, 0
        self.t_max, self.t_min = model.t_max, model.t_min
        self.flow_table, self.parameterization = model.flow_table, model.parameterization
        self._known: dict[float, tuple[Tensor, Tensor]] = {}

    def velocity(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        at = float(t[0])
        alike = bool((t == at).all())
        if alike and not self.learning and at in self._known:
            states, velocities = self._known[at]
            for first in {0, len(states) - len(x)}:  # the first samples, or the last ones, which judge in "auto"
                if first >= 0 and torch.equal(states[first : first + len(x)], x):
                    self.answered += len(x)
                    return velocities[first : first + len(x)]
        velocity = self.model.velocity(x, t, cond)
        if alike and self.learning:
            self._known[at] = (x.clone(), velocity.clone())
        return velocity

    def sigmas(self, t: Tensor) -> Tensor:
        return self.model.sigmas(t)

    def timesteps(self, t: Tensor) -> Tensor:
        return self.model.timesteps(t)

    def describe(self) -> dict[str, Any]:
        return self.model.describe()


class HeldOut:
    """Held-out noises with the teacher's pictures of them, and the searches made for them, each made once."""

    def __init__(
        self,
        guidance: float,
        *,
        heldout: int,
        samples: int,
        teacher_steps: int,
        teacher_solver: str,
        device: torch.device,
    ) -> None:
        self.guidance, self.device = guidance, device
        self.teacher_steps, self.teacher_solver = teacher_steps, teacher_solver
        self.model = oss_ext.zoo.load("photo32", guidance_scale=guidance, device=device)
        self.noise, self.cond = self.model.noise(heldout, split="heldout", device=device)
        self.searching: Noises = self.model.noise(samples, split="search", device=device)
        self.search_noise, self.search_cond = self.searching
        fine = self.stock("flow", teacher_steps, teacher_solver)
        self.teacher = self.sample(fine)
        self.memory = Remembering(self.model)
        self._seconds_each = 0.0
        self.memory.learning, begin = True, self.clock()
        fine.sample(self.memory, self.search_noise, self.search_cond, batch_size=samples)
        self.memory.learning = False
        self._seconds_each = (self.clock() - begin) / (samples * teacher_steps)
        self._searches: dict[tuple[Any, ...], tuple[oss_ext.SearchResult, float]] = {}
        self._reference: dict[int, Tensor] = {}
        self._polishing: tuple[Noises, Tensor] | None = None

    def clock(self) -> float:
        """Seconds, those included that answers from memory would have taken."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() + self.memory.answered * self._seconds_each

    def stock(self, grid: str, steps: int, solver: str) -> oss_ext.Schedule:
        return oss_ext.Schedule.from_grid(oss_ext.grids.for_model(grid, steps, self.model), solver, self.model)

    def polishing(self, samples: int) -> tuple[Noises, Tensor]:
        """The first `samples` search noises and the teacher's pictures of them, run once."""
        if self._polishing is None:
            noises = self.model.noise(samples, split="search", device=self.device)
            fine = self.stock("flow", self.teacher_steps, self.teacher_solver)
            self._polishing = noises, fine.sample(self.model, *noises, batch_size=BATCH)
        return self._polishing

    def sample(self, schedule: oss_ext.Schedule) -> Tensor:
        return schedule.sample(self.model, self.noise, self.cond, batch_size=BATCH)

    def reference(self, steps: int, count: int) -> Tensor:
        """The first held-out pictures from `steps` uniform steps of two-step Adams-Bashforth, run once."""
        if steps not in self._reference or len(self._reference[steps]) < count:
            cond = {name: value[:count] for name, value in self.cond.items()}
            schedule = self.stock("flow", steps, "ab2")
            self._reference[steps] = schedule.sample(self.model, self.noise[:count], cond, batch_size=BATCH)
        return self._reference[steps][:count]

    def score(self, images: Tensor) -> Tensor:
        """float64 [heldout]: every picture's PSNR to the teacher's, in dB (data range 2)."""
        return psnr(images, self.teacher).double().cpu()

    def search(
        self, solver: Solver, steps: int, samples: int | None = None, **options: Any
    ) -> tuple[oss_ext.SearchResult, float]:
        """`dp_search` on the first `samples` search noises, with this teacher unless told otherwise, and its seconds:
        the teacher's are counted every time, though only measured once. A search asked for again is not made again."""
        count = samples or len(self.search_noise)
        key = (repr(solver), steps, count, *sorted(options.items()))
        if key not in self._searches:
            begin = self.clock()
            teacher = {"teacher_steps": self.teacher_steps, "teacher_solver": self.teacher_solver}
            result = oss_ext.dp_search(
                self.memory, self.search_noise[:count], steps, solver=solver, batch_size=BATCH,
                cond={name: value[:count] for name, value in self.search_cond.items()}, **(teacher | options),
            )  # fmt: skip
            self._searches[key] = (result, self.clock() - begin)
        return self._searches[key]


def summary(values: Tensor) -> dict[str, float]:
    """Both PSNRs of the noises' own [n], each with its bootstrap standard error."""
    drawn = values[_draws(len(values))]
    return {
        "psnr": float(pooled_psnr(values)),
        "psnr_error": float(pooled_psnr(drawn).std()),
        "mean_psnr": float(values.mean()),
        "mean_psnr_error": float(drawn.mean(-1).std()),
    }


def gain(values: Tensor, base: Tensor, mean: bool) -> tuple[float, float]:
    """What `values` are above `base`, the same noises' [n]: of pooled PSNRs or of means; its bootstrap error."""
    if mean:
        return float((values - base).mean()), float((values - base)[_draws(len(values))].mean(-1).std())
    pick = _draws(len(values))
    return float(pooled_psnr(values) - pooled_psnr(base)), float(
        (pooled_psnr(values[pick]) - pooled_psnr(base[pick])).std()
    )


def _draws(count: int, draws: int = 2000) -> Tensor:
    return torch.randint(count, (draws, count), generator=torch.Generator().manual_seed(0))
