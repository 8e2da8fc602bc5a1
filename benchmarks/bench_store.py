"""What it costs to keep a search's states in host memory: a video's latents, pinned or not, beside the GPU's memory.

    python benchmarks/bench_store.py                      # 16 x 21 x 60 x 104, 100 nodes; results/store.json
    python benchmarks/bench_store.py --device cpu --tiny  # does it run?

The network is a stand-in of known length: matrix products of so many milliseconds, and an elementwise velocity. Of each
store: seconds of the search; of them asks, from a state's leaving its table to its output's arrival there; the
network's own; and what an evaluation waits for copies, which is the rest of the asks. kernels: all outside of asks, by
the CPU's kernels where the states are in host memory. peak: device memory above what the network had. same: the
endpoints have the bits of the first row of the same memory.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import measure
import torch
from torch import Tensor

from oss_ext import FlowModel, grids, store
from oss_ext.drive import answer
from oss_ext.evaluate import evaluate
from oss_ext.search_core import dp_core
from oss_ext.teacher import Ask

WAN = (16, 21, 60, 104)
TINY = (4, 3, 6, 10)


class Network:
    """velocity(x, t), after `products` of two matrices."""

    def __init__(self, device: torch.device, size: int, products: int) -> None:
        self._matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16) / size**0.5
        self._products = products

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        made = self._matrix
        for _ in range(self._products):
            made = made @ self._matrix
        return torch.sin(x) * t.to(x.dtype).view(-1, *[1] * (x.ndim - 1)) - 0.3 * x


def bench(name: str, noise: Tensor, network: Network, steps: int, nodes: int, pin: bool) -> tuple[dict[str, Any], Any]:
    """One search, and what it found. name: "device" or "host"."""
    model, asking, made = FlowModel(network), 0.0, 0

    def reply(ask: Ask) -> Tensor:
        nonlocal asking, made
        began = time.perf_counter()
        settings = {"cond": {}, "dtype": noise.dtype, "batch_size": 1, "labels": None, "device": noise.device}
        sent = evaluate(model, ask.states, ask.t, tick=lambda count: None, out=ask.out, **settings)
        asking += time.perf_counter() - began
        made += ask.states.shape[0] * ask.states.shape[1]
        return sent

    cuda = noise.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(noise.device)
    before = torch.cuda.memory_allocated(noise.device) if cuda else 0
    began = time.perf_counter()
    with warnings.catch_warnings(), mock.patch.object(store, "PINNED_SHARE", store.PINNED_SHARE if pin else 0):
        warnings.filterwarnings("ignore", "store: ")
        core = dp_core(noise, grids.make("flow", nodes), steps, solver="dpmpp_2m", candidates=nodes, store=name)
        found = answer(core, reply)
    if cuda:
        torch.cuda.synchronize(noise.device)
    row = {
        "store": found.store,
        "seconds": time.perf_counter() - began,
        "asks_s": asking,
        "evaluations": made,
        "peak_bytes": torch.cuda.max_memory_allocated(noise.device) - before if cuda else None,
    }
    store.give_back(found.store)
    return row, found.endpoints


def table(rows: list[dict[str, Any]]) -> str:
    heads = ["seconds", "asks s", "network s", "copies ms", "kernels s", "peak GiB", "same"]
    lines = [f"{'':>14}" + "".join(f"{head:>11}" for head in heads)]
    for row in rows:
        network = row["network_ms"] * row["evaluations"] / 1e3
        copies = 1e3 * (row["asks_s"] - network) / row["evaluations"]
        numbers = [row["seconds"], row["asks_s"], network, copies, row["seconds"] - row["asks_s"]]
        cells = [f"{number:11.2f}" for number in [*numbers, (row["peak_bytes"] or 0) / 2**30]]
        lines.append(f"{row['store']:>14}" + "".join(cells) + f"{row['same']!s:>11}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--products", type=int, default=16, help="of matrices of 8192 numbers a side, an evaluation")
    parser.add_argument("--tiny", action="store_true", help="small latents, and nothing saved")
    parser.add_argument("--out", type=Path, default=None, help="folder for store.json; default: benchmarks/results")
    options = parser.parse_args()
    device = torch.device(options.device)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, *(TINY if options.tiny else WAN), generator=generator).to(device)
    network = Network(device, 64 if options.tiny else 8192, options.products)
    t = torch.ones(1, dtype=torch.float64)
    alone = measure.timed(lambda _: network(noise, t), device, 10)["median_ms"]
    rows: list[dict[str, Any]] = []
    first: dict[str, Any] = {}
    cases = [("device", True), ("host", True), ("host", False)]
    for name, pin in [cases[1], *cases] if device.type == "cuda" else cases:  # the first warms up
        row, endpoints = bench(name, noise, network, options.steps, options.nodes, pin)
        wanted = first.setdefault(name, endpoints)
        same = all(torch.equal(endpoints[budget], end) for budget, end in wanted.items())
        rows.append({**row, "network_ms": alone, "same": same})
        print(table(rows[-1:]), flush=True)
    rows = rows[-len(cases) :]
    print(table(rows))
    if not options.tiny:
        about = {"latents": list(noise.shape), "steps": options.steps, "nodes": options.nodes}
        print("saved", measure.save("store", measure.environment(device) | about | {"rows": rows}, options.out))


if __name__ == "__main__":
    main()
