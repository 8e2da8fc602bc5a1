"""One stage of the search (cost, minimum, advance; joint, Euler, fp32) beside its floors and its peers.

    python benchmarks/bench_kernels.py                       # every size, on the GPU; saves results/kernels.json
    python benchmarks/bench_kernels.py --size 16,200,12288 --runs 50
    python benchmarks/bench_kernels.py --device cpu --size 1,50,3072     # no floors: a CPU has no known peak here

Inputs rotate through more memory than the last-level cache holds; the result is checked before it is timed.
Floors, for P basis vectors (state, velocity, earlier predictions), B samples, M = N + 1 nodes, D numbers:
    memory  (2 P + 2) B M D numbers (cost: basis and teacher read; advance: the winners' basis read, state written)
    fp32    (P + 1) B (N^2 / 2) D fused instructions (P to form a candidate's error, one to add its square; weights: one
            more)
`best_step` takes the place of cost, minimum and advance where it can (Euler's steps); "exact" is those three.
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


def exact_stage(basis, y, coefficients, joint=True, weight=None):
    """One stage with the cost of every pair -> (backpointers, states)."""
    cost = kernels.pairwise_cost(basis, coefficients, y, weight=weight, joint=joint)
    _, pointers = kernels.min_reduce(cost, joint=joint)
    return pointers, kernels.advance(basis, coefficients, pointers)


def our_stage(x, v, y, coefficients, t, joint=True):
    """One stage of Euler's steps, as the search runs it -> (backpointers, states)."""
    found = kernels.best_step([x, v], coefficients, y, place=t, joint=joint)
    return exact_stage([x, v], y, coefficients, joint) if found is None else found[1:]


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


def timed_stage(name, stage, sets, device, runs):
    """Called, and on a GPU as a graph too."""
    row = {name: measure.timed(lambda k: stage(*sets[k % len(sets)]), device, runs)}
    if device.type == "cuda":
        replays = [capture(lambda data=data: stage(*data)) for data in sets]
        row[f"{name}_graph"] = measure.timed(lambda k: replays[k % len(sets)].replay(), device, runs)
    return row


VARIANTS = {
    "P = 2, bf16": {"dtype": torch.bfloat16},
    "P = 2, a choice a sample": {"joint": False},
    "P = 2, own coefficients": {"joint": False, "own": True},
    "P = 2, weights": {"weighted": True},
    "P = 3": {"basis": 3},
    "P = 3, bf16": {"basis": 3, "dtype": torch.bfloat16},
    "P = 3, own coefficients": {"basis": 3, "joint": False, "own": True},
    "P = 4": {"basis": 4},
    "P = 4, a choice a sample": {"basis": 4, "joint": False},
    "P = 4, weights": {"basis": 4, "weighted": True},
}


def bench_variant(name, size, device, runs, copy_rate, fp32_rate, basis=2, dtype=torch.float32, joint=True, own=False,
                  weighted=False):  # fmt: skip
    """A stage of other inputs than Euler's in fp32, beside its own floor. The result is checked against float64."""
    batch, steps, dim = size
    x, v, y, t = make_inputs(batch, steps, dim, device, 0)
    earlier = [v.roll(k, 1) for k in range(1, basis - 1)]  # as a multistep solver carries them
    some = [u.to(dtype) for u in (x, v, *earlier)]
    y = y.to(dtype)
    coefficients = euler_coefficients(t)
    shares = [1.5, -0.5] if basis == 3 else [23 / 12, -16 / 12, 5 / 12] if basis == 4 else [1.0]
    steps_of = coefficients[..., 1]
    coefficients = torch.stack([coefficients[..., 0], *[share * steps_of for share in shares]], -1)
    given = coefficients.expand(batch, *coefficients.shape).contiguous() if own else coefficients
    weight = torch.rand(dim, device=device) if weighted else None

    def stage():
        if basis == 2 and not weighted:
            found = kernels.best_step(some, given, y, place=t, joint=joint)
            if found is not None:
                return found[1:]
        return exact_stage(some, y, given, joint, weight)

    pointers = stage()[0]
    target = steps // 2
    wide = given if own else given.expand(batch, *given.shape)
    off = -y[:, target, None].double()
    for p, u in enumerate(some):
        off = off + wide[:, :target, target, p, None].double() * u[:, :target].double()
    cost = (off.square() * (1 if weight is None else weight.double())).mean(2)
    cost = cost.sum(0, keepdim=True) if joint else cost
    chosen = cost.gather(1, (pointers[None] if joint else pointers)[:, target, None].long())[:, 0]
    row = {"name": name, "batch": batch, "steps": steps, "dim": dim, "basis": basis, "dtype": str(dtype)[6:]}
    row |= {"joint": joint, "own_coefficients": own, "weighted": weighted}
    row["excess_cost"] = float(((chosen - cost.min(1).values) / cost.min(1).values).max())
    assert row["excess_cost"] < 1e-4, row
    row |= timed_stage("ours", stage, [()], device, runs)
    row["bytes"] = (2 * basis + 2) * y.element_size() * batch * (steps + 1) * dim
    row["fp32_instructions"] = (basis + 1 + weighted) * batch * steps * (steps + 1) // 2 * dim
    if copy_rate:
        row["floor_memory_ms"] = 1e3 * row["bytes"] / copy_rate
        row["floor_fp32_ms"] = 1e3 * row["fp32_instructions"] / fp32_rate
        row["floor_ms"] = max(row["floor_memory_ms"], row["floor_fp32_ms"])
        row["times_floor_graph"] = row["ours_graph"]["median_ms"] / row["floor_ms"]
    return row


