"""Flow networks that count time in thousandths, as Wan and Open-Sora do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from oss_ext.models import FlowModel, Network

_WHOLE = 1e-6  # a timestep this near to a whole number is it: 1000 * 0.57 is 569.99...


class TimedFlowModel(FlowModel):
    """A flow network whose timestep is steps * t. fn(x, timestep, **cond) -> velocity eps - x0; timestep [n].

    truncate: the network is told the whole number below, as by samplers that keep timesteps as integers. `flow_table`
    [steps] is then where nothing is lost, k / steps from k = 1 on: what nodes="integer" of `dp_search` keeps to.
    """

    def __init__(self, fn: Network, steps: int = 1000, *, truncate: bool = False) -> None:
        super().__init__(fn)
        self.steps = steps
        self.truncate = truncate
        if truncate:
            self.flow_table = torch.arange(1, steps + 1, dtype=torch.float64) / steps

    def velocity(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        return super().velocity(x, self.timesteps(t), cond)

    def timesteps(self, t: Tensor) -> Tensor:
        timestep = t.double() * self.steps
        return torch.floor(timestep + _WHOLE) if self.truncate else timestep

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "timesteps": self.steps, "truncated": self.truncate}
