"""solver="auto": the table of what was tried, the judges, and the core driven by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from helpers.analytic import mixture, normal
from helpers.counting import Counting
from helpers.drive import by_hand
from helpers.replay import check_replay

from oss_ext import Schedule, dp_search, grids, solvers
from oss_ext.auto import Auto
from oss_ext.models import FlowModel
from oss_ext.search_core import STARTS, dp_core
from oss_ext.solvers import Fitted, Mixed
from oss_ext.teacher import DEFAULT_SOLVER

NOISE = normal(8, 4)
JUDGES = NOISE[6:]  # a quarter
SMALL = Auto(searched=("euler", "dpmpp_2m", "fitted"), free=("euler",), grids=("flow", "edm"), stock=("euler", "unipc"))


def rows_of(result, steps, family):
    return [row for row in result.table if row["steps"] == steps and row["family"] == family]


# --- the table ---


@pytest.mark.parametrize("family", ["flow", "v_param"])
def test_the_table_covers_all_that_was_asked_for(family):
    model, config = mixture(1).families()[family], Auto()
    result = dp_search(model, NOISE, 3, teacher_steps=16, solver="auto")
    assert list(result.schedules) == [1, 2, 3]
    names = [solvers.get(name).name for name in config.stock]
    for steps in range(1, 4):
        stock = [(row["path"], row["solver"]) for row in rows_of(result, steps, "stock")]
        assert sorted(stock) == sorted(itertools.product(config.grids, names))
        searched = [(row["path"], row["solver"]) for row in rows_of(result, steps, "searched")]
        assert searched == [("search", solvers.get(name).name) for name in config.searched] + [
            ("search, free start", name) for name in config.free
        ]
        along = [row["path"] for row in rows_of(result, steps, "fitted along")]
        formulas = [f"search with {solvers.get(name).name}" for name in ("euler", "ab2", "dpmpp_2m", "unipc")]
        assert sorted(along) == sorted([*formulas, *config.grids])
        assert all(row["solver"] == "fitted" for row in rows_of(result, steps, "fitted along"))
    assert len(rows_of(result, 3, "moved")) == 1
    assert len(result.table) == 3 * (7 + 16 + 8) + 1


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("seed", range(2))
def test_the_pick_is_the_best_and_never_worse_than_a_stock_row(seed, start):
    """Not by the table alone: every stock schedule is run on the judges again."""
    model, noise = mixture(seed).flow(), normal(8, 4, seed=seed)
    result = dp_search(model, noise, 4, teacher_steps=24, solver=SMALL, start=start)
    for steps, schedule in result.schedules.items():
        costs = [row["cost"] for row in result.table if row["steps"] == steps]
        ours = float(result.costs[steps].mean())
        assert ours == min(costs) == pytest.approx(schedule.provenance.cost, rel=1e-12)
        for grid, name in itertools.product(SMALL.grids, SMALL.stock):
            stock = Schedule.from_grid(grids.make(grid, steps), name).sample(model, noise[6:])
            cost = float((stock - result.teacher).square().mean())
            row = [
                row
                for row in rows_of(result, steps, "stock")
                if (row["path"], row["solver"]) == (grid, solvers.get(name).name)
            ]
            assert row[0]["cost"] == pytest.approx(cost, rel=1e-9)
            assert ours <= cost * (1 + 1e-9)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    ("solver", "options"),
    [("auto", {}), (SMALL, {"candidates": 8}), (SMALL, {"beam": 3}), (SMALL, {"teacher_solver": "unipc"})],
)
def test_replay_on_the_judges(solver, options, start):
    model = mixture(1).flow()
    result = dp_search(model, NOISE, 3, teacher_steps=16, solver=solver, start=start, **options)
    assert result.solver == "auto" and result.values is None and result.backpointers is None
    guide = Schedule.from_grid(result.t, options.get("teacher_solver", DEFAULT_SOLVER))
    torch.testing.assert_close(result.teacher, guide.sample(model, JUDGES), rtol=0, atol=1e-13)
    check_replay(result, model, JUDGES, 1e-9)


def test_shapes_dtypes_and_files(tmp_path):
    model, noise = mixture(1, shape=(1, 2, 2)).flow(), normal(8, 1, 2, 2, dtype=torch.float32)
    result = dp_search(model, noise, 3, teacher_steps=16, solver=SMALL)
    assert result.teacher.shape == (2, 1, 2, 2) and result.teacher.dtype == torch.float32
    assert result.costs[3].shape == (2,) and result.schedule.provenance.samples == 8
    check_replay(result, model, noise[6:], 2e-4)
    assert "auto" in repr(result)
    result.schedule.save(tmp_path / "s.json")
    loaded = Schedule.load(tmp_path / "s.json")
    assert torch.equal(loaded.sample(model, noise), result.schedule.sample(model, noise))


def test_no_other_search_has_a_table():
    assert dp_search(mixture(1).flow(), NOISE, 2, teacher_steps=8).table is None


# --- the judges ---


def test_the_judges_take_no_part_in_the_search():
    """Other noises in the last quarter: the same plans, other costs. But for the rows that start from the best."""
    model, others = mixture(1).flow(), NOISE.clone()
    others[6:] = normal(2, 4, seed=77)
    t = grids.make("flow", 16)
    one, other = (
        by_hand(dp_core(noise, t, 3, solver=Auto(moves=0), candidates=9), model)[0] for noise in (NOISE, others)
    )
    assert len(one.table) == len(other.table) > 0
    for row, again in zip(one.table, other.table, strict=True):
        assert (row.family, row.path) == (again.family, again.path)
        assert torch.equal(row.plan.t, again.plan.t) and torch.equal(row.plan.coefficients, again.plan.coefficients)
        assert not torch.equal(row.error, again.error)


def test_the_rest_takes_no_part_in_the_judging():
    """The cost of a stock row is the judges' alone."""
    model, others = mixture(1).flow(), NOISE.clone()
    others[:6] = normal(6, 4, seed=77)
    one, other = (dp_search(model, noise, 3, teacher_steps=16, solver=SMALL) for noise in (NOISE, others))
    for steps in range(1, 4):
        for row, again in zip(rows_of(one, steps, "stock"), rows_of(other, steps, "stock"), strict=True):
            assert row["cost"] == pytest.approx(again["cost"], rel=1e-12)
    assert [row["cost"] for row in one.table] != [row["cost"] for row in other.table]


