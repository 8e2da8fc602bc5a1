"""The bundled model at one guidance scale: its teacher on held-out noises, searches on others, and scores in PSNR."""

from __future__ import annotations

import torch
from torch import Tensor

import oss_ext
from oss_ext.compare.case import Case, Guide, Searched, Subject
from oss_ext.compare.spread import gain, summary

__all__ = ["BATCH", "HeldOut", "Noises", "Searched", "gain", "summary"]
BATCH = 4096

Noises = tuple[Tensor, dict[str, Tensor]]


class HeldOut(Case):
    """photo32's `Case`, with references of other lengths, and a teacher of more search noises."""

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
        self.photo32 = oss_ext.zoo.load("photo32", guidance_scale=guidance, device=device)
        noise, cond = self.photo32.noise(heldout, split="heldout", device=device)
        self.searching: Noises = self.photo32.noise(samples, split="search", device=device)
        searching = self.searching

        def more(count: int) -> Noises:
            return self.photo32.noise(count, split="search", device=device)

        subject = Subject("photo32", self.photo32, noise, searching[0], cond, searching[1], guidance, more=more)
        super().__init__(subject, Guide("flow", teacher_steps, teacher_solver), batch_size=BATCH)
        self._other: dict[int, Tensor] = {}

    def reference(self, steps: int, count: int) -> Tensor:
        """The first held-out pictures from `steps` uniform steps of two-step Adams-Bashforth, run once."""
        if steps not in self._other or len(self._other[steps]) < count:
            cond = {name: value[:count] for name, value in self.cond.items()}
            schedule = self.stock("flow", steps, "ab2")
            self._other[steps] = schedule.sample(self.model, self.noise[:count], cond, batch_size=BATCH)
        return self._other[steps][:count]
