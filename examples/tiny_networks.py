"""Small random networks with the interfaces of the repositories, for `--tiny` and for the tests.

Each is the exact answer for Gaussian data of standard deviation 0.5, disturbed by a random network: steps of it behave.
They are strict about what they are given, as the real ones are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from oss_ext.integrations.betas import alphas_cumprod

STD = 0.5
WIDTH = 16
TINY_TEXT = 12
"""Numbers a text token."""


class Wiggle(nn.Module):
    """A smooth random function [n, C, ...] -> [n, out, ...] of the state, a time and a condition [n, cond]."""

    def __init__(self, channels: int, out: int | None = None, cond: int = 4, strength: float = 0.3) -> None:
        super().__init__()
        self.state = nn.Linear(channels, WIDTH)
        self.told = nn.Linear(cond + 2, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, out or channels)
        self.cond, self.strength = cond, strength

    def forward(self, x: Tensor, time: Tensor, cond: Tensor | None = None) -> Tensor:
        n = len(x)
        cond = x.new_zeros(n, self.cond) if cond is None else cond.to(x.dtype)
        assert time.shape == (n,) and cond.shape == (n, self.cond), (time.shape, cond.shape)
        told = torch.cat([torch.sin(3 * time)[:, None], torch.cos(5 * time)[:, None], cond], 1).to(x.dtype)
        places = x.unsqueeze(-1) if x.ndim == 2 else x
        hidden = torch.tanh(self.state(places.movedim(1, -1).flatten(1, -2)) + self.told(told)[:, None])
        hidden = hidden + torch.tanh(self.mix(hidden).roll(1, 1))  # neighbours see each other
        out = self.strength * self.out(hidden)
        return out.unflatten(1, x.shape[2:]).movedim(-1, 1) if x.ndim > 2 else out[:, 0]


def _column(value: Tensor, x: Tensor) -> Tensor:
    return value.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def _velocity(x: Tensor, t: Tensor) -> Tensor:
    """E[eps - x0 | x_t = x] of the Gaussian."""
    at = _column(t, x)
    return x * (at - (1 - at) * STD**2) / ((1 - at) ** 2 * STD**2 + at**2)


class _Noise(nn.Module):
    """eps of the Gaussian at (fractional) timesteps of a table, and the disturbance; 2C channels."""

    def __init__(self, channels: int, table: str, cond: int) -> None:
        super().__init__()
        self.register_buffer("table", alphas_cumprod(table), persistent=False)
        self.wiggle = Wiggle(channels, 2 * channels, cond)

    def forward(self, x: Tensor, timestep: Tensor, cond: Tensor | None) -> Tensor:
        at = timestep.double().clamp(0, len(self.table) - 1)
        low = at.floor().clamp(max=len(self.table) - 2).long()
        square = torch.lerp(self.table[low].double(), self.table[low + 1].double(), at - low)
        a, s = _column(square.sqrt(), x), _column((1 - square).sqrt(), x)
        eps = x * s / (a * a * STD**2 + s * s)
        disturbed = self.wiggle(x, at / len(self.table), cond)
        channels = x.shape[1]
        return torch.cat([eps + a * disturbed[:, :channels], disturbed[:, channels:]], 1)


class EDMNet(nn.Module):
    """net(x, sigma, class_labels) of NVlabs/edm, EDMPrecond: float32 whatever comes."""

    def __init__(self, channels: int = 3, resolution: int = 8, label_dim: int = 4) -> None:
        super().__init__()
        self.img_channels, self.img_resolution, self.label_dim = channels, resolution, label_dim
        self.sigma_min, self.sigma_max = 0.0, math.inf
        self.wiggle = Wiggle(channels, cond=label_dim)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return torch.as_tensor(sigma)

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        x, sigma = x.float(), sigma.float().reshape(-1, 1, 1, 1).expand(len(x), 1, 1, 1)
        disturbed = self.wiggle(x / (sigma**2 + STD**2).sqrt(), sigma.flatten().log() / 4, class_labels)
        return (STD**2 * x + sigma * STD * disturbed) / (sigma**2 + STD**2)


class UNet(nn.Module):
    """model(x, timesteps, y) of openai/guided-diffusion with learn_sigma."""

    def __init__(self, channels: int = 3, classes: int | None = None, table: str = "linear") -> None:
        super().__init__()
        self.classes = classes
        self.noise = _Noise(channels, table, 4)
        self.label = nn.Embedding(classes or 1, 4)

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        assert (y is not None) == (self.classes is not None)
        return self.noise(x, timesteps, None if y is None else self.label(y))


class DiT(nn.Module):
    """facebookresearch/DiT: forward and forward_with_cfg. classes: the null label."""

    def __init__(self, channels: int = 4, classes: int = 5) -> None:
        super().__init__()
        self.in_channels = channels
        self.noise = _Noise(channels, "linear", 4)
        self.label = nn.Embedding(classes + 1, 4)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        assert t.shape == y.shape == (len(x),)
        return self.noise(x, t, self.label(y))

    def forward_with_cfg(self, x: Tensor, t: Tensor, y: Tensor, cfg_scale: float) -> Tensor:
        """The first half of x twice; three channels guided, the rest as each half has it."""
        first = x[: len(x) // 2]
        out, base = self(torch.cat([first, first]), t, y).chunk(2)
        eps = base[:, :3] + cfg_scale * (out[:, :3] - base[:, :3])
        return torch.cat([torch.cat([eps, out[:, 3:]], 1), torch.cat([eps, base[:, 3:]], 1)])


class Flux(nn.Module):
    """black-forest-labs/flux: tokens [n, L, C]."""

    def __init__(self, channels: int = 8, guidance_embed: bool = True) -> None:
        super().__init__()
        self.guidance_embed = guidance_embed
        self.wiggle = Wiggle(channels, cond=4)

    def forward(
        self,
        img: Tensor,
        img_ids: Tensor,
        txt: Tensor,
        txt_ids: Tensor,
        timesteps: Tensor,
        y: Tensor,
        guidance: Tensor | None = None,
    ) -> Tensor:
        assert img_ids.shape == (*img.shape[:2], 3) and txt_ids.shape == (*txt.shape[:2], 3)
        assert timesteps.dtype == img.dtype and timesteps.shape == (len(img),)
        strength = img.new_zeros(len(img))
        if self.guidance_embed:
            assert guidance is not None and guidance.dtype == img.dtype and guidance.shape == (len(img),)
            strength = guidance / 10
        places = img_ids.to(img.dtype).mean((1, 2))
        cond = torch.stack([strength, y.to(img.dtype).mean(1), txt.to(img.dtype).mean((1, 2)), places], 1)
        return _velocity(img, timesteps) + self.wiggle(img.transpose(1, 2), timesteps, cond).transpose(1, 2)


class Wan(nn.Module):
    """Wan-Video/Wan2.1: lists in, a list of float32 (or float64) out; pictures where in_dim > out_dim."""

    patch_size = (1, 2, 2)
    text_len = 16

    def __init__(self, out_dim: int = 4, in_dim: int | None = None) -> None:
        super().__init__()
        self.in_dim = in_dim or out_dim
        self.out_dim = out_dim
        self.wiggle = Wiggle(self.in_dim, out_dim, cond=TINY_TEXT)

    def forward(
        self,
        x: list[Tensor],
        t: Tensor,
        context: list[Tensor],
        seq_len: int,
        clip_fea: Tensor | None = None,
        y: list[Tensor] | None = None,
    ) -> list[Tensor]:
        assert isinstance(x, list) and isinstance(context, list) and len(x) == len(context) == len(t)
        assert seq_len >= math.prod(-(-size // by) for size, by in zip(x[0].shape[1:], self.patch_size, strict=True))
        text = torch.stack(
            [torch.cat([u, u.new_zeros(self.text_len - len(u), u.shape[1])]).sum(0).tanh() for u in context]
        )
        state = torch.stack(x)
        seen = state if y is None else torch.cat([state, torch.stack(y)], 1)
        assert seen.shape[1] == self.in_dim and (y is None) == (clip_fea is None)
        if clip_fea is not None:
            text = text + clip_fea.mean((1, 2))[:, None]
        out = _velocity(state, t / 1000) + self.wiggle(seen, t / 1000, text)
        return [each.to(torch.promote_types(each.dtype, torch.float32)) for each in out]


class STDiT3(nn.Module):
    """hpcaitech/Open-Sora 1.2: x0 - eps in the first half of 2C channels."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.wiggle = Wiggle(channels, 2 * channels, cond=TINY_TEXT)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        x_mask: Tensor | None = None,
        fps: Tensor | None = None,
        height: Tensor | None = None,
        width: Tensor | None = None,
        **ignored: Tensor,
    ) -> Tensor:
        assert x_mask is None and height is not None and width is not None and fps is not None
        assert len(y) == len(timestep) == len(x) and y.ndim == 4
        kept = torch.ones(y.shape[0], y.shape[2]) if mask is None else mask
        kept = kept.to(x.dtype).repeat(len(y) // len(kept), 1)
        text = (y[:, 0].to(x.dtype) * kept[..., None]).sum(1).tanh()
        speed = fps.to(x.dtype).repeat(len(x) // len(fps))[:, None] / 100
        disturbed = self.wiggle(x, timestep / 1000, text + speed)
        channels = x.shape[1]
        return torch.cat([-_velocity(x, timestep / 1000) + disturbed[:, :channels], disturbed[:, channels:]], 1)


class MARHead(nn.Module):
    """LTH14/mar, SimpleMLPAdaLN: head(x, t, c) on token latents [n, C]."""

    def __init__(self, channels: int = 6, z_channels: int = 8) -> None:
        super().__init__()
        self.in_channels = channels
        self.noise = _Noise(channels, "cosine", z_channels)

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return self.noise(x, t, c)


class DiffLoss(nn.Module):
    """LTH14/mar, what is used of it; `sample` is to be replaced and cannot sample itself."""

    def __init__(self, channels: int = 6, z_channels: int = 8) -> None:
        super().__init__()
        self.in_channels = channels
        self.net = MARHead(channels, z_channels)

    def sample(self, z: Tensor, temperature: float = 1.0, cfg: float | Tensor = 1.0) -> Tensor:
        """Noise for tokens: enough to go on to the next ones."""
        count = len(z) if float(cfg) == 1 else len(z) // 2
        drawn = torch.randn(count, self.in_channels, dtype=z.dtype, device=z.device) * temperature
        return drawn if count == len(z) else torch.cat([drawn, drawn])


class MAR(nn.Module):
    """LTH14/mar, the loop over tokens: each call of `diffloss.sample` draws a part of them."""

    def __init__(self, seq_len: int = 16, channels: int = 6, z_channels: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.seq_len, self.channels = seq_len, channels
        self.diffloss = DiffLoss(channels, z_channels)
        self.label = nn.Embedding(classes + 1, z_channels)
        self.seen = nn.Linear(channels, z_channels)
        self.place = nn.Parameter(torch.randn(seq_len, z_channels))

    def sample_tokens(
        self, bsz: int, num_iter: int = 4, cfg: float = 1.0, labels: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        tokens = torch.zeros(bsz, self.seq_len, self.channels, dtype=self.place.dtype, device=self.place.device)
        null = torch.full((bsz,), self.label.num_embeddings - 1, device=tokens.device)
        for part in torch.arange(self.seq_len).chunk(num_iter):
            share = 1 + (cfg - 1) * (int(part[-1]) + 1) / self.seq_len  # the linear schedule of guidance
            z = self._condition(tokens, null if labels is None else labels, part)
            if cfg != 1:
                z = torch.cat([z, self._condition(tokens, null, part)])
            drawn = self.diffloss.sample(z, temperature, torch.tensor([share]) if cfg != 1 else 1.0)
            tokens[:, part] = drawn[: bsz * len(part)].reshape(bsz, len(part), self.channels)
        return tokens

    def _condition(self, tokens: Tensor, labels: Tensor, part: Tensor) -> Tensor:
        whole = self.label(labels) + self.seen(tokens.mean(1))
        return (whole[:, None] + self.place[part]).flatten(0, 1)