@pytest.mark.parametrize("name", ["euler", "unipc", "mixed", "fitted"])
def test_searched_rows_are_a_search_on_the_other_samples(name):
    model = mixture(1).flow()
    found, _ = by_hand(
        dp_core(NOISE, grids.make("flow", 24), 4, solver=Auto(searched=(name,), free=(), grids=(), moves=0)), model
    )
    alone = dp_search(model, NOISE[:6], 4, teacher_steps=24, solver=name)
    for row in found.table:
        if row.family == "searched":
            assert torch.equal(row.plan.nodes, alone.schedules[row.steps].nodes)
            torch.testing.assert_close(row.plan.coefficients, alone.schedules[row.steps].coefficients)


@pytest.mark.parametrize("start", STARTS)
def test_several_searches_find_what_each_finds_alone(start):
    """They share evaluations; that must not change what they find."""
    model, t = mixture(3).flow(), grids.make("flow", 16)
    together, _ = by_hand(dp_core(NOISE, t, 3, solver=Auto(free=(), grids=()), start=start), model)
    searched = [row for row in together.table if row.family == "searched"]
    for name in Auto().searched:
        alone, _ = by_hand(dp_core(NOISE, t, 3, solver=Auto(searched=(name,), free=(), grids=()), start=start), model)
        own = [row for row in searched if row.plan.solver.name == solvers.get(name).name]
        for row, again in zip(own, [row for row in alone.table if row.family == "searched"], strict=True):
            assert torch.equal(row.plan.nodes, again.plan.nodes)
            torch.testing.assert_close(row.plan.coefficients, again.plan.coefficients, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(row.error, again.error, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("samples", "share", "judges"), [(2, 0.25, 1), (4, 0.25, 1), (8, 0.5, 4), (8, 0.01, 1), (2, 0.9, 1), (5, 0.99, 4)]
)
def test_some_judge_and_some_are_searched(samples, share, judges):
    model, noise = mixture(1).flow(), normal(samples, 4)
    config = Auto(searched=("euler",), grids=("flow",), stock=("ab2",), validation=share)
    result = dp_search(model, noise, 2, teacher_steps=10, solver=config)
    assert len(result.teacher) == judges
    check_replay(result, model, noise[samples - judges :], 1e-9)


def test_fitted_rows_are_least_squares_along_the_grid():
    """With next to no ridge the first step is torch.linalg.lstsq's, on the samples that are searched."""
    model, t = mixture(1).flow(), grids.make("flow", 24)
    config = Auto(searched=(Fitted(history=1, ridge=1e-12),), grids=("edm",), stock=())
    found, _ = by_hand(dp_core(NOISE, t, 3, solver=config), model)
    (row,) = (row for row in found.table if row.family == "fitted along" and row.steps == 3)
    _, teacher = Schedule.from_grid(t, DEFAULT_SOLVER).sample(model, NOISE[:6], return_trajectory=True)
    velocity = model.velocity(NOISE[:6], torch.ones(6, dtype=torch.float64))
    columns = torch.stack([NOISE[:6].flatten(), velocity.flatten()], 1)
    wanted = torch.linalg.lstsq(columns, teacher[:, int(row.plan.nodes[1])].flatten()[:, None]).solution[:, 0]
    torch.testing.assert_close(row.plan.coefficients[0, :2], wanted, rtol=1e-6, atol=1e-6)
    assert float(row.plan.coefficients[0, 2]) == 0 and row.plan.coefficients.shape == (3, 3)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("objective", ["mse", "psnr"])
def test_moved_rows_end_nearer_for_the_samples_that_they_were_moved_on(start, objective):
    model, fit, noise = mixture(1).flow(), slice(0, 24), normal(32, 4, seed=3)
    config = Auto(free=("fitted",), grids=("flow",), stock=("euler",), budgets=(4, 6), objective=objective)
    found, _ = by_hand(dp_core(noise, grids.make("flow", 40), 6, solver=config, start=start), model)
    target = Schedule.from_grid(grids.make("flow", 40), DEFAULT_SOLVER).sample(model, noise[fit])

    def level(plan):
        schedule = Schedule.from_grid(
            plan.t, plan.solver, model, coefficients=plan.coefficients, noise_scale=plan.noise_scale
        )
        error = (schedule.sample(model, noise[fit]) - target).square().mean(1)
        return float(error.mean() if objective == "mse" else error.log().mean().exp())

    for steps in (4, 6):
        (moved,) = (row for row in found.table if row.family == "moved" and row.steps == steps)
        others = [row for row in found.table if row.steps == steps and row.family in ("searched", "fitted along")]
        start_row = min((row for row in others if row.plan.solver.name == "fitted"), key=lambda row: row.cost)
        assert moved.path == start_row.path
        assert not torch.equal(moved.plan.nodes, start_row.plan.nodes)
        assert level(moved.plan) < level(start_row.plan)
        error = moved.error if objective == "mse" else moved.error.log()
        assert moved.cost == pytest.approx(float(error.mean() if objective == "mse" else error.mean().exp()))


def test_nothing_is_moved_without_moves():
    result = dp_search(mixture(1).flow(), NOISE, 3, teacher_steps=16, solver=replace(SMALL, moves=0))
    assert {row["family"] for row in result.table} == {"searched", "stock", "fitted along"}
    assert "moves" not in result.nfe


# --- evaluations and options ---


@pytest.mark.parametrize("start", STARTS)
def test_evaluations_are_counted_by_what_they_were_for(start):
    model = Counting(mixture(1).flow())
    result = dp_search(model, NOISE, 3, teacher_steps=16, solver=Auto(free=()), candidates=10, start=start)
    parts = {name: count for name, count in result.nfe.items() if name != "total"}
    assert set(parts) == {"teacher", "search", "fit", "validation", "moves"} and parts["teacher"] == 16
    assert 0 < parts["moves"] <= 0.75 * Auto().moves
    assert sum(parts.values()) == pytest.approx(result.nfe["total"])
    assert model.evaluations == 8 * result.nfe["total"]
    alone = sum(
        dp_search(mixture(1).flow(), NOISE, 3, teacher_steps=16, solver=name, candidates=10, start=start).nfe["search"]
        for name in Auto().searched
    )
    # Searched with three quarters of the samples. The first two asks of "euler" are kept. From a free start: its states
    # at the starts but node 0, and after a step, which are those of all but "fitted". From node 0: after a step, and
    # after two, which only "dpmpp_2m" shares: at t = 1 log-SNR is -inf, so that its second step is Euler's still.
    shared = {"fixed": 4 * 9 + 8, "free": 4 * (9 + 9)}[start]
    assert parts["search"] == 0.75 * (alone - shared)


def test_budgets():
    model = mixture(1).flow()
    every = dp_search(model, NOISE, 5, teacher_steps=16, solver=replace(SMALL, moves=0))
    config = replace(SMALL, budgets=(5, 2), moves=0)
    some = dp_search(model, NOISE, 5, teacher_steps=16, solver=config)
    assert set(some.schedules) == {2, 5} and {row["steps"] for row in some.table} == {2, 5}
    assert some.steps == 5 and some.schedule is some.schedules[5]
    for budget in (2, 5):
        assert torch.equal(some.costs[budget], every.costs[budget])
        assert torch.equal(some.schedules[budget].t, every.schedules[budget].t)
    assert some.nfe["total"] < every.nfe["total"]


def test_solvers_of_ones_own():
    config = Auto(
        searched=(Mixed(tuple(map(solvers.get, ("euler", "ab3")))), Fitted(history=1)),
        free=("ab2",),
        grids=("flow:shift=2",),
        stock=(solvers.get("ab4"),),
    )
    result = dp_search(mixture(1).flow(), NOISE, 3, teacher_steps=16, solver=config)
    assert {row["solver"] for row in result.table} == {"mixed", "fitted", "ab2", "ab4"}
    assert {row["path"] for row in result.table} == {"search", "search, free start", "flow:shift=2"}


@pytest.mark.parametrize("family", ["epsilon", "x0"])
def test_whole_timesteps_of_all_rows(family):
    model = mixture(1).families()[family]
    t = grids.on_whole_timesteps(grids.for_model("edm", 30, model), model)

    def make_grid(name, count):
        return grids.on_whole_timesteps(grids.for_model(name, count, model), model)

    found, _ = by_hand(dp_core(NOISE, t, 4, solver=SMALL, make_grid=make_grid), model)
    result = dp_search(model, NOISE, 4, teacher_steps=30, grid="edm", solver=SMALL, nodes="integer")
    assert [row.describe() for row in found.table] == [
        {**row, "cost": pytest.approx(row["cost"], rel=1e-9)} for row in result.table
    ]
    for row in found.table:
        steps = model.timesteps(row.plan.t[:-1])
        assert torch.equal(steps, steps.round())
    for schedule in result.schedules.values():
        assert torch.equal(schedule.timesteps, schedule.timesteps.round())


BAD = [
    ({"noise": normal(1, 4)}, ValueError, "noise: got 1 sample with solver 'auto', wanted at least 2"),
    ({"share": "per_sample"}, ValueError, "share: got 'per_sample' with solver 'auto'"),
    ({"share": "median"}, ValueError, "share: got 'median' with solver 'auto'"),
    ({"solver": Auto(searched=())}, ValueError, "searched: got none"),
    ({"solver": Auto(searched=("rk4",))}, ValueError, "solver: got 'rk4', wanted one of euler"),
    ({"solver": Auto(searched=("auto",))}, ValueError, "solver: got 'auto'"),
    ({"solver": Auto(searched=(3,))}, TypeError, "solver: got 3"),
    ({"solver": Auto(searched="euler")}, TypeError, "searched: got 'euler', wanted a tuple"),
    ({"solver": Auto(searched=(Fitted(ridge=-1.0),))}, ValueError, "solver: got a ridge of -1"),
    ({"solver": Auto(free=("rk5",))}, ValueError, "solver: got 'rk5', wanted one of euler"),
    ({"solver": Auto(free="fitted")}, TypeError, "free: got 'fitted', wanted a tuple"),
    ({"solver": Auto(stock=("fitted",))}, ValueError, "stock: got 'fitted', wanted solvers of euler"),
    ({"solver": Auto(stock=(Mixed(),))}, ValueError, "stock: got Mixed"),
    ({"solver": Auto(stock=("rk4",))}, ValueError, "solver: got 'rk4'"),
    ({"solver": Auto(stock="ab2")}, TypeError, "stock: got 'ab2', wanted a tuple"),
    ({"solver": Auto(grids=("karras",))}, ValueError, "grid: got 'karras', wanted one of flow, edm"),
    ({"solver": Auto(grids=("edm:rho=-1",))}, ValueError, "grid: got rho = -1"),
    ({"solver": Auto(grids=(normal(3),))}, TypeError, "grid: got Tensor"),
    ({"solver": Auto(grids="flow")}, TypeError, "grids: got 'flow', wanted a tuple"),
    ({"solver": Auto(budgets=(0,))}, ValueError, "budgets: got 0, wanted at least 1"),
    ({"solver": Auto(budgets=(2, 5))}, ValueError, "budgets: got 5, wanted at most 4, the steps of the search"),
    ({"solver": Auto(budgets=(2.0,))}, TypeError, "budgets: got 2.0"),
    ({"solver": Auto(budgets=3)}, TypeError, "budgets: got 3, wanted a tuple"),
    ({"solver": Auto(moves=-1)}, ValueError, "moves: got -1, wanted at least 0"),
    ({"solver": Auto(moves=1.5)}, TypeError, "moves: got 1.5"),
    ({"solver": Auto(objective="lpips")}, ValueError, "objective: got 'lpips', wanted one of mse, psnr"),
    ({"solver": Auto(validation=0.0)}, ValueError, "validation: got 0.0, wanted a share between 0 and 1"),
    ({"solver": Auto(validation=1.0)}, ValueError, "validation: got 1.0"),
    ({"solver": Auto(validation=float("nan"))}, ValueError, "validation: got nan"),
    ({"solver": Auto(validation="half")}, TypeError, "validation: got 'half'"),
    ({"solver": Auto(validation=True)}, TypeError, "validation: got True"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_input_costs_no_evaluation(change, kind, message):
    model = Counting(mixture().flow())
    with pytest.raises(kind, match=message):
        dp_search(model, **{"noise": normal(3, 4), "steps": 4, "teacher_steps": 10, "solver": "auto", **change})
    assert model.evaluations == 0


# --- the core ---


@pytest.mark.parametrize("start", STARTS)
def test_the_core_can_be_driven_by_hand(start):
    """Asks name the samples that they are of, so that conditions can follow, and stand off the grid for stock rows."""
    inner, cond = mixture(1).flow(), {"shift": 0.1 * normal(8, 4, seed=8)}
    model = FlowModel(lambda x, t, shift: inner.fn(x, t) + shift)
    t = grids.make("flow", 16)
    found, asks = by_hand(dp_core(NOISE, t, 3, solver="auto", start=start, candidates=8), model, cond)
    assert {(ask.samples.start, ask.samples.stop) for ask in asks} == {(0, 6), (6, 8)}
    for ask in asks:
        assert ask.states.shape == (ask.samples.stop - ask.samples.start, len(ask.t), 4)
        assert bool((ask.t > 0).all())
        if ask.nodes is not None:
            assert torch.equal(ask.t, t[ask.nodes])
    off = [ask for ask in asks if ask.nodes is None]
    assert off and all(ask.samples == slice(6, 8) for ask in off), "stock grids are only judged"
    assert any(not torch.isin(ask.t, t).all() for ask in off)
    assert any(ask.samples == slice(6, 8) and ask.nodes is not None for ask in asks)
    asked = sum(ask.states.shape[0] * ask.states.shape[1] for ask in asks)
    assert asked == pytest.approx(8 * found.nfe["total"])
    wanted = dp_search(model, NOISE, 3, teacher_steps=16, solver="auto", start=start, candidates=8, cond=cond)
    for steps, (plan,) in found.plans.items():
        assert torch.equal(plan.t, wanted.schedules[steps].t)
        assert torch.equal(plan.coefficients, wanted.schedules[steps].coefficients)
        assert plan.noise_scale == wanted.schedules[steps].noise_scale
    x0 = wanted.schedule.sample(model, JUDGES, {"shift": cond["shift"][6:]})
    torch.testing.assert_close(x0, wanted.endpoints[3], rtol=1e-9, atol=1e-9)


def test_an_error_names_the_true_sample_and_time():
    """A network that fails at one sample's label fails at that sample, also where the judges alone are run."""
    inner, cond = mixture(1).flow(), {"label": torch.arange(8)}

    def broken(x, t, label):
        v = inner.fn(x, t)
        v[(label == 7) & (t < 0.3)] = torch.nan
        return v

    with pytest.raises(ValueError, match=r"model: returned NaN or inf at node \d+ \(flow time 0\.\d+\), sample 7;"):
        dp_search(FlowModel(broken), NOISE, 3, teacher_steps=16, solver="auto", cond=cond)

    def off_grid(x, t, label):
        v = inner.fn(x, t)
        v[(label == 7) & (t > 0.98) & (t < 1)] = torch.nan
        return v

    with pytest.raises(ValueError, match=r"model: returned NaN or inf at flow time 0\.98\d+, sample 7;"):
        dp_search(FlowModel(off_grid), NOISE, 3, teacher_steps=16, solver="auto", cond=cond)
