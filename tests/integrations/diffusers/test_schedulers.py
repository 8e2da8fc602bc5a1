"""What we read in a scheduler's configuration, against what that scheduler does: a pipeline under `apply` along the
noise levels of its own scheduler's grid does what the scheduler did."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed, which diffusers' pipelines import")

import diffusers
from helpers import tiny_pipelines as tiny
from helpers.more_tiny_pipelines import PIPELINES, lumina
from helpers.tiny_video_pipelines import mochi

from oss_ext import Schedule
from oss_ext.integrations.diffusers import applied, family_of, search

STEPS = 6
SD = tiny.SD
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def off(found, wanted):
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def same(made, schedule, tolerance, start):
    """start: the native's first latents / ours; the pipelines of VP models start from the noise, not s times it."""
    stock = made(num_inference_steps=STEPS)
    with applied(made.pipe, schedule):
        ours = made(latents=made.noise() * start, num_inference_steps=STEPS)
    print(type(made.pipe.scheduler).__name__, off(ours, stock))
    assert off(ours, stock) < tolerance


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    ("kind", "options", "solver"),
    [
        ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1}, "euler"),
        ("DPMSolverMultistepScheduler", {"solver_order": 1, "final_sigmas_type": "zero"}, "euler"),
        ("DPMSolverMultistepScheduler", {"solver_order": 2}, "dpmpp_2m"),
        ("UniPCMultistepScheduler", {"solver_order": 2, "final_sigmas_type": "zero"}, "unipc_2"),
    ],
)
def test_vp_of_whole_timesteps(kind, options, solver, prediction):
    native = getattr(diffusers, kind)(**SD, prediction_type=prediction, **options)
    made = tiny.stable_diffusion(native)
    family = family_of(native)
    assert family.whole and family.parameterization == {"v_prediction": "v_param", "sample": "x0"}.get(
        prediction, prediction
    )
    native.set_timesteps(STEPS)
    model = family.denoiser(made.network)
    t = torch.cat([model.flow_table[native.timesteps], torch.zeros(1, dtype=torch.float64)])
    schedule = Schedule.from_grid(t, solver, model)
    assert torch.equal(schedule.timesteps, native.timesteps.double())
    same(made, schedule, 1e-5, 1 / (schedule.noise_scale * family.input_scale(float(t[0]))))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("options", [{}, {"use_karras_sigmas": True}, {"rescale_betas_zero_snr": True}])
def test_euler(options, prediction):
    native = diffusers.EulerDiscreteScheduler(**SD, prediction_type=prediction, timestep_spacing="trailing", **options)
    made = tiny.stable_diffusion(native)
    family = family_of(native)
    assert not family.whole
    native.set_timesteps(STEPS)
    sigma = native.sigmas.double()
    t = sigma / (1 + sigma)
    model = family.denoiser(made.network)
    schedule = Schedule.from_grid(t.clamp(max=model.t_max), "euler", model)
    same(made, schedule, 2e-4 if "rescale_betas_zero_snr" in options else 1e-5, 1.0)  # sigma 4096 in float32


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm(prediction):
    native = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=40.0, prediction_type=prediction)
    made = tiny.stable_diffusion(native)
    family = family_of(native)
    assert family.parameterization == "edm" and family.sigma_data == 0.5
    native.set_timesteps(STEPS)
    sigma = native.sigmas.double()
    model = family.denoiser(made.network)
    schedule = Schedule.from_grid(sigma / (1 + sigma), "euler", model)
    torch.testing.assert_close(family.told(schedule.told), native.timesteps.double(), rtol=1e-5, atol=1e-6)
    same(made, schedule, 1e-5, float(native.init_noise_sigma / sigma[0]))


def test_continuous_v_prediction():
    """As Stable Video Diffusion's."""
    native = diffusers.EulerDiscreteScheduler(
        **SD,
        prediction_type="v_prediction",
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
    )
    made = tiny.stable_diffusion(native)
    family = family_of(native)
    assert family.parameterization == "edm" and family.sigma_data == 1
    native.set_timesteps(STEPS)
    sigma = native.sigmas.double()
    model = family.denoiser(made.network)
    schedule = Schedule.from_grid(sigma / (1 + sigma), "euler", model)
    torch.testing.assert_close(family.told(schedule.told), native.timesteps.double(), rtol=1e-5, atol=1e-6)
    same(made, schedule, 1e-5, float(native.init_noise_sigma / sigma[0]))


