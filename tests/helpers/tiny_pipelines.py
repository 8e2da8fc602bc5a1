"""Real diffusers pipelines with tiny random weights, without text encoders: embeddings are given.

Each says how its loop calls its network, so that a plain model beside it can do the same.
"""

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
    and a timestep [n] before it hands the output to its scheduler. `finish`: the call's
    result, from the final latents."""

    pipe: Any
    call: dict[str, Any]
    shape: tuple[int, ...]
    network: Callable[[Tensor, Tensor], Tensor]
    finish: Callable[[Tensor], Tensor] = lambda latents: latents
    dtype: torch.dtype = torch.float32

    def noise(self, seed: int = 5) -> Tensor:
        """What the pipeline draws with a generator of this seed (all of the above draw their latents first)."""
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed), dtype=self.dtype)

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


def image_vae(channels: int = 4) -> Any:
    return lively(
        diffusers.AutoencoderKL(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=channels,
            norm_num_groups=2,
            sample_size=16,
            shift_factor=0.1,
        )
    )


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


def stable_diffusion(scheduler: Any = None, scale: float = 3.0, pipeline: Any = None, **more: Any) -> Tiny:
    unet = lively(
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
        )
    )
    pipe = (pipeline or diffusers.StableDiffusionPipeline)(
        image_vae(),
        None,
        None,
        unet,
        scheduler or diffusers.PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1),
        None,
        None,
        requires_safety_checker=False,
    )
    text, negative = embeds(BATCH, 3, 8), embeds(BATCH, 3, 8, seed=2)
    call = {"prompt_embeds": text, "negative_prompt_embeds": negative, "guidance_scale": scale, "output_type": "latent"}
    return Tiny(
        pipe,
        {**call, **more},
        (BATCH, 4, 8, 8),
        guided(scale, lambda x, t: unet(x, t, encoder_hidden_states=halves(x, negative, text), return_dict=False)[0]),
    )


def stable_diffusion_xl() -> Tiny:
    unet = lively(
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
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 6,
        )
    )
    pipe = diffusers.StableDiffusionXLPipeline(
        image_vae(), None, None, None, None, unet, diffusers.EulerDiscreteScheduler(**SD), add_watermarker=False
    )
    text, pooled = embeds(BATCH, 3, 8), embeds(BATCH, 6, seed=3)
    ids = torch.tensor([16.0, 16, 0, 0, 16, 16]).repeat(BATCH, 1)
    return Tiny(
        pipe,
        {"prompt_embeds": text, "pooled_prompt_embeds": pooled, "guidance_scale": 1.0, "output_type": "latent"},
        (BATCH, 4, 8, 8),
        lambda x, t: unet(
            x,
            t,
            encoder_hidden_states=per(x, text),
            added_cond_kwargs={"text_embeds": per(x, pooled), "time_ids": per(x, ids)},
            return_dict=False,
        )[0],
    )


def dit(scheduler: Any = None, scale: float = 4.0) -> Tiny:
    network = lively(
        diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            sample_size=8,
            num_embeds_ada_norm=1000,
        )
    )
    vae = image_vae()
    pipe = diffusers.DiTPipeline(network, vae, scheduler or diffusers.DDIMScheduler(clip_sample=False))
    labels = torch.tensor([3, 7])

    def run(x: Tensor, t: Tensor) -> Tensor:
        both = torch.cat([per(x, labels), torch.full([len(x)], 1000, device=x.device)])
        with_, without = network(torch.cat([x] * 2), timestep=torch.cat([t] * 2), class_labels=both).sample.chunk(2)
        return (without + scale * (with_ - without))[:, :4]

    return Tiny(
        pipe,
        {"class_labels": labels.tolist(), "guidance_scale": scale, "output_type": "np"},
        (BATCH, 4, 8, 8),
        run,
        lambda x: (vae.decode(x / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1),
    )


def flux(pipeline: Any = None, dynamic: bool = True, **more: Any) -> Tiny:
    network = lively(
        diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            pooled_projection_dim=6,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
        )
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)
    pipe = (pipeline or diffusers.FluxPipeline)(scheduler, image_vae(), None, None, None, None, network)
    text, pooled = embeds(BATCH, 3, 8), embeds(BATCH, 6, seed=3)
    ids = torch.zeros(16, 3)
    ids[:, 1], ids[:, 2] = torch.arange(4).repeat_interleave(4), torch.arange(4).repeat(4)

    def run(x: Tensor, t: Tensor) -> Tensor:
        return network(
            hidden_states=x,
            timestep=t / 1000,
            guidance=torch.full([len(x)], 3.5, device=x.device),
            pooled_projections=per(x, pooled),
            encoder_hidden_states=per(x, text),
            txt_ids=torch.zeros(3, 3).to(x),
            img_ids=ids.to(x),
            return_dict=False,
        )[0]

    call = {"prompt_embeds": text, "pooled_prompt_embeds": pooled, "height": 16, "width": 16, "output_type": "latent"}
    made = Tiny(pipe, {**call, "guidance_scale": 3.5, **more}, (BATCH, 16, 16), run)

    def noise(seed: int = 5) -> Tensor:
        drawn = torch.randn(BATCH, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=made.dtype)
        return drawn.view(BATCH, 4, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(BATCH, 16, 16)

    made.noise = noise  # type: ignore[method-assign]
    return made


def wan(scheduler: Any = None, scale: float = 2.0) -> Tiny:
    network = lively(
        diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=8,
            freq_dim=16,
            ffn_dim=16,
            num_layers=1,
            rope_max_seq_len=16,
        )
    )
    vae = diffusers.AutoencoderKLWan(base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    scheduler = scheduler or diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.WanPipeline(None, None, vae, scheduler, network)
    text, negative = embeds(BATCH, 3, 8), embeds(BATCH, 3, 8, seed=2)

    def run(x: Tensor, t: Tensor) -> Tensor:
        with_ = network(hidden_states=x, timestep=t, encoder_hidden_states=per(x, text), return_dict=False)[0]
        without = network(hidden_states=x, timestep=t, encoder_hidden_states=per(x, negative), return_dict=False)[0]
        return without + scale * (with_ - without)

    call = {"prompt_embeds": text, "negative_prompt_embeds": negative, "guidance_scale": scale, "num_frames": 9}
    return Tiny(pipe, {**call, "height": 32, "width": 32, "output_type": "latent"}, (BATCH, 4, 3, 4, 4), run)


PIPELINES: dict[str, Callable[[], Tiny]] = {
    "StableDiffusionPipeline": stable_diffusion,
    "StableDiffusionXLPipeline": stable_diffusion_xl,
    "DiTPipeline": dit,
    "FluxPipeline": flux,
    "WanPipeline": wan,
}
