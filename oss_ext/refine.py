"""refine: a schedule brought nearer to the teacher's endpoints, from where it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from inspect import signature
from typing import ParamSpec

import torch
from pydantic import JsonValue
from torch import Tensor

from oss_ext import grids, solvers
from oss_ext.drive import drive
from oss_ext.evaluate import pick_batch_size, state_dtype
from oss_ext.models import Denoiser
from oss_ext.objective import OBJECTIVES, judges, squared_error
from oss_ext.progress import Counter, ProgressCallback, check_progress
from oss_ext.refine_gradient import Problem, judged_at, polish
from oss_ext.refine_knobs import Numbers
from oss_ext.refine_nodes import Nodes, Outcome, replay
from oss_ext.schedule import Schedule
from oss_ext.store import give_back, keep, place, states_of_path
from oss_ext.teacher import DEFAULT_SOLVER, DEFAULT_STEPS, check_guide
from oss_ext.validate import check_cond, check_model, check_noise, choice, whole_number
from oss_ext.walks import run

METHODS = ("nodes", "gradient")
LEARNED = ("times", "coefficients", "noise_scale", "network_t")
USUAL = frozenset(LEARNED[:3])


@dataclass(frozen=True)
class Refined:
    """endpoint: [B, *shape], where the schedule takes the noises. error: float64 [B], mean squared distance to the
    teacher there. evaluations: a sample, the teacher's among them."""

    schedule: Schedule
    endpoint: Tensor
    error: Tensor
    evaluations: float


