"""best_step: what pairwise_cost, min_reduce and advance find, by bounds from tensor cores and float64 where they leave
more than one source a chance."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.kernel_inputs import LAYOUTS, Case, cases
from hypothesis import assume, given
from torch import Tensor

from oss_ext import kernels, reference

HALVES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = [(1, 2, 8), (3, 37, 1024), (2, 70, 520), (1, 130, 2056), (5, 9, 16), (37, 21, 64), (1, 260, 8)]


def exact(basis: list[Tensor], coefficients: Tensor, target: Tensor, joint: bool, sources=None) -> Tensor:
    """The costs in float64, [groups, M, M]; +inf for those that are not finite: they cannot win."""
    rounded = coefficients.float().double()
    doubles = [u.double() for u in basis]
    cost = reference.pairwise_cost(doubles, rounded, target.double(), sources=sources, joint=joint)
    return torch.where(cost.isfinite(), cost, math.inf)


def smooth(
    batch: int, nodes: int, dim: int, dtype: torch.dtype, device: torch.device, seed: int = 0, noise: float = 1e-2
):
    """A curved trajectory, states slightly off it, their velocities, and Euler's coefficients: (basis, C, y, t)."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.linspace(1, 0, nodes, dtype=torch.float64) ** 1.3
    a, b, c = (torch.randn(batch, 1, dim, generator=generator, dtype=torch.float64) for _ in range(3))
    s = t[None, :, None]
    y = a * s + b * (1 - s) + c * torch.sin(3 * s)
    x = y + noise * torch.randn(batch, nodes, dim, generator=generator, dtype=torch.float64)
    v = a - b + 3 * c * torch.cos(3 * s)
    coefficients = torch.stack([torch.ones(nodes, nodes, dtype=torch.float64), t[None] - t[:, None]], -1)
    x, v, y = (each.to(device, dtype) for each in (x, v, y))
    return [x, v], coefficients.to(device), y, t.to(device)


def assert_nearest(found, basis, coefficients, target, joint, sources=None) -> None:
    """Values, winners and states, against float64."""
    values, backpointers, states = found
    cost = exact(basis, coefficients, target, joint, sources)
    least = cost.min(1).values
    pointers = backpointers[None] if joint else backpointers
    reached = least.isfinite()
    assert torch.equal(pointers >= 0, reached)
    chosen = cost.gather(1, pointers.clamp(min=0).long()[:, None])[:, 0]
    assert torch.allclose(chosen[reached], least[reached], rtol=1e-12, atol=0)
    earlier = torch.arange(cost.shape[1], device=cost.device)[None, :, None] < pointers[:, None]
    assert bool((cost > least[:, None])[earlier].all()), "among equals the smallest source wins"
    got = values[None] if joint else values
    assert torch.equal(got.isfinite(), reached) and bool((got[~reached] == math.inf).all())
    torch.testing.assert_close(got[reached], least[reached], rtol=2e-6, atol=1e-30)
    expected = kernels.advance(basis, coefficients, backpointers)
    assert torch.equal(states.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(states.isnan(), expected.isnan())


def bounds_of(basis, coefficients, target, joint, **options) -> tuple[Tensor, Tensor]:
    """(least, most) of every pair's cost, [groups, M, M], of float64 sums."""
    seen = {}

    def look(what: str, rows: Tensor, size: int) -> Tensor:
        seen[what] = rows.clone()
        return rows

    assert kernels.best_step(basis, coefficients, target, joint=joint, exchange=look, **options) is not None
    groups, nodes, dim = (1 if joint else target.shape[0]), target.shape[1], target.shape[2]
    pairs = seen["bounds"].view(torch.float32).view(-1, groups, nodes, nodes, 2).double().sum(0) / dim
    return pairs[..., 0].transpose(1, 2), pairs[..., 1].transpose(1, 2)


@pytest.mark.gpu
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("batch", "nodes", "dim"), SIZES)
def test_smooth_trajectories(cuda_device, batch, nodes, dim, dtype, joint):
    basis, coefficients, target, t = smooth(batch, nodes, dim, dtype, cuda_device, seed=nodes)
    found = kernels.best_step(basis, coefficients, target, place=t, joint=joint)
    assert_nearest(found, basis, coefficients, target, joint)
    again = kernels.best_step(basis, coefficients, target, place=t, joint=joint)
    assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(found, again, strict=True))


