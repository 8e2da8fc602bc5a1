"""Where a search through a diffusers pipeline spends its time: real sizes, random weights.

    python benchmarks/bench_pipelines.py                    # DiT-XL/2 at 256, Flux.1-dev at 512; results/pipelines.json
    python benchmarks/bench_pipelines.py --only dit --repeats 5
    python benchmarks/bench_pipelines.py --only flux --pixels 1024 --repeats 1
    python benchmarks/bench_pipelines.py --device cpu --tiny        # does it run?

A search (10 steps, 100 teacher steps, UniPC) beside the pipeline's own loop, with its own scheduler and as many
evaluations. Events on the device's time line, at both ends of every call of the transformer, cut either into:

    model       between the ends of a call
    outside     all the rest: the pipeline's own work, ours, and the device idle

Nothing waits for an event before the end. A stall outside makes the model look slower too, since its first kernels are
then launched late. Hence also the transformer alone, the same call queued again and again: model_alone is its median
times the number of calls, and outside_alone = 1 - model_alone / whole, the strictest of the shares. ours = what the
search takes longer than the pipeline's own loop, as a share of the search.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import measure
import torch
from torch import Tensor, nn

from oss_ext.integrations.diffusers import search

STEPS, TEACHER_STEPS = 10, 100
DIT = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "sample_size": 32,
    "patch_size": 2,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}
FLUX = {"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True}  # the rest are the class's defaults
TINY_DIT = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2}
TINY_FLUX = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "axes_dims_rope": (4, 6, 6),
}


@dataclass
class Case:
    """A pipeline and what it is called with: `calls` loops of `batch` samples each; rows: inputs a call of the
    network."""

    name: str
    pipe: Any
    arguments: dict[str, Any]
    calls: list[dict[str, Any]]
    batch: int
    rows: int


def on_device(make: Callable[..., nn.Module], device: torch.device, seed: int = 0, **config: Any) -> Any:
    """Random weights, made where they are to be, in bfloat16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(seed)
    try:
        with torch.device(device):
            network = make(**config)
    finally:
        torch.set_default_dtype(before)
    return network.eval().requires_grad_(False)


def dit(device: torch.device, tiny: bool) -> Any:
    network = on_device(diffusers.DiTTransformer2DModel, device, **{**DIT, **(TINY_DIT if tiny else {})})
    vae = on_device(  # small: a search decodes nothing
        diffusers.AutoencoderKL,
        device,
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
    )
    return diffusers.DiTPipeline(network, vae, diffusers.DDIMScheduler(clip_sample=False))


def dit_case(pipe: Any, batch: int) -> Case:
    labels = torch.arange(batch).mul(61).remainder(1000).tolist()
    arguments = {"class_labels": labels, "guidance_scale": 4.0, "output_type": "np"}
    return Case(f"DiT-XL/2 256, {batch} samples, guided", pipe, arguments, [{}], batch, 2 * batch)


def flux_case(device: torch.device, pixels: int, calls: int, tiny: bool) -> Case:
    """As a user with `calls` prompts has it: a loop each, in turns."""
    network = on_device(diffusers.FluxTransformer2DModel, device, **{**FLUX, **(TINY_FLUX if tiny else {})})
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipe = diffusers.FluxPipeline(scheduler, None, None, None, None, None, network)

    def prompt(seed: int) -> dict[str, Tensor]:
        generator = torch.Generator(device).manual_seed(seed)
        text = torch.randn(1, 512, 4096, generator=generator, device=device, dtype=torch.bfloat16)
        return {"prompt_embeds": text, "pooled_prompt_embeds": text[:, 0, :768]}

    arguments = {"height": pixels, "width": pixels, "guidance_scale": 3.5, "output_type": "latent"}
    name = f"Flux.1-dev {pixels}, {calls} prompts in turns"
    return Case(name, pipe, arguments, [prompt(seed) for seed in range(calls)], 1, 1)


