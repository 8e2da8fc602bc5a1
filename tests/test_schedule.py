from __future__ import annotations

import json
import os

import pytest
import torch
from helpers.analytic import gaussian, mixture, normal
from helpers.counting import Counting

from oss_ext import grids
from oss_ext.models import FlowModel
from oss_ext.provenance import Provenance
from oss_ext.schedule import Schedule


def example(solver="ab2", steps=4):
    model = mixture().edm()
    provenance = Provenance(grid="edm", teacher_steps=30, cost=0.1, metadata={"guidance": 3.5, "tags": ["a", None]})
    nodes = torch.arange(steps + 1)
    return Schedule.from_grid(grids.for_model("edm", steps, model), solver, model, nodes=nodes, provenance=provenance)


def test_round_trip_is_bit_exact(tmp_path):
    schedule = example()
    schedule.save(tmp_path / "a.json")
    again = Schedule.load(tmp_path / "a.json")
    for name in ("t", "coefficients", "sigmas", "timesteps", "nodes"):
        before, after = getattr(schedule, name), getattr(again, name)
        assert torch.equal(before, after) and before.dtype == after.dtype, name
    assert (again.solver, again.parameterization, again.provenance) == ("ab2", "edm", schedule.provenance)
    again.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


def test_random_floats_survive(tmp_path):
    for seed in range(20):
        t = torch.sort(torch.rand(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).values.flip(0)
        schedule = Schedule.from_grid(torch.cat([t, t.new_zeros(1)]), "ab2")
        schedule.save(tmp_path / "s.json")
        again = Schedule.load(tmp_path / "s.json")
        assert torch.equal(again.t, schedule.t) and torch.equal(again.coefficients, schedule.coefficients)


def test_file_is_for_people_too(tmp_path):
    example().save(tmp_path / "s.json")
    text = (tmp_path / "s.json").read_text()
    content = json.loads(text)
    assert (content["format"], content["version"], content["steps"]) == ("oss_ext.schedule", 1, 4)
    assert len(text.splitlines()) < 45
    assert content["provenance"]["version"]
    assert [name for name in os.listdir(tmp_path)] == ["s.json"]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "s.json"
    example().save(path)
    before = path.read_text()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        example(steps=3).save(path)
    assert path.read_text() == before and os.listdir(tmp_path) == ["s.json"]


def change(field, value):
    def edit(content):
        content[field] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("format", "other"), "format: got 'other', wanted 'oss_ext.schedule'"),
        (change("version", 2), "version: got 2, wanted 1"),
        (change("surprise", 1), "surprise: Extra inputs"),
        (lambda c: c.pop("coefficients"), "coefficients: Field required"),
        (change("t", [0.9, 0.5, 0.0]), "t: got 3 entries, wanted 5 for 4 steps"),
        (change("t", [0.9, 0.5, 0.6, 0.1, 0.0]), "t: got .*descending"),
        (change("t", [0.9, 0.8, 0.6, 0.1, 0.05]), "t: got the last entry 0.05, wanted 0"),
        (change("t", [1.9, 0.8, 0.6, 0.1, 0.0]), "t.0: .*less than or equal to 1"),
        (change("t", [0.9, "0.8", 0.6, 0.1, 0.0]), "t.1: .*valid number"),
        (change("nodes", [0, 2, 2, 3, 4]), "nodes: got .*ascending"),
        (change("nodes", [0, 1, 2]), "nodes: got 3 entries"),
        (change("coefficients", [[1.0, 2.0], [1.0], [1.0, 2.0], [1.0, 2.0]]), "coefficients: got rows of"),
        (change("coefficients", [[1.0], [1.0], [1.0], [1.0]]), "coefficients: .*at least 2"),
        (change("sigmas", [1.0]), "sigmas: got 1 entries"),
        (change("timesteps", [1.0, 0.5, float("nan"), 0.1]), "timesteps.2: .*finite"),
        (change("solver", 3), "solver: .*string"),
        (change("provenance", {"cost": -1.0}), "provenance.cost: "),
        (change("provenance", {"who": "me"}), "provenance.who: Extra"),
    ],
)
def test_bad_files_name_file_and_field(tmp_path, edit, message):
    path = tmp_path / "s.json"
    example().save(path)
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"s.json: .*{message}"):
        Schedule.load(path)


