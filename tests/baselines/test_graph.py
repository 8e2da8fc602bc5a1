"""Runs and gradients replayed from a CUDA graph against those launched, on the bundled models."""

from __future__ import annotations

import pytest
import torch

from oss_ext import Schedule, grids, zoo
from oss_ext.baselines import Training, bns, ds_solver, dyweight, ld3, s4s
from oss_ext.baselines.student import Student, at_the_end
from oss_ext.progress import Counter
from oss_ext.refine_knobs import Numbers

MODELS = ["photo32", "photo32_vp"]


def bundled(name, device, count):
    model = zoo.load(name, guidance_scale=3.0, device=device)
    return model, *model.noise(count)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_replays_are_runs(cuda_device, name):
    """Of other noises and numbers than those that were captured, in two parts."""
    model, noise, cond = bundled(name, cuda_device, 12)
    target = 0.5 * torch.randn(12, noise[0].numel(), generator=torch.Generator().manual_seed(0)).to(cuda_device)
    counters = [Counter(0, False, "") for _ in range(2)]
    plain, replayed = (
        Student(model, "x0", noise.dtype, 4, 6, counter, at_the_end(None, noise.shape), graph)
        for counter, graph in zip(counters, (False, True), strict=True)
    )
    for grid in ("edm", "ddim", "logsnr"):
        schedule = Schedule.from_grid(grids.for_model(grid, 4, model), "dpmpp_2m", model)
        which = torch.randperm(12, generator=torch.Generator().manual_seed(len(grid)))[:8].to(cuda_device)
        some = {key: value[which] for key, value in cond.items()}
        results = []
        for student in (plain, replayed):
            leaves = [schedule.t, schedule.told, schedule.coefficients, schedule.t[0].clone()]
            leaves = [leaf.clone().requires_grad_(True) for leaf in leaves]
            losses, slope = student.slopes(noise[which], some, target[which], Numbers(*leaves), by_starts=True)
            judged = student.judge(noise[which], some, target[which], Numbers(*leaves))
            results.append([losses, slope, judged, *(leaf.grad for leaf in leaves)])
        for ours, wanted in zip(*reversed(results), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
            assert float(wanted.abs().max()) > 0
    assert counters[0].made == counters[1].made == 3 * 4 * 8 * 4


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", [bns, ds_solver, dyweight, s4s])
def test_learning_with_a_graph(cuda_device, method, name):
    model, noise, cond = bundled(name, cuda_device, 24)
    found = method(model, noise, 4, training=Training(60, minibatch=6, graph=True), cond=cond, teacher_steps=20)
    assert found.details["loss"] < found.details["first_loss"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_ld3_with_a_graph(cuda_device, name):
    model, noise, cond = bundled(name, cuda_device, 24)
    found = ld3(model, noise, 4, graph=True, cond=cond, teacher_steps=20)
    assert found.details["loss"] < found.details["first_loss"]
