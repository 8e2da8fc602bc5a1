"""A part of the samples, told how many there are in all: every sample's bits are those of one call for all."""

from __future__ import annotations

import pytest
import torch
from helpers.kernel_inputs import DTYPES, Case

from oss_ext import kernels

PARTS = [(0, 1), (1, 1), (1, 4), (4, 9)]
SIZES = [(9, 24, 4099, 2), (9, 6, 65, 3), (9, 40, 300, 4), (9, 3, 20000, 2), (9, 8, 17, 2)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "nodes", "dim", "count"), SIZES)
def test_parts_have_the_bits_of_the_whole(device, batch, nodes, dim, count, dtype, weighted):
    case = Case(batch, nodes, dim, count, dtype, weighted=weighted, sources=(1, nodes - 1), seed=dim)
    (basis, coefficients, target), keywords = case.cost_arguments(device)
    joint = dim > kernels.LONGEST_SUMMED
    whole = kernels.pairwise_cost(basis, coefficients, target, **keywords, joint=joint)
    assert whole.shape == (batch, nodes, nodes)
    (_, _), gram_keywords = case.gram_arguments(device)
    sums = kernels.gram(basis, target, **gram_keywords)
    states = kernels.advance(basis, coefficients, kernels.min_reduce(whole, joint=True)[1])
    for low, high in PARTS:
        mine = [vectors[low:high] for vectors in basis]
        cost = kernels.pairwise_cost(mine, coefficients, target[low:high], **keywords, joint=joint, samples=batch)
        assert torch.equal(cost, whole[low:high])
        for got, wanted in zip(kernels.gram(mine, target[low:high], **gram_keywords, samples=batch), sums, strict=True):
            assert torch.equal(got, wanted[low:high])
        moved = kernels.advance(mine, coefficients, kernels.min_reduce(whole, joint=True)[1])
        assert torch.equal(moved.nan_to_num(), states[low:high].nan_to_num())


def test_long_rows_of_many_samples_are_cut_as_for_all():
    """On the CPU few tiles are cut into more parts than many are, so that without the number the bits may differ."""
    case = Case(200, 6, 40000, 2, torch.float64, layout="expanded", target_layout="expanded", seed=1)
    (basis, coefficients, target), keywords = case.cost_arguments(torch.device("cpu"))
    whole = kernels.pairwise_cost(basis, coefficients, target, **keywords)
    (mine, goal) = [u[:1] for u in basis], target[:1]
    assert torch.equal(kernels.pairwise_cost(mine, coefficients, goal, **keywords, samples=200), whole[:1])
    assert not torch.equal(kernels.pairwise_cost(mine, coefficients, goal, **keywords), whole[:1])


def test_no_samples(device):
    case = Case(3, 6, 5, 2)
    (basis, coefficients, target), keywords = case.cost_arguments(device)
    none = [vectors[:0] for vectors in basis]
    for joint in (False, True):
        cost = kernels.pairwise_cost(none, coefficients, target[:0], **keywords, joint=joint, samples=3)
        assert cost.shape[1:] == (6, 6)
    assert [len(each) for each in kernels.gram(none, target[:0], samples=3)] == [0, 0]
