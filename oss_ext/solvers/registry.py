"""The named solvers."""

from __future__ import annotations

import torch
from torch import Tensor

from oss_ext.solvers.dpm_solver import DpmSolverPlusPlus2M, DpmSolverPlusPlus3M
from oss_ext.solvers.epsilon import Deis, Ipndm, LinearMultistep
from oss_ext.solvers.fitted import Fitted, Mixed, is_searched
from oss_ext.solvers.flow_time import AdamsBashforth, Euler
from oss_ext.solvers.solver import CARRIES, Solver
from oss_ext.solvers.unipc import UniP, UniPC

MAX_HISTORY = 4
"""Earlier predictions in a step: as many as the kernels' basis holds beside the state and this node's velocity."""

_SOLVERS: dict[str, Solver] = {
    solver.name: solver
    for solver in (
        Euler(),
        AdamsBashforth(2),
        AdamsBashforth(3),
        AdamsBashforth(4),
        DpmSolverPlusPlus2M(),
        DpmSolverPlusPlus3M(),
        UniP(2),
        UniP(3),
        UniPC(2),
        UniPC(3),
        Deis(2),
        Deis(3),
        Ipndm(2),
        Ipndm(3),
        Ipndm(4),
        LinearMultistep(3),
        LinearMultistep(4),
        Fitted(),
        Mixed(),
    )
}

ALIASES = {"ddim": "euler", "unipc": "unipc_2", "deis": "deis_2", "ipndm": "ipndm_4", "lms": "lms_4"}
"""Short names that `get` knows too: what the deployed implementations run unless told otherwise."""


def names() -> list[str]:
    """The names of the solvers; see also `ALIASES`."""
    return list(_SOLVERS)


def formulas() -> list[str]:
    """Those of `names` whose coefficients follow from the flow times alone: all but "fitted" and "mixed"."""
    return [name for name, solver in _SOLVERS.items() if not is_searched(solver)]


def get(solver: str | Solver) -> Solver:
    """The solver of that name or alias, or the solver itself, checked. Raises ValueError (unknown name, lists them) or
    TypeError."""
    if isinstance(solver, str):
        name = ALIASES.get(solver, solver)
        if name not in _SOLVERS:
            known = ", ".join([*names(), *ALIASES])
            raise ValueError(f"solver: got {solver!r}, wanted one of {known}, or a Solver (a search also takes 'auto')")
        return _SOLVERS[name]
    if isinstance(solver, type) or not isinstance(solver, Solver):
        raise TypeError(f"solver: got {solver!r}, wanted one of {', '.join(names())}, or a Solver instance")
    if (
        isinstance(solver.history, bool)
        or not isinstance(solver.history, int)
        or not 0 <= solver.history <= MAX_HISTORY
    ):
        raise ValueError(f"solver: got {solver.name!r} with history {solver.history!r}, wanted 0..{MAX_HISTORY}")
    if isinstance(solver, Fitted) and solver.ridge is not None and not solver.ridge >= 0:
        raise ValueError(f"solver: got a ridge of {solver.ridge}, wanted a number >= 0, or None")
    if solver.carries not in CARRIES:
        raise ValueError(
            f"solver: got {solver.name!r} that carries {solver.carries!r}, wanted one of {', '.join(CARRIES)}"
        )
    return solver


def along(solver: Solver, t: Tensor) -> Tensor:
    """float64 [..., k, 2 + history]: the coefficients of each step along the paths t, float64 [..., k + 1].

    Raises ValueError for `Fitted` and `Mixed`, whose coefficients only a search knows.
    """
    if is_searched(solver):
        raise ValueError(f"solver: got {solver.name!r}, whose coefficients come from a search, wanted a formula")
    return solver.coefficients(past_times(t, solver.history), t[..., 1:])


def past_times(t: Tensor, history: int) -> Tensor:
    """float64 [..., k, 1 + history]: the `t_history` of each step along the paths t, float64 [..., k + 1]: the flow
    time of its evaluation, then those of the earlier ones, NaN where there are fewer."""
    rows = [torch.arange(t.shape[-1] - 1) - age for age in range(1 + history)]
    return torch.stack([torch.where(row >= 0, t[..., row.clamp(min=0)], torch.nan) for row in rows], -1)
