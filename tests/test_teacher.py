"""teacher_solver=: what the fine grid is integrated with. nodes="integer": which nodes it may have."""

from __future__ import annotations

import pytest
import torch
from helpers.analytic import gaussian, gaussian_path, mixture, normal
from helpers.counting import Counting
from helpers.replay import check_replay

from oss_ext import Schedule, dp_search, grids, solvers

STEPS = {"euler": 30, "ab4": 30, "unipc_3": 30, "dpmpp_3m": 20, "ipndm_4": 25}
VP = ["epsilon", "v_param", "x0"]


@pytest.mark.parametrize("family", ["flow", "edm", "v_param"])
@pytest.mark.parametrize("solver", STEPS)
def test_the_teacher_is_that_solver_on_the_fine_grid(solver, family):
    model, noise = mixture(1).families()[family], normal(5, 4)
    result = dp_search(model, noise, 4, teacher_steps=STEPS[solver], grid="edm", teacher_solver=solver)
    x0 = Schedule.from_grid(grids.for_model("edm", STEPS[solver], model), solver, model).sample(model, noise)
    torch.testing.assert_close(result.teacher, x0, rtol=0, atol=1e-13)
    check_replay(result, model, noise)


def test_the_steps_are_still_the_solvers():
    """The teacher's solver draws the trajectory; the schedule's own solver walks to it."""
    model, noise = mixture(1).flow(), normal(5, 4)
    result = dp_search(model, noise, 4, teacher_steps=30, solver="ab2", teacher_solver="unipc")
    assert result.schedule.solver == "ab2" and result.nfe["teacher"] == 30
    assert torch.equal(result.schedule.coefficients, solvers.along(solvers.get("ab2"), result.schedule.t))
    plain = dp_search(model, noise, 4, teacher_steps=30, solver="ab2", teacher_solver="euler")
    assert not torch.equal(plain.teacher, result.teacher)


@pytest.mark.parametrize("solver", ["fitted", "mixed"])
def test_a_searched_solver_cannot_teach(solver):
    model = Counting(mixture().flow())
    with pytest.raises(ValueError, match=f"teacher_solver: got '{solver}', wanted one of euler"):
        dp_search(model, normal(3, 4), 3, teacher_steps=10, teacher_solver=solver)
    with pytest.raises(ValueError, match="wanted one of euler"):
        dp_search(model, normal(3, 4), 3, teacher_steps=10, teacher_solver="rk4")
    assert model.evaluations == 0


@pytest.mark.parametrize("grid", ["flow", "edm", "logsnr"])
def test_32_steps_of_unipc_teach_better_than_100_of_euler(grid):
    """Against Euler's 1500 steps, mean over mixtures; and on a Gaussian, whose path is known, against that."""
    errors = {"unipc": [], "euler": []}
    for seed in range(2):
        model, noise = mixture(seed).flow(), normal(8, 4, seed=seed)
        fine = Schedule.from_grid(grids.make(grid, 1500)).sample(model, noise)
        for solver, count in (("unipc", 32), ("euler", 100)):
            teacher = dp_search(model, noise, 1, teacher_steps=count, grid=grid, teacher_solver=solver).teacher
            errors[solver].append(float((teacher - fine).square().mean()))
    assert sum(errors["unipc"]) < sum(errors["euler"]), errors
    if grid == "flow":
        distribution, noise = gaussian(), normal(8, 3)
        exact = gaussian_path(distribution, noise, 0.0)
        unipc, euler = (
            dp_search(distribution.flow(), noise, 1, teacher_steps=count, teacher_solver=solver).teacher
            for solver, count in (("unipc", 32), ("euler", 100))
        )
        assert float((unipc - exact).norm()) < float((euler - exact).norm())


# --- whole timesteps ---


@pytest.mark.parametrize("grid", ["flow", "edm", "ddim"])
@pytest.mark.parametrize("family", VP)
def test_only_whole_timesteps(family, grid):
    model, noise = mixture(1).families()[family], normal(4, 4)
    result = dp_search(model, noise, 5, teacher_steps=40, grid=grid, nodes="integer", candidates=20)
    for schedule in result.schedules.values():
        assert torch.equal(schedule.timesteps, schedule.timesteps.round()), schedule.timesteps
        assert float(schedule.timesteps.min()) >= 0 and float(schedule.timesteps.max()) <= 999
    known = set(model.flow_table.tolist())
    assert set(result.t[:-1].tolist()) <= known and float(result.t[-1]) == 0
    check_replay(result, model, noise)
    if grid != "ddim":  # whose timesteps are whole by themselves
        anywhere = dp_search(model, noise, 5, teacher_steps=40, grid=grid)
        assert not torch.equal(anywhere.schedule.timesteps, anywhere.schedule.timesteps.round())


def test_nodes_that_meet_become_one():
    """edm:rho=7 crowds at the clean end, where whole timesteps are few."""
    model, noise = Counting(mixture(1).families()["epsilon"]), normal(3, 4)
    result = dp_search(model, noise, 4, teacher_steps=400, grid="edm", nodes="integer", candidates=10)
    steps = len(result.t) - 1
    assert steps < 400 and result.nfe["teacher"] == steps
    assert result.schedule.provenance.teacher_steps == steps
    assert model.evaluations == 3 * result.nfe["total"]


def test_a_grid_of_ones_own_is_snapped_too():
    model = mixture(1).families()["epsilon"]
    t = torch.tensor([0.98, 0.7, 0.5, 0.3, 0.1, 0.0], dtype=torch.float64)
    result = dp_search(model, normal(3, 4), 3, grid=t, nodes="integer")
    assert torch.equal(result.t, grids.on_whole_timesteps(t, model))
    assert float((result.t - t).abs().max()) < 2e-3


@pytest.mark.parametrize("family", ["flow", "edm"])
def test_without_timesteps_there_are_no_whole_ones(family):
    model = Counting(mixture(1).families()[family])
    with pytest.raises(ValueError, match=f"nodes: got 'integer' with a {family} model"):
        dp_search(model, normal(3, 4), 3, teacher_steps=10, nodes="integer")
    assert model.evaluations == 0


@pytest.mark.parametrize(("nodes", "kind"), [("whole", ValueError), (1, TypeError), (None, TypeError)])
def test_bad_nodes_cost_no_evaluation(nodes, kind):
    model = Counting(mixture(1).families()["epsilon"])
    with pytest.raises(kind, match=r"nodes: got .*wanted one of any, integer"):
        dp_search(model, normal(3, 4), 3, teacher_steps=10, nodes=nodes)
    assert model.evaluations == 0
