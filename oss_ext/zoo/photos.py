"""Training data of the bundled model: random crops of nine photographs that scikit-image and scikit-learn ship.

PHOTOS.md beside this file states the source and the licence of each. Nothing is downloaded: the files are inside the
two installed packages. One photograph is one class.

A crop is a square of random place and size, brought to 32x32 by exact area averaging. With a summed-area table (Crow,
SIGGRAPH 1984) the mean of any box, at any fractional place and size, comes from its four corners; a whole batch is made
on the training device with a few gathers.

This file imports numpy and torch only (the two packages lazily), as ``network.py`` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SIDE = 32
"""Side of a crop after resampling, pixels."""


def _skimage(name: str) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        import skimage.data

        return getattr(skimage.data, name)()

    return read


def _sklearn(name: str) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        from sklearn.datasets import load_sample_image

        return load_sample_image(name)

    return read


@dataclass(frozen=True)
class Photo:
    """One photograph.

    Args:
        name: the class name.
        read: returns uint8 [height, width, 3].
        source: who made it, or where it comes from.
        licence: the terms under which the two packages ship it.
        upright: whether the picture has an up direction; without one, crops are flipped vertically too.
    """

    name: str
    read: Callable[[], np.ndarray]
    source: str
    licence: str
    upright: bool = True


PHOTOS = (
    Photo("astronaut", _skimage("astronaut"), "NASA Great Images", "public domain"),
    Photo("coffee", _skimage("coffee"), "Rachel Michetti, courtesy of Pikolo Espresso Bar", "CC0"),
    Photo("chelsea", _skimage("chelsea"), "Stefan van der Walt", "CC0"),
    Photo("rocket", _skimage("rocket"), "SpaceX Photos, DSCOVR launch", "public domain"),
    Photo("hubble", _skimage("hubble_deep_field"), "NASA, HubbleSite 2012/37", "public domain", upright=False),
    Photo(
        "ihc",
        _skimage("immunohistochemistry"),
        "Center for Microscopy and Molecular Imaging (CMMI)",
        "no known copyright restrictions",
        upright=False,
    ),
    Photo("retina", _skimage("retina"), "Mikael Häggström, Wikimedia Commons", "CC0 1.0"),
    Photo("china", _sklearn("china.jpg"), "danielbuechele, Flickr 6061409035", "CC BY 2.0"),
    Photo("flower", _sklearn("flower.jpg"), "vultilion, Flickr 6056698931", "CC BY 2.0"),
)
"""The classes, in the order of their labels."""


def class_names() -> list[str]:
    """The nine class names, in the order of their labels."""
    return [photo.name for photo in PHOTOS]


@dataclass(frozen=True)
class Boxes:
    """Where crops are taken; every field is a [batch] tensor.

    Args:
        label: int64, which photograph.
        top, left: float64, the upper left corner, pixels of the photograph.
        side: float64, the side, pixels of the photograph.
        flip_x, flip_y: bool, mirrored left to right, top to bottom.
    """

    label: Tensor
    top: Tensor
    left: Tensor
    side: Tensor
    flip_x: Tensor
    flip_y: Tensor


class Crops:
    """Random 32x32 crops of the photographs.

    The side of a crop is drawn log-uniformly between max(64, short / 8) and short / 2 pixels of a photograph whose
    short side is ``short``, so a crop pixel averages at least two by two pixels. A box lies inside its photograph.

    Args:
        device: where the tables live and crops are made; about 110 MB in float64, because a float32 sum over a
            photograph of two million pixels would be off by more than the small boxes hold.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        tables, offsets, total = [], [], 0
        images = [np.asarray(photo.read()) for photo in PHOTOS]
        for photo, image in zip(PHOTOS, images, strict=True):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise ValueError(f"photograph {photo.name}: wanted uint8 [H, W, 3], got {image.dtype} {image.shape}")
            table = np.zeros((image.shape[0] + 1, image.shape[1] + 1, 3))
            table[1:, 1:] = (image / 127.5 - 1.0).cumsum(0).cumsum(1)
            tables.append(torch.from_numpy(table).reshape(-1, 3))
            offsets.append(total)
            total += tables[-1].shape[0]
        self._table = torch.cat(tables).to(self.device)
        self._offset = torch.tensor(offsets, device=self.device)
        self._height, self._width = torch.tensor([i.shape[:2] for i in images], device=self.device).unbind(1)
        self._upright = torch.tensor([p.upright for p in PHOTOS], device=self.device)
        short = torch.minimum(self._height, self._width).double()
        self._low = (short / 8).clamp(min=2.0 * SIDE).log()
        self._high = (short / 2).log()

    def draw_boxes(self, count: int, generator: torch.Generator) -> Boxes:
        """``count`` random boxes, classes equally likely; ``generator`` lives on this object's device."""
        label = torch.randint(len(PHOTOS), (count,), generator=generator, device=self.device)
        u = torch.rand(5, count, generator=generator, device=self.device, dtype=torch.float64)
        side = (self._low[label] + u[0] * (self._high - self._low)[label]).exp()
        return Boxes(
            label=label,
            top=u[1] * (self._height[label] - side),
            left=u[2] * (self._width[label] - side),
            side=side,
            flip_x=u[3] < 0.5,
            flip_y=(u[4] < 0.5) & ~self._upright[label],
        )

    def cut(self, boxes: Boxes) -> Tensor:
        """The area averages of ``boxes``: [batch, 3, 32, 32] float32 in [-1, 1]."""
        edge = torch.arange(SIDE + 1, device=self.device, dtype=torch.float64) / SIDE
        y = self._edges(boxes.top, boxes.side, edge, self._height[boxes.label])
        x = self._edges(boxes.left, boxes.side, edge, self._width[boxes.label])
        y0, x0 = y.floor(), x.floor()
        fy, fx = (y - y0)[:, :, None, None], (x - x0)[:, None, :, None]
        # The integral of a piecewise constant image is bilinear between the table's entries: this is exact.
        stride = (self._width[boxes.label] + 1)[:, None, None]
        corner = self._offset[boxes.label][:, None, None] + y0.long()[:, :, None] * stride + x0.long()[:, None, :]
        upper = torch.lerp(self._table[corner], self._table[corner + 1], fx)
        lower = torch.lerp(self._table[corner + stride], self._table[corner + stride + 1], fx)
        integral = torch.lerp(upper, lower, fy)
        area = (boxes.side / SIDE)[:, None, None, None] ** 2
        image = integral.diff(dim=1).diff(dim=2) / area
        image = torch.where(boxes.flip_x[:, None, None, None], image.flip(2), image)
        image = torch.where(boxes.flip_y[:, None, None, None], image.flip(1), image)
        return image.permute(0, 3, 1, 2).float().contiguous()

    def cells(self, boxes: Boxes, side: int) -> Tensor:
        """int64 [batch]: which of ``side * side`` equally likely places, row by row, each box was taken from."""
        height, width = self._height[boxes.label], self._width[boxes.label]
        row = (boxes.top / (height - boxes.side) * side).long().clamp(0, side - 1)
        column = (boxes.left / (width - boxes.side) * side).long().clamp(0, side - 1)
        return row * side + column

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``count`` random crops: images [count, 3, 32, 32] float32 in [-1, 1] and labels [count] int64."""
        boxes = self.draw_boxes(count, generator)
        return self.cut(boxes), boxes.label

    @staticmethod
    def _edges(start: Tensor, side: Tensor, edge: Tensor, extent: Tensor) -> Tensor:
        # A little below the far edge, so that floor() + 1 is still an entry of the table.
        limit = extent[:, None].double() * (1.0 - math.ulp(1.0))
        return torch.minimum(start[:, None] + side[:, None] * edge, limit)


def to_uint8(images: Tensor) -> Tensor:
    """Images [..., 3, H, W] in [-1, 1] as uint8 [..., H, W, 3]; values outside are clipped."""
    return ((images.movedim(-3, -1).float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
