"""The student's run as a function of its few numbers, and its gradients: without a wait for the device in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from oss_ext import solvers
from oss_ext.models import Denoiser
from oss_ext.progress import Counter
from oss_ext.refine_gradient import check_in_graph
from oss_ext.refine_knobs import Numbers

Losses = Callable[[list[Tensor], Tensor], Tensor]
"""losses(the student's states, k + 1 of [b, D], targets [b, ...]) -> [b], differentiable."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""loss(ends, targets), both [b, ...] -> [b], differentiable."""
_WARM = 3  # runs before a capture, as PyTorch asks for


def check_loss(loss: Any) -> None:
    """Raises TypeError for what is neither None nor a function."""
    if loss is not None and not callable(loss):
        raise TypeError(f"loss: got {type(loss).__name__}, wanted a function (ends, targets) -> [b]")


def at_the_end(loss: Loss | None, shape: torch.Size) -> Losses:
    """`loss` of the student's ends as samples [b, *shape[1:]]; None: the mean squared difference."""

    def losses(states: list[Tensor], target: Tensor) -> Tensor:
        if loss is None:
            return (states[-1] - target).square().mean(1)
        return loss(states[-1].unflatten(1, shape[1:]), target.unflatten(1, shape[1:]))

    return losses


def within(starts: Tensor, noise: Tensor, radius: float) -> Tensor:
    """Those of `starts` [b, ...] that are farther than `radius` from their noise, at that distance on the way to it."""
    off = starts - noise
    size = off.flatten(1).norm(dim=1).reshape(-1, *[1] * (off.ndim - 1))
    return noise + off * (radius / size.clamp(min=radius))


@dataclass
class Student:
    """rows: samples at once where gradients are wanted, batch: where not. dtype: what the network is fed.

    graph: on a GPU, replays CUDA graphs of runs, with and without gradients, instead of launching their kernels one by
    one; the model has to allow that: no wait for the device, nothing that depends on values.
    """

    model: Denoiser
    carries: solvers.Carries
    dtype: torch.dtype
    rows: int
    batch: int
    counter: Counter
    losses: Losses
    graph: bool = False
    _replays: dict[tuple[Any, ...], _Replay] = field(default_factory=dict)

    def run(self, starts: Tensor, cond: Mapping[str, Tensor], numbers: Numbers) -> list[Tensor]:
        """The states at all nodes, k + 1 of [b, D]; differentiable. numbers: on the device of starts [b, *shape]."""
        t, told, rows, scale = numbers
        walk = solvers.Walk(starts.flatten(1) * scale, self.carries, rows.shape[1] - 2)
        states = [walk.state]
        for step in range(len(rows)):
            fed = walk.state.reshape(starts.shape).to(self.dtype)
            output = self.model.velocity(fed, told[step].expand(len(starts)), cond).flatten(1).to(walk.state.dtype)
            check_in_graph(walk.state, output)
            walk.step(output, t[step], rows[step].unbind())
            states.append(walk.state)
        return states

    @torch.no_grad()
    def judge(self, starts: Tensor, cond: Mapping[str, Tensor], targets: Tensor, numbers: Numbers) -> Tensor:
        """float64 [b]: the losses."""
        placed, names, parts = _placed(numbers, starts), tuple(cond), []

        def measure(given: list[Tensor]) -> list[Tensor]:
            starts, targets, now, given_cond = _apart(given, names)
            return [self.losses(self.run(starts, given_cond, now), targets).double()]

        for begin in range(0, len(starts), self.batch):
            part = slice(begin, begin + self.batch)
            (loss,) = self._made(
                "judge", measure, [starts[part], targets[part], *placed, *(v[part] for v in cond.values())]
            )
            parts.append(loss.clone())
            self.counter.add(len(numbers.rows) * len(loss))
        return torch.cat(parts)

    def slopes(
        self, starts: Tensor, cond: Mapping[str, Tensor], targets: Tensor, numbers: Numbers, by_starts: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Adds the gradients of the mean loss to what `numbers` were made of. Returns the losses [b], and the mean
        loss's slope in the starts [b, *shape] if asked for."""
        placed, names = _placed(numbers, starts), tuple(cond)
        total: list[Tensor] = []
        losses, slopes = [], []

        def differentiate(given: list[Tensor]) -> list[Tensor]:
            """The losses, and the slopes of their sum in the starts, if asked for, and in the numbers."""
            starts, targets, now, given_cond = _apart(given, names)
            leaves = [one.detach().requires_grad_(True) for one in now]
            starts = starts.detach().requires_grad_(by_starts)
            loss = self.losses(self.run(starts, given_cond, Numbers(*leaves)), targets)
            wanted = [starts, *leaves] if by_starts else leaves
            slopes = torch.autograd.grad(loss.sum(), wanted, allow_unused=True, materialize_grads=True)
            return [loss.detach(), *slopes]

        for begin in range(0, len(starts), self.rows):
            part = slice(begin, begin + self.rows)
            given = [starts[part], targets[part], *placed, *(value[part] for value in cond.values())]
            loss, *grads = self._made(f"slopes {by_starts}", differentiate, given)
            losses.append(loss.clone())
            if by_starts:
                slopes.append(grads.pop(0) / len(starts))
            total = [old + new for old, new in zip(total, grads, strict=True)] if total else [g.clone() for g in grads]
            self.counter.add(3 * len(numbers.rows) * len(loss))
        moved = [(one, slope / len(starts)) for one, slope in zip(numbers, total, strict=True) if one.requires_grad]
        torch.autograd.backward([one for one, _ in moved], [slope.to(one) for one, slope in moved])
        return torch.cat(losses), torch.cat(slopes) if by_starts else None

    def _made(self, name: str, run: Callable[[list[Tensor]], list[Tensor]], given: list[Tensor]) -> list[Tensor]:
        """run(given), or its replay; what comes back holds until the next call."""
        if not self.graph or given[0].device.type != "cuda":
            return run(given)
        key = (name, *(one.shape for one in given))
        if key not in self._replays:
            self._replays[key] = _Replay(run, given)
        return self._replays[key](given)


class _Replay:
    """A function of tensors of fixed shapes as a CUDA graph. What it returns holds until the next call."""

    def __init__(self, run: Callable[[list[Tensor]], list[Tensor]], given: list[Tensor]) -> None:
        self._given = [one.detach().clone() for one in given]
        stream = torch.cuda.Stream(given[0].device)
        stream.wait_stream(torch.cuda.current_stream(given[0].device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM):
                run(self._given)
        torch.cuda.current_stream(given[0].device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._out = run(self._given)

    def __call__(self, given: list[Tensor]) -> list[Tensor]:
        for own, new in zip(self._given, given, strict=True):
            own.copy_(new)
        self._graph.replay()
        return self._out


def _apart(given: list[Tensor], names: tuple[str, ...]) -> tuple[Tensor, Tensor, Numbers, dict[str, Tensor]]:
    """starts, targets, numbers and cond of one list."""
    starts, targets, *rest = given
    now = Numbers(*rest[: len(Numbers._fields)])
    return starts, targets, now, dict(zip(names, rest[len(now) :], strict=True))


def _placed(numbers: Numbers, like: Tensor) -> Numbers:
    """Detached, on the device of `like`; in its dtype, but for the times that the network is told."""
    t, told, rows, scale = (one.detach() for one in numbers)
    return Numbers(t.to(like), told.to(like.device), rows.to(like), scale.to(like))
