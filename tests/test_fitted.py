"""The search with least-squares coefficients: replay, what the ridge leads to, and what the fit is worth."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.analytic import mixture, normal

from oss_ext import Schedule, dp_search, solvers
from oss_ext.solvers import Fitted
from oss_ext.teacher import DEFAULT_SOLVER

NOISE = normal(12, 4)


@pytest.mark.parametrize("start", ["fixed", "free"])
@pytest.mark.parametrize("history", [0, 1, 2, 3, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_replay_reproduces_scored_state_and_cost(history, start, dtype, tolerance, device):
    """Fitted coefficients of neighbouring outputs may be large and of opposite signs, hence more room for rounding."""
    model, noise = mixture(1).flow(), NOISE.to(dtype).to(device)
    result = dp_search(model, noise, 5, teacher_steps=40, solver=Fitted(history=history), start=start)
    for budget, schedule in result.schedules.items():
        assert schedule.solver == "fitted" and schedule.coefficients.shape == (budget, 2 + history)
        x0 = schedule.sample(model, noise)
        torch.testing.assert_close(x0, result.endpoints[budget], rtol=tolerance, atol=tolerance)
        cost = (x0 - result.teacher).double().square().mean(1).cpu()
        torch.testing.assert_close(cost, result.costs[budget], rtol=100 * tolerance, atol=tolerance)


def test_one_step_is_the_least_squares_solution():
    model = mixture(1).flow()
    result = dp_search(model, NOISE, 1, teacher_steps=40, solver=Fitted(history=0, ridge=0.0))
    velocity = model.velocity(NOISE, torch.ones(len(NOISE), dtype=torch.float64))
    columns = torch.stack([NOISE.flatten(), velocity.flatten()], 1)
    wanted = torch.linalg.lstsq(columns, result.teacher.flatten()[:, None]).solution[:, 0]
    torch.testing.assert_close(result.schedule.coefficients[0], wanted, rtol=1e-8, atol=1e-8)


def test_a_large_ridge_is_the_solver_it_holds_to():
    model = mixture(1).flow()
    for history, name in ((0, "euler"), (1, "ab2")):
        fitted = dp_search(model, NOISE, 5, teacher_steps=40, solver=Fitted(history=history, ridge=1e12))
        plain = dp_search(model, NOISE, 5, teacher_steps=40, solver=name)
        for budget in plain.schedules:
            assert torch.equal(fitted.schedules[budget].nodes, plain.schedules[budget].nodes)
            torch.testing.assert_close(
                fitted.schedules[budget].coefficients, plain.schedules[budget].coefficients, rtol=1e-6, atol=1e-6
            )


def test_the_fit_pays_on_noises_that_it_never_saw():
    model = mixture(1).flow()
    search, unseen = normal(64, 4, seed=1), normal(64, 4, seed=2)
    teacher = Schedule.from_grid(torch.linspace(1, 0, 41, dtype=torch.float64)).sample(model, unseen)
    errors = {}
    for solver in ("euler", "ab2", "fitted"):
        result = dp_search(model, search, 5, teacher_steps=40, solver=solver)
        errors[solver] = float((result.schedule.sample(model, unseen) - teacher).square().mean())
    assert errors["fitted"] < 0.5 * min(errors["euler"], errors["ab2"]), errors


def test_save_and_load(tmp_path):
    model = mixture(1).flow()
    schedule = dp_search(model, NOISE, 3, teacher_steps=20, solver="fitted").schedule
    schedule.save(tmp_path / "s.json")
    loaded = Schedule.load(tmp_path / "s.json")
    assert torch.equal(loaded.coefficients, schedule.coefficients) and loaded.solver == "fitted"
    assert torch.equal(loaded.sample(model, NOISE), schedule.sample(model, NOISE))


@pytest.mark.parametrize("share", ["median", "per_sample"])
def test_only_joint(share):
    with pytest.raises(ValueError, match=r"share: got .* with solver 'fitted'"):
        dp_search(mixture(1).flow(), NOISE, 3, teacher_steps=20, solver="fitted", share=share)


def test_a_grid_alone_has_no_fitted_coefficients():
    with pytest.raises(ValueError, match="coefficients come from a search"):
        Schedule.from_grid(torch.tensor([1.0, 0.5, 0.0]), "fitted")


@pytest.mark.parametrize(("options", "match"), [({"history": 5}, "history 5"), ({"ridge": -1.0}, "ridge of -1")])
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        dp_search(mixture(1).flow(), NOISE, 3, teacher_steps=20, solver=Fitted(**options))


# --- the ridge that is chosen, and few samples ---


def test_the_chosen_ridge_pays_on_noises_that_the_search_never_saw():
    """Eight samples, five coefficients a step: error over that with next to no ridge, geometric mean over models."""
    ratios, unseen = [], normal(32, 64, seed=99)
    for seed in range(8):
        model, noise = mixture(seed, shape=(64,)).flow(), normal(8, 64, seed=10 * seed)
        teacher = Schedule.from_grid(torch.linspace(1, 0, 21, dtype=torch.float64)).sample(model, unseen)
        chosen, least = (
            dp_search(model, noise, 5, teacher_steps=20, teacher_solver="euler", solver=Fitted(ridge=ridge)).schedule
            for ridge in (None, 1e-6)
        )
        errors = [float((one.sample(model, unseen) - teacher).square().mean()) for one in (chosen, least)]
        ratios.append(errors[0] / errors[1])
    assert torch.tensor(ratios).log().mean().exp() < 0.9, ratios


def test_one_sample_has_a_ridge_of_1e_3():
    model, noise = mixture(1).flow(), normal(1, 4)
    chosen = dp_search(model, noise, 4, teacher_steps=20, solver=Fitted(history=2))
    fixed = dp_search(model, noise, 4, teacher_steps=20, solver=Fitted(history=2, ridge=1e-3))
    assert torch.equal(chosen.schedule.coefficients, fixed.schedule.coefficients)


@pytest.mark.parametrize("samples", [2, 3, 12])
@pytest.mark.parametrize("ridge", [None, 1e-3])
def test_moments_that_come_in_parts_are_the_same(samples, ridge, monkeypatch):
    """Parts hold whole rounds of the folds, so that a sample's fold does not depend on them."""
    model, noise = mixture(1).flow(), normal(samples, 4)
    settings = {"teacher_steps": 15, "solver": Fitted(history=1, ridge=ridge)}
    whole = dp_search(model, noise, 4, **settings)
    monkeypatch.setattr("oss_ext.proposals.CHUNK", 1)
    parts = dp_search(model, noise, 4, **settings)
    assert torch.equal(whole.backpointers, parts.backpointers)
    torch.testing.assert_close(whole.schedule.coefficients, parts.schedule.coefficients, rtol=1e-7, atol=1e-9)


