"""The search as a generator that asks for model evaluations and never makes one.

OSS (arXiv 2503.21774), Algorithm 1, with exactly k steps at stage k, any linear multistep solver, and costs that many
samples may share.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from oss_ext import grids, solvers
from oss_ext.evaluate import state_dtype
from oss_ext.median import count_replays, elementwise_median, replay, squared_error
from oss_ext.stages import Stage, run_stages
from oss_ext.teacher import Ask, Teacher, integrate
from oss_ext.validate import check_noise, choice, whole_number

SHARES = ("joint", "median", "per_sample")
STARTS = ("fixed", "free")


@dataclass(frozen=True)
class Found:
    """What a search found, for budgets k = 1..K over B samples and the N + 1 nodes of the grid t.

    t: float64 [N + 1]. share, start: as given. solver: the Solver.
    paths: K tensors of nodes, int64 on the CPU: [k + 1], or [B, k + 1] with share "per_sample".
    values: float64 on the CPU, [K, N + 1] (joint; mean over the samples) or [K, B, N + 1]; +inf where unreached.
    backpointers: int32, as `values`; -1 where unreached. For share "median" those of its per-sample searches.
    costs: K tensors float64 [B] on the CPU: mean squared distance to the teacher at the clean node along `paths`.
    endpoints: K tensors [B, *shape], the states there; teacher: [B, *shape], the teacher's. In the states' dtype.
    nfe: network evaluations a sample: "teacher", "search", "replay", "total".
    coefficients: K tensors float64 [k, P] on the CPU, of the steps of `paths`; None where a formula gives them.
    """

    t: Tensor
    solver: solvers.Solver
    share: str
    start: str
    paths: list[Tensor]
    values: Tensor
    backpointers: Tensor
    costs: list[Tensor]
    endpoints: list[Tensor]
    teacher: Tensor
    nfe: dict[str, int]
    coefficients: list[Tensor] | None = None


Core: TypeAlias = Generator[Ask, Tensor, Found]


def count_evaluations(teacher_steps: int, steps: int, share: str, start: str) -> dict[str, int]:
    """Network evaluations a sample: "teacher", "search", "replay" (of median schedules), "total"."""
    fixed = start == "fixed"
    search = sum(teacher_steps - budget + 1 for budget in range(2, steps + 1)) + (0 if fixed else teacher_steps - 1)
    again = count_replays(steps, reuse_first=fixed) if share == "median" else 0
    return {"teacher": teacher_steps, "search": search, "replay": again, "total": teacher_steps + search + again}


def dp_core(
    noise: Tensor,
    t: Tensor,
    steps: int,
    *,
    solver: str | solvers.Solver = "euler",
    share: str = "joint",
    start: str = "fixed",
) -> Core:
    """Checks its input and returns a generator: it yields (states, nodes), is sent velocities, and returns a `Found`.

    noise: [B, *shape], unit normal. t: [N + 1], a grid. The other arguments, and the errors, are those of `dp_search`.
    states: [B, m, *shape] in flow coordinates, float32 (float64 for float64 noise), valid until the next `send`.
    nodes: int64 [m] on the CPU, all below N. Sent: velocities [B, m, *shape], floating, where the noise is.

        core = dp_core(noise, t, 10)
        try:
            states, nodes = next(core)
            while True:
                states, nodes = core.send(velocities(states, t[nodes]))
        except StopIteration as done:
            found = done.value
    """
    noise, t = check_noise(noise), grids.check(t)
    steps = whole_number("steps", steps, least=1, most=len(t) - 1, most_is=", the steps of the grid")
    scheme = solvers.get(solver)
    choice("share", share, SHARES)
    choice("start", start, STARTS)
    if isinstance(scheme, solvers.Fitted) and share != "joint":
        raise ValueError(f"share: got {share!r} with fitted coefficients, which all samples share, wanted 'joint'")
    return _checked(_run(noise.to(state_dtype(noise.dtype)), t, steps, scheme, share, start))


def _checked(core: Core) -> Core:
    """Passes asks and answers through, the answers checked and in the states' dtype."""
    ask = next(core)
    while True:
        sent = yield ask
        wanted = ask[0]
        if not isinstance(sent, Tensor) or not sent.is_floating_point():
            came = f"a tensor of {sent.dtype}" if isinstance(sent, Tensor) else type(sent).__name__
            raise TypeError(f"velocities: got {came}, wanted a floating tensor {list(wanted.shape)}")
        if sent.shape != wanted.shape:
            raise ValueError(
                f"velocities: got shape {list(sent.shape)}, wanted that of the states, {list(wanted.shape)}"
            )
        if sent.device != wanted.device:
            raise ValueError(f"velocities: got device {sent.device}, wanted {wanted.device}, where the noise is")
        try:
            ask = core.send(sent.detach().to(wanted.dtype))
        except StopIteration as done:
            found: Found = done.value
            return found


def _run(noise: Tensor, t: Tensor, steps: int, solver: solvers.Solver, share: str, start: str) -> Core:
    joint, free = share == "joint", start == "free"
    teacher = yield from integrate(noise, t)
    stages = yield from run_stages(noise, t, steps, solver, teacher, joint=joint, free=free)
    shape = noise.shape
    paths = [_walk(stages[:budget]) for budget in range(1, steps + 1)]
    values = torch.stack([stage.values for stage in stages])
    found = Found(
        t=t,
        solver=solver,
        share=share,
        start=start,
        paths=paths,
        coefficients=[_along(stages, path) for path in paths] if isinstance(solver, solvers.Fitted) else None,
        values=values / shape[0] if joint else values,
        backpointers=torch.stack([stage.backpointers for stage in stages]),
        costs=[stage.cost for stage in stages],
        endpoints=[stage.endpoint.view(shape) for stage in stages],
        teacher=teacher.states[:, -1].clone().view(shape),  # a view would keep the whole trajectory alive
        nfe=count_evaluations(len(t) - 1, steps, share, start),
    )
    if share == "median":
        found = yield from _medians(noise, teacher, found)
    return found


def _walk(stages: list[Stage]) -> Tensor:
    """The nodes [..., k + 1] that the last of k stages leads back through from the clean node."""
    pointers = [stage.backpointers.long() for stage in stages]
    node = torch.full((*pointers[0].shape[:-1], 1), pointers[0].shape[-1] - 1)
    path = [node]
    for pointer in reversed(pointers):
        node = pointer.gather(-1, node)
        path.append(node)
    return torch.cat(path[::-1], -1)


def _along(stages: list[Stage], path: Tensor) -> Tensor:
    """float64 [k, P]: the fitted coefficients of the steps of a joint path [k + 1]."""
    rows = []
    for stage, node in zip(stages, path[1:].tolist(), strict=False):
        assert stage.coefficients is not None
        rows.append(stage.coefficients[node])
    return torch.stack(rows)


def _medians(noise: Tensor, teacher: Teacher, found: Found) -> Core:
    """Puts the elementwise medians in place of the per-sample paths, and scores each by running it once."""
    paths = [elementwise_median(path) for path in found.paths]
    endpoints = []
    for path in paths:
        state = yield from replay(noise, found.t, path, found.solver, teacher, reuse_first=found.start == "fixed")
        endpoints.append(state)
    return replace(
        found,
        paths=paths,
        costs=[squared_error(state, teacher.states[:, -1]) for state in endpoints],
        endpoints=[state.view(noise.shape) for state in endpoints],
    )
