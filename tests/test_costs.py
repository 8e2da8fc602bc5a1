"""Searches judged by x0 predictions, features and activations: against plain loops, closed forms and replays."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.analytic import gaussian, mixture, normal, shared_grid
from helpers.counting import Counting
from helpers.drive import by_hand
from helpers.oracle import plain_cost_search
from helpers.replay import check_replay
from torch import nn

from oss_ext import Schedule, costs, dp_search, grids
from oss_ext.models import FlowModel
from oss_ext.search_core import SHARES, STARTS, dp_core
from oss_ext.solvers import Fitted

PLAIN = {"teacher_solver": "euler", "candidates": 1000}


def as_velocity(model):
    return lambda x, t: model.velocity(x, torch.full((len(x),), t, dtype=torch.float64))


def x0_of(x, v, t):
    return x if v is None else x - t * v


def corner(x):
    """Features that see neither everything nor everything alike."""
    return torch.stack([torch.tanh(3 * x[:, 0]), x[:, 1] * x[:, 2]], 1)


class Net(nn.Module):
    """A small denoiser with layers to look at."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(5, 7).double(), nn.Linear(7, 4).double()
        self.requires_grad_(False).eval()

    def forward(self, x, t):
        return self.second(torch.tanh(3 * self.first(torch.cat([x, t[:, None].to(x)], 1))))


# --- against loops ---


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("sources", [1, 3, None])
def test_x0_is_the_plain_loops(sources, free):
    for seed in range(3):
        model, noise, t = mixture(seed).flow(), normal(5, 4, seed=seed), grids.make("flow:shift=2", 14)
        wanted, values, spent = plain_cost_search(
            as_velocity(model), noise, t.tolist(), 5, features=x0_of, sources=sources or 99, free=free
        )
        start = "free" if free else "fixed"
        result = dp_search(model, noise, 5, grid=t, start=start, cost=costs.X0(sources), **PLAIN)
        assert {budget: schedule.nodes.tolist() for budget, schedule in result.schedules.items()} == wanted
        for (budget, node), value in values.items():
            assert float(result.values[budget - 1, node]) == pytest.approx(value, rel=1e-8, abs=1e-15)
        assert int(result.values.isfinite().sum()) == len(values)
        assert result.nfe["cost"] == spent + 13  # and the teacher's states at 1..13
        assert result.nfe["search"] == (13 if free else 0)  # where a path may start, but for node 0


def test_x0_with_other_counts_are_other_schedules():
    """That the oracle's cases tell the costs apart."""
    model, noise = mixture(1).flow(), normal(6, 4)
    by = {cost: dp_search(model, noise, 4, teacher_steps=40, cost=cost).schedule.nodes.tolist() for cost in costs.NAMES}
    assert by["x0"] != by["x_t"]


@pytest.mark.parametrize("of", ["x0", "x_t"])
def test_features_are_the_plain_loops(of):
    def features(x, v, t):
        return corner(x0_of(x, v, t) if of == "x0" else x)

    for seed in range(3):
        model, noise, t = mixture(seed).flow(), normal(5, 4, seed=seed), grids.make("flow", 12)
        wanted, values, spent = plain_cost_search(
            as_velocity(model), noise, t.tolist(), 4, features=features, sources=5, clean=True
        )
        cost = costs.Feature(corner, of=of, sources=5, batch_size=7)
        result = dp_search(model, noise, 4, grid=t, cost=cost, **PLAIN)
        assert {budget: schedule.nodes.tolist() for budget, schedule in result.schedules.items()} == wanted
        for (budget, node), value in values.items():
            assert float(result.values[budget - 1, node]) == pytest.approx(value, rel=1e-8, abs=1e-15)
        if of == "x0":
            assert result.nfe["cost"] == spent + 11
        else:
            assert "cost" not in result.nfe and result.nfe == dp_search(model, noise, 4, grid=t, **PLAIN).nfe


def test_activations_are_the_plain_loops():
    for seed in range(3):
        net = Net(seed)
        model, noise, t = FlowModel(lambda x, t, net=net: net(x, t)), normal(5, 4, seed=seed), grids.make("flow", 12)

        def features(x, v, time, net=net):
            first = net.first(torch.cat([x, torch.full_like(x[:, :1], time)], 1))
            second = net.second(torch.tanh(3 * first))
            return torch.cat([first * (11 / 14) ** 0.5, second * (11 / 8) ** 0.5], 1)  # the layers' means, averaged

        wanted, values, spent = plain_cost_search(
            as_velocity(model), noise, t.tolist(), 4, features=features, sources=4
        )
        cost = costs.Perceptual(net, "first", "second")
        result = dp_search(model, noise, 4, grid=t, cost=cost, batch_size=7, **PLAIN)
        assert {budget: schedule.nodes.tolist() for budget, schedule in result.schedules.items()} == wanted
        for (budget, node), value in values.items():
            assert float(result.values[budget - 1, node]) == pytest.approx(value, rel=1e-8, abs=1e-15)
        assert result.nfe["cost"] == spent + 11


