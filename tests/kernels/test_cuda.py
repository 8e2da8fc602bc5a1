"""What only CUDA has: streams, several GPUs, graphs, and tensors of more than 2^31 elements."""

from __future__ import annotations

import pytest
import torch
from helpers.kernel_inputs import Case, assert_cost_close

from oss_ext import kernels, reference

pytestmark = pytest.mark.gpu


def test_side_stream(cuda_device: torch.device) -> None:
    """The kernels run on the current stream: they wait for what was put there before."""
    case = Case(2, 40, 3000, 2, seed=1)
    (basis, coefficients, target), keywords = case.cost_arguments(cuda_device)
    late = [torch.full_like(u, float("nan")) for u in basis]
    torch.cuda.synchronize(cuda_device)
    stream = torch.cuda.Stream(cuda_device)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for to, u in zip(late, basis, strict=True):
            to.copy_(u)
        cost = kernels.pairwise_cost(late, coefficients, target, **keywords)
        values, backpointers = kernels.min_reduce(cost)
        state = kernels.advance(late, coefficients, backpointers)
        products, moment = kernels.gram(late, target)
        path, _ = kernels.min_plus(cost, 3)
    stream.synchronize()
    assert_cost_close(cost, case)
    assert torch.equal(values, kernels.min_reduce(cost)[0])
    assert torch.equal(state[:, 1:], kernels.advance(basis, coefficients, backpointers)[:, 1:])
    again = kernels.gram(basis, target)
    assert torch.equal(products, again[0]) and torch.equal(moment, again[1])
    assert torch.equal(path, kernels.min_plus(cost, 3)[0])


def test_second_gpu(cuda_device: torch.device) -> None:
    """Tensors on cuda:1 while cuda:0 is current: the kernels follow the tensors and leave the current device alone."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    case = Case(2, 40, 300, 2, seed=1)
    with torch.cuda.device(0):
        (basis, coefficients, target), keywords = case.cost_arguments("cuda:1")
        cost = kernels.pairwise_cost(basis, coefficients, target, **keywords)
        values, backpointers = kernels.min_reduce(cost)
        joint = kernels.min_reduce(cost, joint=True)[0]
        state = kernels.advance(basis, coefficients, backpointers)
        kernels.gram(basis, target)
        kernels.min_plus(cost, 3)
        torch.cuda.synchronize("cuda:1")
        assert torch.cuda.current_device() == 0
    assert cost.device == values.device == joint.device == state.device == torch.device("cuda:1")
    assert_cost_close(cost, case)
    with pytest.raises(ValueError, match=r"target.*cuda:0"):
        kernels.pairwise_cost(basis, coefficients, target.to("cuda:0"))


def test_cpu_and_cuda_do_not_mix(cuda_device: torch.device) -> None:
    case = Case(1, 5, 7)
    (basis, coefficients, target), _ = case.cost_arguments(cuda_device)
    with pytest.raises(ValueError, match=r"basis\[1\].*cpu"):
        kernels.pairwise_cost([basis[0], basis[1].cpu()], coefficients, target)
    with pytest.raises(ValueError, match=r"backpointers.*cpu"):
        kernels.advance(basis, coefficients, torch.zeros(5, dtype=torch.int32))


def test_cpu_and_cuda_agree(cuda_device: torch.device) -> None:
    """Every backpointer in float64."""
    case = Case(8, 100, 777, 3, torch.float64, shared=False, seed=9)
    found = []
    for device in ("cpu", cuda_device):
        positional, keywords = case.cost_arguments(device)
        cost = kernels.pairwise_cost(*positional, **keywords)
        found.append([x.cpu() for joint in (False, True) for x in kernels.min_reduce(cost, joint=joint)])
        found[-1].append(kernels.min_plus(cost, 8, discount=1.15)[1].cpu())
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-13, atol=0)
    for k in (1, 3, 4):
        assert torch.equal(found[0][k], found[1][k])


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "nodes", "dim"), [(1, 1100, 2_000_003), (550, 2, 2_000_003), (1, 2, 1_100_000_001)])
def test_more_than_2_31_elements(cuda_device: torch.device, batch: int, nodes: int, dim: int) -> None:
    """Offsets need 64 bits along nodes, along samples, and along one row."""
    wanted = 2 * batch * nodes * dim * 3
    assert wanted // 6 > 2**31
    free, _ = torch.cuda.mem_get_info(cuda_device)
    if free < wanted:
        pytest.skip(f"needs {wanted / 2**30:.0f} GiB of free GPU memory, {free / 2**30:.0f} are")
    g = torch.Generator(cuda_device).manual_seed(0)
    state = torch.empty(batch, nodes, dim, dtype=torch.bfloat16, device=cuda_device)
    state.normal_(generator=g)
    coefficients = torch.full((nodes, nodes, 1), 0.5, device=cuda_device)
    last = (nodes - 2, nodes)
    cost = kernels.pairwise_cost([state], coefficients, state, sources=last)
    assert cost[:, : nodes - 2].isposinf().all()
    # The last pair of the last sample, by hand in pieces: a float64 copy of it all would not fit.
    sums = torch.zeros(2, dtype=torch.float64, device=cuda_device)
    for u, y in zip(state[-1, -2].split(2**26), state[-1, -1].split(2**26), strict=True):
        sums[0] += ((0.5 * u.double() - y.double()) ** 2).sum()
        sums[1] += (u.double() * (y.double() - u.double())).sum()
    assert cost[-1, -2, -1].item() == pytest.approx(sums[0].item() / dim, rel=2e-6)
    moment = kernels.gram([state], state, sources=last)[1]
    assert moment[-1, -2, -1, 0].item() == pytest.approx(sums[1].item(), rel=1e-9)
    backpointers = torch.full((nodes,), -1, dtype=torch.int32, device=cuda_device)
    backpointers[-1] = nodes - 2
    out = kernels.advance([state], coefficients, backpointers)
    for got, u in zip(out[-1, -1].split(2**26), state[-1, -2].split(2**26), strict=True):
        assert torch.equal(got, u * 0.5)


def test_graph_capture(cuda_device: torch.device) -> None:
    """A captured stage replays on new contents of the same tensors."""
    case, other = Case(2, 30, 500, 2, seed=1), Case(2, 30, 500, 2, seed=2)
    (basis, coefficients, target), _ = case.cost_arguments(cuda_device)

    def stage() -> torch.Tensor:
        _, backpointers = kernels.min_reduce(kernels.pairwise_cost(basis, coefficients, target, joint=True), joint=True)
        return kernels.advance(basis, coefficients, backpointers)

    side = torch.cuda.Stream(cuda_device)
    with torch.cuda.stream(side):
        stage()
    torch.cuda.current_stream(cuda_device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = stage()
    for to, new in zip((*basis, target), (*other.basis, other.target), strict=True):
        to.copy_(new)
    graph.replay()
    torch.cuda.synchronize(cuda_device)
    expected_costs = reference.pairwise_cost(other.basis, case.coefficients, other.target)
    expected = reference.advance(other.basis, case.coefficients, reference.min_reduce(expected_costs, joint=True)[1])
    torch.testing.assert_close(captured.cpu(), expected, equal_nan=True, rtol=1e-5, atol=1e-5)
