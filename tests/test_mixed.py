"""solver="mixed": every step takes the member that lands nearest to the teacher."""

from __future__ import annotations

import pytest
import torch
from helpers.analytic import mixture, normal
from helpers.counting import Counting
from helpers.replay import check_replay, replayed

from oss_ext import Schedule, dp_search, solvers
from oss_ext.search_core import STARTS
from oss_ext.solvers import Fitted, Mixed

AB = Mixed(tuple(map(solvers.get, ("euler", "ab2", "ab3"))))
EPSILON = Mixed(tuple(map(solvers.get, ("euler", "deis_2", "ipndm_3"))))


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("share", ["joint", "per_sample"])
@pytest.mark.parametrize("solver", ["mixed", AB, EPSILON], ids=["default", "ab", "epsilon"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_replay_reproduces_scored_state_and_cost(solver, share, start, dtype, tolerance):
    model, noise = mixture(1).flow(), normal(6, 4, dtype=dtype)
    result = dp_search(model, noise, 5, teacher_steps=30, solver=solver, share=share, start=start)
    check_replay(result, model, noise, tolerance)
    first = result.schedule[0] if share == "per_sample" else result.schedule
    assert first.solver == "mixed" and first.carries == solvers.get(solver).carries


@pytest.mark.parametrize("share", ["joint", "per_sample"])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("mixed", [Mixed(), AB], ids=["default", "ab"])
def test_two_steps_are_no_worse_than_any_members(mixed, start, share):
    """All members begin with Euler's step, so that the second stage starts from the same states with any of them."""
    for seed in range(3):
        model, noise = mixture(seed).flow(), normal(5, 4, seed=seed)
        settings = {"teacher_steps": 25, "share": share, "start": start}
        found = dp_search(model, noise, 2, solver=mixed, **settings).values
        least = torch.full_like(found[1], torch.inf)
        for member in mixed.members:
            own = dp_search(model, noise, 2, solver=member, **settings).values
            torch.testing.assert_close(own[0], found[0], rtol=1e-12, atol=0)
            least = torch.minimum(least, own[1])
        assert bool((found[1] <= least * (1 + 1e-12)).all())
        torch.testing.assert_close(found[1], least, rtol=1e-9, atol=1e-14)  # two steps have no third to plan for


@pytest.mark.parametrize("share", ["joint", "per_sample"])
@pytest.mark.parametrize("member", ["euler", "ab3", "unipc_3"])
def test_one_member_alone_is_that_solver(member, share):
    model, noise = mixture(2).flow(), normal(5, 4)
    alone = dp_search(model, noise, 4, teacher_steps=20, solver=member, share=share)
    mixed = dp_search(model, noise, 4, teacher_steps=20, solver=Mixed((solvers.get(member),)), share=share)
    assert torch.equal(alone.values, mixed.values) and torch.equal(alone.backpointers, mixed.backpointers)
    for budget in range(1, 5):
        pairs = [(alone.schedules[budget], mixed.schedules[budget])]
        for one, other in zip(*pairs[0], strict=True) if share == "per_sample" else pairs:
            torch.testing.assert_close(other.coefficients, one.coefficients, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("share", ["joint", "per_sample"])
def test_every_step_is_some_members(share):
    """Along a returned path each row of coefficients is that of one member, and more than one member is used."""
    model, noise = mixture(3).flow(), normal(8, 4)
    result = dp_search(model, noise, 6, teacher_steps=30, solver=AB, share=share)
    used = set()
    for schedules in result.schedules.values():
        for schedule in schedules if share == "per_sample" else [schedules]:
            plain = {
                member.name: torch.nn.functional.pad(rows, (0, 4 - rows.shape[1]))
                for member in AB.members
                for rows in [solvers.along(member, schedule.t)]
            }
            for step, row in enumerate(schedule.coefficients):
                fits = [name for name, rows in plain.items() if torch.allclose(rows[step], row, rtol=1e-10, atol=1e-12)]
                assert fits, f"step {step} of {schedule} is no member's"
                if len(fits) == 1:
                    used.add(fits[0])
    assert len(used) > 1


def test_every_sample_keeps_coefficients_of_its_own():
    model, noise = mixture(3).flow(), normal(6, 4)
    result = dp_search(model, noise, 5, teacher_steps=30, solver="mixed", share="per_sample")
    assert len({tuple(map(tuple, one.coefficients.tolist())) for one in result.schedule}) > 1
    for b in range(6):
        alone = dp_search(model, noise[b : b + 1], 5, teacher_steps=30, solver="mixed", share="per_sample")
        assert torch.equal(alone.schedule[0].nodes, result.schedule[b].nodes)
        torch.testing.assert_close(alone.schedule[0].coefficients, result.schedule[b].coefficients)


def test_a_chunked_stage_equals_a_whole_one(monkeypatch):
    model, noise = mixture(4).flow(), normal(5, 4)
    settings = {"teacher_steps": 15, "solver": AB, "share": "per_sample"}
    whole = dp_search(model, noise, 4, **settings)
    monkeypatch.setattr("oss_ext.stages.CHUNK", 2 * 16 * 16 * 4)
    parts = dp_search(model, noise, 4, **settings)
    assert torch.equal(whole.backpointers, parts.backpointers) and torch.equal(whole.values, parts.values)
    for one, other in zip(whole.schedule, parts.schedule, strict=True):
        assert torch.equal(one.coefficients, other.coefficients)


@pytest.mark.parametrize("share", ["joint", "per_sample"])
def test_save_and_load(share, tmp_path):
    model, noise = mixture(1).flow(), normal(4, 4)
    result = dp_search(model, noise, 4, teacher_steps=20, solver="mixed", share=share, start="free")
    for number, schedule in enumerate(result.schedule if share == "per_sample" else [result.schedule]):
        schedule.save(tmp_path / f"{number}.json")
        loaded = Schedule.load(tmp_path / f"{number}.json")
        assert (loaded.solver, loaded.carries, loaded.noise_scale) == ("mixed", "x0", float(schedule.t[0]))
        assert torch.equal(loaded.coefficients, schedule.coefficients) and torch.equal(loaded.nodes, schedule.nodes)
        assert torch.equal(replayed(loaded, model, noise), replayed(schedule, model, noise))


def test_evaluations_are_those_of_any_solver():
    model, noise = Counting(mixture().flow()), normal(3, 4)
    result = dp_search(model, noise, 4, teacher_steps=12, solver="mixed")
    assert result.nfe == {"teacher": 12, "search": 11 + 10 + 9, "total": 42}
    assert model.evaluations == 3 * 42


@pytest.mark.parametrize(
    ("members", "kind", "message"),
    [
        (("euler", "ab2"), TypeError, "members: got 'euler', wanted Solver instances"),
        ((solvers.AdamsBashforth,), TypeError, "members: got <class"),
        ((), ValueError, "members: got none"),
        (("ab2", "dpmpp_2m"), ValueError, "members: got solvers that carry velocity, x0, wanted one of them"),
        (("euler", "deis", "unipc", "ab3"), ValueError, "members: got solvers that carry epsilon, velocity, x0"),
        ((Fitted(),), ValueError, "members: got 'fitted', wanted solvers whose coefficients are a formula"),
        ((Mixed(),), ValueError, "members: got 'mixed'"),
    ],
)
def test_bad_members(members, kind, message):
    if kind is ValueError:
        members = tuple(map(solvers.get, members))
    with pytest.raises(kind, match=message):
        Mixed(members)


def test_no_medians_and_no_formula():
    model = Counting(mixture().flow())
    with pytest.raises(ValueError, match="share: got 'median' with solver 'mixed'"):
        dp_search(model, normal(3, 4), 3, teacher_steps=10, solver="mixed", share="median")
    assert model.evaluations == 0
    with pytest.raises(ValueError, match="coefficients come from a search"):
        Schedule.from_grid(torch.tensor([1.0, 0.5, 0.0]), "mixed")
