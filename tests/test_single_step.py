from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers.analytic import gaussian, gaussian_path, mixture, normal
from helpers.counting import Counting

from oss_ext import grids, single_step
from oss_ext.models import FlowModel
from oss_ext.schedule import Schedule


def heun(denoise, x, sigmas):
    """Karras et al., Algorithm 1, with no churn."""
    for now, after in itertools.pairwise(sigmas):
        d = (x - denoise(x, now)) / now
        euler = x + (after - now) * d
        if after == 0:
            return euler
        x = x + (after - now) * (d + (euler - denoise(euler, after)) / after) / 2


def dpm_2(denoise, x, sigmas):
    """DPM-Solver-2 in the form of k-diffusion's sample_dpm_2."""
    for now, after in itertools.pairwise(sigmas):
        d = (x - denoise(x, now)) / now
        if after == 0:
            return x + (after - now) * d
        middle = math.exp((math.log(now) + math.log(after)) / 2)
        there = x + (middle - now) * d
        x = x + (after - now) * (there - denoise(there, middle)) / middle


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize(("method", "published"), [("heun", heun), ("dpm_2", dpm_2)])
def test_the_published_sampler(method, published, steps):
    distribution, noise = mixture(1), normal(6, 4)
    model = Counting(distribution.edm())
    t = grids.for_model("edm", steps, model)
    x0, nfe = single_step.sample(model, noise, t, method)

    def denoise(x, sigma):
        return distribution.posterior_mean(x, torch.ones(1), torch.tensor([sigma], dtype=torch.float64))

    sigmas = (t / (1 - t)).tolist()
    torch.testing.assert_close(x0, published(denoise, sigmas[0] * noise, sigmas), rtol=1e-10, atol=1e-10)
    assert nfe == 2 * steps - 1 and model.evaluations == nfe * len(noise)


def test_heun_in_flow_time():
    model, noise = mixture(1).flow(), normal(6, 4)
    t = grids.make("flow:shift=2", 5)
    x = noise
    for now, after in itertools.pairwise(t.tolist()):
        v = model.velocity(x, torch.full((6,), now, dtype=torch.float64))
        end = x + (after - now) * v
        if after > 0:
            end = x + (after - now) * (v + model.velocity(end, torch.full((6,), after, dtype=torch.float64))) / 2
        x = end
    x0, nfe = single_step.sample(model, noise, t, "heun_flow")
    torch.testing.assert_close(x0, x, rtol=1e-12, atol=1e-12)
    assert nfe == 9


@pytest.mark.parametrize("method", single_step.METHODS)
def test_order_2(method, record_property):
    """On one Gaussian, whose path is known, from sigma 9 to 1/9 in equal steps of log sigma."""
    distribution, noise = gaussian(std=0.7), normal(16, 3)
    start, end = 0.9, 0.1
    errors = []
    for steps in (40, 80, 160):
        t = torch.sigmoid(-torch.linspace(-math.log(9), math.log(9), steps + 1, dtype=torch.float64))
        begin = gaussian_path(distribution, noise, start) / start
        state = trajectory_end(distribution.flow(), begin, t, method)
        errors.append(float((state - gaussian_path(distribution, noise, end)).abs().max()))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    record_property("slopes", slopes)
    print(method, [f"{error:.2e}" for error in errors], [f"{slope:.2f}" for slope in slopes])
    assert abs(slopes[-1] - 2) < 0.1, (errors, slopes)


def trajectory_end(model, noise, t, method):
    """The state at t[-1] > 0: a step to 0 is appended, and what the model is asked there is what it starts from."""
    asked = []

    class Spy(Counting):
        def velocity(self, x, at, cond=None):
            asked.append((x.clone(), float(at[0])))
            return super().velocity(x, at, cond)

    single_step.sample(Spy(model), noise, torch.cat([t, t.new_zeros(1)]), method)
    state, at = asked[-1]
    assert at == float(t[-1])
    return state


@pytest.mark.parametrize("method", single_step.METHODS)
def test_one_step_is_eulers_and_batches_do_not_matter(method):
    model, noise = mixture(1).edm(), normal(5, 4)
    t = grids.for_model("edm", 1, model)
    x0, nfe = single_step.sample(model, noise, t, method)
    assert nfe == 1
    torch.testing.assert_close(x0, Schedule.from_grid(t, "euler", model).sample(model, noise), rtol=1e-12, atol=1e-12)
    t = grids.for_model("edm", 4, model)
    whole, nfe = single_step.sample(model, noise, t, method)
    parts, same = single_step.sample(model, noise, t, method, batch_size=2)
    assert torch.equal(whole, parts) and nfe == same == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(dtype):
    model = mixture(1).edm()
    t = grids.for_model("edm", 6, model)
    x0, _ = single_step.sample(model, normal(4, 4, dtype=dtype), t, "heun")
    wanted, _ = single_step.sample(model, normal(4, 4, dtype=dtype).double(), t, "heun")
    assert x0.dtype == dtype
    torch.testing.assert_close(x0.double(), wanted, rtol=0, atol=1e-3 if dtype == torch.float32 else 0.2)


def test_cond_reaches_both_evaluations():
    model = FlowModel(lambda x, t, label: label[:, None] - 0 * x)
    x0, nfe = single_step.sample(
        model, torch.zeros(2, 3), torch.tensor([0.5, 0.25, 0.0]), "heun_flow", {"label": torch.tensor([2.0, 4.0])}
    )
    assert x0[:, 0].tolist() == [-1, -2] and nfe == 3


def test_bad_input_is_refused_before_any_evaluation():
    model, noise = Counting(mixture().flow()), normal(2, 4)
    with pytest.raises(ValueError, match="method: got 'rk4', wanted one of heun, heun_flow, dpm_2"):
        single_step.sample(model, noise, grids.make("flow", 3), "rk4")
    for method in ("heun", "dpm_2"):
        with pytest.raises(ValueError, match=f"t: got the first node 1, .*'{method}' wanted it below 1"):
            single_step.sample(model, noise, grids.make("flow", 3), method)
    with pytest.raises(ValueError, match="t: got the last node"):
        single_step.sample(model, noise, torch.tensor([0.5, 0.1]))
    with pytest.raises(ValueError, match=r"batch_size: got 0"):
        single_step.sample(model, noise, grids.make("edm", 3), batch_size=0)
    assert model.evaluations == 0
