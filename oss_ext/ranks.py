"""The processes that share a search: each has some of the samples, all come to the same decisions.

What crosses samples is gathered, one row a sample, in the order of the ranks, and every rank then computes from the
whole: the same operations on the same numbers as in one process, hence the same bits.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

TIMEOUT = 3600.0
HEADER = 1024  # bytes
_LOG = logging.getLogger("oss_ext")
_BESIDE: dict[tuple[int, ...], Any] = {}  # gloo groups beside NCCL ones, by their members


class RanksError(RuntimeError):
    """The search ended because of another rank: it failed, died, hangs, or was asked for something else."""


class RanksDiffer(RanksError, ValueError):
    """The ranks were told different things."""


class Ranks:
    """One process, which has all samples."""

    rank = 0
    alone = True

    def sharing(self, samples: int) -> Ranks:
        """With so many samples here."""
        return self

    def count(self, here: int) -> int:
        """How many samples there are in all, where this process has `here`."""
        return here

    def part(self, begin: int, end: int) -> tuple[slice, Ranks]:
        """For some of all samples: which rows of this process's those are, and the ranks as they share them."""
        return slice(begin, end), self

    def gather(self, rows: Tensor) -> Tensor:
        """[B, ...] of [b, ...]: the rows of all samples, on the device of `rows`."""
        return rows

    def mine(self, rows: Tensor) -> Tensor:
        """[b, ...] of [B, ...]: this process's."""
        return rows

    def each(self, row: Tensor) -> Tensor:
        """[ranks, ...] of [...]: every process's, on the device of `row`."""
        return row[None]

    def most(self, number: float) -> float:
        """The largest of the ranks' numbers."""
        return number

    def total(self, numbers: Sequence[int]) -> list[int]:
        """The sums of the ranks' whole numbers."""
        return list(numbers)

    def agree(self, facts: Mapping[str, Any], why: str) -> None:
        """Raises `RanksDiffer` unless the JSON values are the same everywhere. why: ends the message."""


ALONE = Ranks()


class Group(Ranks):
    """Several processes. counts: the samples of each rank."""

    alone = False

    def __init__(self, channel: Channel, counts: Sequence[int]) -> None:
        self._channel, self._counts = channel, list(counts)
        self.rank = channel.rank
        self._first = sum(self._counts[: self.rank])

    def sharing(self, samples: int) -> Group:
        counts = self._channel.exchange("samples", torch.tensor([samples]), [1] * self._channel.size)
        if not bool(counts.any()):
            raise RanksDiffer("noise: no rank has a sample, wanted at least one")
        return Group(self._channel, counts.tolist())

    def count(self, here: int) -> int:
        return sum(self._counts)

    def part(self, begin: int, end: int) -> tuple[slice, Group]:
        counts, first = [], 0
        for count in self._counts:
            counts.append(max(0, min(end, first + count) - max(begin, first)))
            first += count
        low = min(max(begin - self._first, 0), self._counts[self.rank])
        return slice(low, low + counts[self.rank]), Group(self._channel, counts)

    def gather(self, rows: Tensor) -> Tensor:
        return self._channel.exchange("rows", rows, self._counts)

    def mine(self, rows: Tensor) -> Tensor:
        return rows[self._first : self._first + self._counts[self.rank]]

    def each(self, row: Tensor) -> Tensor:
        return self._channel.exchange("row", row[None], [1] * self._channel.size)

    def most(self, number: float) -> float:
        every = torch.tensor([number], dtype=torch.float64)
        return float(self._channel.exchange("numbers", every, [1] * self._channel.size).max())

    def total(self, numbers: Sequence[int]) -> list[int]:
        row = torch.tensor([list(numbers)], dtype=torch.int64)
        sums: list[int] = self._channel.exchange("counts", row, [1] * self._channel.size).sum(0).tolist()
        return sums

    def agree(self, facts: Mapping[str, Any], why: str) -> None:
        texts = self._channel.texts("facts", json.dumps(facts))
        first = json.loads(texts[0])
        for rank, text in enumerate(texts):
            other = json.loads(text)
            for name in [*first, *other]:
                if first.get(name) != other.get(name):
                    raise RanksDiffer(
                        f"{name}: rank 0 has {first.get(name)!r}, rank {rank} has {other.get(name)!r}; {why}"
                    )


