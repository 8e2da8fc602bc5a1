"""The baselines beside their authors' code. OSS_PEERS names a folder with checkouts diff-sampler/ (zju-pi),
DM-NonUniform/ (scxue), LD3/ (vinhsuhi), NeuralSolver/ (MCG-NJU) and DyWeight/ (Westlake-AGI-Lab); skipped without."""

from __future__ import annotations

import importlib

import pytest
import torch
from helpers.analytic import mixture
from helpers.ld3 import learner
from helpers.peers import agreement, checkout
from helpers.rivals import (
    LD3_STUBS,
    LOW,
    ds_solver_states,
    dyweight_states,
    gits_grid,
    gits_nodes,
    ld3_loss_and_slope,
)

from oss_ext import EDMModel
from oss_ext.baselines import dm, gits
from oss_ext.baselines.dm import objective
from oss_ext.baselines.ld3 import place

SHAPE = (2, 3, 3)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("metric, theirs", [("deviation", "dev"), ("l2", "l2"), ("l1", "l1")])
def test_gits_nodes(monkeypatch, double, seed, metric, theirs):
    """61 nodes, iPNDM-4, float64."""
    model = EDMModel(mixture(seed, shape=SHAPE).edm().fn, LOW, 80.0)
    cases = [(steps, coefficient) for coefficient in (1.0, 1.15) for steps in (3, 5, 8, 10)]
    wanted = gits_nodes(monkeypatch, model, SHAPE, 32, 61, cases, theirs, seed)
    torch.manual_seed(seed)
    noise = torch.randn(32, *SHAPE)
    for (steps, coefficient), nodes in wanted.items():
        ours = gits(model, noise, steps, grid=gits_grid(61), metric=metric, coefficient=coefficient)
        assert ours.details["nodes"][steps].tolist() == nodes


def schedule_of(module):
    """The continuous linear schedule of DM's code, of t in 1e-3..1: sigma / alpha from 0.0101 to 152."""
    return module.StepOptim(module.NoiseScheduleVP("linear"))


