"""How near pictures come in structure, and how near two sets of them are. Needs the extra "demo" (torchmetrics)."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

SUBSETS = 50  # of KID


@torch.no_grad()
def ssim(images: Tensor, reference: Tensor, *, data_range: float = 2.0) -> Tensor:
    """Structural similarity of every picture, at most 1 (Wang et al. 2004: Gaussian window of 11 pixels, 1.5 wide).

    images, reference: floating [B, C, H, W] of one shape, H and W at least 11. data_range: as for `psnr`.
    Returns float32 [B]. Raises ValueError; ImportError without torchmetrics.
    """
    if images.ndim != 4 or images.shape != reference.shape or min(images.shape[-2:]) < 11:
        raise ValueError(
            f"images, reference: got shapes {list(images.shape)} and {list(reference.shape)}, wanted one shape "
            "[B, C, H, W] of at least 11 x 11 pixels"
        )
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise ImportError(f'ssim needs torchmetrics ({error}): pip install "oss-ext[demo]"') from error
    found = structural_similarity_index_measure(
        images.float(), reference.float(), data_range=float(data_range), reduction="none"
    )
    assert isinstance(found, Tensor)
    return found.reshape(len(images))


@torch.no_grad()
def features_of(images: Tensor, network: Callable[[Tensor], Tensor], *, batch_size: int = 256) -> Tensor:
    """float32 [B, F] on the CPU: what `network` makes of images [B, C, H, W], flattened.

    Raises ValueError where it gives another number of rows, or NaN or inf.
    """
    found = torch.cat([network(part).reshape(len(part), -1).float().cpu() for part in images.split(batch_size)])
    if len(found) != len(images) or not bool(torch.isfinite(found).all()):
        raise ValueError(f"features: got {list(found.shape)} for {len(images)} images, wanted finite [B, F]")
    return found


class _Known(nn.Module):
    """Hands on features that are computed already."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.num_features = count

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Frechet distance of two sets of features (Heusel et al., arXiv 1706.08500): FID, with Inception's.

    features, reference: [B, F] and [R, F], at least two rows each. Few rows bias it upwards: compare only distances of
    as many. Raises ValueError; ImportError without torchmetrics.
    """
    _check(features, reference)
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise ImportError(f'frechet_distance needs torchmetrics ({error}): pip install "oss-ext[demo]"') from error
    metric = FrechetInceptionDistance(feature=_Known(features.shape[1]))
    metric.update(reference.double().cpu(), real=True)
    metric.update(features.double().cpu(), real=False)
    return float(metric.compute())


def kernel_distance(features: Tensor, reference: Tensor, *, subsets: int = SUBSETS) -> tuple[float, float]:
    """Kernel distance of two sets of features (Binkowski et al., arXiv 1801.01401): KID, with Inception's; unbiased.

    features, reference: [B, F] and [R, F]. Over `subsets` random halves of the smaller set (of at most 1000 rows), the
    same ones every time. Returns the mean over them and their standard deviation.
    Raises ValueError; ImportError without torchmetrics.
    """
    _check(features, reference)
    try:
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError as error:
        raise ImportError(f'kernel_distance needs torchmetrics ({error}): pip install "oss-ext[demo]"') from error
    size = max(2, min(1000, min(len(features), len(reference)) // 2))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features
        torch.manual_seed(0)
        metric = KernelInceptionDistance(feature=_Known(features.shape[1]), subsets=subsets, subset_size=size)
        metric.update(reference.double().cpu(), real=True)
        metric.update(features.double().cpu(), real=False)
        mean, spread = metric.compute()
    return float(mean), float(spread)


def _check(features: Tensor, reference: Tensor) -> None:
    for name, value in (("features", features), ("reference", reference)):
        if value.ndim != 2 or len(value) < 2:
            raise ValueError(f"{name}: got shape {list(value.shape)}, wanted [B, F] with B >= 2")
    if features.shape[1] != reference.shape[1]:
        raise ValueError(f"reference: got {reference.shape[1]} features, wanted {features.shape[1]}")
