"""The compiled module `oss_ext._C`, imported here and nowhere else but in `kernels`, and what it was built with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

try:
    from oss_ext import _C  # type: ignore[attr-defined]
except ImportError as error:
    _PACKAGE = Path(__file__).resolve().parent
    _CHECKOUT = (_PACKAGE.parent / "CMakeLists.txt").exists()
    raise ImportError(
        f"oss_ext: the compiled module oss_ext._C could not be imported from {_PACKAGE} ({error}).\n"
        + (
            "This is the source tree, which holds no compiled module: Python found it before the installed package "
            "because it was started in the checkout (or with it on PYTHONPATH). Start it elsewhere, or install in "
            "place with `pip install -e . --no-build-isolation`."
            if _CHECKOUT
            else "Likely causes: the package was built for another Python version (reinstall it with this one), or a "
            "system library it needs is older here than where it was built (build it here with `pip install .`)."
        )
    ) from error


def build_info() -> dict[str, Any]:
    """What this installation was built with.

    Returns:
        A dict: "version" (str), "cuda" (bool: CUDA kernels are compiled in; whether a GPU is present is
        `torch.cuda.is_available()`), "cuda_architectures" (list of str as CMake names them, e.g. "90-real"),
        "cuda_compiler" (str, empty for a CPU build) and "compiler" (str, the C++ compiler).
    """
    info = dict(_C.build_info())
    info["cuda_architectures"] = info["cuda_architectures"].split()
    return info
