"""Training of the diffusion models: ``photo32`` on the straight path, ``photo32_vp`` on the variance-preserving one."""

from __future__ import annotations

import argparse
import itertools
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from training import tasks

if TYPE_CHECKING:
    from oss_ext.zoo import network, photos, vp
else:
    import network
    import photos
    import vp

TIME_BINS = 10


def draw_times(count: int, generator: torch.Generator) -> Tensor:
    """Flow times [count]: half uniform, half logit-normal(0, 1) (arXiv 2403.03206, section 3.1), both stratified.

    The logit-normal half spends effort where the velocity is hardest; the uniform half keeps both ends trained, which a
    study of schedules needs.
    """
    strata = torch.arange(count, device=generator.device)
    u = (strata + torch.rand(count, generator=generator, device=generator.device)) / count
    half = count // 2
    uniform, normal = u[:half] * (count / max(half, 1)), (u[half:] * count - half) / (count - half)
    return torch.cat([uniform, torch.special.ndtri(normal.clamp(1e-6, 1 - 1e-6)).sigmoid()])


class Denoiser(tasks.Task):
    """What the two models share; a subclass is the path, and what the network predicts on it."""

    prediction: str

    def build(self) -> network.PatchTransformer:
        return network.PatchTransformer(network.NetworkConfig(classes=len(photos.PHOTOS)))

    @abstractmethod
    def errors(
        self, forward: Callable[..., Tensor], images: Tensor, noise: Tensor, t: Tensor, label: Tensor
    ) -> tuple[Tensor, Tensor]:
        """[batch] each: the squared error that is trained on at flow times ``t``, and that of the flow velocity."""

    @abstractmethod
    def nodes(self, steps: int) -> list[float]:
        """The flow times of a sampler of ``steps`` steps, the final 0 with them."""

    @abstractmethod
    def velocity(self, model: network.PatchTransformer, x: Tensor, t: float, label: Tensor, scale: float) -> Tensor:
        """The flow velocity at ``x_t = (1 - t) x0 + t eps``, guided by ``scale``."""

    def loss(
        self,
        model: network.PatchTransformer,
        forward: Callable[..., Tensor],
        crops: photos.Crops,
        generator: torch.Generator,
    ) -> Tensor:
        # The order of the draws is part of what a seed means: photo32 can be trained again to the same weights.
        a = self.arguments
        images, label = crops.draw(a.batch, generator)
        dropped = torch.rand(a.batch, generator=generator, device=self.device) < a.label_dropout
        label = label.masked_fill(dropped, model.null_label)
        noise = torch.randn(images.shape, generator=generator, device=self.device)
        t = draw_times(a.batch, generator)
        return self.errors(forward, images, noise, t, label)[0].mean()

    @torch.no_grad()
    def validate(self, model: network.PatchTransformer, crops: photos.Crops) -> dict[str, Any]:
        """The flow velocity's mean squared error in each of ten equal bins of t, with class labels."""
        count = self.arguments.validation
        generator = torch.Generator(crops.device).manual_seed(tasks.VALIDATION_SEED)
        losses = []
        for index in range(TIME_BINS):
            images, label = crops.draw(count, generator)
            noise = torch.randn(images.shape, generator=generator, device=crops.device)
            t = (index + torch.rand(count, generator=generator, device=crops.device)) / TIME_BINS
            losses.append(float(self.errors(model, images, noise, t, label)[1].mean()))
        return {"validation": sum(losses) / TIME_BINS, "validation_by_t": losses}

    def record(self) -> dict[str, Any]:
        return {
            "prediction": self.prediction,
            "label_dropout": self.arguments.label_dropout,
            "time_distribution": "half uniform, half logit-normal(0, 1)",
        }

    @torch.no_grad()
    def sample(self, model: network.PatchTransformer, noise: Tensor, label: Tensor, scale: float) -> Tensor:
        """Euler's method."""
        nodes = self.nodes(self.arguments.sheet_steps)
        x = nodes[0] * noise
        for t, after in itertools.pairwise(nodes):
            x = x - (t - after) * self.velocity(model, x, t, label, scale)
        return x

    def picture(self, model: network.PatchTransformer, crops: photos.Crops) -> Image.Image:
        """A row a class: 8 samples at guidance 1, 8 at guidance 3 from the same noises, the crops nearest to the first.

        Distances are Euclidean over pixels, among the pool's random crops of the class.
        """
        columns, classes, size = 8, len(photos.PHOTOS), model.config.image_size
        generator = torch.Generator().manual_seed(tasks.SHEET_SEED)
        noise = torch.randn(classes * columns, 3, size, size, generator=generator).to(crops.device)
        label = torch.arange(classes, device=crops.device).repeat_interleave(columns)
        plain, guided = (self.sample(model, noise, label, scale) for scale in (1.0, 3.0))
        generator = torch.Generator(crops.device).manual_seed(tasks.SHEET_SEED)
        real, real_label = crops.draw(self.arguments.pool, generator)
        nearest = torch.empty_like(plain)
        for k in range(classes):
            own = real[real_label == k]
            nearest[label == k] = own[torch.cdist(plain[label == k].flatten(1), own.flatten(1)).argmin(dim=1)]
        return tasks.sheet([tasks.tiled(images, classes) for images in (plain, guided, nearest)])


