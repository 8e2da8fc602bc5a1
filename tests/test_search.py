from __future__ import annotations

import math

import pytest
import torch
from helpers.analytic import gaussian, mixture, normal, shared_grid
from helpers.counting import Counting
from helpers.oracle import brute_force, plain_search

from oss_ext import grids, solvers
from oss_ext.models import FlowModel
from oss_ext.schedule import Schedule
from oss_ext.search import dp_search
from oss_ext.search_core import SHARES, STARTS, dp_core

PUBLISHED = {"teacher_solver": "euler", "candidates": 1000}  # as the paper searches: all nodes of an Euler teacher


def node_lists(schedule):
    """[nodes] of a Schedule, [nodes, ...] of a per_sample list."""
    return [one.nodes.tolist() for one in (schedule if isinstance(schedule, list) else [schedule])]


def replayed(schedule, model, noise, **kwargs):
    if isinstance(schedule, Schedule):
        return schedule.sample(model, noise, **kwargs)
    return torch.cat([one.sample(model, noise[b : b + 1], **kwargs) for b, one in enumerate(schedule)])


def as_velocity(model):
    return lambda x, t: model.velocity(x, torch.full((len(x),), t, dtype=torch.float64))


# --- replay ---


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("solver", solvers.formulas())
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_replay_reproduces_scored_state_and_cost(solver, share, start, dtype, tolerance):
    model, noise = mixture(1).flow(), normal(6, 4, dtype=dtype)
    result = dp_search(model, noise, 5, teacher_steps=40, solver=solver, share=share, start=start)
    assert list(result.schedules) == [1, 2, 3, 4, 5] and result.schedule is result.schedules[5]
    for budget, schedule in result.schedules.items():
        x0 = replayed(schedule, model, noise)
        torch.testing.assert_close(x0, result.endpoints[budget], rtol=tolerance, atol=tolerance)
        cost = (x0 - result.teacher).double().square().mean(1)
        torch.testing.assert_close(cost, result.costs[budget], rtol=tolerance, atol=tolerance)
        for one in schedule if isinstance(schedule, list) else [schedule]:
            assert one.steps == budget and torch.equal(one.t, result.t[one.nodes])
            origin = one.provenance
            recorded = origin.replayed_cost if share == "median" else origin.cost
            scored = cost.mean() if origin.sample is None else cost[origin.sample]
            assert recorded == pytest.approx(float(scored), rel=10 * tolerance, abs=tolerance)


def test_teacher_is_the_fine_grid_by_euler():
    model, noise = mixture(1).flow(), normal(6, 4)
    result = dp_search(model, noise, 3, teacher_steps=40, teacher_solver="euler")
    x0 = Schedule.from_grid(grids.make("flow", 40)).sample(model, noise)
    torch.testing.assert_close(result.teacher, x0, rtol=0, atol=1e-13)


def test_the_result_keeps_no_trajectory_alive():
    noise = normal(6, 4)
    result = dp_search(mixture(1).flow(), noise, 3, teacher_steps=40)
    for kept in (result.teacher, *result.endpoints.values()):
        assert kept.untyped_storage().nbytes() == noise.numel() * 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_noise(dtype):
    inner = mixture(1).flow().fn
    model = FlowModel(lambda x, t: inner(x.float(), t).to(x.dtype))
    noise = normal(6, 4, dtype=dtype)
    result = dp_search(model, noise, 4, teacher_steps=30)
    assert result.teacher.dtype == torch.float32
    for budget, schedule in result.schedules.items():
        x0 = schedule.sample(model, noise)
        assert x0.dtype == dtype
        # The float32 states agree to rounding, and what the network is fed may then differ by one half-type step.
        torch.testing.assert_close(x0.float(), result.endpoints[budget], rtol=0, atol=8 * torch.finfo(dtype).eps)


# --- against oracles ---


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("free", [False, True])
def test_joint_euler_search_is_algorithm_1(seed, free):
    model, noise, t = mixture(seed).flow(), normal(5, 4, seed=seed), grids.make("flow:shift=2", 24)
    wanted = plain_search(as_velocity(model), noise, t.tolist(), 6, free)
    result = dp_search(model, noise, 6, grid=t, start="free" if free else "fixed", **PUBLISHED)
    assert {budget: schedule.nodes.tolist() for budget, schedule in result.schedules.items()} == wanted


