"""The variance-preserving path of ``photo32_vp``: its noise levels, and the noise that its network predicts.

``x = a x0 + s eps`` with ``a^2 + s^2 = 1`` at a thousand timesteps, trained at whole ones. The levels are those of
Stable Diffusion (arXiv 2112.10752: betas whose roots are equally spaced from 0.00085 to 0.012), so that timesteps
published for it, such as those of AYS (arXiv 2404.14507), mean here what they mean there.

The network's raw output F becomes the noise by ``eps = s x + a F``. A network that gave eps itself would have to copy
its input at the noisy end, where x0 = (x - s eps) / a magnifies what it gets wrong by s / a = 15. Here an error of F is
an error of s in x0 and of a in eps, small where it would do harm (the preconditioning of arXiv 2206.00364, section 5,
for this path; F is then the v of arXiv 2202.00512).

This file imports torch and nothing else, as ``network.py``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Betas:
    """Variances added at each timestep, their roots equally spaced.

    Args:
        start, end: the first and the last, 0 < start < end < 1.
        timesteps: how many.
    """

    start: float = 0.00085
    end: float = 0.012
    timesteps: int = 1000

    def alphas_cumprod(self) -> Tensor:
        """a^2 of every timestep: float64 [timesteps], descending."""
        roots = torch.linspace(self.start**0.5, self.end**0.5, self.timesteps, dtype=torch.float64)
        return (1.0 - roots.square()).cumprod(0)

    def to_dict(self) -> dict[str, float]:
        """The fields as a plain dict; ``Betas(**d)`` reads it back."""
        return asdict(self)


class Levels:
    """Noise levels by timestep, whole or between.

    Args:
        betas: the variances.
        device: where the table lives.
    """

    def __init__(self, betas: Betas, device: torch.device | str = "cpu") -> None:
        cumulative = betas.alphas_cumprod()
        self.timesteps = betas.timesteps
        self._log_sigma = (0.5 * ((1.0 - cumulative) / cumulative).log()).to(device)
        sigma = self._log_sigma.exp()
        self.flow_table = sigma / (1.0 + sigma)

    def of(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """a and s, float64 [batch], at timesteps [batch]; between whole ones log(s / a) is linear."""
        timestep = timestep.double()
        low = timestep.floor().long().clamp(0, self.timesteps - 2)
        log_sigma = torch.lerp(self._log_sigma[low], self._log_sigma[low + 1], timestep - low)
        return torch.sigmoid(-2.0 * log_sigma).sqrt(), torch.sigmoid(2.0 * log_sigma).sqrt()

    def time(self, timestep: Tensor) -> Tensor:
        """float32 [batch] in [0, 1): what the network is fed at timesteps [batch]."""
        return (timestep.double() / self.timesteps).float()

    def nearest(self, t: Tensor) -> Tensor:
        """int64: the timestep nearest to flow time t = s / (a + s), of any shape; beyond the table, its end."""
        t = t.double().contiguous()
        high = torch.searchsorted(self.flow_table, t).clamp(1, self.timesteps - 1)
        nearer_below = t - self.flow_table[high - 1] < self.flow_table[high] - t
        return torch.where(nearer_below, high - 1, high)

    def epsilon(self, raw: Tensor, x: Tensor, timestep: Tensor) -> Tensor:
        """The predicted noise.

        Args:
            raw: [batch, ...] output F of the network.
            x: [batch, ...] what it was given, ``a x0 + s eps``.
            timestep: [batch].

        Returns:
            ``s x + a F`` in x's shape and dtype, added in float32 at least.
        """
        wide = torch.promote_types(x.dtype, torch.float32)
        a, s = (level.to(wide).reshape(-1, *[1] * (x.ndim - 1)) for level in self.of(timestep))
        return (s * x.to(wide) + a * raw.to(wide)).to(x.dtype)
