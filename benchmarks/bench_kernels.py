"""One stage of the search (cost, minimum, advance; joint, Euler, fp32) beside its floors and its peers.

    python benchmarks/bench_kernels.py                       # every size, on the GPU; saves results/kernels.json
    python benchmarks/bench_kernels.py --size 16,200,12288 --runs 50
    python benchmarks/bench_kernels.py --device cpu --size 1,50,3072     # no floors: a CPU has no known peak here

Inputs rotate through more memory than the last-level cache holds; the result is checked before it is timed.
Floors, for P = 2 (state and velocity), B samples, M = N + 1 nodes, D numbers:
    memory  6 x 4 B M D bytes (cost: state, velocity and teacher read; advance: winners' state and velocity read, state
            written)
    fp32    3 x B (N^2 / 2) D fused instructions (two to form a candidate's error, one to add its square)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import measure
import peers
import torch

from oss_ext import kernels

SIZES = [
    (1, 200, 12288),
    (16, 200, 12288),
    (64, 200, 12288),
    (4, 100, 262144),
    (8, 1000, 12288),
    (256, 500, 16),
    (1, 50, 2097152),
]
CACHE_BYTES = 256 * 2**20  # rotate through at least this much


def make_inputs(batch: int, steps: int, dim: int, device: torch.device, seed: int):
    """A smooth made-up trajectory, its states slightly off, and velocities: costs spread out as a search meets them."""
    generator = torch.Generator(device).manual_seed(seed)
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=device)
    a, b, c = (torch.randn(batch, 1, dim, device=device, generator=generator) for _ in range(3))
    s = t.float()[None, :, None]
    y = a * s + b * (1 - s) + c * (s * (1 - s))
    x = y + 0.01 * torch.randn(batch, steps + 1, dim, device=device, generator=generator)
    v = a - b + c * (1 - 2 * s)
    return x, v, y, t


def euler_coefficients(t):
    """[M, M, 2] in float32: made once a search."""
    return torch.stack([torch.ones(len(t), len(t), device=t.device), (t[None] - t[:, None]).float()], -1)


def our_stage(x, v, y, coefficients):
    """One stage with our kernels -> (backpointers, states)."""
    cost = kernels.pairwise_cost([x, v], coefficients, y, joint=True)
    _, pointers = kernels.min_reduce(cost, joint=True)
    return pointers, kernels.advance([x, v], coefficients, pointers)


def capture(call) -> torch.cuda.CUDAGraph:
    """One call as a graph: its replay has no Python and no launch gaps in it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def exact_total(x, v, y, t, targets):
    """Joint costs [M, len(targets)] in float64, one target at a time."""
    columns = []
    for j in targets:
        step = (t[j] - t)[None, :, None]
        total = torch.zeros(len(t), dtype=torch.float64, device=x.device)
        for b in range(x.shape[0]):
            total += (x[b].double() + step[0] * v[b].double() - y[b, j].double()).square().mean(1)
        total[j:] = float("inf")
        columns.append(total)
    return torch.stack(columns, 1)


def worst_excess(pointers, exact, targets) -> float:
    """How much dearer the chosen sources are than the exact best, relative: 0 where the same is chosen."""
    chosen = exact.gather(0, pointers[targets].long()[None])[0]
    return float(((chosen - exact.min(0).values) / exact.min(0).values).max())


