"""advance against the oracle and a hand-computed table; its states are those that pairwise_cost scored."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.kernel_inputs import DTYPES, Case, cases, threads
from hypothesis import given
from hypothesis import strategies as st

from oss_ext import kernels, reference


def pointers_of(case: Case, shared: bool) -> torch.Tensor:
    g = torch.Generator().manual_seed(case.seed + 1)
    shape = (case.nodes,) if shared else (case.batch, case.nodes)
    return torch.randint(-1, case.nodes, shape, generator=g, dtype=torch.int32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hand_table(device: torch.device, dtype: torch.dtype) -> None:
    state = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]], dtype=dtype, device=device)
    output = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]], dtype=dtype, device=device)
    coefficients = torch.zeros(3, 3, 2, device=device)
    coefficients[0, 1] = torch.tensor([1.0, -0.5])
    coefficients[1, 2] = torch.tensor([2.0, 4.0])
    backpointers = torch.tensor([-1, 0, 1], dtype=torch.int32, device=device)
    got = kernels.advance([state, output], coefficients, backpointers)
    assert got.dtype == dtype and got.shape == state.shape
    assert got[0, 0].isnan().all()
    assert got[0, 1:].tolist() == [[0.5, 2.0], [6.0, 12.0]]


@given(case=cases(), shared=st.booleans())
def test_oracle(device: torch.device, case: Case, shared: bool) -> None:
    (basis, coefficients, _), _ = case.cost_arguments(device)
    backpointers = pointers_of(case, shared)
    got = kernels.advance(basis, coefficients, backpointers.to(device))
    expected = reference.advance(case.basis, case.coefficients, backpointers)
    assert got.dtype == case.dtype and got.shape == expected.shape
    # Sums in the accumulate dtype, then one rounding to the basis dtype; the terms may cancel.
    size = reference.advance([u.abs() for u in case.basis], case.coefficients.abs(), backpointers).double()
    sum_eps = torch.finfo(torch.float64 if case.dtype == torch.float64 else torch.float32).eps
    allowed = 8 * sum_eps * size + torch.finfo(case.dtype).eps * expected.double().abs() + torch.finfo(case.dtype).tiny
    reached = (backpointers >= 0).expand(case.batch, case.nodes)
    assert got.cpu()[~reached].isnan().all()
    error = (got.cpu().double() - expected.double()).abs()
    assert (error[reached] <= allowed[reached]).all()
    for count in (1, 3):
        with threads(count):
            again = kernels.advance(basis, coefficients, backpointers.to(device))
        assert torch.equal(again.isnan(), got.isnan()) and torch.equal(again[again == again], got[got == got])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_goes_through_unchanged(device: torch.device, dtype: torch.dtype) -> None:
    """All 2^16 bit patterns, read, multiplied by 1 and written: subnormals, infinities and NaN too."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)[None, None].to(device)
    zero = torch.zeros(1, dtype=torch.int32, device=device)
    got = kernels.advance([every], torch.ones(1, 1, 1, device=device), zero)
    assert torch.equal(got.isnan(), every.isnan())
    known = ~every.isnan()
    assert torch.equal(got[known].view(torch.int16), every[known].view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounds_to_nearest_even(device: torch.device, dtype: torch.dtype) -> None:
    """Products of a half and a float lie between the halves; torch rounds the same float product once."""
    g = torch.Generator().manual_seed(0)
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
    finite = every[every.isfinite()]
    for factor in [0.5, 1.5, 1 + 2.0**-9, 1 + 2.0**-12, *torch.rand(5, generator=g).tolist(), 1e-5, 7e4]:
        factor = torch.tensor(factor)
        expected = (finite.float() * factor).to(dtype)
        zero = torch.zeros(1, dtype=torch.int32, device=device)
        got = kernels.advance([finite[None, None].to(device)], factor.view(1, 1, 1).to(device), zero)
        assert torch.equal(got[0, 0].cpu(), expected)


def test_winners_are_what_was_scored(device: torch.device) -> None:
    case = Case(3, 20, 77, 2, torch.float64, shared=False, seed=2)
    (basis, coefficients, target), _ = case.cost_arguments(device)
    values, backpointers = kernels.min_reduce(kernels.pairwise_cost(basis, coefficients, target))
    state = kernels.advance(basis, coefficients, backpointers)
    reached = backpointers >= 0
    assert reached[:, 1:].all() and not reached[:, 0].any()
    distance = ((state - target) ** 2).mean(dim=-1)
    torch.testing.assert_close(distance[reached], values[reached], rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bad_numbers_spoil_only_their_rows(device: torch.device, dtype: torch.dtype) -> None:
    case = Case(2, 5, 21, 2, dtype, seed=4)
    backpointers = torch.tensor([-1, 0, 0, 2, 3], dtype=torch.int32, device=device)

    def run() -> torch.Tensor:
        (basis, coefficients, _), _ = case.cost_arguments(device)
        return kernels.advance(basis, coefficients, backpointers)[:, 1:].cpu()

    clean = run()
    case.basis[0][1, 2, 20] = math.nan
    case.coefficients[3, 4, 1] = math.inf
    case.coefficients[0, 3] = math.nan  # not taken
    got = run()
    spoiled = torch.zeros(2, 4, 21, dtype=torch.bool)
    spoiled[1, 2, 20] = True
    spoiled[:, 3] = True
    assert not got[spoiled].isfinite().any()
    assert torch.equal(got[~spoiled], clean[~spoiled])


def test_empty_batch_and_single_node(device: torch.device) -> None:
    for batch, nodes in ((0, 4), (2, 1)):
        rows = torch.ones(batch, nodes, 3, device=device)
        backpointers = torch.full((nodes,), -1, dtype=torch.int32, device=device)
        got = kernels.advance([rows], torch.ones(nodes, nodes, 1, device=device), backpointers)
        assert got.shape == rows.shape and got.isnan().all()


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("basis", [], "basis"),
        ("basis", [torch.zeros(2, 4, 6)] * 7, "basis.*7.*1 to 6"),
        ("coefficients", torch.zeros(4, 4, 2), "coefficients.*2"),
        ("backpointers", torch.zeros(4, dtype=torch.int64), "backpointers.*int64"),
        ("backpointers", torch.zeros(5, dtype=torch.int32), "backpointers.*5"),
        ("backpointers", torch.zeros(3, 4, dtype=torch.int32), "backpointers.*3"),
        ("backpointers", torch.zeros(8, dtype=torch.int32)[::2], "backpointers.*stride"),
        ("backpointers", None, "backpointers"),
    ],
)
def test_errors_name_the_argument(device: torch.device, name: str, value: Any, match: str) -> None:
    if isinstance(value, torch.Tensor):
        value = value.to(device) if value.is_contiguous() else torch.zeros(8, dtype=value.dtype, device=device)[::2]
    elif isinstance(value, list):
        value = [v.to(device) for v in value]
    arguments = {
        "basis": [torch.zeros(2, 4, 6, device=device)],
        "coefficients": torch.zeros(4, 4, 1, device=device),
        "backpointers": torch.zeros(4, dtype=torch.int32, device=device),
    }
    with pytest.raises((ValueError, TypeError), match=match):
        kernels.advance(**{**arguments, name: value})
