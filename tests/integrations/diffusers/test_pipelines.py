"""Real pipelines, tiny random weights: the pipeline under `apply` is `Schedule.sample`, a search through the pipeline's
loop is `dp_search` on the same network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed, which diffusers' pipelines import")

import diffusers
from helpers import more_tiny_pipelines as more
from helpers import tiny_pipelines as tiny
from helpers import tiny_video_pipelines as video

import oss_ext
from oss_ext import Schedule, grids
from oss_ext.integrations.diffusers import applied, apply, family_of, search
from oss_ext.schedule_file import Calibration

PIPELINES = {**tiny.PIPELINES, **more.PIPELINES, **video.PIPELINES}
EACH = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            not hasattr(diffusers, name),
            reason=f"diffusers {diffusers.__version__} has no {name}, which newer ones have",
        ),
    )
    for name in PIPELINES
]
FP32, BF16 = 1e-4, 6e-2  # relative, of the largest number


def off(found, wanted):
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def parts(name):
    made = PIPELINES[name]()
    return made, family_of(made.pipe.scheduler).denoiser(made.network)


def stock_grid(model, steps):
    return grids.for_model("flow:shift=2" if model.parameterization == "flow" else "ddim", steps, model)


def odd_schedule(model, seed=0):
    """Coefficients off every formula, a start at another scale than its noise level, network times of their own."""
    made = Schedule.from_grid(stock_grid(model, 4), "unipc", model)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(made.coefficients.shape, generator=generator, dtype=torch.float64)
    told = (made.t[:-1] * 0.97).clamp(min=model.t_min)
    return replace(
        made,
        coefficients=made.coefficients * (1 + 0.05 * noise),
        solver="polished",
        noise_scale=float(made.t[0]) * 1.05,
        network_t=told,
        timesteps=model.timesteps(told),
    )


def calibrated(schedule):
    """By a gain, and by quantiles of each sample."""
    for levels in (
        {"mode": "gain", "gain": (1.02, 0.97, 1.05)},
        {"mode": "affine", "quantiles": (0.05, 0.95), "low": (-1.5, -1.4, -1.2), "high": (1.6, 1.3, 1.3)},
    ):
        yield schedule.with_calibration(Calibration(**levels))


@pytest.mark.parametrize("name", EACH)
def test_a_schedule_applied_is_the_schedule_sampled(name, record_property):
    made, model = parts(name)
    stock = made(num_inference_steps=4)
    for schedule in (
        Schedule.from_grid(stock_grid(model, 4), "euler", model),
        Schedule.from_grid(stock_grid(model, 5), "unipc", model),
        odd_schedule(model),
        *calibrated(Schedule.from_grid(stock_grid(model, 3), "unipc", model)),
    ):
        with torch.no_grad():
            wanted = made.finish(schedule.sample(model, made.noise()))
        with applied(made.pipe, schedule) as handle:
            found = made()
            again = made(num_inference_steps=2)  # says nothing now
        record_property(f"off {schedule.solver}", off(found, wanted))
        assert handle.steps == schedule.steps
        assert found.shape == wanted.shape and off(found, wanted) < FP32
        assert torch.equal(found, again)
    assert off(stock, wanted) > 100 * FP32
    assert torch.equal(made(num_inference_steps=4), stock)  # undone


@pytest.mark.parametrize("name", EACH)
def test_a_search_through_the_loop_is_a_search_on_the_network(name):
    made, model = parts(name)
    before = dict(vars(made.pipe))
    solver = "fitted" if name in ("FluxPipeline", "DiTPipeline", "CogVideoXPipeline") else "unipc"
    found = search(made.pipe, 3, solver=solver, samples=2, teacher_steps=12, seed=5, progress=False, **made.call)
    assert dict(vars(made.pipe)) == before
    with torch.no_grad():
        plain = oss_ext.dp_search(model, made.noise(5), 3, solver=solver, teacher_steps=12, grid=found.t)
    assert found.nfe == plain.nfe
    assert off(found.teacher, plain.teacher) < FP32
    for budget in (1, 2, 3):
        assert torch.equal(found.schedules[budget].t, plain.schedules[budget].t)
        torch.testing.assert_close(found.costs[budget], plain.costs[budget], rtol=1e-3, atol=0)
    again = search(made.pipe, 3, solver=solver, samples=2, teacher_steps=12, seed=5, progress=False, **made.call)
    for budget in (1, 2, 3):
        assert torch.equal(found.schedules[budget].t, again.schedules[budget].t)
        assert torch.equal(found.schedules[budget].coefficients, again.schedules[budget].coefficients)
        assert torch.equal(found.endpoints[budget], again.endpoints[budget])
    with applied(made.pipe, found.schedule):
        assert off(made(5), made.finish(found.endpoints[3])) < FP32  # what was scored is what the pipeline does


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "FluxPipeline", "DiTPipeline", "WanPipeline"])
def test_half_precision(name, record_property):
    """States are kept in float32; the pipeline's dtype is what the network is fed. What remains is the rounding of flow
    states before the model scales them, and of timesteps and embeddings inside the pipelines, amplified by weights that
    are random."""
    made, _ = parts(name)
    made.to(torch.bfloat16)
    latents = torch.float32 if name == "WanPipeline" else torch.bfloat16  # Wan keeps its latents in float32
    made.dtype = latents
    network = made.network
    family = family_of(made.pipe.scheduler)
    model = family.denoiser(lambda x, t: network(x.to(torch.bfloat16), t).to(x.dtype))
    schedule = Schedule.from_grid(stock_grid(model, 5), "unipc", model)
    with torch.no_grad():
        wanted = made.finish(schedule.sample(model, made.noise()).to(torch.bfloat16))
    with applied(made.pipe, schedule):
        found = made()
    record_property("off", off(found, wanted))
    print(name, off(found, wanted))
    assert off(found, wanted) < BF16
    result = search(made.pipe, 2, samples=2, teacher_steps=6, progress=False, **made.call)
    assert torch.isfinite(result.teacher).all() and result.teacher.dtype == torch.float32


def test_a_schedule_travels_by_file(tmp_path):
    made, model = parts("FluxPipeline")
    result = search(made.pipe, 2, samples=2, teacher_steps=6, progress=False, **made.call)
    result.schedule.save(tmp_path / "flux.json")
    loaded = Schedule.load(tmp_path / "flux.json")
    kept = loaded.provenance.metadata["pipeline"]
    assert (
        kept["class"] == "FluxPipeline" and kept["arguments"]["guidance_scale"] == 3.5 and kept["latents"] == [16, 16]
    )
    apply(made.pipe, loaded)
    with torch.no_grad():
        assert off(made(), loaded.sample(model, made.noise())) < FP32