@pytest.mark.gpu
@given(case=cases())
def test_any_input(cuda_device, case: Case):
    """Random rows and coefficients, of which the bounds say little: the result is the same."""
    assume(not case.weighted and not case.target_weighted)
    for joint in (True, False):
        (basis, coefficients, target), options = case.cost_arguments(cuda_device)
        sources = options["sources"]
        can = kernels.can_best_step(basis, coefficients, target, sources=sources, joint=joint)
        found = kernels.best_step(basis, coefficients, target, sources=sources, joint=joint)
        assert can == (found is not None)
        if found is not None:
            assert case.basis_count <= 2 and case.dtype != torch.float64 and case.nodes > 1
            if case.batch:
                assert_nearest(found, basis, coefficients, target, joint, sources)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e3, 1e6, 1e15])
@pytest.mark.parametrize("count", [1, 2])
def test_bounds_hold(cuda_device, count, scale, layout):
    """For steps that no line describes, at magnitudes that halves cannot hold, along any places."""
    case = Case(3, 67, 72, count, layout=layout if layout != "sliced" else "transposed", seed=count)
    (basis, coefficients, target), _ = case.cost_arguments(cuda_device)
    basis, target = [scale * u for u in basis], scale * target
    place = torch.randn(67, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(cuda_device)
    for joint, where in ((True, None), (False, place), (True, torch.ones_like(place))):
        least, most = bounds_of(basis, coefficients, target, joint, place=where)
        cost = exact(basis, coefficients, target, joint)
        wanted = cost.isfinite()
        assert bool((least <= cost)[wanted].all()) and bool((most >= cost)[wanted].all())
        assert_nearest(kernels.best_step(basis, coefficients, target, joint=joint), basis, coefficients, target, joint)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-3, 1e-1])
def test_bounds_hold_and_are_close_on_smooth_trajectories(cuda_device, noise, dtype):
    basis, coefficients, target, t = smooth(2, 150, 2048, dtype, cuda_device, noise=noise)
    least, most = bounds_of(basis, coefficients, target, True, place=t)
    cost = exact(basis, coefficients, target, True)
    wanted = cost.isfinite()
    assert bool((least <= cost)[wanted].all()) and bool((most >= cost)[wanted].all())
    if noise >= 1e-3 and dtype == torch.float32:
        assert float(((most - least) / cost)[wanted].median()) < 1e-2


@pytest.mark.gpu
def test_bounds_of_sums_stay_bounds(cuda_device):
    rows = torch.rand(5, 6, device=cuda_device)
    rows[:, 1::2] += rows[:, ::2]
    rows[3, 5] = math.inf
    summed = kernels.summed_bounds(rows.view(torch.uint8).flatten(), 24).view(torch.float32)
    whole = rows.double().sum(0)
    assert bool((summed[::2] <= whole[::2]).all()) and bool((summed[1::2] >= whole[1::2]).all())
    assert torch.allclose(summed.double(), whole, rtol=1e-6) and summed[5] == math.inf


@pytest.mark.gpu
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("joint", [True, False])
def test_values_that_are_no_numbers(cuda_device, joint, bad):
    basis, coefficients, target, t = smooth(3, 40, 256, torch.float32, cuda_device)
    basis[1][1, 7, 200] = bad  # a source that cannot win
    target[2, 30, 3] = bad  # a target that cannot be reached, unless the number is finite
    basis[0][:, :3] = bad  # the first targets have no other sources
    found = kernels.best_step(basis, coefficients, target, place=t, joint=joint)
    assert_nearest(found, basis, coefficients, target, joint)
    pointers = found[1] if joint else found[1][1]
    assert math.isfinite(bad) or not bool((pointers == 7).any())


