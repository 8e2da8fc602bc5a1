"""The nodes beside ComfyUI's own code: its CFGGuider, KSAMPLER, model sampling and samplers around a tiny network.

Runs where OSS_COMFYUI is the path of a ComfyUI checkout whose requirements are installed.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.analytic import normal
from helpers.comfyui import COMFYUI, Guider, Wrapped, comfyui, manual_sigmas, nodes_package, part
from torch import Tensor

from oss_ext import Schedule, export, published

if COMFYUI not in os.environ:
    reason = f"{COMFYUI} is not set: the path of a ComfyUI checkout whose requirements are installed"
    pytest.skip(reason, allow_module_level=True)

nodes_package()
levels, plan, nodes, sampler, search = (part(name) for name in ("levels", "plan", "nodes", "sampler", "search"))
SHAPE = (2, 4, 6, 6)
TYPES = ["FLOW", "FLUX", "EPS", "V_PREDICTION", "EDM", "FLOW_COSMOS"]


class Network(torch.nn.Module):
    """Smooth in x and in the timestep, and led by its condition."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor | None = None, **_: Any) -> Tensor:
        wave = torch.sin(timestep.view(-1, *[1] * (x.ndim - 1)) / 400)
        return torch.tanh(self.gain * x + context.mean((1, 2)).view(-1, *[1] * (x.ndim - 1))) + 0.3 * wave


@pytest.fixture
def comfy() -> Any:
    return comfyui()


def loaded(comfy: Any, kind: str, *, cfg: float = 2.5, shift: float | None = 3.0) -> tuple[Any, Any]:
    """(ModelPatcher, CFGGuider) of a tiny model of one of ComfyUI's types."""

    class Config(comfy.supported_models_base.BASE):
        unet_config: dict[str, Any] = {"disable_unet_model_creation": True}  # noqa: RUF012
        latent_format = comfy.latent_formats.SD15
        sampling_settings: dict[str, Any] = {"shift": shift} if kind == "FLOW" else {}
        memory_usage_factor = 1.0

    config = Config({"disable_unet_model_creation": True})
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType[kind])
    model.diffusion_model = Network()
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model, cpu, cpu)
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds([[torch.full((1, 3, 8), 0.2), {}]], [[torch.zeros(1, 3, 8), {}]])
    guider.set_cfg(cfg)
    return patcher, guider


def sampling_of(patcher: Any) -> Any:
    return patcher.get_model_object("model_sampling")


def terms(patcher: Any) -> Any:
    """The model as a Denoiser of oss_ext that states its range and is not evaluated."""
    return search.ComfyModel([(Wrapped(Guider(sampling_of(patcher), None)), {})])


def reference(comfy: Any, schedule: Schedule) -> Any:
    """A SAMPLER that is oss_ext's own Schedule.sample on the guided model."""

    def function(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **_: Any) -> Tensor:
        return schedule.sample(search.ComfyModel([(model, extra_args)]), model.noise)

    return comfy.samplers.KSAMPLER(function)


def run(guider: Any, sampler: Any, sigmas: Tensor, noise: Tensor | None = None, image: Tensor | None = None, **kw: Any):
    noise = normal(*SHAPE).float() if noise is None else noise
    image = torch.zeros_like(noise) if image is None else image
    return guider.sample(noise, image, sampler, sigmas, disable_pbar=True, seed=1, **kw)


def stock(patcher: Any, solver: str, steps: int = 6, top: float = 0.9) -> Schedule:
    """A schedule of a stock grid that begins at `top` of the sampling percentage, below the model's last level."""
    model = terms(patcher)
    sampling = sampling_of(patcher)
    sigmas = [float(sampling.percent_to_sigma(1 - top * (1 - k / steps))) for k in range(steps)]
    t = torch.tensor([*map(model.levels.t, sigmas), 0.0], dtype=torch.float64)
    return Schedule.from_grid(t, solver, model)


