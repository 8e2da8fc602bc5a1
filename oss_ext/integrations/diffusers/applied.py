"""The scheduler that takes a pipeline along a schedule."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor

from oss_ext import solvers
from oss_ext.integrations.diffusers.family import Family
from oss_ext.integrations.diffusers.interface import PipelineScheduler, StepOutput, as_told, wide
from oss_ext.integrations.diffusers.mismatch import check_shift
from oss_ext.integrations.diffusers.reschedule import starting_at, tail
from oss_ext.integrations.diffusers.watch import Handed
from oss_ext.schedule import Schedule
from oss_ext.schedule_calibration import calibrate

_UNSCALED = 1e-3  # relative: the first latents may be this far from the schedule's before we say so


class AppliedScheduler(PipelineScheduler):
    """Samples `schedule` and nothing else: the step count, sigmas, timesteps and mu that the pipeline hands
    `set_timesteps`, and the configuration's shift and Karras flags, change nothing.

    What the pipeline does to the latents between steps (inpainting, callbacks) is kept: a step begins from the latents
    that it is given, in float32 (float64 for float64 latents) where they are those that the step before returned.
    """

    def __init__(self, native: Any, family: Family, schedule: Schedule) -> None:
        super().__init__(native, family)
        self.schedule = schedule  # as it was given; `running` may start lower
        self._model = family.terms()
        self.running = schedule
        self._device: Any = None
        self._mu: float | None = None
        self._index: int | None = None
        self._begin: int | None = None
        self._before = 0  # steps that the pipeline skipped
        self._walk: solvers.Walk | None = None
        self._scaled: Tensor | None = None
        self._handed: Handed | None = None
        self._lay_out()

    @property
    def steps(self) -> int:
        return self.running.steps

    @property
    def start_scale(self) -> float:
        return self.running.noise_scale * self._scale(0) / self.family.held

    @property
    def step_index(self) -> int | None:
        return None if self._index is None else self._before + self._index

    @property
    def begin_index(self) -> int | None:
        return self._begin

    @property
    def num_inference_steps(self) -> int:
        return self.steps

    # The pipeline's calls, in the order in which they come.

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        **_: Any,
    ) -> None:
        check_shift(self.schedule, self.family, mu)
        self._mu = mu
        self._device = device
        self._rewind()
        self.running = self.schedule
        self._lay_out()

    def start_at(self, strength: float) -> None:
        """As many steps, from the noise level that `strength` stands for; 1: the schedule itself."""
        if not 0 < strength <= 1:
            raise ValueError(f"strength: got {strength}, wanted a number above 0, at most 1")
        self._begin = None
        if strength == 1:
            self.running = self.schedule
        else:
            level = self.family.start(strength, self.family.shift_of(self._mu))
            self.running = starting_at(self.schedule, level, self._model)
        self._lay_out()

    def set_begin_index(self, begin_index: int = 0) -> None:
        self._begin = int(begin_index)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """`original_samples` at the noise levels of `timesteps` (the nearest that the loop tells), one or [batch]."""
        self.noised += 1
        told = torch.as_tensor(timesteps).detach().to("cpu", torch.float64).reshape(-1)
        known = self._told
        nodes = (told[:, None] - known[None]).abs().argmin(1)
        rows = []
        for node in nodes.tolist():
            t = float(self.running.t[node])
            # At the very start as the schedule wants it, which may be another multiple of the noise.
            rows.append((1 - t, self.running.noise_scale if node == 0 else t, self._scale(node)))
        keep, add, scale = (
            torch.tensor(column, dtype=wide(noise).dtype, device=noise.device).reshape(-1, *[1] * (noise.ndim - 1))
            for column in zip(*rows, strict=True)
        )
        return (scale * (keep * wide(original_samples) + add * wide(noise))).to(original_samples.dtype)

    def scale_model_input(self, sample: Tensor, timestep: Any = None, *_: Any, **__: Any) -> Tensor:
        """The sample; before the first step the noise made as large as the schedule wants it, where nobody did."""
        if self._index is not None or self.prepared or self.noised or not self._unlike_noise(self.scale_reads > 0):
            return sample
        self._scaled = self.started(sample, self.scale_reads > 0)
        return self._scaled

    def started(self, noise: Tensor, scaled: bool) -> Tensor:
        """What the pipeline is to begin with: its noise as large as the schedule wants it, and calibrated. scaled: the
        pipeline multiplied it with `init_noise_sigma`."""
        latents = wide(noise) if scaled else wide(noise) * self.start_scale
        calibration = self.running.calibration
        if calibration is not None:
            scale = self._scale(0)
            latents = calibrate(latents / scale, calibration, 0) * scale
        return latents.to(noise.dtype)

    def _unlike_noise(self, scaled: bool) -> bool:
        return self.running.calibration is not None or (not scaled and self.start_scale != 1)

    def advance(self, output: Tensor, timestep: Any, sample: Tensor) -> StepOutput:
        if self._index is None:
            self._enter(timestep, sample)
        n = self._index
        assert n is not None and self._walk is not None
        if n >= self.steps:
            raise RuntimeError(f"step: got one more after the schedule's {self.steps}; call set_timesteps first")
        t = float(self.running.t[n])
        if n > 0 and not self._comes_back(sample):
            self._walk.state = wide(sample) / self._scale(n)
        of_state, of_output = self.family.velocity_weights(float(self.running.told[n]))
        velocity = output.to(self._walk.state.dtype) * of_output
        if of_state:
            velocity = velocity + self._walk.state * of_state
        x0 = (self._walk.state - t * velocity).to(sample.dtype)
        self._walk.step(velocity, t, self.running.coefficients[n].tolist())
        self._index = n + 1
        calibration = self.running.calibration
        if calibration is not None and n + 1 < self.steps:
            self._walk.state = calibrate(self._walk.state, calibration, n + 1)
        latents = self._latents(n + 1, sample.dtype)
        self._handed = Handed.of(latents)
        if n + 1 == self.steps:  # what follows is of the next call
            self.noised = self.scale_reads = 0
            self.prepared = False
        return StepOutput(latents, x0)

    # Inside.

    def _rewind(self) -> None:
        self._index = self._begin = self._walk = self._scaled = self._handed = None
        self._before = 0

    def __deepcopy__(self, memo: Any) -> AppliedScheduler:
        """Another scheduler along the same path, as pipelines with two loops make; it belongs to no pipeline."""
        made = copy.copy(self)
        made._walk, made.owner = copy.deepcopy(self._walk, memo), None
        return made

    owner: Any = None  # what `apply` returned for the pipeline that this was put in
    prepared = False  # set by the hook on the pipeline's prepare_latents, which has seen to the noise's scale

    def _lay_out(self) -> None:
        self._told = self.family.told(self.running.told)
        self.timesteps = as_told(self.family, self._told, self._device)
        levels = self.family.levels(torch.cat([self.running.told, self.running.t[-1:]]))
        self.sigmas = levels.float()  # of the times that are told: some pipelines tell the network these

    def _enter(self, timestep: Any, sample: Tensor) -> None:
        """The first step: where it is, and what the latents are."""
        begin = self._begin
        if begin is None:
            begin = int((self._told - float(timestep)).abs().argmin())
        if begin:
            self._before, self._told = begin, self._told[begin:]
            self.running = tail(self.running, begin, self._model)
        elif self._scaled is not None:
            if not (self._scaled.shape == sample.shape and torch.equal(self._scaled, sample)):
                sample = self.started(sample, self.scale_reads > 0)  # the network was fed a copy
        elif not (self.prepared or self.noised or self.scale_reads):
            self._warn_of_the_start()
        self._index = 0
        state = wide(sample) / self._scale(0)
        self._walk = solvers.Walk(state, self.running.carries, self.running.coefficients.shape[1] - 2)

    def _warn_of_the_start(self) -> None:
        """The pipeline has none of the three places where its noise could have been changed."""
        wants = [f"{self.start_scale:.4g} times it"] if abs(self.start_scale - 1) > _UNSCALED else []
        if self.running.calibration is not None:
            wants.append("it calibrated")
        if wants:
            warnings.warn(
                "the pipeline fed its first noise to the network as it was, where the schedule wants "
                + " and ".join(wants),
                stacklevel=2,
            )

    def _comes_back(self, sample: Tensor) -> bool:
        """Whether the loop's latents are those that the step before returned, rounded to another dtype or not."""
        handed = self._handed
        assert handed is not None
        return handed.same(sample) or handed.rounding(sample) is not None

    def _scale(self, node: int) -> float:
        """Latents in the loop / state: what the network is fed at the time that it is told; 1 at the end."""
        return 1.0 if node == self.steps else self.family.input_scale(float(self.running.told[node]))

    def _latents(self, node: int, dtype: torch.dtype) -> Tensor:
        assert self._walk is not None
        scale = self._scale(node)
        return (self._walk.state * scale if scale != 1 else self._walk.state).to(dtype)
