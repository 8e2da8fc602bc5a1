"""PSNR against values worked out by hand."""

import builtins
import math
from typing import Any

import pytest
import torch

from oss_ext.metrics import pooled_psnr, psnr


def test_hand_computed() -> None:
    reference = torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    images = reference.clone()
    images[0] += 0.2  # mse 0.04, 4 / 0.04 = 100: 20 dB
    images[1, 0, 0, 0] = 2.0  # mse 1, 4 / 1 = 4: 10 log10 4
    images[2, 0, 0, :] = 0.002  # mse 2e-6, 4 / 2e-6 = 2e6
    wanted = torch.tensor([20.0, 10 * math.log10(4), 10 * math.log10(2e6)], dtype=torch.float64)
    torch.testing.assert_close(psnr(images, reference), wanted, rtol=0, atol=1e-5)


def test_pooled_is_the_psnr_of_the_mean_error() -> None:
    each = torch.tensor([[20.0, 10 * math.log10(4)], [math.inf, 20.0]])  # errors 0.04 and 1; 0 and 0.04
    wanted = torch.tensor([10 * math.log10(4 / 0.52), 10 * math.log10(4 / 0.02)], dtype=torch.float64)
    torch.testing.assert_close(pooled_psnr(each), wanted, rtol=0, atol=1e-5)


def test_data_range_and_equal_samples() -> None:
    reference = torch.ones(2, 5)
    images = reference.clone()
    images[0] += 0.1
    result = psnr(images, reference, data_range=1.0)
    assert result[0].item() == pytest.approx(20.0, abs=1e-4)
    assert result[1].item() == math.inf


def test_half_types_are_widened() -> None:
    reference = torch.zeros(1, 4, dtype=torch.bfloat16)
    result = psnr(reference + 0.25, reference)
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(10 * math.log10(64), abs=1e-4)


@pytest.mark.parametrize(
    ("images", "reference", "options", "error", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), {}, ValueError, r"\[2, 3\] and \[2, 4\]"),
        (torch.zeros(3), torch.zeros(3), {}, ValueError, "wanted one shape"),
        (torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2, 3), {}, TypeError, "images: got torch.uint8"),
        (torch.zeros(2, 3), None, {}, TypeError, "reference: got NoneType"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"data_range": 0.0}, ValueError, "data_range: got 0.0"),
    ],
)
def test_bad_input(
    images: Any, reference: Any, options: dict[str, float], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        psnr(images, reference, **options)


def test_missing_extra_names_the_install(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("torchmetrics"):
            raise ImportError("No module named 'torchmetrics'")
        return load(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "oss-ext\[demo\]"'):
        psnr(torch.zeros(1, 2), torch.ones(1, 2))
