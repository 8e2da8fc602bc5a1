"""What a cell's samples are measured by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from oss_ext.compare.case import Case
from oss_ext.compare.cells import Cell
from oss_ext.metrics_images import features_of, frechet_distance, kernel_distance, ssim

HIGHEST = 150.0  # dB; of equal samples, whose PSNR is infinite
SUBSETS = 10  # of kernel distances: there are many cells
WINDOW = 11  # pixels that SSIM wants


@dataclass(eq=False)
class Features:
    """Distribution distances in the features of a network.

    name: what cells call it. network: images [B, C, H, W] in [-1, 1] -> [B, ...]. real: images of the data, on any
    device, where there are some. Features of a reference are computed once.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    real: Tensor | None = None
    _known: dict[str, Tensor] = field(default_factory=dict)

    def references(self, case: Case) -> dict[str, Tensor]:
        key = f"teacher of {case.subject.title}"
        if key not in self._known:
            self._known[key] = features_of(images_of(case, case.teacher), self.network)
        found = {"teacher": self._known[key]}
        if self.real is not None:
            if "real" not in self._known:
                self._known["real"] = features_of(self.real.to(case.device, case.noise.dtype), self.network)
            found["real"] = self._known["real"]
        return found

    def distances(self, case: Case, images: Tensor) -> dict[str, list[float]]:
        """{reference: [Frechet distance, kernel distance, the kernel distance's spread over subsets]}."""
        own = features_of(images, self.network)
        found = {}
        for name, reference in self.references(case).items():
            found[name] = [frechet_distance(own, reference), *kernel_distance(own, reference, subsets=SUBSETS)]
        return found


def images_of(case: Case, samples: Tensor) -> Tensor:
    """The samples as images, decoded where the subject says how."""
    decode = case.subject.decode
    if decode is None:
        return samples
    with torch.no_grad():
        return torch.cat([decode(part) for part in samples.split(16)])


def is_picture(images: Tensor) -> bool:
    return images.ndim == 4 and images.shape[1] in (1, 3) and min(images.shape[-2:]) >= WINDOW


def measured(cell: Cell, case: Case, samples: Tensor, features: Features | None) -> Cell:
    """The cell with its samples measured; those of the first held-out noises alone get no distances."""
    reference = case.teacher[: len(samples)]
    update: dict[str, object] = {"psnr": case.score(samples).clamp(max=HIGHEST).tolist()}
    images = images_of(case, samples)
    if is_picture(images):
        update["ssim"] = ssim(images, images_of(case, reference)).cpu().double().tolist()
        if features is not None and len(samples) == len(case.noise):
            update["distances"] = {**cell.distances, features.name: features.distances(case, images)}
    return cell.model_copy(update=update)
