"""What `apply` does beside sampling: image-to-image, other pipelines' habits, refusals and warnings, and undoing."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed, which diffusers' pipelines import")

import diffusers
from helpers import tiny_pipelines as tiny

from oss_ext import EpsilonModel, Schedule, grids
from oss_ext.integrations.diffusers import ScheduleMismatchWarning, applied, apply, family_of, search
from oss_ext.integrations.diffusers.reschedule import starting_at

LATENTS = torch.randn(tiny.BATCH, 4, 8, 8, generator=torch.Generator().manual_seed(9))


def off(found, wanted):
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def model_of(made):
    return family_of(made.pipe.scheduler).denoiser(made.network)


def sd_schedule(made, steps=5, solver="unipc"):
    model = model_of(made)
    return Schedule.from_grid(grids.for_model("ddim", steps, model), solver, model)


def timesteps_of(call):
    seen = []
    call(callback_on_step_end=lambda pipe, i, t, tensors: seen.append(float(t)) or {})
    return seen


# Image-to-image.


@pytest.mark.parametrize("given", [2, 5, 50])
@pytest.mark.parametrize("strength", [1.0, 0.7, 0.5, 0.15])
def test_strength_keeps_the_number_of_steps(strength, given):
    """And starts at the strength's noise level, from the image with that much noise."""
    made = tiny.stable_diffusion(pipeline=diffusers.StableDiffusionImg2ImgPipeline, image=LATENTS)
    model, schedule = model_of(made), sd_schedule(made)
    with applied(made.pipe, schedule):
        seen = timesteps_of(lambda **more: made(strength=strength, num_inference_steps=given, **more))
        found = made(strength=strength, num_inference_steps=given)
    assert len(seen) == schedule.steps
    assert seen[0] == round(1000 * strength) - 1
    t = float(model.flow_table[int(seen[0])])
    lower = starting_at(schedule, t, model)
    start = (1 - t) * LATENTS + t * made.noise()
    with torch.no_grad():
        wanted = replace(lower, noise_scale=1.0).sample(model, start)
    assert off(found, wanted) < 1e-4


def test_the_pipeline_alone_would_make_fewer_steps():
    ddim = diffusers.DDIMScheduler(**tiny.SD, steps_offset=1)
    made = tiny.stable_diffusion(ddim, pipeline=diffusers.StableDiffusionImg2ImgPipeline, image=LATENTS)
    assert len(timesteps_of(lambda **more: made(strength=0.5, num_inference_steps=5, **more))) == 2


