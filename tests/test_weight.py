"""Costs that weigh the numbers of a state: the search sees what they leave of it, and nothing else."""

from __future__ import annotations

import pytest
import torch
from helpers.analytic import mixture, normal
from helpers.counting import Counting

from oss_ext import Schedule, dp_search
from oss_ext.integrations.video import cost_weight
from oss_ext.models import FlowModel
from oss_ext.solvers import Fitted

LEFT, RIGHT = mixture(1, shape=(3,)).flow(), mixture(5).flow()


def both(x, t):
    """Two mixtures side by side, neither of which sees the other."""
    return torch.cat([LEFT.velocity(x[:, :3], t), RIGHT.velocity(x[:, 3:], t)], 1)


MODEL, NOISE = FlowModel(both), normal(6, 7, seed=3)
WEIGHT = torch.tensor([7 / 3] * 3 + [0.0] * 4, dtype=torch.float64)
CASES = [("euler", {}), ("dpmpp_2m", {}), ("mixed", {}), (Fitted(history=2), {}), (Fitted(), {"beam": 2})]
CASES += [("euler", {"share": "median"}), ("ab2", {"share": "per_sample"}), (Fitted(), {"start": "free"})]
CASES += [("euler", {"cost": "x0"}), ("ab2", {"cost": "x0", "share": "per_sample"})]


@pytest.mark.parametrize(("solver", "options"), CASES)
def test_what_has_no_weight_has_no_say(solver, options):
    how = {"teacher_steps": 20, "candidates": 20, "solver": solver, **options}
    weighted = dp_search(MODEL, NOISE, 4, weight=WEIGHT, **how)
    alone = dp_search(LEFT, NOISE[:, :3], 4, **how)
    for budget in range(1, 5):
        mine, own = weighted.schedules[budget], alone.schedules[budget]
        for one, other in zip(*([s] if isinstance(s, Schedule) else s for s in (mine, own)), strict=True):
            assert torch.equal(one.nodes, other.nodes)
            torch.testing.assert_close(one.coefficients, other.coefficients, rtol=1e-6, atol=1e-9)
            assert one.noise_scale == pytest.approx(other.noise_scale, rel=1e-9)
        torch.testing.assert_close(weighted.costs[budget], alone.costs[budget], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(weighted.values, alone.values, rtol=1e-9, atol=1e-12)


def test_ones_change_nothing_and_scale_only_the_costs():
    plain = dp_search(MODEL, NOISE, 3, teacher_steps=16)
    for factor in (1.0, 4.0):
        weighted = dp_search(MODEL, NOISE, 3, teacher_steps=16, weight=torch.full((7,), factor))
        assert torch.equal(weighted.schedule.nodes, plain.schedule.nodes)
        torch.testing.assert_close(weighted.costs[3], factor * plain.costs[3])


def test_costs_are_those_of_a_replay():
    result = dp_search(MODEL, NOISE, 4, teacher_steps=24, solver="fitted", weight=WEIGHT)
    for budget, schedule in result.schedules.items():
        square = (schedule.sample(MODEL, NOISE) - result.teacher).square()
        torch.testing.assert_close((square * WEIGHT).mean(1), result.costs[budget], rtol=1e-9, atol=1e-12)
        assert schedule.provenance.cost == pytest.approx(float((square * WEIGHT).mean()), rel=1e-9)


def test_frames_and_channels_of_a_video():
    model = FlowModel(lambda x, t: torch.sin(3 * x) * t.to(x.dtype).view(-1, 1, 1, 1, 1))
    noise = normal(2, 3, 5, 2, 2)
    weight = cost_weight(noise.shape[1:], frames=2, channels=[1])
    result = dp_search(model, noise, 3, teacher_steps=12, weight=weight, progress=lambda made, total: None)
    part = (result.schedule.sample(model, noise) - result.teacher)[:, 1, [0, 4]]
    torch.testing.assert_close(part.square().mean((1, 2, 3)), result.costs[3], rtol=1e-6, atol=1e-9)


@pytest.mark.gpu
def test_the_gpu_finds_the_same(cuda_device):
    for solver, options in CASES:
        model = FlowModel(lambda x, t: torch.sin(3 * x) * t.to(x.dtype).view(-1, 1) - 0.2 * x)
        how = {"teacher_steps": 20, "solver": solver, **options}
        here = dp_search(model, NOISE, 4, weight=WEIGHT, **how)
        there = dp_search(model, NOISE.to(cuda_device), 4, weight=WEIGHT.to(cuda_device), **how)
        torch.testing.assert_close(there.values, here.values, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"weight": [1.0] * 7}, TypeError, "weight: got list, wanted a floating tensor"),
        ({"weight": torch.ones(7, dtype=torch.int64)}, TypeError, "weight: got a tensor of torch.int64"),
        ({"weight": torch.ones(6)}, ValueError, r"weight: got shape \[6\], wanted \[7\]"),
        ({"weight": torch.ones(7, device="meta")}, ValueError, "weight: got device meta, wanted cpu"),
        ({"weight": -torch.ones(7)}, ValueError, "weight: wanted finite numbers >= 0"),
        ({"weight": torch.zeros(7)}, ValueError, "at least one of them above 0"),
        ({"weight": torch.full((7,), torch.nan)}, ValueError, "weight: wanted finite"),
        ({"weight": WEIGHT, "solver": "auto"}, ValueError, "weight: got one with solver 'auto'"),
        ({"weight": WEIGHT, "refine": "nodes"}, ValueError, "weight: got one with refine 'nodes'"),
    ],
)
def test_bad_input_costs_no_evaluation(options, error, match):
    model = Counting(MODEL)
    with pytest.raises(error, match=match):
        dp_search(model, NOISE, 3, teacher_steps=16, **options)
    assert model.evaluations == 0
