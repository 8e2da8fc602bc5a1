"""What a search was told, as JSON values that can be compared: between ranks, and with a checkpoint."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import torch
from torch import Tensor


def digest(tensor: Tensor) -> str:
    """Of its shape, dtype and bits."""
    flat = tensor.detach().cpu().contiguous().reshape(-1, 1).view(torch.uint8)
    mark = hashlib.blake2b(f"{list(tensor.shape)} {tensor.dtype}".encode(), digest_size=16)
    mark.update(flat.numpy().tobytes())
    return mark.hexdigest()


def fact(value: Any) -> Any:
    """A JSON value of an argument: itself, a tensor's digest, or its repr without addresses."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, dict):
        return {str(key): fact(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [fact(each) for each in value]
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
