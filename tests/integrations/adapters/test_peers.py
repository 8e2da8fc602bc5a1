"""The adapters beside the repositories themselves: their classes at a small size, and their own samplers.

OSS_PEERS names a folder with checkouts edm/, DiT/, guided-diffusion/, mar/, flux/, Wan2.1/ and Open-Sora/ (tag v1.2.0);
what a checkout imports (einops, timm, requests, diffusers, transformers, rotary_embedding_torch) must be installed.
Skipped without.
"""

from __future__ import annotations

import importlib
import os
import warnings
from pathlib import Path

import pytest
import torch
from helpers.adapters import rows
from helpers.peers import (
    BARE_OPEN_SORA,
    MISSING_FLUX,
    MISSING_OPEN_SORA,
    agreement,
    checkout,
    exact_attention,
    shaken,
)

import oss_ext
from oss_ext.integrations import dit, edm, flux, guided_diffusion, mar, open_sora, wan
from oss_ext.integrations.betas import alphas_cumprod

TIMESTEPS = [999, 870, 640, 333, 120, 7]


def noise_of(*shape, seed=1):
    return rows(*shape, seed=seed).float()


def along(model, timesteps=TIMESTEPS):
    return oss_ext.Schedule.from_grid(guided_diffusion.respaced_grid(model, timesteps), "euler", model)


@pytest.mark.parametrize("kind", ["EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond"])
def test_edm(kind):
    with checkout("edm", "requests"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        networks = importlib.import_module("training.networks")
        small = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}
        net = getattr(networks, kind)(16, 3, label_dim=5, **small)
        shaken(net)
        model = edm.denoiser(net)
        noise, labels = noise_of(2, 3, 16, 16), torch.eye(5)[[1, 4]]
        # its ablation_sampler with solver="euler", at its own t_steps
        low, high = max(0.002, net.sigma_min), min(80, net.sigma_max)
        at = torch.arange(9, dtype=torch.float64) / 8
        steps = net.round_sigma((high ** (1 / 7) + at * (low ** (1 / 7) - high ** (1 / 7))) ** 7)
        steps = torch.cat([steps, torch.zeros(1)])
        if model.flow_table is None:
            torch.testing.assert_close(model.sigmas(oss_ext.grids.for_model("edm", 9, model)), steps)
        else:
            levels = model.sigmas(model.flow_table)
            assert all((levels - sigma).abs().min() < 1e-6 * sigma for sigma in steps[:-1])
            assert levels[[0, -1]].tolist() == pytest.approx(steps[[-2, 0]].tolist())
        schedule = oss_ext.Schedule.from_grid(steps / (1 + steps), "euler", model)
        x = noise.double() * steps[0]
        for here, there in zip(steps[:-1], steps[1:], strict=True):  # noqa: RUF007
            x = x + (there - here) * (x - net(x, here, labels).double()) / here
        assert agreement(schedule.sample(model, noise.double(), {"class_labels": labels}), x) < 2e-5


def edms_own_sampler(net, noise, labels, steps):
    """generate.py's ablation_sampler, from a file that imports the whole of its command line."""
    source = Path(os.environ["OSS_PEERS"], "edm", "generate.py").read_text(encoding="utf-8")
    body = source[source.index("def ablation_sampler") : source.index("class StackedRandomGenerator")]
    names: dict = {"torch": torch, "np": importlib.import_module("numpy")}
    exec(compile(body, "generate.py", "exec"), names)
    return names["ablation_sampler"](net, noise, labels, num_steps=steps, solver="euler")


def test_edms_own_sampler():
    with checkout("edm", "requests"):
        networks = importlib.import_module("training.networks")
        net = networks.EDMPrecond(16, 3, label_dim=5, model_channels=16, channel_mult=[1, 2], num_blocks=1)
        shaken(net)
        model = edm.denoiser(net)
        noise, labels = rows(2, 3, 16, 16, seed=2), torch.eye(5)[[0, 3]]
        schedule = oss_ext.Schedule.from_grid(oss_ext.grids.for_model("edm", 12, model), "euler", model)
        theirs = edms_own_sampler(net, noise, labels, 12)
        assert agreement(schedule.sample(model, noise, {"class_labels": labels}), theirs) < 2e-5


def repositorys_ddim(package, network, noise, kwargs, timesteps, *, betas, clip):
    """Its SpacedDiffusion over these timesteps, from where our sampler starts."""
    gd = importlib.import_module(f"{package}.gaussian_diffusion")
    respace = importlib.import_module(f"{package}.respace")
    diffusion = respace.SpacedDiffusion(
        use_timesteps=set(timesteps),
        betas=gd.get_named_beta_schedule(betas, 1000),
        model_mean_type=gd.ModelMeanType.EPSILON,
        model_var_type=gd.ModelVarType.LEARNED_RANGE,
        loss_type=gd.LossType.MSE,
    )
    start = noise * (1 - float(diffusion.alphas_cumprod[-1])) ** 0.5
    theirs = diffusion.ddim_sample_loop(
        network, start.shape, noise=start, clip_denoised=clip, model_kwargs=kwargs, device=noise.device
    )
    return diffusion, theirs


