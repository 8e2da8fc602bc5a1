"""What the commands share: consoles, progress bars, devices and models by name."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text
from torch import Tensor

from oss_ext import zoo
from oss_ext.build import build_info
from oss_ext.models import Denoiser
from oss_ext.progress import ProgressCallback

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def stdout() -> Console:
    return Console()


def stderr() -> Console:
    return Console(stderr=True)


def speaker(as_json: bool) -> Console:
    """Where a command talks to people: with --json standard output belongs to the one object."""
    return stderr() if as_json else stdout()


def print_json(content: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    print(json.dumps(content, indent=2, allow_nan=False))


class _Left(ProgressColumn):
    """Evaluations and time left; of a finished task how many they were and how long they took."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("")
        if task.finished:
            spent = timedelta(seconds=round(task.finished_time or 0))
            return Text(f"{int(task.total):,} evaluations in {spent}", no_wrap=True)
        left = task.time_remaining
        time_left = "-:--:--" if left is None else timedelta(seconds=round(left))
        return Text(f"{int(task.total - task.completed):,} evaluations, {time_left} left", no_wrap=True)


class Bars:
    """Progress bars, one a task."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars

    def add(self, description: str, total: int | None = None) -> ProgressCallback:
        """A new bar, shown from its first move. Returns what moves it; a `total` given here stays."""
        task = self._bars.add_task(description, total=total, visible=False)

        def move(made: int, in_all: int) -> None:
            self._bars.update(task, completed=made, total=total if total is not None else in_all, visible=True)

        return move


def shifted(callback: ProgressCallback, before: int) -> ProgressCallback:
    """`callback` for a part of a task, `before` evaluations of which are made already."""
    return lambda made, in_all: callback(before + made, in_all)


@contextmanager
def progress_bars(console: Console) -> Iterator[Bars]:
    with Progress(TextColumn("{task.description:<18}"), BarColumn(bar_width=24), _Left(), console=console) as bars:
        yield Bars(bars)


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto": the GPU where this build and torch can use one, else the CPU."""
    able = bool(build_info()["cuda"]) and torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if able else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: got {name!r}, wanted auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: got {name!r}, wanted auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not able:
        why = "torch sees no CUDA GPU" if build_info()["cuda"] else "this build of oss_ext has CPU kernels only"
        raise ValueError(f"device: got {name!r}, but {why}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: got {name!r}, but torch sees {torch.cuda.device_count()} GPU(s)")
    return device


def pick_dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"dtype: got {name!r}, wanted one of {', '.join(DTYPES)}")
    return DTYPES[name]


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """(3, 32, 32) of "3,32,32"."""
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ValueError(f"shape: got {text!r}, wanted whole numbers of at least 1 with commas, such as 3,32,32")
    return shape


def parse_model_args(items: Sequence[str]) -> dict[str, Any]:
    """{"width": 8} of ["width=8"]; values are JSON, strings in quotes."""
    values: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"model-arg: got {item!r}, wanted key=value")
        if key in values:
            raise ValueError(f"model-arg: got {key!r} twice")
        try:
            values[key] = json.loads(text)
        except json.JSONDecodeError:
            raise ValueError(f"model-arg: got {text!r} for {key}, wanted a JSON value (strings in quotes)") from None
    return values


@dataclass(frozen=True)
class Source:
    """A model by name, and how noise for it is made."""

    spec: str
    model: Denoiser
    device: torch.device
    dtype: torch.dtype

    @property
    def takes_split(self) -> bool:
        """Whether the model's noise() knows splits: "search" and "heldout"."""
        own = getattr(self.model, "noise", None)
        return own is not None and "split" in inspect.signature(own).parameters

    def noise(
        self, count: int, *, split: str | None, seed: int | None, shape: tuple[int, ...] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Unit normal noise [count, ...] and the condition {name: [count, ...]}.

        Where the model has `noise(count)`, that gives both; with `seed` or `shape` it gives only the condition, and the
        noise is torch's from that seed (0) on the CPU.
        """
        if count < 1:
            raise ValueError(f"samples: got {count}, wanted at least 1")
        own = getattr(self.model, "noise", None)
        cond: dict[str, Tensor] = {}
        if own is not None:
            if split is not None and not self.takes_split:
                raise ValueError(f"split: got {split!r}, but the noise() of {self.spec} takes no split")
            drawn, cond = own(count, split=split) if split is not None else own(count)
            cond = {key: value.to(self.device) for key, value in cond.items()}
            if seed is None and shape is None:
                return drawn.to(self.device, self.dtype), cond
        elif split is not None:
            raise ValueError(f"split: got {split!r}, but {self.spec} has no noise(); use --seed")
        wanted = shape if shape is not None else getattr(self.model, "shape", None)
        if wanted is None:
            raise ValueError(f"shape: {self.spec} has no .shape, so --shape is needed, such as --shape 3,32,32")
        generator = torch.Generator().manual_seed(seed or 0)
        return torch.randn(count, *wanted, generator=generator).to(self.device, self.dtype), cond


def load_model(
    spec: str, arguments: dict[str, Any], *, guidance: float | None, device: torch.device, dtype: torch.dtype
) -> Source:
    """The model that `spec` names: one of the zoo's, or what package.module:function returns for `arguments`."""
    if ":" not in spec:
        if spec not in zoo.names():
            raise ValueError(f"model: got {spec!r}, wanted one of {', '.join(zoo.names())}, or package.module:function")
        if arguments:
            raise ValueError(f"model-arg: {spec} takes none (got {', '.join(arguments)})")
        scale = 1.0 if guidance is None else guidance
        return Source(spec, zoo.load(spec, guidance_scale=scale, device=device, dtype=dtype), device, dtype)
    if guidance is not None:
        raise ValueError(f"guidance: is for bundled models; hand {spec} its own with --model-arg")
    model = import_function(spec, "model")(**arguments)
    if not isinstance(model, Denoiser):
        raise TypeError(f"model: {spec} returned {type(model).__name__}, wanted a Denoiser such as oss_ext.FlowModel")
    return Source(spec, model, device, dtype)


def import_function(spec: str, argument: str) -> Callable[..., Any]:
    """What "package.module:name" names, a callable. argument: what errors call it."""
    module_name, _, function_name = spec.partition(":")
    if not function_name:
        raise ValueError(f"{argument}: got {spec!r}, wanted package.module:name")
    if os.getcwd() not in sys.path:  # as `python -m` would
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ImportError(f"{argument}: {spec}: {error} (the current folder is on the path)") from error
    for part in function_name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{argument}: {module_name} has no {function_name!r}")
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{argument}: {spec} is {type(found).__name__}, wanted a function")
    function: Callable[..., Any] = found
    return function
