"""Wan-Video/Wan2.1: text to video and image to video, 1.3B and 14B (arXiv 2503.20314).

    model = wan.denoiser(net, guidance=5.0, null={"context": negative})
    result = oss_ext.dp_search(model, noise, grid="flow:shift=5", cond={"context": context}, batch_size=1)

net(x, t, context, seq_len, clip_fea, y) -> eps - x0; x, context, y and what it returns are lists, one entry a sample;
t [n] is 1000 times the flow time. noise: [B, 16, F, H, W] latents, F = (frames - 1) / 4 + 1, H and W an eighth of the
pixels, in float32.
cond: {"context": [B, L, 4096]} text embeddings, filled up with zeros to one L <= 512 (`contexts`), as the network does
itself to 512; for pictures also "clip_fea" [B, 257, 1280] and "y" [B, 20, F, H, W].

The repository's default sampler is solver "unipc_2" along the shifted u = 0.999 (N - i) / N, from the noise itself
(noise_scale=1); its "dpm++" is "dpmpp_2m" on grid "flow:shift=5".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from oss_ext.integrations.guidance import guided
from oss_ext.integrations.timed_flow import TimedFlowModel

SHIFT = 5.0
"""The repository's default; 3 for image to video at 480p."""


def denoiser(
    net: Any,
    *,
    guidance: float | None = 5.0,
    null: Mapping[str, Tensor] | None = None,
    truncate: bool = True,
    autocast: torch.dtype | None = None,
) -> TimedFlowModel:
    """The Denoiser of a WanModel; see the module.

    guidance: with null {"context": [1, L, 4096]}, the embedded negative prompt, L as in cond: two passes an
        evaluation, as the repository's `generate`. None: one pass.
    autocast: torch.bfloat16 on a GPU, as the repository: the network runs under torch.autocast, and nothing else does.
    truncate: timesteps are whole numbers, as in the repository's schedulers; False: the network is told 1000 t itself.
    """

    def network(
        x: Tensor, timestep: Tensor, context: Tensor, clip_fea: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        extra: dict[str, Any] = {} if clip_fea is None else {"clip_fea": clip_fea}
        if y is not None:
            extra["y"] = list(y)
        with torch.autocast(x.device.type, autocast) if autocast else nullcontext():
            out = net(list(x), t=timestep, context=list(context), seq_len=_tokens(x, net.patch_size), **extra)
        return torch.stack(list(out)).to(x.dtype)

    return TimedFlowModel(guided(network, guidance, null=null, together=False), truncate=truncate)


def contexts(embeddings: Sequence[Tensor]) -> Tensor:
    """[B, L, C] of B text embeddings [L_b, C], filled up with zeros to the longest L."""
    return torch.nn.utils.rnn.pad_sequence(list(embeddings), batch_first=True)


def _tokens(x: Tensor, patch: Sequence[int]) -> int:
    """seq_len of latents [n, C, F, H, W]."""
    return math.prod(math.ceil(size / by) for size, by in zip(x.shape[2:], patch, strict=True))
