"""NVlabs/edm: ImageNet-64, FFHQ-64, AFHQv2-64, CIFAR-10 (Karras et al., arXiv 2206.00364).

    model = edm.denoiser(net)
    result = oss_ext.dp_search(model, noise, grid="edm", cond={"class_labels": one_hot})

net(x, sigma, class_labels) -> denoised, one of EDMPrecond, VPPrecond, VEPrecond, iDDPMPrecond. It computes in float32
(float16 inside where built so) whatever it is fed. noise: [B, img_channels, img_resolution, img_resolution]. cond:
{"class_labels": [B, label_dim]} floating one-hot rows; none for an unconditional net, which ignores them.

The repository ships pickles that run code of their own on loading; this library loads none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oss_ext.models import EDMModel

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
"""Where the repository's `edm_sampler` begins and ends, unless the network knows less."""


class RoundedEDMModel(EDMModel):
    """An iDDPM network in EDM's form: it knows the noise levels of its table only and is told the nearest of them.

    levels: ascending [T], the table without its 0. nodes="integer" of `dp_search` keeps to them.
    """

    def __init__(self, fn: Any, levels: Tensor) -> None:
        super().__init__(fn, float(levels[0]), float(levels[-1]))
        self.flow_table = levels / (1 + levels)

    def describe(self) -> dict[str, Any]:
        assert self.flow_table is not None
        return {**super().describe(), "levels": len(self.flow_table)}


def denoiser(net: Any, *, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> EDMModel:
    """The Denoiser of an EDM network; see the module.

    sigma_min, sigma_max: cut to what the net supports (`net.sigma_min`, `net.sigma_max`), as its sampler does.
    A net with a table `u` of noise levels (iDDPMPrecond) gives a model whose `flow_table` holds those in range, whose
    ends move to the nearest, as with its `round_sigma`.
    """
    for name in ("sigma_min", "sigma_max", "round_sigma"):
        if not hasattr(net, name):
            raise TypeError(
                f"net: got {type(net).__name__} without {name}, wanted a preconditioned network of NVlabs/edm"
            )
    low, high = max(sigma_min, float(net.sigma_min)), min(sigma_max, float(net.sigma_max))

    def fn(x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        out: Tensor = net(x, sigma, class_labels)
        return out.to(x.dtype)

    table = getattr(net, "u", None)
    if not isinstance(table, Tensor):
        return EDMModel(fn, low, high)
    levels = table.detach().to("cpu", torch.float64).unique()
    nearest = [float(levels[(levels[1:] - end).abs().argmin() + 1]) for end in (low, high)]  # levels[0] is the clean 0
    levels = levels[(levels >= nearest[0]) & (levels <= nearest[1])]
    if len(levels) < 2:
        raise ValueError(
            f"sigma_min, sigma_max: got {sigma_min} and {sigma_max}, which leave {len(levels)} levels of net"
        )
    return RoundedEDMModel(fn, levels)
