"""DS-Solver, DyWeight and S4S."""

from __future__ import annotations

import pytest
import torch
from helpers.analytic import mixture, normal
from helpers.counting import Counting

from oss_ext import FlowModel, Schedule, grids
from oss_ext.baselines import Training, ds_solver, dyweight, s4s
from oss_ext.baselines.dyweight import rows_of, true_times
from oss_ext.baselines.student import within

ALL = [ds_solver, dyweight, s4s]


def mean_log_error(schedule, model, noise, fine):
    return float((schedule.sample(model, noise) - fine).square().mean(1).log().mean())


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_ds_solver_begins_with_euler_on_equal_steps(steps):
    model, noise = mixture().flow(), normal(4, 4)
    found = ds_solver(model, noise, steps, training=Training(0))
    stock = Schedule.from_grid(grids.make("flow", steps), "euler", model)
    torch.testing.assert_close(found.schedule.t, stock.t, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.schedule.sample(model, noise), stock.sample(model, noise), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("start", ["euler", "ipndm_2", "ipndm_4"])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_dyweight_begins_with_ipndm(start, steps):
    model, noise = mixture().edm(), normal(4, 4)
    found = dyweight(model, noise, steps, nodes="edm", start=start, told=False, training=Training(0))
    stock = Schedule.from_grid(grids.for_model("edm", steps, model), start, model)
    assert found.schedule.network_t is None
    torch.testing.assert_close(found.schedule.sample(model, noise), stock.sample(model, noise), rtol=1e-8, atol=1e-8)


def test_a_learned_ds_solver_sample_by_hand():
    """As the paper writes it: a mean of the velocities whose weights sum to 1."""
    model, noise = mixture().flow(), normal(12, 4)
    schedule = ds_solver(model, noise, 8, training=Training(40, minibatch=4)).schedule
    t, rows = schedule.t, schedule.coefficients
    x, velocities = t[0] * noise, []
    for i in range(8):
        velocities.append(model.velocity(x, t[i].expand(12)))
        shares = rows[i, 1 : i + 2] / (t[i + 1] - t[i])
        assert float(shares.sum()) == pytest.approx(1) and float(rows[i, 0]) == 1
        x = x + (t[i + 1] - t[i]) * sum(share * v for share, v in zip(shares.flip(0), velocities, strict=True))
    torch.testing.assert_close(x, schedule.sample(model, noise), rtol=1e-9, atol=1e-9)
    few = ds_solver(model, noise, 5, training=Training(40, minibatch=4)).schedule.coefficients
    assert (few[3:, 3:] == 0).all() and (few[2, 3] != 0).all(), "at most 6 steps: one earlier velocity in the last two"


def test_a_dyweight_sample_by_hand():
    """As the paper writes it, in x0 + sigma eps: the sums of the weights move the levels that the steps start from."""
    model, noise = mixture().edm(), normal(12, 4)
    t = grids.for_model("edm", 6, model)[:-1]
    t[-1] = 0
    weights = torch.eye(5).double() + 0.05 * normal(5, 5, seed=3).tril()
    factors = 1 + 0.02 * normal(5, seed=4)
    true = true_times(weights, t, 1e-3)
    told = true[:-1] / (1 - true[:-1]) * factors
    schedule = Schedule(
        true, rows_of(weights, true, t), "x", true, true[:-1], "edm", carries="epsilon", network_t=told / (1 + told)
    )
    nodes = (t / (1 - t)).tolist()
    level, x, predictions = nodes[0], nodes[0] * noise, []
    for i in range(5):
        here = level / (1 + level)
        flow = x * (1 - here)
        predictions.append(flow + (1 - here) * model.velocity(flow, schedule.network_t[i].expand(12)))
        assert float(true[i]) == pytest.approx(here)
        x = x + (nodes[i + 1] - level) * sum(w * e for w, e in zip(weights[i], predictions, strict=False))
        level = level + float(weights[i].sum()) * (nodes[i + 1] - level)
    torch.testing.assert_close(x, schedule.sample(model, noise), rtol=1e-8, atol=1e-8)


def test_what_dyweight_learns():
    model, noise = mixture().edm(), normal(12, 4)
    schedule = dyweight(model, noise, 5, training=Training(40, minibatch=4), history=2).schedule
    assert schedule.network_t is not None and schedule.carries == "epsilon"
    assert (schedule.coefficients[3:, 4:] == 0).all() and (schedule.coefficients[3:, 3] != 0).all()
    stock = grids.for_model("edm", 6, model)
    assert (schedule.t[1:-1] - stock[1:5]).abs().max() > 1e-4, "sums of weights move the times"


@pytest.mark.parametrize("method", ALL)
def test_learning_improves_on_the_start_on_other_noises(method):
    model, noise, other = mixture(shape=(8,)).edm(), normal(48, 8), normal(48, 8, seed=9)
    fine = Schedule.from_grid(grids.for_model("edm", 300, model), "unipc", model).sample(model, other)
    before = method(model, noise, 5, grid="edm", training=Training(0)).schedule
    found = method(model, noise, 5, grid="edm", training=Training(200))
    assert mean_log_error(found.schedule, model, other, fine) < mean_log_error(before, model, other, fine) - 0.3
    assert found.details["loss"] < found.details["first_loss"]


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("family", ["flow", "edm", "epsilon"])
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_what_comes_back(method, family, steps, tmp_path):
    model, noise = Counting(mixture().families()[family]), normal(6, 4)
    calls = []
    found = method(
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
    assert schedule.solver.removesuffix("_alt") == method.__name__ and schedule.steps == steps
    schedule.save(tmp_path / "learned.json")
    sampled = Schedule.load(tmp_path / "learned.json").sample(model, noise)
    assert torch.equal(sampled, schedule.sample(model, noise)) and torch.isfinite(sampled).all()


@pytest.mark.parametrize("start", ["euler", "dpmpp_2m", "dpmpp_3m", "unip_3"])
@pytest.mark.parametrize("family", ["flow", "edm"])
def test_s4s_begins_with_its_solver(start, family):
    model, noise = mixture().families()[family], normal(4, 4)
    for nodes in ("edm", "flow"):
        found = s4s(model, noise, 6, alternations=0, nodes=nodes, solver=start, order=4, training=Training(0))
        stock = Schedule.from_grid(grids.for_model(nodes, 6, model), start, model)
        assert torch.equal(found.schedule.t, stock.t) and found.schedule.solver == "s4s"
        torch.testing.assert_close(found.schedule.sample(model, noise), stock.sample(model, noise), rtol=1e-9, atol=0)


def test_s4s_begins_on_the_grid_that_is_best_on_the_judges():
    model, noise = Counting(mixture(shape=(8,)).edm()), normal(12, 8)
    names = ("flow", "edm", "logsnr")
    settings = {"alternations": 0, "training": Training(0), "teacher_steps": 20}
    alone = {name: s4s(model, noise, 5, nodes=name, **settings) for name in names}
    model.evaluations = 0
    found = s4s(model, noise, 5, nodes=names, **settings)
    best = min(names, key=lambda name: alone[name].details["loss"])
    assert torch.equal(found.schedule.t, alone[best].schedule.t) and found.details == alone[best].details
    assert found.schedule.provenance.metadata["start"] == f"unip_3 along {best}"
    assert model.evaluations == 12 * 20 + (3 + 1) * 3 * 5 == round(12 * found.nfe["total"])


def test_a_learned_s4s_sample_by_hand():
    """In x0 + sigma eps, where alpha is 1, with the exponential integrals."""
    model, noise = mixture().edm(), normal(12, 4)
    found = s4s(model, noise, 6, nodes="logsnr", told=False, training=Training(60, minibatch=4))
    t, rows = found.schedule.t, found.schedule.coefficients
    assert found.schedule.solver == "s4s_alt" and found.schedule.carries == "x0"
    weights = torch.zeros(6, 3, dtype=torch.float64)
    weights[:, 1:] = rows[:, 2:] / (1 - t[1:] / t[:-1])[:, None]
    weights[:, 0] = rows[:, 1] / (t[1:] - t[:-1])
    assert (weights.tril() == weights).all() and ((weights.sum(1) - 1).abs() > 1e-4).any(), "sums are free"
    sigma = t / (1 - t)
    x, predictions = sigma[0] * noise, []
    for i in range(6):
        predictions.insert(0, model.fn(x, sigma[i].expand(12)))
        h = torch.log(sigma[i] / sigma[i + 1])  # inf in the last step
        mean = sum(w * d for w, d in zip(weights[i], predictions, strict=False))
        x = sigma[i + 1] / sigma[i] * x + (1 - torch.exp(-h)) * mean
    torch.testing.assert_close(x, found.schedule.sample(model, noise), rtol=1e-6, atol=1e-7)


def test_what_s4s_learns():
    model, noise = mixture().edm(), normal(12, 4)
    few = Training(30, minibatch=4)
    fixed = s4s(model, noise, 5, alternations=0, nodes="edm", training=few).schedule
    assert torch.equal(fixed.t, grids.for_model("edm", 5, model)) and fixed.network_t is None
    moved = s4s(model, noise, 5, nodes="edm", training=few).schedule
    assert moved.network_t is not None and (moved.t - fixed.t)[1:-1].abs().min() > 0 and moved.t[0] == fixed.t[0]
    wide = s4s(model, noise, 5, nodes="edm", training=few, radius=3.0).schedule
    assert not torch.equal(wide.t, moved.t), "starts of one's own lead elsewhere"


def test_weights_and_times_have_turns():
    """Within the first of two turns nothing but the weights has moved."""
    model, noise = mixture().edm(), normal(12, 4)
    t = grids.for_model("edm", 5, model)
    seen = []

    class Watched:
        def __getattr__(self, name):
            return getattr(model, name)

        def velocity(self, x, now, cond=None):
            if x.requires_grad or now.requires_grad:
                seen.append(float(now.detach()[0]))
            return model.velocity(x, now, cond)

    s4s(Watched(), noise, 5, alternations=1, nodes="edm", told=False, training=Training(20, minibatch=9))
    seconds = seen[1::5]
    assert len(seconds) == 20 and len(set(seconds[:11])) == 1 and len(set(seconds[10:])) == 10
    assert seconds[0] == pytest.approx(float(t[1]), rel=1e-3)


def test_starts_stay_within_the_ball():
    noise, far = normal(6, 2, 3), normal(6, 2, 3, seed=4)
    starts = within(noise + 0.3 * far, noise, 0.7)
    off, size = (starts - noise).flatten(1).norm(dim=1), 0.3 * far.flatten(1).norm(dim=1)
    torch.testing.assert_close(off, size.clamp(max=0.7))
    assert (size > 0.7).any() and (size < 0.7).any()


def test_dyweight_with_a_loss_and_nodes_of_ones_own():
    model, noise = mixture(shape=(2, 3)).flow(), normal(8, 2, 3)
    shapes = []

    def loss(ends, targets):
        shapes.append(ends.shape[1:])
        return (ends - targets).abs().flatten(1).mean(1)

    t = torch.tensor([0.95, 0.6, 0.3, 0.0], dtype=torch.float64)
    found = dyweight(model, noise, 3, nodes=t, loss=loss, told=False, training=Training(20))
    assert set(shapes) == {torch.Size([2, 3])} and found.schedule.network_t is None
    assert found.schedule.t[0] == t[0] and found.schedule.steps == 3


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize(
    "change, message",
    [
        ({"noise": torch.zeros(1, 4)}, "noise"),
        ({"steps": 0}, "steps"),
        ({"grid": "karras"}, "grid"),
        ({"training": 100}, "training"),
        ({"teacher_solver": "mixed"}, "teacher_solver"),
        ({"batch_size": 0}, "batch_size"),
        ({"progress": 1}, "progress"),
    ],
)
def test_bad_input_is_named_before_any_evaluation(method, change, message):
    model = Counting(mixture().edm())
    arguments = {"noise": normal(4, 4), "steps": 3, **change}
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        method(model, arguments.pop("noise"), arguments.pop("steps"), **arguments)
    assert model.evaluations == 0


@pytest.mark.parametrize(
    "setting, value",
    [("iterations", -1), ("iterations", 1.5), ("rate", 0.0), ("rate", "1"), ("minibatch", 0), ("seed", -1)],
)
def test_bad_settings_are_named(setting, value):
    with pytest.raises((TypeError, ValueError), match=f"^{setting}"):
        Training(**{setting: value})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"nodes": "flow"}, "nodes"),
        ({"nodes": torch.tensor([0.9, 0.0])}, "nodes"),
        ({"nodes": "karras"}, "grid"),
        ({"start": "dpmpp_2m"}, "start"),
        ({"history": -1}, "history"),
        ({"told": 1}, "told"),
        ({"loss": "lpips"}, "loss"),
    ],
)
def test_dyweights_own_arguments(change, message):
    model = Counting(mixture().flow())
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        dyweight(model, normal(4, 4), 3, **change)
    assert model.evaluations == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"nodes": torch.tensor([0.9, 0.0])}, "nodes"),
        ({"nodes": ()}, "nodes"),
        ({"nodes": "karras"}, "grid"),
        ({"solver": "unipc"}, "solver"),
        ({"solver": "ipndm_3"}, "solver"),
        ({"order": 2}, "order"),
        ({"order": 6}, "order"),
        ({"alternations": -1}, "alternations"),
        ({"told": 1}, "told"),
        ({"loss": "lpips"}, "loss"),
        ({"radius": -1}, "radius"),
    ],
)
def test_s4s_own_arguments(change, message):
    model = Counting(mixture().flow())
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        s4s(model, normal(4, 4), 3, **change)
    assert model.evaluations == 0


@pytest.mark.parametrize("method", ALL)
def test_a_model_that_cuts_the_graph_is_named(method):
    inner = mixture().flow()

    @torch.no_grad()
    def cut(x, t):
        return inner.velocity(x, t)

    with pytest.raises(ValueError, match="cut from the graph"):
        method(FlowModel(cut), normal(4, 4), 3, training=Training(1), teacher_steps=5)
