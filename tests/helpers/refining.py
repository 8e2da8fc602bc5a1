"""What the tests of refinement share: a mixture, its teacher, schedules to refine, and their errors."""

from __future__ import annotations

import torch
from helpers.analytic import mixture, normal

from oss_ext import Schedule, dp_search, grids
from oss_ext.progress import Counter
from oss_ext.refine_gradient import Problem
from oss_ext.teacher import DEFAULT_SOLVER

MIXTURE = mixture(1, std=0.6)
NOISE = normal(32, 4, seed=1)
FINE = torch.linspace(1, 0, 41, dtype=torch.float64)
EVERY = ("times", "coefficients", "noise_scale", "network_t")
METHODS = ("nodes", "gradient")
TEACHER = {"teacher_steps": 40}
SHORT = {**TEACHER, "iterations": 30}


def teacher_of(model, noise=NOISE, grid=FINE):
    return Schedule.from_grid(grid, DEFAULT_SOLVER, model).sample(model, noise)


def error_of(schedule, model, noise=NOISE, target=None):
    target = teacher_of(model, noise) if target is None else target
    return float((schedule.sample(model, noise) - target).double().square().mean())


def fell(schedule, before, model):
    """How many noises end nearer to the teacher."""
    target = teacher_of(model)
    after, first = ((each.sample(model, NOISE) - target).square().mean(1) for each in (schedule, before))
    return int((after < first).sum())


def searched(solver="dpmpp_2m", steps=4, noise=NOISE, **options):
    return dp_search(MIXTURE.flow(), noise, steps, **TEACHER, solver=solver, candidates=12, **options).schedule


def stock(solver="dpmpp_2m", steps=4, grid="flow"):
    return Schedule.from_grid(grids.make(grid, steps), solver, MIXTURE.flow())


def problem_of(schedule, model, noise=NOISE, judges=8, rows=100, grid=FINE):
    target = teacher_of(model, noise, grid).flatten(1)
    return Problem(model, noise, target, {}, noise.dtype, rows, judges, schedule.carries, Counter(0, False, ""))
