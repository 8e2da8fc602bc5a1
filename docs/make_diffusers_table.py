"""Writes docs/diffusers.md: what a schedule does in each of the tiny pipelines of the tests, measured.

    python docs/make_diffusers_table.py [--beside FOLDER]

FOLDER holds another diffusers (pip install --target): the measurements are repeated with it.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import torch

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "tests"))

from helpers.more_tiny_pipelines import PIPELINES as MORE  # noqa: E402
from helpers.tiny_parts import Tiny  # noqa: E402
from helpers.tiny_pipelines import PIPELINES  # noqa: E402
from helpers.tiny_video_pipelines import PIPELINES as VIDEO  # noqa: E402

import oss_ext  # noqa: E402
from oss_ext import Schedule, grids  # noqa: E402
from oss_ext.integrations.diffusers import applied, family_of, search  # noqa: E402
from oss_ext.integrations.diffusers.applied import AppliedScheduler  # noqa: E402

TEACHER_STEPS, STEPS = 12, 3
BOUND = 1e-4


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def takes(pipe: Any) -> str:
    names = inspect.signature(pipe.__call__).parameters
    return " and ".join(f"`{name}=`" for name in ("sigmas", "timesteps") if name in names) or "neither"


class Entry:
    """Remembers, at the first step of a pipeline's loop, who made the noise as large as the schedule wants it."""

    def __init__(self) -> None:
        self.by = ""
        self._enter = AppliedScheduler._enter

    def __call__(self, scheduler: AppliedScheduler, timestep: Any, sample: torch.Tensor) -> None:
        if scheduler.scale_reads:
            self.by = "`init_noise_sigma`"
        elif scheduler.prepared:
            self.by = "`prepare_latents`"
        else:
            self.by = "`scale_model_input`"
        self._enter(scheduler, timestep, sample)


def row(name: str, made: Tiny) -> dict[str, Any]:
    native = made.pipe.scheduler
    made.pipe.set_progress_bar_config(disable=True)
    family = family_of(native)
    model = family.denoiser(made.network)
    grid = "flow:shift=2" if family.parameterization == "flow" else "ddim"
    off, entry = [], Entry()
    for solver, steps in (("euler", 4), ("unipc", 5), ("dpmpp_3m", 6)):
        schedule = Schedule.from_grid(grids.for_model(grid, steps, model), solver, model)
        wanted = made.finish(schedule.sample(model, made.noise()))
        with (
            applied(made.pipe, schedule) as handle,
            mock.patch.object(AppliedScheduler, "_enter", lambda *given: entry(*given)),
        ):
            off.append(relative(made(), wanted))
    found = search(made.pipe, STEPS, samples=2, teacher_steps=TEACHER_STEPS, seed=5, progress=False, **made.call)
    plain = oss_ext.dp_search(model, made.noise(), STEPS, solver="unipc", teacher_steps=TEACHER_STEPS, grid=found.t)
    if any(not torch.equal(found.schedules[k].nodes, plain.schedules[k].nodes) for k in found.schedules):
        raise SystemExit(f"{name}: the search through the pipeline's loop found other nodes than the one beside it")
    with applied(made.pipe, found.schedule):
        replayed = relative(made(5), made.finish(found.endpoints[STEPS]))
    if max(*off, replayed) > BOUND:
        raise SystemExit(f"{name}: differences of {off} and {replayed}, wanted at most {BOUND}")
    return {
        "pipeline": name,
        "latents": " x ".join(str(size) for size in made.shape[1:]),
        "scheduler": type(native).__name__,
        "model": family.parameterization,
        "takes": takes(made.pipe),
        "noise": entry.by,
        "neutralised": handle.neutralised,
        "timesteps": "whole" if family.whole else "fractional",
        "apply": max(off),
        "search": replayed,
    }


def measure() -> dict[str, Any]:
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        every = {**PIPELINES, **MORE, **VIDEO}
        rows = {name: row(name, make()) for name, make in every.items() if hasattr(diffusers, name)}
    return {"version": diffusers.__version__, "rows": rows}


