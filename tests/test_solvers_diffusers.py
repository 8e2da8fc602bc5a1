"""Schedules against diffusers' schedulers, which are given the schedule's nodes: by their own arguments where they take
any, else written into them. Skipped without diffusers.

Both start from the same state, the first node's sigma times the noise in the sampler's own scale. (The pipelines of VP
models take the noise itself, a difference of 2e-5 at timestep 999.)
"""

from __future__ import annotations

import pytest
import torch
from helpers.analytic import mixture, normal

from oss_ext import grids, single_step, solvers
from oss_ext.models import EpsilonModel, FlowModel
from oss_ext.schedule import Schedule

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

FP32 = 1e-4
TIMESTEPS = {
    20: [999, 990, 972, 950, 911, 870, 823, 760, 700, 641, 580, 500, 433, 360, 300, 222, 150, 90, 41, 7],
    6: [999, 860, 600, 411, 170, 30],
}


def close(found, wanted, tolerance, record_property):
    """The largest difference, relative to the largest number wanted."""
    off = float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())
    record_property("relative difference", off)
    print(f"relative difference {off:.2e}")
    assert off <= tolerance, off


def flow_nodes(steps):
    """Flow times from 0.993 to 0.018, equally spaced in lambda, then 0."""
    return torch.cat([torch.linspace(5, -4, steps, dtype=torch.float64).sigmoid(), torch.zeros(1).double()])


def lowered(name, t):
    """`name` along t, the last step but one of order 2, as diffusers' `lower_order_final` makes those of order 3.

    UniPC's predictor alone is lowered there: the corrector mends the step before.
    """
    rows = solvers.along(solvers.get(name), t)

    def add(weight, other):
        row = solvers.along(solvers.get(other), t)[-2]
        rows[-2, : len(row)] += weight * row

    if name == "unipc_3":
        add(-1, "unip_3")
        add(1, "unip_2")
    else:
        rows[-2] = 0
        add(1, {"unip_3": "unip_2", "dpmpp_3m": "dpmpp_2m", "deis_3": "deis_2"}[name])
    return Schedule.from_grid(t, name, coefficients=rows)


# Written into the scheduler, in float64.


def flow_scheduler(kind, t, **options):
    made = getattr(diffusers, kind)(prediction_type="flow_prediction", use_flow_sigmas=True, **options)
    made.set_timesteps(len(t) - 1)
    made.sigmas, made.timesteps = t.clone(), torch.arange(1000, 1001 - len(t), -1)
    made.set_begin_index(0)
    return made


def flow_states(made, model, noise, t):
    """Their state at every node."""
    states = [noise * t[0].to(noise)]
    for n in range(len(t) - 1):
        out = model.velocity(states[-1], t[n].expand(len(noise)))
        states.append(made.step(out, made.timesteps[n], states[-1]).prev_sample.to(noise.dtype))
    return states


@pytest.mark.parametrize("steps", [18, 7])
@pytest.mark.parametrize(
    ("name", "kind", "options", "tolerance"),
    [
        # DPMSolverMultistepScheduler computes in float32.
        ("euler", "DPMSolverMultistepScheduler", {"solver_order": 1}, 1e-5),
        ("dpmpp_2m", "DPMSolverMultistepScheduler", {"solver_order": 2}, 1e-5),
        ("dpmpp_3m", "DPMSolverMultistepScheduler", {"solver_order": 3}, 1e-5),
        ("unip_2", "UniPCMultistepScheduler", {"solver_order": 2, "disable_corrector": list(range(20))}, 1e-12),
        ("unip_3", "UniPCMultistepScheduler", {"solver_order": 3, "disable_corrector": list(range(20))}, 1e-12),
        ("unipc_2", "UniPCMultistepScheduler", {"solver_order": 2}, 1e-12),
        ("unipc_3", "UniPCMultistepScheduler", {"solver_order": 3}, 1e-12),
        ("deis_2", "DEISMultistepScheduler", {"solver_order": 2}, 1e-12),
        ("deis_3", "DEISMultistepScheduler", {"solver_order": 3}, 1e-12),
    ],
)
def test_every_state(name, kind, options, tolerance, steps, record_property):
    """Order 3 lowers the last step but one: UniPC always, the others below 15 steps. DEIS gives NaN at sigma = 0."""
    model, noise, t = mixture(1).flow(), normal(6, 4), flow_nodes(steps)
    lowers = options["solver_order"] == 3 and (steps < 15 or kind == "UniPCMultistepScheduler")
    schedule = lowered(name, t) if lowers else Schedule.from_grid(t, name)
    _, path = schedule.sample(model, noise, return_trajectory=True)
    end = -1 if kind == "DEISMultistepScheduler" else None
    states = torch.stack(flow_states(flow_scheduler(kind, t, **options), model, noise, t)[:end], 1)
    close(path[:, :end], states, tolerance, record_property)
    if lowers:  # and plainly before it
        _, path = Schedule.from_grid(t, name).sample(model, noise, return_trajectory=True)
        close(path[:, :-2], states[:, : steps - 1], tolerance, record_property)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 12])