def test_flux_image_to_image():
    image = torch.rand(tiny.BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    made = tiny.flux(diffusers.FluxImg2ImgPipeline, image=image)
    model = model_of(made)
    schedule = Schedule.from_grid(grids.make("flow:shift=1.6", 5), "unipc", model)
    with applied(made.pipe, schedule):
        seen = timesteps_of(lambda **more: made(strength=0.7, num_inference_steps=5, **more))
        running = made.pipe.scheduler.running
    shift = torch.tensor(16 * (1.15 - 0.5) / (4096 - 256) + 0.5 - 256 * (1.15 - 0.5) / (4096 - 256)).exp()
    level = float(shift * 0.7 / (1 + (shift - 1) * 0.7))  # the pipeline's own shift, which its own levels have too
    assert len(seen) == 5 and seen[0] == pytest.approx(1000 * level, rel=1e-5)
    assert running.steps == 5 and bool((running.t.diff() < 0).all())


def test_fitted_coefficients_give_way_to_a_formula_below_full_strength():
    made = tiny.stable_diffusion(pipeline=diffusers.StableDiffusionImg2ImgPipeline, image=LATENTS)
    fitted = replace(sd_schedule(made), solver="fitted")
    with applied(made.pipe, fitted) as handle:
        assert any("'fitted' hold for strength 1" in note for note in handle.notes)
        made(strength=0.5)
        assert made.pipe.scheduler.running.solver == "dpmpp_2m"


def test_rescheduling():
    made = tiny.stable_diffusion()
    model, schedule = model_of(made), sd_schedule(made, 6)
    assert starting_at(schedule, float(schedule.t[0]), model) is schedule
    for t in (0.8, 0.3, 0.04):
        lower = starting_at(schedule, t, model)
        assert lower.steps == 6 and float(lower.t[0]) == pytest.approx(t, rel=0.03)
        lower.check_range(model)
    at_a_node = starting_at(Schedule.from_grid(grids.make("flow", 4), "euler"), 0.5, tiny_flow())
    torch.testing.assert_close(at_a_node.t, torch.tensor([0.5, 0.375, 0.25, 0.125, 0.0], dtype=torch.float64))


def tiny_flow():
    return family_of(diffusers.FlowMatchEulerDiscreteScheduler()).terms()


# Pipelines' habits.


def test_inpainting_between_steps_is_kept():
    """A callback that overwrites latents: the next step begins from them."""
    made = tiny.stable_diffusion()
    schedule = sd_schedule(made, solver="euler")
    states = []

    def callback(pipe, i, t, tensors):
        if i == 1:
            tensors["latents"] = LATENTS.clone()
        states.append(tensors["latents"].clone())
        return tensors

    with applied(made.pipe, schedule):
        made(callback_on_step_end=callback)
    n, model, family = 2, model_of(made), family_of(made.pipe.scheduler)
    t, following = float(schedule.t[n]), float(schedule.t[n + 1])
    x = LATENTS / family.input_scale(t)
    with torch.no_grad():
        x = x + (following - t) * model.velocity(x, schedule.t[n].expand(len(x)))
    assert off(states[2], x * family.input_scale(following)) < 1e-5


def test_xl_base_and_refiner_share_a_schedule():
    """denoising_end stops early; the rest of the schedule is what a later start would run."""
    made = tiny.PIPELINES["StableDiffusionXLPipeline"]()
    schedule = sd_schedule(made, 5)
    with applied(made.pipe, schedule):
        seen = timesteps_of(lambda **more: made(denoising_end=0.6, **more))
        assert seen == [float(value) for value in schedule.timesteps if value >= 400]
        assert off(made(), made()) == 0


def test_a_free_start_scales_the_noise_of_flow_pipelines():
    """Which never ask for init_noise_sigma."""
    made = tiny.flux()
    model = model_of(made)
    grid = torch.tensor([0.9, 0.6, 0.2, 0.0], dtype=torch.float64)
    schedule = Schedule.from_grid(grid, "ab2", model, noise_scale=0.8)
    with applied(made.pipe, schedule), torch.no_grad():
        assert off(made(), schedule.sample(model, made.noise())) < 1e-5
        assert off(made(latents=made.noise(3)), schedule.sample(model, made.noise(3))) < 1e-5


def test_a_scheduler_can_be_copied():
    made = tiny.flux()
    apply(made.pipe, Schedule.from_grid(grids.make("flow", 3), "ab2"))
    copied = copy.deepcopy(made.pipe.scheduler)
    first = made()
    made.pipe.__dict__["scheduler"] = copied
    assert torch.equal(made(), first)


def test_copies_leave_the_pipeline_alone():
    made = tiny.flux()
    apply(made.pipe, Schedule.from_grid(grids.make("flow", 3), "ab2"))
    memo = {}
    copy.deepcopy(made.pipe.scheduler, memo)
    assert id(made.pipe) not in memo and id(made.pipe.transformer) not in memo


def test_another_scheduler_put_in_place_runs_alone():
    """Its noise is not scaled for a schedule that is gone."""
    made = tiny.flux()
    stock = made(num_inference_steps=3)
    handle = apply(made.pipe, Schedule.from_grid(torch.tensor([0.8, 0.4, 0.0]).double(), "ab2", noise_scale=0.7))
    made.pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(made.pipe.scheduler.config)
    assert torch.equal(made(num_inference_steps=3), stock)
    handle.undo()


def test_a_pipeline_made_of_the_parts_of_another():
    image = torch.rand(tiny.BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    made = tiny.flux()
    schedule = Schedule.from_grid(grids.make("flow:shift=2", 4), "ab2")
    apply(made.pipe, schedule)
    parts = {name: made.pipe.components[name] for name in made.pipe.components}
    other = tiny.flux(diffusers.FluxImg2ImgPipeline, image=image)
    other.pipe = diffusers.FluxImg2ImgPipeline(**{k: v for k, v in parts.items() if k in other.pipe.components})
    handle = apply(other.pipe, schedule)
    assert len(timesteps_of(lambda **more: other(strength=0.6, **more))) == 4
    handle.undo()
    assert isinstance(other.pipe.scheduler, diffusers.FlowMatchEulerDiscreteScheduler)
    assert made.pipe.scheduler.steps == 4  # still applied there


def test_the_interface_answers():
    made = tiny.stable_diffusion()
    schedule = sd_schedule(made, 4)
    apply(made.pipe, schedule)
    scheduler = made.pipe.scheduler
    scheduler.set_timesteps(50, device="cpu", sigmas=[1.0, 0.5], mu=3)
    assert scheduler.timesteps.tolist() == schedule.timesteps.tolist() and scheduler.timesteps.dtype == torch.int64
    torch.testing.assert_close(scheduler.sigmas.double(), schedule.sigmas, rtol=1e-6, atol=0)
    assert len(scheduler) == 1000 and scheduler.order == 1
    assert scheduler.config.beta_start == 0.00085 and scheduler.alphas_cumprod.shape == (1000,)  # of the replaced one
    x, noise = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2)
    native = diffusers.DDIMScheduler(**tiny.SD)
    middle = scheduler.timesteps[1:3]
    torch.testing.assert_close(scheduler.add_noise(x, noise, middle), native.add_noise(x, noise, middle))
    out = scheduler.step(noise, scheduler.timesteps[0], x)
    assert out.prev_sample is out[0] and out.pred_original_sample.shape == x.shape and scheduler.step_index == 1
    assert isinstance(scheduler.step(noise, scheduler.timesteps[1], out[0], return_dict=False), tuple)


# Undoing.


def test_undo():
    made = tiny.flux()
    before = dict(vars(made.pipe))
    config = dict(made.pipe.config)
    schedule = Schedule.from_grid(grids.make("flow", 3), "ab2")
    with pytest.raises(KeyboardInterrupt), applied(made.pipe, schedule):
        raise KeyboardInterrupt
    assert dict(vars(made.pipe)) == before and dict(made.pipe.config) == config
    first = apply(made.pipe, schedule)
    native = made.pipe.scheduler.native
    second = apply(made.pipe, Schedule.from_grid(grids.make("flow", 4), "ab2"))  # in its place, not on top
    assert made.pipe.scheduler.native is native and made.pipe.scheduler.steps == 4
    second.undo()
    second.undo()
    assert dict(vars(made.pipe)) == before
    first.undo()
    assert dict(vars(made.pipe)) == before
    with apply(made.pipe, schedule) as handle:
        assert handle.neutralised == {"shift": 3.0, "dynamic_shift": "exponential"}
    assert dict(vars(made.pipe)) == before


# Refusals and warnings.


def test_another_prediction_is_refused():
    made = tiny.stable_diffusion()
    with pytest.raises(ValueError, match="'flow' prediction, wanted 'epsilon', that of the pipeline's PNDMScheduler"):
        apply(made.pipe, Schedule.from_grid(grids.make("flow", 3), "ab2"))
    with pytest.raises(TypeError, match="schedule: got SearchResult"):
        apply(
            made.pipe,
            search(made.pipe, 1, samples=2, teacher_steps=3, progress=False, **made.call),  # type: ignore[arg-type]
        )
    with pytest.raises(TypeError, match="pipe: got object without a scheduler"):
        apply(object(), sd_schedule(made))
    assert isinstance(made.pipe.scheduler, diffusers.PNDMScheduler)


def test_another_table_is_warned_of_and_levels_beyond_it_refused():
    made = tiny.stable_diffusion()
    other = EpsilonModel(lambda x, t: x, diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02).alphas_cumprod)
    inside = torch.cat([other.flow_table[[600, 300, 100]], torch.zeros(1, dtype=torch.float64)])
    with pytest.warns(ScheduleMismatchWarning, match="timesteps from those of this pipeline's table"):
        apply(made.pipe, Schedule.from_grid(inside, "euler", other)).undo()
    with pytest.raises(ValueError, match="t of the schedule"):
        apply(made.pipe, Schedule.from_grid(grids.for_model("ddim", 4, other), "euler", other))