@pytest.mark.parametrize("start", STARTS)
def test_gap_to_brute_force_is_never_negative(start, record_property):
    """N = 12. Reported: how many times the best possible cost the search pays, in dB, mean and worst over seeds."""
    free, gaps = start == "free", {2: [], 3: [], 4: []}
    for seed in range(8):
        model, noise, t = mixture(seed).flow(), normal(4, 4, seed=seed), grids.make("flow", 12)
        result = dp_search(model, noise, 4, grid=t, start=start, **PUBLISHED)
        for budget, values in gaps.items():
            costs = brute_force(as_velocity(model), noise, t.tolist(), budget, free)
            ours = float(result.costs[budget].mean())
            assert ours == pytest.approx(costs[tuple(result.schedules[budget].nodes.tolist())], rel=1e-9)
            best = min(costs.values())
            assert ours >= best * (1 - 1e-9)
            values.append(10 * math.log10(ours / best))
    for budget, values in gaps.items():
        mean, worst = sum(values) / len(values), max(values)
        record_property(f"gap_db_{start}_{budget}", {"mean": mean, "worst": worst})
        print(f"gap to brute force, {start} start, {budget} steps: mean {mean:.2f} dB, max {worst:.2f} dB")
    if not free:
        assert max(gaps[2]) < 1e-6, "two steps from one start are searched exhaustively"


def test_gap_to_brute_force_per_sample(record_property):
    model, t, gaps = mixture(3).flow(), grids.make("flow", 12), []
    noise = normal(12, 4, seed=9)
    result = dp_search(model, noise, 4, grid=t, share="per_sample", **PUBLISHED)
    for b, ours in enumerate(result.costs[4].tolist()):
        costs = brute_force(as_velocity(model), noise[b : b + 1], t.tolist(), 4, False)
        assert ours == pytest.approx(costs[tuple(result.schedule[b].nodes.tolist())], rel=1e-9)
        assert ours >= min(costs.values()) * (1 - 1e-9)
        gaps.append(10 * math.log10(ours / min(costs.values())))
    record_property("gap_db_per_sample", {"mean": sum(gaps) / len(gaps), "worst": max(gaps)})
    print(f"gap to brute force, one sample, 4 steps: mean {sum(gaps) / len(gaps):.2f} dB, max {max(gaps):.2f} dB")


# --- one run, other runs ---


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("solver", solvers.formulas())
def test_budgets_of_one_run_equal_separate_runs(solver, share, start):
    model, noise = mixture(2).flow(), normal(3, 4)
    settings = {"teacher_steps": 20, "solver": solver, "share": share, "start": start}
    together = dp_search(model, noise, 5, **settings)
    for budget in range(1, 5):
        alone = dp_search(model, noise, budget, **settings)
        assert node_lists(alone.schedule) == node_lists(together.schedules[budget])
        assert torch.equal(alone.costs[budget], together.costs[budget])


@pytest.mark.parametrize("solver", solvers.formulas())
@pytest.mark.parametrize("start", STARTS)
def test_one_sample_is_the_same_shared_or_not(solver, start):
    model, noise = mixture(2).flow(), normal(1, 4, seed=5)
    settings = {"teacher_steps": 30, "solver": solver, "start": start, "candidates": 30}
    joint, median, own = (dp_search(model, noise, 6, share=share, **settings) for share in SHARES)
    for budget in range(1, 7):
        assert node_lists(joint.schedules[budget]) == node_lists(own.schedules[budget])
        assert node_lists(joint.schedules[budget]) == node_lists(median.schedules[budget])
        assert torch.equal(joint.costs[budget], own.costs[budget])
        torch.testing.assert_close(median.costs[budget], own.costs[budget], rtol=1e-9, atol=1e-14)
    assert torch.equal(joint.backpointers, own.backpointers[:, 0])
    assert torch.equal(joint.values, own.values[:, 0])


