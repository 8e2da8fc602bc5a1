"""What a solver is, what it keeps of earlier nodes, and the state along one path."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

Carries: TypeAlias = Literal["velocity", "x0", "epsilon"]
CARRIES: tuple[Carries, ...] = ("velocity", "x0", "epsilon")


@runtime_checkable
class Solver(Protocol):
    """name: what a schedule records. order: of the global error. history: how many earlier predictions a step uses, at
    most `MAX_HISTORY`. carries: which prediction of earlier nodes those are, "velocity", "x0" or "epsilon"."""

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

    def basis(self, velocity: Tensor) -> list[Tensor]:
        """What the next step combines; a young path has fewer vectors than its solver's history allows."""
        return [self.state, velocity, *self._earlier]

    def step(self, velocity: Tensor, t: float | Tensor, weights: Sequence[float | Tensor]) -> None:
        """Moves `state`, now at flow time t. weights: [2 + history], of state, velocity and earlier predictions."""
        terms = list(zip(self.basis(velocity), weights, strict=False))[1:]
        self._earlier.appendleft(carried(self._carries, self.state, velocity, t))
        self.state = sum((u * w for u, w in terms), start=self.state * weights[0])
