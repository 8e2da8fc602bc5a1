"""More tiny pipelines, as in `tiny_pipelines`."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from helpers.tiny_parts import (
    BATCH,
    Tiny,
    embeds,
    guided,
    halves,
    image_vae,
    lively,
    per,
    tokens,
    two_by_two,
    two_prompts,
    video_vae,
)
from torch import Tensor


def stable_diffusion_3() -> Tiny:
    network = lively(
        diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=4,
            num_attention_heads=2,
            caption_projection_dim=8,
            joint_attention_dim=8,
            pooled_projection_dim=6,
            pos_embed_max_size=8,
        )
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = diffusers.StableDiffusion3Pipeline(network, scheduler, image_vae(), None, None, None, None, None, None)
    text, negative = (prompts := two_prompts()).values()
    pooled, blank = embeds(BATCH, 6, seed=3), embeds(BATCH, 6, seed=4)

    def run(x: Tensor, t: Tensor) -> Tensor:
        return network(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=halves(x, negative, text),
            pooled_projections=halves(x, blank, pooled),
            return_dict=False,
        )[0]

    call = {
        **prompts,
        "pooled_prompt_embeds": pooled,
        "negative_pooled_prompt_embeds": blank,
        "guidance_scale": 2.0,
        "output_type": "latent",
    }
    return Tiny(pipe, call, (BATCH, 4, 8, 8), guided(2.0, run))


def qwen_image() -> Tiny:
    network = lively(
        diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            axes_dims_rope=(2, 2, 4),
        )
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    pipe = diffusers.QwenImagePipeline(scheduler, vae, None, None, network)
    text, mask = embeds(BATCH, 3, 8), torch.ones(BATCH, 3, dtype=torch.int64)

    def run(x: Tensor, t: Tensor) -> Tensor:
        more = {} if "txt_seq_lens" not in network.forward.__code__.co_varnames else {"txt_seq_lens": [3] * len(x)}
        return network(
            hidden_states=x,
            timestep=t / 1000,
            encoder_hidden_states=per(x, text),
            encoder_hidden_states_mask=per(x, mask),
            img_shapes=[[(1, 4, 4)]] * len(x),
            return_dict=False,
            **more,
        )[0]

    call = {"prompt_embeds": text, "prompt_embeds_mask": mask, "height": 16, "width": 16, "output_type": "latent"}
    return Tiny(pipe, call, (BATCH, 16, 16), run, drawn=(BATCH, 1, 4, 8, 8), pack=two_by_two)


def pixart() -> Tiny:
    network = lively(
        diffusers.PixArtTransformer2DModel(
            sample_size=8,
            num_layers=1,
            patch_size=2,
            attention_head_dim=4,
            num_attention_heads=2,
            caption_channels=8,
            cross_attention_dim=8,
            in_channels=4,
            out_channels=8,
            use_additional_conditions=False,
        )
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True)
    pipe = diffusers.PixArtAlphaPipeline(None, None, image_vae(), network, scheduler)
    text, negative = (prompts := two_prompts()).values()
    mask = torch.ones(BATCH, 3)

    def run(x: Tensor, t: Tensor) -> Tensor:
        return network(
            x,
            encoder_hidden_states=halves(x, negative, text),
            encoder_attention_mask=halves(x, mask, mask),
            timestep=t,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]

    guided_run = guided(3.0, run)
    call: dict[str, Any] = {
        **prompts,
        "prompt_attention_mask": mask,
        "negative_prompt": None,
        "negative_prompt_attention_mask": mask,
        "guidance_scale": 3.0,
        "use_resolution_binning": False,
        "height": 16,
        "width": 16,
        "output_type": "latent",
    }
    return Tiny(pipe, call, (BATCH, 4, 8, 8), lambda x, t: guided_run(x, t)[:, :4])


def sana() -> Tiny:
    network = lively(
        diffusers.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=8,
            sample_size=8,
        )
    )
    vae = diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.SanaPipeline(None, None, vae, network, scheduler)
    text, mask = embeds(BATCH, 3, 8), torch.ones(BATCH, 3)

    def run(x: Tensor, t: Tensor) -> Tensor:
        return network(
            x,
            encoder_hidden_states=per(x, text),
            encoder_attention_mask=per(x, mask),
            timestep=t * network.config.timestep_scale,
            return_dict=False,
        )[0]

    call: dict[str, Any] = {
        "prompt_embeds": text,
        "prompt_attention_mask": mask,
        "negative_prompt": None,
        "guidance_scale": 1.0,
        "use_resolution_binning": False,
        "height": 32,
        "width": 32,
        "output_type": "latent",
    }
    return Tiny(pipe, call, (BATCH, 4, 16, 16), run)


def cosmos() -> Tiny:
    """Cosmos 2: its loop preconditions by itself, with the scheduler's sigmas."""
    network = lively(
        diffusers.CosmosTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            text_embed_dim=8,
            adaln_lora_dim=4,
            max_size=(4, 16, 16),
            patch_size=(1, 2, 2),
            extra_pos_embed_type=None,
            concat_padding_mask=False,  # a mask wants torchvision
        )
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    checker = torch.nn.Linear(1, 1)  # in place of one that is to be downloaded; prompts are not read here
    checker.device, checker.dtype = torch.device("cpu"), torch.float32
    pipe = diffusers.Cosmos2TextToImagePipeline(None, None, network, video_vae(), scheduler, safety_checker=checker)
    text, negative = (prompts := two_prompts()).values()

    def run(x: Tensor, told: Tensor) -> Tensor:
        sigma = (told / 1000).reshape(-1, 1, 1, 1, 1)
        t = sigma / (sigma + 1)

        def denoised(prompt: Tensor) -> Tensor:
            output = network(
                hidden_states=x * (1 - t),
                timestep=t.flatten(),
                encoder_hidden_states=per(x, prompt),
                padding_mask=torch.zeros(1, 1, 32, 32),
                return_dict=False,
            )[0]
            return (1 - t) * x - t * output

        with_ = denoised(text)
        return (x - (with_ + 2.0 * (with_ - denoised(negative)))) / sigma

    call = {**prompts, "guidance_scale": 2.0}
    return Tiny(
        pipe,
        {**call, "height": 32, "width": 32, "output_type": "latent"},
        (BATCH, 4, 1, 4, 4),
        run,
        lambda x: x[:, :, 0],
    )


