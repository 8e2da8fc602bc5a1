"""Checks of what callers hand in. Every error names the argument, what came, and what was wanted."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def whole_number(name: str, value: Any, *, least: int, most: int | None = None, most_is: str = "") -> int:
    """`value` as an int in [least, most]. Raises TypeError (not an integer; bools are not) or ValueError (range)."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: got {value!r} of type {type(value).__name__}, wanted an integer")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name}: got {number}, wanted at least {least}")
    if most is not None and number > most:
        raise ValueError(f"{name}: got {number}, wanted at most {most}{most_is}")
    return number


def real_number(name: str, value: Any, *, least: float, most: float = math.inf) -> float:
    """`value` as a finite float in [least, most]. Raises TypeError (no number, or a bool) or ValueError (range)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: got {type(value).__name__}, wanted a number")
    if not least <= value <= most or math.isinf(value):
        raise ValueError(f"{name}: got {value}, wanted a finite number from {least} to {most}")
    return float(value)


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """`value` if it is one of `allowed`. Raises TypeError (not a string) or ValueError (lists what is allowed)."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: got {type(value).__name__}, wanted one of {', '.join(allowed)}")
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(allowed)}")
    return value


def check_noise(noise: Any, *, least: int = 1) -> Tensor:
    """`noise` [B, ...] detached: floating, finite, B >= `least`, at least one further dimension, on the CPU or a CUDA
    GPU."""
    if not isinstance(noise, Tensor):
        raise TypeError(f"noise: got {type(noise).__name__}, wanted a floating tensor [batch, ...]")
    if noise.dtype not in FLOATS:
        raise TypeError(f"noise: got dtype {noise.dtype}, wanted one of {', '.join(map(str, FLOATS))}")
    if noise.layout != torch.strided:
        raise TypeError(f"noise: got layout {noise.layout}, wanted a dense tensor")
    if noise.device.type not in ("cpu", "cuda"):
        raise ValueError(f"noise: got device {noise.device}, wanted cpu or cuda")
    if noise.ndim < 2:
        raise ValueError(f"noise: got shape {list(noise.shape)}, wanted [batch, ...] with at least two dimensions")
    if len(noise) < least or 0 in noise.shape[1:]:
        raise ValueError(f"noise: got the empty shape {list(noise.shape)}, wanted at least one sample of one number")
    finite = torch.isfinite(noise.flatten(1)).all(1)
    if not bool(finite.all()):
        sample = int((~finite).nonzero()[0])
        raise ValueError(f"noise: sample {sample} holds NaN or inf, wanted finite unit normal numbers")
    return noise.detach()


def check_weight(weight: Any, noise: Tensor) -> Tensor | None:
    """`weight` detached: floating, of the shape of one sample of `noise`, on its device, >= 0, finite, not all 0."""
    if weight is None:
        return None
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        came = f"a tensor of {weight.dtype}" if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"weight: got {came}, wanted a floating tensor {list(noise.shape[1:])}")
    if weight.shape != noise.shape[1:]:
        raise ValueError(
            f"weight: got shape {list(weight.shape)}, wanted {list(noise.shape[1:])}, that of a sample of the noise"
        )
    if weight.device != noise.device:
        raise ValueError(f"weight: got device {weight.device}, wanted {noise.device}, where the noise is")
    if not bool(torch.isfinite(weight).all()) or bool((weight < 0).any()) or not bool((weight > 0).any()):
        raise ValueError("weight: wanted finite numbers >= 0, at least one of them above 0")
    return weight.detach()


def check_cond(cond: Any, noise: Tensor) -> dict[str, Tensor]:
    """`cond` as a dict of tensors [B, ...] on the device of `noise` [B, ...]; None is an empty dict."""
    if cond is None:
        return {}
    if not isinstance(cond, Mapping):
        raise TypeError(f"cond: got {type(cond).__name__}, wanted a dict of tensors [{noise.shape[0]}, ...]")
    for key, value in cond.items():
        if not isinstance(key, str):
            raise TypeError(f"cond: got the key {key!r}, wanted strings (keyword arguments of the model)")
        if not isinstance(value, Tensor):
            raise TypeError(
                f"cond[{key!r}]: got {type(value).__name__}, wanted a tensor [{noise.shape[0]}, ...]; "
                "bind what is no tensor to the model's function"
            )
        if value.ndim < 1 or value.shape[0] != noise.shape[0]:
            raise ValueError(
                f"cond[{key!r}]: got shape {list(value.shape)}, wanted [{noise.shape[0]}, ...], one row a noise sample"
            )
        if value.device != noise.device:
            raise ValueError(f"cond[{key!r}]: got device {value.device}, wanted {noise.device}, where the noise is")
    return dict(cond)


def check_model(model: Any) -> None:
    """Raises TypeError unless `model` has the attributes of `oss_ext.models.Denoiser`."""
    wanted = ("velocity", "t_max", "t_min", "flow_table", "sigmas", "timesteps", "parameterization", "describe")
    missing = [name for name in wanted if not hasattr(model, name)]
    if missing:
        raise TypeError(
            f"model: got {type(model).__name__} without {', '.join(missing)}, wanted a Denoiser; "
            "wrap the network's function in FlowModel, EDMModel, EpsilonModel, VParamModel or X0Model"
        )
