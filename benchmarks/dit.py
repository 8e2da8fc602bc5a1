"""A transformer of the size of DiT-XL/2 (Peebles, Xie, arXiv 2212.09748) with random weights, for timings alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from oss_ext import FlowModel


class Block(nn.Module):
    """Attention and a perceptron, each behind a layer norm shifted, scaled and gated by the condition."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width, elementwise_affine=False) for _ in range(2)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, shift_2, scale_2, gate_2 = self.modulation(condition)[:, None].chunk(6, -1)
        qkv = self.qkv(self.norms[0](x) * (1 + scale) + shift).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + gate * self.out(seen.transpose(1, 2).flatten(2))
        return x + gate_2 * self.perceptron(self.norms[1](x) * (1 + scale_2) + shift_2)


class DiT(nn.Module):
    """forward(x [n, 4, side, side], t [n] in (0, 1], y [n]) -> like x."""

    def __init__(
        self, depth: int = 28, width: int = 1152, heads: int = 16, side: int = 32, classes: int = 1000
    ) -> None:
        super().__init__()
        self.side, self.classes = side, classes
        self.patch = nn.Conv2d(4, width, 2, 2)
        self.place = nn.Parameter(torch.zeros(1, (side // 2) ** 2, width))
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.last = nn.Linear(width, 16)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.02)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        frequency = torch.exp(torch.arange(128, device=x.device) * (-math.log(1e4) / 128))
        angle = 1000 * t.float()[:, None] * frequency
        wave = torch.cat([angle.cos(), angle.sin()], -1).to(x.dtype)
        condition = self.time(wave) + self.label(y)
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.place
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, -1)
        pixels = self.last(self.norm(tokens) * (1 + scale) + shift)
        half = self.side // 2
        return pixels.view(-1, half, half, 2, 2, 4).permute(0, 5, 1, 3, 2, 4).reshape(x.shape)


class Guided:
    """velocity(x, t, y): the network once with a doubled batch, guidance 1.5. `call` may be a compiled network."""

    def __init__(self, network: DiT, call: nn.Module | None = None, scale: float = 1.5) -> None:
        self.network, self.call, self.scale = network, call or network, scale

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        nothing = torch.full_like(y, self.network.classes)
        both = self.call(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, nothing]))
        guided, plain = both.chunk(2)
        return plain + self.scale * (guided - plain)

    def model(self) -> FlowModel:
        return FlowModel(self)
