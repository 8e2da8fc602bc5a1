from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers.analytic import mixture, normal
from helpers.counting import Counting

from oss_ext import Schedule, grids
from oss_ext.baselines import dm
from oss_ext.baselines.dm import minimise, objective, trust_region, weights


def integral(values, low, high):
    """Simpson's rule on `values`, a function of a float64 tensor."""
    x = torch.linspace(low, high, 2001, dtype=torch.float64)
    y = values(x)
    return float((high - low) / 6000 * (y[0] + y[-1] + 4 * y[1::2].sum() + 2 * y[2:-1:2].sum()))


def lagrange(x, nodes, m):
    value = torch.ones_like(x)
    for k, node in enumerate(nodes):
        if k != m:
            value = value * (x - node) / (nodes[m] - node)
    return value


def plain_objective(lambdas, power, truncate):
    """Step by step, with the weights integrated numerically."""
    count = len(lambdas) - 1
    eps = [(math.exp(-v) / math.hypot(1, math.exp(-v))) ** power * math.hypot(1, math.exp(-v)) for v in lambdas]
    total, summed = 0.0, [0.0] * count
    for s in range(count):
        order = min(3, s + 1, count - s)
        nodes = [lambdas[s - m] for m in range(order)]
        parts = [
            eps[s - m]
            * integral(lambda x, nodes=nodes, m=m: x.exp() * lagrange(x, nodes, m), lambdas[s], lambdas[s + 1])
            for m in range(order)
        ]
        if order == 1:
            total += abs(parts[0])
        elif s < truncate:
            total += math.hypot(*parts)
        else:
            for m, part in enumerate(parts):
                summed[s - m] += part
    return total + sum(map(abs, summed))


def ascending(count, seed, low=-4.0, high=5.0):
    gaps = normal(count, seed=seed).exp()
    return low + (high - low) * torch.cat([gaps.new_zeros(1), gaps.cumsum(0) / gaps.sum()])


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("truncate", [0, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 10])
def test_the_objective_is_that_of_plain_loops(count, truncate, power):
    lambdas = ascending(count, seed=count)
    wanted = plain_objective(lambdas.tolist(), power, truncate)
    assert float(objective(lambdas, power, truncate)) == pytest.approx(wanted, rel=1e-8)


def test_the_weights_of_a_step_sum_to_eulers():
    """Lagrange's polynomials sum to 1."""
    lambdas = ascending(8, seed=1)
    at = torch.arange(2, 8)
    for order in (1, 2, 3):
        whole = lambdas[at + 1].exp() - lambdas[at].exp()
        torch.testing.assert_close(weights(lambdas, at, order).sum(0), whole, rtol=1e-10, atol=0)


def test_the_objective_can_be_differentiated():
    lambdas = ascending(6, seed=2).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: objective(x, 1, 0, 0.1), (lambdas,))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("count", [2, 3])
def test_the_minimum_is_that_of_a_fine_search(count, power):
    model = mixture().edm()
    ends = [-math.log(80), math.log(500)]
    ticks = torch.linspace(*ends, 201, dtype=torch.float64)[1:-1].tolist()
    least = min(
        float(objective(torch.tensor([ends[0], *inner, ends[1]], dtype=torch.float64), power, 3))
        for inner in itertools.combinations(ticks if count == 2 else ticks[::4], count - 1)
    )
    found = dm(model, count, error={1: "pixel", 2: "latent"}[power])
    assert found.details["objective"] <= least * (1 + 1e-9)
    assert found.details["objective"] >= 0.8 * least, "as good as the search, and not far beyond its spacing"


@pytest.mark.parametrize(
    "count, power, truncate, start", [(5, 1, 3, "logsnr"), (7, 2, 3, "edm"), (10, 1, 3, "edm"), (10, 1, 0, "logsnr")]
)
def test_scipys_trust_region_finds_nothing_better(count, power, truncate, start):
    """The authors' minimiser, with their constraints, from the same start."""
    pytest.importorskip("scipy.optimize", reason="the authors minimise with scipy")
    t = grids.for_model(start, count + 1, mixture().edm())[:-1]
    lambdas = -torch.log(t / (1 - t))
    theirs = trust_region(lambdas, power, truncate, 60)
    level = float(objective(theirs, power, truncate))
    ours = float(objective(minimise(lambdas, power, truncate), power, truncate))
    print(f"\n  {count} steps, {start}: ours {ours:.6f}, scipy's {level:.6f}", end="")
    assert (theirs.diff() >= 0).all() and level < float(objective(lambdas, power, truncate))
    assert ours <= level * 1.001


