"""Answers what a search asks with a model."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from oss_ext.evaluate import evaluate
from oss_ext.models import Denoiser
from oss_ext.progress import Counter
from oss_ext.teacher import Ask

Found = TypeVar("Found")


def drive(
    core: Generator[Ask, Tensor, Found],
    model: Denoiser,
    *,
    cond: Mapping[str, Tensor],
    dtype: torch.dtype,
    batch_size: int,
    counter: Counter,
    device: torch.device | None = None,
) -> Found:
    """Answers every ask of `core` with `model`, and returns what it returns; see `evaluate` for the arguments and the
    errors."""
    try:
        ask = next(core)
        while True:
            names = ask.nodes.tolist() if ask.nodes is not None else None
            velocities = evaluate(
                model,
                ask.states,
                ask.t,
                cond={key: value[ask.samples] for key, value in cond.items()},
                dtype=dtype,
                batch_size=batch_size,
                labels=names,
                first_sample=ask.samples.start,
                tick=counter.add,
                device=device,
            )
            ask = core.send(velocities)
    except StopIteration as done:
        found: Found = done.value
        return found
