"""Amplitudes of a trajectory, schedules that are calibrated to them, and files of both."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from helpers.analytic import gaussian, gaussian_path, mixture, normal
from helpers.counting import Counting
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from oss_ext import fitting, grids, schedule_calibration
from oss_ext.calibration import amplitudes, amplitudes_of, fit_gains
from oss_ext.models import FlowModel
from oss_ext.provenance import Provenance
from oss_ext.schedule import Schedule
from oss_ext.schedule_calibration import Amplitudes, calibrate, quantiles_of
from oss_ext.schedule_file import Calibration

WIDE = (4, 16)  # of a sample: quantiles of 64 numbers
TEACHER = {"teacher_steps": 30}
MODES = ("scale", "affine", "gain")


def teacher(model, steps=30):
    return Schedule.from_grid(grids.for_model("flow", steps, model), "unipc", model)


def calibrated(mode, schedule, model, noise):
    if mode == "gain":
        return fit_gains(schedule, model, noise, **TEACHER)
    return schedule.calibrated(amplitudes(model, noise, **TEACHER), mode)


def student(steps=5, solver="euler"):
    return Schedule.from_grid(grids.make("flow", steps), solver)


# --- quantiles ---


@given(
    st.integers(1, 200),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 99),
)
def test_quantiles_are_torchs(count, one, other, dtype, seed):
    rows = normal(3, count, seed=seed, dtype=dtype)
    shares = (min(one, other), max(one, other))
    wanted = torch.quantile(rows.double(), torch.tensor(shares, dtype=torch.float64), 1).T
    torch.testing.assert_close(quantiles_of(rows, shares), wanted, rtol=1e-12, atol=1e-12)


def test_quantiles_of_more_numbers_than_torch_takes():
    count = 2**24 + 3
    rows = torch.arange(count, dtype=torch.float32).flip(0)[None]
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(rows, 0.5)
    low, high = quantiles_of(rows, (0.25, 1.0))[0].tolist()
    # float32 has no odd whole numbers above 2^24.
    assert low == (count - 1) / 4 and high == float(rows.max())


def test_rows_come_in_parts(monkeypatch):
    rows, target = normal(7, 5), normal(7, 5, seed=1)
    whole = quantiles_of(rows, (0.1, 0.8)), fitting.gain_of(rows, target, joint=False)
    monkeypatch.setattr(schedule_calibration, "CHUNK", 11)
    monkeypatch.setattr(fitting, "CHUNK", 11)
    assert torch.equal(quantiles_of(rows, (0.1, 0.8)), whole[0])
    assert torch.equal(fitting.gain_of(rows, target, joint=False), whole[1])


def test_gains_are_the_weighted_least_squares():
    rows, target, weight = normal(7, 5), normal(7, 5, seed=1), normal(5, seed=2).square()
    root = weight.sqrt()
    for joint in (True, False):
        groups = [slice(0, 7)] if joint else [slice(row, row + 1) for row in range(7)]
        oracle = [
            torch.linalg.lstsq((rows[g] * root).reshape(-1, 1), (target[g] * root).reshape(-1, 1)).solution.item()
            for g in groups
        ]
        found = fitting.gain_of(rows, target, joint=joint, weight=weight)
        assert found.reshape(-1).tolist() == pytest.approx(oracle, rel=1e-10)


# --- amplitudes ---


@pytest.mark.parametrize("family", ["flow", "edm", "epsilon"])
def test_amplitudes_are_quantiles_of_the_trajectory(family):
    model, noise = mixture(shape=WIDE).families()[family], normal(6, *WIDE)
    schedule = teacher(model)
    _, path = schedule.sample(model, noise, return_trajectory=True)
    wanted = torch.quantile(path.flatten(2), torch.tensor([0.1, 0.9], dtype=torch.float64), 2).mean(1).T
    counting = Counting(model)
    found = amplitudes(counting, noise, quantiles=(0.1, 0.9), batch_size=4, **TEACHER)
    assert counting.evaluations == 30 * 6
    assert found.t == tuple(schedule.t.tolist()) and found.samples == 6 and found.model == model.describe()
    torch.testing.assert_close(torch.tensor([found.low, found.high]).T.double(), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.at(schedule.t), wanted, rtol=0, atol=1e-13)
    assert amplitudes_of(schedule, model, noise, quantiles=(0.1, 0.9)) == found


def test_amplitudes_of_a_gaussian_are_the_closed_form():
    """x_t = (1 - t) m + sqrt(((1 - t) s)^2 + t^2) eps, whose quantiles are those of eps where m is 0."""
    distribution, noise = gaussian(0.5, (256,)), normal(8, 256)
    distribution = replace(distribution, means=torch.zeros(1, 256, dtype=torch.float64))
    found = amplitudes(distribution.flow(), noise, teacher_steps=200)
    of_noise = torch.quantile(noise, torch.tensor([0.05, 0.95], dtype=torch.float64), 1).mean(1)
    for t in (1.0, 0.77, 0.3, 0.0):
        wanted = of_noise * (((1 - t) * 0.5) ** 2 + t**2) ** 0.5
        torch.testing.assert_close(found.at(torch.tensor(t)), wanted, rtol=1e-4, atol=0)


def test_amplitudes_between_and_beyond_the_known_times():
    known = Amplitudes(quantiles=(0.1, 0.9), samples=1, t=(0.8, 0.4, 0.0), low=(-3.0, -1.0, 0.0), high=(3.0, 2.0, 2.0))
    t = torch.tensor([[0.8, 0.6], [0.1, 0.0]], dtype=torch.float64)
    wanted = torch.tensor([[[-3, 3], [-2, 2.5]], [[-0.25, 2], [0, 2]]], dtype=torch.float64)
    torch.testing.assert_close(known.at(t), wanted, rtol=0, atol=1e-15)
    assert known.at(torch.tensor([0.8 * (1 + 1e-7)], dtype=torch.float64)).tolist() == [[-3.0, 3.0]]
    for value in (0.81, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"t: got .*wanted 0 to 0\.8"):
            known.at(torch.tensor([value]))
    with pytest.raises(TypeError, match="t: got float"):
        known.at(0.5)


def test_half_states_are_measured_in_float32():
    inner = mixture(shape=WIDE).flow()
    model = FlowModel(lambda x, t: inner.fn(x.float(), t).to(x.dtype))
    noise = normal(4, *WIDE, dtype=torch.bfloat16)
    found, exact = amplitudes(model, noise, **TEACHER), amplitudes(inner, noise.double(), **TEACHER)
    torch.testing.assert_close(torch.tensor(found.high), torch.tensor(exact.high), rtol=0, atol=0.03)
    assert torch.tensor(found.high, dtype=torch.float64)[1:-1].bfloat16().double().tolist() != list(found.high[1:-1])


# --- what a calibrated schedule does ---


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("solver", ["euler", "ab2", "dpmpp_2m"])
def test_sample_is_the_recurrence_of_calibrated_states(mode, solver):
    model, noise = mixture(shape=WIDE).flow(), normal(5, *WIDE)
    schedule = calibrated(mode, student(5, solver), model, noise)
    rule = schedule.calibration
    x, earlier = float(schedule.t[0]) * noise, []
    for n, (weights, t) in enumerate(zip(schedule.coefficients.tolist(), schedule.t.tolist(), strict=False)):
        if mode == "gain":
            x = x * rule.gain[n]
        else:
            low, high = (torch.quantile(x.flatten(1), share, 1)[:, None, None] for share in (0.05, 0.95))
            x = x * ((rule.high[n] - rule.low[n]) / (high - low))
            if mode == "affine":
                low = torch.quantile(x.flatten(1), 0.05, 1)[:, None, None]
                x = x + (rule.low[n] - low)
        v = model.velocity(x, torch.full((5,), t, dtype=torch.float64))
        kept = v if schedule.carries == "velocity" else x - t * v
        x = sum(u * w for u, w in zip([x, v, *earlier], weights, strict=False))
        earlier = [kept, *earlier][: len(weights) - 2]
    torch.testing.assert_close(schedule.sample(model, noise), x, rtol=0, atol=1e-11)


def test_affine_states_have_the_teachers_quantiles_and_scaled_ones_their_distance():
    model, noise = mixture(shape=WIDE).flow(), normal(5, *WIDE)
    known = amplitudes(model, noise, **TEACHER)
    wanted = known.at(student().t[:-1])
    for mode in ("scale", "affine"):
        _, path = student().calibrated(known, mode).sample(model, noise, return_trajectory=True)
        for row in path[:, :-1].flatten(2):
            found = quantiles_of(row, (0.05, 0.95))
            torch.testing.assert_close(found.diff(dim=1), wanted.diff(dim=1), rtol=1e-12, atol=0)
            if mode == "affine":
                torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
            else:
                assert (found - wanted).abs().max() > 1e-3


def test_the_students_of_a_gaussian_get_the_teachers_amplitude():
    """With mean 0 the student's state is a multiple of the teacher's: scaling makes it the teacher's own, here with
    each sample's own quantiles, so that only the last step errs."""
    distribution = replace(gaussian(0.5, (64,)), means=torch.zeros(1, 64, dtype=torch.float64))
    model, noise = distribution.flow(), normal(1, 64)
    known = amplitudes(model, noise, teacher_steps=400)
    schedule = student(6)
    for changed in (schedule.calibrated(known, "scale"), fit_gains(schedule, model, noise, teacher_steps=400)):
        _, path = changed.sample(model, noise, return_trajectory=True)
        for n, t in enumerate(schedule.t.tolist()[:-1]):
            torch.testing.assert_close(path[:, n], gaussian_path(distribution, noise, t), rtol=2e-5, atol=1e-9)
        exact = gaussian_path(distribution, noise, 0.0)
        before, after = ((each.sample(model, noise) - exact).square().mean() for each in (schedule, changed))
        assert after < before


