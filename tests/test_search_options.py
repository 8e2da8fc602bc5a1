"""What holds for every option of the search: announced evaluations are made, and devices agree."""

from __future__ import annotations

import pytest
import torch
from helpers.analytic import mixture, normal
from helpers.counting import Counting
from helpers.replay import check_replay

from oss_ext import Schedule, dp_search, grids
from oss_ext.auto import Auto
from oss_ext.search_core import STARTS, dp_core, rehearse
from oss_ext.solvers import Fitted

SMALL = Auto(searched=("unipc", "mixed", "fitted"), grids=("edm",), stock=("euler", "dpmpp_2m"), budgets=(1, 3))
OPTIONS = {
    "candidates": {"candidates": 8},
    "candidates-unipc_3": {"candidates": 8, "solver": "unipc_3"},
    "beam": {"beam": 3, "solver": "ab2"},
    "beam-fitted": {"beam": 3, "solver": Fitted(history=2, ridge=1e-3)},
    "beam-candidates": {"beam": 4, "candidates": 9, "solver": "mixed"},
    "mixed": {"solver": "mixed"},
    "fitted": {"solver": "fitted"},
    "teacher": {"teacher_solver": "unipc", "candidates": 7, "solver": "fitted"},
    "auto": {"solver": SMALL},
    "auto-beam": {"solver": SMALL, "beam": 2, "candidates": 9},
}
SHARED = {
    "mixed-per_sample": {"solver": "mixed", "share": "per_sample"},
    "candidates-per_sample": {"candidates": 8, "share": "per_sample", "solver": "ab2"},
    "candidates-median": {"candidates": 8, "share": "median"},
}
ALL = [pytest.param(options, id=name) for name, options in {**OPTIONS, **SHARED}.items()]


def is_auto(options):
    return isinstance(options.get("solver"), Auto)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("options", ALL)
def test_what_is_announced_is_evaluated(options, start):
    """Progress rehearses the search, with random answers and one number a sample."""
    model, noise, seen = Counting(mixture(1).flow()), normal(5, 4), []
    result = dp_search(
        model, noise, 3, teacher_steps=12, start=start, progress=lambda *step: seen.append(step), **options
    )
    made = [count for count, _ in seen]
    assert made == sorted(made) and made[-1] == model.evaluations
    assert model.evaluations == pytest.approx(5 * result.nfe["total"])
    assert seen[-1][1] == model.evaluations
    announced = {total for _, total in seen[:-1]}
    if is_auto(options):
        # Which evaluations its searches share, and which plans leave node 0, only the true model says; of the moves of
        # nodes there is but a bound.
        moves = 5 * sum(SMALL.moves + budget for budget in SMALL.budgets)
        made = model.evaluations - 5 * result.nfe["moves"]
        assert len(announced) == 1 and announced.pop() - moves == pytest.approx(made, rel=0.2)
        assert 0 < 5 * result.nfe["moves"] < moves
    else:
        assert announced == {model.evaluations}


def test_a_rehearsal_counts_all_samples_and_uses_no_randomness_of_others():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    t = grids.make("flow", 12)
    assert rehearse(dp_core(torch.ones(3, 1), t, 4)) == 3 * (12 + 11 + 10 + 9)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("options", ALL)
def test_batch_size_changes_nothing(options):
    model, noise = Counting(mixture(4).flow()), normal(5, 4)
    settings = {"teacher_steps": 12, "start": "free", **options}
    wanted = dp_search(mixture(4).flow(), noise, 3, **settings)
    result = dp_search(model, noise, 3, batch_size=7, **settings)
    assert max(map(len, model.calls)) <= 7
    for budget in result.schedules:
        # Fitted coefficients magnify what another order of summation changes.
        torch.testing.assert_close(result.costs[budget], wanted.costs[budget], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("options", ALL)
def test_conditions_follow_their_samples(options):
    """Every sample with a drift of its own, in another order: the same costs in that order."""
    inner = mixture(4).flow()

    class Shifted:
        def velocity(self, x, t, cond=None):
            return inner.velocity(x, t) + cond["shift"]

        def __getattr__(self, name):
            return getattr(inner, name)

    noise, shift = normal(4, 4), 0.2 * normal(4, 4, seed=8)
    settings = {"teacher_steps": 12, **options}
    result = dp_search(Shifted(), noise, 3, cond={"shift": shift}, **settings)
    order = torch.tensor([2, 0, 1, 3])  # the last one judges in both
    turned = dp_search(Shifted(), noise[order], 3, cond={"shift": shift[order]}, **settings)
    for budget in result.schedules:
        wanted = result.costs[budget]  # of the judge; or of all, who are each a fold
        wanted = wanted if is_auto(options) else wanted[order]
        torch.testing.assert_close(turned.costs[budget], wanted, rtol=1e-5, atol=1e-12)
    plain = dp_search(inner, noise, 3, **settings)
    assert not torch.allclose(plain.costs[3], result.costs[3]), "the shift is seen"


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("options", ALL)
def test_devices_agree(device, options, start):
    """On a GPU: against the CPU. (On the CPU: two runs of the same search.)"""
    model, noise = mixture(5).flow(), normal(6, 4)
    settings = {"teacher_steps": 20, "start": start, **options}
    here = dp_search(model, noise.to(device), 4, **settings)
    wanted = dp_search(model, noise, 4, **settings)
    assert here.teacher.device.type == torch.device(device).type
    check_replay(here, model, noise.to(device)[-len(here.teacher) :], 1e-9)
    if wanted.backpointers is not None:
        assert torch.equal(here.backpointers, wanted.backpointers)
    for budget in here.schedules:
        found = (here.schedules[budget], wanted.schedules[budget])
        for one, other in zip(*found, strict=True) if isinstance(found[0], list) else [found]:
            torch.testing.assert_close(one.t, other.t, rtol=0, atol=0)
            torch.testing.assert_close(one.coefficients, other.coefficients, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(here.costs[budget], wanted.costs[budget], rtol=1e-6, atol=1e-10)
        torch.testing.assert_close(here.endpoints[budget].cpu(), wanted.endpoints[budget], rtol=1e-6, atol=1e-7)
    assert here.nfe == wanted.nfe


def test_a_schedule_says_what_its_search_was_told(tmp_path):
    options = {"teacher_solver": "ab2", "candidates": 9, "beam": 3}
    found = dp_search(mixture(1).flow(), normal(5, 4), 3, teacher_steps=12, **options).schedule
    found.save(tmp_path / "s.json")
    origin = Schedule.load(tmp_path / "s.json").provenance
    assert {name: getattr(origin, name) for name in options} == options
    plain = dp_search(mixture(1).flow(), normal(5, 4), 3, teacher_steps=12, share="per_sample").schedule[0].provenance
    assert plain.teacher_solver == "unipc_2" and plain.candidates is None and plain.beam == 1
