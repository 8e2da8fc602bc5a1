"""Structure and distances of sets of images, beside closed forms."""

from __future__ import annotations

import pytest
import torch

from oss_ext.metrics_images import features_of, frechet_distance, kernel_distance, ssim


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_ssim_of_constants_is_its_luminance_term() -> None:
    a, b = torch.full((2, 3, 16, 16), 0.5), torch.full((2, 3, 16, 16), 0.1)
    c = (0.01 * 2) ** 2
    wanted = (2 * 0.5 * 0.1 + c) / (0.5**2 + 0.1**2 + c)
    torch.testing.assert_close(ssim(a, b), torch.full((2,), wanted), rtol=1e-4, atol=0)
    noisy = a + 0.3 * normal(2, 3, 16, 16).float()
    assert bool((ssim(noisy, a) < 0.5).all()) and ssim(noisy, noisy).tolist() == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(a[..., :8], b[..., :8])


def test_frechet_distance_of_gaussians() -> None:
    a, b = normal(400, 1), 3 + 2 * normal(300, 1, seed=1)
    wanted = float((a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2)
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_is_repeatable_and_unbiased() -> None:
    a, b, far = normal(200, 4), normal(200, 4, seed=1), normal(200, 4, seed=2) + 2
    state = torch.random.get_rng_state()
    first = kernel_distance(a, b)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert kernel_distance(a, b) == first
    assert abs(first[0]) < 3 * first[1]
    assert kernel_distance(a, far)[0] > 20 * first[1]


def test_features() -> None:
    images = normal(5, 3, 4, 4).float()
    found = features_of(images, lambda part: part.mean(dim=(2, 3)), batch_size=2)
    torch.testing.assert_close(found, images.mean(dim=(2, 3)))
    with pytest.raises(ValueError, match="finite"):
        features_of(images, lambda part: part.log())
    for bad, reference in ((found[:1], found), (found, found[:, :2])):
        with pytest.raises(ValueError, match=r"features|reference"):
            frechet_distance(bad, reference)
