"""gram against the oracle and a hand-computed table, and the least-squares fit that it is for."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from helpers.kernel_inputs import DTYPES, Case, cases, threads
from hypothesis import given

from oss_ext import kernels, reference
from oss_ext.fitting import least_squares


def run(case: Case, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    positional, keywords = case.gram_arguments(device)
    return kernels.gram(*positional, **keywords)


def assert_gram_close(got: tuple[torch.Tensor, torch.Tensor], case: Case) -> None:
    """Sums in double: 64 roundings of the sum without signs are allowed."""
    positional, keywords = case.gram_arguments()
    u0 = case.basis[0].double().abs()
    unsigned = [-u0, *(u.double().abs() for u in case.basis[1:])]
    with threads(1):  # many small torch operations: on a busy machine their threads wait for each other
        expected = reference.gram(*positional, **keywords)
        sizes = reference.gram(unsigned, case.target.double().abs(), **keywords)
    for result, wanted, size in zip(got, expected, sizes, strict=True):
        assert result.dtype == torch.float64 and result.shape == wanted.shape
        error = (result.cpu() - wanted).abs()
        assert (error <= 64 * torch.finfo(torch.float64).eps * size.abs()).all(), error.max().item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hand_table(device: torch.device, dtype: torch.dtype) -> None:
    state = torch.tensor([[[1.0, 2.0], [3.0, 0.0]]], dtype=dtype, device=device)
    output = torch.tensor([[[1.0, 1.0], [0.0, 2.0]]], dtype=dtype, device=device)
    target = torch.tensor([[[9.0, 9.0], [4.0, 8.0]]], dtype=dtype, device=device)
    weight = torch.tensor([1.0, 0.5], device=device)
    products, moment = kernels.gram([state, output], target, weight=weight)
    assert products.tolist() == [[[[3.0, 2.0], [2.0, 1.5]], [[9.0, 0.0], [0.0, 2.0]]]]
    # Only 0 -> 1: y - u_0 = (3, 6); w u_0 = (1, 1), w u_1 = (1, 0.5)
    assert moment.tolist() == [[[[0.0, 0.0], [9.0, 6.0]], [[0.0, 0.0], [0.0, 0.0]]]]
    products, moment = kernels.gram([state, output], target, sources=(1, 2))
    assert products.tolist() == [[[[0.0, 0.0], [0.0, 0.0]], [[9.0, 0.0], [0.0, 4.0]]]]
    assert not moment.any()


@given(case=cases())
def test_oracle(device: torch.device, case: Case) -> None:
    products, moment = got = run(case, device)
    assert_gram_close(got, case)
    assert torch.equal(products, products.transpose(-1, -2))
    for count in (1, 3):
        with threads(count):
            again = run(case, device)
        assert torch.equal(again[0], products) and torch.equal(again[1], moment)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "nodes", "dim", "count"),
    [
        (1, 130, 40, 2),
        (2, 65, 1029, 3),
        (1, 3, 300_007, 2),
        (1, 64, 2051, 4),
        (1, 37, 1025, 5),
        (2, 66, 301, 6),
        (1, 65, 5000, 1),
        (2, 129, 65, 2),
        (2, 100, 16, 3),
        (1, 70, 64, 6),
    ],
)
def test_oracle_across_tiles(
    device: torch.device, dtype: torch.dtype, batch: int, nodes: int, dim: int, count: int
) -> None:
    case = Case(batch, nodes, dim, count, dtype, "sliced", weighted=count != 4, seed=nodes)
    assert_gram_close(run(case, device), case)


def test_normal_equations_give_the_fit(device: torch.device) -> None:
    """With B_p = u_p and y - u_0 in the span of the basis, the solution is the coefficients that made y."""
    g = torch.Generator().manual_seed(0)
    basis = [torch.randn(1, 2, 500, generator=g, dtype=torch.float64) for _ in range(3)]
    wanted = torch.tensor([0.25, -1.5, 3.0], dtype=torch.float64)
    target = torch.zeros(1, 2, 500, dtype=torch.float64)
    target[0, 1] = basis[0][0, 0] + sum(c * u[0, 0] for c, u in zip(wanted, basis, strict=True))
    products, moment = kernels.gram([u.to(device) for u in basis], target.to(device))
    torch.testing.assert_close(torch.linalg.solve(products[0, 0].cpu(), moment[0, 0, 1].cpu()), wanted)


def test_small_step_from_a_large_state(device: torch.device) -> None:
    """Target and state 1e6 with a difference of 1: apart, their sums are 1e12 times as many, and still exact."""
    state = torch.full((1, 2, 1001), 1e6, device=device)
    moment = kernels.gram([state], state + 1)[1]
    assert moment[0, 0, 1, 0].item() == 1001e6


@pytest.mark.parametrize("dim", [61, 5001])
def test_moments_are_as_of_rows_known_to_40_bits(device: torch.device, dim: int) -> None:
    """What fitting is promised: an error below 2^-40 |u_p| (|y| + |u_0|), where the rows come rounded to 2^-24."""
    g = torch.Generator().manual_seed(dim)
    state = 1e4 + torch.randn(1, 2, dim, generator=g)
    output = torch.randn(1, 2, dim, generator=g)
    target = state + 1e-2 * torch.randn(1, 2, dim, generator=g)
    moment = kernels.gram([state.to(device), output.to(device)], target.to(device))[1].cpu()
    u0, y = state[0, 0].double(), target[0, 1].double()
    for p, u in enumerate((u0, output[0, 0].double())):
        exact = math.fsum((u * y).tolist() + (-u * u0).tolist())  # every product is exact in float64
        size = float((u.abs() * (y.abs() + u0.abs())).sum())
        assert abs(moment[0, 0, 1, p].item() - exact) <= 2.0**-40 * size


@pytest.mark.parametrize("apart", [1e-1, 1e-2, 1e-4])
def test_fit_to_nearly_parallel_vectors(device: torch.device, apart: float) -> None:
    """The sums change the fitted coefficients less than rounding the target to float32 does, down to a Gram matrix of
    condition 4e8."""
    g = torch.Generator().manual_seed(3)
    state = torch.randn(257, generator=g)
    output = state + apart * torch.randn(257, generator=g)
    target = state - 0.05 * output + 1e-3 * torch.randn(257, generator=g)
    rows = [torch.stack([u, u]).unsqueeze(0).to(device) for u in (state, output, target)]
    products, moment = (sums[0, :1] for sums in kernels.gram(rows[:2], rows[2]))
    fitted = least_squares(products, moment[:, 1:], torch.zeros(1, 1, 2, device=device).double(), ridge=0.0)[0, 0].cpu()

    u, v, y = ([Fraction(x) for x in row.tolist()] for row in (state, output, target))

    def dot(a: list[Fraction], b: list[Fraction]) -> Fraction:
        return sum((x * z for x, z in zip(a, b, strict=True)), Fraction(0))

    uu, uv, vv = dot(u, u), dot(u, v), dot(v, v)

    def exact(y: list[Fraction]) -> torch.Tensor:
        mu, mv = dot(u, y), dot(v, y)
        solved = [(vv * mu - uv * mv) / (uu * vv - uv * uv), (uu * mv - uv * mu) / (uu * vv - uv * uv)]
        return torch.tensor([float(x) for x in solved], dtype=torch.float64)

    error = (fitted - exact([b - a for a, b in zip(u, y, strict=True)]) - torch.tensor([1.0, 0.0])).norm()
    changes = []
    for _ in range(8):
        rounding = target.double() * 2**-25 * (2 * torch.rand(257, generator=g) - 1)
        changes.append(exact([Fraction(x) for x in rounding.tolist()]).norm())
    assert error < sum(changes) / len(changes), (error, changes)


@pytest.mark.parametrize("dim", [40, 3001])
def test_equal_vectors_have_equal_sums(device: torch.device, dim: int) -> None:
    """So that their Gram matrix is exactly singular, and the fit leaves one of them out."""
    case = Case(2, 40, dim, 3, torch.float32, weighted=True, seed=4)
    case.basis[2] = case.basis[1].clone()
    products, moment = run(case, device)
    assert torch.equal(products[..., 1, :], products[..., 2, :]) and torch.equal(moment[..., 1], moment[..., 2])


@pytest.mark.parametrize("dim", [5, 1029])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bad_numbers_spoil_only_their_pairs(device: torch.device, dtype: torch.dtype, dim: int) -> None:
    case = Case(2, 7, dim, 2, dtype, seed=1)
    clean = run(case, device)
    case.basis[1][1, 3, dim - 1] = math.nan
    case.target[0, 5, 0] = math.inf
    products, moment = run(case, device)
    bad_products = torch.zeros(2, 7, 2, 2, dtype=torch.bool, device=device)
    bad_products[1, 3] = True
    bad_products[1, 3, 0, 0] = False
    bad_moment = torch.zeros(2, 7, 7, 2, dtype=torch.bool, device=device)
    bad_moment[1, 3, 4:, 1] = True
    bad_moment[0, :5, 5] = True
    assert torch.equal(products.isfinite(), ~bad_products) and torch.equal(moment.isfinite(), ~bad_moment)
    assert torch.equal(products[~bad_products], clean[0][~bad_products])
    assert torch.equal(moment[~bad_moment], clean[1][~bad_moment])


def test_empty_batch_and_single_node(device: torch.device) -> None:
    products, moment = run(Case(0, 4, 3), device)
    assert products.shape == (0, 4, 2, 2) and moment.shape == (0, 4, 4, 2)
    case = Case(2, 1, 3)
    assert_gram_close(run(case, device), case)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("basis", [], "basis"),
        ("basis", [torch.zeros(2, 4, 6)] * 7, "basis.*7.*1 to 6"),
        ("basis", [torch.zeros(2, 4, 0)], "basis.*0"),
        ("target", torch.zeros(2, 3, 6), "target.*3"),
        ("target", torch.zeros(2, 4, 6).double(), "target.*float64"),
        ("weight", torch.zeros(2), "weight.*2"),
        ("sources", (2, 9), "sources.*9"),
    ],
)
def test_errors_name_the_argument(device: torch.device, name: str, value: Any, match: str) -> None:
    if isinstance(value, torch.Tensor):
        value = value.to(device)
    elif isinstance(value, list):
        value = [v.to(device) for v in value]
    rows = torch.zeros(2, 4, 6, device=device)
    with pytest.raises((ValueError, TypeError), match=match):
        kernels.gram(**{"basis": [rows], "target": rows, name: value})
