"""Searches whose states are calibrated before they are evaluated."""

from __future__ import annotations

import pytest
import torch
from helpers.analytic import mixture, normal
from helpers.counting import Counting
from helpers.drive import by_hand
from helpers.replay import check_replay

from oss_ext import Auto, dp_search, grids, solvers
from oss_ext.calibration import amplitudes, fit_gains
from oss_ext.distil import distil
from oss_ext.models import FlowModel
from oss_ext.schedule import Schedule
from oss_ext.schedule_calibration import MODES, QUANTILES
from oss_ext.teacher import DEFAULT_SOLVER, integrate

SHAPE = (4, 5)
TEACHER = {"teacher_steps": 24}
MODEL, NOISE = mixture(1, shape=SHAPE).flow(), normal(6, *SHAPE, seed=1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("share", ["joint", "per_sample"])
@pytest.mark.parametrize("start", ["fixed", "free"])
@pytest.mark.parametrize("solver", ["euler", "ab2", "dpmpp_2m", "unipc_3", "mixed"])
def test_replay_reproduces_scored_state_and_cost(solver, start, share, mode):
    result = dp_search(MODEL, NOISE, 4, solver=solver, start=start, share=share, calibration=mode, **TEACHER)
    check_replay(result, MODEL, NOISE)
    for schedule in result.schedules.values():
        for one in schedule if isinstance(schedule, list) else [schedule]:
            assert one.calibration.mode == mode


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("start", ["fixed", "free"])
def test_replay_of_fitted_steps_on_few_candidates(start, mode):
    result = dp_search(MODEL, NOISE, 4, solver="fitted", start=start, candidates=9, calibration=mode, **TEACHER)
    check_replay(result, MODEL, NOISE)


@pytest.mark.parametrize("mode", ["scale", "affine"])
@pytest.mark.parametrize("start", ["fixed", "free"])
@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "fitted", "mixed"])
def test_replay_with_a_beam(solver, start, mode):
    result = dp_search(MODEL, NOISE, 4, solver=solver, start=start, beam=3, calibration=mode, **TEACHER)
    check_replay(result, MODEL, NOISE)


@pytest.mark.parametrize("mode", MODES)
def test_replay_on_every_device(mode, device):
    noise = NOISE.to(device)
    result = dp_search(MODEL, noise, 3, calibration=mode, **TEACHER)
    check_replay(result, MODEL, noise)
    here = dp_search(MODEL, NOISE, 3, calibration=mode, **TEACHER).schedule
    assert torch.equal(result.schedule.nodes, here.nodes)
    torch.testing.assert_close(result.schedule.sample(MODEL, noise).cpu(), here.sample(MODEL, NOISE))


