"""How near samples come to the teacher's. Needs the extra "demo" (torchmetrics)."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(images: Tensor, reference: Tensor, *, data_range: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio of every sample, in dB: 10 log10(data_range^2 / mean squared difference).

    images, reference: floating [B, ...] of one shape and device, at least two dimensions.
    data_range: the width of the data's nominal range; 2 for images in [-1, 1]. Nothing is clipped.

    Returns [B], float64 for float64 inputs and float32 otherwise, right to about 1e-6 dB; +inf where the two are equal.
    Raises TypeError, ValueError; ImportError without torchmetrics.
    """
    for name, value in (("images", images), ("reference", reference)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name}: got {getattr(value, 'dtype', type(value).__name__)}, wanted a floating tensor")
    if images.shape != reference.shape or images.ndim < 2 or images.numel() == 0:
        raise ValueError(
            f"images, reference: got shapes {list(images.shape)} and {list(reference.shape)}, wanted one shape [B, ...]"
        )
    if not data_range > 0:
        raise ValueError(f"data_range: got {data_range}, wanted a positive number")
    try:
        from torchmetrics.functional.image import peak_signal_noise_ratio
    except ImportError as error:
        raise ImportError(f'psnr needs torchmetrics ({error}): pip install "oss-ext[demo]"') from error
    wide = images.to(images.dtype if images.element_size() >= 4 else images.float().dtype)
    return peak_signal_noise_ratio(
        wide.flatten(1), reference.to(wide.dtype).flatten(1), data_range=float(data_range), reduction="none", dim=1
    )


def pooled_psnr(each: Tensor) -> Tensor:
    """PSNR in dB of a set of samples, of the squared error averaged over them all; from their own, [..., B] -> [...].

    This is what the joint search lowers, and torchmetrics' default. It weighs bad samples more than the mean of the
    PSNRs does. All are of one `data_range`.
    """
    return -10 * torch.log10((10 ** (-each.double() / 10)).mean(-1))
