"""How benchmarks measure here: medians over repeated runs, ceilings of the machine, one result file a benchmark."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"


def timed(call: Callable[[int], object], device: torch.device, runs: int, warm: int = 3) -> dict[str, float]:
    """Milliseconds of `call(k)`, k = 0, 1, ...: median, quartiles, runs. `k` lets a call rotate its inputs."""
    for k in range(warm):
        call(k)
    samples = []
    for k in range(runs):
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call(k)
            end.record()
            end.synchronize()
            samples.append(begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            call(k)
            samples.append(1e3 * (time.perf_counter() - start))
    low, median, high = statistics.quantiles(samples, n=4)
    return {"median_ms": median, "quartile_low_ms": low, "quartile_high_ms": high, "runs": runs}


def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written, of a large device-to-device copy."""
    source = torch.randn(2**28, device=device)
    target = torch.empty_like(source)
    took = timed(lambda _: target.copy_(source), device, 20)
    return 2 * source.numel() * 4 / (took["median_ms"] * 1e-3)


def fp32_rate(device: torch.device) -> float:
    """Fused multiply-adds a second in fp32 at the highest clock: multiprocessors x 128 x clock."""
    count = torch.cuda.get_device_properties(device).multi_processor_count
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits", "-i", str(device.index or 0)]
    megahertz = float(subprocess.run(query, check=True, capture_output=True, text=True).stdout)
    return count * 128 * megahertz * 1e6


def commit() -> str:
    """The commit measured: OSS_COMMIT where the tree came without git; "+" if there are uncommitted changes."""
    if "OSS_COMMIT" in os.environ:
        return os.environ["OSS_COMMIT"]
    run = {"cwd": RESULTS.parent, "capture_output": True, "text": True, "check": True}
    name = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **run).stdout.strip()
    changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **run).stdout.strip()
    return name + ("+" if changed else "")


def environment(device: torch.device) -> dict[str, Any]:
    """Date, commit and machine: what every result file starts with."""
    cuda = device.type == "cuda"
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def save(name: str, result: dict[str, Any], folder: Path | None = None) -> Path:
    """Writes `name`.json whole or not at all."""
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)
    return path
