"""Distributions with a closed-form denoiser, written as the networks of five families, each in its own coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from oss_ext.models import Denoiser, EDMModel, EpsilonModel, FlowModel, VParamModel, X0Model

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0


def ddpm_table() -> Tensor:
    """alphas_cumprod of DDPM's linear betas, float64 [1000]."""
    return (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)


@dataclass(frozen=True)
class Mixture:
    """Equal-weight Gaussians: means [G, *shape] float64, one standard deviation. One mean: a Gaussian."""

    means: Tensor
    std: float

    def posterior_mean(self, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """E[x0 | a x0 + s eps = x]; a, s: [n]."""
        means = self.means.to(x).flatten(1)
        a, s = (value.to(x).reshape(-1, 1) for value in (a, s))
        flat = x.flatten(1)
        variance = (a * self.std) ** 2 + s**2
        off = flat[:, None] - a[:, :, None] * means
        weight = torch.softmax(-off.square().sum(-1) / (2 * variance), -1)
        posterior = means + (a * self.std**2 / variance)[:, :, None] * off
        return (weight[:, :, None] * posterior).sum(1).reshape(x.shape)

    def flow(self) -> Denoiser:
        def fn(x: Tensor, t: Tensor) -> Tensor:
            return (x - self.posterior_mean(x, 1 - t, t)) / column(t, x)

        return FlowModel(fn)

    def edm(self) -> Denoiser:
        def fn(x: Tensor, sigma: Tensor) -> Tensor:
            return self.posterior_mean(x, torch.ones_like(sigma), sigma)

        return EDMModel(fn, SIGMA_MIN, SIGMA_MAX)

    def vp(self, kind: type) -> Denoiser:
        table = ddpm_table()
        log_sigma = ((1 - table) / table).sqrt().log()

        def fn(x: Tensor, timestep: Tensor) -> Tensor:
            step = timestep.double().cpu()
            low = step.floor().clamp(max=998).long()
            sigma = torch.lerp(log_sigma[low], log_sigma[low + 1], step - low).exp()
            a = 1 / (1 + sigma**2).sqrt()
            s = sigma * a
            x0 = self.posterior_mean(x, a, s)
            eps = (x - column(a, x) * x0) / column(s, x)
            if kind is X0Model:
                return x0
            return eps if kind is EpsilonModel else column(a, x) * eps - column(s, x) * x0

        return kind(fn, table)

    def families(self) -> dict[str, Denoiser]:
        return {
            "flow": self.flow(),
            "edm": self.edm(),
            **{kind.parameterization: self.vp(kind) for kind in (EpsilonModel, VParamModel, X0Model)},
        }


def column(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like).reshape(-1, *[1] * (like.ndim - 1))


def gaussian(std: float = 0.5, shape: tuple[int, ...] = (3,)) -> Mixture:
    return Mixture(torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=torch.float64).reshape(1, *shape), std)


def mixture(seed: int = 0, components: int = 5, shape: tuple[int, ...] = (4,), std: float = 0.2) -> Mixture:
    return Mixture(normal(components, *shape, seed=1000 + seed), std)


def gaussian_path(distribution: Mixture, noise: Tensor, t: float) -> Tensor:
    """The exact solution at t of dx/dt = v from x_1 = noise, for one Gaussian."""
    mean, std = distribution.means[0].to(noise), distribution.std
    return (1 - t) * mean + (((1 - t) * std) ** 2 + t**2) ** 0.5 * noise


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def shared_grid(steps: int) -> Tensor:
    """float64 [steps + 1]: flow times that all five families know, log sigma uniform from 60 to 0.02, then 0."""
    sigma = torch.linspace(4.094, -3.912, steps, dtype=torch.float64).exp()
    return torch.cat([sigma / (1 + sigma), sigma.new_zeros(1)])
