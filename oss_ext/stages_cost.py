"""The steps of a stage judged by another cost than the distance to the teacher's states (OSS, arXiv 2503.21774,
section 4.2.2).

All steps i -> j are ranked by that distance, which needs no evaluations; the best few into each node are then judged by
the cost itself, which may evaluate the model where they land. What it evaluates there is what the next stage needs: a
cost that looks at S candidates a node makes the stages S times as dear, and not S + 1 times.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor

from oss_ext import kernels
from oss_ext.costs import Cost
from oss_ext.objective import squared_error
from oss_ext.proposals import Proposal
from oss_ext.ranks import ALONE, Ranks
from oss_ext.stages_table import check_reached, neighbours
from oss_ext.teacher import Ask
from oss_ext.transfer import empty

PURPOSE = "cost"
"""What its evaluations, at candidates and at the teacher's states, are counted as."""


class Choice(NamedTuple):
    """values: float64 [M] (joint: summed over the samples) or [b, M]; backpointers: int32, alike, -1 for none; of the
    best steps. states: [b, M, D], where they land. output: alike, the model's there; None where it was not asked."""

    values: Tensor
    backpointers: Tensor
    states: Tensor
    output: Tensor | None


class Judge:
    """shape: of a sample. t: float64 [M]. nodes: int64 [M], what the asks call them. samples: which rows of the
    search's noise these are. joint: they share one choice. weight: [D], as for the distance, for costs that take it.
    ranks: who has the other samples."""

    def __init__(
        self,
        cost: Cost,
        shape: torch.Size,
        t: Tensor,
        nodes: Tensor,
        samples: slice,
        *,
        joint: bool,
        weight: Tensor | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._cost, self._shape, self._t, self._nodes = cost, shape, t, nodes
        self._samples, self._joint, self._weight, self._ranks = samples, joint, weight, ranks
        self._last = len(t) - 1
        self._known: list[Tensor] = []

    def learn(self, states: Tensor) -> Generator[Ask, Tensor, None]:
        """Features of the teacher's states [B, M, D] at every node that steps lead to."""
        at = torch.arange(1, self._last + 1 if self._cost.clean else self._last)
        output = yield from self._evaluated(states, at, slice(0, len(states)))
        self._known = [states.new_empty(0)]  # none lead to node 0
        if len(at) and len(states):
            self._known += self._features(states, output, at).unbind(1)

    def choose(
        self, basis: list[Tensor], offer: Proposal, part: slice, budget: int, first: int
    ) -> Generator[Ask, Tensor, Choice]:
        """The best steps into the nodes from number `first` on; others may be left out.

        basis: [b, M, D] each, of the samples `part` of those that the judge is for. offer: joint: of all ranks'. Among
        equal costs the noisiest source wins, as ever. Raises ValueError where no step into one has a finite distance.
        """
        distance, order = self._ranked(offer.cost)
        there = distance.isfinite()
        nearest = torch.where(there[:, 0], order[:, 0], -1)
        check_reached(nearest[0] if self._joint else nearest, self._nodes, budget, first)
        wanted = torch.arange(self._last + 1) >= first
        wanted[-1] = self._cost.clean
        best, source = torch.full_like(distance[:, 0], torch.inf), torch.full_like(nearest, -1)
        states, output = basis[0], None
        for rank in range(distance.shape[1]):
            at = (wanted & there[:, rank].any(0).cpu()).nonzero().flatten()
            if rank and not len(at):
                break
            mine = torch.where(there[:, rank], order[:, rank], nearest)
            landed = kernels.advance(basis, offer.coefficients, mine[0] if self._joint else mine)
            found = yield from self._evaluated(landed, at, part)
            cost = self._judged(landed, found, at, part).to(best)
            if rank == 0 and not self._cost.clean:
                cost[:, -1] = distance[:, 0, -1]
            better = (cost < best) | ((cost == best) & cost.isfinite() & (mine < source))
            best, source = torch.where(better, cost, best), torch.where(better, mine, source)
            states = landed if rank == 0 else torch.where(better[..., None], landed, states)
            if found is not None:
                output = found if output is None else torch.where(better[..., None], found, output)
        return Choice(best[0], source[0], states, output) if self._joint else Choice(best, source, states, output)

    def _ranked(self, cost: Tensor) -> tuple[Tensor, Tensor]:
        """float64 and int32 [1 or b, S, M]: the least distances into each node, ascending, inf where there are fewer,
        and their sources. cost: that of a `Proposal`."""
        whole = cost.sum(0, dtype=torch.float64, keepdim=True) if self._joint else cost.double()
        ordered = torch.where(whole.isfinite(), whole, torch.inf).sort(dim=1, stable=True)
        return ordered.values[:, : self._cost.sources], ordered.indices[:, : self._cost.sources].to(torch.int32)

    def _evaluated(self, states: Tensor, at: Tensor, part: slice) -> Generator[Ask, Tensor, Tensor | None]:
        """The model's outputs [b, M, D] at the nodes `at` of `states` [b, M, D] but the clean one, 0 elsewhere; None
        where the cost needs none."""
        at = at[at < self._last]
        if not self._cost.evaluates or not len(at):
            return None
        here = neighbours(at, states.device)
        samples = slice(self._samples.start + part.start, self._samples.start + part.stop)
        output = empty(states.shape, like=states).zero_()
        asked, told = (vectors[:, here].unflatten(2, self._shape) for vectors in (states, output))
        view = isinstance(here, slice)
        self._cost.expect()
        ask = Ask(asked, self._t[at], samples, self._nodes[at], PURPOSE, told if view else None)
        sent = yield ask
        if view:
            ask.keep(sent)
        else:
            output[:, here] = sent.flatten(2)
        return output

    def _features(self, states: Tensor, output: Tensor | None, at: Tensor) -> Tensor:
        """[b, m, F] at the m nodes `at`."""
        here = neighbours(at, states.device)
        batch = len(states)
        flat = states[:, here].flatten(0, 1).unflatten(1, self._shape)
        told = None if output is None else output[:, here].flatten(0, 1).unflatten(1, self._shape)
        found = self._cost.features(flat, told, self._t[at].repeat(batch))
        if len(found) != len(flat):
            raise ValueError(
                f"cost: {self._cost.name} gave features of shape {list(found.shape)} for {len(flat)} states, "
                f"wanted [{len(flat)}, ...]"
            )
        return found.detach().reshape(batch, len(at), -1)

    def _judged(self, states: Tensor, output: Tensor | None, at: Tensor, part: slice) -> Tensor:
        """float64 [1 or b, M] on the CPU: mean squared distances of features to the teacher's, inf but at `at`.
        joint: their sum over the samples of all ranks."""
        cost = torch.full((len(states), self._last + 1), torch.inf, dtype=torch.float64)
        if len(at) and len(states):
            features = self._features(states, output, at)
            for n, node in enumerate(at.tolist()):
                cost[:, node] = squared_error(features[:, n], self._known[node][part], self._weight)
        return self._ranks.gather(cost).sum(0, keepdim=True) if self._joint else cost
