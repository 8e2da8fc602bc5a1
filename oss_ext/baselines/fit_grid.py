"""Fitted coefficients along a grid that another method chose."""

from __future__ import annotations

from collections.abc import Generator, Mapping

import torch
from torch import Tensor

from oss_ext import grids, solvers
from oss_ext.baselines.found import Found
from oss_ext.drive import drive
from oss_ext.evaluate import pick_batch_size, state_dtype
from oss_ext.models import Denoiser
from oss_ext.progress import Counter, ProgressCallback, check_progress
from oss_ext.provenance import Provenance
from oss_ext.schedule import Schedule
from oss_ext.teacher import DEFAULT_SOLVER, DEFAULT_STEPS, Ask, check_guide, integrate
from oss_ext.validate import check_cond, check_model, check_noise
from oss_ext.walks import fit_along


@torch.no_grad()
def fit_grid(
    model: Denoiser,
    noise: Tensor,
    t: Tensor,
    *,
    solver: solvers.Fitted | None = None,
    teacher_steps: int = DEFAULT_STEPS,
    teacher_solver: str | solvers.Solver = DEFAULT_SOLVER,
    grid: str | Tensor = "flow",
    cond: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    progress: bool | ProgressCallback = False,
) -> Found:
    """The schedule along `t` with least-squares coefficients, so that a rival's grid (GITS, DM, a stock one) can be had
    with what `dp_search` with solver "fitted" has.

    Each step is fitted to land nearest to the teacher at the next node, from where the steps before it lead.

    t: floating [k + 1], descending, ends in 0; from t[0] * noise. solver: how to fit; None: "fitted".
    teacher_steps, teacher_solver, grid: as for `dp_search`; the teacher also steps on the nodes of `t`, and starts at
        t[0], so that it knows where they are. noise, cond, batch_size, progress: as for `dp_search`.

    Evaluations a sample: at most teacher_steps + 2 k - 1. Raises TypeError or ValueError that names the argument,
    before any evaluation.
    """
    check_model(model)
    noise = check_noise(noise)
    given = check_cond(cond, noise)
    path = grids.check(t, t_max=model.t_max, t_min=model.t_min, name="t")
    fine = grids.of_teacher(grid, teacher_steps, model)
    guide = check_guide(teacher_solver)
    if solver is not None and not isinstance(solver, solvers.Fitted):
        raise TypeError(f"solver: got {type(solver).__name__}, wanted a solvers.Fitted")
    fitting = solvers.Fitted() if solver is None else solver
    progress = check_progress(progress)
    rows = pick_batch_size(batch_size, noise[0].numel())

    near = (fine[:, None] - path).abs().min(1).values < 1e-9
    both = torch.cat([path, fine[~near & (fine < path[0])]]).sort(descending=True).values
    nodes = (both[None, :] == path[:, None]).long().argmax(1)
    states = noise.to(state_dtype(noise.dtype))
    everyone = slice(0, len(noise))

    def core() -> Generator[Ask, Tensor, Tensor]:
        teacher = yield from integrate(states, both, guide)
        rows = yield from fit_along(states, both, nodes, fitting, teacher, samples=everyone)
        return rows

    spent = len(both) - 1 + len(path) - 2  # the first evaluation is the teacher's
    with Counter(len(noise) * spent, progress, "fitting") as counter:
        found = drive(
            core(), model, cond=given, dtype=noise.dtype, batch_size=rows, counter=counter, device=noise.device
        )
    nfe: dict[str, float] = {"teacher": len(both) - 1, "fit": len(path) - 2, "total": spent}
    origin = Provenance(
        grid="custom",
        teacher_steps=len(both) - 1,
        teacher_solver=guide.name,
        samples=len(noise),
        model=model.describe(),
        metadata={"method": "fit_grid"},
        nfe=dict(nfe),
    )
    schedule = Schedule.from_grid(path, fitting, model, coefficients=found, provenance=origin)
    return Found({schedule.steps: schedule}, nfe)
