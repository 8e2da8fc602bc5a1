"""Feeds the search core from pipeline calls: which states each call's loop is to evaluate next, and what came back."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from oss_ext.integrations.diffusers.calls import Call, Request
from oss_ext.integrations.diffusers.interface import wide
from oss_ext.integrations.diffusers.watch import Watch
from oss_ext.progress import Counter
from oss_ext.search_core import Core, Found, rehearse
from oss_ext.teacher import Ask
from oss_ext.transfer import Copies, empty

Conductor: TypeAlias = Generator[Request, Tensor, Found]
_NONE: list[float] = []
_SAME = 1e-3  # relative: what two evaluations of one state may differ by on a GPU; another time makes more


@dataclass
class Trial:
    """One short call: the noise [b, ...] of a call, velocities at two flow times, and seconds a step."""

    noise: Tensor
    times: list[float]
    velocities: list[Tensor]
    seconds: float


def try_out(call: Call, times: list[float]) -> Generator[Request, Tensor, Trial]:
    """Evaluates the noise at `times`, the last one twice."""
    asked = [*times, times[-1]]
    noise = wide((yield Request(call, None, times[0], asked)))
    velocities, seconds = [], []
    for n, t in enumerate(asked):
        since = time.perf_counter()
        velocity = yield Request(call, noise * t, t, asked[n + 1 :])
        float(velocity.flatten()[0])  # waits for the device
        seconds.append(time.perf_counter() - since)
        velocities.append(velocity)
    return Trial(noise, times, velocities[:-1], min(seconds[1:]))


def conduct(
    calls: Sequence[Call],
    make_core: Callable[[Tensor], Core],
    grid: list[float],
    trial: Trial,
    check: bool,
    watch: Watch,
    counter: Counter,
) -> Conductor:
    """Runs the core that `make_core` makes of all calls' noise, one call after the other beside every node asked for.

    grid: the teacher's flow times without the last 0, in whose order it will ask. check: repeat the trial in the
    calls' own way first.
    """
    noises = []
    for call in calls:
        noises.append(wide((yield Request(call, None, grid[0], grid))))
        for earlier in noises[:-1]:
            if torch.equal(earlier, noises[-1]):
                raise ValueError("samples: two calls of the pipeline drew the same noise; hand in no latents=")
    if check and calls[0].live:
        yield from _check_live(calls, trial)
    noise = torch.cat(noises)
    batch = calls[0].samples
    core = make_core(noise)
    try:
        ask = next(core)
        while True:
            ask = core.send((yield from _answer(ask, calls, noise, batch, grid, watch, counter)))
    except StopIteration as done:
        found: Found = done.value
        return found


def _check_live(calls: Sequence[Call], trial: Trial) -> Generator[Request, Tensor, None]:
    """The trial's evaluations once more, with timesteps written as the loop runs. Where they are others, the network is
    told times from somewhere else, and the loops get planned ones."""
    call = calls[0]
    for t, known in zip(reversed(trial.times), reversed(trial.velocities), strict=True):
        velocity = yield Request(call, trial.noise * t, t, _NONE)
        if float((velocity - known).abs().max()) > _SAME * float(known.abs().max()):
            call.plan_from_now_on()
        if not call.live:  # found here, or by the call itself
            for other in calls[1:]:
                other.plan_from_now_on()
            return


def _answer(
    ask: Ask,
    calls: Sequence[Call],
    noise: Tensor,
    batch: int,
    grid: list[float],
    watch: Watch,
    counter: Counter,
) -> Generator[Request, Tensor, Tensor]:
    """Velocities of the ask's shape. A call evaluates all its samples, asked for or not."""
    velocities = empty(ask.states.shape, like=ask.states) if ask.out is None else ask.out
    copies = Copies()
    times = ask.t.tolist()
    for number, call in enumerate(calls):
        begin, end = max(ask.samples.start, number * batch), min(ask.samples.stop, (number + 1) * batch)
        if begin >= end:
            continue
        asked = slice(begin - ask.samples.start, end - ask.samples.start)
        inside = slice(begin - number * batch, end - number * batch)
        for n, t in enumerate(times):
            states = copies.at(ask.states[asked, n], noise.device)
            if end - begin < batch:
                rest = noise[number * batch : (number + 1) * batch] * t
                rest[inside] = states
                states = rest
            coming = times[n + 1 :]
            if not coming and len(times) == 1 and ask.nodes is not None:
                coming = grid[int(ask.nodes) + 1 :]
            velocity = (yield Request(call, states, t, coming))[inside]
            node = None if ask.nodes is None else int(ask.nodes[n])
            watch.expect(torch.isfinite(velocity).all(), partial(_not_finite, node, t, number))
            copies.copy(velocities[asked, n], velocity)
            counter.add(1)
    if ask.nodes is None or len(times) > 1 or int(ask.nodes) == len(grid) - 1:  # a teacher's next step may be queued
        watch.settle()
    copies.wait()
    return velocities


def _not_finite(node: int | None, t: float, number: int) -> ValueError:
    where = "" if node is None else f" at node {node}"
    return ValueError(f"pipe: its network returned NaN or inf{where}, flow time {t:.9g}, in call {number}")


def count(core: Core, batch: int) -> int:
    """Steps of pipeline loops that a core asks for; its noise has the true number of samples but one number each."""

    def loops(ask: Ask) -> int:
        return ((ask.samples.stop - 1) // batch - ask.samples.start // batch + 1) * len(ask.t)

    return rehearse(core, loops)
