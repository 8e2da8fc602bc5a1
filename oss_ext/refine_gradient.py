"""Refinement by back-propagation through the steps of a schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oss_ext import solvers
from oss_ext.evaluate import evaluate
from oss_ext.models import Denoiser
from oss_ext.objective import level, logarithms, squared_error
from oss_ext.progress import Counter
from oss_ext.refine_knobs import Knobs, Numbers
from oss_ext.schedule import Schedule

RATES = {"times": 0.01, "coefficients": 0.003, "noise_scale": 0.003, "network_t": 0.01}
"""Adam's step sizes at first: of log gaps, in units of the error that the schedule starts with, of 1, of log time."""
JUDGED_EVERY = 5


@dataclass(frozen=True)
class Problem:
    """noise: [B, *shape] in the states' dtype. target: [B, D]. dtype: what the network is fed. rows: samples at once.
    judges: how many of the last samples only judge. objective: what of the samples' errors is lowered."""

    model: Denoiser
    noise: Tensor
    target: Tensor
    cond: Mapping[str, Tensor]
    dtype: torch.dtype
    rows: int
    judges: int
    carries: solvers.Carries
    counter: Counter
    objective: str = "mse"

    @property
    def learners(self) -> slice:
        return slice(0, len(self.noise) - self.judges)

    @property
    def judging(self) -> slice:
        return slice(len(self.noise) - self.judges, len(self.noise))

    def parts(self, samples: slice) -> Iterator[slice]:
        for begin in range(samples.start, samples.stop, self.rows):
            yield slice(begin, min(begin + self.rows, samples.stop))


def polish(problem: Problem, schedule: Schedule, learn: frozenset[str], iterations: int) -> Numbers | None:
    """Adam with a cosine decay on what the objective makes of the learning samples' squared distances to the teacher.
    Returns the numbers of the iterate that is best on the judging ones; of every `JUDGED_EVERY`th, the first being the
    schedule itself, and the last. None: that is the schedule.

    Raises ValueError for a model whose velocity is cut from the graph of its input.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # Where the caller's inference mode made them, they could not be saved for the backward pass.
        problem = replace(
            problem,
            noise=problem.noise.clone(),
            target=problem.target.clone(),
            cond={key: value.clone() for key, value in problem.cond.items()},
        )
        knobs = Knobs(schedule, learn, problem.model.t_min, problem.model.t_max)
        with torch.no_grad():
            gram, before = _survey(problem, knobs.numbers())
        if before > 0:
            knobs.whiten(gram, before**0.5)
        names = list(knobs.values)
        adam = torch.optim.Adam([{"params": [knobs.values[name]], "lr": RATES[name]} for name in names])
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(iterations, 1))
        best, least = None, float("inf")
        for iteration in range(iterations + 1):
            if iteration in judged_at(iterations):
                with torch.no_grad():
                    numbers = knobs.numbers()
                    error = level_of(problem, numbers, problem.judging)
                if error < least:
                    best, least = (_detached(numbers) if iteration else None), error
            if iteration == iterations or before == 0:
                break
            for name, slope in zip(names, gradient(problem, knobs, before), strict=True):
                knobs.values[name].grad = slope
            adam.step()
            decay.step()
        return best


def judged_at(iterations: int, every: int = JUDGED_EVERY) -> list[int]:
    """The iterates that are judged: one in so many, and the last."""
    return sorted({*range(0, iterations, every), iterations})


def gradient(problem: Problem, knobs: Knobs, unit: float = 1.0) -> list[Tensor]:
    """Of the mean squared error of the learning samples over `unit`, or with the objective "psnr" of the mean of their
    logarithms, with respect to `knobs.values`; the model's parameters get none. Memory: the activations of `rows`
    samples through all steps."""
    values = list(knobs.values.values())
    total = [torch.zeros_like(value) for value in values]
    everyone = problem.learners
    for part in problem.parts(everyone):
        numbers = knobs.numbers()
        end = walk(problem, numbers, part).state
        error = (end - problem.target[part]).square().mean(1, dtype=torch.float64)
        loss = error / unit if problem.objective == "mse" else logarithms(error)
        slopes = torch.autograd.grad(loss.sum() / everyone.stop, values, allow_unused=True)
        for sum_, slope in zip(total, slopes, strict=True):
            if slope is not None:
                sum_ += slope
        problem.counter.add(2 * len(numbers.rows) * (part.stop - part.start))
    return total


def walk(problem: Problem, numbers: Numbers, part: slice, gram: Tensor | None = None) -> solvers.Walk:
    """The walk of some samples, at its end, differentiable in `numbers`. gram: [k, P, P], to add products to."""
    noise = problem.noise[part]
    state = noise.flatten(1) * numbers.scale.to(noise)
    rows, t = numbers.rows.to(noise), numbers.t.to(noise)
    walk = solvers.Walk(state, problem.carries, rows.shape[1] - 2)
    cond = {key: value[part] for key, value in problem.cond.items()}
    for step in range(len(rows)):
        output = evaluate(
            problem.model,
            walk.state.reshape(len(noise), 1, *noise.shape[1:]),
            numbers.network_t[step : step + 1],
            cond=cond,
            dtype=problem.dtype,
            batch_size=len(noise),
            labels=[step],
            tick=problem.counter.add,
            first_sample=part.start,
        ).flatten(1)
        check_in_graph(walk.state, output)
        if gram is not None:
            basis = torch.stack(walk.basis(output)).double()
            gram[step, : len(basis), : len(basis)] += torch.einsum("pbd,qbd->pq", basis, basis).cpu()
        walk.step(output, t[step], rows[step].unbind())
    return walk


def check_in_graph(state: Tensor, output: Tensor) -> None:
    """Raises ValueError for an output [b, D] that the model cut from the graph of the state."""
    if state.requires_grad and not output.requires_grad:
        raise ValueError(
            "model: velocity() returned a tensor that is cut from the graph of its input (no_grad, inference_mode, "
            "detach?), wanted one that can be differentiated, for method 'gradient'; 'nodes' needs no gradients"
        )


def level_of(problem: Problem, numbers: Numbers, samples: slice) -> float:
    errors = [
        squared_error(walk(problem, numbers, part).state, problem.target[part]) for part in problem.parts(samples)
    ]
    return level(torch.cat(errors), problem.objective)


def _survey(problem: Problem, numbers: Numbers) -> tuple[Tensor, float]:
    """(mean products of every step's basis [k, P, P], mean squared error) of the learning samples."""
    steps, width = numbers.rows.shape
    gram, errors = torch.zeros(steps, width, width, dtype=torch.float64), []
    for part in problem.parts(problem.learners):
        errors.append(squared_error(walk(problem, numbers, part, gram).state, problem.target[part]))
    return gram / problem.target[problem.learners].numel(), float(torch.cat(errors).mean())


def _detached(numbers: Numbers) -> Numbers:
    return Numbers(*(value.detach().clone() for value in numbers))