class Channel:
    """What the ranks of a torch.distributed group exchange, and how they learn that one of them is gone.

    Before the rows a short header goes round, through gloo, beside the group where that has none: from it a rank learns
    that another failed, and no rank starts to send before all are there. Rows on a GPU then go through NCCL where the
    group has it, others through gloo.
    """

    def __init__(self, group: Any, timeout: float) -> None:
        import torch.distributed as dist

        self._dist, self._group, self._timeout = dist, group, timeout
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        backends = str(dist.get_backend_config(group))
        self._nccl = "cuda:nccl" in backends
        self._control, self._order = group, list(range(self.size))
        self._step = 0
        if "cpu:gloo" not in backends:
            members = dist.get_process_group_ranks(group)
            self._order = [members.index(each) for each in sorted(members)]  # how new_group numbers them
            self._control = self._beside(members)

    def _beside(self, members: list[int]) -> Any:
        """A gloo group of the same processes."""
        known = _BESIDE.get(tuple(members))
        if known is not None:
            return known
        wait = timedelta(seconds=self._timeout)
        try:
            # Of all processes: torch numbers such groups. Of some: only their members make it, once.
            if self.size == self._dist.get_world_size():
                group = self._dist.new_group(backend="gloo", timeout=wait)
            else:
                group = self._dist.new_group(members, backend="gloo", timeout=wait, use_local_synchronization=True)
        except RuntimeError as error:
            raise RanksError(
                f"rank {self.rank}: the ranks did not meet within {self._timeout:g} s: {_line(error)}"
            ) from error
        _BESIDE[tuple(members)] = group
        return group

    def exchange(self, what: str, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """[sum of counts, ...]: the rows [count, ...] of every rank in their order. counts: of every rank."""
        self._meet(f"{what} {list(rows.shape[1:])} {rows.dtype}")
        most = max(counts)
        if most == 0:
            return rows
        shape, dtype, device = rows.shape[1:], rows.dtype, rows.device
        flat = rows.reshape(len(rows), math.prod(shape)).clone(memory_format=torch.contiguous_format).view(torch.uint8)
        direct = device.type == "cuda" and self._nccl
        flat = flat if direct else flat.cpu()
        padded = flat.new_zeros(most, flat.shape[1])
        padded[: len(flat)] = flat
        every = [torch.empty_like(padded) for _ in counts]
        if direct:
            self._dist.all_gather(every, padded, group=self._group)
        else:
            self._wait(every, padded, what)
        whole = torch.cat([part[:count] for part, count in zip(every, counts, strict=True)])
        return whole.view(dtype).view(-1, *shape).to(device)

    def texts(self, what: str, text: str) -> list[str]:
        """Every rank's."""
        data = text.encode()
        ones = [1] * self.size
        sizes = self.exchange(f"length of {what}", torch.tensor([len(data)]), ones).tolist()
        own = torch.zeros(1, max(sizes), dtype=torch.uint8)
        own[0, : len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        every = self.exchange(what, own, ones)
        return [bytes(row[:size].tolist()).decode() for row, size in zip(every, sizes, strict=True)]

    def fail(self, error: BaseException) -> None:
        """Tells the others, as soon as they are there, that this rank is not going on."""
        message = f"{type(error).__name__}: {_line(error)}"
        _LOG.error("rank %d failed and waits to tell the others: %s", self.rank, message)
        try:
            self._headers({"error": message})
        except RanksError as gone:
            _LOG.error("rank %d could not tell the others: %s", self.rank, gone)

    def _meet(self, what: str) -> None:
        self._step += 1
        headers = self._headers({"step": self._step, "what": what})
        failed = {rank: header["error"] for rank, header in enumerate(headers) if "error" in header}
        if failed:
            raise RanksError("; ".join(f"rank {rank} failed: {message}" for rank, message in failed.items()))
        for rank, header in enumerate(headers):
            if header != headers[0]:
                raise RanksDiffer(
                    f"rank 0 exchanges {headers[0]['what']}, rank {rank} {header['what']}: wanted the same search on "
                    "every rank"
                )

    def _headers(self, header: dict[str, Any]) -> list[dict[str, Any]]:
        data = json.dumps(header).encode()
        while len(data) > HEADER:  # an error's message, then
            header = {"error": header["error"][: 3 * len(header["error"]) // 4]}
            data = json.dumps(header).encode()
        own = torch.full((HEADER,), ord(" "), dtype=torch.uint8)
        own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        every = [torch.empty_like(own) for _ in range(self.size)]
        self._wait(every, own, header.get("what", "the error"))
        return [json.loads(bytes(each.tolist())) for each in every]

    def _wait(self, every: list[Tensor], own: Tensor, what: str) -> None:
        """all_gather through gloo; looks for Ctrl-C while it waits."""
        end, pause = time.monotonic() + self._timeout, 2e-5
        try:
            into = [every[place] for place in self._order]
            work = self._dist.all_gather(into, own, group=self._control, async_op=True)
            while not work.is_completed():
                if time.monotonic() > end:
                    raise RanksError(
                        f"rank {self.rank} waited {self._timeout:g} s for the others to exchange {what}: one of them "
                        "hangs or is that much slower (timeout says how long to wait)"
                    )
                time.sleep(pause)
                pause = min(2 * pause, 2e-3)
            work.wait()
        except RanksError:
            raise
        except RuntimeError as error:
            raise RanksError(
                f"rank {self.rank} lost another rank, which died or left the search: {_line(error)}"
            ) from error


class Meeting:
    """The ranks of a torch.distributed group for the time of a search; None: this process alone. A context manager.

    An exception within is told to the others, who raise `RanksError` where they next wait for this rank.
    Raises TypeError for something else than a group, ValueError for the timeout.
    """

    def __init__(self, group: Any, timeout: float) -> None:
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
            raise ValueError(f"timeout: got {timeout!r}, wanted seconds > 0")
        self._channel: Channel | None = None
        if group is None:
            return
        import torch.distributed as dist

        if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
            raise TypeError(
                f"process_group: got {type(group).__name__}, wanted a group of torch.distributed that this process is "
                "a member of (torch.distributed.group.WORLD after init_process_group), or None"
            )
        self._channel = Channel(group, float(timeout))

    def __enter__(self) -> Ranks:
        return ALONE if self._channel is None else Group(self._channel, [0] * self._channel.size)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channel is None:
            return
        if isinstance(error, Exception) and not isinstance(error, RanksError):  # Ctrl-C leaves at once
            self._channel.fail(error)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
