from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers.analytic import mixture, normal
from helpers.counting import Counting

from oss_ext import FlowModel, Schedule, grids
from oss_ext.baselines import gits
from oss_ext.baselines.gits import shortest


def ve_trajectory(model, noise, t):
    """The paper's teacher in its own coordinates, x0 + sigma eps, with Euler's method: states and slopes, in loops."""
    sigmas = (t / (1 - t)).tolist()
    x = noise * sigmas[0]
    states, slopes = [x], []
    for i, sigma in enumerate(sigmas[:-1]):
        at = torch.full((len(noise),), float(t[i]), dtype=torch.float64)
        flow = x * (1 - float(t[i]))
        slopes.append(flow + (1 - float(t[i])) * model.velocity(flow, at))
        x = x + (sigmas[i + 1] - sigma) * slopes[-1]
        states.append(x)
    return sigmas, states, slopes


def from_chord(point, start, end):
    """Distance of a point from the line through two others, by the angle between them."""
    a, b = (point - end).flatten(), (start - end).flatten()
    if float(a.norm()) == 0:
        return 0.0
    cosine = float(a @ b / a.norm() / b.norm())
    return float(a.norm()) * math.sqrt(max(0.0, 1 - cosine**2))


def plain_costs(model, noise, t, metric):
    sigmas, states, slopes = ve_trajectory(model, noise, t)
    last = len(t) - 1
    cost = torch.full((last + 1, last + 1), math.inf, dtype=torch.float64)
    for i in range(last):
        for j in range(i + 1, last + 1):
            total = 0.0
            for b in range(len(noise)):
                jump = states[i][b] + (sigmas[j] - sigmas[i]) * slopes[i][b]
                if metric == "deviation":
                    ends = states[0][b], states[-1][b]
                    total += from_chord(jump, *ends) - (from_chord(states[j][b], *ends) if j < last else 0)
                else:
                    total += float((jump - states[j][b]).flatten().norm(p=1 if metric == "l1" else 2))
            cost[i, j] = total / len(noise)
    return cost


@pytest.mark.parametrize("family", ["flow", "edm", "epsilon"])
@pytest.mark.parametrize("metric", ["deviation", "l2", "l1"])
def test_the_cost_matrix_is_that_of_plain_loops(family, metric):
    model, noise = mixture(shape=(2, 3)).families()[family], normal(5, 2, 3)
    grid = grids.for_model("edm", 9, model)
    found = gits(model, noise, 3, grid=grid, teacher_solver="euler", metric=metric, batch_size=2)
    wanted = plain_costs(model, noise, grid, metric)
    torch.testing.assert_close(found.details["cost"], wanted, rtol=1e-7, atol=1e-7 * float(wanted[0, -1].abs()))


def test_flow_coordinates_measure_in_flow_time():
    """From t = 1, where x0 + sigma eps is infinite."""
    model, noise = mixture().flow(), normal(4, 4)
    t = grids.make("flow", 6)
    found = gits(model, noise, 2, grid="flow", teacher_steps=6, teacher_solver="euler", metric="l2", coordinates="flow")
    x, wanted = noise, torch.full((7, 7), math.inf, dtype=torch.float64)
    states, slopes = [x], []
    for i in range(6):
        slopes.append(model.velocity(x, t[i].expand(4)))
        x = x + (t[i + 1] - t[i]) * slopes[-1]
        states.append(x)
    for i, j in itertools.combinations(range(7), 2):
        wanted[i, j] = (states[i] + (t[j] - t[i]) * slopes[i] - states[j]).norm(dim=1).mean()
    torch.testing.assert_close(found.details["cost"], wanted, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="coordinates: got 've'"):
        gits(model, noise, 2, grid="flow")


@pytest.mark.parametrize("coefficient", [0.8, 1.0, 1.15])
def test_the_paths_are_those_of_brute_force(coefficient):
    cost = normal(9, 9, seed=3).abs()
    sums, paths = shortest(cost, 5, coefficient)
    for k in range(1, 6):
        best = {}
        for inner in itertools.combinations(range(1, 8), k - 1):
            path = (0, *inner, 8)
            jumps = itertools.pairwise(path)
            best[path] = sum(coefficient**n * float(cost[i, j]) for n, (i, j) in enumerate(jumps))
        path = min(best, key=best.get)
        assert tuple(paths[k].tolist()) == path and sums[k] == pytest.approx(best[path], rel=1e-12)


