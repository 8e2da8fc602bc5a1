"""What the networks of these repositories return beside the prediction, taken off."""

from __future__ import annotations

from torch import Tensor


def prediction(out: Tensor, x: Tensor) -> Tensor:
    """The first C of C or 2C channels (the rest is a learned variance, which no deterministic sampler reads), in the
    dtype of x [n, C, ...]. Raises ValueError for another number of channels."""
    channels = x.shape[1]
    if out.ndim != x.ndim or out.shape[1] not in (channels, 2 * channels):
        raise ValueError(
            f"network: returned {list(out.shape)} for {list(x.shape)}, wanted {channels} or {2 * channels} channels"
        )
    return out[:, :channels].to(x.dtype)
