"""Random inputs of the kernels in every legal shape, dtype and memory layout, and how close a result must be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from oss_ext import kernels, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAYOUTS = ("contiguous", "sliced", "expanded", "transposed")


def random_rows(shape: tuple[int, int, int], dtype: torch.dtype, layout: str, generator: torch.Generator) -> Tensor:
    """Unit normal [B, M, D].

    sliced: rows begin off every alignment; expanded: one sample for all; transposed: stored as [M, B, D].
    """
    batch, nodes, dim = shape
    draw = partial(torch.randn, generator=generator)
    if layout == "sliced":
        buffer = draw(batch, nodes + 2, dim + 3).to(dtype)
        return buffer[:, 1 : nodes + 1, 1 : dim + 1]
    if layout == "expanded":
        return draw(1, nodes, dim).to(dtype).expand(batch, nodes, dim)
    if layout == "transposed":
        return draw(nodes, batch, dim).to(dtype).transpose(0, 1)
    return draw(batch, nodes, dim).to(dtype)


@dataclass
class Case:
    batch: int
    nodes: int
    dim: int
    basis_count: int = 2
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    target_layout: str = "contiguous"
    shared: bool = True
    weighted: bool = False
    target_weighted: bool = False
    sources: tuple[int, int] | None = None
    seed: int = 0
    basis: list[Tensor] = field(init=False, repr=False)
    target: Tensor = field(init=False, repr=False)
    coefficients: Tensor = field(init=False, repr=False)
    weight: Tensor | None = field(init=False, repr=False)
    target_weight: Tensor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(self.seed)
        shape = (self.batch, self.nodes, self.dim)
        self.basis = [random_rows(shape, self.dtype, self.layout, g) for _ in range(self.basis_count)]
        self.target = random_rows(shape, self.dtype, self.target_layout, g)
        lead = () if self.shared else (self.batch,)
        self.coefficients = torch.randn(*lead, self.nodes, self.nodes, self.basis_count, generator=g)
        self.weight = torch.rand(self.dim, generator=g) if self.weighted else None
        self.target_weight = torch.rand(self.nodes, generator=g) if self.target_weighted else None

    def cost_arguments(self, device: torch.device | str = "cpu") -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of pairwise_cost."""
        basis, target = [move(u, device) for u in self.basis], move(self.target, device)
        weights = {"weight": self.weight, "target_weight": self.target_weight}
        moved = {name: None if w is None else w.to(device) for name, w in weights.items()}
        return (basis, self.coefficients.to(device), target), {**moved, "sources": self.sources}

    def gram_arguments(self, device: torch.device | str = "cpu") -> tuple[tuple[Any, ...], dict[str, Any]]:
        (basis, _, target), keywords = self.cost_arguments(device)
        keywords.pop("target_weight")
        return (basis, target), keywords


def move(tensor: Tensor, device: torch.device | str) -> Tensor:
    """To the device with strides and alignment kept: Tensor.to packs what it copies."""
    if torch.device(device).type == "cpu":
        return tensor
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    return whole.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Shapes around 1, primes, vector and block lengths; every layout; with and without each option."""
    nodes = draw(st.sampled_from([1, 2, 3, 5, 8, 13, 31, 67]))
    begin = draw(st.integers(0, nodes))
    return Case(
        batch=draw(st.integers(0, 3)),
        nodes=nodes,
        dim=draw(st.sampled_from([1, 2, 3, 7, 16, 17, 31, 32, 33, 64, 127, 257, 1031])),
        basis_count=draw(st.integers(1, kernels.MAX_BASIS)),
        dtype=draw(st.sampled_from(DTYPES)),
        layout=draw(st.sampled_from(LAYOUTS)),
        target_layout=draw(st.sampled_from(LAYOUTS)),
        shared=draw(st.booleans()),
        weighted=draw(st.booleans()),
        target_weighted=draw(st.booleans()),
        sources=draw(st.sampled_from([None, (begin, draw(st.integers(begin, nodes)))])),
        seed=draw(st.integers(0, 2**31)),
    )


def epsilon(dtype: torch.dtype) -> float:
    """Unit of rounding of the accumulate dtype."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def assert_cost_close(cost: Tensor, case: Case, joint: bool = False) -> None:
    """Against the oracle, whose entries must be finite where a pair is wanted. joint: the parts of `cost`, summed.

    Digits are lost where a step and its target cancel, so that the error is measured against the sum without signs,
    mean_d w (sum |C u| + |y|)^2. 32 roundings of it are allowed.
    """
    (basis, coefficients, target), keywords = case.cost_arguments()
    keywords["joint"] = joint
    with threads(1):  # many small torch operations: on a busy machine their threads wait for each other
        expected = reference.pairwise_cost(basis, coefficients, target, **keywords).double()
        size = reference.pairwise_cost([u.abs() for u in basis], coefficients.abs(), -target.abs(), **keywords).double()
    if joint:
        assert min(case.batch, 1) <= cost.shape[0] <= case.batch and cost.shape[1:] == expected.shape[1:]
    else:
        assert cost.shape == expected.shape
    assert cost.dtype == (torch.float64 if case.dtype == torch.float64 else torch.float32)
    finite = expected.isfinite()
    got = cost.cpu().double()
    if joint:
        assert torch.equal(got.isposinf(), ~finite.expand_as(got)), "every part has +inf outside the wanted pairs"
        got = got.sum(dim=0, keepdim=True)[: case.batch]
    assert torch.equal(got.isposinf(), ~finite), "entries outside the upper triangle and the source range are +inf"
    error = (got - expected).abs()[finite]
    allowed = 32 * epsilon(case.dtype) * size[finite]
    assert (error <= allowed).all(), f"{(error / allowed).max().item():.3g} times the error allowed"


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
