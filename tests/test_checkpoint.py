"""A search that was stopped goes on from its folder and ends with the same bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time

import pytest
import torch
import torch.distributed as dist
from helpers.counting import Counting
from helpers.processes import together
from test_ranks import found, model, noise_of

from oss_ext import Auto, FlowModel, checkpoint, dp_search
from oss_ext.costs import Perceptual

CASES = {
    "euler": {},
    "fitted, beam": {"solver": "fitted", "beam": 2, "start": "free"},
    "median": {"share": "median"},
    "x0": {"cost": "x0"},
    "auto": {"solver": Auto(searched=("fitted",), grids=("flow",), stock=("euler",), moves=9)},
}
NOISE = noise_of(3, 5)


class Stopping(Counting):
    """Raises at one of its calls."""

    def __init__(self, at: int | None = None, error: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__(model())
        self.at, self.error = at, error

    def velocity(self, x, t, cond=None):
        if len(self.calls) == self.at:
            raise self.error("stopped")
        return super().velocity(x, t, cond)


def search(asked, folder, noise=NOISE, steps=3, **options):
    return dp_search(asked, noise, steps, teacher_steps=10, checkpoint=folder, **options)


def same(one, other):
    assert repr(found(one)) == repr(found(other))
    for budget, end in one.endpoints.items():
        assert torch.equal(end, other.endpoints[budget])


@pytest.mark.parametrize("name", CASES)
def test_stopped_anywhere_it_ends_with_the_same_bits(name, tmp_path):
    options, whole = CASES[name], Counting(model())
    wanted = dp_search(whole, NOISE, 3, teacher_steps=10, **options)
    calls = len(whole.calls)
    for at in {0, 1, 7, 10, 11, calls // 2, calls - 1}:
        folder = tmp_path / str(at)
        with pytest.raises(KeyboardInterrupt):
            search(Stopping(at), folder, **options)
        again = Stopping()
        same(search(again, folder, **options), wanted)
        assert len(again.calls) == calls - at + (at > 0)  # and the first one, once more
        done = Stopping()
        same(search(done, folder, **options), wanted)
        assert len(done.calls) == 1


def test_stopped_over_and_over(tmp_path):
    wanted, runs = dp_search(model(), NOISE, 3, teacher_steps=10), 0
    while True:
        runs += 1
        try:
            result = search(Stopping(3, RuntimeError), tmp_path / "kept")
        except RuntimeError:
            continue
        break
    same(result, wanted)
    assert runs > 3


def test_progress_counts_what_was_answered_before(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        search(Stopping(11), tmp_path / "kept")
    heard = []
    search(model(), tmp_path / "kept", progress=lambda made, total: heard.append((made, total)))
    assert heard[0][0] == 3 and heard[-1] == (heard[-1][1], heard[-1][1])


def dies(rank: int, folder: str, at: int | None) -> list:
    calls, inner = 0, model()

    def velocity(x, t):
        nonlocal calls
        calls += 1
        if calls == at and rank == 1:
            os._exit(9)
        return inner.fn(x, t)

    mine = noise_of(3, 70)[2 * rank : 2 * rank + 2]
    try:
        result = dp_search(
            FlowModel(velocity),
            mine,
            3,
            teacher_steps=10,
            checkpoint=folder,
            process_group=dist.group.WORLD,
            timeout=20,
        )
    except RuntimeError as error:
        return [type(error).__name__]
    return [found(result), calls]


def test_killed_while_ranks_search(tmp_path):
    wanted = found(dp_search(model(), noise_of(3, 70), 3, teacher_steps=10))
    folder = str(tmp_path / "kept")
    assert together(2, tmp_path / "one", dies, folder, 12) == [["RanksError"], None]
    again = together(2, tmp_path / "two", dies, folder, None)
    assert all(repr(each[0]) == repr(wanted) for each in again)
    assert all(each[1] < 12 for each in again)  # the teacher's evaluations were kept


DIFFERENT = {
    "noise": {"noise": noise_of(3, 5) + 1},
    "rank": {"noise": noise_of(2, 5)},
    "samples of": {"noise": noise_of(3, 6)},
    "grid": {"grid": "flow:shift=2"},
    "steps": {"steps": 2},
    "solver": {"solver": "ab2"},
    "share": {"share": "per_sample"},
    "weight": {"weight": torch.ones(5)},
    "beam": {"beam": 2},
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_another_search_is_refused(name, tmp_path):
    folder = tmp_path / "kept"
    search(model(), folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ValueError, match=r"checkpoint: .*kept is of another search: \w[\w ]*: it has") as caught:
        search(Stopping(0, AssertionError), folder, **DIFFERENT[name])
    assert f"{name}: it has" in str(caught.value) or name == "rank"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_another_model_is_refused(tmp_path):
    search(model(), tmp_path / "kept")
    inner = model().fn
    with pytest.raises(ValueError, match=r"outputs differ from those kept, by .* it is of another model"):
        search(FlowModel(lambda x, t: 1.01 * inner(x, t)), tmp_path / "kept")
    with pytest.warns(UserWarning, match="another batch size"):
        search(FlowModel(lambda x, t: (1 + 1e-6) * inner(x, t)), tmp_path / "kept")


@pytest.mark.parametrize("how", ["cut", "changed", "missing", "index", "other folder", "file", "no parent"])
def test_what_cannot_be_read(how, tmp_path):
    folder = tmp_path / "kept"
    if how == "file":
        folder.write_text("")
    elif how == "other folder":
        folder.mkdir()
        (folder / "letter.txt").write_text("")
    elif how == "no parent":
        folder = folder / "there"
    else:
        search(model(), folder)
        part = sorted(folder.glob("answers_*.safetensors"))[0]
        data = bytearray(part.read_bytes())
        data[-3] ^= 1
        if how == "cut":
            part.write_bytes(data[: len(data) // 2])
        elif how == "changed":
            part.write_bytes(data)
        elif how == "missing":
            part.unlink()
        else:
            (folder / checkpoint.INDEX).write_text("{}")
    error = FileNotFoundError if how == "no parent" else ValueError
    with pytest.raises(error, match="checkpoint: ") as caught:
        search(Stopping(0, AssertionError), folder)
    assert "kept" in str(caught.value)


def test_half_answers_take_half_the_room(tmp_path):
    inner = model().fn
    half = FlowModel(lambda x, t: inner(x.float(), t).to(x.dtype))
    sizes = {}
    for dtype in (torch.float32, torch.bfloat16):
        folder = tmp_path / str(dtype)
        noise = noise_of(3, 500).to(dtype)
        wanted = dp_search(half, noise, 3, teacher_steps=10)
        for _ in range(2):
            same(search(half, folder, noise), wanted)
        sizes[dtype] = sum(file.stat().st_size for file in folder.glob("answers*"))
        shutil.rmtree(folder)
    assert sizes[torch.bfloat16] < 0.6 * sizes[torch.float32]


def test_a_cost_that_watches_the_model_is_refused(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(5, 5))
    asked = FlowModel(lambda x, t: net(x))
    with pytest.raises(ValueError, match="checkpoint: got one with cost 'perceptual', which watches the model"):
        search(asked, tmp_path / "kept", cost=Perceptual(net, "0"))


def test_the_index_is_for_people(tmp_path):
    search(model(), tmp_path / "kept")
    index = json.loads((tmp_path / "kept" / checkpoint.INDEX).read_text())
    assert index["format"] == "oss_ext.checkpoint" and index["facts"]["steps"] == 3
    assert [part["file"] for part in index["parts"]] == sorted(
        file.name for file in (tmp_path / "kept").glob("answers*")
    )


def test_ctrl_c_twice_saves_all_the_same(tmp_path, ctrl_c, monkeypatch):
    class Twice(Stopping):
        def velocity(self, x, t, cond=None):
            if len(self.calls) == 5:
                threading.Timer(0.005, os.kill, (os.getpid(), signal.SIGINT)).start()
                signal.raise_signal(signal.SIGINT)
            return super().velocity(x, t, cond)

    save = checkpoint.Checkpoint.save

    def slow(self):
        time.sleep(0.1)
        save(self)

    monkeypatch.setattr(checkpoint.Checkpoint, "save", slow)
    with pytest.raises(KeyboardInterrupt):
        search(Twice(), tmp_path / "kept")
    assert len(list((tmp_path / "kept").glob("answers*"))) == 1
