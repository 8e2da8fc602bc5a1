"""black-forest-labs/flux: FLUX.1 dev, schnell, Krea, Fill, Canny, Depth, Kontext.

    model = flux.denoiser(net, guidance=3.5)
    noise = torch.randn(B, seq_len, 64, dtype=torch.bfloat16)
    result = oss_ext.dp_search(model, noise, grid=f"flow:shift={flux.shift(seq_len)}", cond=cond)

net(img, img_ids, txt, txt_ids, timesteps, y, guidance) -> eps - x0; timesteps is flow time itself, in the dtype of img:
in bfloat16 the network is told multiples of 1/256 near 1, as by the repository's `denoise`.
noise: packed latents [B, seq_len, 64] (2 x 2 patches of 16 channels: seq_len = height / 16 * width / 16 in pixels).
cond: what the repository's `prepare` returns but "img": img_ids [B, seq_len, 3], txt [B, L, 4096], txt_ids [B, L, 3],
vec [B, 768]; those of a picture to edit where there is one: img_cond [B, seq_len, C], which joins the channels, or
img_cond_seq [B, M, 64] with img_cond_seq_ids [B, M, 3], which join the sequence. cond["guidance"] [B] takes the place
of `guidance`. Guidance is distilled into the network: one evaluation is one pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from oss_ext.models import FlowModel


def denoiser(net: Any, *, guidance: float | None = 3.5) -> FlowModel:
    """The Denoiser of a Flux; see the module. guidance: None for a network without guidance embedding (schnell)."""

    def fn(
        x: Tensor,
        t: Tensor,
        img_ids: Tensor,
        txt: Tensor,
        txt_ids: Tensor,
        vec: Tensor,
        img_cond: Tensor | None = None,
        img_cond_seq: Tensor | None = None,
        img_cond_seq_ids: Tensor | None = None,
        guidance: Tensor | float | None = guidance,
    ) -> Tensor:
        tokens = x
        if img_cond is not None:
            tokens = torch.cat([tokens, img_cond], -1)
        if (img_cond_seq is None) != (img_cond_seq_ids is None):
            raise ValueError("cond: wanted both of img_cond_seq and img_cond_seq_ids, or neither")
        if img_cond_seq is not None and img_cond_seq_ids is not None:
            tokens, img_ids = torch.cat([tokens, img_cond_seq], 1), torch.cat([img_ids, img_cond_seq_ids], 1)
        strength = None
        if guidance is not None:
            strength = torch.as_tensor(guidance, dtype=x.dtype, device=x.device).expand(len(x))
        out: Tensor = net(
            img=tokens,
            img_ids=img_ids,
            txt=txt,
            txt_ids=txt_ids,
            y=vec,
            timesteps=t.to(x.dtype),
            guidance=strength,
        )
        return out[:, : x.shape[1]].to(x.dtype)

    return FlowModel(fn)


def shift(image_seq_len: int, *, base_shift: float = 0.5, max_shift: float = 1.15) -> float:
    """e^mu of the repository's `get_schedule`, mu linear from base_shift at 256 tokens to max_shift at 4096: the shift
    of grid "flow". schnell is not shifted: 1."""
    return math.exp(base_shift + (max_shift - base_shift) * (image_seq_len - 256) / (4096 - 256))