def test_files_that_are_no_json(tmp_path):
    for name, content in (("a", b"{"), ("b", b"\xff\xfe\x00"), ("c", b"[1, 2]"), ("d", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: .*wanted"):
            Schedule.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Schedule.load(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        example().save(tmp_path / "missing" / "s.json")


def test_terms_of_the_family():
    schedule = example(steps=5)
    torch.testing.assert_close(schedule.sigmas[:-1], schedule.t[:-1] / (1 - schedule.t[:-1]))
    assert torch.equal(schedule.timesteps, schedule.sigmas[:-1]) and schedule.sigmas[-1] == 0
    assert schedule.steps == 5 and schedule.parameterization == "edm"
    assert "5 steps of ab2, edm" in repr(schedule) and "cost=1.000e-01" in repr(schedule)


def test_bad_fields():
    good = example()
    fields = {name: getattr(good, name) for name in ("t", "coefficients", "solver", "sigmas", "timesteps", "nodes")}
    for name, value, kind, message in [
        ("t", good.t.flip(0), ValueError, "t: got .*descending"),
        ("coefficients", good.coefficients[1:], ValueError, r"coefficients: got shape \[3, 3\], wanted \[4, P\]"),
        ("coefficients", good.coefficients * torch.inf, ValueError, "coefficients: got NaN or inf"),
        ("coefficients", [[1.0]], TypeError, "coefficients: got list"),
        ("sigmas", good.t[1:], ValueError, r"sigmas: got shape \[4\], wanted \[5\]"),
        ("timesteps", good.t, ValueError, r"timesteps: got shape \[5\], wanted \[4\]"),
        ("nodes", good.t, TypeError, r"nodes: got torch\.float64"),
        ("nodes", torch.tensor([0, 3, 2, 4, 5]), ValueError, "nodes: got .*ascending"),
    ]:
        with pytest.raises(kind, match=message):
            Schedule(**{**fields, name: value})


def test_sample_is_the_written_out_recurrence():
    schedule, model, noise = example("ab2"), mixture().edm(), normal(3, 4)
    t = schedule.t.tolist()
    x, earlier = t[0] * noise, None
    for n in range(4):
        v = model.velocity(x, torch.full((3,), t[n], dtype=torch.float64))
        h = t[n + 1] - t[n]
        if earlier is None:
            x = x + h * v
        else:
            ratio = h / (t[n] - t[n - 1])
            x = x + h * ((1 + ratio / 2) * v - ratio / 2 * earlier)
        earlier = v
    torch.testing.assert_close(schedule.sample(model, noise), x, rtol=0, atol=1e-13)


def test_sample_in_batches_with_cond_progress_and_trajectory():
    model = Counting(FlowModel(lambda x, t, scale, bias: x * scale[:, None] + bias))
    noise, seen = normal(7, 4), []
    cond = {"scale": normal(7, seed=1), "bias": normal(7, 4, seed=2)}
    schedule = Schedule.from_grid(grids.make("flow", 3), "ab2")
    whole, path = schedule.sample(model, noise, cond, return_trajectory=True)
    assert model.evaluations == 21 and path.shape == (7, 4, 4)
    torch.testing.assert_close(path[:, 0], noise)
    assert torch.equal(path[:, -1], whole)
    parts = schedule.sample(model, noise, cond, batch_size=2, progress=lambda made, total: seen.append((made, total)))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-14)
    assert seen[-1] == (21, 21) and seen[0] == (2, 21) and len(seen) == 12
    alone = schedule.sample(model, noise[3:4], {key: value[3:4] for key, value in cond.items()})
    torch.testing.assert_close(alone, whole[3:4], rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_noise_keeps_float32_states(dtype):
    distribution, noise = gaussian(), normal(8, 3, dtype=dtype)
    inner = distribution.flow().fn
    half = FlowModel(lambda x, t: inner(x.float(), t).to(x.dtype))
    schedule = Schedule.from_grid(grids.make("flow", 50))
    x0, path = schedule.sample(half, noise, return_trajectory=True)
    assert x0.dtype == dtype and path.dtype == torch.float32
    exact = schedule.sample(distribution.flow(), noise.double())
    assert (x0.double() - exact).abs().max() < 8 * torch.finfo(dtype).eps


def test_sample_refuses_bad_input_before_any_evaluation():
    model, noise = Counting(mixture().edm()), normal(3, 4)
    schedule = example()
    flow = Schedule.from_grid(grids.make("flow", 4))
    for call, kind, message in [
        (lambda: schedule.sample(torch.zeros_like, noise), TypeError, "model: got .*wanted a Denoiser"),
        (lambda: schedule.sample(model, noise.long()), TypeError, r"noise: got dtype torch\.int64"),
        (lambda: schedule.sample(model, noise, {"c": noise[:2]}), ValueError, r"cond\['c'\]: got shape \[2, 4\]"),
        (lambda: schedule.sample(model, noise, batch_size=0), ValueError, "batch_size: got 0"),
        (lambda: schedule.sample(model, noise, progress=1), TypeError, "progress: got int"),
        (lambda: flow.sample(model, noise), ValueError, "t of the schedule: got the first node 1, wanted at most 0.98"),
    ]:
        with pytest.raises(kind, match=message):
            call()
    assert model.evaluations == 0


def test_nan_output_names_step_and_sample():
    def fn(x, t):
        return torch.where((t[:, None] < 0.6) & (x[:, :1] == x[:, :1].max()), torch.nan, torch.zeros_like(x))

    noise = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match=r"NaN or inf at node 2 \(flow time 0\.5\), sample 1"):
        Schedule.from_grid(grids.make("flow", 4)).sample(FlowModel(fn), noise)