def test_the_trust_region_can_be_asked_for():
    pytest.importorskip("scipy.optimize", reason="the authors minimise with scipy")
    found = dm(mixture().edm(), 5, minimizer="trust-constr", starts="time")
    assert found.schedule.provenance.metadata["minimizer"] == "trust-constr"
    own = dm(mixture().edm(), 5, starts="time")
    torch.testing.assert_close(found.schedule.t, own.schedule.t, rtol=2e-2, atol=1e-3)


def test_the_schedule_beats_its_starts():
    model, noise = mixture(shape=(16,)).edm(), normal(64, 16, seed=3)
    fine = Schedule.from_grid(grids.for_model("edm", 400, model), "unipc", model).sample(model, noise)

    def error(schedule):
        return float((schedule.sample(model, noise) - fine).square().mean())

    for name in ("logsnr", "edm"):
        stock = Schedule.from_grid(grids.for_model(name, 10, model), "unipc_3", model)
        assert error(dm(model, 10, starts=name).schedule) < error(stock)


@pytest.mark.parametrize("family", ["flow", "edm", "epsilon"])
@pytest.mark.parametrize("ending", ["replace", "append"])
@pytest.mark.parametrize("steps", [1, 2, 5, 9])
def test_what_comes_back(family, ending, steps):
    model = Counting(mixture().families()[family])
    found = dm(model, steps, ending=ending, solver="dpmpp_2m", iterations=30)
    schedule, details = found.schedule, found.details
    assert model.evaluations == 0 and found.nfe == {"total": 0}
    assert schedule.steps == steps and schedule.solver == "dpmpp_2m" and set(found.schedules) == {steps}
    low, high = (model.t_min, model.t_max) if family != "flow" else (0.002 / 1.002, 400 / 401)
    assert float(schedule.t[0]) == pytest.approx(high)
    if ending == "append" and steps > 1:
        assert float(schedule.t[-2]) == pytest.approx(low)
    assert details["objective"] == min(details["objectives"].values())
    assert details["objective"] == schedule.provenance.metadata["objective"]
    assert torch.isfinite(schedule.sample(model, normal(2, 4))).all()


def test_several_starts_and_the_switch():
    model = mixture().edm()
    alone = {name: dm(model, 6, starts=name).details["objective"] for name in ("logsnr", "time", "edm", "quadratic")}
    assert dm(model, 6).details["objectives"] == alone
    assert max(alone.values()) < 1.001 * min(alone.values()), "with the corners rounded first the starts do not matter"
    few, many = (dm(model, steps, starts="logsnr", truncate=None, iterations=20).schedule for steps in (7, 8))
    assert few.provenance.metadata["truncate"] == 3 and many.provenance.metadata["truncate"] == 0
    assert torch.equal(dm(model, 8, starts="logsnr", truncate=0, iterations=20).schedule.t, many.t)
    assert not torch.equal(dm(model, 8, starts="logsnr", iterations=20).schedule.t, many.t)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"solver": "mixed"}, "solver"),
        ({"error": "vp"}, "error"),
        ({"starts": "karras"}, "starts"),
        ({"starts": ()}, "starts"),
        ({"starts": ("edm", 3)}, "starts"),
        ({"truncate": -1}, "truncate"),
        ({"ending": "drop"}, "ending"),
        ({"minimizer": "adam"}, "minimizer"),
        ({"sigma_min": "low"}, "sigma_min"),
        ({"sigma_min": 5.0, "sigma_max": 1.0}, "grid: got sigma_min"),
        ({"sigma_max": 500.0}, "grid: got the first node"),
        ({"iterations": 0}, "iterations"),
        ({"model": None}, "model"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"model": mixture().edm(), "steps": 3, **change}
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        dm(arguments.pop("model"), arguments.pop("steps"), **arguments)
