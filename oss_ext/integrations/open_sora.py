"""hpcaitech/Open-Sora 1.2 (tag v1.2.0): STDiT3 with rectified flow.

    model = open_sora.denoiser(net, guidance=7.0, null={"y": null})
    shift = open_sora.shift(num_frames=51, height=426, width=240)
    result = oss_ext.dp_search(model, noise, grid=f"flow:shift={shift}", cond=cond, batch_size=1)

net(x, timestep, y, mask, fps, height, width) -> [n, 2C, F, H, W]: x0 - eps, the other sign than here, then a variance,
which is dropped; timestep is 1000 times the flow time. noise: [B, 4, F, H, W] latents.
cond: what `text_encoder.encode` and `prepare_multi_resolution_info` return: y [B, 1, L, 4096], mask [B, L], height,
width, fps [B] (num_frames and ar are ignored by the network, and may stay). Frames given as a condition (x_mask) are
not supported: they stand still while others move.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from oss_ext.integrations.guidance import guided
from oss_ext.integrations.outputs import prediction
from oss_ext.integrations.timed_flow import TimedFlowModel


def denoiser(net: Any, *, guidance: float | None = 7.0, null: Mapping[str, Tensor] | None = None) -> TimedFlowModel:
    """The Denoiser of an STDiT3; see the module.

    guidance: with null {"y": [1, 1, L, 4096]}, the repository's `text_encoder.null(1)`: one pass, of 2n rows.
        None: of n rows.
    """

    def network(x: Tensor, timestep: Tensor, **cond: Tensor) -> Tensor:
        return -prediction(net(x, timestep, **cond), x)

    return TimedFlowModel(guided(network, guidance, null=null))


def shift(num_frames: int, height: int, width: int, *, scale: float = 1.0) -> float:
    """The ratio of the repository's `timestep_transform`, from frames and pixels of the video: the shift of grid
    "flow"."""
    latent_frames = 1 if num_frames == 1 else num_frames // 17 * 5
    return scale * math.sqrt(height * width / 512**2) * math.sqrt(latent_frames)
