"""What a schedule's provenance keeps of the pipeline that it was searched with: plain JSON values."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from oss_ext.integrations.diffusers.family import Family

_NOT_KEPT = ("num_inference_steps", "output_type", "return_dict", "callback_steps")


def pipeline(pipe: Any, family: Family) -> dict[str, Any]:
    """Class, checkpoint, scheduler, its settings, and the dtype and adapters of the networks."""
    config: Mapping[str, Any] = getattr(pipe, "config", None) or {}
    found: dict[str, Any] = {
        "class": type(pipe).__name__,
        "checkpoint": str(config.get("_name_or_path") or ""),
        "prediction": family.parameterization,
        "dtype": str(getattr(pipe, "dtype", "")).removeprefix("torch."),
        "adapters": _adapters(pipe),
    }
    return {key: value for key, value in found.items() if value not in ("", None)}


def arguments(pipe: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers and switches among the call's arguments, with the defaults of the call for those not given."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(pipe.__call__).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    plain = {**defaults, **given}
    return {
        name: value for name, value in plain.items() if isinstance(value, bool | int | float) and name not in _NOT_KEPT
    }


def version() -> str:
    """Of diffusers, "" where it is not installed as a package."""
    try:
        return metadata.version("diffusers")
    except metadata.PackageNotFoundError:
        return ""


def _adapters(pipe: Any) -> list[str]:
    """Names of the active LoRA adapters, of pipelines and networks that can say."""
    names = set()
    for part in getattr(pipe, "components", {}).values():
        config = getattr(part, "peft_config", None)
        if config and callable(getattr(part, "active_adapters", None)):
            names |= set(part.active_adapters())
    return sorted(names)