@pytest.mark.parametrize("clip", [False, True], ids=["free", "clipped"])
def test_guided_diffusion(clip):
    with checkout("guided-diffusion"):
        script_util = importlib.import_module("guided_diffusion.script_util")
        small = {"num_res_blocks": 1, "channel_mult": "1,2", "attention_resolutions": "8", "use_scale_shift_norm": True}
        net = shaken(script_util.create_model(16, 32, learn_sigma=True, class_cond=True, **small))
        noise, y = noise_of(2, 3, 16, 16), torch.tensor([3, 900])
        diffusion, theirs = repositorys_ddim(
            "guided_diffusion", net, noise, {"y": y}, TIMESTEPS, betas="linear", clip=clip
        )
        model = guided_diffusion.denoiser(net, clip_denoised=clip)
        assert agreement(along(model).sample(model, noise, {"y": y}), theirs) < 1e-4
        spaced = guided_diffusion.from_diffusion(net, diffusion, clip_denoised=clip)
        assert agreement(along(spaced, range(6)).sample(spaced, noise, {"y": y}), theirs) < 1e-4
        table = importlib.import_module("guided_diffusion.gaussian_diffusion")
        for name in ("linear", "cosine"):
            betas = torch.from_numpy(table.get_named_beta_schedule(name, 1000))
            torch.testing.assert_close(alphas_cumprod(name), (1 - betas).cumprod(0), rtol=1e-9, atol=0)


def test_a_searched_schedule_in_guided_diffusions_own_loop():
    with checkout("guided-diffusion"):
        script_util = importlib.import_module("guided_diffusion.script_util")
        net = shaken(script_util.create_model(16, 32, num_res_blocks=1, channel_mult="1,2", learn_sigma=True))
        model = guided_diffusion.denoiser(net)
        kept = importlib.import_module("guided_diffusion.respace").space_timesteps(1000, "25")
        noise = noise_of(2, 3, 16, 16)
        grid = guided_diffusion.respaced_grid(model, kept)
        schedule = oss_ext.dp_search(model, noise, 4, grid=grid, nodes="integer").schedule
        chosen = guided_diffusion.use_timesteps(schedule)
        assert chosen <= kept and len(chosen) == 4
        _, theirs = repositorys_ddim("guided_diffusion", net, noise, {}, chosen, betas="linear", clip=False)
        assert agreement(schedule.sample(model, noise), theirs) < 1e-4


@pytest.mark.parametrize("scale", [None, 1.5], ids=["plain", "guided"])
def test_dit(scale):
    with checkout("DiT", "timm"):
        models = importlib.import_module("models")
        net = models.DiT(input_size=8, patch_size=2, hidden_size=32, depth=2, num_heads=4, num_classes=10)
        shaken(net)
        noise, y = noise_of(3, 4, 8, 8), torch.tensor([0, 5, 9])
        if scale is None:
            network, start, kwargs = net.forward, noise, {"y": y}
        else:
            network, start = net.forward_with_cfg, torch.cat([noise, noise])
            kwargs = {"y": torch.cat([y, torch.full_like(y, 10)]), "cfg_scale": scale}
        _, theirs = repositorys_ddim("diffusion", network, start, kwargs, TIMESTEPS, betas="linear", clip=False)
        model = dit.denoiser(net, cfg_scale=scale, null_label=10)
        assert agreement(along(model).sample(model, noise, {"y": y}), theirs[:3]) < 1e-4


def test_mar(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *_: self)  # the repository writes .cuda() out
    with checkout("mar", "timm", "scipy"):
        models = importlib.import_module("models.mar")
        net = models.MAR(
            img_size=32, vae_stride=8, encoder_embed_dim=32, encoder_depth=1, encoder_num_heads=4,
            decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4, vae_embed_dim=4, class_num=10, buffer_size=4,
            diffloss_d=2, diffloss_w=32, num_sampling_steps="10",
        )  # fmt: skip
        shaken(net)
        labels = torch.tensor([1, 8])
        with mar.recorded(net.diffloss) as tokens:
            torch.manual_seed(0)
            net.sample_tokens(bsz=2, num_iter=4, cfg=2.9, labels=labels)
        assert len(tokens.calls) == 4 and sum(len(call["c"]) for call in tokens.calls) == 2 * 16
        noise, cond = tokens.draw(generator=torch.Generator().manual_seed(0))
        assert cond["guidance"].max().item() == pytest.approx(1 + 1.9 * 15 / 16, abs=0.3)
        model = mar.denoiser(net.diffloss.net)

        one = {name: value[:1].expand(5, *value.shape[1:]) for name, value in cond.items()}
        start = noise[:5]
        both = {"c": torch.cat([one["c"], one["null_c"]]), "cfg_scale": float(one["guidance"][0])}
        _, theirs = repositorys_ddim(
            "diffusion", net.diffloss.net.forward_with_cfg, torch.cat([start, start]), both, TIMESTEPS, betas="cosine",
            clip=False,
        )  # fmt: skip
        assert agreement(along(model).sample(model, start, one), theirs[:5]) < 1e-4

        result = oss_ext.dp_search(model, noise, 4, teacher_steps=30, grid="ddim", cond=cond)
        with mar.applied(net.diffloss, result.schedule):
            torch.manual_seed(0)
            image = net.sample_tokens(bsz=2, num_iter=4, cfg=2.9, labels=labels)
        assert image.shape == (2, 4, 4, 4) and bool(image.isfinite().all())


