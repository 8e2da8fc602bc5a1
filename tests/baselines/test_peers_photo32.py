"""GITS, DM, LD3, DS-Solver and DyWeight beside their authors' code on the bundled model; skipped without OSS_PEERS
(see `test_peers`)."""

from __future__ import annotations

import importlib

import pytest
import torch
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
    photo32,
)

from oss_ext import zoo
from oss_ext.baselines import dm, gits
from oss_ext.baselines.dm import objective


def test_gits_nodes(monkeypatch, double):
    """The very same nodes: 25 of the teacher's, 4 noises."""
    model, shape = photo32()
    ((steps, coefficient), nodes), *_ = gits_nodes(monkeypatch, model, shape, 4, 25, [(6, 1.15)], "dev", 0).items()
    torch.manual_seed(0)
    ours = gits(model, torch.randn(4, *shape), 10, grid=gits_grid(25), coefficient=coefficient)
    assert ours.details["nodes"][steps].tolist() == nodes


@pytest.mark.parametrize("steps", [5, 10])
def test_dm_objective(steps):
    """By their code (LD3's copy, for pixels) our schedule's objective is ours to 1e-6, and no higher than what their
    minimiser reaches from their start. Theirs begins at sigma 80 and sums no weight alone beyond 7 steps."""
    flow = zoo.load("photo32")
    truncate = 3 if steps <= 7 else 0
    ours = dm(flow, steps, sigma_max=80.0, truncate=truncate, starts="logsnr").details
    with checkout("LD3", "scipy", stubs=LD3_STUBS):
        schedules = importlib.import_module("noise_schedulers")
        theirs = importlib.import_module("samplers.general_solver").StepOptim(schedules.NoiseScheduleVE())
        value = float(theirs.sel_lambdas_lof_obj(ours["lambdas"][1:-1].numpy(), 0.002))
        found = theirs.get_ts_lambdas(steps, 0.002)[1]
    assert value == pytest.approx(ours["objective"], rel=1e-6)
    wanted = float(objective(found, 1, truncate))
    print(f"\n  {steps} steps: theirs {wanted:.6f}, ours {ours['objective']:.6f}", end="")
    assert ours["objective"] <= wanted * (1 + 1e-6)


@pytest.mark.parametrize("which", ["first", "learned"])
def test_ld3_loss_and_gradient(double, which):
    """At the parameters that learning begins with, and at others: the loss to 1e-5, its slope to 1e-4."""
    model, shape = photo32()
    generator = torch.Generator().manual_seed(0)
    noise, target = torch.randn(2, *shape, generator=generator), 0.5 * torch.randn(2, *shape, generator=generator)
    raw = torch.ones(5) if which == "first" else 1 + 0.5 * torch.randn(5, generator=generator)
    theirs, slope = ld3_loss_and_slope(model, noise, target, raw)
    own = learner(model, noise, target, 4, ends=-torch.tensor([80, LOW]).log())
    own.raw.data.copy_(raw)
    _, losses = own._slopes(torch.arange(2))
    off, off_slope = agreement(losses.mean(), theirs), agreement(own.raw.grad, slope)
    assert off < 1e-5 and off_slope < 1e-4


def test_ds_solver_states(double):
    """Six steps with random weights and lengths, every state."""
    flow = zoo.load("photo32", dtype=torch.float64)
    noise, cond = flow.noise(2)
    generator = torch.Generator().manual_seed(0)
    weights = 0.3 * torch.randn(6, 6, generator=generator).tril(-1)
    lengths = torch.softmax(torch.randn(6, generator=generator), 0)
    label = cond["label"].repeat(2)  # its guidance asks for both halves of a batch

    def velocity(x, t):
        return flow.velocity(x, t, {"label": label[: len(x)]})

    theirs, own = ds_solver_states(velocity, noise, weights, lengths)
    ours = own.sample(flow, noise, cond, return_trajectory=True)[1]
    assert agreement(ours, theirs) < 1e-9


def test_dyweight_states(double):
    """Six steps with random weights, the end."""
    model, shape = photo32()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, *shape, generator=generator)
    weights = torch.eye(6) + 0.1 * torch.randn(6, 6, generator=generator).tril()
    weights = weights / weights.sum(1, keepdim=True) * (1 - 0.1 * torch.rand(6, 1, generator=generator))
    theirs, own, _ = dyweight_states(model, noise, weights)
    assert agreement(own.sample(model, noise), theirs) < 1e-5