def test_ipndm(steps, record_property):
    """IPNDMScheduler, order 4, fed v-prediction, with the schedule's a and s as its alphas and betas."""
    model, noise, t = mixture(1).flow(), normal(6, 4), flow_nodes(steps)
    made = diffusers.IPNDMScheduler()
    made.set_timesteps(steps)
    scale = (t**2 + (1 - t) ** 2).rsqrt()
    made.alphas, made.betas = (1 - t) * scale, t * scale
    x = noise * made.betas[0]
    for n, timestep in enumerate(made.timesteps):
        inside = x / scale[n]
        v = model.velocity(inside, t[n].expand(6))
        x0, eps = inside - t[n] * v, inside + (1 - t[n]) * v
        x = made.step(made.alphas[n] * eps - made.betas[n] * x0, timestep, x).prev_sample
    close(Schedule.from_grid(t, "ipndm_4").sample(model, noise), x, 1e-12, record_property)


def test_lms(record_property):
    """LMSDiscreteScheduler, order 4, whose coefficients are quadratures to 1e-4."""
    model, noise = mixture(1).edm(), normal(6, 4)
    t = grids.for_model("edm", 12, model)
    made = diffusers.LMSDiscreteScheduler()
    made.set_timesteps(12)
    made.sigmas = t / (1 - t)
    x = noise * made.sigmas[0]
    for n, timestep in enumerate(made.timesteps):
        denoised = model.fn(x, made.sigmas[n].expand(6))
        x = made.step((x - denoised) / made.sigmas[n], timestep, x).prev_sample
    close(Schedule.from_grid(t, "lms_4", model).sample(model, noise), x, FP32, record_property)


# By their own arguments, in float32.


def vp_model(made):
    """An epsilon network of whole timesteps, with the scheduler's own (float32) table."""
    return EpsilonModel(mixture(1).vp(EpsilonModel).fn, made.alphas_cumprod)


def vp_sample(made, model, noise, start):
    x = noise * start
    for timestep in made.timesteps:
        out = model.fn(made.scale_model_input(x, timestep), timestep.expand(len(noise)))
        x = made.step(out, timestep, x).prev_sample
    return x


def vp_nodes(model, timesteps):
    return torch.cat([model.flow_table[timesteps], torch.zeros(1, dtype=torch.float64)])


@pytest.mark.parametrize("steps", list(TIMESTEPS))
@pytest.mark.parametrize(("order", "name"), [(1, "ddim"), (2, "dpmpp_2m"), (3, "dpmpp_3m")])
def test_dpm_solver_on_custom_timesteps(order, name, steps, record_property):
    made = diffusers.DPMSolverMultistepScheduler(solver_order=order)
    made.set_timesteps(timesteps=TIMESTEPS[steps])
    model, noise = vp_model(made), normal(6, 4, dtype=torch.float32)
    t = vp_nodes(model, TIMESTEPS[steps])
    theirs = vp_sample(made, model, noise, (1 - made.alphas_cumprod[TIMESTEPS[steps][0]]).sqrt())
    schedule = lowered(name, t) if order == 3 and steps < 15 else Schedule.from_grid(t, name, model)
    close(schedule.sample(model, noise), theirs, FP32, record_property)


@pytest.mark.parametrize("steps", list(TIMESTEPS))
@pytest.mark.parametrize("by", ["timesteps", "sigmas"])
def test_euler_discrete(by, steps, record_property):
    """sigmas off the table: it feeds the network the same fractional timesteps."""
    made = diffusers.EulerDiscreteScheduler()
    model, noise = vp_model(made), normal(6, 4, dtype=torch.float32)
    if by == "timesteps":
        t = vp_nodes(model, TIMESTEPS[steps])
        made.set_timesteps(timesteps=TIMESTEPS[steps])
    else:
        t = grids.for_model("edm", steps, model)
        made.set_timesteps(sigmas=(t / (1 - t)).tolist())
        torch.testing.assert_close(made.timesteps.double(), model.timesteps(t[:-1]), rtol=0, atol=2e-2)
    theirs = vp_sample(made, model, noise, made.sigmas[0])
    close(Schedule.from_grid(t, "euler", model).sample(model, noise), theirs, FP32, record_property)


@pytest.mark.parametrize("steps", [5, 20])
def test_ddim_on_its_own_timesteps(steps, record_property):
    """It takes none from outside, and steps back by 1000 // steps; its last step goes to 0."""
    made = diffusers.DDIMScheduler(timestep_spacing="leading", set_alpha_to_one=True, clip_sample=False)
    made.set_timesteps(steps)
    model, noise = vp_model(made), normal(6, 4, dtype=torch.float32)
    t = vp_nodes(model, made.timesteps)
    theirs = vp_sample(made, model, noise, (1 - made.alphas_cumprod[made.timesteps[0]]).sqrt())
    close(Schedule.from_grid(t, "ddim", model).sample(model, noise), theirs, FP32, record_property)


