"""One call of the pipeline during a search: its arguments, its noise, and what its loop is told and given."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from oss_ext.integrations.diffusers.family import Family
from oss_ext.integrations.diffusers.interface import wide
from oss_ext.integrations.diffusers.watch import Handed, Watch, is_element

LIVE_LENGTH = 1000
"""Steps that a live loop is promised; a longer search begins the call again."""


class Request(NamedTuple):
    """What is wanted of a call next: the velocity at states [b, ...] (flow coordinates) and flow time t; with states
    None its noise. coming: the flow times that will probably be asked for after it."""

    call: Call
    states: Tensor | None
    t: float
    coming: list[float]


class Again(BaseException):
    """Ends a pipeline call that cannot go on to the request that waits; it is to be made again."""


class Over(BaseException):
    """Ends a pipeline call of which nothing more is wanted."""


@dataclass(eq=False)
class Call:
    """arguments: of the pipeline. seed: of its generator, where it is given none. whole: timesteps are integers.

    live: the loop's timesteps are written as it runs; else they are planned, and a call is made again where the plan
    fails. It begins with one step at `first_t` whose output is not used: only then is its noise known.
    """

    arguments: dict[str, Any]
    seed: int
    family: Family
    whole: bool
    live: bool
    first_t: float
    watch: Watch
    round: int = 0  # how often its arguments were used before, with other seeds
    noise: Tensor | None = None  # [b, ...] in the loop's dtype
    doubled: bool = False  # the loop holds every sample twice (guidance in DiT)
    waiting: Request | None = None
    plan: list[float] = field(default_factory=list)
    position: int = -1
    timesteps: Tensor = field(default_factory=lambda: torch.zeros(0))
    sigmas: Tensor = field(default_factory=lambda: torch.zeros(1))
    handed: Handed | None = None
    way: torch.dtype | None = None  # what the loop rounds its latents to

    @property
    def samples(self) -> int:
        assert self.noise is not None
        return len(self.noise)

    def open(self, device: Any) -> None:
        """The pipeline asks for its timesteps."""
        if self.live:
            times = torch.full((LIVE_LENGTH,), self.first_t, dtype=torch.float64)
        else:
            times = torch.tensor([self.first_t, *self.plan], dtype=torch.float64)
        told = self.family.told(times)
        self.timesteps = (told.round().long() if self.whole else told.float()).to(device)
        self.sigmas = torch.cat([self.family.levels(times), torch.zeros(1, dtype=torch.float64)]).float()
        self.position = 0

    def plan_from_now_on(self) -> None:
        """The loop that is running was promised otherwise: the next request begins another."""
        self.live, self.plan = False, []

    def hear(self, output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
        """What the loop hands its scheduler: the noise at its first step, velocities [b, ...] after that."""
        if self.position == 0:
            return self._noise(output, sample)
        assert self.handed is not None and self.waiting is not None and self.waiting.states is not None
        t = self.waiting.t
        known = is_element(timestep, self.timesteps, None if self.live else self.position)
        if not known and float(timestep) != float(self._told(t)):
            if not self.live:
                raise RuntimeError(
                    f"the pipeline handed its scheduler the timestep {float(timestep)}, wanted {float(self._told(t))}"
                )
            self.live = False  # it walks along a copy of the timesteps
            self.plan = [t, *self.waiting.coming]
            raise Again
        self._check_unchanged(self.handed, sample)
        if self.doubled:
            output = output[: self.samples]
        of_state, of_output = self.family.velocity_weights(t)
        velocity = wide(output) * of_output
        return velocity + self.waiting.states * of_state if of_state else velocity

    def hand(self, request: Request) -> Tensor:
        """The latents that the loop goes on with. Raises Again where this loop cannot tell the request's time."""
        self.waiting = request
        assert request.states is not None and self.noise is not None
        at = self.position + 1
        if self.live:
            if at >= LIVE_LENGTH:
                raise Again
            self.timesteps.fill_(self._told(request.t).item())
            self.sigmas[:-1] = float(self.family.levels(torch.tensor(request.t)))
        elif at >= len(self.plan) + 1 or self.plan[at - 1] != request.t:
            self.plan = [request.t, *request.coming]
            raise Again
        self.position = at
        latents = (request.states * self.family.input_scale(request.t)).to(self.noise.dtype)
        self.handed = Handed.of(torch.cat([latents, latents]) if self.doubled else latents)
        return self.handed.latents

    def _check_unchanged(self, handed: Handed, sample: Tensor) -> None:
        if handed.same(sample):
            return
        if self.way is None:
            self.way = handed.rounding(sample)
        holds = torch.tensor(False) if self.way is None else handed.unchanged(sample, self.way)
        self.watch.expect(holds, _changes)

    def _told(self, t: float) -> Tensor:
        told = self.family.told(torch.tensor(t, dtype=torch.float64))
        return told.round().long() if self.whole else told.float()

    def _noise(self, output: Tensor, sample: Tensor) -> Tensor:
        half = len(sample) // 2
        doubled = len(sample) % 2 == 0 and len(sample) > 0 and _halves_equal(sample) and _halves_equal(output)
        noise = (sample[:half] if doubled else sample).detach().clone()
        noise = noise / self.family.held if self.family.held != 1 else noise
        if self.noise is None:
            spread = float(noise.double().std()) if noise.numel() >= 256 else 1.0
            if not 0.8 < spread < 1.25:
                raise ValueError(
                    f"the pipeline's first latents have a standard deviation of {spread:.3g}, wanted unit normal noise"
                )
            self.noise, self.doubled = noise, doubled
        elif self.noise.shape != noise.shape or not torch.equal(self.noise, noise):
            raise RuntimeError("the pipeline draws other noise at its second call, although its generators were reset")
        return self.noise


def _changes() -> RuntimeError:
    return RuntimeError(
        "the pipeline changes its latents between steps (inpainting, a callback), where a search must know them; "
        "search with the pipeline's plain form, and apply the schedule to this one"
    )


def _halves_equal(x: Tensor) -> bool:
    one, other = x.chunk(2)
    return torch.equal(one, other)


def arguments(pipe: Any, given: Mapping[str, Any], seed: int, round_: int) -> dict[str, Any]:
    """Of one pipeline call: fresh generators in the states of those given, reseeded in later rounds; where none is
    given and the pipeline takes one, a generator on the CPU with `seed`."""
    made = dict(given)
    generator = made.get("generator")
    if generator is not None:
        several = isinstance(generator, list | tuple)
        fresh = [_fresh(each, round_) for each in (generator if several else [generator])]
        made["generator"] = fresh if several else fresh[0]
    elif "generator" in inspect.signature(pipe.__call__).parameters:
        made["generator"] = torch.Generator().manual_seed(seed)
    return made


def _fresh(generator: torch.Generator, round_: int) -> torch.Generator:
    made = torch.Generator(device=generator.device)
    if round_:
        return made.manual_seed(generator.initial_seed() + round_)
    made.set_state(generator.get_state())
    return made
