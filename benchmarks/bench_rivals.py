"""What training the learned rivals costs and gains: seconds an iteration with and without a CUDA graph, and PSNR to the
teacher on held-out noises of the bundled model after few and many iterations.

    python benchmarks/bench_rivals.py                       # on a GPU; about two minutes; saves results/rivals.json
    python benchmarks/bench_rivals.py --device cpu --heldout 4 --samples 8 --teacher-steps 12 --minibatch 4 \
        --iterations 4 --budget 3 --timed 2 --out /tmp/small

PSNRs are of the squared error pooled over the noises, and means of the noises' own, as in `bench_schedules`. `seconds`
are of the whole call, its teacher's steps included. Rates are multiples of each method's own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch

import oss_ext
from oss_ext.baselines import Found, Training, bns, ds_solver, dyweight, ld3, s4s
from oss_ext.metrics import pooled_psnr, psnr

METHODS: dict[str, tuple[Callable[..., Found], dict[str, Any]]] = {
    "bns": (bns, {}),
    "ds_solver": (ds_solver, {}),
    "dyweight": (dyweight, {}),
    "s4s": (s4s, {"alternations": 0}),
    "s4s_alt": (s4s, {}),
}


def rate_of(method: Callable[..., Found]) -> float:
    """The method's own rate."""
    return float(sys.modules[method.__module__].RATE)


class Bench:
    def __init__(self, guidance: float, options: argparse.Namespace) -> None:
        self.options, self.guidance = options, guidance
        self.device = torch.device(options.device)
        self.model = oss_ext.zoo.load(options.model, guidance_scale=guidance, device=self.device)
        self.noise, self.cond = self.model.noise(options.samples, split="search")
        self.heldout, self.held_cond = self.model.noise(options.heldout, split="heldout")
        t = oss_ext.grids.for_model("flow", options.teacher_steps, self.model)
        fine = oss_ext.Schedule.from_grid(t, "euler", self.model)
        self.target = fine.sample(self.model, self.heldout, self.held_cond, batch_size=options.batch)
        self.rows: list[dict[str, Any]] = []

    def run(self, name: str, method: Callable[..., Found], steps: int, notes: dict[str, Any], **how: Any) -> None:
        begin = time.perf_counter()
        found = method(
            self.model, self.noise, steps, cond=self.cond, batch_size=self.options.batch, grid="flow",
            teacher_steps=self.options.teacher_steps, teacher_solver="euler", **how,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        images = found.schedule.sample(self.model, self.heldout, self.held_cond, batch_size=self.options.batch)
        values = psnr(images, self.target).double().cpu()
        row = {
            "guidance": self.guidance,
            "steps": steps,
            "method": name,
            **notes,
            "psnr": float(pooled_psnr(values)),
            "mean_psnr": float(values.mean()),
            "seconds": seconds,
            "first_loss": found.details["first_loss"],
            "loss": found.details["loss"],
            "nfe": found.nfe["total"],
        }
        self.rows.append(row)
        print(
            f"guidance {self.guidance:g}, {steps:2d} steps, {name:>9} {notes!s:<52} PSNR {row['psnr']:6.2f} "
            f"mean {row['mean_psnr']:6.2f}  {seconds:6.1f} s  {row['nfe']:.0f} evaluations",
            flush=True,
        )

    def curves(self) -> None:
        for steps in self.options.budget:
            for name, (method, how) in METHODS.items():
                if name not in self.options.method:
                    continue
                for iterations in self.options.iterations:
                    for times in self.options.rate:
                        training = Training(
                            iterations,
                            rate_of(method) * times,
                            self.options.minibatch,
                            graph=self.device.type == "cuda",
                        )
                        self.run(
                            name, method, steps, {"iterations": iterations, "rate": times}, training=training, **how
                        )
            if "ld3" in self.options.method:
                for few in self.options.ld3:
                    for solver in ("dpmpp_2m", "unipc_3"):
                        notes = {"minibatch": few, "solver": solver}
                        graph = self.device.type == "cuda"
                        self.run("ld3", ld3, steps, notes, minibatch=few, graph=graph, solver=solver)

    def timings(self) -> None:
        """Milliseconds an iteration, by the difference of two runs."""
        steps, count = max(self.options.budget), self.options.timed
        for name, (method, how) in METHODS.items():
            if name not in self.options.method:
                continue
            for graph in (False, True) if self.device.type == "cuda" else (False,):
                took = []
                for iterations in (1, 1, 1 + count):  # the first warms up; judged as often: at first and last
                    begin = time.perf_counter()
                    training = Training(iterations, None, self.options.minibatch, graph=graph)
                    method(
                        self.model, self.noise, steps, training=training, cond=self.cond, grid="flow",
                        teacher_steps=2, teacher_solver="euler", batch_size=self.options.batch, **how,
                    )  # fmt: skip
                    took.append(time.perf_counter() - begin)
                each = 1e3 * (took[2] - took[1]) / count
                self.rows.append(
                    {"guidance": self.guidance, "steps": steps, "method": name, "graph": graph, "ms": each}
                )
                print(
                    f"guidance {self.guidance:g}, {steps} steps, {name:>9}, graph {graph}: {each:.1f} ms an iteration"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", default="photo32", choices=oss_ext.zoo.names())
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0])
    parser.add_argument("--budget", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--method", nargs="+", default=[*METHODS, "ld3"], choices=[*METHODS, "ld3"])
    parser.add_argument("--iterations", type=int, nargs="+", default=[150, 400])
    parser.add_argument("--rate", type=float, nargs="+", default=[1.0], help="multiples of the methods' own")
    parser.add_argument("--ld3", type=int, nargs="+", default=[2, 8], help="minibatches of LD3")
    parser.add_argument("--minibatch", type=int, default=40)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--heldout", type=int, default=256)
    parser.add_argument("--teacher-steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--timed", type=int, default=18, help="iterations that are timed, below 20")
    parser.add_argument("--seconds", type=float, default=400, help="no new guidance scale begins after these")
    options = parser.parse_args()
    begin, rows = time.perf_counter(), []
    for guidance in options.guidance:
        if time.perf_counter() - begin > options.seconds:
            print(f"guidance {guidance:g} left out: {options.seconds:g} s are over")
            continue
        bench = Bench(guidance, options)
        bench.timings()
        bench.curves()
        rows += bench.rows
    result = measure.environment(torch.device(options.device)) | {
        "options": {k: str(v) for k, v in vars(options).items()}
    }
    path = measure.save("rivals", result | {"rows": rows}, options.out)
    print(f"saved {path}; {time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
