"""The teacher: the fine grid integrated once with Euler's method."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Ask: TypeAlias = tuple[Tensor, Tensor]
"""(states [B, m, *shape], nodes int64 [m] on the CPU): the velocities [B, m, *shape] there are wanted."""


@dataclass(frozen=True)
class Teacher:
    """states: [B, N + 1, D], one row a grid node. first_velocity: [B, D], the model's output at node 0."""

    states: Tensor
    first_velocity: Tensor


def integrate(noise: Tensor, t: Tensor) -> Generator[Ask, Tensor, Teacher]:
    """Asks for one node at a time, N in all, and returns the `Teacher`.

    noise: [B, *shape], float32 or float64; the trajectory starts at t[0] * noise. t: float64 [N + 1] on the CPU.
    """
    batch, shape = noise.shape[0], noise.shape[1:]
    steps = t.diff().tolist()
    states = torch.empty(batch, len(t), noise[0].numel(), dtype=noise.dtype, device=noise.device)
    states[:, 0] = noise.flatten(1) * float(t[0])
    first_velocity = states.new_empty(batch, states.shape[2])
    for node, step in enumerate(steps):
        output = (yield states[:, node].reshape(batch, 1, *shape), torch.tensor([node])).flatten(1)
        if node == 0:
            first_velocity.copy_(output)
        torch.add(states[:, node], output, alpha=step, out=states[:, node + 1])
    return Teacher(states, first_velocity)
