"""The network of the bundled models: a small class-conditional transformer over the patches of a 32x32 image.

What it predicts is the trainer's choice: for ``photo32`` the velocity ``v = eps - x0`` of the straight path
``x_t = (1 - t) x0 + t eps``, for ``photo32_vp`` the noise (``vp.py``). Blocks follow DiT (Peebles and Xie, arXiv
2212.09748): adaptive layer norm with zero-initialised gates. As in PixArt-alpha (arXiv 2310.00426, section 2.3) one
modulation layer serves every block, and a block adds only a learned offset to it; this saves a third of the weights.

This file imports torch and nothing else, so that training needs neither the compiled module nor the rest of the
package.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class NetworkConfig:
    """Architecture, kept as a whole in the weight file's header.

    Args:
        image_size: side of the square image, pixels; a multiple of ``patch_size``.
        channels: image channels.
        patch_size: side of a patch, pixels.
        width: features of a token; a multiple of ``heads`` and of 4.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden features of a block's MLP over ``width``.
        classes: number of classes, the null class not counted.
        time_features: features of the sin/cos time embedding, even.
    """

    image_size: int = 32
    channels: int = 3
    patch_size: int = 4
    width: int = 192
    depth: int = 8
    heads: int = 6
    mlp_ratio: int = 4
    classes: int = 9
    time_features: int = 64

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size must be a multiple of patch_size {self.patch_size}, got {self.image_size}")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width must be a multiple of heads and of 4, got {self.width} and {self.heads} heads")
        if self.time_features % 2:
            raise ValueError(f"time_features must be even, got {self.time_features}")

    @property
    def tokens(self) -> int:
        """Number of patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    def to_dict(self) -> dict[str, int]:
        """The fields as a plain dict; ``NetworkConfig(**d)`` reads it back."""
        return asdict(self)


def time_embedding(t: Tensor, features: int) -> Tensor:
    """Sin/cos features of time.

    The frequencies run from 1/4 to 32 periods over [0, 1]. A shortest period of 1/32 keeps the prediction smooth in t,
    on the scale of the steps that samplers take; the thousand-step embedding of discrete models would not.

    Args:
        t: [batch] times in [0, 1].
        features: number of features, even.

    Returns:
        [batch, features] float32.
    """
    exponent = torch.linspace(-2.0, 5.0, features // 2, device=t.device, dtype=torch.float32)
    angle = t.float()[:, None] * (2.0 * math.pi * torch.exp2(exponent))
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def position_embedding(side: int, width: int) -> Tensor:
    """Sin/cos features of the row and of the column of each patch, [1, side * side, width]: the initial values."""
    frequency = torch.exp(-math.log(100.0) * torch.arange(width // 4) / (width // 4))
    angle = torch.arange(side)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows = axis[:, None, :].expand(side, side, -1)
    columns = axis[None, :, :].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).reshape(1, side * side, width)


class Block(nn.Module):
    """Attention and MLP, each on a modulated layer norm and added through a gate."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.offset = nn.Parameter(torch.zeros(6, width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, config.mlp_ratio * width, bias=False)
        self.down = nn.Linear(config.mlp_ratio * width, width, bias=False)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x: [batch, tokens, width]; modulation: [batch, 6, width]; returns x's shape."""
        batch, tokens, width = x.shape
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (modulation + self.offset)[:, :, None].unbind(1)
        h = torch.addcmul(shift_a, F.layer_norm(x, (width,)), scale_a)
        q, k, v = self.qkv(h).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = torch.addcmul(x, self.proj(h), gate_a)
        h = torch.addcmul(shift_m, F.layer_norm(x, (width,)), scale_m)
        return torch.addcmul(x, self.down(F.gelu(self.up(h), approximate="tanh")), gate_m)


class PatchTransformer(nn.Module):
    """Prediction for a noisy image given its time and class, zero before training.

    Args:
        config: the architecture.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.channels * config.patch_size**2
        self.patch_in = nn.Linear(patch, width)
        self.position = nn.Parameter(position_embedding(config.image_size // config.patch_size, width))
        self.time_in = nn.Linear(config.time_features, width)
        self.time_out = nn.Linear(width, width)
        self.label = nn.Embedding(config.classes + 1, width)
        self.modulation = nn.Linear(width, 6 * width)
        blocks = [Block(config) for _ in range(config.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.offset_out = nn.Parameter(torch.zeros(2, width))
        self.patch_out = nn.Linear(width, patch)
        self._initialise(blocks)

    def _initialise(self, blocks: list[Block]) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.label.weight, std=0.02)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.patch_out.weight)
        # "scale" multiplies directly, without "1 +", which saves an operation a layer norm: hence its offset of one.
        with torch.no_grad():
            self.offset_out[1] = 1.0
            for block in blocks:
                block.offset[1] = 1.0
                block.offset[4] = 1.0

    @property
    def null_label(self) -> int:
        """The class that stands for "no class", for classifier-free guidance (arXiv 2207.12598)."""
        return self.config.classes

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The prediction at ``x``.

        Args:
            x: [batch, channels, image_size, image_size] noisy images, of the weights' dtype (any under autocast).
            t: [batch] times in [0, 1]; 1 is the noisiest.
            label: [batch] int64 classes; ``null_label`` for none.

        Returns:
            [batch, channels, image_size, image_size].
        """
        c = self.config
        side, p = c.image_size // c.patch_size, c.patch_size
        patches = x.reshape(-1, c.channels, side, p, side, p).permute(0, 2, 4, 1, 3, 5)
        h = self.patch_in(patches.reshape(-1, c.tokens, c.channels * p * p)) + self.position
        feature = time_embedding(t, c.time_features).to(self.time_in.weight.dtype)
        condition = F.silu(self.time_out(F.silu(self.time_in(feature))) + self.label(label))
        modulation = self.modulation(condition).view(-1, 6, c.width)
        for block in self.blocks:
            h = block(h, modulation)
        shift, scale = (modulation[:, :2] + self.offset_out)[:, :, None].unbind(1)
        h = self.patch_out(torch.addcmul(shift, F.layer_norm(h, (c.width,)), scale))
        return h.view(-1, side, side, c.channels, p, p).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def guided(network: PatchTransformer, x: Tensor, t: Tensor, label: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): ``f_null + scale (f_label - f_null)``.

    ``scale`` 1 is the plain conditional prediction and costs one evaluation; any other value evaluates both branches in
    one batch of twice the size.

    Args:
        network: the network.
        x, t, label: as in :meth:`PatchTransformer.forward`.
        scale: guidance scale.

    Returns:
        x's shape.
    """
    if scale == 1.0:
        return network(x, t, label)
    null = torch.full_like(label, network.null_label)
    with_label, without = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([label, null])).chunk(2)
    return torch.lerp(without, with_label, scale)
