"""A model that remembers its teacher's answers, so that many searches share one teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from oss_ext.models import Denoiser


class Remembering:
    """A model that answers from memory what it was asked while `learning`.

    Only whole batches of one flow time are looked up, by value, so an answer is one that the model has given.
    `answered` counts the samples that memory answered. Answers from memory have no gradients.
    """

    def __init__(self, model: Denoiser) -> None:
        self.model, self.learning, self.answered = model, False, 0
        self.t_max, self.t_min = model.t_max, model.t_min
        self.flow_table, self.parameterization = model.flow_table, model.parameterization
        self._known: dict[float, list[tuple[Tensor, Tensor]]] = {}

    def velocity(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        at = float(t[0])
        alike = bool((t == at).all())
        if alike and not self.learning:
            for states, velocities in self._known.get(at, ()):
                for first in {0, len(states) - len(x)}:  # the first samples, or the last ones, which judge in "auto"
                    if first >= 0 and torch.equal(states[first : first + len(x)], x):
                        self.answered += len(x)
                        return velocities[first : first + len(x)]
        velocity = self.model.velocity(x, t, cond)
        if alike and self.learning:
            self._known.setdefault(at, []).append((x.clone(), velocity.clone()))
        return velocity

    def sigmas(self, t: Tensor) -> Tensor:
        return self.model.sigmas(t)

    def timesteps(self, t: Tensor) -> Tensor:
        return self.model.timesteps(t)

    def describe(self) -> dict[str, Any]:
        return self.model.describe()
