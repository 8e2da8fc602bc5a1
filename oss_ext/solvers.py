"""Linear multistep solvers in flow time, as coefficient functions.

A step from t to t_next is sum_p C_p u_p over the basis [state, output, earlier predictions, newest first]. The output
is the velocity at this node; what is kept of earlier nodes is what the solver `carries`: their velocities, or, since
the states that would turn one prediction into another are not kept, their x0 or epsilon predictions.

All is in canonical coordinates x_t = (1 - t) x0 + t eps. There dx/dt = v holds for every model family, Euler's step is
DDIM's (Song et al., arXiv 2010.02502, eq. 12 with eta = 0), sigma = t / (1 - t) is the noise level of x / (1 - t), and
lambda = -log sigma. The published formulae, which mostly work in sigma or lambda, are the same for every scaling of x.

The kernels take four basis vectors, so a step uses at most two earlier predictions: orders 1 to 3.

Starts are of lower order (one step of order 1, then one of order 2). Steps to t = 0 are of order 1 where the deployed
implementations make them so (every solver that works in lambda or log sigma): they return the x0 prediction. diffusers'
`lower_order_final` also lowers the last step but one (UniPC always; DPM-Solver++ of order 3 and DEIS of order 3 below
15 steps): that is not done here, since a step does not know how many follow.

A node at t = 1 has sigma = inf: in formulae that interpolate over sigma or lambda it drops out, which is their limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

Carries: TypeAlias = Literal["velocity", "x0", "epsilon"]
CARRIES: tuple[Carries, ...] = ("velocity", "x0", "epsilon")


@runtime_checkable
class Solver(Protocol):
    """name: what a schedule records. order: of the global error. history: how many earlier predictions a step uses, at
    most 2. carries: which prediction of earlier nodes those are, "velocity", "x0" or "epsilon"."""

    name: str
    order: int
    history: int
    carries: Carries

    def coefficients(self, t_history: Tensor, t_next: Tensor) -> Tensor:
        """float64 [..., 2 + history], for [state, velocity, earlier predictions, newest first].

        t_history: float64 [..., 1 + history], the flow time of this evaluation, then those of the earlier ones; NaN
        where the path is younger: the step is then of the lower order that it allows, and the missing ones get 0.
        t_next: float64 [...], where the step goes. Leading dimensions broadcast.
        """


def carried(carries: Carries, state: Tensor, velocity: Tensor, t: float | Tensor) -> Tensor:
    """What later steps keep of a node at flow time t: the velocity, x0 = x - t v, or epsilon = x + (1 - t) v.

    state, velocity: [...]. t: a number, or a tensor that broadcasts against them.
    """
    if carries == "velocity":
        return velocity
    return state - t * velocity if carries == "x0" else state + (1 - t) * velocity


class Walk:
    """The state along one path, and what its solver carries of the earlier nodes, newest first."""

    def __init__(self, state: Tensor, carries: Carries, history: int) -> None:
        self.state = state
        self._carries = carries
        self._earlier: deque[Tensor] = deque(maxlen=history)

    def step(self, velocity: Tensor, t: float, weights: Sequence[float]) -> None:
        """Moves `state`, now at flow time t. weights: [2 + history], of state, velocity and earlier predictions."""
        terms = list(zip([velocity, *self._earlier], weights[1:], strict=False))  # a young path has fewer
        self._earlier.appendleft(carried(self._carries, self.state, velocity, t))
        self.state = sum((u * w for u, w in terms), start=self.state * weights[0])


class Euler:
    """x + (t_next - t) v. The same as DDIM."""

    name = "euler"
    order = 1
    history = 0
    carries: Carries = "velocity"

    def coefficients(self, t_history: Tensor, t_next: Tensor) -> Tensor:
        step = t_next - t_history[..., 0]
        return torch.stack([torch.ones_like(step), step], -1)


class _Multistep:
    """Shares of the predictions in a step, and what they come to in the basis.

    In the coordinates in which a formula is published (x, x / t or x / (1 - t)), a step adds its length times a mean of
    the predictions: the shares are the weights in that mean, and sum to 1.
    """

    carries: Carries
    history: int

    def _times(self, t_history: Tensor, t_next: Tensor) -> tuple[list[Tensor], Tensor]:
        *past, t_next = torch.broadcast_tensors(*t_history.unbind(-1), t_next)
        return past, t_next

    def shares(self, past: list[Tensor], t_next: Tensor) -> list[Tensor]:
        """1 + history tensors [...]: of this node's prediction, then of the earlier ones."""
        raise NotImplementedError

    def coefficients(self, t_history: Tensor, t_next: Tensor) -> Tensor:
        past, t_next = self._times(t_history, t_next)
        share = self.shares(past, t_next)
        t, step = past[0], t_next - past[0]
        if self.carries == "velocity":
            return torch.stack([torch.ones_like(step), *[step * each for each in share]], -1)
        # x0: x' = (t'/t) x + length x0. epsilon: x' = (1 - t')/(1 - t) x + length eps. With this node's own prediction
        # written in its state and velocity, a share of 1 leaves Euler's step.
        length = -step / t if self.carries == "x0" else step / (1 - t)
        parts = [_zero_where(each == 0, length * each) for each in [share[0] - 1, *share[1:]]]
        return torch.stack([1 + parts[0], step * share[0], *parts[1:]], -1)


