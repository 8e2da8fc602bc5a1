"""What every search must keep: running a returned schedule again gives the state and the cost that were scored."""

from __future__ import annotations

import torch
from torch import Tensor

from oss_ext import Schedule, SearchResult
from oss_ext.models import Denoiser


def replayed(schedule: Schedule | list[Schedule], model: Denoiser, noise: Tensor) -> Tensor:
    """x0 [B, ...]; of a per_sample list, each sample along its own."""
    if isinstance(schedule, Schedule):
        return schedule.sample(model, noise)
    return torch.cat([one.sample(model, noise[b : b + 1]) for b, one in enumerate(schedule)])


def check_replay(result: SearchResult, model: Denoiser, noise: Tensor, tolerance: float = 1e-10) -> None:
    """noise: that of the samples that the costs are of."""
    for budget, schedule in result.schedules.items():
        x0 = replayed(schedule, model, noise)
        torch.testing.assert_close(x0, result.endpoints[budget], rtol=tolerance, atol=tolerance)
        cost = (x0 - result.teacher).double().square().flatten(1).mean(1).cpu()
        torch.testing.assert_close(cost, result.costs[budget], rtol=100 * tolerance, atol=tolerance)
        for sample, one in enumerate(schedule if isinstance(schedule, list) else [schedule]):
            assert one.steps == budget
            if one.nodes is not None:
                assert torch.equal(one.t, result.t[one.nodes])
            scored = cost[sample] if isinstance(schedule, list) else cost.mean()
            known = one.provenance.cost if one.provenance.cost is not None else one.provenance.replayed_cost
            assert known is not None and abs(known - float(scored)) <= 100 * tolerance * (1 + float(scored))