@pytest.mark.parametrize("count", [3, 4, 5, 7, 8, 12, 20])
def test_dm_objective(count):
    """Its latent form with its hard-coded truncation."""
    with checkout("DM-NonUniform", "scipy"):
        theirs = schedule_of(importlib.import_module("step_optim"))
        low, high = float(theirs.lambda_func(1.0)), float(theirs.lambda_func(1e-3))
        for seed in range(5):
            gaps = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
            lambdas = low + (high - low) * torch.cat([gaps.new_zeros(1), gaps.cumsum(0) / gaps.sum()])
            lambdas[0], lambdas[-1] = low, high
            wanted = float(theirs.sel_lambdas_lof_obj(lambdas[1:-1].numpy(), 1e-3))
            assert float(objective(lambdas, 2, 3)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("count", [5, 10])
def test_dm_minimum(count):
    """Its get_ts_lambdas from uniform time: ours ends no higher."""
    with checkout("DM-NonUniform", "scipy"):
        theirs = schedule_of(importlib.import_module("step_optim"))
        found = theirs.get_ts_lambdas(count, 1e-3, "unif_t")[1]
        wanted = float(objective(found, 2, 3))
        low, high = (-found[[-1, 0]]).exp().tolist()
        model = EDMModel(lambda x, sigma: x, low, high)
        ours = dm(model, count, error="latent").details["objective"]
        print(f"\n  {count} steps: theirs {wanted:.6f}, ours {ours:.6f}", end="")
        assert ours <= wanted * (1 + 1e-6)


@pytest.mark.parametrize("count", [3, 4, 7, 8, 12])
def test_dm_objective_for_pixels(count):
    """LD3's copy of DM's code, with the form for pixels and the switch at 7 steps."""
    with checkout("LD3", "scipy", stubs=LD3_STUBS):
        schedules = importlib.import_module("noise_schedulers")
        theirs = importlib.import_module("samplers.general_solver").StepOptim(schedules.NoiseScheduleVE())
        ends = -torch.tensor([80, 0.002], dtype=torch.float64).log()
        for seed in range(5):
            gaps = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
            reached = torch.cat([gaps.new_zeros(1), gaps.cumsum(0) / gaps.sum()])
            lambdas = ends[0] + (ends[1] - ends[0]) * reached
            wanted = float(theirs.sel_lambdas_lof_obj(lambdas[1:-1].numpy(), 0.002))
            assert float(objective(lambdas, 1, 3 if count <= 7 else 0)) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("mode", ["lambda", "time"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ld3_times(double, mode, seed):
    """discretize_model_wrapper. In its mode "lambda" the window is of its raw parameters: only the first times are
    alike there."""
    with checkout("LD3", "scipy", stubs=LD3_STUBS):
        schedule = importlib.import_module("noise_schedulers").NoiseScheduleVE(sigma_min=0.002)
        wrap = importlib.import_module("trainer").discretize_model_wrapper
        generator = torch.Generator().manual_seed(seed)
        raw, moved = torch.randn(9, generator=generator), 3 * torch.randn(9, generator=generator)
        low, high = schedule.lambda_min, schedule.lambda_max
        sigma, told = wrap(raw, moved, high, low, schedule, mode, 0.5)()
        ends = torch.tensor([low, high]) if mode == "lambda" else torch.tensor([80.0, 0.002])
        times = place(raw, moved, ends, mode, 0.5)
        ours, ours_told = times.t[:-1], times.network_t
        if mode == "lambda":
            ours = ours / (1 - ours)
        torch.testing.assert_close(ours, sigma[:-1], rtol=1e-6, atol=0)
        if mode == "time":
            torch.testing.assert_close(ours_told, told[:-1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("steps", [4, 8])
def test_ld3_loss_and_gradient(double, steps, seed):
    """Of its DPM-Solver++ (order 2) through discretize_model_wrapper, and of ours, from the same parameters."""
    model = EDMModel(mixture(seed, shape=SHAPE).edm().fn, LOW, 80.0)
    generator = torch.Generator().manual_seed(seed)
    noise, target = (torch.randn(4, *SHAPE, generator=generator) for _ in range(2))
    raw = 0.5 * torch.randn(steps + 1, generator=generator)
    theirs, slope = ld3_loss_and_slope(model, noise, target, raw)
    own = learner(model, noise, target, steps, ends=-torch.tensor([80, LOW]).log())
    own.raw.data.copy_(raw)
    _, losses = own._slopes(torch.arange(4))
    off, off_slope = agreement(losses.mean(), theirs), agreement(own.raw.grad, slope)
    assert off < 1e-5 and off_slope < 1e-4


def test_ds_solver_states(double):
    """NeuralSolverSampler with random weights and steps."""
    flow = mixture(1, shape=SHAPE).flow()
    for steps in (3, 6, 8):
        generator = torch.Generator().manual_seed(steps)
        noise = torch.randn(4, *SHAPE, generator=generator)
        weights = 0.3 * torch.randn(steps, steps, generator=generator).tril(-1)
        lengths = torch.softmax(torch.randn(steps, generator=generator), 0)
        theirs, own = ds_solver_states(flow.velocity, noise, weights, lengths)
        ours = own.sample(flow, noise, return_trajectory=True)[1]
        assert agreement(ours, theirs) < 1e-10


@pytest.mark.parametrize("steps", [3, 6])
@pytest.mark.parametrize("told", [False, True])
def test_dyweight_states(double, steps, told):
    """dyweight_sampler with random weights. Its last level is tiny, and it divides by sigma + 1e-8. With factors the
    network's input differs (see the file), so that the levels that it is told are compared instead."""
    model = EDMModel(mixture(1, shape=SHAPE).edm().fn, LOW, 80.0)
    generator = torch.Generator().manual_seed(steps)
    noise = torch.randn(4, *SHAPE, generator=generator)
    weights = torch.eye(steps) + 0.1 * torch.randn(steps, steps, generator=generator).tril()
    weights = weights / weights.sum(1, keepdim=True) * (1 - 0.1 * torch.rand(steps, 1, generator=generator))
    factors = 1 + 0.05 * torch.randn(steps, generator=generator) if told else None
    theirs, own, (levels, ours) = dyweight_states(model, noise, weights, factors)
    assert agreement(ours, levels) < 1e-8
    if not told:
        assert agreement(own.sample(model, noise), theirs) < 1e-5
