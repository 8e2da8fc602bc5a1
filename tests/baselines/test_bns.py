from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.analytic import Mixture, mixture, normal
from helpers.counting import Counting

from oss_ext import FlowModel, Schedule, dp_search, grids, solvers
from oss_ext.baselines import Training, bns
from oss_ext.baselines.bns import compress, expand


@pytest.mark.parametrize("name", solvers.formulas())
def test_the_family_holds_every_solver(name):
    """A schedule written as a_i x_0 + sum b_ij u_j, and run so by hand."""
    model, noise = mixture().edm(), normal(5, 4)
    schedule = Schedule.from_grid(grids.for_model("edm", 6, model), name, model)
    a, b = expand(schedule.coefficients, schedule.t, schedule.carries)
    start = schedule.noise_scale * noise
    x, velocities = start, []
    for i in range(6):
        velocities.append(model.velocity(x, schedule.t[i].expand(5)))
        x = a[i] * start + sum(b[i, j] * u for j, u in enumerate(velocities))
    torch.testing.assert_close(x, schedule.sample(model, noise), rtol=1e-9, atol=1e-9)
    again = Schedule(
        schedule.t, compress(a, b), name, schedule.sigmas, schedule.timesteps, "edm", carries="velocity"
    ).sample(model, noise)
    torch.testing.assert_close(again, x, rtol=1e-7, atol=1e-7)


def test_on_a_gaussian_two_steps_become_exact():
    """Every state is there a multiple of the noise, so that the loss has no floor."""
    model = Mixture(torch.zeros(1, 3, dtype=torch.float64), 0.5).flow()
    noise, other = normal(16, 3), normal(8, 3, seed=5)
    found = bns(model, noise, 2, training=Training(400, rate=3e-3, minibatch=12), start_grid="flow")
    error = (found.schedule.sample(model, other) - 0.5 * other).square().mean()
    before = Schedule.from_grid(grids.make("flow", 2)).sample(model, other)
    assert error < 2e-3 * (before - 0.5 * other).square().mean()
    assert found.details["loss"] < found.details["first_loss"] - 6


def test_it_improves_on_its_start_on_other_noises():
    model, noise, other = mixture(shape=(8,)).flow(), normal(48, 8), normal(48, 8, seed=9)
    start = dp_search(model, noise, 4, solver="dpmpp_2m").schedule
    fine = Schedule.from_grid(grids.make("flow", 200), "unipc", model).sample(model, other)
    found = bns(model, noise, 4, start=start, training=Training(150, rate=3e-3))

    def error(schedule):
        return float((schedule.sample(model, other) - fine).square().mean(1).log().mean())

    assert error(found.schedule) < error(start) - 0.2
    assert found.details["loss"] < found.details["first_loss"]


@pytest.mark.parametrize("family", ["flow", "edm", "epsilon"])
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_what_comes_back(family, steps, tmp_path):
    model, noise = Counting(mixture().families()[family]), normal(6, 4)
    calls = []
    found = bns(
        model,
        noise,
        steps,
        training=Training(5, minibatch=3),
        teacher_steps=10,
        progress=lambda *made: calls.append(made),
    )
    assert found.details["backpropagations"] == 15
    assert model.evaluations + 2 * steps * 15 == calls[-1][0] == calls[-1][1] == round(6 * found.nfe["total"])
    schedule = found.schedule
    assert schedule.solver == "bns" and schedule.coefficients.shape == (steps, 1 + steps)
    schedule.save(tmp_path / "bns.json")
    sampled = Schedule.load(tmp_path / "bns.json").sample(model, noise)
    assert torch.equal(sampled, schedule.sample(model, noise)) and torch.isfinite(sampled).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"noise": torch.zeros(1, 4)}, "noise"),
        ({"steps": 0}, "steps"),
        ({"start": "euler"}, "start"),
        ({"start": Schedule.from_grid(torch.tensor([0.9, 0.5, 0.0]))}, "start"),
        ({"start": Schedule.from_grid(torch.tensor([1.0, 0.7, 0.5, 0.0]))}, "t of the schedule"),
        ({"solver": "fitted"}, "solver"),
        ({"start_grid": "karras"}, "grid"),
        ({"teacher_solver": "mixed"}, "teacher_solver"),
        ({"progress": 1}, "progress"),
    ],
)
def test_bad_input_is_named_before_any_evaluation(change, message):
    model = Counting(mixture().edm())
    arguments = {"noise": normal(4, 4), "steps": 3, **change}
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        bns(model, arguments.pop("noise"), arguments.pop("steps"), **arguments)
    told = Schedule.from_grid(grids.for_model("edm", 3, model), "euler", model)
    with pytest.raises(ValueError, match="got a schedule that tells"):
        bns(model, normal(4, 4), 3, start=replace(told, network_t=told.t[:-1]))
    assert model.evaluations == 0


def test_a_model_that_cuts_the_graph_is_named():
    inner = mixture().flow()

    @torch.no_grad()
    def cut(x, t):
        return inner.velocity(x, t)

    with pytest.raises(ValueError, match="cut from the graph"):
        bns(FlowModel(cut), normal(4, 4), 3, training=Training(1), teacher_steps=5)
