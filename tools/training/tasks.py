"""What each bundled network is trained to do."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

if TYPE_CHECKING:
    from oss_ext.zoo import photos
else:
    import photos

VALIDATION_SEED = 1_000_003
SHEET_SEED = 1_000_033


class Task(ABC):
    """One network: what it is, its loss, how good it became, and a picture of that.

    Args:
        arguments: of the command line.
    """

    seed: int

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = torch.device(arguments.device)

    @abstractmethod
    def build(self) -> nn.Module:
        """The untrained network, on the CPU."""

    @abstractmethod
    def loss(
        self, model: nn.Module, forward: Callable[..., Tensor], crops: photos.Crops, generator: torch.Generator
    ) -> Tensor:
        """The mean loss of a fresh batch; ``forward`` is the network's, perhaps compiled."""

    @abstractmethod
    def validate(self, model: nn.Module, crops: photos.Crops) -> dict[str, Any]:
        """Figures of the network on crops and noises of a fixed seed, in float32, "validation" among them."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """What the weight file says of the network and of its training, beside what every file says."""

    @abstractmethod
    def picture(self, model: nn.Module, crops: photos.Crops) -> Image.Image:
        """Something to look at."""


def tiled(images: Tensor, rows: int) -> Tensor:
    """Images [rows * columns, 3, H, W] side by side, as uint8 [rows * H, columns * W, 3]."""
    tiles = photos.to_uint8(images).cpu().unflatten(0, (rows, -1)).transpose(1, 2)
    return tiles.flatten(2, 3).flatten(0, 1)


def sheet(parts: list[Tensor], scale: int = 3) -> Image.Image:
    """Equally high uint8 pictures [H, W, 3] beside each other, white between them, enlarged."""
    gap = torch.full((len(parts[0]), 4, 3), 255, dtype=torch.uint8)
    joined = Image.fromarray(torch.cat([piece for part in parts for piece in (part, gap)][:-1], dim=1).numpy())
    return joined.resize((joined.width * scale, joined.height * scale), Image.Resampling.NEAREST)
