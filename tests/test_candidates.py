"""candidates=: where the nodes are placed, and the search on them."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from helpers.analytic import mixture, normal
from helpers.counting import Counting
from helpers.replay import check_replay
from hypothesis import given
from hypothesis import strategies as st

from oss_ext import dp_search, grids, solvers
from oss_ext.candidates import distinct, nearest, place
from oss_ext.search_core import STARTS
from oss_ext.teacher import integrate

SIZES = st.floats(0, 1e6, allow_nan=False)


@st.composite
def grids_of_any_kind(draw, least=1, most=40):
    """float64 [N + 1]: descending flow times from at most 1 to 0, evenly spaced or not at all."""
    steps = draw(st.lists(st.floats(1e-4, 1.0), min_size=least, max_size=most))
    lengths = torch.tensor(steps, dtype=torch.float64)
    t = lengths.flip(0).cumsum(0).flip(0) / lengths.sum()
    return torch.cat([t, t.new_zeros(1)])


@st.composite
def problems(draw):
    """(t, turning, count, floor)."""
    t = draw(grids_of_any_kind())
    last = len(t) - 1
    kind = draw(st.sampled_from(["any", "zero", "huge", "spike"]))
    if kind == "any":
        turning = torch.tensor(draw(st.lists(SIZES, min_size=last, max_size=last)), dtype=torch.float64)
    else:
        turning = torch.full((last,), 1e300 if kind == "huge" else 0.0, dtype=torch.float64)
    if kind == "spike":
        turning[draw(st.integers(0, last - 1))] = draw(st.sampled_from([1e-300, 1.0, 1e300]))
    return t, turning, draw(st.integers(1, last)), draw(st.sampled_from([0.0, 0.3, 1.0]))


def is_a_path(nodes, count, last):
    assert nodes.dtype == torch.int64 and nodes.shape == (count + 1,)
    assert int(nodes[0]) == 0 and int(nodes[-1]) == last
    assert bool((nodes.diff() > 0).all())


# --- placing ---


@given(problems())
def test_distinct_ascending_nodes_from_the_first_to_the_last(problem):
    t, turning, count, floor = problem
    is_a_path(place(t, turning, count, floor=floor), count, len(t) - 1)


@given(problems())
def test_only_the_shape_of_the_turning_counts(problem):
    t, turning, count, floor = problem
    if float(turning.max()) < 1e200 and float(turning[turning > 0].min() if turning.any() else 1) > 1e-200:
        assert torch.equal(place(t, turning, count, floor=floor), place(t, turning * 2.0**40, count, floor=floor))


@given(st.integers(1, 60), st.data())
def test_no_turning_or_a_whole_floor_is_even(last, data):
    count = data.draw(st.integers(1, last))
    t = torch.linspace(1, 0, last + 1, dtype=torch.float64)
    for nodes in (
        place(t, torch.zeros(last).double(), count, early=0.0),
        place(t, normal(last).abs(), count, floor=1.0, early=0.0),
    ):
        wanted = torch.linspace(0, last, count + 1, dtype=torch.float64)
        assert float((nodes - wanted).abs().max()) <= 0.5 + 1e-9


@given(st.integers(8, 40), st.floats(1.5, 100), st.booleans(), st.data())
def test_more_nodes_where_the_velocity_turns_more(half, ratio, early, data):
    """A rate that is r times as high in one half of an even grid draws sqrt(r) times as many nodes; no floor."""
    count = data.draw(st.integers(4, half))
    t = torch.linspace(1, 0, 2 * half + 1, dtype=torch.float64)
    turning = torch.ones(2 * half, dtype=torch.float64)
    turning[:half] = ratio if early else 1 / ratio
    nodes = place(t, turning, count, floor=0.0, early=0.0)
    first, second = int((nodes[:-1] < half).sum()), int((nodes[1:] > half).sum())
    wanted = count / (1 + ratio**-0.5) if early else count / (1 + ratio**0.5)
    if min(wanted, count - wanted) >= 1 and max(wanted, count - wanted) < 0.8 * half:  # else nodes crowd
        assert abs(first - wanted) <= 1.5
        assert (first >= second - 1) if early else (second >= first - 1)


@given(problems(), st.floats(0.05, 1))
def test_the_floor_bounds_the_widest_gap(problem, floor):
    """floor * count of the nodes are spread evenly, whatever draws the others."""
    t, turning, count, _ = problem
    last = len(t) - 1
    assert int(place(t, turning, count, floor=floor, early=0.0).diff().max()) <= last / (floor * count) + 1 + 1e-9


def test_the_spread_equals_shares_of_the_root_of_the_rate():
    """On a fine grid every interval holds as much of sqrt(rate) dt: here of t^2, hence t = (1 - n/M)^(1/3)."""
    t = torch.linspace(1, 0, 4001, dtype=torch.float64)
    turning = t[:-1] ** 4 / 4000
    wanted = (1 - torch.arange(9, dtype=torch.float64) / 8) ** (1 / 3)
    torch.testing.assert_close(t[place(t, turning, 8, floor=0.0, early=0.0)], wanted, rtol=0, atol=2e-3)


def test_early_draws_nodes_to_the_noisy_end():
    """On an even grid without turning the nodes' density is t^early: the share before t is 1 - t^(1 + early)."""
    t = torch.linspace(1, 0, 2001, dtype=torch.float64)
    for early in (0.5, 1.0):
        wanted = (1 - torch.arange(9, dtype=torch.float64) / 8) ** (1 / (1 + early))
        found = t[place(t, torch.zeros(2000, dtype=torch.float64), 8, early=early)]
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-3)