# --- a free start ---


@pytest.mark.parametrize("solver", ["fitted", Fitted(history=0, ridge=1e-4)])
def test_a_free_start_scales_the_noise_by_least_squares(solver, tmp_path):
    model = mixture(7).flow()
    result = dp_search(model, NOISE, 4, teacher_steps=30, solver=solver, start="free")
    grid = Schedule.from_grid(result.t, DEFAULT_SOLVER)
    _, teacher = grid.sample(model, NOISE, return_trajectory=True)
    starts = []
    for budget, schedule in result.schedules.items():
        start = int(schedule.nodes[0])
        wanted = torch.linalg.lstsq(NOISE.flatten()[:, None], teacher[:, start].flatten()[:, None]).solution.item()
        assert schedule.noise_scale == pytest.approx(wanted, rel=1e-10)
        _, path = schedule.sample(model, NOISE, return_trajectory=True)
        torch.testing.assert_close(path[:, 0], schedule.noise_scale * NOISE, rtol=0, atol=0)
        starts.append(start)
        schedule.save(tmp_path / f"{budget}.json")
        loaded = Schedule.load(tmp_path / f"{budget}.json")
        assert loaded.noise_scale == schedule.noise_scale
        assert torch.equal(loaded.sample(model, NOISE), schedule.sample(model, NOISE))
    assert max(starts) > 0, "some schedule leaves a later node"
    late = [schedule for schedule in result.schedules.values() if int(schedule.nodes[0]) > 0]
    assert all(schedule.noise_scale != float(schedule.t[0]) for schedule in late)


def test_files_of_before_noise_scale_start_at_t(tmp_path):
    model, path = mixture(7).flow(), tmp_path / "s.json"
    schedule = dp_search(model, NOISE, 2, teacher_steps=20, solver="fitted", start="free").schedule
    schedule.save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["noise_scale"] == schedule.noise_scale
    del content["noise_scale"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert Schedule.load(path).noise_scale == float(schedule.t[0])
    for bad in ('"1"', "NaN", "Infinity", "true"):
        path.write_text(json.dumps(content)[:-1] + f', "noise_scale": {bad}}}', encoding="utf-8")
        with pytest.raises(ValueError, match=r"s\.json: .*noise_scale|s\.json: .*JSON"):
            Schedule.load(path)


@pytest.mark.parametrize("solver", ["euler", "unipc_3", "mixed"])
def test_other_solvers_scale_as_deployment_does(solver):
    result = dp_search(mixture(7).flow(), NOISE, 3, teacher_steps=30, solver=solver, start="free")
    for schedule in result.schedules.values():
        assert schedule.noise_scale == float(schedule.t[0])


def test_names():
    assert set(solvers.names()) - set(solvers.formulas()) == {"fitted", "mixed"}