def of(schedule: Schedule, folder: Path) -> Any:
    schedule.save(folder / "s.json")
    return plan.load(folder / "s.json")


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("solver", ["euler", "ab3", "dpmpp_2m"])
def test_the_sampler_lands_where_the_schedule_does(comfy: Any, tmp_path: Path, kind: str, solver: str) -> None:
    patcher, guider = loaded(comfy, kind)
    schedule = stock(patcher, solver, top=1.0 if kind in ("FLOW", "FLUX") else 0.9)
    sigmas, made, text = nodes.OSSSchedule().make(patcher, of(schedule, tmp_path), 1.0)
    assert sigmas.dtype == torch.float32 and sigmas.tolist() == pytest.approx(schedule.sigmas.tolist(), rel=1e-6)
    assert solver in text
    wanted = run(guider, reference(comfy, schedule), sigmas)
    torch.testing.assert_close(run(guider, made, sigmas), wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("with_image", [False, True])
def test_eulers_coefficients_are_comfyuis_euler(comfy: Any, tmp_path: Path, kind: str, with_image: bool) -> None:
    patcher, guider = loaded(comfy, kind)
    sigmas, made, _ = nodes.OSSSchedule().make(patcher, of(stock(patcher, "euler"), tmp_path), 1.0)
    image = normal(*SHAPE, seed=4).float() if with_image else None
    ours = run(guider, made, sigmas, image=image)
    theirs = run(guider, comfy.samplers.sampler_object("euler"), sigmas, image=image)
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "EDM"])
def test_2m_is_comfyuis_on_variance_exploding_models(comfy: Any, tmp_path: Path, kind: str) -> None:
    patcher, guider = loaded(comfy, kind)
    schedule = stock(patcher, "dpmpp_2m")
    sigmas, made, _ = nodes.OSSSchedule().make(patcher, of(schedule, tmp_path), 1.0)
    theirs = comfy.samplers.sampler_object("dpmpp_2m")
    torch.testing.assert_close(run(guider, made, sigmas), run(guider, theirs, sigmas), rtol=2e-4, atol=2e-4)