@given(st.lists(st.integers(-5, 30), min_size=2, max_size=20), st.integers(0, 15))
def test_distinct(wanted, room):
    wanted, last = sorted(wanted), len(wanted) - 1 + room
    moved = distinct(torch.tensor(wanted), last)
    is_a_path(moved, len(wanted) - 1, last)
    if wanted[0] == 0 and wanted[-1] == last and len(set(wanted)) == len(wanted):
        assert moved.tolist() == wanted, "what is distinct already stays"


@given(grids_of_any_kind(least=3), st.data())
def test_nearest(t, data):
    last = len(t) - 1
    count = data.draw(st.integers(1, last))
    times = grids.make("flow:shift=2", count)
    nodes = nearest(t, times)
    is_a_path(nodes, count, last)
    own = torch.tensor(sorted(data.draw(st.sets(st.integers(1, last - 1), max_size=last - 1))), dtype=torch.int64)
    path = torch.cat([torch.zeros(1, dtype=torch.int64), own, torch.tensor([last])])
    assert torch.equal(nearest(t, t[path]), path)


def test_nearest_is_the_nearest():
    t = torch.linspace(1, 0, 101, dtype=torch.float64)
    times = torch.tensor([1.0, 0.5049, 0.5051, 0.2, 0.0], dtype=torch.float64)
    assert nearest(t, times).tolist() == [0, 50, 51, 80, 100]
    crowded = torch.tensor([0.99, 0.012, 0.011, 0.0105, 0.0], dtype=torch.float64)
    assert nearest(t, crowded).tolist() == [0, 97, 98, 99, 100]


# --- turning ---


def test_turning_is_the_change_of_the_velocity():
    """On x' = v(x, t) = t^2 every sample's velocity is t^2 in every number."""
    t = grids.make("flow:shift=2", 12)
    core = integrate(normal(3, 5), t, solvers.get("euler"))
    try:
        ask = next(core)
        while True:
            ask = core.send((ask.t**2).reshape(1, -1, 1).expand(ask.states.shape))
    except StopIteration as done:
        teacher = done.value
    wanted = torch.cat([torch.zeros(1, dtype=torch.float64), -(t[:-1] ** 2).diff()])
    torch.testing.assert_close(teacher.turning, wanted, rtol=0, atol=1e-14)
    nodes = torch.tensor([0, 3, 7, 12])
    few = teacher.at(nodes)
    assert torch.equal(few.states, teacher.states[:, nodes]) and few.first_velocity is teacher.first_velocity


# --- the search on them ---

SOLVERS = ["euler", "dpmpp_2m", "unipc_3", "mixed", "fitted"]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    ("solver", "share"),
    [
        *itertools.product(SOLVERS, ["joint"]),
        *itertools.product(["euler", "unipc_3", "mixed"], ["per_sample"]),
        ("ab2", "median"),
    ],
)
def test_replay_on_few_candidates(solver, share, start):
    model, noise = mixture(1).flow(), normal(6, 4)
    result = dp_search(model, noise, 5, teacher_steps=40, solver=solver, share=share, start=start, candidates=9)
    check_replay(result, model, noise)


@pytest.mark.parametrize("share", ["joint", "per_sample"])
@pytest.mark.parametrize("start", STARTS)
def test_schedules_and_tables_keep_to_the_candidates(start, share):
    model, noise = mixture(2).flow(), normal(4, 4)
    result = dp_search(model, noise, 5, teacher_steps=40, candidates=10, start=start, share=share)
    reached = (result.backpointers >= 0).flatten(0, -2)
    looked_at = set(reached.any(0).nonzero().flatten().tolist())
    assert len(looked_at) == 10 and 40 in looked_at and 0 not in looked_at
    for schedules in result.schedules.values():
        for schedule in schedules if isinstance(schedules, list) else [schedules]:
            assert set(schedule.nodes.tolist()) <= looked_at | {0}
    assert torch.equal(result.values.isfinite(), result.backpointers >= 0)
    assert torch.equal(result.values.isinf(), result.backpointers == -1)
    assert result.values.shape[-1] == 41
    order = sorted(looked_at)
    for budget in range(1, 6):  # of the ten the first `budget - 1` are out of reach
        here = (result.backpointers[budget - 1] >= 0).reshape(-1, 41).all(0).nonzero().flatten().tolist()
        assert here == order[budget - 1 :]
    known = result.backpointers[result.backpointers >= 0]
    assert set(known.tolist()) <= looked_at | {0}


