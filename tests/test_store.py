"""Where the states are kept: chosen by what fits, and without a say in what is found."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.analytic import mixture, normal

from oss_ext import Auto, dp_search, grids, refine, store
from oss_ext.drive import answer
from oss_ext.search_core import dp_core
from oss_ext.store import free_bytes, home, host_bytes, keep, place, states_of_path, states_of_search

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
    assert keep("host", NOISE, 10**12) is NOISE and place(NOISE) == "cpu"


def test_available_host_memory(monkeypatch):
    assert 2**20 < host_bytes() < 2**60
    files = {"/proc/meminfo": ["MemTotal:  99 kB", "MemAvailable:  64 kB"]}
    monkeypatch.setattr(store, "_lines", lambda path: files.get(path, []))
    assert host_bytes() == 64 * 1024
    files |= {"/sys/fs/cgroup/memory.max": ["max"], "/sys/fs/cgroup/memory.current": ["5"]}
    assert host_bytes() == 64 * 1024
    files["/sys/fs/cgroup/memory.max"] = ["1005"]
    assert host_bytes() == 1000
    files.clear()
    assert host_bytes() > 0


def slow_model(device):
    """A network behind which copies queue: who reads their numbers at once reads those of before."""
    plain = mixture(1).flow()

    class Slow(type(plain)):
        def velocity(self, x, t, cond=None):
            torch.cuda._sleep(2_000_000)
            return super().velocity(x, t, cond)

    plain.__class__ = Slow
    return plain


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"share": "per_sample"}, {"beam": 2}, {"start": "free"}], ids=str)
def test_pinned_or_not_is_the_same(options, cuda_device, monkeypatch):
    """Bitwise, with every copy behind slow work; and it is said where memory was not pinned."""
    model, noise = slow_model(cuda_device), NOISE.to(cuda_device)
    given = {"teacher_steps": 12, "solver": "dpmpp_2m", "store": "host", "batch_size": 7, **options}
    pinned = dp_search(model, noise, 3, **given)
    assert pinned.store == "cpu (pinned)"
    monkeypatch.setattr(store, "host_bytes", lambda: 0)
    with pytest.warns(UserWarning, match=re.escape("pinned they may take 0.5 of the 0 GiB that are available")):
        other = dp_search(model, noise, 3, **given)
    assert other.store == "cpu"
    assert torch.equal(pinned.teacher, other.teacher)
    for budget, endpoint in pinned.endpoints.items():
        assert torch.equal(endpoint, other.endpoints[budget])
        assert torch.equal(pinned.costs[budget], other.costs[budget])


@pytest.mark.gpu
def test_what_travels_is_pinned(cuda_device):
    model, seen = mixture(1).flow(), []

    def reply(ask):
        assert ask.out is not None and ask.out.data_ptr() != ask.states.data_ptr()
        seen.append((ask.states.is_pinned(), ask.out.is_pinned()))
        velocity = torch.stack([model.velocity(row.to(cuda_device), ask.t, {}) for row in ask.states])
        return ask.out.copy_(velocity)

    answer(dp_core(NOISE.to(cuda_device), grids.make("flow", 30), 3, solver="ab2", candidates=9, store="host"), reply)
    assert len(seen) >= 30 + 2 and all(both == (True, True) for both in seen)


@pytest.mark.gpu
def test_memory_that_cannot_be_pinned(cuda_device, monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError("no more of it")

    monkeypatch.setattr(torch.Tensor, "pin_memory", fails)
    with pytest.warns(UserWarning, match="not pinned.*no more of it"):
        found = dp_search(mixture(1).flow(), NOISE.to(cuda_device), 2, teacher_steps=8, store="host")
    assert found.store == "cpu"


@pytest.mark.gpu
@pytest.mark.parametrize("refined", [None, "nodes"])
@pytest.mark.parametrize("solver", SOLVERS, ids=["euler", "dpmpp_2m", "fitted", "auto"])
def test_host_and_device_find_the_same(solver, refined, cuda_device):
    model, noise = mixture(1).flow(), NOISE.double().to(cuda_device)
    cases = {}
    for where in ("device", "host"):
        result = dp_search(model, noise, 4, teacher_steps=20, solver=solver, refine=refined, store=where)
        assert result.store == ("cpu (pinned)" if where == "host" else str(cuda_device))
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
