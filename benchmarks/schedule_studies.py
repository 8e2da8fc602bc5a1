"""Small measurements beside the table of schedules: what samples, candidates, teachers and beams are worth."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from heldout import BATCH, HeldOut, Searched, gain, summary

import oss_ext
from oss_ext.candidates import default_count
from oss_ext.metrics import pooled_psnr, psnr
from oss_ext.teacher import DEFAULT_SOLVER, DEFAULT_STEPS

Row = dict[str, Any]

SAMPLES = (1, 2, 4, 8, 32, 128)
CANDIDATES = (16, 24, 32, 48, 64)  # and all of them
BEAMS = (1, 2, 4, 8)
BEAM_CANDIDATES, BEAM_SAMPLES, BEAM_STEPS = 32, 32, (5, 10)
TEACHER_NOISES, REFERENCE_STEPS = 64, 1000
TEACHERS = [("euler", 200), ("euler", 1000)] + [
    (solver, steps) for solver in ("ab2", "unipc", "unipc_3") for steps in (32, 48, 64, 100, 200)
]


def _row(held: HeldOut, label: str, solver: Searched, steps: int, budget: int, samples: int, **options: Any) -> Row:
    result, seconds = held.search(solver, steps, samples, **options)
    values = held.score(held.sample(result.schedules[budget]))
    row = {"guidance": held.guidance, "solver": label, "steps": budget, "samples": samples, **options}
    return row | {"nfe": result.nfe, "seconds": seconds} | summary(values)


def samples_study(held: HeldOut, options: Namespace) -> list[Row]:
    """Held-out PSNR against the number of noises searched on."""
    solvers: dict[str, Searched] = {
        "fitted": oss_ext.solvers.Fitted(history=3),
        "fitted, history 1": oss_ext.solvers.Fitted(history=1),
        "dpmpp_2m": "dpmpp_2m",
    }
    counts = [count for count in SAMPLES if count <= options.samples]
    return [
        _row(held, label, solver, options.study_steps, options.study_steps, count, candidates=options.candidates)
        for label, solver in solvers.items()
        for count in counts
    ]


def candidates_study(held: HeldOut, options: Namespace) -> list[Row]:
    """Held-out PSNR against the number of nodes searched, the evaluations a sample that it took, the published search's
    evaluations, and the gain over all nodes with its error."""
    steps, every = options.study_steps, options.teacher_steps
    counts = [count for count in CANDIDATES if steps <= count < every]
    rows = []
    for solver in ("euler", "dpmpp_2m", "fitted"):
        full, _ = held.search(solver, steps, candidates=every)
        base = held.score(held.sample(full.schedules[steps]))
        for count in [*counts, every]:
            row = _row(held, solver, solver, steps, steps, options.samples, candidates=count)
            found, _ = held.search(solver, steps, candidates=count)
            over, error = gain(held.score(held.sample(found.schedules[steps])), base, mean=False)
            rows.append(row | {"over_all": over, "over_all_error": error, "published": every * (steps + 1)})
    return rows


def defaults_study(held: HeldOut, options: Namespace) -> list[Row]:
    """The library's defaults beside all nodes of this teacher and of the default one: the evaluations, the PSNR to this
    teacher, and to a fine reference, which favours neither ("true_psnr")."""
    steps, every = options.study_steps, options.teacher_steps
    reference = held.reference(options.reference_steps, len(held.noise))
    default = {"teacher_steps": min(DEFAULT_STEPS, every), "teacher_solver": DEFAULT_SOLVER}
    rows = []
    for solver in ("euler", "dpmpp_2m", "fitted"):
        searches = {
            "all nodes": {"candidates": every},
            "default teacher, all nodes": default | {"candidates": default["teacher_steps"]},
            "default": default | {"candidates": default_count(steps)},
        }
        base = None
        for name, how in searches.items():
            row = _row(held, solver, solver, steps, steps, options.samples, **how)
            found, _ = held.search(solver, steps, **how)
            values = psnr(held.sample(found.schedules[steps]), reference).double().cpu()
            base = values if base is None else base
            over, error = gain(values, base, mean=False)
            true = {"true_psnr": float(pooled_psnr(values)), "over_all": over, "over_all_error": error}
            rows.append(row | {"search": name, "published": every * (steps + 1)} | true)
    return rows


def beams_study(held: HeldOut, options: Namespace) -> list[Row]:
    """Held-out PSNR against the states kept a node, and what they cost."""
    samples, few = min(BEAM_SAMPLES, options.samples), min(BEAM_CANDIDATES, options.teacher_steps)
    budgets = [budget for budget in BEAM_STEPS if budget <= few]
    rows = []
    for solver in ("fitted", "euler"):
        for beam in BEAMS:
            for budget in budgets:
                rows.append(_row(held, solver, solver, max(budgets), budget, samples, candidates=few, beam=beam))
    return rows


def teachers_study(held: HeldOut, options: Namespace) -> list[Row]:
    """How near teachers of no more steps come to a fine reference, two-step Adams-Bashforth: PSNR, and the root mean
    square distance."""
    count = min(TEACHER_NOISES, len(held.noise))
    noise, cond = held.noise[:count], {name: value[:count] for name, value in held.cond.items()}

    def sample(solver: str, steps: int) -> Any:
        return held.stock("flow", steps, solver).sample(held.model, noise, cond, batch_size=BATCH)

    reference = held.reference(options.reference_steps, count)
    rows = []
    for solver, steps in [teacher for teacher in TEACHERS if teacher[1] <= options.reference_steps]:
        values = psnr(sample(solver, steps), reference).double().cpu()
        distance = 2 * 10 ** (-float(pooled_psnr(values)) / 20)  # data range 2
        row = {"guidance": held.guidance, "solver": solver, "steps": steps, "reference_steps": options.reference_steps}
        rows.append(row | {"noises": count, "distance": distance} | summary(values))
    return rows


STUDIES = {
    "samples": samples_study,
    "candidates": candidates_study,
    "defaults": defaults_study,
    "teachers": teachers_study,
    "beams": beams_study,
}
WHAT = {
    "samples": "samples",
    "candidates": "candidates",
    "defaults": "candidates",
    "teachers": "steps",
    "beams": "beam",
}


def show(name: str, rows: list[Row]) -> str:
    """One study as text."""
    what = WHAT[name]
    lines = [
        f"\n{name}: {'guidance':>8} {'solver':>18} {'steps':>5} {what:>10} {'evaluations':>11} {'PSNR':>7} {'mean':>7}"
    ]
    for row in rows:
        spent = row["nfe"]["total"] if "nfe" in row else row["steps"]
        over = f" {row['over_all']:+.2f} +- {row['over_all_error']:.2f} over all nodes" if "over_all" in row else ""
        over += f" (to the reference; {row['search']})" if "search" in row else ""
        lines.append(
            f"{'':{len(name) + 1}} {row['guidance']:8g} {row['solver']:>18} {row['steps']:5d} {row[what]:10d} "
            f"{spent:11g} {row['psnr']:7.2f} {row['mean_psnr']:7.2f}{over}"
        )
    return "\n".join(lines)