class Flow(Denoiser):
    """``photo32``: the velocity of the straight path, at every flow time in (0, 1]."""

    seed = 20250328
    prediction = "velocity eps - x0 of x_t = (1 - t) x0 + t eps"

    def errors(
        self, forward: Callable[..., Tensor], images: Tensor, noise: Tensor, t: Tensor, label: Tensor
    ) -> tuple[Tensor, Tensor]:
        shaped = t[:, None, None, None]
        state = torch.lerp(images, noise, shaped)
        error = (forward(state, t, label).float() - (noise - images)).square().mean(dim=(1, 2, 3))
        return error, error

    def nodes(self, steps: int) -> list[float]:
        return [1.0 - index / steps for index in range(steps)] + [0.0]

    def velocity(self, model: network.PatchTransformer, x: Tensor, t: float, label: Tensor, scale: float) -> Tensor:
        return network.guided(model, x, torch.full((len(x),), t, device=x.device), label, scale)


class VariancePreserving(Denoiser):
    """``photo32_vp``: the noise of the variance-preserving path, at a thousand timesteps.

    The flow times drawn are those of ``photo32``, each moved to the nearest timestep; what lies beyond the table goes
    to its ends, which a sampler always visits. The squared error is that of the raw output F (vp.py), which weighs both
    ends alike; in terms of the noise it is 1 / a^2 times DDPM's simple loss.
    """

    seed = 20250411
    prediction = "noise eps of a x0 + s eps, as s x + a F with F the network's output"

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments)
        self.betas = vp.Betas()
        self.levels = vp.Levels(self.betas, self.device)

    def errors(
        self, forward: Callable[..., Tensor], images: Tensor, noise: Tensor, t: Tensor, label: Tensor
    ) -> tuple[Tensor, Tensor]:
        timestep = self.levels.nearest(t)
        a, s = (level.float()[:, None, None, None] for level in self.levels.of(timestep))
        raw = forward(a * images + s * noise, self.levels.time(timestep), label)
        error = (raw.float() - (a * noise - s * images)).square().mean(dim=(1, 2, 3))
        return error, error * (a + s).square().flatten()

    def nodes(self, steps: int) -> list[float]:
        """Whole timesteps, equally spaced from the last to the first, and 0."""
        timestep = torch.linspace(self.levels.timesteps - 1, 0, steps, dtype=torch.float64).round().long()
        return [*self.levels.flow_table.cpu()[timestep].tolist(), 0.0]

    def velocity(self, model: network.PatchTransformer, x: Tensor, t: float, label: Tensor, scale: float) -> Tensor:
        timestep = self.levels.nearest(torch.full((len(x),), t, device=x.device, dtype=torch.float64))
        a, s = (level.float()[:, None, None, None] for level in self.levels.of(timestep))
        given = (a + s) * x
        raw = network.guided(model, given, self.levels.time(timestep), label, scale)
        return (self.levels.epsilon(raw, given, timestep) - x) / (1.0 - t)

    def record(self) -> dict[str, Any]:
        times = "half uniform, half logit-normal(0, 1) flow times, each moved to the nearest timestep"
        return {**super().record(), "betas": self.betas.to_dict(), "time_distribution": times}