# --- closed forms ---


@pytest.mark.parametrize("family", ["flow", "edm", "epsilon", "v_param", "x0"])
def test_of_one_gaussian_x0_ranks_as_x_t(family):
    """x0 = mean + g (x_t - (1 - t) mean) with g = (1 - t) s^2 / ((1 - t)^2 s^2 + t^2): a weight for every target, which
    changes no choice, only the values, by g^2."""
    std, t = 0.5, shared_grid(16)
    model, noise = gaussian(std).families()[family], normal(5, 3)
    plain = dp_search(model, noise, 5, grid=t, **PLAIN)
    by_x0 = dp_search(model, noise, 5, grid=t, cost=costs.X0(None), **PLAIN)
    g = (1 - t) * std**2 / (((1 - t) * std) ** 2 + t**2)
    for budget in range(1, 6):
        assert torch.equal(by_x0.schedules[budget].nodes, plain.schedules[budget].nodes)
    torch.testing.assert_close(by_x0.values[:4], plain.values[:4] * g**2, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(by_x0.values[4, -1], plain.values[4, -1], rtol=1e-9, atol=0)


def test_where_x0_is_linear_two_steps_are_the_best_of_all():
    """Gaussian data of another spread in every direction: x0 of a state is diag(g) times it, in closed form. All paths
    of two steps into every node, tried one by one."""
    std, t = torch.tensor([0.05, 0.1, 0.2, 0.4, 0.8], dtype=torch.float64), grids.make("flow", 16)

    def gain(time):
        return (1 - time) * std**2 / (((1 - time) * std) ** 2 + time**2)

    model = FlowModel(lambda x, time: (x - x * gain(time[:, None])) / time[:, None])
    noise = normal(6, 5)
    result = dp_search(model, noise, 3, grid=t, cost=costs.X0(None), **PLAIN)
    times, states = t.tolist(), [float(t[0]) * noise]

    def step(x, now, after):
        return x + (after - now) * (x - x * gain(torch.tensor(now, dtype=torch.float64))) / now

    for now, after in itertools.pairwise(times):
        states.append(step(states[-1], now, after))
    disagree = 0
    for node in range(2, 16):
        error = {}
        for middle in range(1, node):
            z = step(step(states[0], times[0], times[middle]), times[middle], times[node])
            error[middle] = (
                float(((z - states[node]) * gain(t[node])).square().mean()),
                float((z - states[node]).square().mean()),
            )
        best = min(error, key=lambda middle: error[middle][0])
        assert int(result.backpointers[1, node]) == best
        assert float(result.values[1, node]) == pytest.approx(error[best][0], rel=1e-9)
        disagree += best != min(error, key=lambda middle: error[middle][1])
    assert disagree, "x0 and x_t choose alike everywhere: the case tells nothing"


def test_the_identity_as_a_feature_is_the_state_or_x0():
    model, noise = mixture(3).flow(), normal(6, 4)
    for of, name in (("x_t", "x_t"), ("x0", costs.X0(None))):
        feature = costs.Feature(lambda x: x, of=of, sources=None)
        found, wanted = (dp_search(model, noise, 4, teacher_steps=20, cost=cost) for cost in (feature, name))
        for budget in range(1, 5):
            assert torch.equal(found.schedules[budget].nodes, wanted.schedules[budget].nodes)
        known = found.values.isfinite()
        torch.testing.assert_close(found.values[known], wanted.values[known], rtol=1e-9, atol=1e-14)


# --- what every search keeps ---


COSTS = {"x0": costs.X0(), "feature": costs.Feature(corner), "state feature": costs.Feature(corner, of="x_t")}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "mixed", Fitted(history=1)], ids=str)
def test_replay(solver, name, share, start):
    model, noise = mixture(1).flow(), normal(6, 4)
    how = {"teacher_steps": 24, "solver": solver, "share": share, "start": start, "cost": COSTS[name]}
    if share != "joint" and (isinstance(solver, Fitted) or (solver == "mixed" and share == "median")):
        with pytest.raises(ValueError, match="share: got"):  # its choices are shared by all samples, or have no median
            dp_search(model, noise, 4, **how)
        return
    result = dp_search(model, noise, 4, **how)
    check_replay(result, model, noise)
    for one in result.schedule if share == "per_sample" else [result.schedule]:
        assert one.provenance.judged_by == COSTS[name].describe()


