"""Copies that nothing waits for: into which cells they go, and that nobody reads before they have ended."""

from __future__ import annotations

import pytest
import torch
from helpers.analytic import mixture, normal

from oss_ext import Auto, dp_search, evaluate, grids, transfer
from oss_ext.drive import answer
from oss_ext.evaluate import evaluate as evaluated
from oss_ext.search_core import dp_core
from oss_ext.transfer import Copies, empty, rectangles

NOISE = normal(5, 4, dtype=torch.float32)
T = grids.make("flow", 16)
SEARCHES = {
    "euler": {},
    "own paths": {"solver": "dpmpp_2m", "share": "per_sample"},
    "median": {"solver": "unipc", "share": "median"},
    "beam": {"solver": "fitted", "beam": 3, "start": "free"},
    "calibrated": {"solver": "ab2", "calibration": "affine"},
    "auto": {"solver": Auto(searched=("ab2", "fitted"), grids=("flow",), stock=("euler",), moves=30)},
}


@pytest.mark.parametrize("width", [1, 2, 5])
def test_rectangles_hold_every_cell_once(width):
    table = torch.arange(4 * width).view(4, width)
    for begin in range(table.numel()):
        for end in range(begin + 1, table.numel() + 1):
            found = torch.full((end - begin,), -1)
            parts = list(rectangles(begin, end, width))
            for cells, rows, columns in parts:
                found[cells] = table[rows, columns].flatten()
            assert len(parts) <= 3 and torch.equal(found, torch.arange(begin, end))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 100])
def test_velocities_go_where_they_are_wanted(batch_size):
    model, t = mixture(1).flow(), torch.tensor([0.9, 0.5, 0.4], dtype=torch.float64)
    table = normal(5, 6, 4, dtype=torch.float32)
    states, store = table[:, 2:5], torch.full((5, 6, 4), -7.0)
    given = {"cond": {}, "dtype": torch.float32, "labels": None, "tick": lambda made: None}
    found = evaluated(model, states, t, batch_size=batch_size, out=(out := store[:, 1:4]), **given)
    wanted = torch.stack([model.velocity(states[b], t, {}) for b in range(5)])
    assert found is out
    torch.testing.assert_close(store[:, 1:4], wanted)
    assert bool((store[:, 0] == -7).all() and (store[:, 4:] == -7).all())
    assert torch.equal(evaluated(model, states, t, batch_size=batch_size, **given), found)


def tensors(found):
    plans = [plan for each in found.plans.values() for plan in each]
    ends = [found.teacher, *found.endpoints.values(), *found.costs.values()]
    return [*ends, *(plan.t for plan in plans), *(plan.coefficients for plan in plans)]


@pytest.mark.parametrize("name", SEARCHES)
def test_an_answer_may_be_written_in_place_or_not(name):
    """The same from `out`, from fresh tensors, and from one buffer that the caller uses again and again."""
    model = mixture(1).flow()
    offered = {True: 0, False: 0}

    def velocities(ask):
        offered[ask.out is not None] += 1
        return torch.stack([model.velocity(row, ask.t, {}) for row in ask.states])

    def in_place(ask):
        sent = velocities(ask)
        return sent if ask.out is None else ask.out.copy_(sent)

    buffer = torch.empty(NOISE.shape[0] * 3 * 64 * NOISE.shape[1])

    def in_one_buffer(ask):
        sent = velocities(ask)
        return buffer[: sent.numel()].view(sent.shape).copy_(sent)

    found = [
        tensors(answer(dp_core(NOISE, T, 3, **SEARCHES[name]), reply))
        for reply in (in_place, velocities, in_one_buffer)
    ]
    assert offered[True] >= 3 * 16  # the teacher's, and the stages' where their rows are neighbours
    for other in found[1:]:
        assert all(torch.equal(one, its) for one, its in zip(found[0], other, strict=True))


