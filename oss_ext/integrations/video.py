"""Cost weights that look at a part of a video's latents.

weight = video.cost_weight(noise.shape[1:], frames=4).to(noise.device)
result = oss_ext.dp_search(model, noise, weight=weight, cond=cond)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from oss_ext.validate import whole_number


def cost_weight(
    shape: Sequence[int], *, frames: int | Sequence[int] | None = None, channels: int | Sequence[int] | None = None
) -> Tensor:
    """float32 of `shape` (C, F, H, W): zero off the chosen frames and channels, elsewhere such that the mean is 1: a
    weighted cost is then the mean over what was chosen.

    frames, channels: which, by number from 0; a count: that many, evenly spread, both ends included; None: all. The
    published search (arXiv 2503.21774) takes 4 frames of Wan 2.1, and 6 frames and 4 channels of Open-Sora 1.2.
    """
    if len(shape) != 4:
        raise ValueError(f"shape: got {list(shape)}, wanted (channels, frames, height, width)")
    weight = torch.zeros(tuple(shape), dtype=torch.float32)
    rows = _chosen("channels", channels, shape[0])
    columns = _chosen("frames", frames, shape[1])
    weight[rows[:, None], columns[None, :]] = (shape[0] * shape[1]) / (len(rows) * len(columns))
    return weight


def _chosen(name: str, which: int | Sequence[int] | None, of: int) -> Tensor:
    if which is None:
        return torch.arange(of)
    if isinstance(which, Sequence):
        numbers = [whole_number(name, value, least=0, most=of - 1) for value in which]
        if not numbers or len(set(numbers)) != len(numbers):
            raise ValueError(f"{name}: got {numbers}, wanted at least one number, each once")
        return torch.tensor(numbers)
    count = whole_number(name, which, least=1, most=of)
    return torch.linspace(0, of - 1, count, dtype=torch.float64).round().long()
