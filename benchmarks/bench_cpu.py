"""One stage of the search on the CPU, beside the multiply-add rate of torch's sgemm and beside torch formulations.

    python benchmarks/bench_cpu.py                         # saves results/kernels_cpu.json
    python benchmarks/bench_cpu.py --size 1,200,12288 --runs 40 --threads 2

All calls take turns in one run, so that each meets the machine as the others do; ratios are of neighbouring calls, and
their median is quoted. Our rate counts (P + 1) B (N^2 / 2) D = 3 multiply-adds a pair and number for P = 2, over the
time of the whole stage (cost, minimum and advance). A formulation counts as a peer where it finds the same sources:
its excess is how much dearer its choice is than the exact best.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import peers
import torch
from bench_kernels import euler_coefficients, exact_stage, exact_total, make_inputs, worst_excess

SIZES = [(1, 200, 12288), (4, 100, 3072)]
SGEMM = 1536
PAUSE = 0.25  # seconds before a call: the workers of the one before spin for 0.2 s, on cores that this one wants
SAME = 1e-5  # excess cost up to which the choice is the same but for float ties


def in_turn(calls: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Seconds of every call, `runs` times in turn, after one of each that does not count."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "quartile_low": low, "quartile_high": high, "runs": len(values)}


def bench(size: tuple[int, int, int], runs: int) -> dict[str, Any]:
    batch, steps, dim = size
    cpu = torch.device("cpu")
    x, v, y, t = make_inputs(batch, steps, dim, cpu, 0)
    coefficients = euler_coefficients(t)
    doubles = [each.double() for each in (x, v, y)]
    left, right = torch.randn(SGEMM, SGEMM), torch.randn(SGEMM, SGEMM)
    formulations: dict[str, Callable[[], Any]] = {
        "source_loop": lambda: peers.source_loop(x, v, y, t),
        "gram_fp32": lambda: peers.gram_form(x, v, y, t),
        "gram_fp64": lambda: peers.gram_form(*doubles, t),
        "broadcast": lambda: peers.broadcast(x, v, y, t),
    }
    calls = {"sgemm": lambda: left @ right, "ours": lambda: exact_stage([x, v], y, coefficients), **formulations}
    targets = torch.arange(1, steps + 1)
    exact = exact_total(x, v, y, t, targets.tolist())
    excess = {"ours": worst_excess(calls["ours"]()[0], exact, targets)}
    excess |= {name: worst_excess(call()[0], exact, targets) for name, call in formulations.items()}
    assert excess["ours"] < SAME, excess
    seconds = in_turn(calls, runs)
    work = 3 * batch * steps * (steps + 1) // 2 * dim
    share = [(work / ours) / (SGEMM**3 / sgemm) for ours, sgemm in zip(seconds["ours"], seconds["sgemm"], strict=True)]
    found = {
        name: {
            "seconds": spread(seconds[name]),
            "excess_cost": excess[name],
            "same_choice": excess[name] < SAME,
            "times_ours": spread([a / b for a, b in zip(seconds[name], seconds["ours"], strict=True)]),
        }
        for name in formulations
    }
    return {
        "batch": batch, "steps": steps, "dim": dim, "multiply_adds": work, "excess_cost": excess["ours"],
        "seconds": spread(seconds["ours"]), "sgemm_seconds": spread(seconds["sgemm"]), "sgemm_size": SGEMM,
        "share_of_sgemm_rate": spread(share), "formulations": found,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]["formulations"])
    lines = [f"{'(B, N, D)':>18}{'ms':>10}{'of sgemm':>10}" + "".join(f"{name:>16}" for name in names)]
    for row in rows:
        line = f"({row['batch']},{row['steps']},{row['dim']})".rjust(18)
        line += f"{1e3 * row['seconds']['median']:10.2f}{100 * row['share_of_sgemm_rate']['median']:9.0f}%"
        for name in names:
            one = row["formulations"][name]
            line += f"{one['times_ours']['median']:9.1f} x " + ("same " if one["same_choice"] else "other")
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", help="B,N,D; may be given several times")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--out", type=Path, help="folder for kernels_cpu.json; default: benchmarks/results")
    options = parser.parse_args()
    if options.runs < 2:
        parser.error("--runs: wanted at least 2, for a median with its quartiles")
    if options.threads:
        torch.set_num_threads(options.threads)
    sizes = [tuple(int(n) for n in text.split(",")) for text in options.size] if options.size else SIZES
    rows = [bench(size, options.runs) for size in sizes]
    result = measure.environment(torch.device("cpu")) | {"capability": torch.backends.cpu.get_cpu_capability()}
    path = measure.save("kernels_cpu", result | {"rows": rows}, options.out)
    print(table(rows), f"saved {path}", sep="\n")


if __name__ == "__main__":
    main()
