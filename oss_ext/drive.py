"""Answers what a search asks: with anything, or with a model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from oss_ext.checkpoint import Checkpoint, Tick
from oss_ext.evaluate import evaluate
from oss_ext.models import Denoiser
from oss_ext.pace import Pace
from oss_ext.progress import Counter
from oss_ext.teacher import Ask

Found = TypeVar("Found")


def answer(core: Generator[Ask, Tensor, Found], reply: Callable[[Ask], Tensor]) -> Found:
    """Sends `core` the reply to every ask, and returns what it returns."""
    try:
        ask = next(core)
        while True:
            ask = core.send(reply(ask))
    except StopIteration as done:
        found: Found = done.value
        return found


def drive(
    core: Generator[Ask, Tensor, Found],
    model: Denoiser,
    *,
    cond: Mapping[str, Tensor],
    dtype: torch.dtype,
    batch_size: int | Pace,
    counter: Counter,
    device: torch.device | None = None,
    checkpoint: Checkpoint | None = None,
) -> Found:
    """`answer` with `model`; see `evaluate` for the arguments and the errors. checkpoint: what was answered before is
    taken from there, the rest is put there."""

    def evaluated(ask: Ask, tick: Tick) -> Tensor:
        return evaluate(
            model,
            ask.states,
            ask.t,
            cond={key: value[ask.samples] for key, value in cond.items()},
            dtype=dtype,
            batch_size=batch_size,
            labels=ask.nodes.tolist() if ask.nodes is not None else None,
            first_sample=ask.samples.start,
            tick=tick,
            device=device,
            out=ask.out,
        )

    def reply(ask: Ask) -> Tensor:
        if checkpoint is None:
            return evaluated(ask, counter.add)
        return checkpoint.answer(ask, evaluated, counter.add)

    return answer(core, reply)
