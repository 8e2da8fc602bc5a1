"""Refinement of schedules: never worse, clearly better where there is something to gain."""

from __future__ import annotations

import pytest
import torch
from helpers.analytic import ddpm_table, normal
from helpers.counting import Counting
from helpers.refining import (
    FINE,
    METHODS,
    MIXTURE,
    NOISE,
    SHORT,
    TEACHER,
    error_of,
    fell,
    searched,
    stock,
    teacher_of,
)

from oss_ext import Schedule, dp_search, refine, solvers
from oss_ext.models import EpsilonModel
from oss_ext.mover import nearer
from oss_ext.objective import level, steepness

# --- what it buys ---


@pytest.mark.parametrize("solver", ["euler", "ab2", "dpmpp_2m", "unipc", "ipndm", "fitted", "mixed"])
@pytest.mark.parametrize("start", ["fixed", "free"])
def test_nodes_are_never_worse_and_stay_on_the_grid(solver, start):
    model, schedule = MIXTURE.flow(), searched(solver, start=start)
    refined = refine(schedule, model, NOISE, method="nodes", **TEACHER)
    before, after = error_of(schedule, model), error_of(refined, model)
    assert after <= before
    if solver != "mixed" and not torch.equal(refined.t, schedule.t):
        assert after < before and fell(refined, schedule, model) > 0
    assert refined.provenance.cost == pytest.approx(after, rel=1e-9)
    assert torch.equal(refined.t, FINE[refined.nodes])
    if solver not in ("fitted", "mixed"):
        assert torch.equal(refined.coefficients, solvers.along(solvers.get(solver), refined.t))


@pytest.mark.parametrize(
    ("solver", "method", "share"),
    [
        ("euler", "nodes", 0.8),
        ("dpmpp_2m", "nodes", 0.8),
        ("euler", "gradient", 0.2),
        ("dpmpp_2m", "gradient", 0.5),
    ],
)
def test_a_stock_schedule_comes_clearly_nearer_on_noises_that_it_never_saw(solver, method, share):
    model, unseen = MIXTURE.flow(), normal(128, 4, seed=2)
    schedule = stock(solver, grid="flow:shift=3")
    refined = refine(schedule, model, normal(64, 4, seed=1), method=method, **TEACHER)
    before, after = error_of(schedule, model, unseen), error_of(refined, model, unseen)
    print(f"{solver}, {method}: {before:.3e} -> {after:.3e}, {after / before:.2f}")
    assert after < share * before


def test_fitted_coefficients_follow_their_nodes():
    model, schedule = MIXTURE.flow(), searched("fitted")
    refined = refine(schedule, model, NOISE, **TEACHER)
    before, after = error_of(schedule, model), error_of(refined, model)
    print(f"{before:.3e} -> {after:.3e}")
    assert refined.solver == "fitted" and refined.coefficients.shape == schedule.coefficients.shape
    assert not torch.equal(refined.nodes, schedule.nodes)
    assert after < 0.7 * before


def test_nodes_end_where_no_move_of_one_helps():
    model, schedule = MIXTURE.flow(), stock("dpmpp_2m", steps=3)
    refined = refine(schedule, model, NOISE, evaluations=10_000, **TEACHER)
    least = error_of(refined, model)
    for place in (1, 2):
        for way in (-1, 1):
            nodes = refined.nodes.clone()
            nodes[place] += way
            if nodes.diff().min() > 0:
                moved = Schedule.from_grid(FINE[nodes], "dpmpp_2m", model)
                assert error_of(moved, model) >= least * (1 - 1e-6) or fell(moved, refined, model) < len(NOISE) / 2


def test_the_first_node_moves_where_it_is_not_the_grids():
    model = MIXTURE.flow()
    late = Schedule.from_grid(FINE[torch.tensor([24, 28, 34, 40])], "euler", model)
    refined = refine(late, model, NOISE, **TEACHER)
    assert refined.t[0] > late.t[0] and refined.noise_scale == pytest.approx(float(refined.t[0]))
    assert error_of(refined, model) < 0.5 * error_of(late, model)
    assert refine(stock(), model, NOISE, **TEACHER).nodes[0] == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_schedule_refined_on_the_noises_is_not_made_worse_by_refining_it_again(method):
    model = MIXTURE.flow()
    once = refine(stock(), model, NOISE, method="nodes", evaluations=10_000, **TEACHER)
    again = refine(once, model, NOISE, method=method, **SHORT)
    judges = NOISE[-8:] if method == "gradient" else NOISE
    assert error_of(again, model, judges) <= error_of(once, model, judges)
    if method == "nodes":
        assert torch.equal(again.t, once.t) and torch.equal(again.coefficients, once.coefficients)


def test_a_move_must_help_half_of_the_samples():
    before = torch.tensor([1.0, 1.0, 1.0, 9.0], dtype=torch.float64)
    after = {
        "one that has most of the error": ([1.1, 1.1, 1.1, 1.0], False),
        "half": ([0.9, 1.1, 1.1, 1.0], True),
        "most, but not the mean": ([0.9, 0.9, 0.9, 9.4], False),
        "none": ([1.0, 1.0, 1.0, 9.0], False),
    }
    for name, (error, wanted) in after.items():
        assert nearer(torch.tensor(error, dtype=torch.float64), before) == wanted, name


