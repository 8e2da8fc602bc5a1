"""What every test shares: the devices, and how hypothesis runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

import oss_ext

settings.register_profile("default", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


# The tests' tensors are small: two pools of threads on two cores only get in each other's way.
torch.set_num_threads(1)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT as in a terminal: what a shell starts in the background ignores it, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def double() -> Iterator[None]:
    """float64 by default."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def cuda_missing() -> str | None:
    """Why CUDA tests cannot run here, or None."""
    if not oss_ext.build_info()["cuda"]:
        return "this build of oss_ext has CPU kernels only"
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    return None


def need_cuda() -> None:
    """Skips where CUDA cannot run; fails instead under OSS_REQUIRE_CUDA=1."""
    reason = cuda_missing()
    if reason is None:
        return
    if os.environ.get("OSS_REQUIRE_CUDA") == "1":
        pytest.fail(f"OSS_REQUIRE_CUDA=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cpu":
        return torch.device("cpu")
    need_cuda()
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="session")
def cuda_device() -> torch.device:
    """For tests that make sense on CUDA only (mark them gpu)."""
    need_cuda()
    return torch.device("cuda", torch.cuda.current_device())