@pytest.mark.parametrize(("start", "wanted"), [("fixed", 7 + 6 + 5), ("free", 7 + 7 + 6 + 5)])
def test_evaluations(start, wanted):
    model, noise = Counting(mixture(2).flow()), normal(3, 4)
    result = dp_search(model, noise, 4, teacher_steps=40, candidates=8, start=start)
    assert result.nfe == {"teacher": 40, "search": wanted, "total": 40 + wanted}
    assert model.evaluations == 3 * (40 + wanted)


@pytest.mark.parametrize("candidates", [20, 21, 1000])
@pytest.mark.parametrize(
    ("solver", "share", "start", "beam"),
    [
        ("euler", "joint", "fixed", 1),
        ("unipc_3", "joint", "free", 3),
        ("fitted", "joint", "free", 1),
        ("ab2", "median", "fixed", 1),
        ("mixed", "per_sample", "fixed", 1),
    ],
)
def test_as_many_candidates_as_nodes_is_the_full_search(candidates, solver, share, start, beam):
    model, noise = mixture(2).flow(), normal(5, 4)
    settings = {"teacher_steps": 20, "solver": solver, "share": share, "start": start, "beam": beam}
    full = dp_search(model, noise, 5, **settings)
    few = dp_search(model, noise, 5, candidates=candidates, **settings)
    assert torch.equal(few.values, full.values) and torch.equal(few.backpointers, full.backpointers)
    assert few.nfe == full.nfe
    for budget in range(1, 6):
        assert torch.equal(few.costs[budget], full.costs[budget])
        assert torch.equal(few.endpoints[budget], full.endpoints[budget])


def test_as_few_candidates_as_steps_leave_one_schedule():
    model, noise = mixture(2).flow(), normal(4, 4)
    result = dp_search(model, noise, 5, teacher_steps=40, candidates=5, beam=3)
    looked_at = (result.backpointers >= 0).any(0).nonzero().flatten().tolist()
    assert result.schedule.nodes.tolist() == [0, *looked_at]


def test_one_candidate_on_a_grid_of_one_step():
    result = dp_search(mixture(2).flow(), normal(4, 4), 1, teacher_steps=1, candidates=1)
    assert result.schedule.nodes.tolist() == [0, 1]


def test_placed_candidates_beat_even_ones(monkeypatch):
    """The point of placing: at the same evaluations a lower cost than on an even thinning of the grid, in the mean.

    Without `early`, which is for networks whose early steps matter most; these mixtures turn late.
    """
    ratios = []
    for seed in range(6):
        model, noise = mixture(seed).flow(), normal(8, 4, seed=seed)
        settings = {"teacher_steps": 60, "candidates": 10, "solver": "ab2"}
        with monkeypatch.context() as patch:
            patch.setattr("oss_ext.distil.place", partial(place, early=0.0))
            placed = dp_search(model, noise, 5, **settings)
            patch.setattr("oss_ext.distil.place", lambda t, turning, count: torch.arange(0, 61, 6))
            even = dp_search(model, noise, 5, **settings)
        assert placed.nfe == even.nfe
        ratios.append(float(placed.costs[5].mean() / even.costs[5].mean()))
    assert torch.tensor(ratios).log().mean() < 0, ratios


BAD = [
    ({"candidates": 3}, ValueError, "candidates: got 3, wanted at least 4"),
    ({"candidates": 0}, ValueError, "candidates: got 0"),
    ({"candidates": -1}, ValueError, "candidates: got -1"),
    ({"candidates": 8.0}, TypeError, "candidates: got 8.0 of type float, wanted an integer"),
    ({"candidates": True}, TypeError, "candidates: got True of type bool"),
    ({"candidates": "8"}, TypeError, "candidates: got '8'"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD, ids=[str(change) for change, _, _ in BAD])
def test_bad_input_costs_no_evaluation(change, kind, message):
    model = Counting(mixture().flow())
    with pytest.raises(kind, match=message):
        dp_search(model, normal(3, 4), 4, teacher_steps=10, **change)
    assert model.evaluations == 0
