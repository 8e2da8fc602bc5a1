"""Drives the ask/tell core by hand, keeping what was asked."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from oss_ext.models import Denoiser
from oss_ext.search_core import Core, Found
from oss_ext.teacher import Ask


def by_hand(core: Core, model: Denoiser, cond: Mapping[str, Tensor] | None = None) -> tuple[Found, list[Ask]]:
    """What the core returns, and its asks (the states' shapes only: the tensors are valid until the next send)."""
    asks = []
    try:
        ask = next(core)
        while True:
            batch, nodes = ask.states.shape[:2]
            asks.append(ask._replace(states=torch.empty(ask.states.shape, device="meta")))
            given = {key: value[ask.samples].repeat_interleave(nodes, 0) for key, value in (cond or {}).items()}
            velocities = model.velocity(ask.states.flatten(0, 1), ask.t.repeat(batch), given)
            ask = core.send(velocities.reshape(ask.states.shape))
    except StopIteration as done:
        return done.value, asks
