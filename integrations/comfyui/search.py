"""The search on a model that ComfyUI has loaded: sampler functions whose loop answers what oss_ext's search asks.

Needs oss_ext with its compiled module; using a schedule does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .levels import Levels

OWN_GRID = "model"  # the grid of the model's own sampling percentages, its shift included


@dataclass(frozen=True)
class Settings:
    """What a search is told; see `oss_ext.dp_search`. grid: OWN_GRID, or a name of oss_ext's grids."""

    steps: int = 10
    teacher_steps: int = 100
    solver: str = "fitted"
    grid: str = OWN_GRID
    teacher_solver: str = "unipc"
    candidates: int | None = None
    beam: int = 1
    start: str = "fixed"


Sampled = tuple[Any, Mapping[str, Any]]
"""What ComfyUI hands a sampler function: model(x, sigma, **extra_args) -> x0, and its extra_args."""


class ComfyModel:
    """A `oss_ext.models.Denoiser` over what ComfyUI hands samplers. Of n prompts, sample b is of prompt b mod n.

    One call has one noise level and one prompt, as in ComfyUI's own samplers: what a condition, a ControlNet or a patch
    makes of the step then holds here too. batch_size: the most samples of a call; None: all.
    """

    def __init__(self, models: Sequence[Sampled], batch_size: int | None = None) -> None:
        self._models, self._batch_size = list(models), batch_size
        self._network = self._models[0][0].inner_model.inner_model
        self.model_sampling = self._network.model_sampling
        self.levels = Levels.of(self.model_sampling)
        self.parameterization = self._family()
        sigmas = getattr(self.model_sampling, "sigmas", None)
        # whole timesteps only: ComfyUI rounds to the nearest, and tells the network that
        whole = not self.levels.flow and not self._timestep(torch.ones(1)).is_floating_point()
        self.flow_table: Tensor | None = None
        if whole and sigmas is not None:
            table = sigmas.detach().double().cpu()
            self.flow_table = table / (1 + table)
        self.t_max = self.levels.t(float(self.model_sampling.sigma_max))
        self.t_min = 0.0 if self.levels.flow else self.levels.t(float(self.model_sampling.sigma_min))

    def _family(self) -> str:
        """By the names of the classes that ComfyUI builds a model's sampling from."""
        if self.levels.flow:
            return "flow"
        names = {one.__name__ for one in type(self.model_sampling).__mro__}
        for name, family in (("EDM", "edm"), ("X0", "x0"), ("V_PREDICTION", "v_param"), ("EPS", "epsilon")):
            if name in names:
                return family
        return "edm"

    def _timestep(self, sigma: Tensor) -> Tensor:
        return torch.as_tensor(self.model_sampling.timestep(sigma.float()))

    def denoised(self, x: Tensor, t: float, first: int = 0, tick: Callable[[int], None] | None = None) -> Tensor:
        """x0 of flow-coordinate states [b, ...] at one flow time. first: the number of the first sample. tick: told how
        many each call made."""
        out = torch.empty_like(x)
        for prompt, (model, extra_args) in enumerate(self._models):
            rows = [row for row in range(len(x)) if (first + row) % len(self._models) == prompt]
            most = self._batch_size or max(len(rows), 1)
            for begin in range(0, len(rows), most):
                part = torch.tensor(rows[begin : begin + most], device=x.device)
                sigma = torch.full((len(part),), self.levels.sigma(t), dtype=torch.float64).to(x)
                out[part] = model(x[part] * self.levels.scale(t), sigma, **extra_args).to(out.dtype)
                if tick is not None:
                    tick(len(part))
        return out

    def velocity(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """As of any Denoiser, a call for each noise level among t [n]. Of several prompts, the first."""
        out = torch.empty_like(x)
        for level in t.unique().tolist():
            rows = (t == level).to(x.device)
            one = ComfyModel(self._models[:1], self._batch_size)
            out[rows] = (x[rows] - one.denoised(x[rows], level)) / level
        return out

    def sigmas(self, t: Tensor) -> Tensor:
        t = t.double()
        return t if self.levels.flow else t / (1 - t)

    def timesteps(self, t: Tensor) -> Tensor:
        where = self.model_sampling.timestep(self.sigmas(t).float().cpu())
        return torch.as_tensor(where).double()

    def describe(self) -> dict[str, Any]:
        sampling = self.model_sampling
        found: dict[str, Any] = {
            "parameterization": self.parameterization,
            "sigma_min": float(sampling.sigma_min),
            "sigma_max": float(sampling.sigma_max),
            "network": type(getattr(self._network, "diffusion_model", sampling)).__name__,
        }
        shift = getattr(sampling, "shift", None)
        return found if shift is None else {**found, "shift": float(shift)}


def own_grid(model: ComfyModel, steps: int) -> Tensor:
    """float64 [steps + 1]: the flow times of equal parts of the model's sampling percentage, the last 0."""
    sampling, levels = model.model_sampling, model.levels
    inner = [levels.t(float(sampling.percent_to_sigma(part / steps))) for part in range(1, steps)]
    return torch.tensor([model.t_max, *(t for t in inner if model.t_min <= t < model.t_max), 0.0], dtype=torch.float64)


def grid_of(model: ComfyModel, name: str, steps: int) -> Tensor:
    """A grid by name, on whole timesteps where the model knows no others."""
    from oss_ext import grids

    t = own_grid(model, steps) if name == OWN_GRID else grids.for_model(name, steps, model)
    return t if model.flow_table is None else grids.snap(t, model.flow_table.flip(0))


def search(
    models: Sequence[Sampled],
    noise: Tensor,
    settings: Settings,
    *,
    batch_size: int | None = None,
    tick: Callable[[int, int], None] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Any:
    """The `oss_ext.SearchResult` for unit normal noise [B, ...], from inside of a sampler, or of several (prompts).

    tick: told (evaluations made, in all) after every call of the model; what it raises stops the search.
    Raises ImportError without oss_ext, ValueError for bad settings before any evaluation and for NaN or inf.
    """
    from oss_ext.result import SearchResult
    from oss_ext.search_core import dp_core, rehearse

    wrapped = ComfyModel(models, batch_size)
    t = grid_of(wrapped, settings.grid, settings.teacher_steps)

    def core_on(noise: Tensor) -> Any:
        return dp_core(
            noise,
            t,
            settings.steps,
            solver=settings.solver,
            teacher_solver=settings.teacher_solver,
            candidates=settings.candidates,
            beam=settings.beam,
            start=settings.start,
            make_grid=lambda name, count: grid_of(wrapped, name, count),
        )

    few = len(noise) if settings.solver == "auto" else min(len(noise), 2)
    total = rehearse(core_on(torch.ones(few, 1))) * len(noise) // few
    core, made = core_on(noise), 0

    def count(evaluations: int) -> None:
        nonlocal made
        made += evaluations
        if tick is not None:
            tick(made, max(made, total))

    try:
        ask = next(core)
        while True:
            out = torch.empty_like(ask.states)
            for node, level in enumerate(ask.t.tolist()):
                states = ask.states[:, node]
                out[:, node] = (states - wrapped.denoised(states, level, ask.samples.start or 0, count)) / level
                if not bool(torch.isfinite(out[:, node]).all()):
                    raise ValueError(f"model: returned NaN or inf at flow time {level:.6g}")
            ask = core.send(out)
    except StopIteration as done:
        found = done.value
    if tick is not None:
        tick(made, made)  # the count of solver "auto" is an estimate
    name = "comfyui" if settings.grid == OWN_GRID else settings.grid
    return SearchResult.build(found, wrapped, grid=name, metadata=metadata)


def inside(
    guiders: Sequence[Any], begin: Callable[[Any, Callable[..., Tensor]], Tensor], run: Callable[..., Tensor]
) -> Any:
    """What `begin` returns for the first guider, after run(models, x) was called once inside of the samplers of all.

    begin(guider, function): guider.sample(...) with a KSAMPLER of that function. x: what its samplers were handed.
    run returns the latent, in the model's scaling, that the first guider then hands back.
    """
    made: list[Tensor] = []

    def enter(index: int, known: list[Sampled]) -> Tensor:
        @torch.no_grad()
        def sample_search(
            model: Any,
            x: Tensor,
            sigmas: Tensor,
            extra_args: dict[str, Any] | None = None,
            callback: Callable[[dict[str, Any]], None] | None = None,
            disable: bool | None = None,
        ) -> Tensor:
            here = [*known, (model, extra_args or {})]
            if index + 1 == len(guiders):
                made.append(run(here, x))
            else:
                enter(index + 1, here)
            return made[0]

        return begin(guiders[index], sample_search)

    return enter(0, [])
