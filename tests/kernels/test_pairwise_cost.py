"""pairwise_cost against the oracle and hand-computed tables: repeatable, NaN contained, accurate at large D."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.kernel_inputs import DTYPES, Case, assert_cost_close, cases, move, threads
from hypothesis import given

from oss_ext import kernels, reference

INF = math.inf


def run(case: Case, device: torch.device, **replace: Any) -> torch.Tensor:
    positional, keywords = case.cost_arguments(device)
    return kernels.pairwise_cost(*positional, **{**keywords, **replace})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hand_table(device: torch.device, dtype: torch.dtype) -> None:
    # Node states (1, 2), (3, 0), (0, 4); a step multiplies the state by j + 1. Target rows (0, 0), (2, 4), (4, 6).
    state = torch.tensor([[[1.0, 2.0], [3.0, 0.0], [0.0, 4.0]]], dtype=dtype, device=device)
    target = torch.tensor([[[0.0, 0.0], [2.0, 4.0], [4.0, 6.0]]], dtype=dtype, device=device)
    coefficients = torch.tensor([1.0, 2.0, 3.0], device=device).expand(3, 3)[..., None]
    # 0->1: (2,4)-(2,4); 0->2: (3,6)-(4,6); 1->2: (9,0)-(4,6)
    expected = torch.tensor([[[INF, 0.0, 0.5], [INF, INF, 30.5], [INF, INF, INF]]])
    got = kernels.pairwise_cost([state], coefficients, target)
    assert torch.equal(got.cpu().float(), expected)
    weighted = kernels.pairwise_cost(
        [state],
        coefficients,
        target,
        weight=torch.tensor([2.0, 0.5], device=device),
        target_weight=torch.tensor([9.0, 5.0, 4.0], device=device),
        sources=(1, 2),
    )
    # 1->2: 4 / 2 (2 * 25 + 0.5 * 36)
    assert torch.equal(weighted.cpu().float(), torch.tensor([[[INF, INF, INF], [INF, INF, 136.0], [INF, INF, INF]]]))


@given(case=cases())
def test_oracle(device: torch.device, case: Case) -> None:
    assert_cost_close(run(case, device), case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "nodes", "dim", "count"),
    [
        (1, 130, 40, 2),
        (2, 65, 1029, 3),
        (1, 129, 9, 1),
        (1, 64, 3001, 4),
        (1, 67, 1031, 5),
        (2, 71, 777, 6),
        (1, 40, 52, 6),  # CUDA: the longest rows of six vectors that go to the kernel for short rows
        (1, 40, 53, 6),
    ],
)
def test_oracle_across_tiles(
    device: torch.device, dtype: torch.dtype, batch: int, nodes: int, dim: int, count: int
) -> None:
    case = Case(
        batch, nodes, dim, count, dtype, shared=False, weighted=count in (3, 5), target_weighted=True, seed=nodes
    )
    assert_cost_close(run(case, device), case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_dims(device: torch.device, dtype: torch.dtype) -> None:
    case = Case(1, 3, 2_000_003, 2, dtype, "sliced", weighted=True, seed=7)
    assert_cost_close(run(case, device), case)


def test_many_dims_keep_float_accuracy(device: torch.device) -> None:
    """Equal squares of 0.1: a running float sum would be off by 1e-2 at this length; blocks of sums are not."""
    dim = 4_000_001
    state = torch.full((1, 2, dim), 0.1, device=device)
    got = kernels.pairwise_cost([state], torch.ones(2, 2, 1, device=device), torch.zeros_like(state))[0, 0, 1].item()
    assert got == pytest.approx(float(torch.tensor(0.1)) ** 2, rel=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("nodes", "dim"), [(70, 200), (3, 70_001), (40, 16)])
def test_repeatable(device: torch.device, dtype: torch.dtype, nodes: int, dim: int) -> None:
    case = Case(2, nodes, dim, 2, dtype, weighted=True, seed=3)
    first = run(case, device)
    for count in (1, 2, 3, 5):
        with threads(count):
            assert torch.equal(run(case, device), first)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [5, 19, 300, 1029])
@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
def test_bad_numbers_spoil_only_their_pairs(device: torch.device, dtype: torch.dtype, dim: int, bad: float) -> None:
    case = Case(2, 9, dim, 2, dtype, seed=11)
    clean = run(case, device)
    upper = torch.ones(9, 9, dtype=torch.bool).triu(1).to(device)

    def check(cost: torch.Tensor, spoiled: torch.Tensor) -> None:
        spoiled = spoiled.to(device) & upper
        assert torch.equal(cost[~spoiled], clean[~spoiled])
        hit = cost[spoiled]
        assert (hit.isnan() if math.isnan(bad) else hit.isnan() | hit.isposinf()).all()

    where = torch.zeros(2, 9, 9, dtype=torch.bool)
    where[1, 4, :] = True
    case.basis[1][1, 4, dim - 1] = bad
    check(run(case, device), where)
    case = Case(2, 9, dim, 2, dtype, seed=11)
    case.target[0, 6, dim // 2] = bad
    where = torch.zeros(2, 9, 9, dtype=torch.bool)
    where[0, :, 6] = True
    check(run(case, device), where)
    case = Case(2, 9, dim, 2, dtype, seed=11)
    case.coefficients[3, 5, 0] = bad
    where = torch.zeros(2, 9, 9, dtype=torch.bool)
    where[:, 3, 5] = True
    check(run(case, device), where)
    # No zero of a padded tail may meet the infinity. (On CUDA it may, and the cost is NaN: no winner either.)
    if math.isinf(bad) and device.type == "cpu":
        assert run(case, device)[:, 3, 5].isposinf().all()
    # Below the diagonal nothing is read.
    case = Case(2, 9, dim, 2, dtype, seed=11)
    case.coefficients[torch.ones(9, 9, dtype=torch.bool).tril()] = bad
    check(run(case, device), torch.zeros(2, 9, 9, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_argmins(device: torch.device, dtype: torch.dtype) -> None:
    """What the costs are for: the same winners as the oracle's costs, exactly in float64, by value in float32."""
    case = Case(4, 40, 300, 2, dtype, shared=False, seed=5)
    positional, keywords = case.cost_arguments()
    oracle = reference.pairwise_cost(*(positional), **keywords)
    expected_values, expected = reference.min_reduce(oracle)
    values, backpointers = (x.cpu() for x in kernels.min_reduce(run(case, device)))
    if dtype == torch.float64:
        assert torch.equal(backpointers, expected)
    assert torch.equal(backpointers < 0, expected < 0)
    reached = expected >= 0
    chosen = oracle.double().gather(1, backpointers.clamp(min=0).long()[:, None])[:, 0]
    torch.testing.assert_close(chosen[reached], expected_values[reached], rtol=1e-5, atol=0)
    torch.testing.assert_close(values[reached], expected_values[reached], rtol=1e-5, atol=0)


