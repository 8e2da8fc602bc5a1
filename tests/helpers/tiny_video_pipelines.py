"""Tiny pipelines of videos, as in `tiny_pipelines`."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from helpers.tiny_parts import BATCH, SD, Tiny, embeds, guided, halves, lively, per, tokens, two_prompts
from torch import Tensor


def ltx() -> Tiny:
    network = lively(
        diffusers.LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=1,
            caption_channels=8,
        )
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    pipe = diffusers.LTXPipeline(scheduler, vae, None, None, network)
    pipe.vae_spatial_compression_ratio, pipe.vae_temporal_compression_ratio = 8, 8
    text, mask = embeds(BATCH, 3, 8), torch.ones(BATCH, 3)

    def run(x: Tensor, t: Tensor) -> Tensor:
        return network(
            hidden_states=x,
            encoder_hidden_states=per(x, text),
            timestep=t,
            encoder_attention_mask=per(x, mask),
            num_frames=2,
            height=4,
            width=4,
            rope_interpolation_scale=(8 / 25, 8, 8),
            return_dict=False,
        )[0]

    call = {"prompt_embeds": text, "prompt_attention_mask": mask, "guidance_scale": 1.0, "num_frames": 9}
    call = {**call, "height": 32, "width": 32, "output_type": "latent"}
    return Tiny(pipe, call, (BATCH, 32, 8), run, drawn=(BATCH, 8, 2, 4, 4), pack=tokens)


def cogvideox() -> Tiny:
    network = lively(
        diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=4,
            text_embed_dim=8,
            num_layers=1,
            sample_width=4,
            sample_height=4,
            sample_frames=9,
            patch_size=2,
            temporal_compression_ratio=4,
            max_text_seq_length=3,
        )
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler(
        **SD, prediction_type="v_prediction", snr_shift_scale=3.0, rescale_betas_zero_snr=True
    )
    pipe = diffusers.CogVideoXPipeline(None, None, vae, network, scheduler)
    text, negative = (prompts := two_prompts()).values()

    def run(x: Tensor, t: Tensor) -> Tensor:
        return network(hidden_states=x, encoder_hidden_states=halves(x, negative, text), timestep=t, return_dict=False)[
            0
        ]

    call = {**prompts, "guidance_scale": 2.0, "num_frames": 9}
    return Tiny(
        pipe,
        {**call, "height": 32, "width": 32, "output_type": "latent"},
        (BATCH, 3, 4, 4, 4),
        guided(2.0, run),
    )


def hunyuan_video() -> Tiny:
    network = lively(
        diffusers.HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=1,
            text_embed_dim=8,
            pooled_projection_dim=6,
            rope_axes_dim=(2, 4, 4),
        )
    )
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    pipe = diffusers.HunyuanVideoPipeline(None, None, network, vae, scheduler, None, None)
    text, mask, pooled = embeds(BATCH, 3, 8), torch.ones(BATCH, 3), embeds(BATCH, 6, seed=3)

    def run(x: Tensor, t: Tensor) -> Tensor:
        return network(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=per(x, text),
            encoder_attention_mask=per(x, mask),
            pooled_projections=per(x, pooled),
            guidance=torch.full([len(x)], 6000.0, device=x.device),
            return_dict=False,
        )[0]

    call = {"prompt_embeds": text, "pooled_prompt_embeds": pooled, "prompt_attention_mask": mask, "num_frames": 9}
    call |= {"guidance_scale": 6.0, "height": 32, "width": 32, "output_type": "latent"}
    return Tiny(pipe, call, (BATCH, 4, 3, 4, 4), run)


PIPELINES = {
    "LTXPipeline": ltx,
    "CogVideoXPipeline": cogvideox,
    "HunyuanVideoPipeline": hunyuan_video,
}


def mochi() -> Any:
    """Mochi, whose noise levels run upwards: (pipe, arguments of its call)."""
    network = lively(
        diffusers.MochiTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            pooled_projection_dim=8,
            in_channels=4,
            text_embed_dim=8,
            time_embed_dim=4,
        )
    )
    vae = torch.nn.Linear(1, 1)  # latents come back as they are
    vae.device, vae.dtype = torch.device("cpu"), torch.float32
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    pipe = diffusers.MochiPipeline(scheduler, vae, None, None, network)
    call = {
        **two_prompts(),
        "prompt_attention_mask": torch.ones(BATCH, 3, dtype=torch.bool),
        "negative_prompt_attention_mask": torch.ones(BATCH, 3, dtype=torch.bool),
        "guidance_scale": 2.0,
        "height": 32,
        "width": 32,
        "num_frames": 7,
        "output_type": "latent",
    }
    return pipe, call