def test_flux():
    with checkout("flux", "einops", source="src", bare=("flux",), stubs=MISSING_FLUX):
        flux_model = importlib.import_module("flux.model")
        sampling = importlib.import_module("flux.sampling")
        parameters = flux_model.FluxParams(
            in_channels=16, out_channels=16, vec_in_dim=12, context_in_dim=20, hidden_size=32, mlp_ratio=2.0,
            num_heads=4, depth=1, depth_single_blocks=1, axes_dim=[2, 2, 4], theta=10_000, qkv_bias=True,
            guidance_embed=True,
        )  # fmt: skip
        net = shaken(flux_model.Flux(parameters))
        pictures = noise_of(2, 4, 8, 8)
        given = sampling.prepare(
            lambda _: noise_of(2, 5, 20, seed=3), lambda _: noise_of(2, 12, seed=4), pictures, ["a", "b"]
        )
        noise = given.pop("img")
        timesteps = sampling.get_schedule(6, noise.shape[1])
        theirs = sampling.denoise(net, img=noise, **given, timesteps=timesteps, guidance=3.5)
        model = flux.denoiser(net, guidance=3.5)
        grid = oss_ext.grids.make("flow", 6, shift=flux.shift(noise.shape[1]))
        torch.testing.assert_close(grid, torch.tensor(timesteps, dtype=torch.float64), rtol=0, atol=1e-6)
        schedule = oss_ext.Schedule.from_grid(grid, "euler", model)
        assert agreement(schedule.sample(model, noise, given), theirs) < 2e-5

        edited = {"img_cond_seq": noise_of(2, 6, 16, seed=5), "img_cond_seq_ids": torch.ones(2, 6, 3)}
        theirs = sampling.denoise(net, img=noise, **given, **edited, timesteps=timesteps, guidance=2.5)
        ours = schedule.sample(flux.denoiser(net, guidance=2.5), noise, {**given, **edited})
        assert agreement(ours, theirs) < 2e-5

        half = net.bfloat16()
        given16 = {name: value if "ids" in name else value.bfloat16() for name, value in given.items()}
        theirs = sampling.denoise(half, img=noise.bfloat16(), **given16, timesteps=timesteps, guidance=3.5)
        ours = schedule.sample(flux.denoiser(half, guidance=3.5), noise.bfloat16(), given16)
        assert agreement(ours, theirs) < 5e-2  # its states are rounded to bfloat16 at every step, ours are not


