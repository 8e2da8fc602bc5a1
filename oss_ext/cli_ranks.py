"""A command that torchrun started several times: who does what."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Crew:
    """group: of torch.distributed; None: one process. device: what `--device` names on this rank."""

    group: Any
    rank: int
    size: int
    device: str

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def leading(self, context: AbstractContextManager[T]) -> AbstractContextManager[T | None]:
        """`context` where this process leads, else one of None."""
        return context if self.leads else nullcontext()

    def share(self, noise: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """This rank's part of the samples, as even as can be."""
        sizes = [len(noise) // self.size + (rank < len(noise) % self.size) for rank in range(self.size)]
        first = sum(sizes[: self.rank])
        mine = slice(first, first + sizes[self.rank])
        return noise[mine], {key: value[mine] for key, value in cond.items()}


@contextmanager
def crew(device: str) -> Iterator[Crew]:
    """The processes that torchrun started, with a GPU each where there are GPUs; else this one alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Crew(None, 0, 1, device)
        return
    import torch.distributed as dist

    local = int(os.environ["LOCAL_RANK"])
    gpu = torch.cuda.is_available() and device in ("auto", "cuda")
    if gpu:
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"device: got {local + 1} processes on a machine, but torch sees "
                f"{torch.cuda.device_count()} GPU(s); wanted --nproc-per-node of at most that"
            )
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    try:
        yield Crew(dist.group.WORLD, dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
