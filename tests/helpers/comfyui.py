"""The node package imported from the repository, and ComfyUI's sampling as its published formulae have it."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers.analytic import Mixture
from torch import Tensor

from oss_ext import Schedule

PACKAGE = Path(__file__).parents[2] / "integrations" / "comfyui"
COMFYUI = "OSS_COMFYUI"
"""The environment variable with the path of a ComfyUI checkout whose requirements are installed."""


def nodes_package() -> types.ModuleType:
    """integrations/comfyui as ComfyUI imports it: a package under a name of its own."""
    name = "oss_comfyui_nodes"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def part(name: str) -> types.ModuleType:
    nodes_package()
    return sys.modules[f"oss_comfyui_nodes.{name}"]


def comfyui() -> types.SimpleNamespace:
    """ComfyUI's own modules, from the path in the environment variable."""
    folder = os.environ[COMFYUI]
    if folder not in sys.path:
        sys.path.append(folder)
    import comfy.cli_args

    if not torch.cuda.is_available():
        comfy.cli_args.args.cpu = True
    import comfy.k_diffusion.sampling
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.model_sampling
    import comfy.samplers
    import comfy.supported_models_base

    return comfy


def manual_sigmas(text: str) -> list[float]:
    """What ComfyUI's ManualSigmas makes of its text: the numbers that this expression finds, which knows no exponents
    (comfy_extras/nodes_custom_sampler.py, commit 4be318aa)."""
    return [float(number) for number in re.findall(r"[-+]?(?:\d*\.*\d+)", text)]


class FlowSampling:
    """CONST with ModelSamplingDiscreteFlow: x = (1 - s) x0 + s eps, network fed 1000 s, s shifted."""

    def __init__(self, shift: float = 3.0) -> None:
        self.shift = shift
        self.sigma_max, self.sigma_min = 1.0, self._shifted(0.001)
        self.sigmas = torch.tensor([self._shifted(k / 1000) for k in range(1, 1001)])

    def _shifted(self, u: float) -> float:
        return self.shift * u / (1 + (self.shift - 1) * u)

    def noise_scaling(self, sigma: Tensor, noise: Tensor, image: Tensor, max_denoise: bool = False) -> Tensor:
        return sigma * noise + (1 - sigma) * image

    def percent_to_sigma(self, percent: float) -> float:
        return 1.0 if percent <= 0 else 0.0 if percent >= 1 else self._shifted(1 - percent)

    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma * 1000


class EPS:
    """EPS with ModelSamplingDiscrete: x = x0 + s eps, whole timesteps, begun at sqrt(1 + s^2) at the last of them."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self.sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt().float()
        self.sigma_min, self.sigma_max = float(self.sigmas[0]), float(self.sigmas[-1])

    def noise_scaling(self, sigma: Tensor, noise: Tensor, image: Tensor, max_denoise: bool = False) -> Tensor:
        return noise * (torch.sqrt(1 + sigma**2) if max_denoise else sigma) + image

    def percent_to_sigma(self, percent: float) -> float:
        if percent <= 0 or percent >= 1:
            return 999999999.9 if percent <= 0 else 0.0
        place = (1 - percent) * (len(self.sigmas) - 1)
        log, low = self.sigmas.log(), int(place)
        return float(((1 - (place - low)) * log[low] + (place - low) * log[min(low + 1, len(log) - 1)]).exp())

    def timestep(self, sigma: Tensor) -> Tensor:
        return (sigma.log()[..., None] - self.sigmas.log()).abs().argmin(-1)


class Guider:
    """What stands where ComfyUI's CFGGuider does: model(x, sigma) -> x0, its model_sampling one further in."""

    def __init__(self, model_sampling: Any, denoised: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.inner_model = types.SimpleNamespace(model_sampling=model_sampling)
        self.denoised = denoised


class Wrapped:
    """KSamplerX0Inpaint without a mask, and KSAMPLER.sample around it."""

    def __init__(self, guider: Guider) -> None:
        self.inner_model, self.calls = guider, []
        self.noise = self.latent_image = None

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        self.calls.append((sigma.clone(), extra_args))
        return self.inner_model.denoised(x, sigma)

    def sample(
        self, function: Callable[..., Tensor], sigmas: Tensor, noise: Tensor, image: Tensor, **options: Any
    ) -> Tensor:
        sampling = self.inner_model.inner_model.model_sampling
        self.noise, self.latent_image = noise, image
        top = float(sigmas[0]) > sampling.sigma_max * (1 - 1e-5)
        x = sampling.noise_scaling(sigmas[0], noise, image, top)
        return function(self, x, sigmas, disable=True, **{"extra_args": {}, "callback": None, **options})


def flow_guider(distribution: Mixture, shift: float = 3.0) -> Guider:
    return Guider(FlowSampling(shift), lambda x, s: distribution.posterior_mean(x, 1 - s, s))


def eps_guider(distribution: Mixture, alphas_cumprod: Tensor) -> Guider:
    return Guider(EPS(alphas_cumprod), lambda x, s: distribution.posterior_mean(x, torch.ones_like(s), s))


def plan_of(schedule: Schedule, folder: Path) -> Any:
    """The nodes' Plan of a schedule, through its file."""
    schedule.save(folder / "s.json")
    return part("plan").load(folder / "s.json")


def run(
    guider: Guider, made: Any, noise: Tensor, image: Tensor | None = None, sigmas: Tensor | None = None, **options: Any
) -> tuple[Tensor, Wrapped]:
    """What the nodes' sampler makes of a Plan, and the model with the calls that it was given."""
    levels, sampler = part("levels"), part("sampler")
    wrapped = Wrapped(guider)
    image = torch.zeros_like(noise) if image is None else image
    known = levels.Levels.of(guider.inner_model.model_sampling)
    sigmas = sampler.sigmas_of(made, known).double() if sigmas is None else sigmas
    return wrapped.sample(sampler.sampler_of(made), sigmas, noise, image, **options), wrapped