@pytest.mark.parametrize(
    ("kind", "options", "solver"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "euler"),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_karras_sigmas": True}, "euler"),
        ("UniPCMultistepScheduler", {**FLOW, "flow_shift": 3.0, "solver_order": 2}, "unipc_2"),
        ("DPMSolverMultistepScheduler", {**FLOW, "flow_shift": 3.0, "solver_order": 2}, "dpmpp_2m"),
    ],
)
def test_flow(kind, options, solver):
    """Those that truncate timesteps are followed on what they tell: network_t. All start from the noise itself."""
    native = getattr(diffusers, kind)(**options)
    made = tiny.wan(native)
    family = family_of(native)
    assert family.parameterization == "flow" and family.whole == (kind == "UniPCMultistepScheduler" or "DPM" in kind)
    assert family.shift_of(None) == 3.0
    native.set_timesteps(STEPS)
    t = native.sigmas.double()
    schedule = Schedule.from_grid(t, solver, family.denoiser(made.network))
    told = native.timesteps.double() / 1000
    schedule = Schedule(**{**vars(schedule), "network_t": told, "timesteps": told, "noise_scale": 1.0})
    same(made, schedule, 1e-5, 1.0)


def test_levels_that_a_pipeline_preconditions_by_itself():
    """Cosmos 2: variance-exploding sigmas from 80 in a flow-matching scheduler."""
    made = PIPELINES["Cosmos2TextToImagePipeline"]()
    native = made.pipe.scheduler
    native.register_to_config(final_sigmas_type="zero")  # else its last step has no length
    family = family_of(native)
    assert family.parameterization == "edm" and family.exploding and family.held == 80
    native.set_timesteps(sigmas=torch.linspace(0, 1, STEPS, dtype=torch.float64))
    sigma = native.sigmas.double()
    schedule = Schedule.from_grid(sigma / (1 + sigma), "euler", family.denoiser(made.network))
    same(made, schedule, 1e-5, 1.0)


def test_dynamic_shift_is_known():
    family = family_of(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True))
    assert family.shift_of(0.7) == pytest.approx(2.01375, abs=1e-4)
    linear = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear")
    assert family_of(linear).shift_of(0.7) == 0.7


def test_an_inverted_flow_runs_the_other_way():
    """Mochi's: the native's own step against ours, on its own levels."""
    native = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    native.set_timesteps(sigmas=[0.999, 0.7, 0.3])
    family = family_of(native)
    t = 1 - native.sigmas.double()
    torch.testing.assert_close(family.told(t[:-1]), native.timesteps.double(), rtol=1e-5, atol=1e-3)
    x, output = torch.randn(2, 3), torch.randn(2, 3)
    of_state, of_output = family.velocity_weights(float(t[0]))
    ours = x + float(t[1] - t[0]) * (of_state * x + of_output * output)
    torch.testing.assert_close(native.step(output, native.timesteps[0], x).prev_sample, ours)


@pytest.mark.parametrize(
    ("kind", "options"), [("DDPMWuerstchenScheduler", {}), ("VQDiffusionScheduler", {"num_vec_classes": 4})]
)
def test_others_are_refused(kind, options):
    with pytest.raises(ValueError, match=f"scheduler: got {kind}"):
        family_of(getattr(diffusers, kind)(**options))


def test_a_prediction_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="prediction_type 'trigflow'"):
        family_of(diffusers.SCMScheduler())


@pytest.mark.parametrize("make", [lumina, mochi])
def test_loops_that_turn_things_round(make):
    """Nothing of these pipelines is written down here: along its own scheduler's levels Euler is what it does alone."""
    pipe, call = make()

    def run():
        return pipe(**call, generator=torch.Generator().manual_seed(1), num_inference_steps=STEPS, return_dict=False)[0]

    stock = run()
    family = family_of(pipe.scheduler)
    sigmas = pipe.scheduler.sigmas.double()
    t = 1 - sigmas if family.inverted else sigmas
    assert float(t[-1]) == 0
    schedule = Schedule.from_grid(t, "euler")
    with applied(pipe, replace(schedule, noise_scale=1.0)):
        assert off(run(), stock) < 1e-5
    found = search(pipe, 3, samples=2, teacher_steps=8, progress=False, seed=1, **call)
    with applied(pipe, found.schedule):
        assert off(run(), found.endpoints[3]) < 1e-4
