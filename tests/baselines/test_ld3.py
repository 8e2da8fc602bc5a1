from __future__ import annotations

import math

import pytest
import torch
from helpers.analytic import Mixture, mixture, normal
from helpers.counting import Counting
from helpers.ld3 import LAMBDAS, learner

from oss_ext import FlowModel, Schedule, grids
from oss_ext.baselines import ld3
from oss_ext.baselines.ld3 import place


def zeros(steps):
    return torch.zeros(steps + 1, dtype=torch.float64)


def test_equal_shares_are_the_stock_grids():
    t = place(zeros(6) + 1, zeros(6), LAMBDAS, "lambda", 0.5).t
    torch.testing.assert_close(t[:-1], grids.make("logsnr", 7)[:6], rtol=1e-12, atol=0)
    ends = torch.tensor([1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(place(zeros(6), zeros(6), ends, "time", 0.5).t, grids.make("flow", 6))


@pytest.mark.parametrize("mode", ["lambda", "time"])
def test_second_times_stay_within_the_window(mode):
    ends = LAMBDAS if mode == "lambda" else torch.tensor([0.99, 0.01], dtype=torch.float64)
    raw = normal(6, seed=1)
    times = place(raw, torch.tensor([9, 9, -9, 1e-4, 0, 9], dtype=torch.float64), ends, mode, 0.5)
    assert (times.t.diff() < 0).all() and times.t[-1] == 0 and times.network_t[0] == times.t[0]

    def coordinate(t):
        return t if mode == "time" else -torch.log(t / (1 - t))

    own = torch.cat([coordinate(times.t[:-1]), ends[1:]])
    most = 0.5 * own.diff().abs().min()
    off = coordinate(times.network_t) - own[:-1]
    wanted = torch.stack([most * 0, most, -most, most.clamp(max=1e-4), most * 0])
    torch.testing.assert_close(off, wanted, rtol=1e-8, atol=1e-12)


def test_gradients_are_those_of_differences():
    model, noise = mixture().edm(), normal(4, 4)
    target = normal(4, 4, seed=9)
    found = learner(model, noise, target)
    found.raw.data.copy_(normal(5, seed=3))
    found.moved.data.copy_(0.01 * normal(5, seed=4))
    which = torch.tensor([1, 0])
    slope, losses = found._slopes(which)

    def value():
        with torch.no_grad():
            return float(found.losses(which, noise[which]).mean())

    assert value() == pytest.approx(float(losses.mean()))
    for parameter in (found.raw, found.moved):
        for entry in range(5):
            held = float(parameter.data[entry])
            parameter.data[entry] = held + 1e-5
            high = value()
            parameter.data[entry] = held - 1e-5
            low = value()
            parameter.data[entry] = held
            assert float(parameter.grad[entry]) == pytest.approx((high - low) / 2e-5, rel=2e-4, abs=2e-8)
    nudge = normal(2, 4, seed=5)
    with torch.no_grad():
        high, low = (found.losses(which, noise[which] + s * 1e-5 * nudge).mean() for s in (1, -1))
    assert float((slope * nudge).sum()) == pytest.approx(float(high - low) / 2e-5, rel=1e-4)


def test_on_a_gaussian_it_nears_eulers_best_schedule():
    """Which is known: "kl_optimal"."""
    std = 0.5
    model = Mixture(torch.zeros(1, 3, dtype=torch.float64), std).flow()
    noise = normal(24, 3)
    found = ld3(model, noise, 3, solver="euler", rounds=(60, 0), minibatch=4, radius=0, teacher_steps=300, grid="flow")
    target = std * noise[12:]

    def loss(t):
        return float((Schedule.from_grid(t).sample(model, noise[12:]) - target).square().mean())

    best, uniform = loss(grids.make("kl_optimal", 3, std=std)), loss(grids.make("flow", 3))
    assert best <= loss(found.schedule.t) * (1 + 1e-6) < best + 0.1 * (uniform - best)
    assert found.details["loss"] == pytest.approx(loss(found.schedule.t), rel=1e-2)
    assert found.details["first_loss"] == pytest.approx(uniform, rel=1e-2)


def test_starts_move_within_the_ball_and_only_downhill():
    model, noise = mixture().edm(), normal(6, 4)
    target = Schedule.from_grid(grids.for_model("edm", 50, model), "unipc", model).sample(model, noise)
    found = learner(model, noise, target, radius=0.05)
    with torch.no_grad():
        before = found.losses(torch.arange(6), noise)
    fresh = noise.clone()
    for which in torch.arange(6).split(4):
        found._shift(fresh, which, *found._slopes(which))
    off = (fresh - noise).norm(dim=1)
    assert (off <= 0.05 * (1 + 1e-9)).all() and (off > 0).any()
    with torch.no_grad():
        after = found.losses(torch.arange(6), fresh)
    assert (after[off > 0] < before[off > 0]).all() and torch.equal(after[off == 0], before[off == 0])


@pytest.mark.parametrize("family", ["flow", "edm", "epsilon"])
def test_what_comes_back(family):
    model, noise = Counting(mixture().families()[family]), normal(7, 4)
    calls = []
    found = ld3(
        model, noise, 3, solver="dpmpp_2m", rounds=(1, 2), teacher_steps=20, progress=lambda *made: calls.append(made)
    )
    schedule, details = found.schedule, found.details
    assert schedule.steps == 3 and schedule.t[0] == pytest.approx(model.t_max if family != "flow" else 1.0)
    assert details["iterations"] == 3 * 2 and details["backpropagations"] == 3 * 7
    backward = 2 * 3 * details["backpropagations"]
    assert model.evaluations + backward == calls[-1][0] == round(found.nfe["total"] * 7)
    assert calls[-1] == (calls[-1][0],) * 2 and calls[0][1] >= calls[-1][0]
    assert schedule.provenance.metadata["backpropagations"] == 21
    assert details["loss"] <= details["first_loss"]
    assert torch.isfinite(schedule.sample(model, noise)).all()
    again = ld3(model, noise, 3, solver="dpmpp_2m", rounds=(1, 2), teacher_steps=20)
    assert torch.equal(again.schedule.t, schedule.t), "repeatable"


def test_second_times_are_learned_and_can_be_left_out():
    model, noise = mixture(shape=(8,)).flow(), normal(24, 8)
    both = ld3(model, noise, 4, solver="euler", rounds=(1, 4)).schedule
    assert both.network_t is not None and torch.equal(both.timesteps, model.timesteps(both.network_t))
    assert ld3(model, noise, 4, solver="euler", rounds=(1, 4), second=False).schedule.network_t is None


def test_a_loss_of_ones_own():
    shapes = []

    def loss(ends, targets):
        shapes.append(ends.shape)
        return (ends - targets).abs().flatten(1).mean(1)

    model, noise = mixture(shape=(2, 3)).edm(), normal(4, 2, 3)
    found = ld3(model, noise, 2, loss=loss, rounds=(1, 0))
    assert set(shapes) == {torch.Size([2, 2, 3])} and found.details["loss"] > 0


@pytest.mark.parametrize("steps", [1, 2])
def test_small_cases(steps):
    model, noise = Counting(mixture().edm()), normal(2, 4).float()
    found = ld3(model, noise, steps, teacher_steps=10, rounds=(1, 1))
    assert found.schedule.steps == steps
    if steps == 1:
        assert model.evaluations == 20 and found.nfe["train"] == 0
    with torch.inference_mode():
        inside = ld3(model, noise, steps, teacher_steps=10, rounds=(1, 1))
    torch.testing.assert_close(inside.schedule.t, found.schedule.t)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"noise": torch.zeros(1, 4)}, "noise"),
        ({"steps": 0}, "steps"),
        ({"solver": "fitted"}, "solver"),
        ({"teacher_solver": "mixed"}, "teacher_solver"),
        ({"mode": "sigma"}, "mode"),
        ({"second": 1}, "second"),
        ({"loss": "lpips"}, "loss"),
        ({"rounds": 3}, "rounds"),
        ({"rounds": (1, -1)}, "rounds"),
        ({"minibatch": 0}, "minibatch"),
        ({"radius": -1.0}, "radius"),
        ({"radius": math.inf}, "radius"),
        ({"window": 0.6}, "window"),
        ({"seed": -1}, "seed"),
        ({"sigma_min": "x"}, "sigma_min"),
        ({"grid": "karras"}, "grid"),
        ({"cond": {"label": torch.zeros(3)}}, "cond"),
        ({"batch_size": 0}, "batch_size"),
        ({"progress": 1}, "progress"),
        ({"model": None}, "model"),
    ],
)
def test_bad_input_is_named_before_any_evaluation(change, message):
    model = Counting(mixture().edm())
    arguments = {"model": model, "noise": normal(4, 4), "steps": 3, **change}
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        ld3(arguments.pop("model"), arguments.pop("noise"), arguments.pop("steps"), **arguments)
    assert model.evaluations == 0


def test_a_model_that_cuts_the_graph_is_named():
    inner = mixture().flow()

    @torch.no_grad()
    def cut(x, t):
        return inner.velocity(x, t)

    with pytest.raises(ValueError, match="cut from the graph"):
        ld3(FlowModel(cut), normal(4, 4), 3, rounds=(1, 0), teacher_steps=5)
