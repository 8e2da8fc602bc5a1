"""Batches of the size that is fastest, of one flow time, and in other precisions."""

from __future__ import annotations

import pytest
import torch
from helpers.counting import Counting
from test_ranks import found, model, noise_of

from oss_ext import FlowModel, dp_search, pace
from oss_ext.pace import Pace

CPU = torch.device("cpu")


def drive(monkeypatch, seconds_of, batches, room=10**9):
    """The sizes that are asked for, on a machine that takes seconds_of(n) for n inputs and holds `room` of them."""
    clock, meter, sizes = [0.0], Pace(), []
    monkeypatch.setattr(pace, "_now", lambda device: clock[0])
    for most in batches:
        size = min(meter.size, most)
        sizes.append(size)
        meter.begin(CPU)
        if size > room:
            assert meter.shrink(size)
            continue
        clock[0] += seconds_of(size)
        meter.end(size, CPU)
    return meter, sizes


def test_it_stops_where_more_is_no_faster(monkeypatch):
    meter, sizes = drive(monkeypatch, lambda n: 1 + max(0, n - 32) * 0.5, [10**9] * 20)
    assert meter.settled and meter.size == 32
    assert sizes[:8] == [4, 4, 8, 8, 16, 16, 32, 32] and sizes[-1] == 32


def test_a_time_in_proportion_settles_at_once(monkeypatch):
    meter, sizes = drive(monkeypatch, lambda n: 0.1 * n, [10**9] * 5)
    assert meter.size == 4 and sizes == [4, 4, 8, 8, 4]


def test_small_batches_say_nothing(monkeypatch):
    meter, _ = drive(monkeypatch, lambda n: 1.0, [10**9, 3, 3, 3, 3])
    assert not meter.settled and meter.size == 4


def test_what_does_not_fit_is_halved(monkeypatch):
    meter, sizes = drive(monkeypatch, lambda n: 1.0, [10**9] * 12, room=20)
    assert meter.settled and meter.size == 16 and max(sizes) == 32 and sizes[-1] == 16
    assert not Pace().shrink(1)


def test_a_search_with_the_fastest_batches_finds_the_same():
    noise, asked = noise_of(6, 40), Counting(model())
    one = dp_search(asked, noise, 4, teacher_steps=30, batch_size="fastest")
    assert repr(found(one)) == repr(found(dp_search(model(), noise, 4, teacher_steps=30)))
    assert asked.evaluations == one.nfe["total"] * 6  # nothing was spent on it
    assert {len(call) for call in asked.calls} >= {4, 8}


def test_out_of_memory_in_a_search():
    inner = model().fn

    def velocity(x, t):
        if len(x) > 6:
            raise torch.OutOfMemoryError("no room")
        return inner(x, t)

    noise = noise_of(6, 40)
    one = dp_search(FlowModel(velocity), noise, 4, teacher_steps=30, batch_size="fastest")
    assert repr(found(one)) == repr(found(dp_search(model(), noise, 4, teacher_steps=30)))
    with pytest.raises(torch.OutOfMemoryError):
        dp_search(FlowModel(velocity), noise, 4, teacher_steps=30, batch_size=8)


@pytest.mark.parametrize("bad", ["fast", "", "8"])
def test_bad_names(bad):
    with pytest.raises(ValueError, match=r"batch_size: got .*, wanted one of fastest"):
        dp_search(model(), noise_of(2, 5), 3, teacher_steps=8, batch_size=bad)


@pytest.mark.parametrize("options", [{}, {"share": "per_sample"}, {"solver": "fitted", "beam": 2, "start": "free"}])
@pytest.mark.parametrize("batch_size", [1, 2, 256, "fastest"])
def test_one_time_a_batch(options, batch_size):
    inner, noise, kind = model().fn, noise_of(5, 40), torch.arange(5.0)

    def velocity(x, t, kind):
        assert (t == t[0]).all()
        return inner(x, t) + kind[:, None]

    asked = Counting(FlowModel(velocity))
    asked.one_time = True
    many = FlowModel(lambda x, t, kind: inner(x, t) + kind[:, None])
    cond = {"kind": kind}
    one = dp_search(asked, noise, 4, teacher_steps=30, batch_size=batch_size, cond=cond, **options)
    assert repr(found(one)) == repr(found(dp_search(many, noise, 4, teacher_steps=30, cond=cond, **options)))
    if batch_size == 256:
        assert {len(call) for call in asked.calls} == {5}


def test_one_time_names_the_sample_and_the_node():
    asked = FlowModel(lambda x, t: torch.where((t[:, None] < 0.55) & (x[:, :1] > 6), torch.nan, -0.0 * x))
    asked.one_time = True
    noise = noise_of(3, 5)
    noise[1] = 7
    with pytest.raises(ValueError, match=r"NaN or inf at node 5 \(flow time 0.5\), sample 1; wanted"):
        dp_search(asked, noise, 3, teacher_steps=10)