@pytest.mark.parametrize("mode", MODES)
def test_each_sample_is_calibrated_alone(mode):
    model, noise = mixture(shape=WIDE).flow(), normal(5, *WIDE)
    schedule = calibrated(mode, student(), model, noise)
    whole = schedule.sample(model, noise)
    for b in range(5):
        torch.testing.assert_close(schedule.sample(model, noise[b : b + 1])[0], whole[b], rtol=0, atol=1e-13)
    other = noise.clone()
    other[1:] *= 3
    torch.testing.assert_close(schedule.sample(model, other)[0], whole[0], rtol=0, atol=1e-13)
    torch.testing.assert_close(schedule.sample(model, noise, batch_size=2), whole, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", MODES)
def test_half_noise(mode, dtype):
    inner = mixture(shape=WIDE).flow()
    model = FlowModel(lambda x, t: inner.fn(x.float(), t).to(x.dtype))
    noise = normal(4, *WIDE, dtype=dtype)
    schedule = calibrated(mode, student(), model, noise)
    x0, path = schedule.sample(model, noise, return_trajectory=True)
    assert x0.dtype == dtype and path.dtype == torch.float32
    exact = schedule.sample(inner, noise.double())
    assert (x0.double() - exact).abs().max() < 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_without_a_spread_stay_as_they_are(dtype):
    rows = torch.stack([torch.full((8,), 3.0), torch.zeros(8), torch.linspace(-1, 1, 8)]).to(dtype)
    rows[1, 0] = torch.finfo(dtype).tiny / 8  # a subnormal spread, of which no factor is finite
    for mode in ("scale", "affine"):
        rule = Calibration(mode=mode, quantiles=(0.0, 1.0), low=(-2.0,), high=(2.0,))
        out = calibrate(rows, rule, 0)
        assert torch.equal(out[:2], rows[:2])
        torch.testing.assert_close(out[2], 2 * rows[2])
    one = calibrate(torch.ones(3, 1), Calibration(mode="scale", quantiles=(0.05, 0.95), low=(1.0,), high=(2.0,)), 0)
    assert torch.equal(one, torch.ones(3, 1))
    assert float(fitting.gain_of(torch.zeros(2, 3), torch.ones(2, 3), joint=True)) == 1.0


def test_a_teacher_that_stands_still_calibrates_nothing_away():
    model, noise = FlowModel(lambda x, t: torch.zeros_like(x)), torch.zeros(2, 6)
    for mode in MODES:
        x0 = calibrated(mode, student(3), model, noise).sample(model, noise)
        assert torch.equal(x0, noise)


# --- fitted gains ---


def test_gains_are_the_least_squares_ones():
    model, noise = mixture(shape=WIDE).flow(), normal(5, *WIDE)
    schedule, guide = student(5), teacher(model)
    counting, seen = Counting(model), []
    found = fit_gains(schedule, counting, noise, progress=lambda made, total: seen.append((made, total)), **TEACHER)
    assert counting.evaluations == (30 + 5) * 5 and seen[-1] == (25, 25)
    _, truth = guide.sample(model, noise, return_trajectory=True)
    x = noise
    for n, t in enumerate(schedule.t.tolist()[:-1]):
        y = truth[:, 6 * n]  # 5 steps of 30
        gain = torch.linalg.lstsq(x.reshape(-1, 1), y.reshape(-1, 1)).solution.item()
        assert found.calibration.gain[n] == pytest.approx(gain, rel=1e-10)
        x = gain * x
        x = x + (schedule.t[n + 1] - t) * model.velocity(x, torch.full((5,), t, dtype=torch.float64))
    assert found.calibration.gain[0] == pytest.approx(1, rel=1e-12)


def test_gains_between_the_teachers_nodes_and_from_a_later_start():
    model, noise = mixture(shape=WIDE).flow(), normal(5, *WIDE)
    t = torch.tensor([0.95, 0.61, 0.3, 0.0], dtype=torch.float64)
    schedule = Schedule.from_grid(t, noise_scale=0.9)
    fine = fit_gains(schedule, model, noise, teacher_steps=100).calibration.gain  # the times are nodes
    coarse = fit_gains(schedule, model, noise, teacher_steps=90).calibration.gain
    assert fine == pytest.approx(coarse, rel=1e-3) and fine != coarse
    assert fine[0] > 1.01, "the noise is scaled by less than the teacher's state there"
    short = torch.linspace(0.9, 0, 20, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"schedule: got the first flow time 0\.95, wanted at most 0\.9"):
        fit_gains(schedule, model, noise, grid=short)


# --- files and bad input ---


@pytest.mark.parametrize("mode", MODES)
def test_a_calibrated_schedule_survives_bit_for_bit(tmp_path, mode):
    model, noise = mixture(shape=WIDE).flow(), normal(5, *WIDE)
    schedule = calibrated(mode, student(), model, noise)
    schedule.save(tmp_path / "a.json")
    again = Schedule.load(tmp_path / "a.json")
    assert again.calibration == schedule.calibration and again.calibration.mode == mode
    assert torch.equal(again.sample(model, noise), schedule.sample(model, noise))
    again.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    assert f"calibration='{mode}'" in repr(again)


def test_files_of_before_calibration_load(tmp_path):
    student().save(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content.pop("calibration") is None
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert Schedule.load(tmp_path / "old.json").calibration is None


def test_amplitudes_survive_bit_for_bit(tmp_path):
    known = amplitudes(mixture(shape=WIDE).flow(), normal(3, *WIDE), **TEACHER)
    known.save(tmp_path / "a.json")
    again = Amplitudes.load(tmp_path / "a.json")
    assert again == known and again.low == known.low
    again.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert "31 flow times" in repr(again)
    student().save(tmp_path / "s.json")
    with pytest.raises(ValueError, match=r"s.json: format: got 'oss_ext.schedule', wanted 'oss_ext.amplitudes'"):
        Amplitudes.load(tmp_path / "s.json")
    with pytest.raises(ValueError, match=r"a.json: format: got 'oss_ext.amplitudes', wanted 'oss_ext.schedule'"):
        Schedule.load(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", 2, "version: got 2, wanted 1"),
        ("quantiles", [0.9, 0.1], "quantiles: got .*ascending"),
        ("t", [0.5, 0.6, 0.0], "t: got .*descending"),
        ("t", [0.5, 0.0], "low: got 3 entries, wanted 2"),
        ("low", [9.0, 0.0, 0.0], "high: got 1.0 at place 0, wanted at least the 9.0 of low"),
        ("high", [1.0], "high: got 1 entries, wanted 3"),
        ("high", [float("nan"), 1.0, 1.0], "high.0: .*finite"),
        ("samples", 0, "samples: "),
        ("surprise", 0, "surprise: Extra"),
    ],
)
def test_bad_files_of_amplitudes(tmp_path, field, value, message):
    path = tmp_path / "a.json"
    Amplitudes(quantiles=(0.1, 0.9), samples=2, t=(1.0, 0.5, 0.0), low=(-1.0,) * 3, high=(1.0,) * 3).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ValueError, match=f"a.json: .*{message}"):
        Amplitudes.load(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"mode": "other"}, "calibration.mode: "),
        ({"mode": "gain"}, "gain: got None with mode 'gain', wanted a value"),
        ({"mode": "gain", "gain": [1.0] * 4}, "calibration: got 4 entries, wanted 5 for 5 steps"),
        ({"mode": "scale", "gain": [1.0] * 5}, "quantiles: got None with mode 'scale', wanted a value"),
        ({"mode": "gain", "gain": [1.0] * 5, "low": [1.0] * 5}, "low: got .* with mode 'gain', wanted none"),
        ({"mode": "scale", "quantiles": [0.1, 0.9], "low": [1.0] * 5, "high": [0.0] * 5}, "high: got 0.0 at place 0"),
        ({"mode": "gain", "gain": [1.0, float("inf")] + [1.0] * 3}, "calibration.gain.1: .*finite"),
    ],
)
def test_bad_calibrations_in_files(tmp_path, value, message):
    path = tmp_path / "s.json"
    student().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "calibration": value}))
    with pytest.raises(ValueError, match=f"s.json: .*{message}"):
        Schedule.load(path)