@pytest.mark.parametrize("steps", [6, 20])
@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("euler", "FlowMatchEulerDiscreteScheduler", {}),
        ("unipc_2", "UniPCMultistepScheduler", {"solver_order": 2}),
        ("unipc_3", "UniPCMultistepScheduler", {"solver_order": 3}),
    ],
)
def test_flow_schedulers_on_custom_sigmas(name, kind, options, steps, record_property):
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True} if kind.startswith("UniPC") else {}
    made = getattr(diffusers, kind)(**flow, **options)
    t = flow_nodes(steps)
    made.set_timesteps(sigmas=t[:-1].numpy())
    model, noise = mixture(1).flow(), normal(6, 4, dtype=torch.float32)
    torch.testing.assert_close(made.sigmas.double(), t, rtol=1e-6, atol=1e-6)
    theirs = flow_states(made, model, noise, t)[-1]
    schedule = lowered(name, t) if name == "unipc_3" else Schedule.from_grid(t, name)
    close(schedule.sample(model, noise), theirs, FP32, record_property)


@pytest.mark.parametrize("steps", list(TIMESTEPS))
def test_heun_on_custom_timesteps(steps, record_property):
    made = diffusers.HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02)
    made.set_timesteps(timesteps=TIMESTEPS[steps])
    model, noise = vp_model(made), normal(6, 4, dtype=torch.float32)
    theirs = vp_sample(made, model, noise, made.sigmas[0])
    x0, nfe = single_step.sample(model, noise, vp_nodes(model, TIMESTEPS[steps]), "heun")
    assert nfe == len(made.timesteps) == 2 * steps - 1
    close(x0, theirs, FP32, record_property)


def test_heun_in_flow_time(record_property):
    made = diffusers.FlowMatchHeunDiscreteScheduler()
    made.set_timesteps(8)
    model, noise = mixture(1).flow(), normal(6, 4, dtype=torch.float32)
    sigmas = made.sigmas.double()
    t, x = torch.cat([sigmas[:1], sigmas[1::2]]), noise * made.sigmas[0]
    for timestep in made.timesteps:
        x = made.step(model.velocity(x, (timestep / 1000).double().expand(6)), timestep, x).prev_sample
    x0, nfe = single_step.sample(model, noise, t, "heun_flow")
    assert nfe == len(made.timesteps) == 15
    close(x0, x, FP32, record_property)


# Whole timesteps only.


@pytest.mark.parametrize("grid", ["edm", "logsnr", "quadratic", "flow:shift=3"])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_snapped_grids_agree_exactly_and_others_do_not(name, grid, record_property):
    """DPMSolverMultistepScheduler truncates timesteps to integers: on snapped nodes nothing is left to truncate, and
    what remains is the rounding of float32 sigmas and states; off them its path is another one."""
    made = diffusers.DPMSolverMultistepScheduler(solver_order={"ddim": 1, "dpmpp_2m": 2}[name])
    model, noise = vp_model(made), normal(6, 4, dtype=torch.float32)

    def theirs(t):
        made.set_timesteps(timesteps=model.timesteps(t[:-1]).tolist())
        return vp_sample(made, model, noise, (1 - made.alphas_cumprod[int(made.timesteps[0])]).sqrt())

    t = grids.for_model(grid, 16, model)
    snapped = grids.on_whole_timesteps(t, model)
    close(Schedule.from_grid(snapped, name, model).sample(model, noise), theirs(snapped), 2e-6, record_property)
    off = float((Schedule.from_grid(t, name, model).sample(model, noise) - theirs(t)).abs().max())
    print(f"not snapped {off:.2e}")
    assert off > 2e-4


def test_flow_samplers_that_truncate(record_property):
    """UniPC for flows truncates 1000 t: a network fed its timesteps sees the schedule's own nodes after snapping."""
    flow = mixture(1).flow()
    t = grids.snap(flow_nodes(16), torch.arange(1000, 0, -1, dtype=torch.float64) / 1000)
    made = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    made.set_timesteps(sigmas=t[:-1].numpy() + 1e-9)  # 0.57 * 1000 is 569.99...: rounding must not cost a timestep
    assert torch.equal(made.timesteps.double() / 1000, t[:-1])
    noise = normal(6, 4, dtype=torch.float32)
    x = noise * made.sigmas[0]
    for timestep in made.timesteps:
        x = made.step(flow.fn(x, (timestep.double() / 1000).expand(6)), timestep, x).prev_sample
    close(Schedule.from_grid(t, "unipc").sample(FlowModel(flow.fn), noise), x, 1e-5, record_property)