def test_wan(monkeypatch):
    with (
        checkout("Wan2.1", "diffusers", bare=("wan", "wan.modules", "wan.utils")),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # torch.cuda.amp.autocast
        wan_model = importlib.import_module("wan.modules.model")
        monkeypatch.setattr(wan_model, "flash_attention", exact_attention)
        net = wan_model.WanModel(
            dim=48, ffn_dim=64, freq_dim=16, text_dim=20, text_len=8, in_dim=4, out_dim=4, num_heads=2, num_layers=2
        )
        shaken(net)
        scheduler_of = importlib.import_module("wan.utils.fm_solvers_unipc").FlowUniPCMultistepScheduler
        dpm_of = importlib.import_module("wan.utils.fm_solvers").FlowDPMSolverMultistepScheduler
        texts, negative = [noise_of(5, 20, seed=2), noise_of(3, 20, seed=3)], noise_of(4, 20, seed=4)
        filled = wan.contexts([*texts, negative])
        model = wan.denoiser(net, guidance=5.0, null={"context": filled[2:]})
        noise = noise_of(2, 4, 3, 4, 6)

        def loop(scheduler, timesteps, index):
            """generate()'s own lines, one video, with its scheduler."""
            latents = [noise[index]]
            for t in timesteps:
                given = {"t": torch.stack([t]), "seq_len": 3 * 2 * 3}
                out = net(latents, context=[texts[index]], **given)[0]
                base = net(latents, context=[negative], **given)[0]
                guided = base + 5.0 * (out - base)
                latents = [scheduler.step(guided[None], t, latents[0][None], return_dict=False)[0][0]]
            return latents[0]

        u = oss_ext.grids.make("flow", 8, shift=wan.SHIFT)
        for solver, make, given in (
            (
                "unipc_2",
                lambda: scheduler_of(num_train_timesteps=1000, shift=1),
                {"num_inference_steps": 8, "shift": 5.0},
            ),
            ("dpmpp_2m", lambda: dpm_of(num_train_timesteps=1000, shift=1), {"sigmas": u[:-1].numpy()}),
            ("euler", lambda: dpm_of(num_train_timesteps=1000, shift=1, solver_order=1), {"sigmas": u[:-1].numpy()}),
        ):
            theirs = []
            for index in range(2):
                scheduler = make()
                scheduler.set_timesteps(device="cpu", **given)
                theirs.append(loop(scheduler, scheduler.timesteps, index))
            schedule = oss_ext.Schedule.from_grid(scheduler.sigmas.double(), solver, model, noise_scale=1.0)
            assert schedule.timesteps.tolist() == scheduler.timesteps.tolist()
            ours = schedule.sample(model, noise, {"context": filled[:2]})
            print(f"\n  {solver}", end="")
            assert agreement(ours, torch.stack(theirs)) < 1e-4


def test_wan_from_a_picture(monkeypatch):
    with checkout("Wan2.1", "diffusers", bare=("wan", "wan.modules")), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wan_model = importlib.import_module("wan.modules.model")
        monkeypatch.setattr(wan_model, "flash_attention", exact_attention)
        small = {
            "dim": 48,
            "ffn_dim": 64,
            "freq_dim": 16,
            "text_dim": 20,
            "text_len": 8,
            "num_heads": 2,
            "num_layers": 1,
        }
        net = shaken(wan_model.WanModel(model_type="i2v", in_dim=10, out_dim=4, **small))
        noise, picture, clip = noise_of(2, 4, 3, 4, 6), noise_of(2, 6, 3, 4, 6, seed=2), noise_of(2, 257, 1280, seed=3)
        texts, negative = [noise_of(5, 20, seed=4), noise_of(5, 20, seed=5)], noise_of(5, 20, seed=6)
        model = wan.denoiser(net, guidance=5.0, null={"context": negative[None]})
        cond = {"context": wan.contexts(texts), "clip_fea": clip, "y": picture}
        at = torch.tensor([0.9, 0.3], dtype=torch.float64)
        ours = model.velocity(noise, at, cond)
        for index, t in enumerate((900, 300)):
            given = {"t": torch.tensor([t]), "seq_len": 18, "clip_fea": clip[[index]], "y": [picture[index]]}
            out = net([noise[index]], context=[texts[index]], **given)[0]
            base = net([noise[index]], context=[negative], **given)[0]
            assert agreement(ours[index], base + 5.0 * (out - base)) < 2e-5


def test_open_sora():
    needs = ("einops", "timm", "transformers", "rotary_embedding_torch")
    with (
        checkout("Open-Sora", *needs, bare=BARE_OPEN_SORA, stubs=MISSING_OPEN_SORA),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        stdit3 = importlib.import_module("opensora.models.stdit.stdit3")
        rf = importlib.import_module("opensora.schedulers.rf")
        config = stdit3.STDiT3Config(
            hidden_size=48, depth=1, num_heads=4, caption_channels=20, model_max_length=6, qk_norm=True
        )
        net = shaken(stdit3.STDiT3(config))
        noise = noise_of(2, 4, 5, 4, 4)
        mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]])
        y, null = noise_of(2, 1, 6, 20, seed=2), net.y_embedder.y_embedding[None, None]
        size = {"height": 32.0, "width": 32.0, "num_frames": 17.0, "fps": 24.0, "ar": 1.0}
        size = {name: torch.full((2,), value) for name, value in size.items()}

        class Encoder:
            def encode(self, prompts):
                return {"y": y, "mask": mask}

            def null(self, n):
                return null.repeat(n, 1, 1, 1)

        scheduler = rf.RFLOW(num_sampling_steps=6, cfg_scale=7.0, use_timestep_transform=True)
        theirs = scheduler.sample(net, Encoder(), noise, ["a", "b"], "cpu", additional_args=size, progress=False)
        model = open_sora.denoiser(net, guidance=7.0, null={"y": null[0]})
        grid = oss_ext.grids.make("flow", 6, shift=open_sora.shift(17, 32, 32))
        schedule = oss_ext.Schedule.from_grid(grid, "euler", model)
        ours = schedule.sample(model, noise, {"y": y, "mask": mask, **size})
        assert agreement(ours, theirs) < 1e-4
