from __future__ import annotations

import pytest
import torch
from helpers.analytic import mixture, normal
from helpers.counting import Counting

from oss_ext import Schedule, grids, solvers
from oss_ext.baselines import fit_grid, gits


def test_the_last_step_is_least_squares_of_the_state_that_the_others_reach():
    """Against numpy's solution for the last step, from the trajectory of the schedule."""
    model, noise = mixture(shape=(8,)).edm(), normal(40, 8)
    path = grids.for_model("logsnr", 3, model)
    found = fit_grid(model, noise, path, solver=solvers.Fitted(history=1, ridge=0.0), grid="edm", teacher_steps=60)
    schedule = found.schedule
    _, states = schedule.sample(model, noise, return_trajectory=True)
    both = torch.cat([path, grids.for_model("edm", 60, model)]).unique().flip(0)
    keep = torch.cat([torch.ones(1, dtype=torch.bool), both.diff() < -1e-9])
    target = Schedule.from_grid(both[keep], "unipc", model).sample(model, noise)
    velocity = [model.velocity(states[:, n], path[n].expand(40)) for n in (1, 2)]
    carried = solvers.carried(schedule.carries, states[:, 1], velocity[0], float(path[1]))
    basis = torch.stack([states[:, 2], velocity[1], carried], -1).reshape(-1, 3)
    wanted = torch.linalg.lstsq(basis, target.reshape(-1, 1)).solution[:, 0]
    landed = (basis @ schedule.coefficients[2] - target.flatten()).square().mean()
    least = (basis @ wanted - target.flatten()).square().mean()
    assert float(landed) == pytest.approx(float(least), rel=1e-6)


def test_it_improves_a_rivals_grid_on_other_noises():
    model, learn, judge = mixture(shape=(8,)).edm(), normal(64, 8, seed=1), normal(64, 8, seed=2)
    t = gits(model, learn, 6).schedule.t
    fine = Schedule.from_grid(grids.for_model("edm", 300, model), "unipc", model).sample(model, judge)

    def error(schedule):
        return float((schedule.sample(model, judge) - fine).square().mean())

    fitted = fit_grid(model, learn, t, grid="edm").schedule
    assert torch.equal(fitted.t, t) and fitted.solver == "fitted"
    assert error(fitted) < min(error(Schedule.from_grid(t, name, model)) for name in ("euler", "dpmpp_2m"))


@pytest.mark.parametrize("family", ["flow", "epsilon"])
@pytest.mark.parametrize("steps", [1, 4])
def test_what_comes_back(family, steps):
    model, noise = Counting(mixture().families()[family]), normal(3, 4)
    calls = []
    path = grids.for_model("flow", steps, model)
    found = fit_grid(model, noise, path, teacher_steps=8, progress=lambda *made: calls.append(made))
    assert found.schedule.steps == steps and model.evaluations == 3 * found.nfe["total"] == calls[-1][0] == calls[-1][1]
    assert found.nfe["total"] <= 8 + 2 * steps - 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"t": torch.tensor([0.9, 0.5])}, "t"),
        ({"t": [0.9, 0.0]}, "t"),
        ({"solver": "euler"}, "solver"),
        ({"teacher_solver": "fitted"}, "teacher_solver"),
        ({"grid": "karras"}, "grid"),
        ({"batch_size": 0}, "batch_size"),
        ({"noise": torch.zeros(2, 0)}, "noise"),
    ],
)
def test_bad_input_is_named_before_any_evaluation(change, message):
    model = Counting(mixture().edm())
    arguments = {"noise": normal(2, 4), "t": torch.tensor([0.9, 0.5, 0.0]), **change}
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        fit_grid(model, arguments.pop("noise"), arguments.pop("t"), **arguments)
    assert model.evaluations == 0
