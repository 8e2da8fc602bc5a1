"""What a whole search costs, and how much of it is not the model.

    python benchmarks/bench_search.py --peer PATH          # all of it, on a GPU; saves results/search.json
    python benchmarks/bench_search.py --part growth        # the file's other parts stay
    python benchmarks/bench_search.py --draw               # the figure of the growth, from the file
    python benchmarks/bench_search.py --device cpu --tiny --peer PATH --out /tmp/small

Parts:
- outside: dp_search on a network of DiT-XL/2's size in bfloat16 (random weights, guidance by a doubled batch, 8
  samples, 200 teacher steps, 10 steps; with the default candidates, and of all nodes as the paper searches), and on
  the bundled model. The time of the model is that of its calls on the GPU's own clock (on the CPU the wall clock); the
  rest of the search's is "outside".
- peer: the published code, a checkout of bebebe666/OptimalSteps at --peer, on the same network and samples: its batched
  search, whole, and its default one, which evaluates one input at a time, for one sample and --peer-stages of its 10
  stages (the time of all is reckoned from evaluations, and says so). Against our defaults, in the precision in which it
  runs (tf32 on a GPU) and in bfloat16; with --all-nodes also against our search of all nodes of its Euler teacher.
- quality: what the two find on the bundled model with as many noises: PSNR to 200 Euler steps on 64 other noises (of
  the mean error, data range 2), of its batched search (the median of its samples' schedules) and of ours.
- growth: time and peak memory over N, B, D and K, each alone, on a model that costs next to nothing; the slope of the
  upper half in a log-log figure.

Times are wall-clock seconds, the least of --runs, synchronised; a search of 2 steps goes before as a warm-up.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import measure
import torch
from dit import DiT, Guided
from torch import Tensor

from oss_ext import FlowModel, Schedule, dp_search, grids, zoo

PARTS = ("outside", "peer", "quality", "growth")
PUBLISHED = {"teacher_solver": "euler", "candidates": 10**6}
"""As the paper searches: every node of an Euler teacher."""


class Clocked:
    """A Denoiser whose calls are timed where they run."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model, self._gpu = model, device.type == "cuda"
        self._events: list[tuple[Any, Any]] = []
        self._seconds, self.evaluations = 0.0, 0

    def velocity(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        self.evaluations += len(x)
        if self._gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            out = self._model.velocity(x, t, cond)
            end.record()
            self._events.append((begin, end))
            return out
        start = time.perf_counter()
        out = self._model.velocity(x, t, cond)
        self._seconds += time.perf_counter() - start
        return out

    def seconds(self) -> float:
        if self._gpu:
            torch.cuda.synchronize()
        return self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1e3

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def timed(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def search_row(name: str, model: Any, noise: Tensor, steps: int, runs: int, **options: Any) -> dict[str, Any]:
    """The least time of a search, how much of it was outside the model, and what it evaluated."""
    dp_search(model, noise, min(2, steps), **{**options, "teacher_steps": 4})
    best: dict[str, Any] = {}
    for _ in range(runs):
        clocked = Clocked(model, noise.device)
        seconds, result = timed(lambda clocked=clocked: dp_search(clocked, noise, steps, **options), noise.device)
        if not best or seconds < best["seconds"]:
            inside = clocked.seconds()
            best = {
                "search": name,
                "seconds": seconds,
                "model_seconds": inside,
                "outside": 1 - inside / seconds,
                "evaluations": clocked.evaluations,
                "samples": len(noise),
                "schedule": result.schedule.nodes.tolist(),
            }
    print(
        f"{name:44s} {best['seconds']:8.2f} s, outside the model {100 * best['outside']:5.1f} %, "
        f"{best['evaluations']} evaluations",
        flush=True,
    )
    return best


def networks(options: argparse.Namespace, device: torch.device) -> dict[str, Guided]:
    """The same weights in every precision: float32 (tf32 on the GPU), bfloat16, and that compiled where asked."""
    torch.manual_seed(0)
    size = {"depth": 2, "width": 64, "heads": 4, "side": 8} if options.tiny else {}
    exact = DiT(**size).eval().requires_grad_(False)
    half = DiT(**size).eval().requires_grad_(False)
    half.load_state_dict(exact.state_dict())
    half = half.to(device, torch.bfloat16)
    found = {"tf32" if device.type == "cuda" else "float32": Guided(exact.to(device)), "bfloat16": Guided(half)}
    if options.compile:
        found["bfloat16, compiled"] = Guided(half, torch.compile(half))
    return found


def inputs(options: argparse.Namespace, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    side = 8 if options.tiny else 32
    noise = torch.randn(options.samples, 4, side, side, generator=generator).to(device)
    return noise, {"y": torch.randint(1000, (options.samples,), generator=generator).to(device)}


def dtype_of(name: str) -> torch.dtype:
    return torch.bfloat16 if name.startswith("bfloat16") else torch.float32


def outside(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    rows = []
    noise, cond = inputs(options, device)
    for precision, network in networks(options, device).items():
        if not precision.startswith("bfloat16"):
            continue
        common = {"cond": cond, "batch_size": options.batch_size, "teacher_steps": options.teacher_steps}
        seen, name = noise.to(torch.bfloat16), f"DiT-XL/2 size, {precision}"
        rows.append(search_row(f"{name}, candidates", network.model(), seen, options.steps, options.runs, **common))
        every = {**common, **PUBLISHED}
        rows.append(search_row(f"{name}, all nodes", network.model(), seen, options.steps, 1, **every))
    bundled = zoo.load("photo32", guidance_scale=1.0, device=device)
    noise, cond = bundled.noise(options.samples)
    noise, cond = noise.to(device), {key: value.to(device) for key, value in cond.items()}
    rows.append(search_row("photo32, defaults", bundled, noise, options.steps, options.runs, cond=cond))
    every = {**PUBLISHED, "teacher_steps": options.teacher_steps}
    rows.append(search_row("photo32, all nodes", bundled, noise, options.steps, options.runs, cond=cond, **every))
    return rows


class Theirs:
    """A network as the published code calls it: times are indices of an ascending list, 0 the clean end."""

    def __init__(self, network: Guided | None, steps: int, device: torch.device) -> None:
        self.network = network
        self.fm_steps = torch.linspace(0, 1, steps + 1, device=device)
        self.evaluations = 0

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, kwargs: dict[str, Any]) -> Tensor:
        self.evaluations += len(x)
        assert self.network is not None
        return self.network(x, self.fm_steps[t], y)


def published_code(options: argparse.Namespace) -> Any:
    if options.peer is None:
        raise SystemExit("parts peer and quality: wanted --peer, a checkout of bebebe666/OptimalSteps")
    if str(options.peer) not in sys.path:
        sys.path.insert(0, str(options.peer))
    module = importlib.import_module("OSS.OSS")
    logging.getLogger().setLevel(logging.WARNING)
    return module


def peer(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    theirs = published_code(options)
    noise, cond = inputs(options, device)
    nets = networks(options, device)
    base = next(iter(nets))
    rows: list[dict[str, Any]] = []

    def run(name: str, search: Callable[..., Any], stages: int, samples: int, reckoned: int | None = None) -> float:
        model = Theirs(nets[base], options.teacher_steps, device)
        some, y = noise[:samples], cond["y"][:samples]
        search(Theirs(nets[base], 4, device), some[:1], 1, y[:1], device, teacher_steps=4, student_steps=1)
        seconds, nodes = timed(
            lambda: search(model, some, samples, y, device, teacher_steps=options.teacher_steps, student_steps=stages),
            device,
        )
        row = {"search": name, "precision": base, "seconds": seconds, "samples": samples, "stages": stages}
        row |= {"evaluations": model.evaluations, "nodes": nodes}
        if reckoned is not None:
            seconds = row["reckoned_seconds"] = seconds * reckoned / model.evaluations
        rows.append(row)
        told = "" if reckoned is None else f" (reckoned from {stages} stages of one sample)"
        print(f"{name:44s} {seconds:8.2f} s, {model.evaluations} evaluations{told}", flush=True)
        return seconds

    total = options.teacher_steps * (options.steps + 1)
    batched = run("published, batched", theirs.search_OSS_batch, options.steps, options.samples)
    default = run("published, default", theirs.search_OSS, options.peer_stages, 1, reckoned=total * options.samples)
    for precision, network in nets.items():
        seen, common = noise.to(dtype_of(precision)), {"cond": cond, "batch_size": options.batch_size}
        modes = {"defaults": {}}
        if precision == base and options.all_nodes:
            modes["all nodes"] = {**PUBLISHED, "teacher_steps": options.teacher_steps}
        for mode, more in modes.items():
            runs = options.runs if mode == "defaults" else 1
            row = search_row(f"ours, {mode}, {precision}", network.model(), seen, options.steps, runs, **common, **more)
            row |= {"against_batched": batched / row["seconds"], "against_default": default / row["seconds"]}
            told = f"{row['against_batched']:6.1f} x its batched, {row['against_default']:6.1f} x its default search"
            print(f"{'':44s} {told}")
            rows.append(row)
    return rows


def quality(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    theirs, model = published_code(options), zoo.load("photo32", guidance_scale=1.0, device=device)
    noise, cond = model.noise(options.samples, split="search", device=device)
    held, its = model.noise(8 if options.tiny else 64, split="heldout", device=device)
    fine = Schedule.from_grid(grids.make("flow", options.teacher_steps)).sample(model, held, its)
    rows = []

    def row(name: str, seconds: float, evaluations: int, end: Tensor) -> None:
        psnr = 10 * math.log10(4 / float((end - fine).double().square().mean()))
        rows.append({"search": name, "seconds": seconds, "evaluations": evaluations, "psnr": psnr})
        print(f"{name:44s} {seconds:8.2f} s, {evaluations} evaluations, {psnr:.2f} dB", flush=True)

    class Wrapped(Theirs):
        def __call__(self, x: Tensor, t: Tensor, y: Tensor, kwargs: dict[str, Any]) -> Tensor:
            self.evaluations += len(x)
            return model.velocity(x, self.fm_steps[t].double(), {next(iter(cond)): y})

    (label,) = cond.values()
    wrapped = Wrapped(None, options.teacher_steps, device)
    more = {"teacher_steps": options.teacher_steps, "student_steps": options.steps}
    seconds, nodes = timed(
        lambda: theirs.search_OSS_batch(wrapped, noise, options.samples, label, device, **more), device
    )
    made = wrapped.evaluations
    (held_label,) = its.values()
    end = theirs.infer_OSS(theirs.cal_medium(nodes), wrapped, held, held_label, device)
    row("published, batched, median", seconds, made, end)
    for name in ("euler", "fitted"):
        seconds, result = timed(partial(dp_search, model, noise, options.steps, solver=name, cond=cond), device)
        made = round(result.nfe["total"] * options.samples)
        row(f"ours, defaults, {name}", seconds, made, result.schedule.sample(model, held, its))
    return rows


AXES: dict[str, tuple[list[int], list[int]]] = {
    "N": ([50, 100, 200, 500, 1000], [12, 24, 48]),
    "B": ([1, 4, 16, 64, 256, 512], [1, 4, 16]),
    "D": ([16, 256, 4096, 65536, 524288, 2097152], [16, 256, 4096]),
    "K": ([1, 2, 5, 10, 20, 50], [1, 2, 5]),
}
POINT = {"N": 200, "B": 8, "D": 3072, "K": 10}


def growth(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All nodes are searched. D runs over N = 50 and B = 1, so that the largest fits."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return x.square().add_(1).reciprocal_().sub_(x).neg_()

    found: dict[str, Any] = {}
    for axis, (sizes, tiny) in AXES.items():
        points = []
        for size in tiny if options.tiny else sizes:
            at = {**POINT, **({"N": 50, "B": 1} if axis == "D" else {})}
            at |= {"N": 12, "B": 2, "D": 64, "K": 3} if options.tiny else {}
            at[axis] = size
            if axis == "K":
                at["N"] = max(at["N"], size)
            generator = torch.Generator(device).manual_seed(0)
            noise = torch.randn(at["B"], at["D"], device=device, generator=generator)
            batch = max(256, 2**24 // at["D"])

            def search(noise: Tensor = noise, at: dict[str, int] = at, batch: int = batch) -> Any:
                return dp_search(
                    FlowModel(velocity),
                    noise,
                    at["K"],
                    teacher_steps=at["N"],
                    teacher_solver="euler",
                    candidates=at["N"],
                    batch_size=batch,
                    store="device",
                )

            before = 0
            search()
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            seconds = min(timed(search, device)[0] for _ in range(options.runs))
            peak = torch.cuda.max_memory_allocated() - before if device.type == "cuda" else None
            points.append({**at, "seconds": seconds, "peak_bytes": peak})
            told = "" if peak is None else f", {peak / 2**30:7.3f} GiB"
            print(f"growth {axis:1s} = {size:8d}: {1e3 * seconds:9.1f} ms{told}", flush=True)
        upper = points[len(points) // 2 - 1 :]
        slopes = {"seconds": slope([(point[axis], point["seconds"]) for point in upper])}
        if upper[0]["peak_bytes"] is not None:
            slopes["peak_bytes"] = slope([(point[axis], point["peak_bytes"]) for point in upper])
        print(
            f"growth {axis}: slopes " + ", ".join(f"{name} {value:.2f}" for name, value in slopes.items()), flush=True
        )
        found[axis] = {"points": points, "slopes": slopes}
    return found


def slope(points: list[tuple[float, float]]) -> float:
    """Of the least-squares line through the logarithms."""
    x, y = ([math.log(value) for value in column] for column in zip(*points, strict=True))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def draw(found: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.5), layout="constrained")
    panels = figure.subplots(2, len(found), sharey="row", squeeze=False)
    for column, (axis, part) in enumerate(found.items()):
        for row, (key, label, unit) in enumerate((("seconds", "time, s", 1.0), ("peak_bytes", "peak, GiB", 2.0**30))):
            panel = panels[row][column]
            points = [(each[axis], each[key] / unit) for each in part["points"] if each[key]]
            if not points:
                panel.set_axis_off()
                continue
            panel.loglog(*zip(*points, strict=True), "o-")
            panel.set_title(f"{axis}: slope {part['slopes'][key]:.2f}", fontsize=10)
            panel.grid(alpha=0.3)
            if column == 0:
                panel.set_ylabel(label)
            if row:
                panel.set_xlabel(axis)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all that need no --peer, or all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--peer-stages", type=int, default=1)
    parser.add_argument("--all-nodes", action="store_true")
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--teacher-steps", type=int, default=200)
    parser.add_argument(
        "--batch-size", type=lambda text: int(text) if text.isdecimal() else text, help="as for dp_search, fastest too"
    )
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="also torch.compile the network in bfloat16")
    parser.add_argument("--tiny", action="store_true", help="to try the script")
    parser.add_argument("--out", type=Path, help="folder of search.json and search_growth.png; default results/")
    options = parser.parse_args()
    if options.tiny:
        options.samples, options.steps, options.teacher_steps = 2, 3, 12
    device = torch.device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    path = (options.out or measure.RESULTS) / "search.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    parts = options.part or [part for part in PARTS if part not in ("peer", "quality") or options.peer]
    for part in [] if options.draw else parts:
        start = time.perf_counter()
        found = {"outside": outside, "peer": peer, "quality": quality, "growth": growth}[part](options, device)
        told = {key: value for key, value in vars(options).items() if key not in ("peer", "out", "part", "draw")}
        seconds = time.perf_counter() - start
        result[part] = {"environment": measure.environment(device), "options": told, "seconds": seconds, "found": found}
        print(f"({part}: {seconds:.1f} s)", flush=True)
        measure.save("search", result, options.out)
        print(f"saved {path}")
    if "growth" in result:
        try:
            draw(result["growth"]["found"], path.with_name("search_growth.png"))
        except ModuleNotFoundError as error:
            print(f"no figure: {error}; --draw makes it from {path}")


if __name__ == "__main__":
    main()