@pytest.mark.parametrize("solver", solvers.formulas())
def test_batched_equals_one_by_one(solver):
    model, noise = mixture(4).flow(), normal(5, 4)
    cond = {"shift": normal(5, 4, seed=8) * 0.1}
    model = FlowModel(lambda x, t, shift, inner=model.fn: inner(x, t) + shift)
    settings = {"teacher_steps": 25, "solver": solver, "share": "per_sample"}
    batched = dp_search(model, noise, 5, cond=cond, **settings)
    for b in range(5):
        alone = dp_search(model, noise[b : b + 1], 5, cond={"shift": cond["shift"][b : b + 1]}, **settings)
        for budget in range(1, 6):
            assert node_lists(alone.schedules[budget])[0] == node_lists(batched.schedules[budget])[b]
            torch.testing.assert_close(alone.costs[budget][0], batched.costs[budget][b], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_size_changes_nothing(batch_size):
    model, noise = Counting(mixture(4).flow()), normal(5, 4)
    wanted = dp_search(mixture(4).flow(), noise, 4, teacher_steps=20)
    result = dp_search(model, noise, 4, teacher_steps=20, batch_size=batch_size)
    assert torch.equal(result.backpointers, wanted.backpointers)
    torch.testing.assert_close(result.values, wanted.values, rtol=1e-9, atol=1e-14)
    assert max(len(call) for call in model.calls) <= batch_size


def test_a_chunked_stage_equals_a_whole_one(monkeypatch):
    model, noise = mixture(4).flow(), normal(5, 4)
    settings = {"teacher_steps": 15, "solver": "ab2", "share": "per_sample"}
    whole = dp_search(model, noise, 4, **settings)
    monkeypatch.setattr("oss_ext.stages.CHUNK", 2 * 16 * 16 * 3)
    parts = dp_search(model, noise, 4, **settings)
    assert torch.equal(whole.backpointers, parts.backpointers) and torch.equal(whole.values, parts.values)


# --- families ---


@pytest.mark.parametrize("distribution", [gaussian(), mixture(6)], ids=["gaussian", "mixture"])
def test_all_families_give_the_same_schedule_and_sample(distribution):
    noise = normal(8, *distribution.means.shape[1:])
    results = {
        name: dp_search(model, noise, 6, grid=shared_grid(40)) for name, model in distribution.families().items()
    }
    reference = results["flow"]
    for name, model in distribution.families().items():
        result = results[name]
        for budget, schedule in result.schedules.items():
            assert node_lists(schedule) == node_lists(reference.schedules[budget]), (name, budget)
            torch.testing.assert_close(result.endpoints[budget], reference.endpoints[budget], rtol=0, atol=1e-9)
            assert schedule.parameterization == name
            # A schedule made with one family runs on another; float32 as people run it.
            x0 = reference.schedules[budget].sample(model, noise.float())
            torch.testing.assert_close(x0.double(), reference.endpoints[budget], rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", grids.names())
@pytest.mark.parametrize("family", ["flow", "edm", "v_param"])
def test_every_grid_is_searched_and_beats_or_ties_its_uniform_thinning(family, grid):
    model, noise = mixture(1).families()[family], normal(6, 4)
    result = dp_search(model, noise, 5, teacher_steps=40, grid=grid)
    assert result.schedule.provenance.grid == grid and result.schedule.provenance.teacher_steps == 40
    thinned = Schedule.from_grid(result.t[[0, 8, 16, 24, 32, 40]], model=model).sample(model, noise)
    assert float(result.costs[5].mean()) <= float((thinned - result.teacher).square().mean())


# --- evaluations ---


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("share", SHARES)
def test_evaluations_are_counted_and_none_is_needless(share, start):
    model, noise, seen = Counting(mixture().flow()), normal(3, 4), []
    result = dp_search(
        model, noise, 4, teacher_steps=12, share=share, start=start, progress=lambda *step: seen.append(step)
    )
    search = {"fixed": 11 + 10 + 9, "free": 11 + 11 + 10 + 9}[start]
    again = {"replay": {"fixed": 0 + 1 + 2 + 3, "free": 1 + 2 + 3 + 4}[start]} if share == "median" else {}
    wanted = {"teacher": 12, "search": search, **again, "total": 12 + search + sum(again.values())}
    assert result.nfe == wanted
    assert model.evaluations == 3 * wanted["total"]
    assert seen[-1] == (model.evaluations, model.evaluations)
    assert all(t > 0 for call in model.calls for t in call)


def test_the_finest_budget_is_the_teacher():
    model, noise = Counting(mixture().flow()), normal(3, 4)
    result = dp_search(model, noise, 8, teacher_steps=8, **PUBLISHED)
    assert result.schedule.nodes.tolist() == list(range(9))
    assert float(result.costs[8].max()) < 1e-28
    assert dp_search(model, noise, 1, teacher_steps=1).schedule.t.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("share", SHARES)
def test_free_start_scales_the_noise_as_deployment_does(share):
    model, noise = mixture(7).flow(), normal(6, 4)
    result = dp_search(model, noise, 3, teacher_steps=30, start="free", share=share)
    starts = [path[0] for schedule in result.schedules.values() for path in node_lists(schedule)]
    assert max(starts) > 0, "some schedule leaves a later node"
    for schedule in result.schedules.values():
        for b, one in enumerate(schedule if isinstance(schedule, list) else [schedule]):
            own = noise[b : b + 1] if isinstance(schedule, list) else noise
            _, path = one.sample(model, own, return_trajectory=True)
            torch.testing.assert_close(path[:, 0], float(one.t[0]) * own)


def test_reached_and_unreached_nodes_in_the_tables():
    result = dp_search(mixture().flow(), normal(3, 4), 4, teacher_steps=10)
    assert result.values.shape == (4, 11) and result.backpointers.shape == (4, 11)
    for budget in range(1, 5):
        assert torch.isinf(result.values[budget - 1, :budget]).all()
        assert torch.isfinite(result.values[budget - 1, budget:]).all()
        assert (result.backpointers[budget - 1, :budget] == -1).all()
    assert dp_search(mixture().flow(), normal(3, 4), 2, teacher_steps=10, share="per_sample").values.shape == (2, 3, 11)


# --- the core ---


@pytest.mark.parametrize("shape", [(4,), (2, 2), (1, 2, 2)])
def test_the_core_can_be_driven_by_hand(shape):
    distribution = mixture(shape=(4,))
    fn = distribution.flow().fn
    noise, t = normal(3, *shape), grids.make("flow", 12)
    core = dp_core(noise, t, 4, share="joint")
    asked = 0
    try:
        ask = next(core)
        while True:
            assert ask.states.shape == (3, len(ask.t), *shape) and ask.samples == slice(0, 3)
            assert torch.equal(ask.t, t[ask.nodes])
            asked += ask.states.shape[0] * len(ask.t)
            velocities = fn(ask.states.reshape(-1, 4), ask.t.repeat(3)).requires_grad_()
            ask = core.send(velocities.reshape(ask.states.shape).float())
    except StopIteration as done:
        found = done.value
    assert asked == 3 * found.nfe["total"]
    wanted = dp_search(distribution.flow(), noise.reshape(3, 4), 4, grid=t)
    assert [plan.nodes.tolist() for (plan,) in found.plans.values()] == [
        one.nodes.tolist() for one in wanted.schedules.values()
    ]


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (lambda x: x[:, :0], ValueError, r"velocities: got shape \[3, 0, 4\], wanted .*\[3, 1, 4\]"),
        (lambda x: x.long(), TypeError, r"velocities: got a tensor of torch\.int64"),
        (lambda x: None, TypeError, "velocities: got NoneType"),
    ],
)
def test_the_core_refuses_wrong_answers(answer, kind, message):
    core = dp_core(normal(3, 4), grids.make("flow", 12), 4)
    ask = next(core)
    with pytest.raises(kind, match=message):
        core.send(answer(ask.states))


def test_gradients_are_neither_needed_nor_kept():
    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)
    inner = mixture().flow().fn
    result = dp_search(FlowModel(lambda x, t: inner(x, t) * weight), normal(3, 4).requires_grad_(), 2, teacher_steps=6)
    assert not result.teacher.requires_grad and not result.endpoints[2].requires_grad


# --- devices ---


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("solver", solvers.formulas())
def test_devices_agree_in_every_backpointer(device, solver, share):
    """On a GPU: against the CPU. (On the CPU: two runs of the same search.)"""
    model, noise = mixture(5).flow(), normal(6, 4)
    settings = {"teacher_steps": 40, "solver": solver, "share": share}
    here = dp_search(model, noise.to(device), 6, **settings)
    wanted = dp_search(model, noise, 6, **settings)
    assert here.teacher.device.type == torch.device(device).type
    assert torch.equal(here.backpointers, wanted.backpointers)
    for budget in range(1, 7):
        assert node_lists(here.schedules[budget]) == node_lists(wanted.schedules[budget])
        torch.testing.assert_close(here.costs[budget], wanted.costs[budget], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(here.endpoints[budget].cpu(), wanted.endpoints[budget], rtol=1e-9, atol=1e-9)
