"""The bundled classifier: its file, its features, and the distances that torchmetrics makes of them."""

from __future__ import annotations

import json
from importlib import resources

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from oss_ext import zoo
from oss_ext.zoo import photos
from oss_ext.zoo.classifier import Classifier, ClassifierConfig

PLACES = 4


@pytest.fixture(scope="module")
def features() -> Classifier:
    return zoo.features()


@pytest.fixture(scope="module")
def crops() -> photos.Crops:
    return photos.Crops()


@pytest.fixture(scope="module")
def sets(crops: photos.Crops) -> list[torch.Tensor]:
    """Two sets of 300 real crops."""
    return [crops.draw(300, torch.Generator().manual_seed(seed))[0] for seed in (1, 2)]


def card() -> dict:
    resource = resources.files("oss_ext.zoo") / "photo32_features.safetensors"
    with resources.as_file(resource) as path:
        assert path.stat().st_size < 300_000
        with safe_open(path, framework="pt") as file:
            assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118
            return json.loads(file.metadata()["card"])


def frechet(features: Classifier, first: torch.Tensor, second: torch.Tensor) -> float:
    """torchmetrics' distance."""
    metric = FrechetInceptionDistance(feature=features)
    metric.update(first, real=True)
    metric.update(second, real=False)
    return float(metric.compute())


def test_file_is_small_and_says_how_good_it_is(features: Classifier) -> None:
    record = card()
    assert record["classes"] == photos.class_names()
    assert len(record["commit"]) == 40 and set(record["commit"]) <= set("0123456789abcdef")
    assert record["parameter_count"] == sum(p.numel() for p in features.parameters())
    assert not any(p.requires_grad for p in features.parameters()) and not features.training
    assert record["loss"]["photograph_right"] > 0.97 and record["loss"]["place_right"] > 0.7


def test_recorded_accuracy_is_that_of_the_weights(features: Classifier, crops: photos.Crops) -> None:
    """On other crops than the record's; 1000 of them leave 1.5 % of spread."""
    boxes = crops.draw_boxes(1000, torch.Generator().manual_seed(7))
    photograph, both = features.logits(features(crops.cut(boxes)))
    place = boxes.label * PLACES**2 + crops.cells(boxes, PLACES)
    right = [float((a.argmax(dim=1) == b).float().mean()) for a, b in ((photograph, boxes.label), (both, place))]
    record = card()["loss"]
    assert right == pytest.approx([record["photograph_right"], record["place_right"]], abs=0.06)
    torch.testing.assert_close(photograph.softmax(1), both.softmax(1).unflatten(1, (9, 16)).sum(2))


def test_takes_bytes_and_samples_alike(features: Classifier, sets: list[torch.Tensor]) -> None:
    images = zoo.to_image(sets[0][:20]).movedim(-1, 1)
    out = features(images)
    assert out.shape == (20, features.num_features) and out.dtype == torch.float32
    torch.testing.assert_close(features(images / 127.5 - 1), out, atol=1e-6, rtol=0)
    torch.testing.assert_close(features(sets[0][:20]), out, atol=0.1 * float(out.std()), rtol=0)
    outside = torch.full((1, 3, 32, 32), 1.7)
    assert torch.equal(features(outside), features(torch.ones(1, 3, 32, 32)))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 32, 32, 3), ValueError, r"images: got shape \[2, 32, 32, 3\], wanted \[batch, 3, 32, 32\]"),
        (torch.zeros(3, 32, 32), ValueError, r"images: got shape \[3, 32, 32\]"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.int64), TypeError, "images: got torch.int64"),
    ],
)
def test_names_the_bad_argument(images: torch.Tensor, error: type, message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        Classifier(ClassifierConfig())(images)
    with pytest.raises(ValueError, match=r"^dtype: got"):
        zoo.features(dtype=torch.int32)


def test_pictures_take_gradients(features: Classifier, sets: list[torch.Tensor]) -> None:
    images = sets[0][:2].clone().requires_grad_(True)
    features(images).square().sum().backward()
    assert images.grad is not None and float(images.grad.abs().max()) > 0


def test_frechet_distance_is_the_formula(features: Classifier, sets: list[torch.Tensor]) -> None:
    """Fréchet distance of two normal distributions (Heusel et al., arXiv 1706.08500), with the root by eigenvalues."""
    with torch.inference_mode():
        first, second = (features(images).double() for images in (sets[0], sets[1] * 0.7))
    a, b = first.T.cov(), second.T.cov()
    root = torch.linalg.eigvals(a @ b).sqrt().real.sum()
    wanted = (first.mean(0) - second.mean(0)).square().sum() + a.trace() + b.trace() - 2 * root
    assert frechet(features, sets[0], sets[1] * 0.7) == pytest.approx(float(wanted), rel=1e-3)


def test_distance_grows_with_what_is_wrong(features: Classifier, sets: list[torch.Tensor]) -> None:
    """More blur, more noise: farther from the same crops unharmed. No dark crops: farther than other real crops are."""
    real, other = sets
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    blurred = F.avg_pool2d(real, 3, 1, 1, count_include_pad=False)
    for worse in (
        [torch.lerp(real, blurred, weight) for weight in (0.25, 0.5, 1.0)],
        [real + scale * noise for scale in (0.03, 0.1, 0.3)],
    ):
        distances = [frechet(features, real, images) for images in worse]
        assert distances == sorted(distances) and distances[-1] > 4 * distances[0] > 0
    bright = other[other.mean(dim=(1, 2, 3)) > -0.2]
    assert frechet(features, real, bright) > 2 * frechet(features, real, other[: len(bright)])


def test_kernel_distance_takes_it(features: Classifier, sets: list[torch.Tensor]) -> None:
    values = []
    for second in (sets[1], sets[1] + 0.3 * torch.randn(sets[1].shape, generator=torch.Generator().manual_seed(0))):
        metric = KernelInceptionDistance(feature=features, subsets=10, subset_size=150)
        metric.update(sets[0], real=True)
        metric.update(second, real=False)
        values.append(float(metric.compute()[0]))
    assert abs(values[0]) < 0.3 * values[1]


def test_features_use_their_dimensions(features: Classifier, sets: list[torch.Tensor]) -> None:
    """Not the eight directions that nine classes alone would leave."""
    with torch.inference_mode():
        value = torch.linalg.eigvalsh(features(torch.cat(sets)).T.cov())
    assert float(value.sum().square() / value.square().sum()) > 8


def test_device_agrees_with_cpu(features: Classifier, sets: list[torch.Tensor], device: torch.device) -> None:
    there = zoo.features(device=device)
    torch.testing.assert_close(there(sets[0][:50].to(device)).cpu(), features(sets[0][:50]), atol=1e-3, rtol=1e-3)
    half = zoo.features(device=device, dtype=torch.bfloat16)(sets[0][:50].to(device))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.cpu().float(), features(sets[0][:50]), atol=0.2, rtol=0.2)
