"""The noise tables of the repositories that descend from guided-diffusion, by the names used there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from oss_ext.validate import choice, whole_number

NAMES = ("linear", "cosine")


def alphas_cumprod(name: str = "linear", steps: int = 1000) -> Tensor:
    """float64 [steps]: a^2 of timestep 0..steps-1.

    "linear": Ho et al. (arXiv 2006.11239), beta from 0.1/steps to 20/steps. "cosine": Nichol and Dhariwal (arXiv
    2102.09672), eq. 17, beta at most 0.999; DiT's repository calls it "squaredcos_cap_v2".
    """
    choice("name", name, NAMES)
    steps = whole_number("steps", steps, least=21)  # linear: beta must stay below 1
    if name == "linear":
        betas = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
    else:
        edge = torch.arange(steps + 1, dtype=torch.float64) / steps
        level = ((edge + 0.008) / 1.008 * math.pi / 2).cos().square()
        betas = (1 - level[1:] / level[:-1]).clamp(max=0.999)
    return (1 - betas).cumprod(0)
