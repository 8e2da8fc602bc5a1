"""Several processes that share a search find, bit by bit, what one process finds."""

from __future__ import annotations

import os
import re
import time

import pytest
import torch
import torch.distributed as dist
from helpers.analytic import normal
from helpers.processes import together
from torch import Tensor

from oss_ext import Auto, FlowModel, dp_search
from oss_ext.costs import Feature
from oss_ext.ranks import ALONE, Group

AUTO = Auto(searched=("euler", "fitted"), grids=("flow",), stock=("euler",), moves=24, objective="psnr")
CASES = {
    "euler": {},
    "fitted, free start": {"solver": "fitted", "start": "free"},
    "mixed, one each": {"solver": "mixed", "share": "per_sample"},
    "median": {"share": "median", "start": "free"},
    "beam": {"solver": "fitted", "beam": 2},
    "gains": {"calibration": "gain"},
    "scales": {"calibration": "scale", "solver": "dpmpp_2m"},
    "gains of each": {"calibration": "gain", "share": "per_sample", "solver": "unipc"},
    "auto": {"solver": AUTO},
    "x0": {"cost": "x0", "solver": "ab2"},
    "x0 of each": {"cost": "x0", "share": "per_sample"},
    "features": {"cost": Feature(torch.sin, sources=3)},
}
SHARDS = [([3, 1, 0], 5), ([0, 2, 2], 70)]
"""The samples of every rank, and their length: short rows, which all ranks gather, and long ones."""


