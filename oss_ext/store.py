"""Where the states of a search are kept: beside the noise, or in host memory where they do not fit there."""

from __future__ import annotations

import torch
from torch import Tensor

from oss_ext.validate import choice

STORES = ("auto", "device", "host")
SHARE = 0.8
"""Of the device's free memory: what the states may take; the rest is left to the model's activations."""


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


def states_of_search(nodes: int, candidates: int, history: int, beam: int) -> int:
    """How many states a sample a search holds at once.

    nodes: N + 1 of the teacher's grid. candidates: those that are looked at, the clean one included. history: of the
    solver. The teacher holds all its nodes, a few states more, and a copy of the candidates; a stage for each of its
    rows the state, the output, the winner and the answer to its ask, and the history twice, before and after.
    """
    return nodes + 3 + candidates * (1 + beam * (4 + 2 * history))


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