def variants_table(rows) -> str:
    lines = [f"{'at ' + str((rows[0]['batch'], rows[0]['steps'], rows[0]['dim'])):>26}    graph    floor  x floor"]
    for row in rows:
        numbers = (row.get("ours_graph", row["ours"])["median_ms"], row.get("floor_ms", float("nan")),
                   row.get("times_floor_graph", float("nan")))  # fmt: skip
        lines.append(f"{row['name']:>26}" + "".join(f"{number:9.3f}" for number in numbers))
    return "\n".join(lines)


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
    pointers, states = our_stage(x, v, y, coefficients, t)
    source = pointers[1:].long()
    expected = x[:, source] + (t[1:] - t[source])[None, :, None].float() * v[:, source]
    row["excess_cost"] = worst_excess(pointers, exact, targets)
    row["state_error"] = float((states[:, 1:] - expected).abs().max())
    assert row["excess_cost"] < 1e-4 and row["state_error"] < 1e-4, row
    del expected, states

    stages = {
        "ours": lambda x, v, y, t: our_stage(x, v, y, coefficients, t),
        "exact": lambda x, v, y, t: exact_stage([x, v], y, coefficients),
    }
    for name, stage in stages.items():
        row |= timed_stage(name, stage, sets, device, runs)
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
    columns = [
        "ours",
        "graph",
        "exact",
        "cost",
        "min",
        "adv",
        "floor",
        "x floor",
        "x graph",
        "loop",
        "bmm32",
        "bmmTF32",
    ]
    lines = [
        f"{'(B, N, D)':>18}" + "".join(f"{name:>9}" for name in columns) + "   excess ours/bmm32/TF32      gram  floor"
    ]
    for row in rows:
        size = f"({row['batch']},{row['steps']},{row['dim']})"
        parts, others, unknown = row["parts"], row["peers"], float("nan")
        times = [row["ours"], parts["pairwise_cost"], parts["min_reduce"], parts["advance"]]
        peer_times = [others[name]["median_ms"] for name in ("source_loop", "gram_bmm_fp32", "gram_bmm_tf32")]
        numbers = [entry["median_ms"] for entry in times]
        numbers[1:1] = [row.get(f"{name}_graph", {}).get("median_ms", unknown) for name in ("ours", "exact")]
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
    parser.add_argument("--variant-size", default="16,200,12288", help="B,N,D of the variants; '' leaves them out")
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
    variants = []
    if options.variant_size:
        size = tuple(int(n) for n in options.variant_size.split(","))
        variants = [bench_variant(name, size, device, options.runs, *rates, **what) for name, what in VARIANTS.items()]
    ceilings = {"copy_bytes_per_s": rates[0], "fp32_instructions_per_s": rates[1]}
    result = measure.environment(device) | ceilings | {"rows": rows, "variants": variants}
    path = measure.save("kernels" if device.type == "cuda" else "kernels_cpu", result, options.out)
    print(table(rows), *([variants_table(variants)] if variants else []), f"saved {path}", sep="\n\n")


if __name__ == "__main__":
    main()