def model() -> FlowModel:
    """Its outputs have the same bits in any batch."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        t = t.to(x).view(-1, *[1] * (x.ndim - 1))
        return (x - 2 / (1 + x * x)) * (0.3 + t) - t * t

    return FlowModel(velocity)


def noise_of(samples: int, dim: int) -> Tensor:
    return normal(samples, dim, dtype=torch.float32)


def found(result) -> list:
    """JSON values of all that ranks have in common."""
    schedules = [one if isinstance(one, list) else [one] for one in result.schedules.values()]
    tables = [] if result.values is None else [result.values.tolist(), result.backpointers.tolist()]
    costs = {str(budget): cost.tolist() for budget, cost in result.costs.items()}
    flat = [each for some in schedules for each in some]
    numbers = [[repr(each), each.t.tolist(), each.coefficients.tolist(), each.noise_scale] for each in flat]
    return [costs, result.nfe, tables, numbers, result.table]


def search_cases(rank: int) -> list:
    out = []
    for counts, dim in SHARDS:
        first = sum(counts[:rank])
        mine = noise_of(sum(counts), dim)[first : first + counts[rank]]
        for options in CASES.values():
            result = dp_search(
                model(), mine, 4, teacher_steps=16, process_group=dist.group.WORLD, timeout=30, **options
            )
            out.append([found(result), {str(budget): end.tolist() for budget, end in result.endpoints.items()}])
    return out


def test_ranks_find_what_one_process_finds(tmp_path):
    every = together(3, tmp_path / "ranks", search_cases)
    assert None not in every
    place = 0
    for counts, dim in SHARDS:
        for name, options in CASES.items():
            one = dp_search(model(), noise_of(sum(counts), dim), 4, teacher_steps=16, **options)
            for rank in range(3):
                assert repr(every[rank][place][0]) == repr(found(one)), (name, dim, rank)
            for budget, end in one.endpoints.items():
                ends = [row for rank in range(3) for row in every[rank][place][1][str(budget)]]
                assert ends == end.tolist(), (name, dim)
            place += 1


def one_fails(rank: int, how: str) -> str:
    calls = 0

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if rank == 1 and calls == 17:  # in a stage
            if how == "dies":
                os._exit(7)
            if how == "hangs":
                time.sleep(4)
            return x / 0
        return -x

    options = {"steps": 3 + (rank == 1 and how == "differs")}
    if how == "bad argument" and rank == 1:
        options["batch_size"] = -1
    if how == "other call" and rank == 1:
        options["solver"] = "fitted"
    noise = noise_of(0 if how == "none" else 2, 70)
    began = time.monotonic()
    try:
        dp_search(FlowModel(velocity), noise, teacher_steps=16, process_group=dist.group.WORLD, timeout=1.5, **options)
    except (RuntimeError, ValueError) as error:
        return f"{time.monotonic() - began:.1f} s {type(error).__name__}: {error}"
    return "no error"


@pytest.mark.parametrize(
    ("how", "own", "others"),
    [
        ("dies", None, "RanksError: rank [02] lost another rank, which died or left the search"),
        ("NaN", "ValueError: model: returned NaN or inf", "RanksError: rank 1 failed: ValueError: model: returned NaN"),
        (
            "bad argument",
            "ValueError: batch_size: got -1",
            "rank 1 failed: ValueError: batch_size: got -1, wanted at least",
        ),
        ("differs", "RanksDiffer: steps: rank 0 has 3, rank 1 has 4; wanted the same on every rank", None),
        ("other call", "RanksDiffer: solver: rank 0 has 'euler', rank 1 has 'fitted'", None),
        ("none", "RanksDiffer: noise: no rank has a sample", None),
        ("hangs", "s", "RanksError: rank [02] waited 1.5 s for the others"),
    ],
)
def test_one_rank_fails_and_all_say_so(how, own, others, tmp_path):
    said = together(3, tmp_path / "ranks", one_fails, how)
    assert (said[1] is None) == (own is None)
    for rank, text in enumerate(said):
        wanted = own if rank == 1 else others or own
        if wanted is not None:
            assert re.search(wanted, text), (rank, text)
            assert float(text.split()[0]) < 10


def test_what_goes_round(tmp_path):
    """Parts of the samples, numbers and texts over four ranks, one of them empty."""
    for answer in together(4, tmp_path / "ranks", exchanges):
        assert answer == "as wanted"


def exchanges(rank: int) -> str:
    from oss_ext.ranks import Meeting

    counts = [2, 0, 3, 1]
    with Meeting(dist.group.WORLD, 20.0) as everyone:
        ranks = everyone.sharing(counts[rank])
        assert isinstance(ranks, Group) and ranks.rank == rank and ranks.count(counts[rank]) == 6
        rows = torch.arange(12.0).view(6, 2)
        mine = ranks.mine(rows)
        assert len(mine) == counts[rank]
        for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int32, torch.bool):
            assert torch.equal(ranks.gather(mine.to(dtype)), rows.to(dtype))
        assert torch.equal(ranks.gather(mine[:, 0]), rows[:, 0])
        for begin in range(6):
            for end in range(begin, 9):
                part, holders = ranks.part(begin, end)
                assert torch.equal(holders.gather(mine[part]), rows[begin:end])
                assert holders.count(len(mine[part])) == len(rows[begin:end])
        assert ranks.most(-float(rank)) == 0 and ranks.total([rank, 1]) == [6, 4]
        ranks.agree({"a": [1.5, None]}, "")
    return "as wanted"


def test_one_process_is_alone():
    rows = normal(3, 2)
    assert ALONE.gather(rows) is rows and ALONE.mine(rows) is rows and ALONE.count(3) == 3
    part, ranks = ALONE.part(1, 3)
    assert part == slice(1, 3) and ranks is ALONE


@pytest.mark.parametrize(
    ("bad", "error", "match"),
    [
        ({"process_group": "gloo"}, TypeError, "process_group: got str, wanted a group of torch.distributed"),
        ({"timeout": 0}, ValueError, "timeout: got 0, wanted seconds > 0"),
        ({"timeout": "1"}, ValueError, "timeout: got '1'"),
    ],
)
def test_bad_input(bad, error, match):
    with pytest.raises(error, match=match):
        dp_search(model(), noise_of(2, 5), 3, teacher_steps=8, **bad)


def refused(rank: int) -> str:
    try:
        dp_search(model(), noise_of(2, 5), 3, teacher_steps=8, process_group=dist.group.WORLD, refine="nodes")
    except ValueError as error:
        return str(error)
    return "taken"


def test_refine_is_refused(tmp_path):
    assert together(1, tmp_path / "ranks", refused) == ["process_group: got one with refine 'nodes', wanted None"]


ON_GPUS = {
    "fitted": {"solver": "fitted", "teacher_steps": 16},
    "euler, all of many nodes": {"teacher_steps": 200, "candidates": 200, "teacher_solver": "euler"},
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPUS)
def test_nccl(name, cuda_device, tmp_path):
    """One GPU a rank, as many as there are: torch refuses two ranks on one."""
    size = min(torch.cuda.device_count(), 4)
    every = together(size, tmp_path / "ranks", search_on_gpus, name, backend="nccl")
    assert None not in every
    one = dp_search(model(), noise_of(5, 300).to(cuda_device), 4, **ON_GPUS[name])
    assert all(repr(each) == repr(found(one)) for each in every)


def search_on_gpus(rank: int, name: str) -> list:
    torch.cuda.set_device(rank)
    mine = noise_of(5, 300).to("cuda").tensor_split(dist.get_world_size())[rank]
    return found(dp_search(model(), mine, 4, process_group=dist.group.WORLD, timeout=60, **ON_GPUS[name]))


@pytest.mark.slow
def test_torchrun(tmp_path):
    """The command, started three times over by torchrun, writes what it writes alone."""
    import subprocess
    import sys

    alone = [sys.executable, "-m", "oss_ext", "search", "photo32", "--steps", "3", "--teacher-steps", "12"]
    alone += ["--samples", "4", "--device", "cpu", "--batch-size", "1", "--out"]
    start = ["-m", "torch.distributed.run", "--nproc-per-node=3"]
    for command, out in ((alone, "one"), ([sys.executable, *start, *alone[1:]], "three")):
        done = subprocess.run([*command, str(tmp_path / out)], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Wrote") == 1
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert len(files) == 3
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()