def flux2() -> Tiny:
    """Flux 2, whose shift depends on how many steps are asked for."""
    network = lively(
        diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            timestep_guidance_channels=16,
            axes_dims_rope=(2, 2, 2, 2),
        )
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    vae = image_vae(diffusers.AutoencoderKLFlux2, batch_norm_eps=1e-4)
    pipe = diffusers.Flux2Pipeline(scheduler, vae, None, None, network)
    text = embeds(BATCH, 3, 8)
    places, words = torch.zeros(16, 4), torch.zeros(3, 4)
    places[:, 1], places[:, 2] = torch.arange(4).repeat_interleave(4), torch.arange(4).repeat(4)
    words[:, 3] = torch.arange(3)

    def run(x: Tensor, t: Tensor) -> Tensor:
        return network(
            hidden_states=x,
            timestep=t / 1000,
            guidance=torch.full([len(x)], 3.5, device=x.device),
            encoder_hidden_states=per(x, text),
            txt_ids=words.to(x),
            img_ids=places.to(x),
            return_dict=False,
        )[0]

    call = {"prompt_embeds": text, "guidance_scale": 3.5, "height": 16, "width": 16, "output_type": "latent"}
    return Tiny(pipe, call, (BATCH, 16, 16), run, drawn=(BATCH, 16, 4, 4), pack=tokens)


PIPELINES = {
    "StableDiffusion3Pipeline": stable_diffusion_3,
    "QwenImagePipeline": qwen_image,
    "PixArtAlphaPipeline": pixart,
    "SanaPipeline": sana,
    "Cosmos2TextToImagePipeline": cosmos,
    "Flux2Pipeline": flux2,
}


def lumina() -> Any:
    """Lumina 2, whose loop turns timesteps and outputs round: (pipe, arguments of its call)."""
    network = lively(
        diffusers.Lumina2Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=24,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=2,
            multiple_of=4,
            axes_dim_rope=(4, 4, 4),
            axes_lens=(16, 16, 16),
            cap_feat_dim=8,
        )
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0)
    pipe = diffusers.Lumina2Pipeline(network, scheduler, image_vae(), None, None)
    call = {
        **two_prompts(),
        "prompt_attention_mask": torch.ones(BATCH, 3, dtype=torch.int64),
        "negative_prompt_attention_mask": torch.ones(BATCH, 3, dtype=torch.int64),
        "guidance_scale": 2.0,
        "height": 32,
        "width": 32,
        "output_type": "latent",
    }
    return pipe, call
