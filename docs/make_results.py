"""Measures and writes docs/results.md: every table and picture of it, beside the paper's.

    python docs/make_results.py all --out DIR              # on a GPU, the whole page: what follows, one after another
    python docs/make_results.py measure --out DIR          # goes on where an earlier run stopped
    python docs/make_results.py prepare --out DIR          # beforehand, on any machine: what needs no model
    python docs/make_results.py measure --out DIR --study main --limit-seconds 300
    python docs/make_results.py measure --out DIR --side-by-side 6   # so many processes at once, on all GPUs in turn
    python docs/make_results.py collect --out DIR          # tables to benchmarks/results, pictures to docs/images
    python docs/make_results.py page                       # docs/results.md, from those files alone
    python docs/make_results.py measure --out /tmp/small --small --device cpu

`all` runs benchmarks/bench_costs.py and bench_rivals.py too; benchmarks/bench_peers.py wants the authors' code, and is
run by hand. A study is a comparison (`oss_ext.compare`) of some models, rows and budgets under one teacher; `studies`
lists them, the most important first. `oss-ext compare` measures the same rows of any model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import results_found
import results_page
import results_pictures
import torch

from oss_ext import zoo
from oss_ext.calibration import amplitudes, amplitudes_of
from oss_ext.cli_common import Source
from oss_ext.cli_compare import bundled_features, environment, save, subject_of
from oss_ext.compare import Comparison, Guide, Row, Subject, catalogue, chosen, compare
from oss_ext.compare.case import Case
from oss_ext.compare.catalogue import OSS_NOISES, POLISHING
from oss_ext.compare.measures import Features
from oss_ext.compare.rows import costed, per_sample, searched, stock, teacher
from oss_ext.costs import Cost, Feature, Perceptual
from oss_ext.files import whole_file

ROOT = Path(__file__).resolve().parents[1]
RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
BATCH = {"cuda": 4096, "cpu": 256}
TABLE4_NOISES = 32  # held-out ones that get schedules of their own
TABLE3_NOISES = 16  # of the median there; twice as many held-out ones
EXPERTS = "experts"
PERCEPTUAL = ("blocks.3", "blocks.7")  # of the bundled networks
PICTURES = {
    "main": (
        "psnr_vs_nfe", "schedules_photo32-guidance-1", "schedules_photo32-vp-guidance-1",
        "samples_photo32-guidance-1_10", "samples_photo32-vp-guidance-1_10",
    ),
    "calibration": ("samples_photo32-guidance-1_05",),
}  # fmt: skip
SHEET = ("photo32", 3.0, 5)  # model, guidance and steps of the rivals' sample sheet


@dataclass(frozen=True)
class Study:
    """models: (name, guidance scales). rows: of the catalogue, or its own. heldout, samples: noises."""

    name: str
    rows: tuple[Row, ...]
    budgets: tuple[int, ...]
    guide: Guide = field(default_factory=Guide)
    models: tuple[tuple[str, tuple[float, ...]], ...] = (("photo32", (1.0,)),)
    heldout: int = 256
    samples: int = 128
    features: bool = False

    @property
    def cases(self) -> list[tuple[str, float]]:
        return [(name, scale) for name, scales in self.models for scale in scales]

    @property
    def hardest_first(self) -> list[tuple[str, float]]:
        """Its cases, those with guidance, which evaluates twice, before the others."""
        return sorted(self.cases, key=lambda case: case[1] == 1)

    def small(self) -> Study:
        """The same with so few noises and steps that a CPU makes it in a minute or two."""
        shorter = None if self.guide.reference_steps is None else 16
        steps = min(self.guide.steps, 8 + self.guide.steps // 200)
        guide = replace(self.guide, steps=steps, reference_steps=shorter)
        budgets = tuple(sorted({min(budget, 2 + place) for place, budget in enumerate(self.budgets)}))
        return replace(self, guide=guide, budgets=budgets, heldout=4, samples=4)  # rows keep their own counts


def studies(iterations: int, graph: bool = False, polishing: int = POLISHING) -> list[Study]:
    rows = tuple(catalogue(iterations=iterations, graph=graph, polishing=polishing))
    both = tuple((name, (1.0, 3.0)) for name in zoo.names())
    usual = tuple(row for row in rows if row.group != "calibration")
    calibration = tuple(chosen(rows, ["calibration", "ours/joint/euler", "stock/flow/euler"]))
    found = [
        Study("main", usual, (5, 10, 20), models=both, features=True),
        Study("calibration", calibration, (5, 10, 20), features=True),
    ]
    found.append(Study("table4", tuple(_table4()), (5, 10), Guide("flow", 200, "euler"), features=True))
    for grid in ("flow", "ddim", "edm"):
        guide = Guide(grid, 200, "euler")
        found.append(Study(f"table2_{grid}", tuple(_table2()), (5, 10, 20, 50), guide, heldout=64))
    for steps in (100, 200, 500, 1000, 800):
        guide = Guide("ddim", steps, "euler", 1000)
        found.append(Study(f"table3_{steps}", tuple(_table3(steps)), (20,), guide, heldout=32))
    return found


def _table2() -> list[Row]:
    """Naive step reduction on the teacher's own grid, and the searches."""
    return [
        stock(None, "euler"),
        per_sample("euler", 64, row={"most": 20}),
        searched("euler", group="published", name="OSS-ave", samples=OSS_NOISES, share="median", row={"most": 20}),
        searched("euler", row={"most": 20}),
    ]