def test_replay_of_activations():
    net = Net()
    model, noise = FlowModel(lambda x, t: net(x, t)), normal(6, 4)
    for share in SHARES:
        result = dp_search(model, noise, 4, teacher_steps=24, share=share, cost=costs.Perceptual(net, "first"))
        check_replay(result, model, noise)


@pytest.mark.parametrize("solver", ["euler", "ab2"])
def test_per_sample_is_joint_of_one(solver, monkeypatch):
    monkeypatch.setattr("oss_ext.stages.CHUNK", 2 * 16 * 16 * 3)  # samples two at a time
    model, noise = mixture(2).flow(), normal(5, 4)
    how = {"teacher_steps": 15, "candidates": 15, "solver": solver, "cost": "x0"}
    several = dp_search(model, noise, 4, share="per_sample", **how)
    for sample in range(5):
        alone = dp_search(model, noise[sample : sample + 1], 4, **how)
        for budget in range(1, 5):
            assert torch.equal(several.schedules[budget][sample].nodes, alone.schedules[budget].nodes)
        torch.testing.assert_close(several.values[:, sample], alone.values, rtol=1e-9, atol=1e-14)


def test_smaller_budgets_are_those_of_a_smaller_search():
    model, noise = mixture(2).flow(), normal(5, 4)
    large, small = (dp_search(model, noise, steps, teacher_steps=20, candidates=20, cost="x0") for steps in (5, 3))
    for budget in range(1, 4):
        assert torch.equal(large.schedules[budget].nodes, small.schedules[budget].nodes)


def test_one_candidate_is_the_default_search():
    model, noise = mixture(2).flow(), normal(5, 4)
    one, plain = (dp_search(model, noise, 4, teacher_steps=20, cost=cost) for cost in (costs.X0(1), "x_t"))
    for budget in range(1, 5):
        assert torch.equal(one.schedules[budget].nodes, plain.schedules[budget].nodes)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("start", STARTS)
def test_evaluations_are_counted_and_announced(share, start):
    for cost in (*COSTS.values(), costs.X0(None), costs.X0(2)):
        model, noise, seen = Counting(mixture(1).flow()), normal(3, 4), []
        result = dp_search(
            model,
            noise,
            4,
            teacher_steps=20,
            share=share,
            start=start,
            cost=cost,
            progress=lambda made, total, seen=seen: seen.append((made, total)),
        )
        assert model.evaluations == 3 * result.nfe["total"] == seen[-1][0] == seen[-1][1] == seen[0][1]
        assert sum(value for key, value in result.nfe.items() if key != "total") == result.nfe["total"]
        assert ("cost" in result.nfe) == cost.evaluates


def test_evaluations_by_hand():
    """10 nodes before the clean one, 4 steps, 3 candidates a node: the teacher's states at 9 nodes; one candidate at 9;
    into nodes 2..9 there are 1, 2, 3, 3, .. sources; into 3..9 as many; the last stage asks nothing."""
    result = dp_search(mixture(1).flow(), normal(3, 4), 4, teacher_steps=10, candidates=10, cost=costs.X0(3))
    assert result.nfe == {"teacher": 10, "search": 0, "cost": 9 + 9 + (1 + 2 + 6 * 3) + (1 + 2 + 5 * 3), "total": 67}


def test_what_the_core_asks():
    model, noise = mixture(1).flow(), normal(3, 4)
    found, asks = by_hand(dp_core(noise, grids.make("flow", 10), 3, candidates=10, cost=costs.X0(2)), model)
    spent = [ask for ask in asks if ask.purpose == "cost"]
    assert [ask.nodes.tolist() for ask in spent[:2]] == [list(range(1, 10)), list(range(1, 10))]
    assert [ask.nodes.tolist() for ask in spent[2:]] == [list(range(2, 10)), list(range(3, 10))]
    assert all(ask.purpose is None for ask in asks[:10]) and len(asks) == 14
    assert found.settings["judged_by"] == {"name": "x0", "sources": 2}


