"""The adapter of NVlabs/edm: the Euler part of its sampler (arXiv 2206.00364, Algorithm 2) on a small network."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from helpers.adapters import rows, tiny

import oss_ext
from oss_ext.integrations import edm


def euler(net, noise, sigmas, labels):
    x = noise.double() * sigmas[0]
    for here, there in pairwise(sigmas):
        denoised = net(x, here, labels).double()
        x = x + (there - here) * (x - denoised) / here
    return x


def karras(steps, low=0.002, high=80.0):
    at = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    return torch.cat([(high ** (1 / 7) + at * (low ** (1 / 7) - high ** (1 / 7))) ** 7, torch.zeros(1)])


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "unconditional"])
def test_its_sampler_is_euler_on_the_edm_grid(labelled):
    net = tiny("EDMNet", dtype=torch.float32)
    noise, labels = rows(3, 3, 8, 8, seed=1), torch.eye(4)[[0, 2, 3]] if labelled else None
    model = edm.denoiser(net)
    schedule = oss_ext.Schedule.from_grid(oss_ext.grids.for_model("edm", 8, model), "euler", model)
    torch.testing.assert_close(schedule.sigmas, karras(8))
    ours = schedule.sample(model, noise, {"class_labels": labels} if labelled else None)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, euler(net, noise, karras(8), labels), rtol=0, atol=2e-6)  # the net is float32


def test_the_range_is_cut_to_what_the_network_knows():
    net = tiny("EDMNet", dtype=torch.float32)
    assert (edm.denoiser(net).sigma_min, edm.denoiser(net).sigma_max) == (0.002, 80.0)
    net.sigma_min, net.sigma_max = 0.02, 50.0
    assert (edm.denoiser(net).sigma_min, edm.denoiser(net).sigma_max) == (0.02, 50.0)
    assert edm.denoiser(net, sigma_max=10.0).sigma_max == 10.0
    with pytest.raises(TypeError, match="net: got SimpleNamespace without round_sigma"):
        edm.denoiser(SimpleNamespace(sigma_min=0, sigma_max=1))


def test_a_network_with_a_table_of_levels_is_asked_at_those():
    net = tiny("EDMNet", dtype=torch.float32)
    net.u = torch.cat([torch.logspace(2, -2, 60), torch.zeros(1)])  # descending, then 0, as in iDDPMPrecond
    model = edm.denoiser(net)
    known = net.u[:-1].flip(0).double()  # 0.01 .. 100: the end at 80 moves to the nearest
    inside = known[: int((known - 80).abs().argmin()) + 1]
    assert inside[-1].item() == pytest.approx(85.547, abs=1e-3)
    torch.testing.assert_close(model.sigmas(model.flow_table), inside)
    assert model.describe()["levels"] == len(inside)
    asked = []
    model.fn, real = (lambda x, sigma, **cond: asked.extend(sigma.tolist()) or real(x, sigma, **cond)), model.fn
    result = oss_ext.dp_search(
        model, rows(2, 3, 8, 8, seed=2).float(), 3, teacher_steps=20, grid="edm", nodes="integer"
    )
    asked_of = inside.float()
    assert all((asked_of - sigma).abs().min() <= 1e-5 * sigma for sigma in asked) and len(asked) > 40
    assert result.schedule.steps == 3
    with pytest.raises(ValueError, match="which leave 1 levels"):
        edm.denoiser(net, sigma_min=1.001, sigma_max=1.002)