def _table4() -> list[Row]:
    """What steps are judged by: Euler's, which the paper's are."""

    def features(case: Case) -> Cost:
        return Feature(zoo.features(device=case.device))

    def perceptual(case: Case) -> Cost:
        return Perceptual(case.model.network, *PERCEPTUAL)  # type: ignore[attr-defined]

    judged = {"x0": lambda case: "x0", "features of x0": features, "perceptual": perceptual}
    own = [
        per_sample("euler", TABLE4_NOISES, name=f"OSS, per sample, {name}", cost=cost) for name, cost in judged.items()
    ]
    joint = [costed(name, cost) for name, cost in judged.items()]
    return [stock("flow", "euler"), searched("euler"), *joint, per_sample("euler", TABLE4_NOISES), *own]


def _table3(steps: int) -> list[Row]:
    """The teacher itself measured to the reference, and 20 steps searched with it."""
    ave = searched("euler", group="published", name="OSS-ave", samples=TABLE3_NOISES, share="median")
    rows = [per_sample("euler", 2 * TABLE3_NOISES), ave, searched("euler")]
    return rows if steps == 1000 else [teacher(f"{steps} steps"), *rows]


def subjects(study: Study, device: torch.device) -> list[Subject]:
    found = []
    for name, scale in study.cases:
        model = zoo.load(name, guidance_scale=scale, device=device)
        source = Source(name, model, device, torch.float32)
        found.append(subject_of(source, scale, heldout=study.heldout, samples=study.samples))
    return found


def measure(options: argparse.Namespace) -> None:
    """Every study that was asked for, into a folder of its own; `--limit-seconds` is for all of them together."""
    began, device = time.perf_counter(), torch.device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    together = options.side_by_side > 1 and options.case is None
    features: Features | None = None

    def left() -> float | None:
        return None if options.limit_seconds is None else options.limit_seconds - (time.perf_counter() - began)

    if together:
        side_by_side(options, left)
    for study in wanted(options):
        folder = options.out / study.name
        folder.mkdir(parents=True, exist_ok=True)
        if study.features and features is None:
            features = bundled_features(device)
        some = subjects(study, device)
        found = compare(
            some, study.rows, study.budgets, guide=study.guide, out=folder / "cells", batch_size=BATCH[device.type],
            features=features if study.features else None, limit_seconds=left(),
            prepare=options.command == "prepare", progress=not together,
        )  # fmt: skip
        if options.command == "prepare":
            continue
        about = environment(device) | {"processes": options.side_by_side}
        if together and device.type == "cuda" and torch.cuda.device_count() > 1:
            about["device"] = f"{torch.cuda.device_count()} x {about['device']}"
        result = save(found, study.rows, folder, about, figures=False)
        if study.name == "calibration" and found.cells:
            _amplitudes(study, found, folder)
        for best in result["leaders"]:
            if best["training"]:
                print(
                    f"{best['subject']} g{best['guidance']:g} K{best['budget']} {best['measure']}: {best['ours']} "
                    f"{best['ours_psnr']:.2f} | {best['rival']} {best['rival_psnr']:.2f} | "
                    f"{best['ahead']:+.2f} +- {best['error']:.2f}"
                )
        for failure in found.failed:
            print("FAILED", *failure)
        print(f"{study.name}: {len(found.cells)} cells, {len(found.left)} left, {found.seconds:.0f} s", flush=True)
    if options.command == "measure" and EXPERTS in (options.study or [EXPERTS]) and (left() is None or left() > 0):
        measure_experts(options)