class _Interpolating(_Multistep):
    """Predictions interpolated by a polynomial in some u, and integrated exactly over the step.

    With s = (u - u_now) / (u_next - u_now), `moments` are the means of s and s^2 over the step, under its measure.
    """

    final_is_first_order: ClassVar[bool] = True

    def variable(self, t: Tensor) -> Tensor:
        """u. Here lambda = log((1 - t) / t)."""
        return torch.log1p(-t) - torch.log(t)

    def moments(self, length: Tensor, third: Tensor) -> tuple[Tensor, Tensor]:
        """Means of s and of s^2. length: u_next - u_now, [...]. third: bool [...], whether s^2 will be used."""
        raise NotImplementedError

    def shares(self, past: list[Tensor], t_next: Tensor) -> list[Tensor]:
        now, *earlier = [self.variable(t) for t in past]
        length = self.variable(t_next) - now
        first_order = (t_next == 0) if self.final_is_first_order else torch.zeros_like(t_next, dtype=torch.bool)
        place = [(u - now) / length for u in earlier]
        missing = [torch.isnan(t) | first_order for t in past[1:]]
        third = ~missing[1] if len(place) == 2 else torch.zeros_like(first_order)
        mean, square = self.moments(length, third)
        # Newton: f0 + s f[0,1] + s (s - s1) f[0,1,2]; a node at infinity has divided differences of 0.
        near, far = mean / place[0], torch.zeros_like(length)
        if len(place) == 2:
            bend = _zero_where(missing[1], (square - place[0] * mean) / place[1])
            far = _zero_where(missing[1], bend / (place[1] - place[0]))
            near = near - _zero_where(missing[1], bend / place[0])
        near = _zero_where(missing[0], near)
        return [1 - near, near - far, far][: 1 + self.history]


