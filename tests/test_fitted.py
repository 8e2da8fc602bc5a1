"""The search with least-squares coefficients: replay, what the ridge leads to, and what the fit is worth."""

from __future__ import annotations

import pytest
import torch
from helpers.analytic import mixture, normal

from oss_ext import Schedule, dp_search, solvers
from oss_ext.solvers import Fitted

NOISE = normal(12, 4)


@pytest.mark.parametrize("start", ["fixed", "free"])
@pytest.mark.parametrize("history", [0, 1, 2, 4])
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


def test_names():
    assert set(solvers.names()) - set(solvers.formulas()) == {"fitted", "mixed"}