def bench(size, device, runs, peer_runs, copy_rate, fp32_rate):
    batch, steps, dim = size
    nodes = steps + 1
    input_bytes = 3 * 4 * batch * nodes * dim
    sets = [make_inputs(batch, steps, dim, device, seed) for seed in range(min(32, -(-CACHE_BYTES // input_bytes)))]
    targets = torch.tensor(sorted({1, steps // 3, steps // 2, steps - 1, steps} - {0}), device=device)
    row = {"batch": batch, "steps": steps, "dim": dim, "input_sets": len(sets)}
    exact = exact_total(*sets[0], targets.tolist())

    x, v, y, t = sets[0]
    coefficients = euler_coefficients(t)
    pointers, states = our_stage(x, v, y, coefficients)
    source = pointers[1:].long()
    expected = x[:, source] + (t[1:] - t[source])[None, :, None].float() * v[:, source]
    row["excess_cost"] = worst_excess(pointers, exact, targets)
    row["state_error"] = float((states[:, 1:] - expected).abs().max())
    assert row["excess_cost"] < 1e-4 and row["state_error"] < 1e-4, row
    del expected, states

    row["ours"] = measure.timed(lambda k: our_stage(*sets[k % len(sets)][:3], coefficients), device, runs)
    if device.type == "cuda":
        replays = [capture(lambda data=data: our_stage(*data[:3], coefficients)) for data in sets]
        row["ours_graph"] = measure.timed(lambda k: replays[k % len(sets)].replay(), device, runs)
        del replays
    cost = kernels.pairwise_cost([x, v], coefficients, y, joint=True)
    row["cost_parts"] = cost.shape[0]
    parts = {
        "pairwise_cost": lambda x, v, y, t: kernels.pairwise_cost([x, v], coefficients, y, joint=True),
        "min_reduce": lambda x, v, y, t: kernels.min_reduce(cost, joint=True),
        "advance": lambda x, v, y, t: kernels.advance([x, v], coefficients, pointers),
        "gram": lambda x, v, y, t: kernels.gram([x, v], y),
    }

    def rotating(call):
        return lambda k: call(*sets[k % len(sets)])

    row["parts"] = {name: measure.timed(rotating(call), device, max(20, runs // 2)) for name, call in parts.items()}

    def with_tf32(allowed):
        def run(k):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            return peers.gram_form(*sets[k % len(sets)])

        return run

    row["peers"] = {}
    for name, call in {
        "source_loop": rotating(peers.source_loop),
        "gram_bmm_fp32": with_tf32(False),
        "gram_bmm_tf32": with_tf32(True),
    }.items():
        entry = {"excess_cost": worst_excess(call(0)[0], exact, targets)}
        entry |= measure.timed(call, device, peer_runs if name == "source_loop" else runs, warm=1)
        row["peers"][name] = entry
    torch.backends.cuda.matmul.allow_tf32 = False

    row["bytes"] = 6 * 4 * batch * nodes * dim
    row["fp32_instructions"] = 3 * batch * steps * nodes // 2 * dim
    if copy_rate:
        row["floor_memory_ms"] = 1e3 * row["bytes"] / copy_rate
        row["floor_fp32_ms"] = 1e3 * row["fp32_instructions"] / fp32_rate
        row["floor_ms"] = max(row["floor_memory_ms"], row["floor_fp32_ms"])
        row["times_floor"] = row["ours"]["median_ms"] / row["floor_ms"]
        row["times_floor_graph"] = row["ours_graph"]["median_ms"] / row["floor_ms"]
        # Gram statistics: per pair and number one difference and P = 2 products, in fp64 at half the fp32 rate; the
        # inputs are read and the moments, two doubles a pair of nodes, written.
        gram_fp64 = 3 * batch * steps * nodes // 2 * dim / (fp32_rate / 2)
        gram_bytes = input_bytes + 16 * batch * nodes**2
        row["floor_gram_ms"] = 1e3 * max(gram_fp64, gram_bytes / copy_rate)
    return row


def table(rows) -> str:
    """Milliseconds a stage and its parts, floors, peers; what choosing by each cost loses; the Gram kernel."""
    columns = ["ours", "graph", "cost", "min", "adv", "floor", "x floor", "x graph", "loop", "bmm32", "bmmTF32"]
    lines = [
        f"{'(B, N, D)':>18}" + "".join(f"{name:>9}" for name in columns) + "   excess ours/bmm32/TF32      gram  floor"
    ]
    for row in rows:
        size = f"({row['batch']},{row['steps']},{row['dim']})"
        parts, others, unknown = row["parts"], row["peers"], float("nan")
        times = [row["ours"], parts["pairwise_cost"], parts["min_reduce"], parts["advance"]]
        peer_times = [others[name]["median_ms"] for name in ("source_loop", "gram_bmm_fp32", "gram_bmm_tf32")]
        numbers = [entry["median_ms"] for entry in times]
        numbers.insert(1, row.get("ours_graph", {}).get("median_ms", unknown))
        numbers += [row.get(name, unknown) for name in ("floor_ms", "times_floor", "times_floor_graph")] + peer_times
        excess = [row["excess_cost"], others["gram_bmm_fp32"]["excess_cost"], others["gram_bmm_tf32"]["excess_cost"]]
        lines.append(
            f"{size:>18}" + "".join(f"{number:9.3f}" for number in numbers)
            + "  " + " ".join(f"{number:8.1e}" for number in excess)
            + f"{parts['gram']['median_ms']:9.3f}{row.get('floor_gram_ms', unknown):7.3f}"
        )  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", action="append", help="B,N,D; may be given several times; default: the whole table")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--peer-runs", type=int, default=20, help="runs of the slowest peer")
    parser.add_argument("--out", type=Path, default=None, help="folder for kernels.json; default: benchmarks/results")
    options = parser.parse_args()
    if min(options.runs, options.peer_runs) < 2:
        parser.error("--runs and --peer-runs: wanted at least 2, for a median with its quartiles")
    device = torch.device(options.device)
    sizes = [tuple(int(n) for n in text.split(",")) for text in options.size] if options.size else SIZES
    rates = (measure.copy_rate(device), measure.fp32_rate(device)) if device.type == "cuda" else (None, None)
    rows = []
    for size in sizes:
        rows.append(bench(size, device, options.runs, options.peer_runs, *rates))
        print(table(rows[-1:]), flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    ceilings = {"copy_bytes_per_s": rates[0], "fp32_instructions_per_s": rates[1]}
    result = measure.environment(device) | ceilings | {"rows": rows}
    path = measure.save("kernels" if device.type == "cuda" else "kernels_cpu", result, options.out)
    print(table(rows), f"\nsaved {path}", sep="\n")


if __name__ == "__main__":
    main()