def side_by_side(options: argparse.Namespace, left: Callable[[], float | None]) -> None:
    """Measures every case of the studies in a process of its own, some at once: small networks leave most of a GPU
    idle. What they measured is in their cells, and in DIR/log what they printed; a process that fails is named."""
    jobs = [(study.name, f"{name}:{scale:g}") for study in wanted(options) for name, scale in study.hardest_first]
    if options.command == "measure" and EXPERTS in (options.study or [EXPERTS]):
        jobs.append((EXPERTS, "-"))
    running: list[tuple[str, subprocess.Popen[bytes]] | None] = [None] * options.side_by_side
    (options.out / "log").mkdir(exist_ok=True)
    while jobs or any(running):
        seconds = left()
        if seconds is not None and seconds <= 0:
            jobs.clear()
        for place, one in enumerate(running):
            if one is not None and one[1].poll() is not None:
                print(f"{one[0]}: {'done' if one[1].returncode == 0 else 'FAILED'}", flush=True)
                running[place] = one = None
            if one is None and jobs:
                study, case = jobs.pop(0)
                running[place] = (f"{study} {case}", _process(options, study, case, seconds, place))
        time.sleep(0.1)


def _process(
    options: argparse.Namespace, study: str, case: str, seconds: float | None, place: int
) -> subprocess.Popen[bytes]:
    """One that measures a case of a study. place: among those at once, which chooses the GPU."""
    command = [sys.executable, __file__, options.command, "--out", str(options.out), "--study", study]
    command += ["--device", options.device, "--iterations", str(options.iterations)]
    command += ["--side-by-side", str(options.side_by_side), "--case", case]
    command += [*([] if options.graph else ["--no-graph"]), *(["--small"] if options.small else [])]
    command += [] if seconds is None else ["--limit-seconds", str(seconds)]
    environ = dict(os.environ)
    if options.device == "cuda" and torch.cuda.device_count() > 1:
        named = environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        gpus = named.split(",")
        environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    log = options.out / "log" / f"{study}_{case.replace(':', '_')}.txt"
    with log.open("wb") as stream:
        return subprocess.Popen(command, env=environ, stdout=stream, stderr=subprocess.STDOUT)


def measure_experts(options: argparse.Namespace) -> None:
    """The paper's Table 5, by the example that users run; the experts themselves are not kept."""
    place = options.out / f"{EXPERTS}.json"
    if place.exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "examples" / "experts.py"), "--output", folder]
        subprocess.run([*command, "--device", options.device, *(["--tiny"] if options.small else [])], check=True)
        shutil.copy(Path(folder) / "results.json", place)


def wanted(options: argparse.Namespace) -> list[Study]:
    graph = options.graph and options.device != "cpu"
    every = studies(2, graph, polishing=2) if options.small else studies(options.iterations, graph)
    names = [study.name for study in every]
    unknown = [name for name in options.study or [] if name not in [*names, EXPERTS]]
    if unknown:
        raise ValueError(f"study: got {', '.join(unknown)}, wanted some of {', '.join([*names, EXPERTS])}")
    chosen_ = [study for study in every if not options.study or study.name in options.study]
    if options.case is not None:
        name, _, scale = options.case.partition(":")
        chosen_ = [replace(study, models=((name, (float(scale),)),)) for study in chosen_]
    return [study.small() for study in chosen_] if options.small else chosen_


