"""DM: optimised time steps (Xue, Liu, Chen, Zhang, Hu, Xie, Li, "Accelerating Diffusion Sampling with Optimized Time
Steps", arXiv 2402.17376; also called DMN or DM-NonUniform).

A multistep solver on x0 predictions that interpolates them over lambda = -log sigma weighs the prediction of every node
by known integrals. The x0 prediction at noise level t is off by about eps_t; the paper bounds the error at the end by
the sum over the nodes of eps_t times the size of the node's weight, and minimises that over the nodes' lambdas, which
are to ascend. No model is evaluated. Where the paper leaves a choice open (the orders at the ends, eps_t, what is
summed before its size is taken) it is the authors' published one (scxue/DM-NonUniform, step_optim.py).

They minimise with scipy's trust region, which stops early at the objective's corners. Here the gaps between the lambdas
are a softmax, so that nothing constrains them, and L-BFGS runs on the objective with its corners rounded less and less.
It finds lower values, which are worth having while the first steps' weights stand alone (`truncate` 3, what their code
has). Summed with the others' (0, what its comment says of more than 7 steps), they come to cancel at the minimum, and
the schedules are bad: there the trust region's early stop is what makes the method work, and "trust-constr" is it.

On the bundled flow model (24 noises, mean PSNR, DPM-Solver++(2M), guidance 1, from sigma 400): with `truncate` 3 the
four starts reach the same minimum to 1e-4, and 26.2, 33.4 and 41.2 dB at 5, 10 and 20 steps; with 0 their minima differ
by up to a fifth, and the least one has 21.8, 18.3 and 19.8 dB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from oss_ext import grids, solvers
from oss_ext.baselines.ends import lambda_ends
from oss_ext.baselines.found import Found, deployed_with, schedule_of
from oss_ext.models import Denoiser
from oss_ext.validate import check_model, choice, whole_number

PAPER = "arXiv 2402.17376"
STARTS = {"logsnr": "logsnr", "time": "ddim", "edm": "edm", "quadratic": "quadratic"}
ERRORS = {"pixel": 1, "latent": 2}
ENDINGS = ("replace", "append")
MINIMIZERS = ("lbfgs", "trust-constr")
ORDER = 3
_ROUNDING = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)  # of the objective at the start: how the corners are rounded, in turn


def dm(
    model: Denoiser,
    steps: int = 10,
    *,
    solver: str | solvers.Solver = "unipc_3",
    error: str = "pixel",
    starts: str | Sequence[str] = tuple(STARTS),
    truncate: int | None = 3,
    minimizer: str = "lbfgs",
    ending: str = "replace",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    iterations: int = 100,
) -> Found:
    """The schedule of `steps` steps with the least bound, for every solver on x0 predictions of order 3.

    solver: what it is to run with; the nodes do not depend on it.
    error: how far off an x0 prediction is: "pixel": sigma / alpha, "latent": sigma^2 / alpha, of a variance-preserving
        process, as the authors advise for models of pixels and of latents.
    starts: where the minimisation begins, one or more of "logsnr" (the authors' for pixels), "time" (theirs for
        latents), "edm", "quadratic". The least objective found is kept, since the minima are local ones.
    truncate: the weights of the first so many steps are not summed with later ones before their size is taken, which
        tells fewer of them to cancel. None: 3 up to 7 steps, else 0.
    minimizer: "lbfgs", or "trust-constr", the authors', which needs scipy. See above.
    ending: theirs ends at sigma_min. "replace": so does the optimisation, of `steps` steps, and the last becomes 0.
        "append": it is of one step less, and sigma_min to 0 follows.
    sigma_min, sigma_max: the ends, of x0 + sigma eps; None: the model's, or 0.002 and 400 where it leaves them open, as
        flow models do (`ends.SIGMA_MAX` says why not the paper's 80).
    iterations: of L-BFGS, for each of five roundings; of the trust region ten times as many.

    details: "objective", "start", "objectives" {start: the objective reached}, "lambdas" float64 [nodes].
    Raises TypeError or ValueError that names the argument.
    """
    check_model(model)
    steps = whole_number("steps", steps, least=1)
    deployed = deployed_with(solver)
    power = ERRORS[choice("error", error, tuple(ERRORS))]
    choice("ending", ending, ENDINGS)
    choice("minimizer", minimizer, MINIMIZERS)
    names = (starts,) if isinstance(starts, str) else tuple(starts)
    if not names:
        raise ValueError(f"starts: got none, wanted one or more of {', '.join(STARTS)}")
    for name in names:
        choice("starts", name, tuple(STARTS))
    jumps = steps if ending == "replace" else steps - 1
    known = 0 if truncate is None else whole_number("truncate", truncate, least=0)
    switch = known if truncate is not None else 3 if jumps <= 7 else 0
    iterations = whole_number("iterations", iterations, least=1)
    ends = lambda_ends(model, sigma_min, sigma_max)

    if jumps == 0:
        found, reached = {"logsnr": ends[:1]}, {"logsnr": 0.0}
    else:
        begun = {name: _start(name, jumps, ends, model) for name in names}
        search = minimise if minimizer == "lbfgs" else trust_region
        found = {name: search(start, power, switch, iterations) for name, start in begun.items()}
        reached = {name: float(objective(lambdas, power, switch)) for name, lambdas in found.items()}
    best = min(reached, key=lambda name: reached[name])
    lambdas = found[best]
    kept = lambdas[:-1] if ending == "replace" else lambdas
    t = torch.cat([torch.sigmoid(-kept), kept.new_zeros(1)])  # sigma / (1 + sigma)
    settings = {
        "error": error,
        "start": best,
        "truncate": switch,
        "minimizer": minimizer,
        "ending": ending,
        "objective": reached[best],
    }
    schedule = schedule_of(t, deployed, model, method="dm", paper=PAPER, settings=settings)
    details = {"objective": reached[best], "start": best, "objectives": reached, "lambdas": lambdas}
    return Found({steps: schedule}, {"total": 0}, details)


def objective(lambdas: Tensor, power: int, truncate: int, corner: float = 0.0) -> Tensor:
    """The bound, a float64 scalar, differentiable in `lambdas`, float64 [N + 1], ascending.

    power: of sigma in eps. truncate: see `dm`. corner: |c| is rounded to sqrt(c^2 + corner^2).
    """
    count = len(lambdas) - 1
    now = lambdas[:-1]
    sigma, alpha = torch.sigmoid(-2 * now).sqrt(), torch.sigmoid(2 * now).sqrt()
    size = sigma**power / alpha
    summed = torch.zeros_like(now)
    total = lambdas.new_zeros(())

    def rounded(value: Tensor) -> Tensor:
        return (value.square() + corner**2).sqrt() if corner else value.abs()

    orders = [min(ORDER, s + 1, count - s) for s in range(count)]
    for order in range(1, ORDER + 1):
        at = torch.tensor([s for s in range(count) if orders[s] == order], dtype=torch.long)
        if not len(at):
            continue
        nodes = torch.stack([at - age for age in range(order)])
        weighed = weights(lambdas, at, order) * size[nodes]
        if order == 1:
            total = total + rounded(weighed).sum()
            continue
        alone = at < truncate
        total = total + (weighed[:, alone].square().sum(0) + corner**2).sqrt().sum()
        summed = summed.index_add(0, nodes[:, ~alone].flatten(), weighed[:, ~alone].flatten())
    return total + rounded(summed).sum()


def weights(lambdas: Tensor, at: Tensor, order: int) -> Tensor:
    """float64 [order, n]: the integrals of e^lambda l_m(lambda) over the steps from nodes `at`, int64 [n], to the next;
    l_m: Lagrange's polynomial of node at - m among at, ..., at - order + 1."""
    now, length = lambdas[at], lambdas[at + 1] - lambdas[at]
    moments = [torch.expm1(length)]  # of e^u u^k from 0 to the step's length
    for k in range(1, order):
        moments.append(length**k * length.exp() - k * moments[-1])
    offsets = [lambdas[at - age] - now for age in range(order)]
    rows = []
    for m in range(order):
        polynomial = [torch.ones_like(now)]  # in u = lambda - lambda_at, lowest power first
        for other in (offset for age, offset in enumerate(offsets) if age != m):
            gap = offsets[m] - other
            shifted = [torch.zeros_like(now), *polynomial]
            polynomial = [
                (up - other * same) / gap
                for up, same in zip(shifted, [*polynomial, torch.zeros_like(now)], strict=True)
            ]
        rows.append(sum((c * moment for c, moment in zip(polynomial, moments, strict=True)), torch.zeros_like(now)))
    return torch.stack(rows) * now.exp()


@torch.inference_mode(False)
@torch.enable_grad()
def minimise(start: Tensor, power: int, truncate: int, iterations: int = 100) -> Tensor:
    """float64 [N + 1]: the lambdas of a local minimum near `start`, with its ends; never worse than `start`."""
    start = start.clone()
    if len(start) < 3:
        return start
    first, span = start[0], start[-1] - start[0]
    gaps = (start.diff() / span).log().requires_grad_(True)

    def place() -> Tensor:
        inner = first + span * torch.softmax(gaps, 0).cumsum(0)[:-1]
        return torch.cat([first[None], inner, start[-1:]])

    best, least = start, float(objective(start, power, truncate))
    unit = least
    for corner in _ROUNDING:
        search = torch.optim.LBFGS(
            [gaps],
            max_iter=iterations,
            tolerance_grad=1e-12,
            tolerance_change=1e-14,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure(search: torch.optim.Optimizer = search, corner: float = corner) -> float:
            search.zero_grad()
            value = objective(place(), power, truncate, corner * unit) / unit
            value.backward()
            return value.item()

        search.step(closure)
        lambdas = place().detach()
        value = objective(lambdas, power, truncate).item() if bool((lambdas.diff() > 0).all()) else math.inf
        if value < least:
            best, least = lambdas, value
        else:  # also where the line search ran away
            gaps.data.copy_((best.diff() / span).log())
    return best


def trust_region(start: Tensor, power: int, truncate: int, iterations: int = 100) -> Tensor:
    """As `minimise`, by scipy's trust-constr under the constraint that the lambdas do not descend, as the authors do
    (with differences for the slope). Raises ModuleNotFoundError without scipy."""
    optimize = import_module("scipy.optimize")
    count = len(start) - 1
    if count < 2:
        return start.clone()

    def value(inner: Any) -> float:
        return float(objective(torch.cat([start[:1], torch.as_tensor(inner), start[-1:]]), power, truncate))

    ascending = (torch.eye(count, count - 1) - torch.eye(count, count - 1).roll(1, 0)).double()
    least = start.new_zeros(count)
    least[0], least[-1] = start[0], -start[-1]
    found = optimize.minimize(
        value,
        start[1:-1].numpy(),
        method="trust-constr",
        constraints=[optimize.LinearConstraint(ascending.numpy(), least.numpy(), math.inf)],
        options={"maxiter": 10 * iterations},
    )
    return torch.cat([start[:1], torch.as_tensor(found.x, dtype=torch.float64), start[-1:]])


def _start(name: str, count: int, ends: Tensor, model: Denoiser) -> Tensor:
    """float64 [count + 1]: the lambdas of a stock grid between the ends."""
    t_max, t_min = torch.sigmoid(-ends).tolist()
    t = grids.make(STARTS[name], count + 1, t_max=t_max, t_min=t_min, table=_fractional(name, count, model))[:-1]
    lambdas = -torch.log(t / (1 - t))
    lambdas[0], lambdas[-1] = ends
    return lambdas


def _fractional(name: str, count: int, model: Denoiser) -> Tensor | None:
    """The model's table; none where "ddim" would run out of whole timesteps."""
    table = model.flow_table
    return None if table is not None and name == "time" and count + 1 > len(table) else table