def test_bad_input_is_refused_before_any_evaluation():
    model, noise, schedule = Counting(mixture().flow()), normal(3, 4), student()
    known = Amplitudes(quantiles=(0.1, 0.9), samples=2, t=(0.9, 0.0), low=(-1.0,) * 2, high=(1.0,) * 2)
    for call, kind, message in [
        (lambda: amplitudes(model, noise, quantiles=(0.9, 0.1)), ValueError, "quantiles: got .*ascending shares"),
        (lambda: amplitudes(model, noise, quantiles=(0.1, 1.5)), ValueError, "quantiles: got .*between 0 and 1"),
        (lambda: amplitudes(model, noise, quantiles=0.1), TypeError, "quantiles: got 0.1, wanted two numbers"),
        (lambda: amplitudes(model, noise, teacher_solver="fitted"), ValueError, "teacher_solver: got 'fitted'"),
        (lambda: amplitudes(model, noise.long()), TypeError, "noise: got dtype"),
        (lambda: amplitudes(torch.zeros_like, noise), TypeError, "model: got"),
        (lambda: fit_gains(schedule, model, noise.long()), TypeError, "noise: got dtype"),
        (lambda: schedule.calibrated(known, "scale"), ValueError, "t: got .*wanted 0 to 0.9"),
        (lambda: schedule.calibrated(known, "gain"), ValueError, "mode: got 'gain', wanted one of scale, affine"),
        (lambda: schedule.calibrated(None), TypeError, "amplitudes: got NoneType"),
        (lambda: schedule.with_calibration({}), TypeError, "calibration: got dict"),
        (
            lambda: schedule.with_calibration(Calibration(mode="gain", gain=(1.0,))),
            ValueError,
            "calibration: got 1 entries, wanted 5",
        ),
    ]:
        with pytest.raises(kind, match=message):
            call()
    assert model.evaluations == 0
    with pytest.raises(ValidationError):
        known.samples = 3


def test_the_cost_of_another_schedule_is_dropped():
    known = Amplitudes(quantiles=(0.1, 0.9), samples=2, t=(1.0, 0.0), low=(-1.0,) * 2, high=(1.0,) * 2)
    origin = Provenance(grid="flow", cost=0.1, replayed_cost=0.2)
    changed = replace(student(), provenance=origin).calibrated(known)
    assert changed.provenance == origin.model_copy(update={"cost": None, "replayed_cost": None})
    plain = changed.with_calibration(None)
    assert plain.calibration is None and torch.equal(plain.t, changed.t)