@torch.no_grad()
def run_refinement(
    schedule: Schedule,
    model: Denoiser,
    noise: Tensor,
    *,
    method: str = "nodes",
    objective: str = "mse",
    cond: Mapping[str, Tensor] | None = None,
    teacher_steps: int = DEFAULT_STEPS,
    teacher_solver: str | solvers.Solver = DEFAULT_SOLVER,
    grid: str | Tensor = "flow",
    teacher: Tensor | None = None,
    solver: str | solvers.Solver | None = None,
    evaluations: int = 400,
    iterations: int = 100,
    learn: Sequence[str] | None = None,
    batch_size: int | None = None,
    store: str = "auto",
    progress: bool | ProgressCallback = False,
) -> Refined:
    """A schedule of as many steps that ends nearer to the teacher.

    schedule: any: searched, stock, loaded, refined before.
    noise: [B, ...], unit normal, as for `dp_search`. cond: tensors [B, ...], handed to the network by name.
    method:
        "nodes": coordinate descent over the nodes of the teacher's grid, without gradients: one node moves by +-1, 2,
            4... and the move is kept if the objective falls, and the distance of at least half of the noises (what
            mends a few of them alone mends little elsewhere). Coefficients follow: by the solver's formula, or fitted
            (mixed: chosen) again along the new path. The first node moves unless it is the grid's. A path off the grid
            starts at the nearest nodes; a `network_t` is given up. Never worse than `schedule` on these noises: if no
            path is better it is returned as it is. Fitted coefficients want a few dozen noises.
        "gradient": back-propagation through the steps and the model, Adam. The last quarter of the noises (at least
            one; so B >= 2) only judges: the iterate that is best there is returned, the given schedule being one of
            them, so that it is never worse there. Memory: the activations of a batch.
    objective: of every noise's mean squared distance to the teacher: "mse": their mean, which is that of the far ones
        above all; "psnr": their geometric mean, hence the mean of the noises' PSNRs: every noise counts alike.
    grid, teacher_steps, teacher_solver: the teacher, as for `dp_search`; for "nodes" best those of the search.
    teacher: [B, ...], the teacher's endpoints of these noises where they are known (`SearchResult.teacher`), which
        saves its evaluations; "nodes" with fitted or mixed coefficients runs the teacher all the same.
    solver: whose coefficients follow the nodes; None: `schedule.solver`.
    evaluations: "nodes": what it may spend a sample, beside the teacher's.
    iterations: "gradient": of Adam, with a cosine decay.
    learn: "gradient": which of "times" (all but the first and the last; the coefficients of the solver's formula move
        along), "coefficients" (each on its own; `schedule.solver` then becomes "polished") and "noise_scale".
        None: all, but the times only where the model's `timesteps` can be differentiated: elsewhere their
        gradient would be wrong.
    batch_size: network inputs a batch; "gradient" keeps the graph of as many; None: 2^20 numbers, at most 256 inputs.
    store: "nodes": where the states are kept, as for `dp_search`.
    progress: True for a bar, or a callback (evaluations made, in all); in all is a bound until "nodes" ends.

    The schedule's provenance gets `refined`, its cost, and the evaluations in `nfe`; a backward pass counts as two.
    Models' parameters get no gradients. Half types: states and gradients in float32.

    Raises TypeError or ValueError that names the argument, before any evaluation; for a model that cannot be
    differentiated; and for outputs of another shape, dtype or device, or with NaN or inf.
    """
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule: got {type(schedule).__name__}, wanted a Schedule")
    check_model(model)
    noise = check_noise(noise)
    given = check_cond(cond, noise)
    choice("method", method, METHODS)
    choice("objective", objective, OBJECTIVES)
    progress = check_progress(progress)
    inputs = pick_batch_size(batch_size, noise[0].numel())
    if schedule.calibration is not None:
        raise ValueError("schedule: got one that calibrates its states, which refine knows nothing of, wanted another")
    schedule.check_range(model)
    guide = check_guide(teacher_solver)
    t = grids.of_teacher(grid, teacher_steps, model)
    known = _check_teacher(teacher, noise)
    states = noise.to(state_dtype(noise.dtype))
    everyone = slice(0, len(noise))
    if method == "nodes":
        follower = _check_solver(schedule, solver, len(t) - 1)
        kept = len(t) if solvers.is_searched(follower) else 0
        near = keep(store, states, states_of_path(schedule.steps, kept))
        at = near.device
        mover = Nodes(schedule, model, t, guide, follower, None if known is None else known.to(at), objective)
        budget = whole_number("evaluations", evaluations, least=1)
        with Counter(mover.bound(budget) * len(noise), progress, "refining") as counter:
            moved = drive(
                mover.core(near, budget),
                model,
                cond=given,
                dtype=noise.dtype,
                batch_size=inputs,
                counter=counter,
                device=noise.device,
            )
            counter.finish()
        moved = moved._replace(endpoint=moved.endpoint.to(noise.device))
        give_back(place(near))
        return _noted(moved, schedule, "nodes", counter.made / len(noise), {"objective": objective}, noise.shape)
    iterations = whole_number("iterations", iterations, least=0)
    learned = _check_learn(learn, schedule, model)
    if len(noise) < 2:
        raise ValueError("noise: got 1 sample with method 'gradient', wanted at least 2: some of them only judge")
    judging = judges(len(noise))
    total = _gradient_evaluations(len(noise), judging, schedule.steps, iterations, len(t) - 1 if known is None else 0)
    with Counter(total, progress, "refining") as counter:
        if known is None:
            walk = run(states, t, solvers.along(guide, t), guide.carries, samples=everyone)
            known = drive(walk, model, cond=given, dtype=noise.dtype, batch_size=inputs, counter=counter)
        at_once = max(1, inputs // schedule.steps)  # the graph holds all steps of a sample
        problem = Problem(
            model, states, known, given, noise.dtype, at_once, judging, schedule.carries, counter, objective
        )
        numbers = polish(problem, schedule, learned, iterations)
        refined = schedule if numbers is None else _from_numbers(schedule, model, numbers, learned)
        end = drive(replay(refined, states), model, cond=given, dtype=noise.dtype, batch_size=inputs, counter=counter)
        counter.finish()
    moved = Outcome(refined, end, squared_error(end, known))
    notes: dict[str, JsonValue] = {
        "objective": objective,
        "iterations": iterations,
        "learned": [*sorted(learned)],
    }
    return _noted(moved, schedule, "gradient", counter.made / len(noise), notes, noise.shape)


Given = ParamSpec("Given")


def _only_the_schedule(run: Callable[Given, Refined]) -> Callable[Given, Schedule]:
    """`run` as `refine`, with the parameters and the docstring of `run`."""

    @wraps(run)
    def refine(*args: Given.args, **kwargs: Given.kwargs) -> Schedule:
        return run(*args, **kwargs).schedule

    refine.__name__ = refine.__qualname__ = "refine"
    vars(refine)["__signature__"] = signature(run).replace(return_annotation="Schedule")
    return refine


refine = _only_the_schedule(run_refinement)


def _from_numbers(schedule: Schedule, model: Denoiser, numbers: Numbers, learned: frozenset[str]) -> Schedule:
    t = numbers.t
    moved = not torch.equal(t, schedule.t)
    told = schedule.network_t is not None or "network_t" in learned
    return replace(
        schedule,
        t=t,
        coefficients=numbers.rows,
        solver="polished" if "coefficients" in learned else schedule.solver,
        sigmas=model.sigmas(t),
        timesteps=model.timesteps(numbers.network_t),
        parameterization=model.parameterization,
        network_t=numbers.network_t if told else None,
        nodes=None if moved else schedule.nodes,
        noise_scale=float(numbers.scale),
    )


def _noted(
    outcome: Outcome,
    old: Schedule,
    method: str,
    evaluations: float,
    notes: dict[str, JsonValue],
    shape: torch.Size,
) -> Refined:
    """The outcome with what was done in the schedule's provenance."""
    origin = old.provenance
    spent: float = round(evaluations) if evaluations == round(evaluations) else evaluations
    made = {name: count for name, count in origin.nfe.items() if name != "total"}
    nfe = {**made, "refine": made.get("refine", 0) + spent, "total": origin.nfe.get("total", 0) + spent}
    provenance = origin.model_copy(
        update={
            "cost": float(outcome.error.mean()),
            "replayed_cost": None,
            "nfe": nfe,
            "refined": {"method": method, "samples": len(outcome.error), "evaluations": spent, **notes},
        }
    )
    schedule = replace(outcome.schedule, provenance=provenance)
    return Refined(schedule, outcome.endpoint.reshape(shape), outcome.error, spent)


def _gradient_evaluations(samples: int, judging: int, steps: int, iterations: int, teacher: int) -> int:
    """Of all samples: the teacher, a survey, a forward and a backward pass an iteration, the judging, a replay."""
    learners = samples - judging
    judged = len(judged_at(iterations)) * judging
    return samples * teacher + steps * (learners + 3 * iterations * learners + judged + samples)


def _check_teacher(teacher: Tensor | None, noise: Tensor) -> Tensor | None:
    """[B, D] in the states' dtype."""
    if teacher is None:
        return None
    if not isinstance(teacher, Tensor) or not teacher.is_floating_point():
        came = f"a tensor of {teacher.dtype}" if isinstance(teacher, Tensor) else type(teacher).__name__
        raise TypeError(f"teacher: got {came}, wanted a floating tensor {list(noise.shape)}, the teacher's endpoints")
    if teacher.shape != noise.shape or teacher.device != noise.device:
        raise ValueError(
            f"teacher: got shape {list(teacher.shape)} on {teacher.device}, wanted {list(noise.shape)} on "
            f"{noise.device}, as the noise"
        )
    if not bool(torch.isfinite(teacher).all()):
        raise ValueError("teacher: got NaN or inf, wanted finite numbers")
    return teacher.detach().flatten(1).to(state_dtype(noise.dtype))


def _check_solver(schedule: Schedule, solver: str | solvers.Solver | None, last: int) -> solvers.Solver:
    """Whose coefficients follow the nodes."""
    if schedule.steps > last:
        raise ValueError(f"schedule: got {schedule.steps} steps, wanted at most {last}, those of the teacher's grid")
    if solver is not None:
        return solvers.get(solver)
    if schedule.solver not in [*solvers.names(), *solvers.ALIASES]:
        raise ValueError(
            f"schedule: got coefficients of {schedule.solver!r}, which cannot follow its nodes; wanted one of "
            f"{', '.join(solvers.names())}, or solver= to say whose do"
        )
    known = solvers.get(schedule.solver)
    return solvers.Fitted(history=schedule.coefficients.shape[1] - 2) if isinstance(known, solvers.Fitted) else known


def _check_learn(learn: Sequence[str] | None, schedule: Schedule, model: Denoiser) -> frozenset[str]:
    with torch.inference_mode(False), torch.enable_grad():
        moving = model.timesteps(schedule.t[:-1].clone().requires_grad_(True)).requires_grad
    if learn is None:
        return USUAL if moving else USUAL - {"times"}
    if isinstance(learn, str) or not isinstance(learn, Sequence):
        raise TypeError(f"learn: got {learn!r}, wanted a list of {', '.join(LEARNED)}")
    if not learn:
        raise ValueError(f"learn: got nothing, wanted some of {', '.join(LEARNED)}")
    for name in learn:
        choice("learn", name, LEARNED)
    if not moving and {"times", "network_t"} & set(learn):
        raise ValueError(
            f"learn: got {', '.join(learn)} with a {model.parameterization} model whose timesteps() cannot be "
            "differentiated, wanted 'coefficients', 'noise_scale' or both"
        )
    return frozenset(learn)