def test_2m_is_not_comfyuis_on_flow_models(comfy: Any, tmp_path: Path) -> None:
    """Why export says that no sampler there takes its steps: theirs interpolates over log sigma, not log-SNR."""
    patcher, guider = loaded(comfy, "FLOW")
    sigmas, made, _ = nodes.OSSSchedule().make(patcher, of(stock(patcher, "dpmpp_2m"), tmp_path), 1.0)
    theirs = run(guider, comfy.samplers.sampler_object("dpmpp_2m"), sigmas)
    assert float((run(guider, made, sigmas) - theirs).abs().max()) > 1e-3
    with pytest.warns(UserWarning, match="no sampler"):
        export(stock(patcher, "dpmpp_2m"), to="comfy")


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("denoise", [0.75, 0.3])
def test_denoise_keeps_the_steps_and_starts_at_comfyuis_level(
    comfy: Any, tmp_path: Path, kind: str, denoise: float
) -> None:
    patcher, guider = loaded(comfy, kind)
    schedule = stock(patcher, "euler", steps=8, top=0.97)
    sigmas, made, _ = nodes.OSSSchedule().make(patcher, of(schedule, tmp_path), denoise)
    assert len(sigmas) == 9 and sigmas[-1] == 0
    assert float(sigmas[0]) == pytest.approx(sampling_of(patcher).percent_to_sigma(1 - denoise), rel=1e-5)
    image = normal(*SHAPE, seed=4).float()
    theirs = run(guider, comfy.samplers.sampler_object("euler"), sigmas, image=image)
    torch.testing.assert_close(run(guider, made, sigmas, image=image), theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kind", ["FLOW", "EPS"])
def test_a_schedule_split_in_two_samplers(comfy: Any, tmp_path: Path, kind: str) -> None:
    """Through the latent's scaling out of and into the model between them."""
    patcher, guider = loaded(comfy, kind)
    sigmas, made, _ = nodes.OSSSchedule().make(patcher, of(stock(patcher, "ab3"), tmp_path), 1.0)
    whole = run(guider, made, sigmas)
    half = run(guider, made, sigmas[:4])
    rest = run(guider, made, sigmas[3:], noise=torch.zeros(SHAPE), image=half)
    torch.testing.assert_close(rest, whole, rtol=2e-4, atol=2e-4)


def test_masks_keep_what_they_cover(comfy: Any, tmp_path: Path) -> None:
    patcher, guider = loaded(comfy, "FLOW")
    sigmas, made, _ = nodes.OSSSchedule().make(patcher, of(stock(patcher, "ab2"), tmp_path), 1.0)
    mask = torch.zeros(1, 1, *SHAPE[2:])
    mask[..., 3:] = 1
    image = normal(*SHAPE, seed=4).float()
    out = run(guider, made, sigmas, image=image, denoise_mask=mask)
    plain = run(guider, made, sigmas, image=image)
    theirs = run(guider, comfy.samplers.sampler_object("euler"), sigmas, image=image, denoise_mask=mask)
    torch.testing.assert_close(out[..., :3], image[..., :3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs[..., :3], image[..., :3], rtol=1e-5, atol=1e-5)
    assert float((plain[..., :3] - image[..., :3]).abs().max()) > 0.1
    assert float((out[..., 3:] - image[..., 3:]).abs().max()) > 0.1


@pytest.mark.parametrize("kind", ["FLOW", "EPS"])
@pytest.mark.parametrize(
    ("solver", "options"), [("fitted", {}), ("euler", {}), ("fitted", {"start": "free", "beam": 2})]
)
def test_the_search_node_saves_what_the_schedule_node_samples(
    comfy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, solver: str, options: dict[str, Any]
) -> None:
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    patcher, guider = loaded(comfy, kind)
    latent = {"samples": torch.zeros(1, *SHAPE[1:])}
    with torch.inference_mode():  # as ComfyUI runs its nodes
        found, made, report = nodes.OSSSearch().search(
            guider, latent, 11, 3, 2, 4, 24, solver, "model", "tiny", **options
        )
    assert made["samples"].shape == (3, *SHAPE[1:]) and "4 steps" in report
    assert nodes.schedule_names() == ["tiny/", *(f"tiny/steps_{k:02d}.json" for k in range(1, 5))]
    (read,) = nodes.OSSLoadSchedule().load("tiny/", 0)
    assert read == found and nodes.OSSLoadSchedule().load("tiny/", 2)[0].steps == 2
    saved = Schedule.load(tmp_path / "oss_schedules" / "tiny" / "steps_04.json")
    assert saved.parameterization == ("flow" if kind == "FLOW" else "epsilon")
    origin = {"source": "ComfyUI", "seed": 11, "shape": list(SHAPE[1:]), "prompts": 1, "cfg": 2.5}
    assert saved.provenance.metadata == origin
    if kind == "EPS":  # the network is told whole timesteps: these are
        assert torch.equal(saved.timesteps, saved.timesteps.round())
    sigmas, sampler_object, _ = nodes.OSSSchedule().make(patcher, read, 1.0)
    noise = comfy.sample.prepare_noise(torch.zeros(3, *SHAPE[1:]), 11)
    again = run(guider, sampler_object, sigmas, noise)
    torch.testing.assert_close(again, made["samples"], rtol=1e-3, atol=1e-3)
    # nearer to many steps of ComfyUI's Euler than as many of its Euler on its own grid
    fine = comfy.samplers.calculate_sigmas(sampling_of(patcher), "normal", 400)
    coarse = comfy.samplers.calculate_sigmas(sampling_of(patcher), "normal", 4)
    euler = comfy.samplers.sampler_object("euler")
    other = normal(*SHAPE, seed=21).float()
    goal = run(guider, euler, fine, other)
    off, plain = (
        float((run(guider, one, levels_, other) - goal).square().mean().sqrt())
        for one, levels_ in ((sampler_object, sigmas), (euler, coarse))
    )
    assert off < plain, (off, plain)


def test_prompts_are_searched_together(comfy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guiders within one another on one model: as many samples of one prompt each, and everything usable afterwards."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    patcher, guider = loaded(comfy, "FLOW")
    other = comfy.samplers.CFGGuider(patcher)
    other.set_conds([[torch.full((1, 3, 8), -0.7), {}]], [[torch.zeros(1, 3, 8), {}]])
    other.set_cfg(1.0)
    latent = {"samples": torch.zeros(1, *SHAPE[1:])}
    settings = (latent, 11, 4, 2, 3, 20, "fitted", "model")
    both, made, _ = nodes.OSSSearch().search(guider, *settings, "both", guider_2=other)
    alone, _, _ = nodes.OSSSearch().search(guider, *settings, "alone")
    assert both.coefficients != alone.coefficients
    saved = Schedule.load(tmp_path / "oss_schedules" / "both" / "steps_03.json")
    assert saved.provenance.metadata["prompts"] == 2
    # sample b of the search is guider b mod 2's: both sample again what the search ended in
    noise = comfy.sample.prepare_noise(torch.zeros(4, *SHAPE[1:]), 11)
    sigmas, sampler_object, _ = nodes.OSSSchedule().make(patcher, both, 1.0)
    for k, one in enumerate((guider, other)):
        again = run(one, sampler_object, sigmas, noise)
        torch.testing.assert_close(again[k::2], made["samples"][k::2], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="at least one for each"):
        nodes.OSSSearch().search(guider, latent, 11, 1, 1, 3, 20, "fitted", "model", "x", guider_2=other)


def test_an_interruption_leaves_everything_usable(comfy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.utils
    import folder_paths

    class Interrupted(Exception):
        pass

    def stop(value: int, total: int, preview: Any, **_: Any) -> None:
        if value > 30:
            raise Interrupted

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    _, guider = loaded(comfy, "FLOW")
    latent = {"samples": torch.zeros(1, *SHAPE[1:])}
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", stop)
    with pytest.raises(Interrupted):
        nodes.OSSSearch().search(guider, latent, 11, 2, 2, 3, 30, "euler", "model", "stopped")
    assert nodes.schedule_names() == []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", None)
    nodes.OSSSearch().search(guider, latent, 11, 2, 2, 3, 30, "euler", "model", "done")
    assert "done/" in nodes.schedule_names()


def test_names_do_not_lead_out_of_the_folder(comfy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    with pytest.raises(ValueError, match="inside of"):
        nodes.schedule_path("../../etc/passwd")
    _, guider = loaded(comfy, "FLOW")
    with pytest.raises(ValueError, match="name"):
        nodes.OSSSearch().search(guider, {"samples": torch.zeros(1, 4, 2, 2)}, 0, 1, 1, 2, 4, "euler", "model", "../x")


def test_every_node_says_what_comfyui_asks_of_it(comfy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    package = nodes_package()
    assert set(package.NODE_DISPLAY_NAME_MAPPINGS) == set(package.NODE_CLASS_MAPPINGS)
    for node in package.NODE_CLASS_MAPPINGS.values():
        inputs = [*node.INPUT_TYPES()["required"], *node.INPUT_TYPES().get("optional", {})]
        names = getattr(node, node.FUNCTION).__code__.co_varnames
        assert set(inputs) <= set(names) and len(node.RETURN_TYPES) >= 1 and node.CATEGORY


@pytest.mark.parametrize("name", published.names())
@pytest.mark.parametrize("steps", [3, 8, 10, 20, 33, 40])
def test_published_tables_are_comfyuis(comfy: Any, name: str, steps: int) -> None:
    from comfy_extras import nodes_align_your_steps, nodes_optimalsteps

    theirs = {
        "ays-sd15": (nodes_align_your_steps, "AlignYourStepsScheduler", "SD1"),
        "ays-sdxl": (nodes_align_your_steps, "AlignYourStepsScheduler", "SDXL"),
        "ays-svd": (nodes_align_your_steps, "AlignYourStepsScheduler", "SVD"),
        "oss-flux": (nodes_optimalsteps, "OptimalStepsScheduler", "FLUX"),
        "oss-wan": (nodes_optimalsteps, "OptimalStepsScheduler", "Wan"),
        "oss-chroma": (nodes_optimalsteps, "OptimalStepsScheduler", "Chroma"),
    }
    module, node, entry = theirs[name]
    assert list(published.get(name).sigmas) == module.NOISE_LEVELS[entry]
    (sigmas,) = getattr(module, node).execute(entry, steps, 1.0).result
    assert published.get(name).at(steps) == pytest.approx(sigmas.tolist(), rel=1e-6)


def test_manual_sigmas_read_what_export_writes(comfy: Any) -> None:
    from comfy_extras import nodes_custom_sampler

    if not hasattr(nodes_custom_sampler, "ManualSigmas"):
        pytest.skip("this ComfyUI is from before ManualSigmas")

    def read(text: str) -> Tensor:
        return nodes_custom_sampler.ManualSigmas.execute(text).result[0]

    small = published.from_sigmas([1.0, 0.5, 1e-3, 2e-6], model="flow")
    for schedule in (small, published.schedule("ays-svd"), published.schedule("oss-wan", 30)):
        assert torch.equal(read(export(schedule, to="comfy")), schedule.sigmas.float())
        graph = json.loads(export(schedule, to="comfy-api"))
        assert torch.equal(read(graph["oss_sigmas"]["inputs"]["sigmas"]), schedule.sigmas.float())
    for text in ("1e-3", "1, .5, 0.", "14.6146 0.03,+2;-1", "1.0e+00, 5e-1", "", "none"):
        assert read(text).tolist() == torch.tensor(manual_sigmas(text)).tolist()


@pytest.mark.parametrize(("kind", "solver"), [("FLOW", "euler"), ("EPS", "euler"), ("EPS", "dpmpp_2m")])
def test_exported_levels_with_the_sampler_that_export_names(comfy: Any, kind: str, solver: str) -> None:
    patcher, guider = loaded(comfy, kind)
    schedule = stock(patcher, solver)
    graph = json.loads(export(schedule, to="comfy-api"))
    sigmas = torch.tensor([float(value) for value in graph["oss_sigmas"]["inputs"]["sigmas"].split(",")])
    theirs = comfy.samplers.sampler_object(graph["oss_sampler"]["inputs"]["sampler_name"])
    wanted = run(guider, reference(comfy, schedule), sigmas)
    torch.testing.assert_close(run(guider, theirs, sigmas), wanted, rtol=2e-4, atol=2e-4)


def test_noise_of_a_scale_of_its_own(comfy: Any, tmp_path: Path) -> None:
    """At its last level ComfyUI starts these models from sqrt(1 + sigma^2) of the noise: the sampler does not."""
    patcher, guider = loaded(comfy, "EPS")
    schedule = replace(stock(patcher, "euler", top=1 - 1e-9), noise_scale=0.9)
    assert math.isclose(float(schedule.sigmas[0]), float(sampling_of(patcher).sigma_max), rel_tol=1e-4)
    sigmas, made, _ = nodes.OSSSchedule().make(patcher, of(schedule, tmp_path), 1.0)
    wanted = run(guider, reference(comfy, schedule), sigmas)
    torch.testing.assert_close(run(guider, made, sigmas), wanted, rtol=2e-4, atol=2e-4)