@pytest.mark.gpu
@pytest.mark.parametrize("joint", [True, False])
def test_ties_go_to_the_noisiest_source(cuda_device, joint):
    basis, coefficients, target, t = smooth(2, 24, 64, torch.float32, cuda_device)
    same = [torch.zeros_like(u) for u in basis]
    _, backpointers, _ = kernels.best_step(same, coefficients, torch.ones_like(target), place=t, joint=joint)
    assert backpointers.flatten().unique().tolist() == [-1, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("sources", [(0, 0), (0, 1), (5, 30), (39, 40)])
def test_source_range(cuda_device, sources):
    basis, coefficients, target, t = smooth(2, 40, 256, torch.float32, cuda_device)
    found = kernels.best_step(basis, coefficients, target, place=t, joint=True, sources=sources)
    assert_nearest(found, basis, coefficients, target, True, sources)


@pytest.mark.gpu
def test_coefficients_of_each_sample(cuda_device):
    case = Case(4, 20, 64, 2, shared=False)
    (basis, coefficients, target), _ = case.cost_arguments(cuda_device)
    assert_nearest(kernels.best_step(basis, coefficients, target), basis, coefficients, target, False)
    assert kernels.best_step(basis, coefficients, target, joint=True) is None


@pytest.mark.gpu
@pytest.mark.parametrize("cut", [0, 2, 5])
@pytest.mark.parametrize("dim", [256, 5000])
def test_samples_of_two_processes(cuda_device, dim, cut):
    """Each hands out its rows and gets those of both: all find, bit by bit, what one finds."""
    basis, coefficients, target, t = smooth(5, 50, dim, torch.float32, cuda_device)
    whole = kernels.best_step(basis, coefficients, target, place=t, joint=True)
    rows: dict[str, list[Tensor]] = {"bounds": [], "exact": []}

    def run(part: slice, known: dict[str, Tensor]):
        def exchange(what: str, mine: Tensor, size: int) -> Tensor:
            if what in known:
                return known[what]
            rows[what].append(kernels.summed_bounds(mine, size) if what == "bounds" else mine.clone())
            return rows[what][-1]

        mine = [u[part] for u in basis]
        return kernels.best_step(mine, coefficients, target[part], place=t, joint=True, exchange=exchange)

    parts, known = [slice(0, cut), slice(cut, 5)], {}
    for what in ("bounds", "exact"):
        for part in parts:
            run(part, known)
        known[what] = torch.cat(rows[what][-2:])
    for part in parts:
        values, backpointers, states = run(part, known)
        assert torch.equal(values, whole[0]) and torch.equal(backpointers, whole[1])
        assert torch.equal(states.nan_to_num(7.0), whole[2][part].nan_to_num(7.0))


@pytest.mark.gpu
def test_a_graph_of_it_on_a_side_stream(cuda_device):
    basis, coefficients, target, t = smooth(2, 60, 512, torch.float32, cuda_device)
    expected = kernels.best_step(basis, coefficients, target, place=t, joint=True)
    late = [torch.zeros_like(u) for u in basis]
    coefficients = coefficients.float()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = kernels.best_step(late, coefficients, target, place=t, joint=True)
    for to, u in zip(late, basis, strict=True):
        to.copy_(u)
    graph.replay()
    assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(found, expected, strict=True))


@pytest.mark.gpu
def test_second_gpu(cuda_device):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    with torch.cuda.device(0):
        basis, coefficients, target, t = smooth(2, 40, 256, torch.float32, torch.device("cuda:1"))
        assert_nearest(
            kernels.best_step(basis, coefficients, target, place=t, joint=True), basis, coefficients, target, True
        )
        assert torch.cuda.current_device() == 0


@pytest.mark.gpu
def test_more_than_2_to_the_31_numbers(cuda_device):
    nodes, dim = 3, 2**30
    if torch.cuda.mem_get_info(cuda_device)[0] < 60 * 2**30:
        pytest.skip("needs 60 GiB of GPU memory")
    target = torch.randn(1, nodes, dim, device=cuda_device)
    basis = [target.roll(-1, 1), torch.zeros_like(target)]  # every state is the next target
    coefficients = torch.ones(nodes, nodes, 2, device=cuda_device)
    values, backpointers, states = kernels.best_step(basis, coefficients, target, joint=True)
    assert backpointers.tolist() == [-1, 0, 1] and values[1:].tolist() == [0, 0]
    assert torch.equal(states[:, 1:], target[:, 1:])


@pytest.mark.gpu
def test_wrong_arguments(cuda_device):
    basis, coefficients, target, t = smooth(2, 10, 64, torch.float32, cuda_device)
    with pytest.raises(ValueError, match=r"place.*\[10\]"):
        kernels.best_step(basis, coefficients, target, place=t[1:])
    with pytest.raises(ValueError, match=r"out.*overlaps basis\[0\]"):
        kernels.best_step(basis, coefficients, target, out=basis[0])


def test_not_on_the_cpu():
    basis, coefficients, target, t = smooth(2, 10, 64, torch.float32, torch.device("cpu"))
    assert not kernels.can_best_step(basis, coefficients, target)
    assert kernels.best_step(basis, coefficients, target, place=t) is None


@pytest.mark.gpu
def test_what_cannot_be_screened(cuda_device):
    basis, coefficients, target, _ = smooth(2, 10, 64, torch.float32, cuda_device)
    for rows in (
        [u.double() for u in [*basis, target]],
        [u[..., 1:] for u in [*basis, target]],
        [u[..., :62] for u in [*basis, target]],
        [u[:, :1] for u in [*basis, target]],
    ):
        *some, goal = rows
        nodes = goal.shape[1]
        assert kernels.best_step(some, coefficients[:nodes, :nodes], goal) is None
    three = torch.ones(10, 10, 3, device=cuda_device)
    assert kernels.best_step([*basis, basis[0]], three, target) is None
