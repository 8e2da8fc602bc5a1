"""What the adapters' tests share: the small networks of the examples, and the published samplers' steps written out."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from helpers.analytic import normal
from torch import Tensor

EXAMPLES = Path(__file__).parents[2] / "examples"


def _networks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_networks", EXAMPLES / "tiny_networks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("tiny_networks", module)
    spec.loader.exec_module(module)
    return module


networks = _networks()


def tiny(name: str, *, dtype: torch.dtype = torch.float64, seed: int = 0, **options: Any) -> Any:
    """The small network `name` with random weights of its own seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(networks, name)(**options).to(dtype).eval().requires_grad_(False)


def flow_euler(velocity: Callable[[Tensor, float], Tensor], noise: Tensor, t: Tensor) -> Tensor:
    """x + (t_next - t) v along the flow times t."""
    x, times = noise * float(t[0]), t.tolist()
    for here, there in pairwise(times):
        x = x + (there - here) * velocity(x, here)
    return x


def ddim(
    eps: Callable[[Tensor, int], Tensor], noise: Tensor, timesteps: list[int], table: Tensor, *, clip: bool = False
) -> Tensor:
    """Song et al. (arXiv 2010.02502), eq. 12 with sigma = 0, down to alpha = 1; from sqrt(1 - alpha_T) * noise."""
    x = (1 - table[timesteps[0]]).sqrt() * noise
    for here, there in zip(timesteps, [*timesteps[1:], None], strict=True):
        alpha = table[here]
        alpha_next = table[there] if there is not None else torch.ones_like(alpha)
        predicted = eps(x, here)
        x0 = (x - (1 - alpha).sqrt() * predicted) / alpha.sqrt()
        if clip:
            x0 = x0.clamp(-1, 1)
            predicted = (x - alpha.sqrt() * x0) / (1 - alpha).sqrt()
        x = alpha_next.sqrt() * x0 + (1 - alpha_next).sqrt() * predicted
    return x


def rows(*shape: int, seed: int) -> Tensor:
    return normal(*shape, seed=seed)


def full(x: Tensor, value: float) -> Tensor:
    return torch.full((len(x),), value, dtype=x.dtype)
