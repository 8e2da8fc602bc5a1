"""What a search was answered, kept in a folder, so that one that was stopped goes on where it was.

A search is made again from its answers: everything but the model's evaluations is repeated, which costs next to nothing
and gives the same bits, whatever the search. Velocities lie in safetensors files, what was asked in one JSON file.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from oss_ext.files import whole_file
from oss_ext.teacher import Ask

INDEX = "checkpoint.json"
SECONDS, BYTES = 30.0, 2**28
"""Answers to asks of one node are saved when this long has passed, or when they are this many."""
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Relative difference at which a model that gives other bits is taken for another model; of half types 2e-2."""
Tick: TypeAlias = Callable[[int], None]
Evaluate: TypeAlias = Callable[[Ask, Tick], Tensor]


class _Record(BaseModel):
    """One ask. total, size: the sums of its states and of their absolute values."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    shape: list[int]
    t: list[float]
    total: float
    size: float


class _Part(BaseModel):
    """One file of answers. digest: of its bytes."""

    model_config = ConfigDict(extra="forbid", strict=True)
    file: str
    digest: str
    asks: list[_Record]


class _Index(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    format: Literal["oss_ext.checkpoint"] = "oss_ext.checkpoint"
    version: Literal[1] = 1
    facts: dict[str, JsonValue]
    parts: list[_Part] = []


class Checkpoint:
    """The folder `path` of a search that `facts` (JSON values) describe. A context manager: on leaving, also by an
    exception or Ctrl-C, what was not yet saved is.

    dtype: what the network is fed; answers that it can hold exactly are stored in it.

    Raises ValueError for a folder of something else, one of another search (what differs is named), or a file that
    cannot be read; FileNotFoundError where the parent folder is missing.
    """

    def __init__(self, path: str | os.PathLike[str], facts: dict[str, Any], dtype: torch.dtype) -> None:
        self._path, self._dtype = Path(path), dtype
        self._asked = 0  # this time
        self._pending: list[tuple[_Record, Tensor]] = []
        self._loaded: tuple[int, dict[str, Tensor]] | None = None
        self._saved = time.monotonic()
        if self._path.exists() and not self._path.is_dir():
            raise ValueError(f"checkpoint: {self._path} is a file, wanted a folder")
        if not self._path.absolute().parent.is_dir():
            raise FileNotFoundError(f"checkpoint: {self._path}: its parent folder does not exist")
        if (self._path / INDEX).exists():
            self._index = self._read(facts)
        elif self._path.exists() and any(self._path.iterdir()):
            raise ValueError(f"checkpoint: {self._path} is a folder without {INDEX} and not empty, wanted a new one")
        else:
            self._index = _Index(facts=facts)
            self._path.mkdir(exist_ok=True)
            self.save()
        self._known = [record for part in self._index.parts for record in part.asks]

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _undisturbed():
            self.save()

    def answer(self, ask: Ask, evaluate: Evaluate, tick: Tick) -> Tensor:
        """As `evaluate` answers, or answered before. tick: told of the evaluations, made now or then."""
        record = _record(ask)
        number = self._asked
        self._asked += 1
        if number < len(self._known):
            self._check(record, self._known[number], number)
            known = self._load(number).to(ask.states.device, ask.states.dtype)
            if number == 0:
                self._check_model(ask, known, evaluate)
            tick(record.shape[0] * record.shape[1])
            return known if ask.out is None else ask.out.copy_(known)
        sent = evaluate(ask, tick)
        self._pending.append((record, self._packed(sent)))
        waiting = sum(answer.nbytes for _, answer in self._pending)
        if record.shape[1] > 1 or waiting > BYTES or time.monotonic() - self._saved > SECONDS:
            self.save()
        return sent

    def save(self) -> None:
        """Writes the answers that wait, first a file of them, then the index that names it; each is whole or absent."""
        if not self._pending and (self._path / INDEX).exists():
            return
        parts = list(self._index.parts)
        if self._pending:
            name = f"answers_{len(parts):04d}.safetensors"
            data = safetensors.torch.save({str(n): answer for n, (_, answer) in enumerate(self._pending)})
            with whole_file(self._path / name) as file:
                file.write_bytes(data)
            parts.append(_Part(file=name, digest=_digest(data), asks=[record for record, _ in self._pending]))
        index = self._index.model_copy(update={"parts": parts})
        with whole_file(self._path / INDEX) as file:
            file.write_text(index.model_dump_json(indent=1) + "\n", encoding="utf-8")
        self._index, self._pending, self._saved = index, [], time.monotonic()

    def _packed(self, answer: Tensor) -> Tensor:
        """On the CPU, a copy."""
        narrow = answer.detach().to(self._dtype)
        exact = bool((narrow.to(answer.dtype) == answer).all())
        return (narrow if exact else answer.detach()).to("cpu", copy=True).contiguous()

    def _read(self, facts: dict[str, Any]) -> _Index:
        try:
            index = _Index.model_validate_json((self._path / INDEX).read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(
                f"checkpoint: {self._path / INDEX} is no index of a checkpoint ({first['msg']}); delete the folder to "
                "start anew"
            ) from None
        for name in [*facts, *index.facts]:
            if index.facts.get(name) != facts.get(name):
                old, new = index.facts.get(name), facts.get(name)
                raise ValueError(
                    f"checkpoint: {self._path} is of another search: {name}: it has {old!r}, this one {new!r}; name "
                    "another folder, or delete it"
                )
        return index

    def _load(self, number: int) -> Tensor:
        """The answer to this ask, from its file, which stays in memory until another is wanted."""
        at = 0
        while number >= len(self._index.parts[at].asks):
            number -= len(self._index.parts[at].asks)
            at += 1
        if self._loaded is None or self._loaded[0] != at:
            part = self._index.parts[at]
            file = self._path / part.file
            try:
                data = file.read_bytes()
                answers = safetensors.torch.load(data) if _digest(data) == part.digest else {}
            except (OSError, SafetensorError) as error:
                raise ValueError(
                    f"checkpoint: {file} cannot be read ({error}); delete the folder to start anew"
                ) from error
            if len(answers) != len(part.asks):
                raise ValueError(f"checkpoint: {file} is not what was written; delete the folder to start anew")
            self._loaded = at, answers
        return self._loaded[1][str(number)]

    def _check(self, record: _Record, known: _Record, number: int) -> None:
        room = 1e-6 * known.size
        alike = record.shape == known.shape and record.t == known.t
        if not alike or abs(record.total - known.total) > room or abs(record.size - known.size) > room:
            raise ValueError(
                f"checkpoint: {self._path} answers other questions than this search asks (number {number + 1}): it was "
                "made by another version or on other hardware; name another folder, or delete it"
            )

    def _check_model(self, ask: Ask, known: Tensor, evaluate: Evaluate) -> None:
        """Evaluates the first ask again, which is not counted."""
        now = evaluate(ask._replace(out=None), lambda made: None)
        if torch.equal(now, known):
            return
        off = float((now - known).double().norm() / known.double().norm())
        text = f"checkpoint: {self._path}: the model's first outputs differ from those kept, by {off:.1e} of their size"
        if not off <= CLOSE.get(self._dtype, 2e-2):
            raise ValueError(f"{text}: it is of another model; name another folder, or delete it")
        warnings.warn(f"{text}: another batch size, or a model that does not repeat its bits?", stacklevel=2)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without another Ctrl-C: a terminal and a launcher may each send one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _record(ask: Ask) -> _Record:
    states = ask.states
    return _Record(
        shape=list(states.shape),
        t=ask.t.tolist(),
        total=float(states.sum(dtype=torch.float64)),
        size=float(states.abs().sum(dtype=torch.float64)),
    )


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
