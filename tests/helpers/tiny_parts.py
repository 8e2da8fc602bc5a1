"""What the tiny pipelines are made of: seeded weights, given embeddings, decoders, and how their loops guide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

BATCH = 2


@dataclass
class Tiny:
    """pipe, the arguments of its call, the shape of its loop's latents [BATCH, ...], and what its loop makes of latents
    and a timestep [n] before it hands the output to its scheduler. finish: the call's result, from the final latents.
    drawn: the shape of its noise, where the loop's latents are those numbers in another order, that of `pack`."""

    pipe: Any
    call: dict[str, Any]
    shape: tuple[int, ...]
    network: Callable[[Tensor, Tensor], Tensor]
    finish: Callable[[Tensor], Tensor] = lambda latents: latents
    dtype: torch.dtype = torch.float32
    drawn: tuple[int, ...] = ()
    pack: Callable[[Tensor], Tensor] = lambda drawn: drawn

    def noise(self, seed: int = 5) -> Tensor:
        """What the pipeline draws with a generator of this seed (all of the above draw their latents first)."""
        generator = torch.Generator().manual_seed(seed)
        return self.pack(torch.randn(self.drawn or self.shape, generator=generator, dtype=self.dtype))

    def to(self, where: torch.device | torch.dtype) -> Tiny:
        """The pipe and the floating tensors of its call; on a device or in a dtype."""
        self.pipe.to(where)
        for key, value in self.call.items():
            if isinstance(value, Tensor) and (value.is_floating_point() or isinstance(where, torch.device)):
                self.call[key] = value.to(where)
        return self

    def __call__(self, seed: int = 5, **more: Any) -> Tensor:
        arguments = {**self.call, "generator": torch.Generator().manual_seed(seed), **more}
        out = self.pipe(**arguments, return_dict=False)[0]
        if isinstance(out, list):
            return torch.stack(out)
        return out if isinstance(out, Tensor) else torch.as_tensor(out)


def lively(network: torch.nn.Module, seed: int = 0) -> Any:
    """Seeded weights, none of them zero, large enough for time and state to matter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 100
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1.2 / fan**0.5))
    return network.eval().requires_grad_(False)


def per(x: Tensor, given: Tensor) -> Tensor:
    """What belongs to the samples, for inputs [BATCH * n, ...] that come sample by sample."""
    dtype = x.dtype if given.is_floating_point() else given.dtype
    return given.repeat_interleave(len(x) // len(given), 0).to(x.device, dtype)


def embeds(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def two_prompts() -> dict[str, Tensor]:
    """Embeddings [BATCH, 3, 8] of a prompt and of a negative one, as the pipelines' arguments."""
    return {"prompt_embeds": embeds(BATCH, 3, 8), "negative_prompt_embeds": embeds(BATCH, 3, 8, seed=2)}


def image_vae(kind: Any = diffusers.AutoencoderKL, **more: Any) -> Any:
    """Twice the size of its latents, of 4 channels."""
    more = more or {"shift_factor": 0.1}
    return lively(
        kind(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=2,
            sample_size=16,
            **more,
        )
    )


def video_vae() -> Any:
    """Wan's: 8 times the size of its latents and 4 times their frames, of 4 channels."""
    return diffusers.AutoencoderKLWan(base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def image_unet(**more: Any) -> Any:
    return lively(
        diffusers.UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=2,
            norm_num_groups=2,
            **more,
        )
    )


def two_by_two(drawn: Tensor) -> Tensor:
    """[BATCH, 16, 16] of [BATCH, (1,) 4, 8, 8]: a token for every four neighbours, channels first."""
    return drawn.view(BATCH, 4, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(BATCH, 16, 16)


def tokens(drawn: Tensor) -> Tensor:
    """[BATCH, n, channels] of [BATCH, channels, ...]: a token for every place."""
    return drawn.flatten(2).transpose(1, 2)


def guided(scale: float, run: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Classifier-free guidance with the negative half first."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        without, with_ = run(torch.cat([x] * 2), torch.cat([t] * 2)).chunk(2)
        return without + scale * (with_ - without)

    return network


def halves(x: Tensor, without: Tensor, with_: Tensor) -> Tensor:
    half = x[: len(x) // 2]
    return torch.cat([per(half, without), per(half, with_)])


SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
