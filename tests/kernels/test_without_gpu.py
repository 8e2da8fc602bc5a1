"""A CUDA call where it cannot run says why: no kernels in this build, or no driver or GPU on this machine."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

import oss_ext
from oss_ext import _C


@dataclass
class ClaimedOnCuda:
    """What the binding reads of a tensor; torch itself makes none on a device that is not there."""

    held: torch.Tensor
    device: torch.device = field(default_factory=lambda: torch.device("cuda", 0))

    @property
    def shape(self) -> torch.Size:
        return self.held.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.held.dtype

    def stride(self) -> tuple[int, ...]:
        return self.held.stride()

    def data_ptr(self) -> int:
        return self.held.data_ptr()


def test_error_says_why() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here, and this memory is not its own")
    cost = ClaimedOnCuda(torch.zeros(1, 3, 3))
    values = ClaimedOnCuda(torch.zeros(1, 3, dtype=torch.float64))
    backpointers = ClaimedOnCuda(torch.zeros(1, 3, dtype=torch.int32))
    wanted = "min_reduce: .*(driver|GPU)" if oss_ext.build_info()["cuda"] else "min_reduce: .*CPU kernels only"
    with pytest.raises(RuntimeError, match=wanted):
        _C.min_reduce(cost, False, values, backpointers, _C.Launch(1, 0, None))


def test_build_info() -> None:
    info = oss_ext.build_info()
    assert info["version"] == oss_ext.__version__
    assert info["compiler"]
    assert bool(info["cuda"]) == bool(info["cuda_architectures"]) == bool(info["cuda_compiler"])
