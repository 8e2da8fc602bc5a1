"""The examples as a user with the weights runs them: the repositories' own classes at a small size, checkpoints of
random weights in the published formats. OSS_PEERS as in test_peers."""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from helpers.adapters import EXAMPLES
from helpers.peers import BARE_OPEN_SORA, MISSING_FLUX, MISSING_OPEN_SORA, checkout, exact_attention, shaken
from safetensors.torch import load_file, save_file

import oss_ext

SMALL = ["--steps", "3", "--samples", "2", "--teacher-steps", "8", "--show", "1", "--device", "cpu"]


@pytest.fixture
def example(monkeypatch, tmp_path):
    """Runs main() of an example, with `change` applied to its module before; returns the schedule it wrote."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments, change=None):
        module = importlib.import_module(name)
        if change:
            change(module)
        try:
            module.main([*map(str, arguments), *SMALL, "--output", str(tmp_path / "out")])
        finally:
            for loaded in (name, "example_common", "tiny_networks"):
                sys.modules.pop(loaded, None)
        schedule = oss_ext.Schedule.load(tmp_path / "out" / "schedule.json")
        assert schedule.steps == 3 and "tiny" not in schedule.provenance.metadata
        samples = load_file(tmp_path / "out" / "samples.safetensors")
        assert len(samples["searched"]) == 1 and bool(samples["searched"].isfinite().all())
        return schedule

    yield run
    for loaded in ("models", "diffusion"):
        sys.modules.pop(loaded, None)


def repo(folder):
    """The path that `checkout` put first."""
    assert folder in sys.path[0]
    return sys.path[0]


def test_edm(example, tmp_path):
    (tmp_path / "my_edm.py").write_text(
        "import torch\n"
        "from training.networks import EDMPrecond\n"
        "def network():\n"
        "    torch.manual_seed(0)\n"
        "    return EDMPrecond(16, 3, label_dim=5, model_channels=16, channel_mult=[1, 2], num_blocks=1)\n"
    )
    with checkout("edm", "requests"):
        schedule = example("search_edm", "--repo", repo("edm"), "--network", "my_edm:network")
    assert schedule.provenance.metadata == {"network": "my_edm:network"}


def test_lsun(example, tmp_path, monkeypatch):
    small = {"image_size": 16, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2", "learn_sigma": True}
    with checkout("guided-diffusion"):
        create = importlib.import_module("guided_diffusion.script_util").create_model
        save_file(shaken(create(**small)).state_dict(), tmp_path / "bedroom.safetensors")
        schedule = example(
            "search_lsun", "--repo", repo("guided-diffusion"), "--checkpoint", tmp_path / "bedroom.safetensors",
            change=lambda module: monkeypatch.setattr(module, "BEDROOM", small),
        )  # fmt: skip
    assert schedule.provenance.model["clip_denoised"] is True
    assert (tmp_path / "out" / "comparison.png").exists()


@pytest.mark.parametrize("kind", ["published", "trained"])
def test_dit(example, tmp_path, kind):
    with checkout("DiT", "timm"):
        models = importlib.import_module("models")

        def small(**given):
            return models.DiT(patch_size=2, hidden_size=32, depth=1, num_heads=4, **given)

        models.DiT_models["DiT-small"] = small
        held = shaken(small(input_size=8, num_classes=1000)).state_dict()
        torch.save(held if kind == "published" else {"ema": held, "args": None}, tmp_path / "dit.pt")
        schedule = example(
            "search_dit", "--repo", repo("DiT"), "--checkpoint", tmp_path / "dit.pt", "--model", "DiT-small",
            "--image-size", "64", "--cfg-scale", "2",
        )  # fmt: skip
    assert schedule.provenance.metadata["cfg_scale"] == 2.0


def test_mar(example, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *_: self)  # the repository writes .cuda() out
    with checkout("mar", "timm", "scipy"):
        models = importlib.import_module("models.mar")

        def mar_base(**given):
            return models.MAR(
                img_size=64, encoder_embed_dim=32, encoder_depth=1, encoder_num_heads=4, decoder_embed_dim=32,
                decoder_depth=1, decoder_num_heads=4, buffer_size=4, **given,
            )  # fmt: skip

        monkeypatch.setattr(models, "mar_base", mar_base)
        held = shaken(mar_base(diffloss_d=2, diffloss_w=32)).state_dict()
        file = tmp_path / "checkpoint-last.pth"
        torch.save({"model": held, "model_ema": held, "epoch": 3, "args": argparse.Namespace(lr=1e-4)}, file)
        example(
            "search_mar", "--repo", repo("mar"), "--checkpoint", file, "--num-iter", "4",
            change=lambda module: monkeypatch.setitem(module.WIDTHS, "mar_base", (2, 32)),
        )  # fmt: skip
    assert load_file(tmp_path / "out" / "images.safetensors")["tokens"].shape == (8, 16, 4, 4)


@pytest.mark.parametrize("text", ["embeddings", "prompts"])
def test_flux(example, tmp_path, monkeypatch, text):
    stubs = {"imwatermark": {"WatermarkEncoder": lambda: SimpleNamespace(set_watermark=lambda *_: None)}}
    stubs |= {"flux.modules.image_embedders": MISSING_FLUX["flux.modules.image_embedders"]}
    with checkout("flux", "einops", "transformers", "huggingface_hub", "requests", source="src", stubs=stubs):
        util = importlib.import_module("flux.util")
        model = importlib.import_module("flux.model")
        spec = util.configs["flux-dev"]
        for name, value in {
            "vec_in_dim": 12, "context_in_dim": 20, "hidden_size": 32, "num_heads": 4, "depth": 1,
            "depth_single_blocks": 1, "axes_dim": [2, 2, 4],
        }.items():  # fmt: skip
            monkeypatch.setattr(spec.params, name, value)
        for name, value in {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1}.items():
            monkeypatch.setattr(spec.ae_params, name, value)
        save_file(shaken(model.Flux(spec.params)).bfloat16().state_dict(), tmp_path / "flux1-dev.safetensors")
        vae = importlib.import_module("flux.modules.autoencoder").AutoEncoder(spec.ae_params)
        save_file(vae.state_dict(), tmp_path / "ae.safetensors")
        embedded = {"txt": torch.randn(2, 5, 20).bfloat16(), "vec": torch.randn(2, 12).bfloat16()}
        if text == "embeddings":
            save_file(embedded, tmp_path / "text.safetensors")
            given = ["--embeddings", tmp_path / "text.safetensors"]
        else:
            monkeypatch.setattr(util, "load_t5", lambda *_, **__: lambda prompts: embedded["txt"][: len(prompts)])
            monkeypatch.setattr(util, "load_clip", lambda *_: lambda prompts: embedded["vec"][: len(prompts)])
            (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
            given = ["--prompts", tmp_path / "prompts.txt"]
        schedule = example(
            "search_flux", "--repo", repo("flux"), "--checkpoint", tmp_path / "flux1-dev.safetensors", *given,
            "--vae", tmp_path / "ae.safetensors", "--size", "64", "96",
        )  # fmt: skip
        assert load_file(tmp_path / "out" / "samples.safetensors")["searched"].shape == (1, 4 * 6, 64)
        # its unpack, against the decoder's own way to pictures
        sampling = importlib.import_module("flux.sampling")
        packed = torch.randn(1, 24, 64)
        with torch.no_grad():
            theirs = vae.eval().decode(sampling.unpack(packed, 64, 96))
        module = importlib.import_module("search_flux")
        args = argparse.Namespace(vae=tmp_path / "ae.safetensors", model="flux-dev", device=torch.device("cpu"))
        torch.testing.assert_close(module.decoder(args, 4, 6)(packed), theirs)
        prepared = sampling.prepare(
            lambda _: embedded["txt"], lambda _: embedded["vec"], torch.zeros(2, 16, 8, 12), [""]
        )
        assert torch.equal(module.places(2, 4, 6), prepared["img_ids"])
        sys.modules.pop("search_flux")
    assert schedule.parameterization == "flow" and (tmp_path / "out" / "comparison.png").exists()


def test_wan(example, tmp_path, monkeypatch):
    with (
        checkout("Wan2.1", "diffusers", bare=("wan", "wan.modules")),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # torch.cuda.amp.autocast
        module = importlib.import_module("wan.modules.model")
        monkeypatch.setattr(module, "flash_attention", exact_attention)
        net = module.WanModel(
            dim=48, ffn_dim=64, freq_dim=16, text_len=8, in_dim=16, out_dim=16, num_heads=2, num_layers=1
        )
        shaken(net).save_pretrained(tmp_path / "wan")
        held = {"context": torch.randn(2, 6, 4096), "null_context": torch.randn(1, 6, 4096)}
        save_file(held, tmp_path / "text.safetensors")
        schedule = example(
            "search_wan", "--repo", repo("Wan2.1"), "--checkpoint", tmp_path / "wan", "--size", "32", "48",
            "--frames", "9", "--embeddings", tmp_path / "text.safetensors",
        )  # fmt: skip
    assert schedule.provenance.metadata["latents"] == [16, 3, 4, 6]
    assert schedule.timesteps[0] == 1000


def test_open_sora(example, tmp_path):
    needs = ("einops", "timm", "transformers", "rotary_embedding_torch")
    with (
        checkout("Open-Sora", *needs, bare=BARE_OPEN_SORA, stubs=MISSING_OPEN_SORA),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        module = importlib.import_module("opensora.models.stdit.stdit3")
        config = module.STDiT3Config(hidden_size=48, depth=1, num_heads=4, caption_channels=20, model_max_length=6)
        shaken(module.STDiT3(config)).save_pretrained(tmp_path / "stdit")
        held = {"y": torch.randn(2, 1, 6, 20), "mask": torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])}
        save_file(held, tmp_path / "text.safetensors")
        schedule = example(
            "search_open_sora", "--repo", repo("Open-Sora"), "--checkpoint", tmp_path / "stdit", "--size", "32", "48",
            "--frames", "17", "--embeddings", tmp_path / "text.safetensors",
        )  # fmt: skip
    assert schedule.provenance.metadata["latents"] == [4, 5, 4, 6]