class Line:
    """The time line of a device while it is entered, with the ends of every call of a network marked on it."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network, self.device = network, device
        self.marks: list[Any] = []
        self.last: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def __enter__(self) -> Line:
        def before(_: nn.Module, positional: Any, named: Any) -> None:
            self.last = (positional, named)
            self.marks.append(self._now())

        def after(*_: Any) -> None:
            self.marks.append(self._now())

        self._hooks = [
            self.network.register_forward_pre_hook(before, with_kwargs=True),
            self.network.register_forward_hook(after),
        ]
        self._synchronize()
        self._since = time.perf_counter()
        self._begin = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self._end = self._now()
        self._synchronize()
        self.wall = time.perf_counter() - self._since
        for hook in self._hooks:
            hook.remove()

    def split(self) -> dict[str, float]:
        """Seconds of the whole and of the model, and the share of the rest in per cent."""
        ends = zip(self.marks[::2], self.marks[1::2], strict=True)
        model = sum(self._between(begin, end) for begin, end in ends)
        whole = self._between(self._begin, self._end)
        return {
            "seconds": self.wall,
            "line_s": whole,
            "model_s": model,
            "model_calls": len(self.marks) // 2,
            "outside_percent": 100 * (1 - model / whole),
        }

    def alone(self, runs: int) -> float:
        """Median seconds of the network's last call, made `runs` times with nothing between."""
        positional, named = self.last
        marks = [self._now()]
        with torch.no_grad():
            for _ in range(runs):
                self.network(*positional, **named)
                marks.append(self._now())
        self._synchronize()
        return statistics.median(self._between(*pair) for pair in itertools.pairwise(marks))

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begin: Any, end: Any) -> float:
        return end - begin if self.device.type != "cuda" else 1e-3 * begin.elapsed_time(end)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def peak_bytes(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def bench(case: Case, device: torch.device, repeats: int) -> dict[str, Any]:
    pipe, network = case.pipe, case.pipe.transformer
    pipe.set_progress_bar_config(disable=True)
    count = case.batch * len(case.calls)

    def searched(steps: int, teacher_steps: int) -> Any:
        options = {"samples": count, "teacher_steps": teacher_steps, "progress": False}
        return search(pipe, steps, calls=case.calls, **options, **case.arguments)

    def plain(steps: int) -> None:
        for call in case.calls:
            generator = torch.Generator().manual_seed(0)
            pipe(**case.arguments, **call, num_inference_steps=steps, generator=generator)

    searched(2, 6)  # warm: kernels chosen and loaded, memory set aside
    plain(3)
    searches, loops = [], []
    weights = torch.cuda.memory_allocated(device) if device.type == "cuda" else None
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with Line(network, device) as line:
            result = searched(STEPS, TEACHER_STEPS)
        searches.append({**line.split(), "peak_bytes": peak_bytes(device)})
        each = max(1, round(searches[-1]["model_calls"] / len(case.calls)))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with Line(network, device) as own:
            plain(each)
        loops.append({**own.split(), "peak_bytes": peak_bytes(device)})
    alone = line.alone(30)
    for entry in (*searches, *loops):
        entry["outside_alone_percent"] = 100 * (1 - alone * entry["model_calls"] / entry["seconds"])
        entry["s_per_call"] = entry["seconds"] / entry["model_calls"]
    ours = [100 * (1 - own["s_per_call"] / mine["s_per_call"]) for mine, own in zip(searches, loops, strict=True)]
    return {
        "name": case.name,
        **{key: value for key, value in measure.environment(device).items() if key in ("date", "commit")},
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "samples": count,
        "network_rows": case.rows,
        "steps": STEPS,
        "teacher_steps": TEACHER_STEPS,
        "evaluations_a_sample": result.nfe,
        "states": str(result.store),
        "allocated_before_bytes": weights,
        "model_alone_s_per_call": alone,
        "search": searches,
        "plain_loop": loops,
        "ours_percent": ours,
    }


def kept(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of an earlier file that were not measured again, and `rows`."""
    names = {row["name"] for row in rows}
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in old if row["name"] not in names] + rows


def table(rows: list[dict[str, Any]]) -> str:
    heads = ["search s", "calls", "outside %", "strict %", "loop s", "outside %", "strict %", "ours %", "peak GiB"]
    lines = [f"{'':>36}" + "".join(f"{head:>10}" for head in heads)]
    for row in rows:
        for mine, own, ours in zip(row["search"], row["plain_loop"], row["ours_percent"], strict=True):
            numbers = [mine["seconds"], mine["model_calls"], mine["outside_percent"], mine["outside_alone_percent"]]
            numbers += [own["seconds"], own["outside_percent"], own["outside_alone_percent"], ours]
            numbers.append((mine["peak_bytes"] or 0) / 2**30)
            lines.append(f"{row['name']:>36}" + "".join(f"{number:10.2f}" for number in numbers))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", choices=("dit", "flux"), help="default: both")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 16, 4], help="samples of DiT")
    parser.add_argument("--pixels", type=int, default=512, help="of Flux's images")
    parser.add_argument("--prompts", type=int, default=2, help="of Flux")
    parser.add_argument("--repeats", type=int, default=3, help="of DiT with the first --batch; the rest run once")
    parser.add_argument("--tiny", action="store_true", help="small networks of the same classes, and nothing saved")
    parser.add_argument("--keep", action="store_true", help="with the earlier file's rows that are not measured again")
    parser.add_argument("--out", type=Path, default=None, help="folder for pipelines.json; default: benchmarks/results")
    options = parser.parse_args()
    device = torch.device(options.device)
    diffusers.utils.logging.set_verbosity_error()
    began, rows = time.perf_counter(), []

    def add(case: Case, repeats: int) -> None:
        rows.append(bench(case, device, repeats))
        print(table(rows[-1:]), f"{time.perf_counter() - began:.0f} s so far", sep="\n", flush=True)

    if options.only != "flux":
        pipe = dit(device, options.tiny)
        for batch in options.batch:
            add(dit_case(pipe, batch), options.repeats if batch == options.batch[0] else 1)
        del pipe
    if options.only != "dit":
        add(flux_case(device, options.pixels, options.prompts, options.tiny), 1)
    print(table(rows))
    if options.keep:
        rows = kept((options.out or measure.RESULTS) / "pipelines.json", rows)
    if not options.tiny:
        versions = {"diffusers": diffusers.__version__, "dtype": "bfloat16"}
        print("saved", measure.save("pipelines", measure.environment(device) | versions | {"rows": rows}, options.out))


if __name__ == "__main__":
    main()
