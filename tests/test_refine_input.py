"""Refined schedules in files, on devices, in counts; and bad input."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from helpers.analytic import normal
from helpers.counting import Counting
from helpers.refining import (
    EVERY,
    FINE,
    METHODS,
    MIXTURE,
    NOISE,
    SHORT,
    TEACHER,
    error_of,
    searched,
    stock,
    teacher_of,
)

from oss_ext import FlowModel, Schedule, grids, refine
from oss_ext.schedule_calibration import of_gains

CALIBRATED = stock().with_calibration(of_gains(torch.ones(4)))

# --- files, counts, devices ---


@pytest.mark.parametrize("learn", [EVERY, EVERY[:3], ("times",)])
def test_round_trip(tmp_path, learn):
    model = MIXTURE.flow()
    refined = refine(stock(), model, NOISE, method="gradient", learn=learn, **SHORT)
    refined.save(tmp_path / "s.json")
    again = Schedule.load(tmp_path / "s.json")
    assert torch.equal(again.sample(model, NOISE), refined.sample(model, NOISE))
    assert again.provenance == refined.provenance and again.provenance.refined["method"] == "gradient"
    assert again.solver == ("polished" if "coefficients" in learn else "dpmpp_2m")
    if "network_t" in learn:
        assert torch.equal(again.network_t, refined.network_t) and "network_t" in repr(again)
        assert torch.equal(again.timesteps, again.network_t)
    else:
        assert again.network_t is None


def test_files_of_before_there_was_a_network_time_load(tmp_path):
    stock().save(tmp_path / "s.json")
    content = json.loads((tmp_path / "s.json").read_text())
    del content["network_t"], content["provenance"]["refined"]
    (tmp_path / "s.json").write_text(json.dumps(content))
    again = Schedule.load(tmp_path / "s.json")
    assert again.network_t is None and again.provenance.refined == {}


def test_a_network_time_is_what_the_network_is_told():
    counting = Counting(MIXTURE.flow())
    told = torch.tensor([0.9, 0.8, 0.5, 0.2], dtype=torch.float64)
    replace(stock(), network_t=told).sample(counting, NOISE)
    assert [call[0] for call in counting.calls] == told.tolist()
    same = replace(stock(), network_t=stock().t[:-1])
    assert torch.equal(same.sample(MIXTURE.flow(), NOISE), stock().sample(MIXTURE.flow(), NOISE))


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ([0.9, 0.8, 0.5], r"network_t: got shape \[3\], wanted \[4\]"),
        ([0.9, 0.8, 0.5, 0.0], "network_t: got .* wanted flow times above 0"),
        ([1.1, 0.8, 0.5, 0.1], "network_t: got .* at most 1"),
        ([float("nan"), 0.8, 0.5, 0.1], "network_t: got NaN"),
    ],
)
def test_bad_network_times(told, match):
    with pytest.raises(ValueError, match=match):
        replace(stock(), network_t=torch.tensor(told, dtype=torch.float64))


def test_a_network_time_that_the_model_does_not_know(tmp_path):
    model = Counting(MIXTURE.edm())
    schedule = Schedule.from_grid(grids.for_model("edm", 3, model), "euler", model)
    told = replace(schedule, network_t=schedule.t[:-1] / 2)
    with pytest.raises(ValueError, match="network_t of the schedule"):
        told.sample(model, NOISE)
    assert model.evaluations == 0


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("solver", "method"), [("dpmpp_2m", "nodes"), ("fitted", "nodes"), ("dpmpp_2m", "gradient")])
def test_evaluations_are_counted(solver, method, known):
    schedule, counting, seen = searched(solver), Counting(MIXTURE.flow()), []
    spent_before = schedule.provenance.nfe["total"]
    target = teacher_of(MIXTURE.flow()) if known else None
    iterations = 12
    refined = refine(
        schedule,
        counting,
        NOISE,
        method=method,
        teacher=target,
        iterations=iterations,
        **TEACHER,
        progress=lambda made, total: seen.append((made, total)),
    )
    backward = 2 * iterations * 24 * 4 if method == "gradient" else 0
    made = counting.evaluations + backward
    assert seen[-1] == (made, made)
    assert all(made <= total for made, total in seen)
    nfe = refined.provenance.nfe
    assert nfe["refine"] == pytest.approx(made / len(NOISE))
    assert nfe["total"] == pytest.approx(spent_before + made / len(NOISE))
    if method == "gradient":
        assert {total for _, total in seen} == {made}, "known from the start"
    elif solver == "dpmpp_2m":
        assert made / len(NOISE) <= 400 + (0 if known else 40)


def test_a_small_budget_is_kept():
    counting = Counting(MIXTURE.flow())
    refined = refine(stock(), counting, NOISE, teacher=teacher_of(MIXTURE.flow()), evaluations=20, **TEACHER)
    assert counting.evaluations <= 20 * len(NOISE)
    assert error_of(refined, MIXTURE.flow()) <= error_of(stock(), MIXTURE.flow())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_devices_and_dtypes(method, dtype, device):
    model, noise = MIXTURE.flow(), NOISE.to(dtype)
    schedule = stock()
    here = refine(schedule, model, noise.to(device), method=method, batch_size=32, **SHORT)
    again = refine(schedule, model, noise.to(device), method=method, batch_size=32, **SHORT)
    assert torch.equal(here.t, again.t) and torch.equal(here.coefficients, again.coefficients), "deterministic"
    wide = refine(schedule, model, NOISE, method=method, **SHORT)
    after, before = (error_of(each, model) for each in (here, schedule))
    assert after < before
    if dtype == torch.float64:
        torch.testing.assert_close(here.t, wide.t, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(here.coefficients, wide.coefficients, rtol=1e-6, atol=1e-9)


def test_condition_and_other_shapes(device):
    def fn(x, t, shift):
        return MIXTURE.flow().velocity(x.flatten(1) - shift[:, None], t).reshape(x.shape)

    model, noise = FlowModel(fn), NOISE.reshape(-1, 1, 2, 2).to(device)
    cond = {"shift": normal(len(NOISE), seed=3).to(device) * 0.1}
    schedule = stock()
    target = Schedule.from_grid(FINE, "euler", model).sample(model, noise, cond)
    before = float((schedule.sample(model, noise, cond) - target).square().mean())
    for method in METHODS:
        refined = refine(schedule, model, noise, cond=cond, method=method, batch_size=10, **SHORT)
        assert float((refined.sample(model, noise, cond) - target).square().mean()) < before


# --- bad input ---


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"schedule": "s.json"}, TypeError, "schedule: got str"),
        ({"method": "newton"}, ValueError, "method: got 'newton', wanted one of nodes, gradient"),
        ({"method": None}, TypeError, "method: got NoneType"),
        ({"model": print}, TypeError, "model: got"),
        ({"noise": NOISE * torch.nan}, ValueError, "noise: sample 0"),
        ({"cond": {"a": torch.ones(3)}}, ValueError, r"cond\['a'\]: got shape"),
        ({"teacher_steps": 0}, ValueError, "teacher_steps: got 0"),
        ({"teacher_solver": "fitted"}, ValueError, "teacher_solver: got 'fitted'"),
        ({"teacher_solver": "rk9"}, ValueError, "got 'rk9'"),
        ({"grid": "cubic"}, ValueError, "grid: got 'cubic'"),
        ({"grid": torch.tensor([0.5, 0.7, 0.0])}, ValueError, "grid"),
        ({"teacher": NOISE[:3]}, ValueError, r"teacher: got shape \[3, 4\]"),
        ({"teacher": NOISE.long()}, TypeError, r"teacher: got a tensor of torch.int64"),
        ({"teacher": NOISE * torch.nan}, ValueError, "teacher: got NaN"),
        ({"batch_size": 0}, ValueError, "batch_size: got 0"),
        ({"schedule": CALIBRATED}, ValueError, "schedule: got one that calibrates its states"),
        ({"objective": "l1"}, ValueError, "objective: got 'l1', wanted one of mse, psnr"),
        ({"progress": 3}, TypeError, "progress: got int"),
    ],
)
def test_bad_input_costs_no_evaluation(method, options, error, match):
    check(error, match, {"method": method, **options})


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"evaluations": 0}, ValueError, "evaluations: got 0"),
        ({"evaluations": 1.5}, TypeError, "evaluations: got 1.5"),
        ({"teacher_steps": 3}, ValueError, "schedule: got 4 steps, wanted at most 3"),
        ({"solver": "rk9"}, ValueError, "solver: got 'rk9'"),
        ({"schedule": replace(stock(), solver="polished")}, ValueError, "schedule: got coefficients of 'polished'"),
        ({"method": "gradient", "iterations": -1}, ValueError, "iterations: got -1"),
        ({"method": "gradient", "learn": "times"}, TypeError, "learn: got 'times', wanted a list"),
        ({"method": "gradient", "learn": []}, ValueError, "learn: got nothing"),
        ({"method": "gradient", "learn": ["weights"]}, ValueError, "learn: got 'weights'"),
        ({"method": "gradient", "noise": NOISE[:1]}, ValueError, "noise: got 1 sample"),
    ],
)
def test_bad_input_of_one_method_costs_no_evaluation(options, error, match):
    check(error, match, options)


def check(error, match, options):
    counting = Counting(MIXTURE.flow())
    given = {"schedule": stock(), "model": counting, "noise": NOISE, **TEACHER, **options}
    with pytest.raises(error, match=match):
        refine(given.pop("schedule"), given.pop("model"), given.pop("noise"), **given)
    assert counting.evaluations == 0


def test_nan_is_named_with_its_step():
    def fn(x, t):
        return torch.where(t[:, None] < 0.4, torch.nan, MIXTURE.flow().velocity(x, t))

    for method in METHODS:
        with pytest.raises(ValueError, match=r"model: returned NaN or inf at .*flow time 0.25"):
            refine(stock(), FlowModel(fn), NOISE, method=method, teacher=teacher_of(MIXTURE.flow()), **SHORT)
