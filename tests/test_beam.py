"""beam=: several states a node, against the search with one and against every schedule there is."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers.analytic import mixture, normal
from helpers.counting import Counting
from helpers.replay import check_replay

from oss_ext import Schedule, dp_search, grids
from oss_ext.search_core import STARTS
from oss_ext.solvers import Fitted

N = 9
WHOLE = 126  # no node of a grid of 9 steps has more paths than C(9, 4)


def every_schedule(model, noise, t, steps, solver, free, target):
    """{nodes: mean squared distance to `target`} over all schedules of exactly `steps` steps."""
    costs = {}
    for first in range(len(t) - steps) if free else [0]:
        for inner in itertools.combinations(range(first + 1, len(t) - 1), steps - 1):
            nodes = (first, *inner, len(t) - 1)
            x0 = Schedule.from_grid(t[list(nodes)], solver).sample(model, noise)
            costs[nodes] = float((x0 - target).square().mean())
    return costs


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("solver", ["euler", "ab2", "unipc_3", "fitted", "mixed"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_replay_reproduces_scored_state_and_cost(solver, start, dtype, tolerance):
    model, noise = mixture(1).flow(), normal(6, 4, dtype=dtype)
    result = dp_search(model, noise, 5, teacher_steps=20, solver=solver, start=start, beam=4)
    check_replay(result, model, noise, tolerance)


@pytest.mark.parametrize("solver", ["euler", "unipc_3", "fitted", "mixed"])
def test_a_beam_of_one_is_the_default(solver):
    model, noise = mixture(2).flow(), normal(4, 4)
    one = dp_search(model, noise, 5, teacher_steps=20, solver=solver, beam=1)
    default = dp_search(model, noise, 5, teacher_steps=20, solver=solver)
    assert torch.equal(one.values, default.values) and torch.equal(one.backpointers, default.backpointers)
    assert one.nfe == default.nfe


def test_the_two_implementations_agree(monkeypatch):
    """The wide table, kept to one state a node, against the kernels that take the minimum."""
    from oss_ext import stages

    def narrow(table, times, target, solver, joint, weight, *_):
        yield from ()  # it asks for nothing, as the other
        return stages._beam_winners(table, times, target, solver, 1, weight)

    model, noise = mixture(2).flow(), normal(4, 4)
    for solver in ("euler", "unipc_3", "mixed", Fitted(history=1, ridge=1e-2)):
        wanted = dp_search(model, noise, 5, teacher_steps=20, solver=solver)
        with monkeypatch.context() as patch:
            patch.setattr("oss_ext.stages._winners", narrow)
            found = dp_search(model, noise, 5, teacher_steps=20, solver=solver)
        assert torch.equal(found.backpointers, wanted.backpointers)
        torch.testing.assert_close(found.values, wanted.values, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("solver", ["euler", "ab2", "dpmpp_2m"])
def test_a_beam_as_wide_as_all_paths_is_brute_force(solver, start):
    for seed in range(1 if start == "free" else 2):
        model, noise, t = mixture(seed).flow(), normal(3, 4, seed=seed), grids.make("flow", N)
        result = dp_search(model, noise, 4, grid=t, solver=solver, start=start, beam=WHOLE)
        for budget in range(1, 5):
            costs = every_schedule(model, noise, t, budget, solver, start == "free", result.teacher)
            best = min(costs, key=costs.get)
            assert tuple(result.schedules[budget].nodes.tolist()) == best
            assert float(result.costs[budget].mean()) == pytest.approx(costs[best], rel=1e-10)
            assert float(result.values[budget - 1, -1]) == pytest.approx(costs[best], rel=1e-10)


def test_the_best_two_steps_into_every_node():
    """Not only the clean node: the table of a wide beam holds the least cost of every node."""
    model, noise, t = mixture(3).flow(), normal(3, 4), grids.make("flow", N)
    result = dp_search(model, noise, 3, grid=t, solver="ab2", teacher_solver="euler", beam=WHOLE)
    _, teacher = Schedule.from_grid(t).sample(model, noise, return_trajectory=True)
    for node in range(3, N):
        costs = {}
        for inner in itertools.combinations(range(1, node), 2):
            path = t[[0, *inner, node, N]]  # sample() wants a last 0; the state before it is the one in question
            _, states = Schedule.from_grid(path, "ab2").sample(model, noise, return_trajectory=True)
            costs[inner] = float((states[:, 3] - teacher[:, node]).square().mean())
        best = min(costs, key=costs.get)
        assert float(result.values[2, node]) == pytest.approx(costs[best], rel=1e-9)
        assert int(result.backpointers[2, node]) == best[-1]


@pytest.mark.parametrize("solver", ["euler", "ab2"])
def test_the_gap_to_brute_force_is_never_negative_and_shrinks(solver, record_property):
    """Reported: how many times the least possible cost is paid, in dB, mean over models."""
    widths = [1, 4, 16, WHOLE]
    gaps = {width: [] for width in widths}
    for seed in range(8):
        model, noise, t = mixture(seed).flow(), normal(3, 4, seed=seed), grids.make("flow", N)
        found = {width: dp_search(model, noise, 4, grid=t, solver=solver, beam=width) for width in widths}
        for budget in (3, 4):
            costs = every_schedule(model, noise, t, budget, solver, False, found[1].teacher)
            for width, result in found.items():
                ours = float(result.costs[budget].mean())
                assert ours == pytest.approx(costs[tuple(result.schedules[budget].nodes.tolist())], rel=1e-9)
                assert ours >= min(costs.values()) * (1 - 1e-9)
                gaps[width].append(10 * math.log10(ours / min(costs.values())))
    means = [sum(values) / len(values) for values in gaps.values()]
    for width, mean in zip(widths, means, strict=True):
        record_property(f"gap_db_{solver}_beam_{width}", mean)
        print(f"gap to brute force, {solver}, a beam of {width}: mean {mean:.3f} dB, max {max(gaps[width]):.3f} dB")
    assert all(wide <= narrow + 1e-9 for narrow, wide in itertools.pairwise(means))
    assert means[0] > 0.01, "one state a node is a heuristic here, so that there is a gap to close"


@pytest.mark.parametrize("beam", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize("start", STARTS)
def test_evaluations_are_those_of_the_states_kept(beam, start):
    """min(W, number of paths) states a node: C(j - 1, s - 1) paths of s steps from node 0 to j, C(j, s) from any."""
    model, noise, seen = Counting(mixture().flow()), normal(3, 4), []
    result = dp_search(
        model, noise, 5, teacher_steps=N, start=start, beam=beam, progress=lambda *step: seen.append(step)
    )
    paths = math.comb if start == "free" else lambda node, steps: math.comb(node - 1, steps - 1)
    search = sum(min(beam, paths(node, steps)) for steps in range(1, 5) for node in range(steps, N))
    search += N - 1 if start == "free" else 0  # the first states, but for node 0, which the teacher evaluates
    assert result.nfe == {"teacher": N, "search": search, "total": N + search}
    assert model.evaluations == 3 * (N + search)
    assert seen[-1] == (model.evaluations, model.evaluations)


def test_tables_are_of_the_best_state():
    model, noise = mixture(2).flow(), normal(4, 4)
    one = dp_search(model, noise, 5, teacher_steps=15)
    wide = dp_search(model, noise, 5, teacher_steps=15, beam=6)
    assert wide.values.shape == one.values.shape and wide.backpointers.dtype == torch.int32
    assert torch.equal(wide.backpointers >= 0, one.backpointers >= 0)
    assert int(wide.backpointers.max()) < 15, "nodes, not rows of the table"
    assert torch.equal(wide.values[:2], one.values[:2]), "two stages have one state a source either way"
    for budget in range(1, 6):
        assert float(wide.values[budget - 1, -1]) == pytest.approx(float(wide.costs[budget].mean()), rel=1e-12)


def test_a_beam_pays_with_fitted_coefficients():
    """Mean over models, on the search's own samples: what is searched over must not get worse for looking wider."""
    ratios = []
    for seed in range(6):
        model, noise = mixture(seed).flow(), normal(16, 4, seed=seed)
        settings = {"teacher_steps": 30, "solver": Fitted(history=1, ridge=1e-3)}
        one, wide = (float(dp_search(model, noise, 5, beam=beam, **settings).costs[5].mean()) for beam in (1, 8))
        ratios.append(wide / one)
    assert torch.tensor(ratios).log().mean().exp() < 0.9, ratios


@pytest.mark.parametrize("solver", ["euler", "mixed"])
@pytest.mark.parametrize("share", ["median", "per_sample"])
def test_only_joint(share, solver):
    model = Counting(mixture().flow())
    with pytest.raises(ValueError, match=f"share: got '{share}' with a beam of 2, wanted 'joint'"):
        dp_search(model, normal(3, 4), 3, teacher_steps=10, solver=solver, share=share, beam=2)
    assert model.evaluations == 0
    dp_search(model, normal(3, 4), 3, teacher_steps=10, share=share, beam=1)


BAD = [(0, ValueError, "beam: got 0, wanted at least 1"), (-2, ValueError, "beam: got -2")]
BAD += [(1.0, TypeError, "beam: got 1.0"), (True, TypeError, "beam: got True"), (None, TypeError, "beam: got None")]


@pytest.mark.parametrize(("beam", "kind", "message"), BAD)
def test_bad_input_costs_no_evaluation(beam, kind, message):
    model = Counting(mixture().flow())
    with pytest.raises(kind, match=message):
        dp_search(model, normal(3, 4), 3, teacher_steps=10, beam=beam)
    assert model.evaluations == 0