def table(measured: list[dict[str, Any]]) -> str:
    here, *others = measured
    versions = [each["version"] for each in measured]
    heads = [
        "pipeline",
        "loop's latents",
        "its scheduler",
        "model",
        "takes",
        "noise scaled by",
        "neutralised",
        "its times",
    ]
    heads += [f"apply, {version}" for version in versions] + [f"search, {version}" for version in versions]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for name, one in here["rows"].items():
        neutralised = ", ".join(f"{key} {value}" for key, value in one["neutralised"].items()) or "step count"
        cells = [one["pipeline"], one["latents"], one["scheduler"], one["model"], one["takes"], one["noise"]]
        cells += [neutralised, one["timesteps"]]
        for key in ("apply", "search"):
            cells += [f"{each['rows'][name][key]:.0e}" if name in each["rows"] else "-" for each in [here, *others]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


PAGE = """# Schedules in diffusers pipelines

    import torch
    from diffusers import FluxPipeline
    from oss_ext.integrations.diffusers import applied, search

    pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", torch_dtype=torch.bfloat16).to("cuda")
    prompts = ["a lighthouse at dusk", "a red fox in snow", "an old harbour", "two wooden chairs"]
    result = search(pipe, steps=10, calls=[{{"prompt": prompt}} for prompt in prompts], guidance_scale=3.5)
    result.schedule.save("flux-10.json")
    with applied(pipe, result.schedule):
        image = pipe("a bridge in fog", guidance_scale=3.5).images[0]

`docs/make_diffusers_table.py` writes this page; it ran every pipeline below with tiny random weights (float32, CPU).

`apply(pipe, schedule)` puts a scheduler of ours in the pipeline's place for one. It samples the schedule's own steps,
coefficients, start and network times, and ignores the step count, `sigmas=`, `timesteps=` and `mu` that the pipeline
hands it, so that nothing shifts or bends the levels a second time. It is the same for pipelines that take `sigmas=`,
`timesteps=`, or neither.

{table}

- loop's latents: of one sample, as the loop holds them; two dimensions are packed tokens.
- takes: which arguments the pipeline's call has for levels of one's own. None is needed.
- noise scaled by: where the noise is made as large as the schedule's start wants it: `init_noise_sigma`, which the
  pipeline multiplies with; its `prepare_latents`, whose result is scaled; or the first `scale_model_input`.
- neutralised: settings of the pipeline's own scheduler that would have bent the levels.
- its times: whether the pipeline's own scheduler tells its network whole timesteps only. A search then looks at whole
  ones alone for models with a table of them (`nodes="integer"`), so that its nodes are also that scheduler's.
- apply: the pipeline's output against `Schedule.sample` with the same network beside it, on the same noise: the largest
  difference of Euler, UniPC and DPM-Solver++(3M) schedules, relative to the largest number. -: that diffusers has no
  such pipeline.
- search: the state that the search scored against the output of the pipeline with the schedule found. Its nodes were
  those of `dp_search` with the same network beside it in every row.

In bfloat16 the tests allow 0.06 for the first of these, most of it from pipelines that round timesteps to bfloat16.

## Image-to-image

With a `strength` below 1 a pipeline keeps the tail of its timesteps: fewer steps than were asked for. Under `apply` it
makes all steps of the schedule, from the noise level that the strength stands for among very many steps (timestep
1000 x strength; for flow models the strength after the shift). The schedule's times are read off at equal parts of what
lies below that level; solvers with a formula get new coefficients, fitted ones give way to a formula of order 2.

## What a search cannot follow

Pipelines with several loops or several schedulers, those that change their latents between steps (inpainting by
blending: search the plain pipeline, then apply), enabled caches, and loops that end early. It says so. Guidance or
control intervals given as shares of the steps see the search's steps in another order than sampling does: leave them
out of a search.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, action="append", default=[])
    parser.add_argument("--json", action="store_true", help="print the measurements instead of writing the page")
    arguments = parser.parse_args()
    measured = [measure()]
    if arguments.json:
        print(json.dumps(measured[0]))
        return
    for folder in arguments.beside:
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path}
        command = [sys.executable, __file__, "--json"]
        out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        measured.append(json.loads(out.splitlines()[-1]))
    (DOCS / "diffusers.md").write_text(PAGE.format(table=table(measured)), encoding="utf-8")


if __name__ == "__main__":
    main()
