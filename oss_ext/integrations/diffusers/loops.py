"""Runs pipeline calls until a conductor has what it wants: one in the caller's thread, several in turns in theirs."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from oss_ext.integrations.diffusers.calls import Again, Call, Over, Request, arguments
from oss_ext.integrations.diffusers.interface import PipelineScheduler, StepOutput

Result = TypeVar("Result")


class SearchScheduler(PipelineScheduler):
    """Takes the outputs of the call that is running, and gives it the states that are asked for next."""

    def __init__(self, native: Any, family: Any) -> None:
        super().__init__(native, family)
        self.call: Call | None = None
        self.exchange: Any = None  # (call, what it heard) -> its next request
        self.mu: float | None = None

    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("the pipeline copies its scheduler for a second loop, which a search cannot follow")

    @property
    def start_scale(self) -> float:
        return 1.0

    @property
    def step_index(self) -> int | None:
        return None

    def set_begin_index(self, begin_index: int = 0) -> None:
        pass

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        **_: Any,
    ) -> None:
        assert self.call is not None
        self.mu = mu
        self.call.open(device)
        self.timesteps, self.sigmas = self.call.timesteps, self.call.sigmas

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """The noise: searches begin at the noisy end, with nothing of an image in it."""
        return noise

    def advance(self, output: Tensor, timestep: Any, sample: Tensor) -> StepOutput:
        call = self.call
        assert call is not None
        first = call.position == 0
        heard = call.hear(output, timestep, sample)
        waits = first and call.waiting is not None and call.waiting.states is not None
        request = call.waiting if waits else self.exchange(call, heard)
        assert request is not None
        latents = call.hand(request)
        return StepOutput(latents, latents)


def run_one(pipe: Any, scheduler: SearchScheduler, conductor: Generator[Request, Tensor, Result]) -> Result:
    """One call, in this thread: every step of its loop is a `send` to the conductor."""
    outcome: list[Result] = []

    def exchange(call: Call, heard: Tensor) -> Request:
        try:
            return conductor.send(heard)
        except StopIteration as done:
            outcome.append(done.value)
            raise Over from None

    scheduler.exchange = exchange
    first = next(conductor)
    call = scheduler.call = first.call
    call.plan = first.coming
    _repeat(pipe, call)
    return outcome[0]


def run_several(
    pipe: Any, scheduler: SearchScheduler, conductor: Generator[Request, Tensor, Result], calls: Sequence[Call]
) -> Result:
    """Each call in a thread of its own, only one of which runs at any time: the one that was asked."""
    turns: queue.SimpleQueue[Tensor | BaseException] = queue.SimpleQueue()
    inboxes: dict[Call, queue.SimpleQueue[Request | None]] = {call: queue.SimpleQueue() for call in calls}

    def exchange(call: Call, heard: Tensor) -> Request:
        turns.put(heard)
        request = inboxes[call].get()
        if request is None:
            raise Over
        return request

    scheduler.exchange = exchange
    threads: dict[Call, threading.Thread] = {}
    surroundings = _Surroundings()

    def work(call: Call) -> None:
        try:
            with surroundings():
                _repeat(pipe, call)
        except BaseException as error:  # handed to the caller's thread, which raises it
            turns.put(error)

    try:
        request = next(conductor)
        while True:
            call = scheduler.call = request.call
            scheduler.timesteps, scheduler.sigmas = call.timesteps, call.sigmas
            if call in threads:
                inboxes[call].put(request)
            else:
                call.plan = request.coming
                free(pipe)  # what the call before loaded for its prompts
                threads[call] = threading.Thread(target=work, args=(call,), daemon=True)
                threads[call].start()
            heard = turns.get()
            if isinstance(heard, BaseException):
                raise heard
            request = conductor.send(heard)
    except StopIteration as done:
        result: Result = done.value
        return result
    finally:
        for call, thread in threads.items():
            inboxes[call].put(None)
            thread.join()


def _repeat(pipe: Any, call: Call) -> None:
    """The pipeline call, again and again until it is over."""
    while True:
        torch.manual_seed(call.seed)  # for pipelines that take no generator
        try:
            pipe(**arguments(pipe, call.arguments, call.seed, call.round))
        except Again:
            free(pipe)
        except Over:
            return
        else:
            raise RuntimeError("pipe: its loop ended before the search had all it wanted (interrupted by a callback?)")


def free(pipe: Any) -> None:
    """Offloads what is to be offloaded, as the end of a call does."""
    if callable(getattr(pipe, "maybe_free_model_hooks", None)):
        pipe.maybe_free_model_hooks()


class _Surroundings:
    """What torch keeps by thread, as it is in the thread that makes this."""

    def __init__(self) -> None:
        self._inference = torch.is_inference_mode_enabled()
        self._grad = torch.is_grad_enabled()
        self._stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None
        self._autocast = [
            (kind, torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)
        ]

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(self._inference))
            stack.enter_context(torch.set_grad_enabled(self._grad))
            if self._stream is not None:
                stack.enter_context(torch.cuda.stream(self._stream))  # and its device
            for kind, dtype in self._autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype))
            yield
