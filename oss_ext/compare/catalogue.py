"""The rows that are compared unless told otherwise, one line each. A new method is one line more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from oss_ext.baselines import Training
from oss_ext.compare.rows import (
    LEARNED,
    CostOf,
    Row,
    along,
    auto,
    calibrated,
    costed,
    heun,
    open_ended,
    per_sample,
    refined,
    rival,
    searched,
    stock,
    table,
)

GRIDS = ("flow", "flow:shift=3", "edm", "logsnr", "ddim", "quadratic", "beta", "kl_optimal")
SOLVERS = ("euler", "ab2", "dpmpp_2m", "unipc", "deis", "ipndm_3")
TABLES = ("ays-sd15", "ays-sdxl", "ays-svd")
SEARCHED = ("euler", "ab2", "dpmpp_2m", "unipc", "mixed", "fitted")
CALIBRATIONS = ("scale", "affine", "gain")
SIGMA_MAX = 80.0
"""Where the papers' grids of sigma begin. On models that begin at infinity the rivals here begin higher
(`baselines.ends`), and a row more has theirs."""
POLISHED_TO = 10  # the largest budget that ours are polished at
POLISHED_ON_MANY_TO = 5
POLISHING = 512  # noises of what is polished on many
LD3_NOISES = 100  # half of them to learn, half to judge, as in its paper
OSS_NOISES, SAMPLED = 32, 64  # noises of the published search: for its median, and held-out ones of their own schedules


def catalogue(
    *,
    iterations: int = 400,
    minibatch: int = 40,
    graph: bool = False,
    polishing: int = POLISHING,
    costs: Mapping[str, CostOf] | None = None,
) -> list[Row]:
    """All rows. iterations, minibatch, graph: of rivals that are trained by back-propagation, as in
    `baselines.Training`; how long LD3 learns, and on how many noises, is its paper's. polishing: noises of ours that
    is polished on many. costs: by name, what more Euler searches judge steps by: rows of the group "costs"."""
    return [
        *_fixed(),
        *_ours(polishing),
        *_gits(),
        *_dm(),
        *_trained(iterations, minibatch, graph),
        *_calibrated(),
        *_costs(costs or {}),
    ]


def _fixed() -> Iterator[Row]:
    for grid in GRIDS:
        for solver in SOLVERS:
            yield stock(grid, solver, priority=0, pictured=(grid, solver) == ("flow", "euler"))
    for grid in ("edm", "ddim"):
        yield stock(grid, "dpmpp_3m", priority=0)
    yield heun("flow", "heun_flow", priority=0)
    yield heun("edm", "heun", priority=0)
    for name in TABLES:
        for solver in ("euler", "dpmpp_2m"):
            yield table(name, solver, priority=0)


def _ours(polishing: int) -> Iterator[Row]:
    for solver in SEARCHED:
        first = solver in ("euler", "dpmpp_2m", "fitted")
        yield searched(solver, row={"priority": 0 if first else 1, "pictured": first})
    yield searched("dpmpp_3m", row={"priority": 3})
    free = searched("fitted", name="joint, free start", start="free", row={"priority": 0})
    yield free
    moved = refined(searched("fitted"), "joint, nodes moved", method="nodes", objective="psnr", row={"priority": 1})
    yield moved
    yield auto(objective="psnr", row={"priority": 2, "pictured": True})
    yield searched("euler", group="published", name="OSS-ave", samples=OSS_NOISES, share="median", row={"priority": 1})
    yield per_sample("euler", SAMPLED, row={"priority": 3})
    polish: dict[str, Any] = {"priority": 4, "most": POLISHED_TO}
    yield refined(free, "joint, free start, polished", method="gradient", objective="psnr", row=polish)
    # By the squared error and on many noises: on few, what is learned serves them alone. Dear, hence one budget.
    name = f"joint, nodes moved, polished on {polishing} noises"
    many: dict[str, Any] = {"priority": 5, "most": POLISHED_ON_MANY_TO}
    yield refined(moved, name, method="gradient", samples=polishing, row=many)


def _gits() -> Iterator[Row]:
    """GITS, with its paper's first sigma too, and each with other solvers and with fitted coefficients."""
    plain = rival("gits", "GITS", "ipndm_4", row={"priority": 0})
    theirs: dict[str, Any] = {"grid": f"edm:sigma_max={SIGMA_MAX:g}"}
    from_80 = rival("gits", "GITS, from sigma 80", "ipndm_4", row={"priority": 0, "fits": open_ended}, **theirs)
    for base in (plain, from_80):
        yield base
        for solver in ("euler", "dpmpp_2m", "ipndm_3", "unipc"):
            yield along(base, solver, row={"priority": 0})
        yield along(base, "fitted", row={"priority": 1})


def _dm() -> Iterator[Row]:
    """DM from its several starts with its switch of the step count, without the switch, by the authors' minimiser, and
    with other solvers and fitted coefficients."""
    row: dict[str, Any] = {"priority": 0, "free": True}
    theirs: dict[str, Any] = {"truncate": None, "minimizer": "trust-constr", "starts": "logsnr"}
    bases = []
    for how, name in (({}, "DM"), (theirs, "DM, authors' minimiser")):
        bases.append(rival("dm", name, "unipc_3", row=row, **how))
        bases.append(
            rival("dm", f"{name}, from sigma 80", "unipc_3", row=row | {"fits": open_ended}, sigma_max=SIGMA_MAX, **how)
        )
    for base in bases:
        yield base
        for solver in ("euler", "dpmpp_2m", "ipndm_3"):
            yield along(base, solver, row={"priority": 0})
        yield along(base, "fitted", row={"priority": 1})


def _trained(iterations: int, minibatch: int, graph: bool) -> Iterator[Row]:
    """What is learned by back-propagation through the sampler."""
    row: dict[str, Any] = {"priority": 3, "trained": True}
    ld3: dict[str, Any] = {"samples": LD3_NOISES, "shared_teacher": True, "graph": graph, "row": row}
    for solver in ("unipc_3", "dpmpp_2m"):
        yield rival("ld3", "LD3", solver, **ld3)
    yield rival("ld3", "LD3, one set of times", "dpmpp_2m", second=False, **ld3)
    training = Training(iterations=iterations, minibatch=minibatch, graph=graph)
    same: dict[str, Any] = {"training": training, "shared_teacher": True, "row": row}
    yield rival("s4s", "S4S", LEARNED, alternations=0, **same)
    yield rival("s4s", "S4S-Alt", LEARNED, **same)
    yield rival("bns", "BNS", LEARNED, **same)
    yield rival("ds_solver", "DS-Solver", LEARNED, **same)
    yield rival("dyweight", "DyWeight", LEARNED, **same)


def _calibrated() -> Iterator[Row]:
    """The paper's calibration of amplitudes, and the gains fitted instead, on our Euler rows and on stock ones."""
    for base in (searched("euler"), stock("flow", "euler")):
        for mode in CALIBRATIONS:
            yield calibrated(base, mode, row={"priority": 3, "pictured": base.group == "ours"})


def _costs(costs: Mapping[str, CostOf]) -> Iterator[Row]:
    """The paper's Table 4: for one schedule, and for one of every held-out noise."""
    for name, cost in costs.items():
        yield costed(name, cost, group="costs", row={"priority": 5})
        yield per_sample("euler", OSS_NOISES, group="costs", name=f"OSS, per sample, {name}", cost=cost,
                         row={"priority": 5})  # fmt: skip