@pytest.mark.parametrize("mode", ["scale", "affine"])
def test_a_weight_counts_in_the_costs_alone(mode):
    weight = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = dp_search(MODEL, NOISE, 3, calibration=mode, weight=weight, **TEACHER)
    for budget, schedule in result.schedules.items():
        torch.testing.assert_close(schedule.sample(MODEL, NOISE), result.endpoints[budget], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_replay_in_float32(mode, dtype):
    inner = MODEL.fn
    model = FlowModel(lambda x, t: inner(x.float(), t).to(x.dtype))
    noise = NOISE.to(dtype)
    result = dp_search(model, noise, 4, calibration=mode, **TEACHER)
    tolerance = 1e-5 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
    for budget, schedule in result.schedules.items():
        x0 = schedule.sample(model, noise).float()
        torch.testing.assert_close(x0, result.endpoints[budget], rtol=0, atol=tolerance)


@pytest.mark.parametrize("mode", ["scale", "affine"])
@pytest.mark.parametrize("share", ["joint", "per_sample"])
def test_the_levels_are_those_that_the_library_makes(share, mode):
    known = amplitudes(MODEL, NOISE, **TEACHER)
    result = dp_search(MODEL, NOISE, 4, calibration=mode, share=share, **TEACHER)
    for schedule in result.schedules.values():
        for one in schedule if isinstance(schedule, list) else [schedule]:
            again = one.calibrated(known, mode).calibration
            assert one.calibration.quantiles == QUANTILES == again.quantiles
            assert one.calibration.low == pytest.approx(again.low, abs=1e-13)
            assert one.calibration.high == pytest.approx(again.high, abs=1e-13)


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
def test_the_gains_are_those_that_are_fitted_along_the_schedule(solver):
    result = dp_search(MODEL, NOISE, 4, solver=solver, calibration="gain", **TEACHER)
    for schedule in result.schedules.values():
        again = fit_gains(schedule, MODEL, NOISE, **TEACHER)
        assert schedule.calibration.gain == pytest.approx(again.calibration.gain, rel=1e-10)
    result = dp_search(MODEL, NOISE, 3, solver=solver, calibration="gain", share="per_sample", **TEACHER)
    for b, schedule in enumerate(result.schedule):
        again = fit_gains(schedule, MODEL, NOISE[b : b + 1], **TEACHER)
        assert schedule.calibration.gain == pytest.approx(again.calibration.gain, rel=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_two_steps_are_the_best_of_all_calibrated_pairs(mode):
    """Two steps from one start are searched exhaustively: no calibrated schedule of two steps is better."""
    t = grids.make("flow", 14)
    result = dp_search(MODEL, NOISE, 2, grid=t, candidates=1000, calibration=mode)
    known = amplitudes(MODEL, NOISE, grid=t)
    target = Schedule.from_grid(t, DEFAULT_SOLVER).sample(MODEL, NOISE)
    costs = {}
    for node in range(1, 14):
        pair = Schedule.from_grid(t[[0, node, 14]])
        pair = fit_gains(pair, MODEL, NOISE, grid=t) if mode == "gain" else pair.calibrated(known, mode)
        costs[node] = float((pair.sample(MODEL, NOISE) - target).square().mean())
    assert int(result.schedule.nodes[1]) == min(costs, key=costs.get)
    assert float(result.costs[2].mean()) == pytest.approx(min(costs.values()), rel=1e-9)
    plain = dp_search(MODEL, NOISE, 2, grid=t, candidates=1000)
    assert float(plain.costs[2].mean()) != pytest.approx(min(costs.values()), rel=1e-6), "calibration does something"


def test_the_noise_and_the_teacher_stay_as_they_are():
    noise = NOISE.clone()
    result = dp_search(MODEL, noise, 3, calibration="scale", **TEACHER)
    assert torch.equal(noise, NOISE)
    plain = dp_search(MODEL, noise, 3, **TEACHER)
    assert torch.equal(result.teacher, plain.teacher)
    assert all(schedule.calibration is None for schedule in plain.schedules.values())


@pytest.mark.parametrize("mode", ["scale", "affine"])
def test_the_stages_leave_the_teachers_states_alone(mode):
    t, everyone = grids.make("flow", 12), slice(0, len(NOISE))
    teacher, _ = by_hand(integrate(NOISE, t, solvers.get("euler")), MODEL)
    before = teacher.states.clone()
    search = distil(
        NOISE, t, 3, solvers.get("euler"), teacher, samples=everyone, joint=True, free=False, calibration=mode
    )
    by_hand(search, MODEL)
    assert torch.equal(teacher.states, before)


@pytest.mark.parametrize("start", ["fixed", "free"])
def test_evaluations_are_counted_as_they_are_made(start):
    model, seen = Counting(MODEL), []
    result = dp_search(
        model,
        NOISE,
        3,
        calibration="scale",
        start=start,
        candidates=1000,
        progress=lambda made, total: seen.append((made, total)),
        **TEACHER,
    )
    first = 24 if start == "free" else 1  # node 0 again: calibrated it is another state
    assert result.nfe == {
        "teacher": 24,
        "search": first + 23 + 22,
        "total": model.evaluations / 6,
    }
    assert seen[0][1] == seen[-1][1] == seen[-1][0] == model.evaluations


def test_what_cannot_be_combined_is_refused_before_any_evaluation():
    model = Counting(MODEL)
    for options, message in [
        ({"calibration": "other"}, "calibration: got 'other', wanted one of scale, affine, gain"),
        ({"calibration": "scale", "solver": "auto"}, "calibration: got 'scale' with solver 'auto'"),
        ({"calibration": "scale", "solver": Auto()}, "calibration: got 'scale' with solver 'auto'"),
        ({"calibration": "gain", "share": "median"}, "calibration: got 'gain' with share 'median'"),
        ({"calibration": "affine", "refine": "nodes"}, "calibration: got 'affine' with refine 'nodes'"),
        ({"calibration": "gain", "beam": 2}, "calibration: got 'gain' with a beam of 2"),
        ({"calibration": "gain", "weight": torch.ones(SHAPE).double()}, "calibration: got 'gain' with a weight"),
    ]:
        with pytest.raises(ValueError, match=message):
            dp_search(model, NOISE, 3, **TEACHER, **options)
    with pytest.raises(TypeError, match="calibration: got bool"):
        dp_search(model, NOISE, 3, calibration=True, **TEACHER)
    assert model.evaluations == 0
