"""LTH14/mar: the diffusion head that draws one token of an image at a time (Li et al., arXiv 2406.11838).

    with mar.recorded(net.diffloss) as tokens, torch.no_grad():
        net.sample_tokens(bsz=8, num_iter=64, cfg=2.9, labels=labels)
    noise, cond = tokens.draw(count=512, calls=[0])
    result = oss_ext.dp_search(mar.denoiser(net.diffloss.net), noise, grid="ddim", cond=cond)
    with mar.applied(net.diffloss, result.schedule), torch.no_grad():
        images = net.sample_tokens(bsz=8, num_iter=64, cfg=2.9, labels=labels)

head(x, t, c) -> [n, 2C] for token latents x [n, C]; its learned variance is dropped. cond: {"c": [B, Z]}, the
transformer's output at the token; with guidance also {"null_c": [B, Z], "guidance": [B]}, because both are another
for every token and every call. One schedule is searched on chosen tokens and used for all of them. The table is the
cosine one of 1000 timesteps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from oss_ext.integrations import guided_diffusion
from oss_ext.integrations.guidance import guided
from oss_ext.models import Denoiser
from oss_ext.schedule import Schedule


def denoiser(head: Any, *, noise_schedule: str | Tensor = "cosine") -> Denoiser:
    """The Denoiser of MAR's head, `diffloss.net`; see the module."""

    def network(x: Tensor, timestep: Tensor, c: Tensor) -> Tensor:
        out: Tensor = head(x, timestep, c)
        return out[:, : x.shape[1]]  # before the halves are guided, as `forward_with_cfg` does

    return guided_diffusion.denoiser(guided(network, None), noise_schedule)


@dataclass
class Tokens:
    """What the head was asked for, one entry a call of `diffloss.sample`: the conditions, for guided calls those
    without the label too, and the guidance scale."""

    channels: int
    calls: list[dict[str, Tensor]] = field(default_factory=list)

    def draw(
        self, count: int | None = None, calls: Sequence[int] | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(unit normal noise [B, C], cond of B rows) for `dp_search`: `count` of the tokens, drawn at random.

        calls: which of the recorded calls: [0] for the published "first token" (arXiv 2503.21774); None: all.
        count: None, or more than there are: every token. generator: a CPU one.
        """
        chosen = self.calls if calls is None else [self.calls[index] for index in calls]
        if not chosen:
            raise ValueError("calls: none was recorded, or chosen")
        names = {name for call in chosen for name in call}
        if any(set(call) != names for call in chosen):
            raise ValueError("calls: got guided and unguided ones, wanted one kind: choose calls")
        cond = {name: torch.cat([call[name] for call in chosen]) for name in sorted(names)}
        order = torch.randperm(len(cond["c"]), generator=generator)[:count]
        cond = {name: value[order.to(value.device)] for name, value in cond.items()}
        noise = torch.randn(len(order), self.channels, generator=generator, dtype=cond["c"].dtype)
        return noise.to(cond["c"].device), cond


@contextmanager
def recorded(diffloss: Any) -> Iterator[Tokens]:
    """Notes what `diffloss.sample` is asked for while it samples as before."""
    original = diffloss.sample
    tokens = Tokens(diffloss.in_channels)

    def sample(z: Tensor, temperature: float = 1.0, cfg: float | Tensor = 1.0) -> Tensor:
        tokens.calls.append({name: value.clone() for name, value in _cond(z, cfg).items()})
        out: Tensor = original(z, temperature=temperature, cfg=cfg)
        return out

    with _replaced(diffloss, sample):
        yield tokens


@contextmanager
def applied(diffloss: Any, schedule: Schedule, *, noise_schedule: str | Tensor = "cosine") -> Iterator[None]:
    """`diffloss.sample` takes the steps of `schedule` until the context is left. temperature must be 1: it scales noise
    that is added between steps, and here none is."""
    model = denoiser(diffloss.net, noise_schedule=noise_schedule)

    def sample(z: Tensor, temperature: float = 1.0, cfg: float | Tensor = 1.0) -> Tensor:
        if temperature != 1:
            raise ValueError(f"temperature: got {temperature}, wanted 1 with a deterministic schedule")
        cond = _cond(z, cfg)
        noise = torch.randn(len(cond["c"]), diffloss.in_channels, device=z.device, dtype=cond["c"].dtype)
        drawn = schedule.sample(model, noise, cond, batch_size=len(noise))
        return torch.cat([drawn, drawn]) if "null_c" in cond else drawn

    with _replaced(diffloss, sample):
        yield


def _cond(z: Tensor, cfg: float | Tensor) -> dict[str, Tensor]:
    """z holds the labelled half and then the other one exactly where cfg is not 1. It may be of a half type under
    autocast; the repository's noise is not, nor are its tokens."""
    scale = float(cfg)
    z = z.detach().to(torch.promote_types(z.dtype, torch.float32))
    if scale == 1:
        return {"c": z}
    labelled, other = z.chunk(2)
    return {"c": labelled, "null_c": other, "guidance": z.new_full((len(labelled),), scale)}


@contextmanager
def _replaced(diffloss: Any, sample: Any) -> Iterator[None]:
    """`sample` as an attribute of the instance, over the class's method; what stood there before comes back."""
    before = vars(diffloss).get("sample")
    diffloss.sample = sample
    try:
        yield
    finally:
        if before is None:
            del diffloss.sample
        else:
            diffloss.sample = before
