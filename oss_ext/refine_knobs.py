"""What back-propagation turns: a schedule's numbers as free parameters that start at the schedule."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from oss_ext import solvers
from oss_ext.schedule import Schedule

FLOOR = 1e-6  # relative: how far apart times stay that are pushed together, or against the model's cleanest
ROOM = 0.05  # of the gap before: what the last time may move by where it starts at the model's cleanest
SPECTRUM = 1e-4  # of a step's normalised Gram matrix: weaker directions of its coefficients are turned no faster


class Numbers(NamedTuple):
    """t: float64 [k + 1]. network_t: [k]. rows: [k, P], coefficients. scale: [], of the noise. On the CPU."""

    t: Tensor
    network_t: Tensor
    rows: Tensor
    scale: Tensor


class Knobs:
    """Parameters, all float64 on the CPU, and the numbers that they stand for; at first exactly the schedule's.

    times: [k], logarithms of the gaps between the times in units of their sum (softmax), so that they stay descending.
    coefficients: [k, P], what is added to the schedule's, in the coordinates of `whiten`. While the times move, the
        coefficients of the schedule's solver move along: `along` is its formula, what a fit is held near, or Euler's.
    noise_scale: []. network_t: [k], logarithms of network time over time.

    learn: which of them are parameters.
    """

    def __init__(self, schedule: Schedule, learn: frozenset[str], t_min: float, t_max: float) -> None:
        t = schedule.t
        steps, width = schedule.coefficients.shape
        self._start, self._t_min, self._t_max = schedule, t_min, t_max
        self._solver = _follower(schedule.solver, schedule.carries, width)
        gaps = -t.diff()
        before, room = float(gaps[-2] if steps > 1 else t[0]), float(t[-2]) - t_min
        room = room if room > FLOOR * before else ROOM * before
        self._end = float(t[-2]) - room
        gaps = torch.cat([gaps[:-1], gaps.new_tensor([room])])
        self._first_gaps = (gaps / gaps.sum()).log()
        self._turn = torch.eye(width, dtype=torch.float64).repeat(steps, 1, 1)
        sizes = {"times": (steps,), "coefficients": (steps, width), "noise_scale": (), "network_t": (steps,)}
        self._zero = {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}
        self.values = {
            name: self._first_gaps.clone() if name == "times" else self._zero[name].clone()
            for name in sizes
            if name in learn and not (name == "times" and steps == 1)
        }
        for value in self.values.values():
            value.requires_grad_(True)
        self._first_rows = solvers.along(self._solver, t)

    def whiten(self, gram: Tensor, unit: float) -> None:
        """Measures coefficients by what they do: adding 1 along a coordinate moves the state by about `unit`.

        gram: float64 [k, P, P], mean products of every step's basis.
        """
        length = gram.diagonal(dim1=1, dim2=2).sqrt()
        length = torch.where(length > 0, length, 1.0)
        values, vectors = torch.linalg.eigh(gram / (length[:, :, None] * length[:, None, :]))
        size = values.clamp(min=SPECTRUM * float(values.max())).sqrt()
        self._turn = unit * vectors / size[:, None] / length[:, :, None]

    def numbers(self) -> Numbers:
        """Differentiable in `values`."""
        value = {**self._zero, **self.values}
        t = self._start.t
        if "times" in self.values:
            moved = t[:-1] + (self._path(value["times"]) - self._path(self._first_gaps))
            lowest = self._t_min * (1 + FLOOR * torch.arange(len(moved) - 1, -1, -1, dtype=torch.float64))
            # A time that starts below its floor by rounding stays where it is.
            t = torch.cat([torch.maximum(moved, torch.minimum(lowest, t[:-1])), t[-1:]])
        follow = Follow.apply(t, self._solver) - self._first_rows
        added = (self._turn @ value["coefficients"][..., None]).squeeze(-1)
        known = self._start.network_t
        network_t = t[:-1] if known is None else known * (t[:-1] / self._start.t[:-1])
        if "network_t" in self.values:
            lowest_t = torch.minimum(network_t.detach(), network_t.new_tensor(self._t_min))
            network_t = torch.maximum((network_t * value["network_t"].exp()).clamp(max=self._t_max), lowest_t)
        rows = self._start.coefficients + follow + added
        return Numbers(t, network_t, rows, value["noise_scale"] + self._start.noise_scale)

    def _path(self, gaps: Tensor) -> Tensor:
        """float64 [k], the times but the last: `gaps` shares out what lies between the first and `_end`."""
        first = self._start.t[0]
        # The floor keeps times apart that rounding would join.
        share = ((1 - FLOOR * len(gaps)) * torch.softmax(gaps, 0) + FLOOR).cumsum(0)[:-1]
        return torch.cat([first[None], first - (first - self._end) * share])


def _follower(name: str, carries: str, width: int) -> solvers.Solver:
    """Whose coefficients move along with the times."""
    known = solvers.get(name) if name in [*solvers.names(), *solvers.ALIASES] else solvers.Euler()
    if isinstance(known, solvers.Fitted):
        known = solvers.Fitted(history=width - 2)
    return _Padded(known if known.history <= width - 2 else solvers.Euler(), width - 2)


class _Padded:
    """A solver whose rows are as wide as the schedule's."""

    def __init__(self, solver: solvers.Solver, history: int) -> None:
        self._solver = solver
        self.name, self.order, self.history, self.carries = solver.name, solver.order, history, solver.carries

    def coefficients(self, t_history: Tensor, t_next: Tensor) -> Tensor:
        return solvers.padded(self._solver, self.history, t_history, t_next)


class Follow(torch.autograd.Function):
    """The coefficients of a solver along t [k + 1], float64 [k, P]; their derivative by central differences.

    The formulae branch on missing history and infinite sigma, through which automatic differentiation gives NaN.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, t: Tensor, solver: solvers.Solver) -> Tensor:
        ctx.save_for_backward(t)
        ctx.solver = solver  # type: ignore[attr-defined]
        return solvers.along(solver, t)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (t,) = ctx.saved_tensors  # type: ignore[attr-defined]
        solver = ctx.solver  # type: ignore[attr-defined]
        slope = torch.zeros_like(t)
        if len(t) > 2:  # the ends stay
            gaps = -t.diff()
            shift = 1e-5 * torch.minimum(gaps[:-1], gaps[1:])
            moved = torch.cat([t.new_zeros(len(shift), 1), shift.diag(), t.new_zeros(len(shift), 1)], 1)
            up, down = solvers.along(solver, torch.stack([t + moved, t - moved]))
            slope[1:-1] = (grad * (up - down)).sum((1, 2)) / (2 * shift)
        return slope, None