@pytest.mark.parametrize("name", SEARCHES)
def test_nothing_is_read_before_its_copy_ended(name, monkeypatch):
    """With copies to the states that are made at the last moment, out of tensors that nobody may have changed."""
    model = mixture(1).flow()
    wanted = dp_search(model, NOISE, 3, teacher_steps=16, batch_size=4, **SEARCHES[name])
    waited = []

    class Late(Copies):
        def __init__(self):
            super().__init__()
            self.due = []

        def copy(self, to, source):
            if to.untyped_storage().nbytes() <= 4 * 4 * 4:  # a batch for the network: in order with it
                to.copy_(source)
                return
            to.fill_(torch.nan)
            self.due.append((to, source, source.clone()))

        def wait(self):
            waited.append(len(self.due))
            for to, source, before in self.due:
                assert torch.equal(source, before)
                to.copy_(source)
            self.due = []

    monkeypatch.setattr(evaluate, "Copies", Late)
    found = dp_search(model, NOISE, 3, teacher_steps=16, batch_size=4, **SEARCHES[name])
    assert sum(waited) > 16
    for budget, endpoint in wanted.endpoints.items():
        assert torch.equal(found.endpoints[budget], endpoint)
    assert torch.equal(found.teacher, wanted.teacher)


@pytest.mark.parametrize("name", SEARCHES)
def test_tables_are_kept_as_the_noise_is(name, monkeypatch):
    """What a search asks about and is told stays in pinned memory: here memory that is said to be."""
    model, kept, asked = mixture(1).flow(), [NOISE.clone()], []

    def pinned(shape, dtype):
        kept.append(torch.empty(shape, dtype=dtype))
        return kept[-1]

    def is_pinned(x):
        return any(x.untyped_storage().data_ptr() == each.untyped_storage().data_ptr() for each in kept)

    monkeypatch.setattr(transfer, "_pinned", pinned)
    monkeypatch.setattr(transfer, "is_pinned", is_pinned)

    def reply(ask):
        travels = ask.states.shape[1] > 1 or ask.nodes is not None
        asked.append((travels and is_pinned(ask.states), ask.out is not None and is_pinned(ask.out)))
        return torch.stack([model.velocity(row, ask.t, {}) for row in ask.states])

    answer(dp_core(kept[0], T, 3, candidates=9, **SEARCHES[name]), reply)
    tables = [both for both in asked if both == (True, True)]
    walked = sum(both == (False, True) for both in asked)  # a path's states are made on the way
    gathered = sum(both == (False, False) for both in asked)
    assert len(tables) >= 16 + (name != "beam")
    assert gathered == (2 if name == "beam" else 0) and (walked == 0 or name in ("median", "auto"))


def test_pageable_memory_where_none_can_be_pinned(monkeypatch):
    def fails(shape, dtype):
        raise RuntimeError("CUDA error: out of memory\nmore")

    monkeypatch.setattr(transfer, "is_pinned", lambda x: True)
    monkeypatch.setattr(transfer, "_pinned", fails)
    with pytest.warns(UserWarning, match=r"0\.5 GiB of states .* not pinned.*\(CUDA error: out of memory\)"):
        made = empty((2**26, 2), torch.zeros(1))
    assert made.shape == (2**26, 2) and made.dtype == torch.float32
    monkeypatch.undo()
    assert empty((3,), torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("turned", [True, False], ids=["transposed", "as it is"])
def test_copies_between_host_and_gpu(turned, pinned, cuda_device):
    """Strided, behind slow work, with another dtype on the way: what is there after `wait` is what was meant."""
    host = torch.empty(6, 5, 1024, pin_memory=pinned)
    host.copy_(torch.randn(6, 5, 1024, generator=torch.Generator().manual_seed(0)))
    rows = host[:, 1:4].transpose(0, 1) if turned else host[:, 1:4]
    copies = Copies()
    there = copies.at(rows, cuda_device)
    torch.cuda._sleep(1_000_000_000)
    made = there.double() * 2
    copies.copy(rows, made)
    if pinned and not turned:
        assert not torch.cuda.current_stream(cuda_device).query()  # nobody waited so far
    copies.wait()
    wanted = torch.randn(6, 5, 1024, generator=torch.Generator().manual_seed(0))
    wanted[:, 1:4] *= 2
    assert torch.equal(host, wanted)
    half = torch.empty(rows.shape, dtype=torch.bfloat16, device=cuda_device)
    copies.copy(half, rows)
    assert torch.equal(half.cpu(), rows.to(torch.bfloat16)) and copies.at(half, half.device) is half
