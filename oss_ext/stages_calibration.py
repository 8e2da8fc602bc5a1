"""The states of a search brought to the teacher's amplitudes before they are evaluated."""

from __future__ import annotations

import torch
from torch import Tensor

from oss_ext.fitting import gain_of
from oss_ext.ranks import ALONE, Ranks
from oss_ext.schedule_calibration import QUANTILES, matched, of_gains, of_levels, quantiles_of
from oss_ext.schedule_file import Calibration


class Calibrator:
    """teacher: [B, M, D], whose quantiles, means over the samples, the states are brought to; not kept.
    mode: that of `Calibration`. joint: the samples share their gains. ranks: who has the other samples."""

    def __init__(self, mode: str, teacher: Tensor, *, joint: bool, ranks: Ranks = ALONE) -> None:
        self._mode, self._joint, self._ranks = mode, joint, ranks
        self._count = teacher.shape[1]
        self._levels = torch.empty(0)
        if mode != "gain":
            levels = [quantiles_of(teacher[:, node], QUANTILES).cpu() for node in range(self._count)]
            self._levels = ranks.gather(torch.stack(levels, 1)).mean(0)

    def apply(self, states: Tensor, rows: Tensor, teacher: Tensor) -> Tensor | None:
        """Changes these rows of `states` [B, R, D] in place; row w M + j stands at node j. teacher: [B, M, D].

        With "gain" returns the gains, float64 [M] or [B, M] on the CPU, NaN for the other rows.
        """
        gains = torch.full((self._count,) if self._joint else (len(states), self._count), torch.nan).double()
        for row in rows.tolist():
            node = row % self._count
            if self._mode != "gain":
                low, high = self._levels[node].tolist()
                states[:, row] = matched(states[:, row], self._mode, QUANTILES, low, high)
            else:
                gain = gain_of(states[:, row], teacher[:, node], joint=self._joint, ranks=self._ranks)
                states[:, row] *= gain.to(states.dtype)[..., None]
                gains[..., node] = gain.cpu()
        return gains if self._mode == "gain" else None

    def along(self, paths: Tensor, gains: list[Tensor | None]) -> list[Calibration]:
        """Of each path, int64 [n, k + 1] over the M nodes. gains: what `apply` returned before each of the k steps."""
        made = []
        for sample, path in enumerate(paths[:, :-1].tolist()):
            if self._mode != "gain":
                made.append(of_levels(self._mode, QUANTILES, self._levels[path]))
                continue
            own = [known if self._joint else known[sample] for known in gains if known is not None]
            made.append(of_gains(torch.stack([known[node] for known, node in zip(own, path, strict=True)])))
        return made
