"""A schedule: the few flow times of a sampler, the coefficients of its steps, and where they came from."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, overload

import torch
from torch import Tensor

from oss_ext import grids, schedule_file, solvers
from oss_ext.evaluate import evaluate, pick_batch_size, state_dtype
from oss_ext.models import Denoiser
from oss_ext.progress import Counter, ProgressCallback, check_progress
from oss_ext.provenance import Provenance
from oss_ext.schedule_calibration import Amplitudes, calibrate, calibration_of
from oss_ext.schedule_file import Calibration
from oss_ext.validate import check_cond, check_model, check_noise, choice


@dataclass(frozen=True, eq=False, repr=False)
class Schedule:
    """k steps of a linear multistep sampler. All tensors are on the CPU; equality is identity.

    t: float64 [k + 1], flow times, descending, the last 0: what `sample` runs on, whatever the model family.
    coefficients: float64 [k, P], P >= 2: what step n applies to [state, velocity, earlier predictions, newest first]; 0
        where the path is younger than its solver's history.
    solver: the name of the solver that the coefficients came from.
    carries: which prediction of earlier nodes the coefficients apply to: "velocity", "x0" or "epsilon".
    nodes: int64 [k + 1], ascending: which nodes of the teacher's grid; None for a schedule that was not searched.
    noise_scale: sampling starts at noise_scale * noise; NaN becomes t[0], what every stock sampler does.
    sigmas: float64 [k + 1], the model family's noise levels. timesteps: float64 [k], what the network is fed,
        at network_t.
    network_t: float64 [k], the flow times that the model is evaluated at; None: t[:-1], where the states stand. Where
        they differ, velocity(state, network_t[n]) is taken for the velocity at t[n], in the predictions carried too; an
        EDM or VP family scales its input for network_t[n]. Only samplers that can tell the network another time than
        their own can deploy it.
    parameterization: the model family: "flow", "edm", "epsilon", "v_param", "x0".
    calibration: what happens to a state before it is evaluated, and stepped on from; None: nothing.
    """

    t: Tensor
    coefficients: Tensor
    solver: str
    sigmas: Tensor
    timesteps: Tensor
    parameterization: str = "flow"
    nodes: Tensor | None = None
    provenance: Provenance = field(default_factory=Provenance)
    carries: solvers.Carries = "velocity"
    noise_scale: float = math.nan
    network_t: Tensor | None = None
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "t", grids.check(self.t, name="t"))
        for name in ("coefficients", "sigmas", "timesteps"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        steps = len(self.t) - 1
        if self.coefficients.ndim != 2 or self.coefficients.shape[0] != steps or self.coefficients.shape[1] < 2:
            raise ValueError(
                f"coefficients: got shape {list(self.coefficients.shape)}, wanted [{steps}, P] with P >= 2"
            )
        if self.sigmas.shape != (steps + 1,):
            raise ValueError(f"sigmas: got shape {list(self.sigmas.shape)}, wanted [{steps + 1}]")
        if self.timesteps.shape != (steps,):
            raise ValueError(f"timesteps: got shape {list(self.timesteps.shape)}, wanted [{steps}]")
        choice("carries", self.carries, solvers.CARRIES)
        object.__setattr__(self, "noise_scale", _scale(self.noise_scale, self.t))
        if self.nodes is not None:
            object.__setattr__(self, "nodes", _nodes(self.nodes, steps))
        if self.network_t is not None:
            object.__setattr__(self, "network_t", _network_t(self.network_t, steps))
        _check_calibration(self.calibration, steps)

    @property
    def steps(self) -> int:
        """k, which is also the network evaluations a sample."""
        return len(self.t) - 1

    @property
    def told(self) -> Tensor:
        """float64 [k]: the flow times that the model is evaluated at: network_t, or t[:-1]."""
        return self.t[:-1] if self.network_t is None else self.network_t

    @classmethod
    def from_grid(
        cls,
        t: Tensor,
        solver: str | solvers.Solver = "euler",
        model: Denoiser | None = None,
        *,
        nodes: Tensor | None = None,
        coefficients: Tensor | None = None,
        noise_scale: float = math.nan,
        provenance: Provenance | None = None,
        calibration: Calibration | None = None,
    ) -> Schedule:
        """The schedule of `solver` along the flow times `t`, a floating [k + 1] as from `grids.make`.

        coefficients: [k, P], instead of those of the solver's formula; "fitted" and "mixed" have none and want them.
        model: whose terms `sigmas` and `timesteps` are in, whose range `t` is checked against; None: a flow model's.
        """
        scheme = solvers.get(solver)
        if model is None:
            t = grids.check(t, name="t")
            sigmas, timesteps, parameterization, origin = t, t[:-1], "flow", Provenance()
        else:
            check_model(model)
            t = grids.check(t, t_max=model.t_max, t_min=model.t_min, name="t")
            sigmas, timesteps, parameterization = model.sigmas(t), model.timesteps(t[:-1]), model.parameterization
            origin = Provenance(model=model.describe())
        return cls(
            t,
            solvers.along(scheme, t) if coefficients is None else coefficients,
            scheme.name,
            sigmas,
            timesteps,
            parameterization,
            nodes,
            provenance or origin,
            scheme.carries,
            noise_scale,
            calibration=calibration,
        )

    def calibrated(self, amplitudes: Amplitudes, mode: str = "scale") -> Schedule:
        """This schedule with its states brought to the teacher's amplitudes before they are evaluated.

        amplitudes: as from `oss_ext.amplitudes`, reaching from t[0] or above to 0. mode: "scale" or "affine"; see
            `Calibration`, and `oss_ext.fit_gains` for the third.
        What was there before is replaced. The cost in `provenance` was another schedule's, and is dropped.
        """
        return self.with_calibration(calibration_of(amplitudes, self.t[:-1], mode))

    def with_calibration(self, calibration: Calibration | None) -> Schedule:
        """This schedule with another calibration, or none, and without the costs in `provenance`."""
        unscored = self.provenance.model_copy(update={"cost": None, "replayed_cost": None})
        return replace(self, calibration=calibration, provenance=unscored)

    def check_range(self, model: Denoiser) -> None:
        """Raises ValueError for flow times that `model` does not know."""
        grids.check(self.t, t_max=model.t_max, t_min=model.t_min, name="t of the schedule")
        for value in self.told.tolist():
            if not model.t_min * (1 - 1e-6) <= value <= model.t_max * (1 + 1e-6):
                raise ValueError(
                    f"network_t of the schedule: got {value:.9g}, wanted {model.t_min:.9g} to {model.t_max:.9g}, the "
                    "model's range"
                )

    @overload
    def sample(
        self,
        model: Denoiser,
        noise: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        *,
        batch_size: int | None = None,
        progress: bool | ProgressCallback = False,
        return_trajectory: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def sample(
        self,
        model: Denoiser,
        noise: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        *,
        batch_size: int | None = None,
        progress: bool | ProgressCallback = False,
        return_trajectory: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...

    @torch.no_grad()
    def sample(
        self,
        model: Denoiser,
        noise: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        *,
        batch_size: int | None = None,
        progress: bool | ProgressCallback = False,
        return_trajectory: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x0 [B, ...] in the dtype of `noise`, after `steps` network evaluations a sample.

        noise: [B, ...], unit normal; its dtype is what the network is fed, its device where it runs. The first state is
            noise_scale * noise.
        cond: tensors [B, ...], handed to the network's function by name.
        batch_size: network inputs a batch; None: 2^20 numbers, at most 256 inputs.
        progress: True for a bar, or a callback (evaluations made, in all).
        return_trajectory: also return the states [B, steps + 1, ...] in flow coordinates, float32 for half types, as
            they were evaluated (calibrated).

        Raises TypeError or ValueError for bad input before any evaluation, and for outputs of another shape or dtype or
        with NaN or inf (the step and the sample are named).
        """
        states = self.states(model, noise, cond, batch_size=batch_size, progress=progress)
        if return_trajectory:
            trajectory = list(states)
            return trajectory[-1].to(noise.dtype), torch.stack(trajectory, 1)
        for state in states:
            last = state
        return last.to(noise.dtype)

    def states(
        self,
        model: Denoiser,
        noise: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        *,
        batch_size: int | None = None,
        progress: bool | ProgressCallback = False,
        calibrate: Callable[[Tensor, int], Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """What `sample` goes through, one by one: `steps` states [B, ...], calibrated, each before it is evaluated, and
        the last one. In flow coordinates, float32 for half types.

        calibrate: (state, step) -> the state that is evaluated; None: by `calibration`.
        The other arguments, and the errors, are those of `sample`.
        """
        check_model(model)
        noise = check_noise(noise)
        given = check_cond(cond, noise)
        progress = check_progress(progress)
        rows = pick_batch_size(batch_size, noise[0].numel())
        self.check_range(model)
        return self._states(model, noise, given, rows, progress, calibrate or self._calibrate)

    @torch.no_grad()
    def _states(
        self,
        model: Denoiser,
        noise: Tensor,
        cond: Mapping[str, Tensor],
        batch_size: int,
        progress: bool | ProgressCallback,
        calibrate: Callable[[Tensor, int], Tensor],
    ) -> Iterator[Tensor]:
        walk = solvers.Walk(
            noise.to(state_dtype(noise.dtype)) * self.noise_scale, self.carries, self.coefficients.shape[1] - 2
        )
        with Counter(self.steps * len(noise), progress, "sampling") as counter:
            for step, weights in enumerate(self.coefficients.tolist()):
                walk.state = calibrate(walk.state, step)
                yield walk.state
                output = evaluate(
                    model,
                    walk.state.unsqueeze(1),
                    self.told[step : step + 1],
                    cond=cond,
                    dtype=noise.dtype,
                    batch_size=batch_size,
                    labels=[step],
                    tick=counter.add,
                )
                walk.step(output.squeeze(1), float(self.t[step]), weights)
        yield walk.state

    def _calibrate(self, state: Tensor, step: int) -> Tensor:
        return state if self.calibration is None else calibrate(state, self.calibration, step)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON file `path`, whole or not at all. Every float survives bit for bit."""
        schedule_file.write(
            path,
            schedule_file.ScheduleFile(
                steps=self.steps,
                parameterization=self.parameterization,
                solver=self.solver,
                carries=self.carries,
                noise_scale=self.noise_scale,
                t=self.t.tolist(),
                nodes=None if self.nodes is None else self.nodes.tolist(),
                sigmas=self.sigmas.tolist(),
                timesteps=self.timesteps.tolist(),
                network_t=None if self.network_t is None else self.network_t.tolist(),
                coefficients=self.coefficients.tolist(),
                calibration=self.calibration,
                provenance=self.provenance,
            ),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Schedule:
        """The schedule in `path`. Raises FileNotFoundError, or ValueError naming the file and the field at fault."""
        content = schedule_file.read(path)
        return cls(
            t=_float64(content.t),
            coefficients=_float64(content.coefficients),
            solver=content.solver,
            carries=content.carries,
            sigmas=_float64(content.sigmas),
            timesteps=_float64(content.timesteps),
            parameterization=content.parameterization,
            nodes=None if content.nodes is None else torch.tensor(content.nodes, dtype=torch.int64),
            provenance=content.provenance,
            noise_scale=math.nan if content.noise_scale is None else content.noise_scale,
            network_t=None if content.network_t is None else _float64(content.network_t),
            calibration=content.calibration,
        )

    def __repr__(self) -> str:
        times = ", ".join(f"{value:.4g}" for value in self.t.tolist())
        if self.network_t is not None:
            times += "], network_t=[" + ", ".join(f"{value:.4g}" for value in self.network_t.tolist())
        cost = self.provenance.cost if self.provenance.cost is not None else self.provenance.replayed_cost
        scored = "" if cost is None else f", cost={cost:.3e}"
        changed = "" if self.calibration is None else f", calibration={self.calibration.mode!r}"
        return f"Schedule({self.steps} steps of {self.solver}, {self.parameterization}, t=[{times}]{changed}{scored})"


def _float64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _numbers(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name}: got {getattr(value, 'dtype', type(value).__name__)}, wanted a floating tensor")
    value = value.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name}: got NaN or inf, wanted finite numbers")
    return value


def _scale(value: Any, t: Tensor) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"noise_scale: got {type(value).__name__}, wanted a number")
    if math.isinf(value):
        raise ValueError(f"noise_scale: got {value}, wanted a finite number")
    return float(t[0]) if math.isnan(value) else float(value)


def _nodes(value: Any, steps: int) -> Tensor:
    if not isinstance(value, Tensor) or value.is_floating_point() or value.dtype == torch.bool:
        raise TypeError(f"nodes: got {getattr(value, 'dtype', type(value).__name__)}, wanted an integer tensor")
    value = value.detach().to("cpu", torch.int64)
    if value.shape != (steps + 1,) or bool((value.diff() <= 0).any()) or int(value[0]) < 0:
        raise ValueError(f"nodes: got {value.tolist()}, wanted {steps + 1} ascending node numbers")
    return value


def _network_t(value: Any, steps: int) -> Tensor:
    value = _numbers("network_t", value)
    if value.shape != (steps,):
        raise ValueError(f"network_t: got shape {list(value.shape)}, wanted [{steps}]")
    if bool((value <= 0).any()) or bool((value > 1).any()):
        raise ValueError(f"network_t: got {value.tolist()}, wanted flow times above 0, at most 1")
    return value


def _check_calibration(value: Any, steps: int) -> None:
    if value is None:
        return
    if not isinstance(value, Calibration):
        raise TypeError(f"calibration: got {type(value).__name__}, wanted a Calibration or None")
    if value.steps != steps:
        raise ValueError(f"calibration: got {value.steps} entries, wanted {steps}, one an evaluation")
