"""A bundled diffusion model: a trained network, its noises and its classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from oss_ext.models import EpsilonModel, FlowModel
from oss_ext.zoo.network import PatchTransformer, guided
from oss_ext.zoo.photos import to_uint8
from oss_ext.zoo.vp import Betas, Levels

NOISE_SEEDS = {"search": 1_000_000_000, "heldout": 2_000_000_000}
"""First seed of each split. Noise k comes from a CPU generator of its own, seeded with the first seed plus k: it
depends neither on the count nor on the device, and no noise belongs to both splits."""

_SPLIT_SIZE = 1_000_000_000


class ZooModel:
    """A bundled class-conditional model. Its condition is ``{"label": int64 [batch]}``, 0 to 8, or 9 for no class.

    It is a Denoiser whatever its network predicts. Gradients with respect to the images are available; the weights take
    none.

    Args:
        name: as in :func:`oss_ext.zoo.names`.
        network: the network, in evaluation mode.
        card: the record of the training; with "betas" in it, the network is one of ``vp.py``.
        guidance_scale: scale of classifier-free guidance; other than 1, an evaluation runs a batch of twice the size.

    Attributes:
        name: as in :func:`oss_ext.zoo.names`.
        denoiser: the :class:`FlowModel` or :class:`EpsilonModel` behind it; its ``fn`` is the network itself, guided.
        t_max, t_min, flow_table, parameterization: the denoiser's.
        shape: of one image, ``(3, 32, 32)``.
        classes: class names, in the order of their labels.
        card: the record of the training: data, steps, batch, seed, losses, commit, ...
        parameter_count: number of weights.
        guidance_scale: as given.
        dtype, device: of the weights, and so of the images that the model takes.
    """

    def __init__(self, name: str, network: PatchTransformer, card: dict[str, Any], guidance_scale: float = 1.0) -> None:
        config = network.config
        self.name = name
        self.network = network
        self.card = card
        self.guidance_scale = guidance_scale
        self.shape = (config.channels, config.image_size, config.image_size)
        self.classes: list[str] = list(card["classes"])
        self.parameter_count = sum(p.numel() for p in network.parameters())
        self.dtype = network.position.dtype
        self.device = network.position.device
        self.denoiser: FlowModel | EpsilonModel
        if "betas" in card:
            betas = Betas(**card["betas"])
            self._levels = Levels(betas, self.device)
            self.denoiser = EpsilonModel(self._epsilon, betas.alphas_cumprod())
        else:
            self.denoiser = FlowModel(self._guided)
        self.parameterization = self.denoiser.parameterization
        self.t_max, self.t_min = self.denoiser.t_max, self.denoiser.t_min
        self.flow_table: Tensor | None = self.denoiser.flow_table

    def _guided(self, x: Tensor, time: Tensor, *, label: Tensor | None = None) -> Tensor:
        if x.dtype != self.dtype:
            raise TypeError(f"x: got {x.dtype}, wanted {self.dtype}, that of the weights; load(..., dtype=) sets it")
        if x.ndim != 4 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x: got shape {list(x.shape)}, wanted [batch, {', '.join(map(str, self.shape))}]")
        if label is None:
            raise ValueError(f"cond: got no label, wanted {{'label': int64 [{x.shape[0]}]}}")
        if label.dtype != torch.int64 or label.shape != x.shape[:1]:
            raise ValueError(f"label: got {label.dtype} {list(label.shape)}, wanted torch.int64 [{x.shape[0]}]")
        return guided(self.network, x, time, label, self.guidance_scale)

    def _epsilon(self, x: Tensor, timestep: Tensor, *, label: Tensor | None = None) -> Tensor:
        # Guided noise is the noise of the guided output, since s x is the same in both branches.
        raw = self._guided(x, self._levels.time(timestep), label=label)
        return self._levels.epsilon(raw, x, timestep)

    def velocity(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """The flow velocity ``eps - x0`` at ``x = (1 - t) x0 + t eps``.

        Args:
            x: [batch, 3, 32, 32] of the model's dtype.
            t: float64 [batch] in (0, 1], between ``t_min`` and ``t_max``.
            cond: ``{"label": int64 [batch]}``.

        Raises:
            ValueError: another shape, no label, a time that the model does not know.
            TypeError: another dtype.
        """
        return self.denoiser.velocity(x, t, cond)

    def sigmas(self, t: Tensor) -> Tensor:
        """float64: the family's noise level at flow time t: t itself, or s / a."""
        return self.denoiser.sigmas(t)

    def timesteps(self, t: Tensor) -> Tensor:
        """float64: what the network is fed at flow time t: t itself, or the timestep, 0 to 999."""
        return self.denoiser.timesteps(t)

    def describe(self) -> dict[str, Any]:
        """What a schedule's provenance records of the model."""
        return {
            **self.denoiser.describe(),
            "name": self.name,
            "guidance_scale": self.guidance_scale,
            "dtype": str(self.dtype).removeprefix("torch."),
            "commit": self.card["commit"],
        }

    def noise(
        self,
        count: int,
        split: str = "search",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The first ``count`` noises of a split, and their labels, which cycle through the classes.

        Args:
            count: how many; noise k is the same whatever the count, device and dtype (rounding of the dtype apart).
            split: "search", or "heldout" for measurements; the two share no noise.
            device, dtype: of the noises; default those of the model.

        Returns:
            noise [count, 3, 32, 32], unit normal, and ``{"label": int64 [count]}``.

        Raises:
            ValueError: count below 1, or an unknown split.
        """
        if split not in NOISE_SEEDS:
            raise ValueError(f"split: got {split!r}, wanted one of {sorted(NOISE_SEEDS)}")
        if not 1 <= count <= _SPLIT_SIZE:
            raise ValueError(f"count: got {count}, wanted 1 to {_SPLIT_SIZE}")
        generator = torch.Generator()
        first = NOISE_SEEDS[split]
        noise = torch.stack([torch.randn(self.shape, generator=generator.manual_seed(first + k)) for k in range(count)])
        target = self.device if device is None else torch.device(device)
        label = torch.arange(count, device=target) % len(self.classes)
        return noise.to(device=target, dtype=dtype or self.dtype), {"label": label}

    def to_image(self, x: Tensor) -> Tensor:
        """Same as :func:`to_image`."""
        return to_image(x)


def to_image(x: Tensor) -> Tensor:
    """Samples [..., 3, H, W], nominally in [-1, 1], as images: uint8 [..., H, W, 3]; values outside are clipped."""
    if x.ndim < 3 or x.shape[-3] != 3:
        raise ValueError(f"x: got shape {list(x.shape)}, wanted [..., 3, H, W]")
    return to_uint8(x)
