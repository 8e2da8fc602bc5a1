"""Linear multistep solvers in flow time, as coefficient functions.

A step from t to t_next is sum_p C_p u_p over the basis [state, output, earlier outputs, newest first]; the outputs are
velocities. In canonical coordinates dx/dt = v holds for every family, so Euler's step is DDIM's (Song et al., arXiv
2010.02502, eq. 12 with eta = 0).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Solver(Protocol):
    """name: what a schedule records. order: of the global error. history: how many earlier outputs a step uses."""

    name: str
    order: int
    history: int

    def coefficients(self, t_history: Tensor, t_next: Tensor) -> Tensor:
        """float64 [..., 2 + history], for [state, output, earlier outputs, newest first].

        t_history: float64 [..., 1 + history], the flow time of this evaluation, then those of the earlier ones; NaN
        where the path is younger: the step is then of the lower order that it allows, and the missing outputs get 0.
        t_next: float64 [...], where the step goes. Leading dimensions broadcast.
        """


class Euler:
    """x + (t_next - t) v. The same as DDIM."""

    name = "euler"
    order = 1
    history = 0

    def coefficients(self, t_history: Tensor, t_next: Tensor) -> Tensor:
        step = t_next - t_history[..., 0]
        return torch.stack([torch.ones_like(step), step], -1)


class AdamsBashforth2:
    """Two-step Adams-Bashforth with variable steps (Hairer, Norsett, Wanner, Solving ODEs I, III.5); Euler's first."""

    name = "ab2"
    order = 2
    history = 1

    def coefficients(self, t_history: Tensor, t_next: Tensor) -> Tensor:
        step = t_next - t_history[..., 0]
        ratio = step / (t_history[..., 0] - t_history[..., 1])
        earlier = torch.where(torch.isnan(ratio), 0.0, -0.5 * step * ratio)
        return torch.stack([torch.ones_like(step), step - earlier, earlier], -1)


_SOLVERS: dict[str, Solver] = {solver.name: solver for solver in (Euler(), AdamsBashforth2())}


def names() -> list[str]:
    """The names that `get` knows."""
    return list(_SOLVERS)


def get(solver: str | Solver) -> Solver:
    """The solver of that name, or the solver itself. Raises ValueError (unknown name, lists them) or TypeError."""
    if isinstance(solver, str):
        if solver not in _SOLVERS:
            raise ValueError(f"solver: got {solver!r}, wanted one of {', '.join(names())}, or a Solver")
        return _SOLVERS[solver]
    if isinstance(solver, type) or not isinstance(solver, Solver):
        raise TypeError(f"solver: got {solver!r}, wanted one of {', '.join(names())}, or a Solver instance")
    if isinstance(solver.history, bool) or not isinstance(solver.history, int) or not 0 <= solver.history <= 2:
        raise ValueError(f"solver: got {solver.name!r} with history {solver.history!r}, wanted 0, 1 or 2")
    return solver


def along(solver: Solver, t: Tensor) -> Tensor:
    """float64 [k, 2 + history]: the coefficients of each step along the path t, float64 [k + 1]."""
    rows = [torch.arange(len(t) - 1) - age for age in range(1 + solver.history)]
    past = torch.stack([torch.where(row >= 0, t[row.clamp(min=0)], torch.nan) for row in rows], -1)
    return solver.coefficients(past, t[1:])
