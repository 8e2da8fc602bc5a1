"""Classifier-free guidance (Ho and Salimans, arXiv 2207.12598) as the adapters share it.

What stands in for a condition without its prompt or label is found by name. For the condition `y`:
    cond["null_y"]  [B, ...]: one a sample, where they differ (the tokens of MAR);
    null["y"]       [1, ...] or [...]-broadcastable to cond["y"]: one for all (a learned embedding, a negative prompt).
A condition with neither is the same in both halves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from oss_ext.models import Network

PREFIX = "null_"


def guide(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """unconditional + scale * (conditional - unconditional). scale: a number, or [n], one a row."""
    if isinstance(scale, Tensor):
        scale = scale.to(conditional).reshape(-1, *[1] * (conditional.ndim - 1))
    return unconditional + scale * (conditional - unconditional)


def halves(cond: Mapping[str, Tensor], null: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(conditional, unconditional), with the names that the network knows.

    Raises ValueError for a null without its condition, or one that does not broadcast to it; and where there is none.
    """
    conditional = {name: value for name, value in cond.items() if not name.startswith(PREFIX)}
    unconditional = dict(conditional)
    own = {name.removeprefix(PREFIX): value for name, value in cond.items() if name.startswith(PREFIX)}
    stand_ins = {**null, **own}
    if not stand_ins:
        raise ValueError("null: got none with guidance, wanted what stands in for a condition, such as {'y': tensor}")
    for name, value in stand_ins.items():
        if name not in conditional:
            raise ValueError(
                f"null: got {name!r}, but cond has no {name!r} (it has {', '.join(conditional) or 'none'})"
            )
        like = conditional[name]
        value = value.to(device=like.device, dtype=like.dtype)
        try:
            unconditional[name] = value.expand(like.shape)
        except RuntimeError:
            raise ValueError(
                f"null[{name!r}]: got shape {list(value.shape)}, wanted one that broadcasts to cond[{name!r}], "
                f"{list(like.shape)}"
            ) from None
    return conditional, unconditional


def stack(x: Tensor, level: Tensor, conditional: Mapping[str, Tensor], unconditional: Mapping[str, Tensor]) -> Any:
    """(x [2n, ...], level [2n], cond of 2n rows): the conditional rows, then the unconditional ones."""
    both = {name: torch.cat([value, unconditional[name]]) for name, value in conditional.items()}
    return torch.cat([x, x]), torch.cat([level, level]), both


def guided(
    network: Network, scale: float | None, *, null: Mapping[str, Tensor] | None = None, together: bool = True
) -> Network:
    """fn(x, level, **cond) -> the guided prediction of `network`.

    scale: None for no guidance: null conditions are then ignored. cond["guidance"] [n], one a row, takes its place.
    together: one call on 2n rows, conditional first; False: two calls on n rows, as a network that fills the memory
        is called.
    """
    fixed = dict(null or {})

    def fn(x: Tensor, level: Tensor, **cond: Tensor) -> Tensor:
        by_row = cond.pop("guidance", None)
        chosen = scale if by_row is None else by_row
        if chosen is None:
            return network(x, level, **{name: v for name, v in cond.items() if not name.startswith(PREFIX)})
        conditional, unconditional = halves(cond, fixed)
        if together:
            x2, level2, both = stack(x, level, conditional, unconditional)
            out, base = network(x2, level2, **both).chunk(2)
        else:
            out, base = network(x, level, **conditional), network(x, level, **unconditional)
        return guide(out, base, chosen)

    return fn
