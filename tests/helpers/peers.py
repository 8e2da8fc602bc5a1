"""Checkouts of the repositories that the adapters are for, imported from the folder that OSS_PEERS names, and what
stands in for their GPU-only parts on the CPU."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn


@contextmanager
def checkout(name, *needs, source="", bare=(), stubs=None):
    """The checkout first on the path; its modules are forgotten afterwards, because DiT and MAR share their names.

    bare: packages whose __init__ would import what is not looked at. stubs: modules that stand in for missing ones.
    """
    root = os.environ.get("OSS_PEERS")
    if not root:
        pytest.skip("OSS_PEERS names no folder with the repositories' checkouts")
    folder = Path(root) / name / source
    if not folder.is_dir():
        pytest.skip(f"no {name} under OSS_PEERS")
    for package in needs:
        pytest.importorskip(package, reason=f"{name} imports {package}")
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        for package in bare:
            module = ModuleType(package)
            module.__path__ = [str(folder / package.replace(".", "/"))]
            sys.modules[package] = module
        for package, content in (stubs or {}).items():
            module = ModuleType(package)
            module.__spec__ = ModuleSpec(package, None)
            vars(module).update(content)
            sys.modules[package] = module
        yield
    finally:
        sys.path.remove(str(folder))
        # All places before any is forgotten: a namespace package, which has no file, asks its parent for its own.
        places = {module: _place(sys.modules[module]) for module in set(sys.modules) - before}
        for module, where in places.items():
            if module in (stubs or {}) or module in bare or (where and Path(where).is_relative_to(folder)):
                del sys.modules[module]


def _place(module):
    """The file of a module, or a folder of a package without one."""
    return getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)


@torch.no_grad()
def shaken(net, seed=0):
    """Random weights everywhere: the repositories begin with zeros at the output."""
    generator = torch.Generator().manual_seed(seed)
    for weight in net.parameters():
        if weight.ndim > 1:
            fan_in = weight[0].numel()
            weight.copy_(torch.randn(weight.shape, generator=generator) / fan_in**0.5)
        else:
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return net.eval().requires_grad_(False)


def agreement(ours, theirs):
    """Largest difference over the largest number: what is reported."""
    off = ((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()).item()
    print(f"\n  agreement: {off:.1e}", end="")
    return off


MISSING_FLUX = {
    "flux.modules.conditioner": {"HFEmbedder": object},
    "flux.modules.image_embedders": {
        "CannyImageEncoder": object,
        "DepthImageEncoder": object,
        "ReduxImageEncoder": object,
    },
    "flux.util": {"PREFERED_KONTEXT_RESOLUTIONS": []},
}


def exact_attention(q, k, v, k_lens=None, window_size=(-1, -1), **_):
    """What flash_attention computes, on the CPU: [B, L, heads, C], keys beyond k_lens unseen."""
    mask = None
    if k_lens is not None:
        mask = (torch.arange(k.shape[1])[None] < k_lens[:, None])[:, None, None]
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k.to(q), v.to(q), attn_mask=mask).transpose(1, 2)


def block_attention(q, k, v, p=0.0, attn_bias=None):
    """xformers' memory_efficient_attention [1, L, heads, C] with a block-diagonal bias of (query, key) lengths."""
    assert p == 0.0
    out = torch.empty_like(q)
    query = key = 0
    for queries, keys in attn_bias or [(q.shape[1], k.shape[1])]:
        part = (q[:, query : query + queries], k[:, key : key + keys], v[:, key : key + keys])
        out[:, query : query + queries] = exact_attention(*part)
        query, key = query + queries, key + keys
    return out


def block_mask(q_seqlen, kv_seqlen=None):
    return list(zip(q_seqlen, kv_seqlen or q_seqlen, strict=True))


class Registry:
    def register_module(self, *_):
        return lambda cls: cls


XFORMERS = {
    "memory_efficient_attention": block_attention,
    "fmha": SimpleNamespace(BlockDiagonalMask=SimpleNamespace(from_seqlens=block_mask)),
}
MISSING_OPEN_SORA = {
    "xformers": {"ops": SimpleNamespace(**XFORMERS)},
    "xformers.ops": XFORMERS,
    "opensora.registry": {"MODELS": Registry(), "SCHEDULERS": Registry()},
    "opensora.utils.ckpt_utils": {"load_checkpoint": None},
}
BARE_OPEN_SORA = ("opensora", "opensora.models", "opensora.models.stdit", "opensora.schedulers", "opensora.utils",
                  "opensora.schedulers.iddpm", "opensora.acceleration")  # fmt: skip