def _amplitudes(study: Study, found: Comparison, folder: Path) -> None:
    """The teacher's amplitudes and those of Euler's method, naive and ours, calibrated and not (paper's Figure 4)."""
    case, store = found.cases[0], found.stores[0]
    budgets = sorted({cell.budget for cell in found.cells})
    budget = budgets[len(budgets) // 2]
    noise, options = case.search_noise, {"cond": case.search_cond, "batch_size": case.batch_size}
    levels = {"teacher": amplitudes(case.memory, noise, **options, **case.guide.options)}
    for row in study.rows:
        schedule = store.schedule(row, budget)
        if schedule is not None and row.group in ("ours", "stock", "calibration") and "affine" not in row.name:
            levels[f"{row.name}, {budget} steps"] = amplitudes_of(schedule, case.model, noise, **options)
    content = {name: one.model_dump() for name, one in levels.items()}
    with whole_file(folder / "amplitudes.json") as path:
        path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def collect(options: argparse.Namespace) -> None:
    """Tables without what only a rerun needs, to benchmarks/results; pictures, drawn now, to docs/images."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    ran = ("date", "version", "device", "torch", "seconds", "processes")
    cpu = torch.device("cpu")
    for study in wanted(options):
        folder = options.out / study.name
        if not (folder / "compare.json").exists():
            continue
        before = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
        found = compare(
            subjects(study, cpu), study.rows, study.budgets, guide=study.guide, out=folder / "cells",
            features=bundled_features(cpu) if study.features else None, limit_seconds=0,
        )  # fmt: skip
        if len(found.cells) < len(before["rows"]):
            raise ValueError(f"{folder}: made with other settings, such as --iterations: {len(found.left)} left")
        collected = folder / "collected"
        collected.mkdir(exist_ok=True)
        result = save(found, study.rows, collected, {key: before[key] for key in ran if key in before})
        result["rows"] = [_short(entry) for entry in result["rows"]]
        result["failed"] = before["failed"]
        result.pop("figures")
        with whole_file(RESULTS / f"compare_{study.name}.json") as path:
            path.write_text(results_found.dumps(result), encoding="utf-8")
        if (folder / "amplitudes.json").exists():
            shutil.copy(folder / "amplitudes.json", RESULTS / "compare_amplitudes.json")
        _pictures(study, found, collected / "figures")
    if (options.out / f"{EXPERTS}.json").exists():
        shutil.copy(options.out / f"{EXPERTS}.json", RESULTS)


def _pictures(study: Study, found: Comparison, folder: Path) -> None:
    """Copies those that the page shows, and draws the sheet of rivals."""
    for name in PICTURES.get(study.name, ()):
        if (folder / f"{name}.png").exists():
            path = IMAGES / f"results_{study.name}_{name}.png"
            shutil.copy(folder / f"{name}.png", path)
            results_pictures.size(path)
    if study.name == "main":
        for case, store in zip(found.cases, found.stores, strict=True):
            if (case.subject.name, case.guidance) == SHEET[:2]:
                path = IMAGES / "results_rivals_samples.png"
                results_pictures.sheet(case, store, study.rows, results_pictures.SHOWN, SHEET[2], path)
                results_pictures.size(path)


def _short(entry: dict[str, Any]) -> dict[str, Any]:
    unwanted = ("recipe",) if entry["t_spread"] else ("recipe", "t_spread")
    return {key: value for key, value in entry.items() if key not in unwanted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("all", "prepare", "measure", "collect", "page"))
    parser.add_argument("--out", type=Path, default=ROOT / "results-run")
    parser.add_argument("--study", action="append", help="default: all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit-seconds", type=float)
    parser.add_argument("--iterations", type=int, default=150, help="of rivals that are trained")
    parser.add_argument("--no-graph", dest="graph", action="store_false", help="train them without CUDA graphs")
    parser.add_argument(
        "--side-by-side", type=int, default=1, help="processes at once, one a study, model and guidance"
    )
    parser.add_argument("--case", metavar="MODEL:GUIDANCE", help="of these studies' models this one alone")
    parser.add_argument("--small", action="store_true", help="few noises and steps: to see that it works")
    options = parser.parse_args()
    whole = options.command == "all"
    if whole:
        options.command = "measure"
    if options.command in ("prepare", "measure"):
        options.out.mkdir(parents=True, exist_ok=True)
        measure(options)
    if whole and not options.small:
        for name in ("bench_costs", "bench_rivals"):
            command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--device", options.device]
            subprocess.run(command, check=True)
    if whole or options.command == "collect":
        collect(options)
    if whole or options.command == "page":
        results_pictures.draw(results_found.Found())
        results_page.write()


if __name__ == "__main__":
    main()
