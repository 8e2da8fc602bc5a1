"""The stages of the dynamic programme: budget k from the states that k - 1 steps reach.

OSS (arXiv 2503.21774), Algorithm 1, with any linear multistep solver, and a beam of states a node where one is asked
for. Nothing is carried over from one budget to the next but the states, so that walking back gives the very path that
was scored.

A beam of W states a node is a table of W M rows: row w M + j holds the state of rank w at node j, and backpointers are
rows of the table before. With W = 1 rows are nodes, and every sample may have backpointers of its own.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oss_ext import solvers
from oss_ext.proposals import CHUNK, nearest, propose
from oss_ext.ranks import ALONE, Ranks
from oss_ext.stages_calibration import Calibrator
from oss_ext.stages_cost import Judge
from oss_ext.stages_table import Table, Winners, best_coefficients, check_reached, neighbours, rows_of
from oss_ext.teacher import Ask, Teacher
from oss_ext.transfer import empty


@dataclass(frozen=True)
class Stage:
    """What one budget leaves behind; M = N + 1 nodes, R = W M rows, B samples.

    values: float64 [R] (joint: summed over the samples) or [B, M]. backpointers: int32, alike. On the CPU.
    coefficients: float64 [R, P] or [B, M, P] on the CPU, of the best step into each row, where the solver is searched;
        else None. endpoint: [B, D], the best state at the clean node.
    gains: as from `Calibrator.apply`, of the states that the steps leave from.
    """

    values: Tensor
    backpointers: Tensor
    coefficients: Tensor | None
    endpoint: Tensor
    gains: Tensor | None = None

    def of_all(self, ranks: Ranks) -> Stage:
        """Of a search with one choice a sample: with the choices of every rank's. The endpoints stay this rank's."""
        return replace(
            self,
            values=ranks.gather(self.values),
            backpointers=ranks.gather(self.backpointers),
            coefficients=None if self.coefficients is None else ranks.gather(self.coefficients),
            gains=None if self.gains is None else ranks.gather(self.gains),
        )


def run_stages(
    starts: Tensor,
    t: Tensor,
    steps: int,
    solver: solvers.Solver,
    teacher: Teacher,
    shape: torch.Size,
    *,
    samples: slice,
    joint: bool,
    free: bool,
    beam: int = 1,
    nodes: Tensor | None = None,
    weight: Tensor | None = None,
    calibrator: Calibrator | None = None,
    judge: Judge | None = None,
    ranks: Ranks = ALONE,
) -> Generator[Ask, Tensor, list[Stage]]:
    """Stages 1..steps. Stage k evaluates the nodes that k - 1 steps reach, k - 1..M - 2, and nothing else; stage 1 has
    the teacher's evaluation at node 0, and with `free` evaluates the others at their `starts`.

    starts: [B, M, D], float32 or float64: where a path may begin. t: float64 [M] on the CPU. shape: of a sample.
    samples: which rows of the search's noise these are. beam: W; above 1 only with `joint`.
    nodes: int64 [M], what the asks call the nodes; None: 0..M - 1. weight: [D], of the numbers of a state in the costs.
    calibrator: of all states before they are evaluated; node 0 is then evaluated again. judge: of the steps, by another
    cost than the distance to the teacher's states; of the last stage's it judges those into the clean node alone.
    ranks: who has the other samples.
    """
    last = len(t) - 1
    nodes = torch.arange(last + 1) if nodes is None else nodes
    times = t.to(starts.device)
    table = Table(
        starts,
        empty(starts.shape, like=starts),
        [torch.zeros_like(starts) for _ in range(solver.history)],
        torch.full((last + 1, solver.history), torch.nan, dtype=torch.float64, device=starts.device),
        [(0, last if free else 1)],
    )
    if judge is not None:
        yield from judge.learn(teacher.states)
    stages = []
    for budget in range(1, steps + 1):
        known = 0  # of the first sources, evaluated by the teacher
        if budget == 1 and calibrator is None:
            table.output[:, 0] = teacher.first_velocity
            known = 1
        gains = None
        rows = torch.cat([rank * (last + 1) + torch.arange(*span) for rank, span in enumerate(table.sources)])[known:]
        if len(rows) and not table.answered:
            at = rows % (last + 1)
            index = neighbours(rows, starts.device)
            if calibrator is not None:
                if budget == 1:
                    table.states = empty(starts.shape, like=starts).copy_(starts)  # they may be the teacher's own
                gains = calibrator.apply(table.states, rows, teacher.states)
            state = table.states[:, index].unflatten(2, shape)
            if isinstance(index, slice):
                ask = Ask(state, t[at], samples, nodes[at], out=table.output[:, index].unflatten(2, shape))
                ask.keep((yield ask))
            else:
                table.output[:, index] = (yield Ask(state, t[at], samples, nodes[at])).flatten(2)
        first = budget if judge is None or budget < steps else last
        if beam > 1:
            won = _beam_winners(table, times, teacher.states, solver, beam, weight, ranks)
        else:
            won = yield from _winners(table, times, teacher.states, solver, joint, weight, judge, budget, first, ranks)
        check_reached(won.backpointers[..., : last + 1], nodes, budget, first)
        stages.append(
            Stage(
                won.values.cpu(),
                won.backpointers.cpu(),
                None if won.coefficients is None else won.coefficients.cpu(),
                won.states[:, last].clone(),
                gains,
            )
        )
        if budget < steps:
            table = _next(table, won, times, solver)
    return stages


def path_of(stages: list[Stage], nodes: int) -> tuple[Tensor, Tensor | None]:
    """Walks back from the clean node, the last of them, after the last of k stages: (nodes [..., k + 1], coefficients
    [..., k, P] where the stages hold them)."""
    pointers = [stage.backpointers.long() for stage in stages]
    row = torch.full((*pointers[0].shape[:-1], 1), nodes - 1)
    path, coefficients = [row], []
    for stage, pointer in zip(reversed(stages), reversed(pointers), strict=True):
        if stage.coefficients is not None:
            coefficients.append(rows_of(stage.coefficients, row))
        row = pointer.gather(-1, row)
        path.append(row)
    return torch.cat(path[::-1], -1) % nodes, torch.cat(coefficients[::-1], -2) if coefficients else None


def _next(table: Table, won: Winners, times: Tensor, solver: solvers.Solver) -> Table:
    """The winners as the rows of the next stage, each with the history of the row that it came from."""
    count, last = len(times), len(times) - 1
    source = won.backpointers.clamp(min=0).long()
    earlier, past = table.earlier, table.past.new_empty(source.shape[-1], 0)
    if solver.history:
        before = times.repeat(table.states.shape[1] // count)
        kept = solvers.carried(solver.carries, table.states, table.output, before.to(table.states.dtype)[:, None])
        earlier = [rows_of(vectors, source) for vectors in [kept, *earlier[:-1]]]
        now = before.expand(source.shape[:-1] + before.shape)
        past = torch.cat([now.gather(-1, source)[..., None], rows_of(table.past, source)[..., :-1]], -1)
    reached = won.backpointers.unflatten(-1, (source.shape[-1] // count, count)) >= 0
    sources = []
    for rank in range(reached.shape[-2]):
        here = reached[..., rank, :last]
        here = here.all(0) if here.ndim == 2 else here
        if bool(here.any()):  # more paths lead to later nodes: once a rank is filled, it stays so
            sources.append((int(here.int().argmax()), last))
    output = empty(won.states.shape, like=won.states) if won.output is None else won.output
    return Table(won.states, output, earlier, past, sources, won.output is not None)


def _winners(
    table: Table,
    times: Tensor,
    target: Tensor,
    solver: solvers.Solver,
    joint: bool,
    weight: Tensor | None,
    judge: Judge | None,
    budget: int,
    first: int,
    ranks: Ranks = ALONE,
) -> Generator[Ask, Tensor, Winners]:
    """One state a node; those before node number `first` may be left out. Coefficients of samples with paths of their
    own come in chunks."""
    basis = [table.states, table.output, *table.earlier]
    batch, count = basis[0].shape[:2]
    own = table.past.ndim == 3
    samples = ranks.count(batch)
    size = min(samples, max(1, CHUNK // (count * count * len(basis)))) if own else max(samples, 1)
    states = empty(basis[0].shape, like=basis[0]) if judge is None else basis[0]  # in place of one
    parts = []
    for low in range(0, max(batch, 1), size):
        part = slice(low, min(low + size, batch))
        piece = [vectors[part] for vectors in basis]
        past = table.past[part] if own else table.past
        landed, output = states[part], None
        if judge is None:
            values, backpointers, coefficients = nearest(
                solver, piece, target[part], past, times, table.sources[0], joint, weight,
                out=landed, samples=size, ranks=ranks,
            )  # fmt: skip
        else:
            offer = propose(
                solver, piece, target[part], past, times, table.sources[0], joint, weight, samples=size, ranks=ranks
            )
            coefficients = offer.coefficients
            values, backpointers, landed, output = yield from judge.choose(piece, offer, part, budget, first)
        chosen = best_coefficients(coefficients, backpointers) if solvers.is_searched(solver) else None
        parts.append(Winners(values, backpointers, chosen, landed, output))
    if len(parts) == 1:
        return parts[0]
    best = [part.coefficients for part in parts if part.coefficients is not None]
    outputs = [part.output for part in parts if part.output is not None]
    return Winners(
        torch.cat([part.values for part in parts]),
        torch.cat([part.backpointers for part in parts]),
        torch.cat(best) if best else None,
        states if judge is None else torch.cat([part.states for part in parts]),
        torch.cat(outputs) if outputs else None,
    )


def _beam_winners(
    table: Table,
    times: Tensor,
    target: Tensor,
    solver: solvers.Solver,
    beam: int,
    weight: Tensor | None,
    ranks: Ranks = ALONE,
) -> Winners:
    """The `beam` best states of every node. Among equal costs the noisiest node wins, then the better rank."""
    count = len(times)
    basis = [table.states, table.output, *table.earlier]
    offers = []
    for rank, sources in enumerate(table.sources):
        rows = slice(rank * count, (rank + 1) * count)
        piece = [vectors[:, rows] for vectors in basis]
        offers.append(propose(solver, piece, target, table.past[rows], times, sources, True, weight, ranks=ranks))
    cost = torch.stack([offer.cost.sum(0, dtype=torch.float64) for offer in offers], 1)  # [M, W, M]
    ordered = torch.where(cost.isfinite(), cost, torch.inf).flatten(0, 1).sort(dim=0, stable=True)
    values, order = ordered.values[:beam], ordered.indices[:beam]
    lane, node = order % len(offers), order // len(offers)
    coefficients = torch.stack([offer.coefficients for offer in offers])
    best = coefficients[lane, node, torch.arange(count, device=node.device)].flatten(0, 1)
    row = (lane * count + node).flatten()
    states = empty((len(target), values.numel(), target.shape[2]), like=target).zero_()
    for p, vectors in enumerate(basis):
        states += best[:, p : p + 1].to(vectors.dtype) * vectors[:, row]
    return Winners(
        values.flatten(),
        torch.where(values.isfinite().flatten(), row, -1).to(torch.int32),
        best if solvers.is_searched(solver) else None,
        states,
    )