def test_float32_and_half_noise():
    inner = mixture(1).flow().fn
    model = FlowModel(lambda x, t: inner(x.float(), t).to(x.dtype))
    for dtype in (torch.float32, torch.bfloat16):
        result = dp_search(model, normal(6, 4, dtype=dtype), 4, teacher_steps=30, cost="x0")
        assert result.teacher.dtype == torch.float32
    check_replay(dp_search(model, normal(6, 4).float(), 4, cost="x0"), model, normal(6, 4).float(), 1e-5)


@pytest.mark.gpu
def test_the_gpu_finds_the_same(cuda_device):
    model = FlowModel(lambda x, t: torch.sin(3 * x) * t.to(x.dtype).view(-1, 1) - 0.2 * x)
    noise = normal(6, 4)
    for cost in COSTS.values():
        for share in SHARES:
            here, there = (
                dp_search(model, where, 4, teacher_steps=20, share=share, cost=cost, store=store)
                for where, store in ((noise, "auto"), (noise.to(cuda_device), "device"))
            )
            torch.testing.assert_close(there.values, here.values, rtol=1e-6, atol=1e-10)
            hosted = dp_search(model, noise.to(cuda_device), 4, teacher_steps=20, share=share, cost=cost, store="host")
            torch.testing.assert_close(hosted.values, here.values, rtol=1e-6, atol=1e-10)


# --- modules ---


def test_a_layer_of_a_module():
    net = Net()
    model, noise = mixture(1).flow(), normal(5, 4)

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.tail = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            assert x.dtype == torch.float32
            return self.tail(torch.tanh(self.body(x)))

    torch.manual_seed(0)
    head = Head().eval().requires_grad_(False)
    by_layer = costs.Feature(head, layer="body", preprocess=lambda x: 2 * x)
    by_hand_ = costs.Feature(lambda x: head.body(2 * x.float()))
    found, wanted = (dp_search(model, noise, 3, teacher_steps=16, cost=cost) for cost in (by_layer, by_hand_))
    torch.testing.assert_close(found.values, wanted.values, rtol=1e-5, atol=1e-9)
    assert by_layer.describe() == {"name": "x0 features of Head", "sources": 4, "of": "x0", "layer": "body"}
    assert not head.body._forward_hooks and not net.first._forward_hooks


@pytest.mark.parametrize("doubled", [False, True])
def test_activations_under_guidance(doubled):
    """Both conditions' activations are compared, whether they come in one batch or in two calls."""
    net, scale = Net(1), 2.0

    def fn(x, t):
        if doubled:
            one, other = net(torch.cat([x, x + 1]), torch.cat([t, t])).chunk(2)
        else:
            one, other = net(x, t), net(x + 1, t)
        return other + scale * (one - other)

    noise, t = normal(5, 4), grids.make("flow", 10)

    def features(x, v, time):
        column = torch.full_like(x[:, :1], time)
        return torch.cat([net.first(torch.cat([each, column], 1)) for each in (x, x + 1)], 1)

    model = FlowModel(fn)
    wanted, _, _ = plain_cost_search(as_velocity(model), noise, t.tolist(), 4, features=features, sources=4)
    result = dp_search(model, noise, 4, grid=t, cost=costs.Perceptual(net, "first"), batch_size=3, **PLAIN)
    assert {budget: schedule.nodes.tolist() for budget, schedule in result.schedules.items()} == wanted


def test_hooks_are_gone_after_a_failure():
    net, calls = Net(), []

    def fn(x, t):
        calls.append(len(x))
        return net(x, t) + (0 if len(calls) < 27 else torch.nan)  # 24 calls of the teacher, and its states once more

    cost = costs.Perceptual(net, "first")
    with pytest.raises(ValueError, match="NaN or inf"):
        dp_search(FlowModel(fn), normal(4, 4), 4, teacher_steps=24, cost=cost)
    assert not net.first._forward_hooks
    model = FlowModel(lambda x, t: net(x, t))
    again, fresh = (dp_search(model, normal(4, 4), 4, cost=each) for each in (cost, costs.Perceptual(net, "first")))
    assert torch.equal(again.values, fresh.values)


def test_activations_that_never_come():
    net, model = Net(), mixture(1).flow()
    with pytest.raises(ValueError, match="layers: first gave 0 rows for"):
        dp_search(model, normal(4, 4), 3, teacher_steps=10, cost=costs.Perceptual(net, "first"))
    with pytest.raises(RuntimeError, match="perceptual costs work where dp_search evaluates the model"):
        by_hand(dp_core(normal(4, 4), grids.make("flow", 10), 3, cost=costs.Perceptual(net, "first")), model)