class AdamsBashforth(_Interpolating):
    """Adams-Bashforth with variable steps in flow time (Hairer, Norsett, Wanner, Solving ODEs I, III.5)."""

    carries: Carries = "velocity"
    final_is_first_order = False

    def __init__(self, order: int) -> None:
        self.name, self.order, self.history = f"ab{order}", order, order - 1

    def variable(self, t: Tensor) -> Tensor:
        return t

    def moments(self, length: Tensor, third: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(length, 1 / 2), torch.full_like(length, 1 / 3)


class LinearMultistep(_Interpolating):
    """k-diffusion's `sample_lms` of order 3: epsilon interpolated in sigma, integrated exactly, the last step too."""

    name = "lms"
    order = 3
    history = 2
    carries: Carries = "epsilon"
    final_is_first_order = False

    def variable(self, t: Tensor) -> Tensor:
        return t / (1 - t)

    def moments(self, length: Tensor, third: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(length, 1 / 2), torch.full_like(length, 1 / 3)


class Deis(_Interpolating):
    """DEIS, tAB (Zhang, Chen, arXiv 2204.13902), as diffusers' `DEISMultistepScheduler` deploys it ("logrho"): epsilon
    interpolated in log sigma, integrated over sigma. To t = 0, where theirs gives NaN, the step of order 1."""

    carries: Carries = "epsilon"

    def __init__(self, order: int) -> None:
        self.name, self.order, self.history = f"deis_{order}", order, order - 1

    def moments(self, length: Tensor, third: Tensor) -> tuple[Tensor, Tensor]:
        return _exponential_moments(-length)


class DpmSolverPlusPlus2M(_Interpolating):
    """DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, Algorithm 2), as k-diffusion's `sample_dpmpp_2m` and diffusers'
    `DPMSolverMultistepScheduler`: x0 extrapolated to the middle of the step in lambda."""

    name = "dpmpp_2m"
    order = 2
    history = 1
    carries: Carries = "x0"

    def moments(self, length: Tensor, third: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(length, 1 / 2), torch.zeros_like(length)


class DpmSolverPlusPlus3M(_Interpolating):
    """DPM-Solver++(3M), as diffusers' `DPMSolverMultistepScheduler` with solver_order 3 and k-diffusion's
    `sample_dpmpp_3m_sde` with eta = 0.

    Its global error is of order 2: they weigh the second difference by half of what the integral of the quadratic gives
    (which `unip_3` is). It is kept as deployed. The step after one of order 1 is DPM-Solver++(2M)'s.
    """

    name = "dpmpp_3m"
    order = 2
    history = 2
    carries: Carries = "x0"

    def moments(self, length: Tensor, third: Tensor) -> tuple[Tensor, Tensor]:
        mean, square = _exponential_moments(length)
        return torch.where(third, mean, 0.5), square / 2


class UniP(_Interpolating):
    """UniPC's predictor alone (Zhao et al., arXiv 2302.04867, Algorithm 2), data prediction, B2(h) = e^h - 1, as in
    diffusers' `UniPCMultistepScheduler`. Of order 2 it is `dpmpp_2m` (the 1/2 that the paper allows there); of order 3
    x0 interpolated by a quadratic in lambda, integrated exactly."""

    carries: Carries = "x0"

    def __init__(self, order: int) -> None:
        self.name, self.order, self.history = f"unip_{order}", order, order - 1

    def moments(self, length: Tensor, third: Tensor) -> tuple[Tensor, Tensor]:
        mean, square = _exponential_moments(length)
        return torch.where(third, mean, 0.5), square


class UniPC2(_Multistep):
    """UniPC of order 2 with its corrector (Zhao et al., arXiv 2302.04867, Algorithms 1 and 2; data prediction, B2), as
    diffusers' `UniPCMultistepScheduler`, solver_order 2. The corrector raises the order to 3.

    The corrector mends the state at this node with the evaluation made there. Predicted and corrected state come from
    the same earlier state with the same factor, so their difference is one of x0 predictions alone: linear in the
    basis. It is added before the next predictor step. (Order 3's corrector needs a third earlier prediction.)
    """

    name = "unipc_2"
    order = 3
    history = 2
    carries: Carries = "x0"

    def __init__(self) -> None:
        self._predictor = UniP(2)

    def coefficients(self, t_history: Tensor, t_next: Tensor) -> Tensor:
        past, t_next = self._times(t_history, t_next)
        now, before, oldest = past
        plain = self._predictor.coefficients(torch.stack(past[:2], -1), t_next)
        log_snr = [self._predictor.variable(t) for t in past]
        # The step that led here: its length in lambda, and in x / t times t.
        length, weight = log_snr[0] - log_snr[1], (before - now) / before
        place = (log_snr[2] - log_snr[1]) / length
        first, second = _exponential_moments(length)
        slope = (second - first) / (place - 1)
        young = torch.isnan(oldest)
        new = torch.where(young, 0.5, first - slope)  # of x0(now) - x0(before)
        old = _zero_where(young, (slope - 0.5) / place)  # of x0(oldest) - x0(before), less the predictor's
        kept = _zero_where(torch.isnan(before), t_next / now * weight)  # the part of the correction that the step keeps
        new, old = _zero_where(kept == 0, kept * new), _zero_where(kept == 0, kept * old)
        state, velocity, earlier = plain.unbind(-1)
        return torch.stack([state + new, velocity - now * new, earlier - new - old, old], -1)


class Ipndm(_Multistep):
    """iPNDM (Zhang, Chen, arXiv 2204.13902; after Liu et al., arXiv 2202.09778): Adams-Bashforth's weights for equal
    steps, on epsilon, whatever the steps, the last one too, as in diffusers' `IPNDMScheduler` (which goes on to 4).

    Order 3 is reached on equal steps of sigma only; on other smooth grids it is 2.
    """

    carries: Carries = "epsilon"
    _WEIGHTS: ClassVar[list[list[float]]] = [[1, 0, 0], [3 / 2, -1 / 2, 0], [23 / 12, -16 / 12, 5 / 12]]

    def __init__(self, order: int) -> None:
        self.name, self.order, self.history = f"ipndm_{order}", order, order - 1

    def shares(self, past: list[Tensor], t_next: Tensor) -> list[Tensor]:
        table = past[0].new_tensor(self._WEIGHTS)
        age = sum((~torch.isnan(t)).long() for t in past[1:])
        return list(table[age].unbind(-1))[: 1 + self.history]


def _zero_where(condition: Tensor, value: Tensor) -> Tensor:
    return torch.where(condition, 0.0, value)


def _exponential_moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Means of s and of s^2 over [0, 1] under the weight exp(y s)."""
    first, second, third = _phi(-y)
    return second / first, 2 * third / first


def _phi(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """phi_k(z) = integral of e^((1 - s) z) s^(k - 1) / (k - 1)! over [0, 1], k = 1, 2, 3, to rounding.

    phi_(k+1) = (phi_k - 1 / k!) / z, which cancels for small z: there it is its power series, sum_n z^n / (n + k)!.
    """
    small = torch.where(z.abs() < 1, z, 0.0)
    third = torch.full_like(z, 1 / 6)
    term = third
    for n in range(1, 17):
        term = term * small / (n + 3)
        third = third + term
    series = [1 + small * (1 / 2 + small * third), 1 / 2 + small * third, third]
    one = torch.expm1(z) / z
    two = (one - 1) / z
    direct = [one, two, (two - 1 / 2) / z]
    one, two, three = (torch.where(z.abs() < 1, a, b) for a, b in zip(series, direct, strict=True))
    return one, two, three


@dataclass
class Fitted:
    """Every step's coefficients are the search's own: ridge least squares of the teacher's state at the step's end on
    the node's basis, over the samples of a joint search (`fitting.least_squares`). They are kept in the schedule.

    history: how many earlier velocities a step uses, 0 to 2. ridge: >= 0, without units; how strongly coefficients are
    held near those of Adams-Bashforth of order min(history, 1) + 1: few samples want more of it.
    """

    history: int = 2
    ridge: float = 1e-3
    name: str = field(default="fitted", init=False)
    order: int = field(default=1, init=False)  # of the worst start; a fit has no order of its own
    carries: Carries = field(default="velocity", init=False)

    def coefficients(self, t_history: Tensor, t_next: Tensor) -> Tensor:
        """What the fit is held near: Euler's or two-step Adams-Bashforth's coefficients, 0 for what is older."""
        near = AdamsBashforth(2) if self.history else Euler()
        known = near.coefficients(t_history[..., : 1 + near.history], t_next)
        older = known.new_zeros(*known.shape[:-1], self.history - near.history)
        return torch.cat([known, older], -1)


_SOLVERS: dict[str, Solver] = {
    solver.name: solver
    for solver in (
        Euler(),
        AdamsBashforth(2),
        AdamsBashforth(3),
        DpmSolverPlusPlus2M(),
        DpmSolverPlusPlus3M(),
        UniP(2),
        UniP(3),
        UniPC2(),
        Deis(2),
        Deis(3),
        Ipndm(2),
        Ipndm(3),
        LinearMultistep(),
        Fitted(),
    )
}


def names() -> list[str]:
    """The names that `get` knows."""
    return list(_SOLVERS)


def formulas() -> list[str]:
    """Those of `names` whose coefficients follow from the flow times alone: all but "fitted"."""
    return [name for name, solver in _SOLVERS.items() if not isinstance(solver, Fitted)]


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
    if isinstance(solver, Fitted) and not solver.ridge >= 0:
        raise ValueError(f"solver: got a ridge of {solver.ridge}, wanted a number >= 0")
    if solver.carries not in CARRIES:
        raise ValueError(
            f"solver: got {solver.name!r} that carries {solver.carries!r}, wanted one of {', '.join(CARRIES)}"
        )
    return solver


def along(solver: Solver, t: Tensor) -> Tensor:
    """float64 [k, 2 + history]: the coefficients of each step along the path t, float64 [k + 1].

    Raises ValueError for `Fitted`, whose coefficients only a search knows.
    """
    if isinstance(solver, Fitted):
        raise ValueError(f"solver: got {solver.name!r}, whose coefficients come from a search, wanted a formula")
    rows = [torch.arange(len(t) - 1) - age for age in range(1 + solver.history)]
    past = torch.stack([torch.where(row >= 0, t[row.clamp(min=0)], torch.nan) for row in rows], -1)
    return solver.coefficients(past, t[1:])