def test_empty_batch_and_single_node(device: torch.device) -> None:
    assert run(Case(0, 5, 8), device).shape == (0, 5, 5)
    assert torch.equal(run(Case(2, 1, 8), device).cpu(), torch.full((2, 1, 1), INF))


def arguments(device: torch.device) -> dict[str, Any]:
    rows = torch.zeros(2, 4, 6, device=device)
    return {"basis": [rows, rows], "coefficients": torch.zeros(4, 4, 2, device=device), "target": rows}


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("basis", [], "basis"),
        ("basis", [torch.zeros(2, 4, 6)] * 7, "basis.*7.*1 to 6"),
        ("basis", torch.zeros(2, 4, 6), "basis"),
        ("basis", [None], "basis"),
        ("basis", [torch.zeros(4, 6)], "basis"),
        ("basis", [torch.zeros(2, 4, 6), torch.zeros(2, 5, 6)], r"basis\[1\].*5"),
        ("basis", [torch.zeros(2, 4, 6), torch.zeros(2, 4, 6).double()], r"basis\[1\].*float64"),
        ("basis", [torch.zeros(2, 4, 6, dtype=torch.int32)] * 2, "basis.*int32"),
        ("basis", [torch.zeros(2, 6, 4).transpose(1, 2)] * 2, "basis.*stride"),
        ("target", torch.zeros(2, 4, 7), "target.*7"),
        ("target", torch.zeros(2, 4, 6).half(), "target.*float16"),
        ("target", torch.zeros(2, 4, 12)[..., ::2], "target.*stride"),
        ("target", [1.0], "target.*list"),
        ("coefficients", torch.zeros(4, 4, 3), "coefficients.*3"),
        ("coefficients", torch.zeros(3, 4, 4, 2), "coefficients.*3"),
        ("coefficients", torch.zeros(4, 4, 2, dtype=torch.int64), "coefficients.*int64"),
        ("weight", torch.zeros(5), "weight.*5"),
        ("weight", torch.zeros(6, dtype=torch.int32), "weight.*int32"),
        ("target_weight", torch.zeros(6), "target_weight.*6"),
        ("sources", (-1, 2), "sources.*-1"),
        ("sources", (3, 2), "sources.*3"),
        ("sources", (0, 5), "sources.*5"),
    ],
)
def test_errors_name_the_argument(device: torch.device, name: str, value: Any, match: str) -> None:
    if isinstance(value, torch.Tensor):
        value = move(value, device)
    elif isinstance(value, list):
        value = [move(v, device) if isinstance(v, torch.Tensor) else v for v in value]
    with pytest.raises((ValueError, TypeError), match=match):
        kernels.pairwise_cost(**{**arguments(device), name: value})


def test_no_dims_is_an_error(device: torch.device) -> None:
    rows = torch.zeros(2, 4, 0, device=device)
    with pytest.raises(ValueError, match=r"basis.*dim"):
        kernels.pairwise_cost([rows], torch.zeros(4, 4, 1, device=device), rows)


@pytest.mark.parametrize("name", ["target", "coefficients", "weight"])
def test_device_mix_is_an_error(device: torch.device, name: str) -> None:
    other = {"target": torch.zeros(2, 4, 6), "coefficients": torch.zeros(4, 4, 2), "weight": torch.ones(6)}[name]
    elsewhere = other.to("meta" if device.type == "cpu" else "cpu")
    with pytest.raises((ValueError, TypeError), match=f"{name}.*device"):
        kernels.pairwise_cost(**{**arguments(device), name: elsewhere})
