"""A small classifier of the photographs' crops, whose features measure the distance between sets of pictures.

It tells which photograph a 32x32 crop is from and from which of 4 x 4 places in it. The places are there for the
features: nine classes alone would leave them little more than eight directions.

This file imports torch and nothing else, as ``network.py``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ClassifierConfig:
    """Architecture, kept as a whole in the weight file's header.

    Args:
        classes: photographs.
        places: rows, and columns, of places in a photograph.
        stem: channels at 32x32.
        middle: channels at 16x16.
        features: channels at 8x8 and 4x4, and features of a picture; multiples of 8, as ``stem`` and ``middle``.
    """

    classes: int = 9
    places: int = 4
    stem: int = 32
    middle: int = 48
    features: int = 64

    def to_dict(self) -> dict[str, int]:
        """The fields as a plain dict; ``ClassifierConfig(**d)`` reads it back."""
        return asdict(self)


class Classifier(nn.Module):
    """Features of a picture, and from them the logits of its photograph and place.

    As a feature module of torchmetrics: ``FrechetInceptionDistance(feature=classifier)``, ``KernelInceptionDistance``.

    Args:
        config: the architecture.

    Attributes:
        num_features: features of a picture; what torchmetrics asks for.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.num_features = config.features
        widths = [config.stem, config.middle, config.middle, config.features, config.features, config.features]
        strides = [1, 2, 1, 2, 1, 2]
        inputs = [3, *widths[:-1]]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(n, m, 3, stride, padding=1, bias=False), nn.GroupNorm(8, m), nn.SiLU())
            for n, m, stride in zip(inputs, widths, strides, strict=True)
        )
        self.head = nn.Linear(config.features, config.classes * config.places**2)

    def forward(self, images: Tensor) -> Tensor:
        """The features: each channel of the last layer, averaged over the picture.

        Args:
            images: [batch, 3, 32, 32]; uint8, or floating with -1 black and 1 white, clipped to that.

        Returns:
            [batch, num_features] of the weights' dtype (any under autocast).

        Raises:
            ValueError: another shape.
            TypeError: another dtype.
        """
        if images.ndim != 4 or images.shape[1:] != (3, 32, 32):
            raise ValueError(f"images: got shape {list(images.shape)}, wanted [batch, 3, 32, 32]")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"images: got {images.dtype}, wanted torch.uint8 or a floating dtype")
        dtype = self.head.weight.dtype
        h = images.to(dtype) / 127.5 - 1.0 if images.dtype == torch.uint8 else images.to(dtype).clamp(-1.0, 1.0)
        for layer in self.layers:
            h = layer(h)
        return h.mean(dim=(2, 3))

    def logits(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Of the photograph, [batch, classes], and of photograph and place together, [batch, classes * places^2].

        Args:
            features: [batch, num_features], from :meth:`forward`.
        """
        both = self.head(features)
        return both.unflatten(1, (self.config.classes, -1)).logsumexp(dim=2), both

    def loss(self, features: Tensor, photograph: Tensor, place: Tensor) -> Tensor:
        """Cross entropy of photograph and place, labels smoothed by 0.05.

        Args:
            features: [batch, num_features].
            photograph, place: int64 [batch].
        """
        target = photograph * self.config.places**2 + place
        return F.cross_entropy(self.logits(features)[1].float(), target, label_smoothing=0.05)
