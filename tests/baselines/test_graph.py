"""Training with a CUDA graph against training without, on the bundled model."""

from __future__ import annotations

import pytest
import torch
from helpers.analytic import ddpm_table

from oss_ext import EpsilonModel, zoo
from oss_ext.baselines import Training, bns, ds_solver, dyweight, ld3

FEW = {"iterations": 30, "minibatch": 6}


def bundled(family, device):
    flow = zoo.load("photo32", device=device)
    noise, cond = flow.noise(12)
    if family == "flow":
        return flow, noise, cond
    model = EpsilonModel(lambda x, timestep, label: flow.network(x, timestep / 1000, label), ddpm_table())
    return model, noise, cond


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["flow", "epsilon"])
@pytest.mark.parametrize("method", [bns, ds_solver, dyweight])
def test_a_graph_learns_what_launches_learn(cuda_device, method, family):
    model, noise, cond = bundled(family, cuda_device)
    plain, replayed = (
        method(model, noise, 4, training=Training(graph=graph, **FEW), cond=cond, teacher_steps=20)
        for graph in (False, True)
    )
    assert replayed.details["loss"] == pytest.approx(plain.details["loss"], rel=1e-3)
    assert replayed.details["loss"] < replayed.details["first_loss"]
    torch.testing.assert_close(replayed.schedule.t, plain.schedule.t, rtol=0, atol=1e-4)
    torch.testing.assert_close(replayed.schedule.coefficients, plain.schedule.coefficients, rtol=0, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["flow", "epsilon"])
def test_ld3_with_a_graph(cuda_device, family):
    model, noise, cond = bundled(family, cuda_device)
    plain, replayed = (
        ld3(model, noise, 4, rounds=(1, 1), graph=graph, cond=cond, teacher_steps=20) for graph in (False, True)
    )
    torch.testing.assert_close(replayed.schedule.t, plain.schedule.t, rtol=0, atol=1e-4)
    assert replayed.details["loss"] == pytest.approx(plain.details["loss"], rel=1e-3)