def test_inception_v3_sees_what_torchvisions_preset_shows_it():
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    torch.manual_seed(0)
    network = models.inception_v3(weights=None, init_weights=False, transform_input=True).eval()
    cost = costs.inception_v3(network.state_dict(), sources=2)
    network.fc = nn.Identity()
    preset = models.Inception_V3_Weights.IMAGENET1K_V1.transforms(resize_size=299)
    x = normal(2, 3, 32, 32, dtype=torch.float32).tanh()
    with torch.no_grad():
        wanted = network(preset((x + 1) / 2))
    features = cost.features(x, torch.zeros_like(x), torch.zeros(2, dtype=torch.float64))
    assert features.shape == (2, 2048) and float(wanted.std()) > 0
    torch.testing.assert_close(features, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    with pytest.raises(RuntimeError, match="Missing key"):
        costs.inception_v3({})


# --- files and input ---


def test_provenance_of_a_file(tmp_path):
    result = dp_search(mixture(1).flow(), normal(4, 4), 3, teacher_steps=10, cost="x0")
    result.schedule.save(tmp_path / "schedule.json")
    origin = Schedule.load(tmp_path / "schedule.json").provenance
    assert origin.judged_by == {"name": "x0", "sources": costs.SOURCES} and origin.nfe == result.nfe
    assert origin.cost == pytest.approx(float(result.costs[3].mean()))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"cost": "lpips"}, ValueError, "cost: got 'lpips', wanted one of x_t, x0"),
        ({"cost": 3}, TypeError, "cost: got int, wanted one of x_t, x0, or an oss_ext.costs.Cost"),
        ({"cost": nn.Identity()}, TypeError, "cost: got Identity, wanted"),
        ({"cost": "x0", "solver": "auto"}, ValueError, "cost: got 'x0' with solver 'auto'"),
        ({"cost": "x0", "beam": 2}, ValueError, "beam: got 2 with cost 'x0', wanted 1"),
        ({"cost": "x0", "calibration": "scale"}, ValueError, "calibration: got 'scale' with cost 'x0', wanted None"),
        ({"cost": COSTS["feature"], "weight": torch.ones(4)}, ValueError, "weight: got one with cost 'x0 features"),
        ({"cost": COSTS["feature"], "refine": "nodes"}, ValueError, "cost: got 'x0 features of corner' with refine"),
        ({"cost": costs.Feature(lambda x: x[:1])}, ValueError, r"module: returned shape \[1, 4\], wanted \[48, ...\]"),
        ({"cost": costs.Feature(lambda x: x.sum())}, ValueError, r"module: returned shape \[\], wanted"),
        ({"cost": costs.Feature(lambda x: None)}, TypeError, "module: returned NoneType, wanted a floating tensor"),
    ],
)
def test_bad_input(options, error, match):
    model = Counting(mixture(1).flow())
    with pytest.raises(error, match=match):
        dp_search(model, normal(3, 4), 3, teacher_steps=16, **options)
    assert (model.evaluations == 0) == ("module" not in match), "only a module's output is seen late"


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: costs.X0(0), ValueError, "sources: got 0, wanted at least 1"),
        (lambda: costs.X0(2.5), TypeError, "sources: got 2.5"),
        (lambda: costs.Feature(3), TypeError, "module: got int, wanted a function"),
        (lambda: costs.Feature(nn.Linear(2, 2)), ValueError, "module: it is in training mode"),
        (lambda: costs.Feature(corner, of="xt"), ValueError, "of: got 'xt', wanted one of x0, x_t"),
        (lambda: costs.Feature(corner, preprocess=1), TypeError, "preprocess: got int"),
        (lambda: costs.Feature(corner, layer="a"), TypeError, "layer: got 'a' of function"),
        (lambda: costs.Feature(Net(), layer="third"), ValueError, r"layer: got 'third', wanted .*\(first, second"),
        (lambda: costs.Feature(corner, batch_size=0), ValueError, "batch_size: got 0"),
        (lambda: costs.Perceptual(Net()), ValueError, "layers: got none"),
        (lambda: costs.Perceptual(Net(), ""), ValueError, "layers: got ''"),
        (lambda: costs.Perceptual(corner, "first"), TypeError, "layers: got 'first' of function"),
    ],
)
def test_bad_costs(make, error, match):
    with pytest.raises(error, match=match):
        make()
