"""min_plus against the oracle bit by bit, and against every path of small graphs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from helpers.kernel_inputs import threads
from hypothesis import given
from hypothesis import strategies as st

from oss_ext import kernels, reference

INF, NAN = math.inf, math.nan


def test_hand_table(device: torch.device) -> None:
    cost = torch.tensor(
        [[0.0, 1.0, 5.0, 9.0], [-9.0, 0.0, 4.0, 7.0], [-9.0, -9.0, 0.0, 3.0], [-9.0, -9.0, -9.0, 0.0]], device=device
    )
    values, backpointers = kernels.min_plus(cost, 3)
    assert values.dtype == torch.float64 and backpointers.dtype == torch.int32
    # Two steps to node 3: 0->1->3 costs 8, 0->2->3 costs 8: the tie goes to the noisier node 1.
    assert values.tolist() == [[INF, 1.0, 5.0, 9.0], [INF, INF, 5.0, 8.0], [INF, INF, INF, 8.0]]
    assert backpointers.tolist() == [[-1, 0, 0, 0], [-1, -1, 1, 1], [-1, -1, -1, 2]]


def test_blocked_edges(device: torch.device) -> None:
    cost = torch.zeros(4, 4, device=device)
    cost[0, 1] = NAN
    cost[0, 2] = INF
    cost[0, 3] = -INF
    values, backpointers = kernels.min_plus(cost, 2)
    assert values.tolist() == [[INF] * 4] * 2 and backpointers.tolist() == [[-1] * 4] * 2
    start = torch.tensor([0.0, 2.0, NAN, INF], dtype=torch.float64, device=device)
    values, backpointers = kernels.min_plus(cost, 2, initial=start, discount=0.5)
    assert values.tolist() == [[INF, INF, 1.0, 1.0], [INF, INF, INF, 0.5]]
    assert backpointers.tolist() == [[-1, -1, 1, 1], [-1, -1, -1, 2]]


@given(
    nodes=st.integers(1, 9),
    batch=st.integers(1, 3),
    discount=st.sampled_from([1.0, 0.5, 2.0]),
    free=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_every_path(device: torch.device, nodes: int, batch: int, discount: float, free: bool, seed: int) -> None:
    """Small whole costs and powers of two: every sum is exact, so that the best value is the brute-force one."""
    g = torch.Generator().manual_seed(seed)
    cost = torch.randint(0, 6, (batch, nodes, nodes), generator=g).double()
    cost[torch.rand(cost.shape, generator=g) < 0.15] = INF
    initial = torch.randint(0, 3, (nodes,), generator=g).double() if free else None
    start = [0.0] + [INF] * (nodes - 1) if initial is None else initial.tolist()
    steps = nodes + 1
    values, backpointers = kernels.min_plus(
        cost.to(device), steps, initial=None if initial is None else initial.to(device), discount=discount
    )
    values, backpointers = values.cpu(), backpointers.cpu()
    assert values.shape == backpointers.shape == (steps, batch, nodes)
    for b, k, j in itertools.product(range(batch), range(1, steps + 1), range(nodes)):

        def total(path: tuple[int, ...], b: int = b) -> float:
            value = start[path[0]]
            for i, nxt in itertools.pairwise(path):
                value = cost[b, i, nxt].item() + discount * value
            return value

        best = min((total((*inner, j)) for inner in itertools.combinations(range(j), k)), default=INF)
        assert values[k - 1, b, j].item() == best
        if math.isfinite(best):  # the walk back is a path of exactly k edges and has this value
            path = [j]
            for stage in range(k - 1, -1, -1):
                path.insert(0, int(backpointers[stage, b, path[0]]))
            assert min(path) >= 0 and path == sorted(set(path)) and total(tuple(path)) == best
        else:
            assert backpointers[k - 1, b, j] == -1


@given(
    nodes=st.sampled_from([1, 2, 7, 40, 90]),
    batch=st.integers(0, 3),
    steps=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["contiguous", "sliced", "expanded"]),
    discount=st.sampled_from([1.0, 1.15, 0.9, 0.0]),
    levels=st.sampled_from([0, 3]),
    seed=st.integers(0, 2**31),
)
def test_oracle(
    device: torch.device,
    nodes: int,
    batch: int,
    steps: int,
    dtype: torch.dtype,
    layout: str,
    discount: float,
    levels: int,
    seed: int,
) -> None:
    g = torch.Generator().manual_seed(seed)
    shape = {
        "contiguous": (batch, nodes, nodes),
        "sliced": (batch, nodes + 1, nodes + 3),
        "expanded": (1, nodes, nodes),
    }
    full = torch.randn(shape[layout], generator=g, dtype=dtype)
    if levels:
        full = torch.randint(levels, full.shape, generator=g).to(dtype)
    full[torch.rand(full.shape, generator=g) < 0.05] = NAN
    initial = torch.randn(nodes, generator=g, dtype=torch.float64)
    initial[torch.rand(nodes, generator=g) < 0.3] = INF

    def view(x: torch.Tensor) -> torch.Tensor:
        if layout == "sliced":
            return x[:, 1:, 2 : nodes + 2]
        return x.expand(batch, nodes, nodes) if layout == "expanded" else x

    expected = reference.min_plus(view(full), steps, initial=initial, discount=discount)
    cost, start = view(full.to(device)), initial.to(device)
    for count in (1, 3):
        with threads(count):
            values, backpointers = kernels.min_plus(cost, steps, initial=start, discount=discount)
        assert torch.equal(values.cpu(), expected[0])
        assert torch.equal(backpointers.cpu(), expected[1])


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("cost", torch.zeros(4), "cost"),
        ("cost", torch.zeros(3, 4), "cost.*3"),
        ("cost", torch.zeros(0, 0), "cost"),
        ("cost", torch.zeros(4, 4, dtype=torch.float16), "cost.*float16"),
        ("cost", [[0.0]], "cost"),
        ("steps", 0, "steps.*0"),
        ("steps", -1, "steps.*-1"),
        ("steps", 1.5, "steps.*1.5"),
        ("initial", torch.zeros(5), "initial.*5"),
        ("initial", torch.zeros(4, dtype=torch.int64), "initial.*int64"),
    ],
)
def test_errors_name_the_argument(device: torch.device, name: str, value: Any, match: str) -> None:
    if isinstance(value, torch.Tensor):
        value = value.to(device)
    with pytest.raises((ValueError, TypeError), match=match):
        kernels.min_plus(**{"cost": torch.zeros(4, 4, device=device), "steps": 2, name: value})
