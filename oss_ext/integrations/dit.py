"""facebookresearch/DiT: DiT-XL/2 at 256 and 512 (Peebles and Xie, arXiv 2212.09748).

    model = dit.denoiser(net, cfg_scale=1.5)
    result = oss_ext.dp_search(model, noise, cond={"y": labels}, metadata={"cfg_scale": 1.5})

net(x, t, y) -> [n, 2C, H, W]; its learned variance is dropped. noise: [B, 4, size/8, size/8] latents, to be divided by
0.18215 before the decoder. cond: {"y": int64 [B]} labels. The table is the linear one of 1000 timesteps; its own loop
starts at x_T = noise, see `guided_diffusion`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oss_ext.integrations import guided_diffusion
from oss_ext.integrations.guidance import stack
from oss_ext.models import Denoiser

NULL_LABEL = 1000
"""ImageNet's number of classes: the row of the label table that stands for no label."""


def denoiser(
    net: Any,
    *,
    cfg_scale: float | None = None,
    null_label: int = NULL_LABEL,
    noise_schedule: str | Tensor = "linear",
) -> Denoiser:
    """The Denoiser of a DiT; see the module.

    cfg_scale: None or 1: net.forward, n rows. Else the repository's own `net.forward_with_cfg` on 2n rows, the
        labels and then null_label: it guides the first three channels only, as the published figures do.
    """
    if cfg_scale is not None and not hasattr(net, "forward_with_cfg"):
        raise TypeError(f"net: got {type(net).__name__} without forward_with_cfg, wanted a DiT, or cfg_scale=None")

    def fn(x: Tensor, timestep: Tensor, y: Tensor) -> Tensor:
        if cfg_scale is None or cfg_scale == 1:
            out: Tensor = net(x, timestep, y)
            return out
        x2, timestep2, both = stack(x, timestep, {"y": y}, {"y": torch.full_like(y, null_label)})
        guided: Tensor = net.forward_with_cfg(x2, timestep2, y=both["y"], cfg_scale=cfg_scale)
        return guided[: len(x)]

    return guided_diffusion.denoiser(fn, noise_schedule)
