"""Real diffusers pipelines with tiny random weights, without text encoders: embeddings are given.

Each says how its loop calls its network, so that a plain model beside it can do the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from helpers.tiny_parts import (
    BATCH,
    SD,
    Tiny,
    embeds,
    guided,
    halves,
    image_unet,
    image_vae,
    lively,
    per,
    two_by_two,
    two_prompts,
    video_vae,
)
from torch import Tensor


def stable_diffusion(scheduler: Any = None, scale: float = 3.0, pipeline: Any = None, **more: Any) -> Tiny:
    unet = image_unet()
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
    text, negative = (prompts := two_prompts()).values()
    return Tiny(
        pipe,
        {**prompts, "guidance_scale": scale, "output_type": "latent", **more},
        (BATCH, 4, 8, 8),
        guided(scale, lambda x, t: unet(x, t, encoder_hidden_states=halves(x, negative, text), return_dict=False)[0]),
    )


def stable_diffusion_xl() -> Tiny:
    unet = image_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 6,
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
    call = {**call, "guidance_scale": 3.5, **more}
    return Tiny(pipe, call, (BATCH, 16, 16), run, drawn=(BATCH, 4, 8, 8), pack=two_by_two)


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
    scheduler = scheduler or diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.WanPipeline(None, None, video_vae(), scheduler, network)
    text, negative = (prompts := two_prompts()).values()

    def run(x: Tensor, t: Tensor) -> Tensor:
        with_ = network(hidden_states=x, timestep=t, encoder_hidden_states=per(x, text), return_dict=False)[0]
        without = network(hidden_states=x, timestep=t, encoder_hidden_states=per(x, negative), return_dict=False)[0]
        return without + scale * (with_ - without)

    call = {**prompts, "guidance_scale": scale, "num_frames": 9}
    return Tiny(pipe, {**call, "height": 32, "width": 32, "output_type": "latent"}, (BATCH, 4, 3, 4, 4), run)


PIPELINES: dict[str, Callable[[], Tiny]] = {
    "StableDiffusionPipeline": stable_diffusion,
    "StableDiffusionXLPipeline": stable_diffusion_xl,
    "DiTPipeline": dit,
    "FluxPipeline": flux,
    "WanPipeline": wan,
}
