"""min_reduce against hand-written tables with exact argmins, and bit by bit against the oracle."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.kernel_inputs import threads
from hypothesis import given
from hypothesis import strategies as st

from oss_ext import kernels, reference

INF, NAN = math.inf, math.nan
TINY = 5e-324

# One column of candidates a row; value and argmin.
COLUMNS = [
    ([1.0, 2.0, 3.0], 1.0, 0),
    ([3.0, 2.0, 1.0], 1.0, 2),
    ([2.0, 1.0, 1.0], 1.0, 1),  # a tie: the smaller index, the longer step
    ([0.0, -0.0, 0.0], 0.0, 0),
    ([-0.0, 0.0, 0.0], 0.0, 0),
    ([NAN, 5.0, 4.0], 4.0, 2),
    ([4.0, NAN, 4.0], 4.0, 0),
    ([NAN, NAN, 7.0], 7.0, 2),
    ([NAN, NAN, NAN], INF, -1),
    ([INF, INF, INF], INF, -1),
    ([INF, NAN, -INF], INF, -1),
    ([-INF, 8.0, 9.0], 8.0, 1),
    ([INF, 3e38, INF], 3e38, 1),
    ([-1.0, -2.0, -2.0], -2.0, 1),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("joint", [False, True])
def test_hand_table(device: torch.device, dtype: torch.dtype, joint: bool) -> None:
    cost = torch.tensor([column for column, _, _ in COLUMNS], dtype=dtype, device=device).T[None].contiguous()
    values, backpointers = kernels.min_reduce(cost, joint=joint)
    assert values.dtype == torch.float64 and backpointers.dtype == torch.int32
    shape = (len(COLUMNS),) if joint else (1, len(COLUMNS))
    assert values.shape == backpointers.shape == shape
    expected = torch.tensor([value for _, value, _ in COLUMNS], dtype=torch.float64).to(dtype).double()
    assert torch.equal(values.flatten().cpu(), expected)
    assert backpointers.flatten().tolist() == [i for _, _, i in COLUMNS]


def test_denormals_differ(device: torch.device) -> None:
    cost = torch.tensor([[[2 * TINY], [TINY], [TINY]]], dtype=torch.float64, device=device)
    values, backpointers = kernels.min_reduce(cost)
    assert values.item() == TINY and backpointers.item() == 1


def test_joint_sums_before_the_minimum(device: torch.device) -> None:
    # Columns: each sample has a winner of its own; a NaN, and an infinity, in one sample rule the source out for all.
    first = [[1.0, 0.0, 2.0, 5.0], [3.0, 9.0, 1.0, 5.0], [9.0, NAN, INF, 5.0]]
    second = [[9.0, NAN, 2.0, -INF], [2.0, 1.0, 1.0, 4.0], [1.0, 0.0, 0.0, 4.0]]
    cost = torch.tensor([first, second], device=device)
    values, backpointers = kernels.min_reduce(cost, joint=True)
    assert values.tolist() == [5.0, 10.0, 2.0, 9.0]
    assert backpointers.tolist() == [1, 1, 1, 1]
    # +inf and -inf of two samples make a NaN, which does not win either.
    opposed = torch.tensor([[[INF], [1.0]], [[-INF], [1.0]]], device=device)
    assert [x.item() for x in kernels.min_reduce(opposed, joint=True)] == [2.0, 1]


def test_joint_sums_in_double_and_in_order(device: torch.device) -> None:
    # In float 2^24 + 1 is 2^24; in double, in order, 2^53 + 1 + 1 stays 2^53, and 1 + 1 + 2^53 does not.
    cost = torch.tensor([[[2.0**24]], [[1.0]], [[1.0]]], device=device)
    assert kernels.min_reduce(cost, joint=True)[0].item() == 2.0**24 + 2
    cost = torch.tensor([[[2.0**53]], [[1.0]], [[1.0]]], device=device, dtype=torch.float64)
    assert kernels.min_reduce(cost, joint=True)[0].item() == 2.0**53
    assert kernels.min_reduce(cost.flip(0).contiguous(), joint=True)[0].item() == 2.0**53 + 2


@given(
    batch=st.integers(0, 5),
    sources=st.sampled_from([1, 2, 7, 32, 33, 129]),
    targets=st.sampled_from([1, 2, 31, 64, 257, 300]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["contiguous", "sliced", "expanded", "transposed"]),
    levels=st.sampled_from([0, 3]),
    seed=st.integers(0, 2**31),
)
def test_oracle(
    device: torch.device,
    batch: int,
    sources: int,
    targets: int,
    dtype: torch.dtype,
    layout: str,
    levels: int,
    seed: int,
) -> None:
    """levels > 0: few distinct costs, so that nearly every column has ties; a tenth of the costs is NaN or infinite."""
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "contiguous": (batch, sources, targets),
        "sliced": (batch, sources + 1, targets + 3),
        "expanded": (1, sources, targets),
        "transposed": (sources, batch, targets),
    }
    full = torch.randn(shapes[layout], generator=g, dtype=dtype)
    if levels:
        full = torch.randint(levels, full.shape, generator=g).to(dtype)
    lot = torch.rand(full.shape, generator=g)
    full[lot < 0.1] = INF
    full[lot < 0.07] = NAN
    full[lot < 0.02] = -INF
    views = {
        "contiguous": lambda x: x,
        "sliced": lambda x: x[:, 1:, 1 : targets + 1],
        "expanded": lambda x: x.expand(batch, sources, targets),
        "transposed": lambda x: x.transpose(0, 1),
    }
    cost, on_device = views[layout](full), views[layout](full.to(device))
    for joint in (False, True):
        expected_values, expected = reference.min_reduce(cost, joint=joint)
        values, backpointers = kernels.min_reduce(on_device, joint=joint)
        assert torch.equal(backpointers.cpu(), expected)
        assert torch.equal(values.cpu(), expected_values)
        for count in (1, 3):
            with threads(count):
                again = kernels.min_reduce(on_device, joint=joint)
            assert torch.equal(again[0], values) and torch.equal(again[1], backpointers)


def test_large(device: torch.device) -> None:
    """Big enough for several threads and blocks; torch.min breaks ties as it likes, so there are none."""
    cost = torch.randperm(3 * 1001 * 1001, generator=torch.Generator().manual_seed(0)).double().view(3, 1001, 1001)
    values, backpointers = kernels.min_reduce(cost.to(device))
    expected_values, expected = cost.min(dim=1)
    assert torch.equal(values.cpu(), expected_values) and torch.equal(backpointers.cpu(), expected.int())
    values, backpointers = kernels.min_reduce(cost.to(device), joint=True)
    expected_values = cost.sum(dim=0).min(dim=0).values
    assert torch.equal(values.cpu(), expected_values)


@pytest.mark.parametrize(
    ("shape", "joint"),
    [((0, 3, 4), False), ((0, 3, 4), True), ((2, 0, 4), False), ((2, 0, 4), True), ((2, 3, 0), False)],
)
def test_empty(device: torch.device, shape: tuple[int, int, int], joint: bool) -> None:
    """No sources: unreached. No samples: a joint cost is an empty sum, 0 for every source."""
    cost = torch.empty(shape, device=device)
    values, backpointers = kernels.min_reduce(cost, joint=joint)
    expected_values, expected = reference.min_reduce(cost, joint=joint)
    assert torch.equal(values.cpu(), expected_values.cpu()) and torch.equal(backpointers.cpu(), expected.cpu())


@pytest.mark.parametrize(
    "cost",
    [
        torch.zeros(3, 4),
        torch.zeros(2, 3, 4, dtype=torch.float16),
        torch.zeros(2, 3, 4, dtype=torch.int64),
        torch.zeros(2, 3, 8)[..., ::2],
        [[1.0]],
    ],
    ids=["rank", "half", "integer", "strided", "list"],
)
def test_errors_name_the_argument(device: torch.device, cost: Any) -> None:
    if isinstance(cost, torch.Tensor):
        cost = cost.to(device) if cost.is_contiguous() else torch.zeros(2, 3, 8, device=device)[..., ::2]
    with pytest.raises((ValueError, TypeError), match="cost"):
        kernels.min_reduce(cost)
