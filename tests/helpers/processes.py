"""Some processes that search together."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _run(rank: int, size: int, folder: str, backend: str, file: str, name: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("job", file)  # test files are no modules that a process could import
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    job = getattr(module, name)
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    text = json.dumps(job(rank, *args))
    partial = Path(folder) / f"{rank}.partial"
    partial.write_text(text)
    os.replace(partial, Path(folder) / str(rank))
    dist.destroy_process_group()


def together(size: int, folder: Path, job: Callable[..., Any], *args: Any, backend: str = "gloo") -> list[Any]:
    """What job(rank, *args) returned on each of `size` ranks, JSON values; None of a rank that died. job: a function
    of a test file."""
    folder.mkdir()
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["oss_ext"])
    file = inspect.getsourcefile(job)
    processes = [
        context.Process(target=_run, args=(rank, size, str(folder), backend, file, job.__name__, args))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    stuck = [process for process in processes if process.exitcode is None]
    for process in stuck:
        process.kill()
    assert not stuck, "a rank hangs"
    files = [folder / str(rank) for rank in range(size)]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]
