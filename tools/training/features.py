"""Training of the classifier whose features measure distances between sets of pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from training import tasks

if TYPE_CHECKING:
    from oss_ext.zoo import classifier, photos
else:
    import classifier
    import photos


def recoloured(images: Tensor, generator: torch.Generator) -> Tensor:
    """``images`` [n, 3, H, W] with the contrast of every channel changed by up to a third and its mean by up to 0.15.

    Otherwise the mean colour alone would tell most classes, and the features would hold little else.
    """
    gain, shift = torch.rand(2, len(images), 3, 1, 1, generator=generator, device=images.device) * 2.0 - 1.0
    mean = images.mean(dim=(2, 3), keepdim=True)
    return ((images - mean) * torch.exp(0.3 * gain) + mean + 0.15 * shift).clamp(-1.0, 1.0)


class Features(tasks.Task):
    """``photo32_features``: which photograph, and from which of 4 x 4 places in it. The crops carry no noise."""

    seed = 20250402

    def build(self) -> classifier.Classifier:
        return classifier.Classifier(classifier.ClassifierConfig(classes=len(photos.PHOTOS)))

    def draw(
        self, count: int, model: classifier.Classifier, crops: photos.Crops, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Crops, their photographs and their places."""
        boxes = crops.draw_boxes(count, generator)
        return crops.cut(boxes), boxes.label, crops.cells(boxes, model.config.places)

    def loss(
        self,
        model: classifier.Classifier,
        forward: Callable[..., Tensor],
        crops: photos.Crops,
        generator: torch.Generator,
    ) -> Tensor:
        images, label, place = self.draw(self.arguments.batch, model, crops, generator)
        return model.loss(forward(recoloured(images, generator)), label, place)

    @torch.no_grad()
    def validate(self, model: classifier.Classifier, crops: photos.Crops) -> dict[str, Any]:
        """On unchanged crops: the loss, and the shares whose photograph, and whose photograph and place, are right."""
        generator = torch.Generator(crops.device).manual_seed(tasks.VALIDATION_SEED)
        images, label, place = self.draw(10 * self.arguments.validation, model, crops, generator)
        features = model(images)
        photograph, both = model.logits(features)
        right = both.argmax(dim=1) == label * model.config.places**2 + place
        return {
            "validation": float(model.loss(features, label, place)),
            "photograph_right": float((photograph.argmax(dim=1) == label).float().mean()),
            "place_right": float(right.float().mean()),
        }

    def record(self) -> dict[str, Any]:
        return {
            "prediction": "photograph, and place among 4 x 4 in it, of a 32x32 crop",
            "augmentation": "contrast of each channel by exp(+-0.3), its mean by +-0.15",
        }

    @torch.no_grad()
    def picture(self, model: classifier.Classifier, crops: photos.Crops) -> Image.Image:
        """A row a class: two crops, each before the 8 of the pool whose features are nearest to its own."""
        generator = torch.Generator(crops.device).manual_seed(tasks.SHEET_SEED)
        real, label, _ = self.draw(self.arguments.pool, model, crops, generator)
        known = torch.cat([model(images) for images in real.split(4096)])
        parts = []
        for index in range(2):
            asked = torch.stack([(label == k).nonzero()[index, 0] for k in range(len(photos.PHOTOS))])
            nearest = torch.cdist(known[asked], known).topk(9, largest=False).indices  # itself is the first
            parts.append(tasks.tiled(real[nearest.flatten()], len(asked)))
        return tasks.sheet(parts)