def test_circumstances_that_differ_are_named():
    made = tiny.flux()
    result = search(made.pipe, 2, samples=2, teacher_steps=6, progress=False, **made.call)
    schedule = result.schedule
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScheduleMismatchWarning)
        with applied(made.pipe, schedule):
            made()
    with applied(made.pipe, schedule), pytest.warns(ScheduleMismatchWarning, match="shift: made at 1.583, here the"):
        made.pipe.scheduler.set_timesteps(mu=1.15)  # another resolution
    static = tiny.flux(dynamic=False)
    with applied(static.pipe, schedule), pytest.warns(ScheduleMismatchWarning, match="shift: .* own would be 3"):
        static()


def test_another_checkpoint_is_named():
    made = tiny.flux()
    made.pipe.register_to_config(_name_or_path="one/model")
    schedule = search(made.pipe, 1, samples=2, teacher_steps=4, progress=False, **made.call).schedule
    made.pipe.register_to_config(_name_or_path="another/model")
    with pytest.warns(ScheduleMismatchWarning, match="checkpoint: made with one/model, here another/model"):
        apply(made.pipe, schedule)


def test_truncation_is_told():
    made = tiny.stable_diffusion(diffusers.DPMSolverMultistepScheduler(**tiny.SD, use_karras_sigmas=True))
    model = model_of(made)
    handle = apply(made.pipe, Schedule.from_grid(grids.for_model("edm", 4, model), "dpmpp_2m", model))
    assert handle.neutralised["use_karras_sigmas"] is True
    assert any("would truncate the timesteps" in note for note in handle.notes)
    assert made.pipe.scheduler.timesteps.dtype == torch.float32
