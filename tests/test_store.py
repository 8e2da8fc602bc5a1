"""Where the states are kept: chosen by what fits, and without a say in what is found."""

from __future__ import annotations

import pytest
import torch
from helpers.analytic import mixture, normal

from oss_ext import Auto, dp_search, refine, store
from oss_ext.store import free_bytes, home, states_of_path, states_of_search

NOISE = normal(6, 4, dtype=torch.float32)
SOLVERS = ["euler", "dpmpp_2m", "fitted", Auto(grids=("flow",), stock=("euler",), moves=60)]


@pytest.mark.parametrize(("free", "where"), [(1000, "meta"), (999, "cpu"), (10**9, "meta"), (0, "cpu")])
def test_auto_takes_what_fits(free, where, monkeypatch):
    monkeypatch.setattr(store, "free_bytes", lambda device: free)
    noise = torch.empty(4, 5, device="meta")  # 80 bytes; ten states are 0.8 of 1000
    assert home("auto", noise, 10).type == where
    assert home("device", noise, 10).type == "meta" and home("host", noise, 10).type == "cpu"


def test_noise_in_host_memory_stays_there():
    for name in store.STORES:
        assert home(name, NOISE, 10**12).type == "cpu"


def test_more_of_anything_takes_more():
    least = states_of_search(11, 5, 0, 1)
    assert least >= 11 + 4 * 5
    for other in ((12, 5, 0, 1), (11, 6, 0, 1), (11, 5, 1, 1), (11, 5, 0, 2)):
        assert states_of_search(*other) > least
    assert states_of_path(3, 11) == 11 + states_of_path(3, 0)


@pytest.mark.parametrize("call", ["search", "refine"])
def test_bad_input_costs_nothing(call):
    def fails(x, t):
        raise AssertionError("evaluated")

    model = mixture(1).flow()
    schedule = dp_search(model, NOISE, 2, teacher_steps=8).schedule
    model.velocity = fails
    for bad, error, match in (("disk", ValueError, "store: got 'disk', wanted one of auto, device, host"),
                              (3, TypeError, "store: got int")):  # fmt: skip
        with pytest.raises(error, match=match):
            if call == "search":
                dp_search(model, NOISE, 2, teacher_steps=8, store=bad)
            else:
                refine(schedule, model, NOISE, teacher_steps=8, store=bad)


def test_a_search_says_where_its_states_were():
    assert dp_search(mixture(1).flow(), NOISE, 2, teacher_steps=8).store == "cpu"


@pytest.mark.gpu
@pytest.mark.parametrize("refined", [None, "nodes"])
@pytest.mark.parametrize("solver", SOLVERS, ids=["euler", "dpmpp_2m", "fitted", "auto"])
def test_host_and_device_find_the_same(solver, refined, cuda_device):
    model, noise = mixture(1).flow(), NOISE.double().to(cuda_device)
    cases = {}
    for where in ("device", "host"):
        result = dp_search(model, noise, 4, teacher_steps=20, solver=solver, refine=refined, store=where)
        assert result.store == ("cpu" if where == "host" else str(cuda_device))
        assert result.teacher.device == cuda_device
        assert all(end.device == cuda_device for end in result.endpoints.values())
        cases[where] = result
    for budget, schedule in cases["host"].schedules.items():
        other = cases["device"].schedules[budget]
        assert torch.equal(schedule.nodes, other.nodes)
        torch.testing.assert_close(schedule.coefficients, other.coefficients, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(cases["host"].endpoints[budget], cases["device"].endpoints[budget])


@pytest.mark.gpu
def test_a_long_videos_states_stay_off_the_device(cuda_device):
    """Latents of Wan 2.1 at 480 x 832, 81 frames; the search's share of the device's memory, in either store."""
    from oss_ext import FlowModel

    noise = torch.randn(1, 16, 21, 60, 104, device=cuda_device, generator=torch.Generator(cuda_device).manual_seed(0))
    model = FlowModel(lambda x, t: torch.sin(x) * t.to(x.dtype).view(-1, 1, 1, 1, 1) - 0.3 * x)
    found = {}
    for where in ("device", "host"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(cuda_device)
        before = torch.cuda.memory_allocated(cuda_device)
        found[where] = dp_search(model, noise, 2, teacher_steps=100, candidates=100, solver="dpmpp_2m", store=where)
        peak = torch.cuda.max_memory_allocated(cuda_device) - before
        allowed = noise.numel() * 4 * states_of_search(101, 101, 1, 1) * 1.1 + 2**28
        print(f"{where}: {peak / 2**30:.2f} GiB, reckoned {allowed / 2**30:.2f}")
        assert peak < (2**30 if where == "host" else allowed)
    for budget, schedule in found["host"].schedules.items():
        other = found["device"].schedules[budget]
        costs = [float(found[where].costs[budget].mean()) for where in ("host", "device")]
        assert torch.equal(schedule.nodes, other.nodes) or costs[0] == pytest.approx(costs[1], rel=1e-4)
    assert free_bytes(cuda_device) > 0
