"""One search: the stages of one solver along the teacher's trajectory, and the plans that they lead to."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from oss_ext import solvers
from oss_ext.candidates import place
from oss_ext.costs import Cost
from oss_ext.fitting import gain_of
from oss_ext.plan import Plan
from oss_ext.ranks import ALONE, Ranks
from oss_ext.schedule_file import Calibration
from oss_ext.stages import path_of, run_stages
from oss_ext.stages_calibration import Calibrator
from oss_ext.stages_cost import Judge
from oss_ext.teacher import Ask, Teacher
from oss_ext.transfer import empty


@dataclass(frozen=True)
class Distilled:
    """plans: for each budget 1..K one plan, or one for every sample. endpoints: K tensors [B, D].

    values: float64 [K, ..., N + 1] over the teacher's whole grid, +inf where unreached or not a candidate; joint: the
    mean over the samples. backpointers: int32, alike, -1: the best state's source.
    """

    plans: list[list[Plan]]
    endpoints: list[Tensor]
    values: Tensor
    backpointers: Tensor


def distil(
    noise: Tensor,
    t: Tensor,
    steps: int,
    solver: solvers.Solver,
    teacher: Teacher,
    *,
    samples: slice,
    joint: bool,
    free: bool,
    candidates: int | None = None,
    beam: int = 1,
    weight: Tensor | None = None,
    calibration: str | None = None,
    cost: Cost | None = None,
    ranks: Ranks = ALONE,
) -> Generator[Ask, Tensor, Distilled]:
    """noise: [B, *shape]. t: float64 [N + 1], the teacher's grid. samples: which rows of the search's noise these are.
    candidates: how many nodes besides the clean one are looked at; None: all. calibration: the mode of that of the
    states before each evaluation; None: none. cost: None: the distance of the states. ranks: who has
    the other samples; plans and values are of all. The rest as for `run_stages`."""
    nodes = torch.arange(len(t)) if candidates is None else place(t, teacher.turning, candidates)
    few = teacher if len(nodes) == len(t) else teacher.at(nodes)
    times = t[nodes]
    scales = _scales(noise, times, few, solver, weight, ranks) if free else times
    starts = few.states
    if free:
        starts = torch.mul(noise.flatten(1)[:, None], scales.to(noise)[:, None], out=empty(starts.shape, like=noise))
    calibrator = None if calibration is None else Calibrator(calibration, few.states, joint=joint, ranks=ranks)
    judge = None
    if cost is not None:
        felt = weight if cost.weighted else None
        judge = Judge(cost, noise.shape[1:], times, nodes, samples, joint=joint, weight=felt, ranks=ranks)
    stages = yield from run_stages(
        starts,
        times,
        steps,
        solver,
        few,
        noise.shape[1:],
        samples=samples,
        joint=joint,
        free=free,
        beam=beam,
        nodes=nodes,
        weight=weight,
        calibrator=calibrator,
        judge=judge,
        ranks=ranks,
    )
    if not joint:
        stages = [stage.of_all(ranks) for stage in stages]
    plans = []
    for budget in range(1, steps + 1):
        paths, chosen = path_of(stages[:budget], len(times))
        rows = paths.view(-1, budget + 1)
        own = [None] * len(rows) if chosen is None else list(chosen.reshape(len(rows), budget, -1))
        rules: list[Calibration | None] = [None] * len(rows)
        if calibrator is not None:
            rules = [*calibrator.along(rows, [stage.gains for stage in stages[:budget]])]
        plans.append(
            [
                _plan(solver, t, nodes[path], scales[path[0]], mine, rule)
                for path, mine, rule in zip(rows, own, rules, strict=True)
            ]
        )
    count = len(times)
    values = torch.stack([stage.values[..., :count] for stage in stages])
    pointers = torch.stack([stage.backpointers[..., :count] for stage in stages]).long()
    everywhere = values.new_full((*values.shape[:-1], len(t)), torch.inf)
    sources = torch.full(everywhere.shape, -1, dtype=torch.int32)
    everywhere[..., nodes] = values / ranks.count(len(noise)) if joint else values
    sources[..., nodes] = torch.where(pointers < 0, -1, nodes[pointers % count]).to(torch.int32)
    return Distilled(plans, [stage.endpoint for stage in stages], everywhere, sources)


def _plan(
    solver: solvers.Solver,
    t: Tensor,
    nodes: Tensor,
    scale: Tensor,
    coefficients: Tensor | None,
    calibration: Calibration | None,
) -> Plan:
    path = t[nodes]
    rows = solvers.along(solver, path) if coefficients is None else coefficients
    return Plan(path, solver, rows, nodes, float(scale), calibration)


def _scales(
    noise: Tensor, times: Tensor, teacher: Teacher, solver: solvers.Solver, weight: Tensor | None, ranks: Ranks
) -> Tensor:
    """float64 [M]: what the noise is multiplied with where a path starts at a node: the flow time; for fitted
    coefficients the multiple of the noise that is nearest to the teacher's states there."""
    if not isinstance(solver, solvers.Fitted):
        return times
    unit = noise.flatten(1)
    states = teacher.states
    fitted = [
        float(gain_of(unit, states[:, node], joint=True, weight=weight, ranks=ranks)) for node in range(len(times) - 1)
    ]
    return torch.tensor([*fitted, 0.0], dtype=torch.float64)
