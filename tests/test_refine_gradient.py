"""Refinement by back-propagation: exact where it starts, right gradients, never worse for the noises that judge."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.analytic import mixture, normal
from helpers.refining import (
    EVERY,
    FINE,
    MIXTURE,
    NOISE,
    SHORT,
    TEACHER,
    error_of,
    problem_of,
    searched,
    stock,
    teacher_of,
)

from oss_ext import FlowModel, Schedule, dp_search, grids, refine, solvers
from oss_ext.models import EpsilonModel
from oss_ext.refine_gradient import gradient, level_of, polish
from oss_ext.refine_knobs import Knobs
from oss_ext.teacher import DEFAULT_SOLVER


@pytest.mark.parametrize("seed", range(6))
def test_gradient_is_never_worse_on_the_noises_that_judge(seed):
    """Few samples and many parameters: what the learning ones lead to may be worse on others."""
    model, noise = mixture(seed).flow(), normal(4, 4, seed=seed)
    schedule = dp_search(model, noise, 4, teacher_steps=40, solver="fitted").schedule
    refined = refine(schedule, model, noise, method="gradient", learn=EVERY, **SHORT)
    assert error_of(refined, model, noise[-1:]) <= error_of(schedule, model, noise[-1:]) * (1 + 1e-9)


def test_the_recorded_cost_is_that_of_the_network_time_that_was_learned():
    model = MIXTURE.flow()
    learned = refine(searched(), model, NOISE, method="gradient", learn=("network_t",), **SHORT)
    assert learned.network_t is not None and not torch.equal(learned.network_t, learned.t[:-1])
    assert learned.provenance.cost == pytest.approx(error_of(learned, model), rel=1e-9)


def test_a_network_time_of_its_own_pays_beside_a_formula():
    model, unseen, learners = MIXTURE.flow(), normal(128, 4, seed=2), normal(64, 4, seed=1)
    schedule = stock()
    errors = {}
    for learn in (("times",), ("times", "network_t")):
        refined = refine(schedule, model, learners, method="gradient", learn=learn, **TEACHER)
        assert refined.solver == "dpmpp_2m"
        assert torch.equal(refined.coefficients, solvers.along(solvers.get("dpmpp_2m"), refined.t)) or torch.allclose(
            refined.coefficients, solvers.along(solvers.get("dpmpp_2m"), refined.t), rtol=0, atol=1e-12
        )
        assert (refined.network_t is not None) == ("network_t" in learn)
        errors[learn] = error_of(refined, model, unseen)
    print(errors)
    assert errors["times", "network_t"] < 0.8 * errors[("times",)]


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "unipc_3", "deis_2", "fitted"])
@pytest.mark.parametrize("family", ["flow", "edm", "epsilon"])
def test_gradients_are_those_of_finite_differences(solver, family):
    model = MIXTURE.families()[family]
    grid = grids.for_model("flow", 40, model)
    if solver == "fitted":
        schedule = dp_search(model, NOISE, 4, grid=grid, solver=solver).schedule
    else:
        schedule = Schedule.from_grid(grids.for_model("flow", 4, model), solver, model)
    problem = problem_of(schedule, model, grid=grid)
    with torch.enable_grad():
        knobs = Knobs(schedule, frozenset(EVERY), model.t_min, model.t_max)
        generator = torch.Generator().manual_seed(0)
        for name, value in knobs.values.items():
            size = 0.02 * torch.rand(value.shape, generator=generator, dtype=torch.float64)
            value.data += -size if name == "network_t" else size  # down: up is beyond the noisiest time
        slopes = dict(zip(knobs.values, gradient(problem, knobs), strict=True))
    compared = 0
    with torch.no_grad():
        for name, value in knobs.values.items():
            for place in range(value.numel()):
                flat, kept, errors = value.data.view(-1), float(value.data.view(-1)[place]), []
                for way in (1e-5, -1e-5):
                    flat[place] = kept + way
                    errors.append(level_of(problem, knobs.numbers(), problem.learners))
                flat[place] = kept
                wanted = (errors[0] - errors[1]) / 2e-5
                got = float(slopes[name].view(-1)[place])
                assert got == pytest.approx(wanted, rel=2e-4, abs=1e-7), (name, place)
                compared += abs(wanted) > 1e-6
    assert compared >= 12


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "ab3", "fitted"])
def test_the_first_iterate_is_the_schedule(solver):
    model = MIXTURE.flow()
    schedule = searched(solver) if solver == "fitted" else stock(solver)
    knobs = Knobs(schedule, frozenset(EVERY), model.t_min, model.t_max)
    knobs.whiten(torch.eye(schedule.coefficients.shape[1], dtype=torch.float64).repeat(4, 1, 1), 0.1)
    numbers = knobs.numbers()
    assert torch.equal(numbers.t, schedule.t) and torch.equal(numbers.rows, schedule.coefficients)
    assert torch.equal(numbers.network_t, schedule.t[:-1]) and float(numbers.scale.detach()) == schedule.noise_scale
    problem = problem_of(schedule, model)
    with torch.no_grad():
        error = level_of(problem, numbers, slice(0, len(NOISE)))
    assert error == pytest.approx(error_of(schedule, model), rel=1e-12)
    same = refine(schedule, model, NOISE, method="gradient", iterations=0, **TEACHER)
    assert torch.equal(same.t, schedule.t) and torch.equal(same.coefficients, schedule.coefficients)
    assert same.solver == schedule.solver and same.provenance.refined["iterations"] == 0


@pytest.mark.parametrize("family", ["flow", "edm"])
@pytest.mark.parametrize("push", [-50.0, -1.0, 1.0, 50.0])
def test_times_stay_descending_and_within_the_model_however_far_they_are_pushed(family, push):
    model = MIXTURE.families()[family]
    schedule = Schedule.from_grid(grids.for_model("edm", 5, model), "dpmpp_2m", model)
    for place in range(5):
        knobs = Knobs(schedule, frozenset(EVERY), model.t_min, model.t_max)
        with torch.no_grad():
            knobs.values["times"][place] += push
            knobs.values["network_t"][place] += push
        numbers = knobs.numbers()
        moved = Schedule.from_grid(numbers.t.detach(), "euler", model)  # raises where they are not
        assert moved.t[0] == schedule.t[0]
        replace(moved, network_t=numbers.network_t.detach()).check_range(model)


def test_small_batches_give_the_same_gradient():
    model, schedule = MIXTURE.flow(), stock()
    slopes = []
    for rows in (1, 7, 100):
        problem = problem_of(schedule, model, rows=rows)
        with torch.enable_grad():
            slopes.append(gradient(problem, Knobs(schedule, frozenset(EVERY), 0.0, 1.0)))
        assert problem.counter.made == 3 * 4 * 24
    for other in slopes[1:]:
        for one, two in zip(slopes[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-14)


class Shifted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, t):
        return MIXTURE.flow().velocity(x, t) * self.gain.to(x)


def test_the_networks_parameters_get_no_gradients_and_the_caller_may_be_anywhere():
    network = Shifted()
    model, results = FlowModel(network), []
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            noise = NOISE.clone()  # an inference tensor in the last case
            results.append(refine(stock(), model, noise, method="gradient", learn=EVERY, **SHORT))
            assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
    assert network.gain.grad is None
    for other in results[1:]:
        assert torch.equal(other.coefficients, results[0].coefficients) and torch.equal(other.t, results[0].t)
    assert not results[0].coefficients.requires_grad and not results[0].t.requires_grad


def broken(how):
    def fn(x, t):
        velocity = MIXTURE.flow().velocity
        if how == "detach":
            return velocity(x, t).detach()
        with torch.inference_mode() if how == "inference_mode" else torch.no_grad():
            return velocity(x, t)

    return FlowModel(fn)


@pytest.mark.parametrize("how", ["detach", "no_grad", "inference_mode"])
@pytest.mark.parametrize("learn", [None, ["times"], ["coefficients"]])
def test_a_model_that_cuts_the_graph_is_told_so(how, learn):
    with pytest.raises(ValueError, match=r"model: velocity\(\) returned a tensor that is cut from the graph"):
        refine(stock(), broken(how), NOISE, method="gradient", learn=learn, **SHORT)
    refine(stock(), broken(how), NOISE, method="nodes", **TEACHER)


def test_times_stay_where_their_gradient_would_be_wrong():
    model = MIXTURE.vp(EpsilonModel)
    inner = model.timesteps
    model.timesteps = lambda t: inner(t).detach()
    grid = grids.for_model("flow", 40, model)
    schedule = Schedule.from_grid(grids.for_model("flow", 4, model), "dpmpp_2m", model)
    refined = refine(schedule, model, NOISE, method="gradient", grid=grid, iterations=60)
    assert "times" not in refined.provenance.refined["learned"] and torch.equal(refined.t, schedule.t)
    with pytest.raises(ValueError, match=r"learn: got times with a epsilon model"):
        refine(schedule, model, NOISE, method="gradient", grid=grid, learn=["times"])
    target = teacher_of(model, NOISE, grid)
    assert error_of(refined, model, NOISE, target) < 0.7 * error_of(schedule, model, NOISE, target)


@pytest.mark.parametrize("family", ["flow", "edm", "epsilon", "v_param"])
def test_times_move_where_their_gradient_is_right(family):
    model = MIXTURE.families()[family]
    grid = grids.for_model("flow", 40, model)
    schedule = Schedule.from_grid(grids.for_model("flow:shift=3", 4, model), "dpmpp_2m", model)
    refined = refine(schedule, model, NOISE, method="gradient", grid=grid, learn=["times"], iterations=60)
    target = teacher_of(model, NOISE, grid)
    assert not torch.equal(refined.t, schedule.t) and torch.equal(refined.sigmas, model.sigmas(refined.t))
    assert error_of(refined, model, NOISE, target) < 0.7 * error_of(schedule, model, NOISE, target)


def test_gradients_of_the_logarithms_are_those_of_finite_differences():
    model, schedule = MIXTURE.flow(), stock()
    problem = replace(problem_of(schedule, model), objective="psnr")
    knobs = Knobs(schedule, frozenset(EVERY[:3]), model.t_min, model.t_max)
    with torch.enable_grad():
        slopes = dict(zip(knobs.values, gradient(problem, knobs, unit=123.0), strict=True))
    with torch.no_grad():
        for name, value in knobs.values.items():
            flat, levels = value.data.view(-1), []
            kept = float(flat[-1])
            for way in (1e-5, -1e-5):
                flat[-1] = kept + way
                levels.append(math.log(level_of(problem, knobs.numbers(), problem.learners)))
            flat[-1] = kept
            wanted = (levels[0] - levels[1]) / 2e-5
            assert float(slopes[name].view(-1)[-1]) == pytest.approx(wanted, rel=1e-4), name


def test_polish_without_a_gain_returns_nothing():
    """A schedule that is the teacher itself cannot come nearer."""
    model = MIXTURE.flow()
    schedule = Schedule.from_grid(FINE, DEFAULT_SOLVER, model)
    assert polish(problem_of(schedule, model), schedule, frozenset(EVERY), 10) is None
    refined = refine(schedule, model, NOISE, method="nodes", **TEACHER)
    assert torch.equal(refined.t, schedule.t)
