"""Loads the bundled model from the weights inside the package."""

from __future__ import annotations

import json
import math
from importlib import resources
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from oss_ext.models import FlowModel
from oss_ext.zoo.network import NetworkConfig, PatchTransformer, guided
from oss_ext.zoo.photos import to_uint8

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

NOISE_SEEDS = {"search": 1_000_000_000, "heldout": 2_000_000_000}
"""First seed of each split. Noise k comes from a CPU generator of its own, seeded with the first seed plus k: it
depends neither on the count nor on the device, and no noise belongs to both splits."""

_SPLIT_SIZE = 1_000_000_000


class ZooModel(FlowModel):
    """A bundled class-conditional flow model. Its condition is ``{"label": int64 [batch]}``, 0 to 8, or 9 for no class.

    Gradients with respect to the images are available; the weights take none.

    Args:
        name: as in :func:`names`.
        network: the network, in evaluation mode.
        card: the record of the training.
        guidance_scale: scale of classifier-free guidance; other than 1, an evaluation runs a batch of twice the size.

    Attributes:
        name: as in :func:`names`.
        shape: of one image, ``(3, 32, 32)``.
        classes: class names, in the order of their labels.
        card: the record of the training: data, steps, batch, seed, losses, commit, ...
        parameter_count: number of weights.
        guidance_scale: as given.
        dtype, device: of the weights, and so of the images that the model takes.
    """

    def __init__(self, name: str, network: PatchTransformer, card: dict[str, Any], guidance_scale: float = 1.0) -> None:
        super().__init__(self._evaluate)
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

    def _evaluate(self, x: Tensor, t: Tensor, *, label: Tensor | None = None) -> Tensor:
        if x.dtype != self.dtype:
            raise TypeError(f"x: got {x.dtype}, wanted {self.dtype}, that of the weights; load(..., dtype=) sets it")
        if x.ndim != 4 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x: got shape {list(x.shape)}, wanted [batch, {', '.join(map(str, self.shape))}]")
        if label is None:
            raise ValueError(f"cond: got no label, wanted {{'label': int64 [{x.shape[0]}]}}")
        if label.dtype != torch.int64 or label.shape != x.shape[:1]:
            raise ValueError(f"label: got {label.dtype} {list(label.shape)}, wanted torch.int64 [{x.shape[0]}]")
        return guided(self.network, x, t, label, self.guidance_scale)

    def describe(self) -> dict[str, Any]:
        """What a schedule's provenance records of the model."""
        return {
            **super().describe(),
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


def names() -> list[str]:
    """The names that :func:`load` takes."""
    return ["photo32"]


def load(
    name: str = "photo32",
    *,
    guidance_scale: float = 1.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ZooModel:
    """A bundled model.

    Args:
        name: as in :func:`names`. "photo32": 32x32 colour crops of nine photographs, one class each.
        guidance_scale: scale of classifier-free guidance (arXiv 2207.12598): 1 is the plain conditional model, and
            ``v = v_null + guidance_scale (v_label - v_null)`` otherwise.
        device: where the weights go.
        dtype: of the weights and of the images; float32, bfloat16, float16 or float64. The file holds float16.

    Raises:
        ValueError: unknown name, a guidance scale that is not finite, another dtype.
        FileNotFoundError: the package was built without the weights.
    """
    if name not in names():
        raise ValueError(f"name: got {name!r}, wanted one of {names()}")
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale: got {guidance_scale}, wanted a finite number")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype: got {dtype}, wanted one of {', '.join(map(str, _DTYPES))}")
    resource = resources.files("oss_ext.zoo") / f"{name}.safetensors"
    if not resource.is_file():
        raise FileNotFoundError(
            f"{name}: no weights at {resource}; python tools/train_zoo.py --model {name} in the repository trains "
            "them, copy the file it writes there"
        )
    with resources.as_file(resource) as path, safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["card"])
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    network = PatchTransformer(NetworkConfig(**card["architecture"]))
    network.load_state_dict(weights)
    network.to(device=device, dtype=dtype).requires_grad_(False).eval()
    return ZooModel(name, network, card, float(guidance_scale))
