"""pairwise_cost(joint=True): sums over groups of samples, which min_reduce completes."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.kernel_inputs import DTYPES, LAYOUTS, Case, assert_cost_close, cases, threads
from hypothesis import given

from oss_ext import kernels, reference


def run(case: Case, device: torch.device, joint: bool = True) -> torch.Tensor:
    positional, keywords = case.cost_arguments(device)
    return kernels.pairwise_cost(*positional, **keywords, joint=joint)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hand_table(device: torch.device, dtype: torch.dtype) -> None:
    # Node states (1, 2), (3, 0) and (2, 2), (1, 1), kept by the step; targets (0, 0), (2, 4) and (5, 5), (2, 3).
    state = torch.tensor([[[1.0, 2.0], [3.0, 0.0]], [[2.0, 2.0], [1.0, 1.0]]], dtype=dtype, device=device)
    target = torch.tensor([[[0.0, 0.0], [2.0, 4.0]], [[5.0, 5.0], [2.0, 3.0]]], dtype=dtype, device=device)
    weight = torch.tensor([2.0, 1.0], device=device)
    cost = kernels.pairwise_cost([state], torch.ones(2, 2, 1, device=device), target, weight=weight, joint=True)
    values, backpointers = kernels.min_reduce(cost, joint=True)
    # (2 * 1 + 4) / 2 + (0 + 1) / 2
    assert values.tolist() == [math.inf, 3.5] and backpointers.tolist() == [-1, 0]


@given(case=cases())
def test_oracle(device: torch.device, case: Case) -> None:
    assert_cost_close(run(case, device), case, joint=True)


MANY = [(521, 7, 16, 2), (173, 67, 3, 1), (523, 5, 1, 3), (517, 9, 60, 4), (514, 11, 7, 5), (67, 41, 31, 6)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "nodes", "dim", "count"), MANY)
def test_oracle_many_samples(
    device: torch.device, dtype: torch.dtype, batch: int, nodes: int, dim: int, count: int
) -> None:
    """Every dtype with shared and with own coefficients, with and without weights, in every memory layout."""
    k = DTYPES.index(dtype) + count
    layout = LAYOUTS[k % len(LAYOUTS)]
    sources = (1, nodes - 2) if k % 3 == 0 else None
    case = Case(
        batch, nodes, dim, count, dtype, layout, LAYOUTS[(k + 1) % 4], k % 2 == 0, count % 2 == 0, True, sources, seed=k
    )
    assert_cost_close(run(case, device), case, joint=True)
    if dtype == torch.float32:  # a block of the CUDA kernel goes through samples here too
        assert_cost_close(run(case, device, joint=False), case)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("count", range(1, kernels.MAX_BASIS + 1))
def test_oracle_every_count(device: torch.device, count: int, shared: bool, weighted: bool) -> None:
    case = Case(257, 7, 12, count, shared=shared, weighted=weighted, seed=count)
    assert_cost_close(run(case, device), case, joint=True)


@pytest.mark.parametrize(("batch", "nodes", "dim"), [(521, 13, 16), (300, 70, 5)])
def test_short_rows_leave_few_parts(device: torch.device, batch: int, nodes: int, dim: int) -> None:
    assert run(Case(batch, nodes, dim), device).shape[0] <= (batch + 1) // 2


@pytest.mark.parametrize(("batch", "nodes", "dim"), [(257, 40, 16), (5, 33, 400), (530, 11, 3)])
def test_same_winners_as_sums_of_costs(device: torch.device, batch: int, nodes: int, dim: int) -> None:
    case = Case(batch, nodes, dim, 2, torch.float64, shared=dim != 400, seed=batch)
    values, backpointers = kernels.min_reduce(run(case, device), joint=True)
    wanted_values, wanted = kernels.min_reduce(run(case, device, joint=False), joint=True)
    assert torch.equal(backpointers, wanted)
    torch.testing.assert_close(values, wanted_values, rtol=1e-13, atol=0)


def test_many_samples_keep_float_accuracy(device: torch.device) -> None:
    """Equal squares of 0.1: one running float sum over them would be off by 1e-4; short sums of sums are not."""
    batch = 40_009
    state = torch.full((batch, 2, 16), 0.1, device=device)
    cost = kernels.pairwise_cost([state], torch.ones(2, 2, 1, device=device), torch.zeros_like(state), joint=True)
    got = kernels.min_reduce(cost, joint=True)[0][1].item()
    assert got == pytest.approx(batch * float(torch.tensor(0.1)) ** 2, rel=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("batch", "nodes", "dim"), [(257, 70, 16), (3, 3, 70_001), (530, 9, 5)])
def test_repeatable(device: torch.device, dtype: torch.dtype, batch: int, nodes: int, dim: int) -> None:
    case = Case(batch, nodes, dim, 2, dtype, weighted=True, seed=3)
    first = run(case, device)
    for count in (1, 2, 3, 5):
        with threads(count):
            assert torch.equal(run(case, device), first)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "dim"), [(2, 5), (530, 5), (530, 19), (3, 300)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_bad_sample_rules_its_pairs_out(
    device: torch.device, dtype: torch.dtype, batch: int, dim: int, bad: float
) -> None:
    clean = run(Case(batch, 9, dim, 2, dtype, seed=11), device)

    def check(case: Case, spoiled: torch.Tensor) -> None:
        """One group has no finite cost at the spoiled pairs; nothing else is touched."""
        cost = run(case, device).cpu()
        spoiled = spoiled & torch.ones(9, 9, dtype=torch.bool).triu(1)
        changed = (cost != clean.cpu()).any(dim=(1, 2)).nonzero()[:, 0].tolist()
        assert len(changed) == 1
        assert not cost[changed[0]][spoiled].isfinite().any()
        cost[changed[0]][spoiled] = clean.cpu()[changed[0]][spoiled]
        assert torch.equal(cost, clean.cpu())
        _, backpointers = kernels.min_reduce(run(case, device), joint=True)
        winners = [(i, j) for j, i in enumerate(backpointers.tolist()) if i >= 0]
        assert not any(spoiled[i, j] for i, j in winners)

    rows, columns = torch.arange(9)[:, None].expand(9, 9), torch.arange(9).expand(9, 9)
    case = Case(batch, 9, dim, 2, dtype, seed=11)
    case.basis[1][batch - 1, 4, dim - 1] = bad
    check(case, rows == 4)
    case = Case(batch, 9, dim, 2, dtype, seed=11)
    case.target[batch // 2, 6, dim // 2] = bad
    check(case, columns == 6)


def test_empty_batch_and_single_node(device: torch.device) -> None:
    assert run(Case(0, 5, 8), device).shape == (0, 5, 5)
    single = run(Case(3, 1, 8), device)
    assert 1 <= single.shape[0] <= 3 and single.isposinf().all()
    nothing = run(Case(300, 6, 8, sources=(2, 2)), device)
    assert 1 <= nothing.shape[0] <= 300 and nothing.isposinf().all()


def test_argmins_are_the_oracles(device: torch.device) -> None:
    case = Case(130, 20, 10, 3, torch.float64, seed=8)
    positional, keywords = case.cost_arguments()
    with threads(1):
        expected = reference.min_reduce(reference.pairwise_cost(*positional, **keywords, joint=True), joint=True)
    got = kernels.min_reduce(run(case, device), joint=True)
    assert torch.equal(got[1].cpu(), expected[1])
    torch.testing.assert_close(got[0].cpu(), expected[0], rtol=1e-12, atol=0)
