"""Where the states of a search are kept: beside the noise, or in host memory where they do not fit there."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from oss_ext.transfer import is_pinned, not_pinned
from oss_ext.validate import choice

STORES = ("auto", "device", "host")
SHARE = 0.8
"""Of the device's free memory: what the states may take; the rest is left to the model's activations."""
PINNED_SHARE = 0.5
"""Of the host memory that is available: what pinned states may take, which the system cannot move."""
PINNED = " (pinned)"
_LOG = logging.getLogger("oss_ext")


def home(store: str, noise: Tensor, count: int) -> torch.device:
    """Where `count` states a sample are to be kept: on the device of the noise, or on the CPU; by "auto" there if they
    would take more than `SHARE` of the device's free memory. noise: [B, ...], in the states' dtype.

    Raises TypeError or ValueError for another `store`.
    """
    choice("store", store, STORES)
    host = torch.device("cpu")
    if store == "device" or noise.device == host:
        return noise.device
    wanted = noise.numel() * noise.element_size() * count
    return host if store == "host" or wanted > SHARE * free_bytes(noise.device) else noise.device


def keep(store: str, noise: Tensor, count: int) -> Tensor:
    """The noise where `count` states a sample are to be kept (see `home`). In host memory beside a GPU it is pinned,
    and so is what `transfer.empty` makes like it, unless the states would take more than `PINNED_SHARE` of what is
    available or pinning fails: a warning says so."""
    at = home(store, noise, count)
    if at == noise.device:
        return noise
    size = noise.numel() * noise.element_size() * count
    kept = noise.to(at)
    if noise.device.type != "cuda":
        return kept
    room = host_bytes()
    if size > PINNED_SHARE * room:
        reason = f"pinned they may take {PINNED_SHARE:g} of the {room / 2**30:.3g} GiB that are available"
        warnings.warn(not_pinned(size, reason), stacklevel=2)
        return kept
    try:
        with torch.cuda.device(noise.device):
            kept = kept.pin_memory()
    except RuntimeError as error:
        warnings.warn(not_pinned(size, str(error)), stacklevel=2)
    else:
        _LOG.info("store: %.3g GiB of states in pinned host memory", size / 2**30)
    return kept


def place(kept: Tensor) -> str:
    """Where the states beside `kept` are, in words: "cuda:0", "cpu", "cpu (pinned)"."""
    return f"{kept.device}{PINNED}" if is_pinned(kept) else str(kept.device)


def give_back(where: str) -> None:
    """Returns what a search kept in pinned memory to the system; torch would hold on to it.
    where: as from `place`."""
    if where.endswith(PINNED):
        empty = getattr(torch.accelerator, "empty_host_cache", None) or getattr(torch._C, "_host_emptyCache")  # noqa: B009
        empty()


def states_of_search(nodes: int, candidates: int, history: int, beam: int) -> int:
    """How many states a sample a search holds at once.

    nodes: N + 1 of the teacher's grid. candidates: those that are looked at, the clean one included. history: of the
    solver. The teacher holds all its nodes, a few states more, and a copy of the candidates; a stage for each of its
    rows the state, the output, the winner and what is being computed, and the history twice, before and after; a beam
    also what it asks and the answer, because its rows are not neighbours.
    """
    rows = 4 + 2 * history + (2 if beam > 1 else 0)
    return nodes + 3 + candidates * (1 + beam * rows)


def states_of_cost(candidates: int) -> int:
    """Of a cost other than the distance of states, at most: features of the teacher's as large as states, and the
    states, outputs, asks and features of the candidates beside those of the best."""
    return 7 * candidates


def states_of_path(steps: int, teacher_nodes: int) -> int:
    """Of runs along one path beside another: outputs, a basis and a few states, and the nodes of the teacher kept."""
    return teacher_nodes + 3 * steps + 6


def free_bytes(device: torch.device) -> int:
    """Of a CUDA device, with what torch has set aside and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def host_bytes() -> int:
    """Of this machine's memory, or this process's control group's: what is available."""
    found = []
    for line in _lines("/proc/meminfo"):
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            found.append(int(rest.split()[0]) * 1024)
    limit, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0] != "max":
        found.append(int(limit[0]) - int(used[0]))
    if not found:
        found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(found))


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except OSError:
        return []
