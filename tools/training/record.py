"""Weight files with the record of their training in the header."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

if TYPE_CHECKING:
    from oss_ext.zoo import photos
else:
    import photos


def git_commit() -> str:
    """The commit that is checked out, with "+changes" when tracked files differ from it."""
    root = Path(__file__).resolve().parents[2]
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, check=True, capture_output=True, text=True)
        state = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=root, check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"cannot ask git for the commit ({error}); pass --commit") from error
    return commit.stdout.strip() + ("+changes" if state.stdout.strip() else "")


def data_record() -> dict[str, Any]:
    """Where the crops come from."""
    return {
        "photographs": {p.name: {"source": p.source, "licence": p.licence} for p in photos.PHOTOS},
        "scikit-image": version("scikit-image"),
        "scikit-learn": version("scikit-learn"),
        "crops": "random squares of max(64, short / 8) to short / 2 pixels, area-averaged to 32x32",
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def write_weights(path: Path, model: nn.Module, card: dict[str, Any]) -> None:
    """Writes fp16 weights with ``card`` as JSON in the header; the file appears whole or not at all."""
    weights = {name: value.half().cpu().contiguous() for name, value in model.state_dict().items()}
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise SystemExit(f"weights that fp16 cannot hold: {broken}")
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file(weights, partial, metadata={"format": "pt", "name": path.stem, "card": json.dumps(card)})
    partial.chmod(0o644)
    partial.replace(path)


def read_weights(path: Path, model: nn.Module) -> None:
    """Puts the weights of a file that :func:`write_weights` wrote into ``model``."""
    model.load_state_dict(load_file(path))