def test_what_comes_back():
    model, noise = Counting(mixture().edm()), normal(6, 4)
    told = []
    found = gits(model, noise, 5, teacher_steps=20, solver="dpmpp_2m", progress=lambda made, total: told.append(made))
    assert model.evaluations == 6 * 20 == told[-1] and found.nfe == {"teacher": 20, "total": 20}
    assert found.steps == 5 and found.schedule is found.schedules[5]
    for k, schedule in found.schedules.items():
        assert schedule.steps == k and schedule.solver == "dpmpp_2m" and schedule.t[0] == pytest.approx(80 / 81)
        assert torch.equal(schedule.t, grids.for_model("edm", 20, model)[found.details["nodes"][k]])
        assert schedule.provenance.metadata["method"] == "gits" and schedule.provenance.samples == 6
        assert torch.isfinite(schedule.sample(model, noise)).all()


def test_batches_and_half_types_change_nothing_but_rounding():
    model, noise = mixture().edm(), normal(7, 4)
    whole, split = gits(model, noise, 4), gits(model, noise, 4, batch_size=3)
    torch.testing.assert_close(whole.details["cost"], split.details["cost"], rtol=1e-12, atol=1e-12)
    half = gits(model, noise.bfloat16(), 4)
    assert half.schedule.steps == 4


@pytest.mark.parametrize("samples, dim, steps, teacher", [(1, 4, 1, 1), (1, 1, 3, 5), (2, 4, 6, 6)])
def test_small_cases(samples, dim, steps, teacher):
    found = gits(mixture(shape=(dim,)).edm(), normal(samples, dim), steps, teacher_steps=teacher)
    assert [s.steps for s in found.schedules.values()] == list(range(1, steps + 1))


def test_it_beats_the_grid_that_it_chooses_from():
    model, learn, judge = mixture(shape=(16,)).edm(), normal(64, 16, seed=1), normal(64, 16, seed=2)
    fine = grids.for_model("edm", 400, model)
    target = Schedule.from_grid(fine, "ipndm_4", model).sample(model, judge)
    chosen = gits(model, learn, 6, solver="ipndm_4").schedule.sample(model, judge)
    stock = Schedule.from_grid(grids.for_model("edm", 6, model), "ipndm_4", model).sample(model, judge)
    assert (chosen - target).square().mean() < (stock - target).square().mean()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "steps"),
        ({"steps": 61}, "steps"),
        ({"steps": 2.0}, "steps"),
        ({"teacher_steps": 0}, "teacher_steps"),
        ({"grid": "karras"}, "grid"),
        ({"grid": torch.tensor([0.9, 0.5])}, "grid"),
        ({"solver": "fitted"}, "solver"),
        ({"solver": "rk4"}, "solver"),
        ({"teacher_solver": "fitted"}, "teacher_solver"),
        ({"metric": "dev"}, "metric"),
        ({"coordinates": "vp"}, "coordinates"),
        ({"coefficient": 0}, "coefficient"),
        ({"coefficient": math.nan}, "coefficient"),
        ({"coefficient": "1.15"}, "coefficient"),
        ({"cond": {"label": torch.zeros(3)}}, "cond"),
        ({"batch_size": 0}, "batch_size"),
        ({"progress": "yes"}, "progress"),
        ({"noise": torch.zeros(4)}, "noise"),
        ({"noise": torch.full((2, 4), math.nan)}, "noise"),
        ({"model": lambda x, t: x}, "model"),
    ],
)
def test_bad_input_is_named_before_any_evaluation(change, message):
    model = Counting(mixture().edm())
    arguments = {"model": model, "noise": normal(2, 4), "steps": 3, **change}
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        gits(arguments.pop("model"), arguments.pop("noise"), arguments.pop("steps"), **arguments)
    assert model.evaluations == 0


def test_a_nan_from_the_model_is_named():
    with pytest.raises(ValueError, match="NaN or inf at node 0"):
        gits(FlowModel(lambda x, t: x * math.nan), normal(2, 4), 2)