# --- the objective ---


def logarithm(schedule, model, noise, target):
    """Of the errors, their mean: what falls as the mean of the noises' PSNRs rises."""
    return float((schedule.sample(model, noise) - target).square().mean(1).log().mean())


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "mixed", "fitted"])
@pytest.mark.parametrize("method", METHODS)
def test_every_noise_counts_alike_with_psnr(method, solver):
    model = MIXTURE.flow()
    schedule = searched(solver, steps=5) if solver in ("mixed", "fitted") else stock(solver, grid="flow:shift=3")
    target = teacher_of(model)
    how = {**TEACHER, "method": method, "evaluations": 800, "iterations": 60}
    plain, alike = (refine(schedule, model, NOISE, objective=objective, **how) for objective in ("mse", "psnr"))
    judges = slice(-8, None) if method == "gradient" else slice(0, None)
    before, after, other = (logarithm(s, model, NOISE[judges], target[judges]) for s in (schedule, alike, plain))
    print(f"{method}, {solver}: {before:.3f} -> {after:.3f}, by the mean {other:.3f}")
    assert after <= before + 1e-9
    assert alike.provenance.refined["objective"] == "psnr"
    assert alike.provenance.cost == pytest.approx(error_of(alike, model, NOISE), rel=1e-9)
    if method == "nodes" and solver != "mixed":  # whose choices follow the squared error
        assert after <= other + 0.05


def test_weights_are_the_slope_of_the_level():
    error = torch.tensor([0.1, 2.0, 0.7], dtype=torch.float64, requires_grad=True)
    for objective, wanted in (("mse", error.mean()), ("psnr", error.log().mean().exp())):
        assert level(error.detach(), objective) == pytest.approx(wanted.item(), rel=1e-12)
        (slope,) = torch.autograd.grad(wanted, error)
        torch.testing.assert_close(steepness(error.detach(), objective), slope / slope.mean())
    zero = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert level(zero, "psnr") > 0 and bool(steepness(zero, "psnr").isfinite().all())


# --- in the search ---


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("solver", ["dpmpp_2m", "fitted", "auto"])
def test_search_refines_the_largest_budget_alone(solver, method):
    model, options = Counting(MIXTURE.flow()), {"teacher_steps": 30, "solver": solver, "candidates": 10}
    plain = dp_search(model, NOISE, 3, **options)
    model.evaluations = 0
    result = dp_search(model, NOISE, 3, refine=method, **options)
    judged = NOISE[-len(result.teacher) :]
    for budget, schedule in result.schedules.items():
        torch.testing.assert_close(schedule.sample(model.model, judged), result.endpoints[budget], rtol=1e-9, atol=1e-9)
        cost = (result.endpoints[budget] - result.teacher).square().mean(1)
        torch.testing.assert_close(cost, result.costs[budget], rtol=1e-9, atol=1e-12)
        if budget < 3:
            assert torch.equal(schedule.t, plain.schedules[budget].t)
    assert result.schedule.provenance.refined["method"] == method
    assert result.schedules[2].provenance.refined == {}
    assert result.nfe["total"] == pytest.approx(plain.nfe["total"] + result.nfe["refine"])
    assert result.nfe == result.schedule.provenance.nfe
    if method == "nodes":
        assert model.evaluations == pytest.approx(result.nfe["total"] * len(NOISE))
        if solver != "auto":
            assert result.costs[3].mean() <= plain.costs[3].mean()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"refine": "both"}, ValueError, "refine: got 'both', wanted one of nodes, gradient"),
        ({"refine": True}, TypeError, "refine: got bool"),
        ({"refine": "nodes", "share": "median"}, ValueError, "share: got 'median' with refine"),
        ({"refine": "nodes", "share": "per_sample"}, ValueError, "share: got 'per_sample' with refine"),
    ],
)
def test_search_input(options, error, match):
    model = Counting(MIXTURE.flow())
    with pytest.raises(error, match=match):
        dp_search(model, NOISE, 3, teacher_steps=20, **options)
    assert model.evaluations == 0


def test_whole_timesteps_and_gradients_exclude_each_other():
    model = Counting(MIXTURE.vp(EpsilonModel))
    with pytest.raises(ValueError, match="refine: got 'gradient' with nodes 'integer'"):
        dp_search(model, NOISE, 3, teacher_steps=20, nodes="integer", refine="gradient")
    with pytest.raises(ValueError, match="noise: got 1 sample"):
        dp_search(model, NOISE[:1], 3, teacher_steps=20, refine="gradient")
    assert model.evaluations == 0
    result = dp_search(model, NOISE, 3, teacher_steps=20, nodes="integer", refine="nodes")
    assert torch.equal(result.schedule.timesteps, result.schedule.timesteps.round())
    assert len(ddpm_table()) > result.schedule.timesteps.max()
