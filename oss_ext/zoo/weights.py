"""Loads the bundled networks from the weights inside the package."""

from __future__ import annotations

import json
import math
from importlib import resources
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from oss_ext.zoo.classifier import Classifier, ClassifierConfig
from oss_ext.zoo.model import ZooModel
from oss_ext.zoo.network import NetworkConfig, PatchTransformer

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def names() -> list[str]:
    """The names that :func:`load` takes."""
    return ["photo32", "photo32_vp"]


def load(
    name: str = "photo32",
    *,
    guidance_scale: float = 1.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ZooModel:
    """A bundled model.

    Args:
        name: as in :func:`names`. Both draw 32x32 colour crops of nine photographs, one class each. "photo32" is a
            flow model: velocity, any flow time in (0, 1]. "photo32_vp" is a variance-preserving one: noise, the 1000
            timesteps of Stable Diffusion's noise levels and whatever lies between them.
        guidance_scale: scale of classifier-free guidance (arXiv 2207.12598): 1 is the plain conditional model, and
            ``v = v_null + guidance_scale (v_label - v_null)`` otherwise.
        device: where the weights go.
        dtype: of the weights and of the images; float32, bfloat16, float16 or float64. The file holds float16.

    Raises:
        ValueError: unknown name, a guidance scale that is not finite, another dtype.
        FileNotFoundError: the package was built without the weights.
    """
    if name not in names():
        raise ValueError(f"name: got {name!r}, wanted one of {names()}")
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale: got {guidance_scale}, wanted a finite number")
    _check_dtype(dtype)
    weights, card = _read(name)
    network = PatchTransformer(NetworkConfig(**card["architecture"]))
    network.load_state_dict(weights)
    network.to(device=device, dtype=dtype).requires_grad_(False).eval()
    return ZooModel(name, network, card, float(guidance_scale))


def features(*, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Classifier:
    """The classifier of the bundled models' pictures, to measure the distance between sets of them.

    ``torchmetrics.image.fid.FrechetInceptionDistance(feature=oss_ext.zoo.features())``, or ``KernelInceptionDistance``:
    64 features of uint8 pictures or of samples in [-1, 1]. Such distances compare with each other only, not with those
    of Inception-V3. Gradients with respect to the pictures are available; the weights take none.

    Args:
        device: where the weights go.
        dtype: of the weights and of the features; float32, bfloat16, float16 or float64. The file holds float16.

    Raises:
        ValueError: another dtype.
        FileNotFoundError: the package was built without the weights.
    """
    _check_dtype(dtype)
    weights, card = _read("photo32_features")
    classifier = Classifier(ClassifierConfig(**card["architecture"]))
    classifier.load_state_dict(weights)
    return classifier.to(device=device, dtype=dtype).requires_grad_(False).eval()


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in _DTYPES:
        raise ValueError(f"dtype: got {dtype}, wanted one of {', '.join(map(str, _DTYPES))}")


def _read(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a bundled file and the record of their training."""
    resource = resources.files("oss_ext.zoo") / f"{name}.safetensors"
    if not resource.is_file():
        raise FileNotFoundError(
            f"{name}: no weights at {resource}; python tools/train_zoo.py --model {name} in the repository trains "
            "them, copy the file it writes there"
        )
    with resources.as_file(resource) as path, safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["card"])
        return {key: file.get_tensor(key) for key in file.keys()}, card  # noqa: SIM118 (safe_open is no mapping)
