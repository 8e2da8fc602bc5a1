"""The bundled models: their files, loader, noises, training data and training script."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from oss_ext import grids, zoo
from oss_ext.models import Denoiser
from oss_ext.zoo import photos
from oss_ext.zoo.classifier import Classifier, ClassifierConfig
from oss_ext.zoo.model import NOISE_SEEDS
from oss_ext.zoo.network import NetworkConfig, PatchTransformer

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "train_zoo.py"
LIMIT = 8_000_000


NAMES = ["photo32", "photo32_vp"]


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> zoo.ZooModel:
    return zoo.load(request.param)


@pytest.fixture(scope="module")
def crops() -> photos.Crops:
    return photos.Crops()


def euler(model: zoo.ZooModel, count: int, steps: int) -> torch.Tensor:
    nodes = grids.for_model("flow", steps, model).tolist()
    noise, cond = model.noise(count, split="heldout")
    x = nodes[0] * noise
    with torch.inference_mode():
        for t, after in pairwise(nodes):
            x = x - (t - after) * model.velocity(x, torch.full((count,), t, dtype=torch.float64), cond)
    return x


def known(model: zoo.ZooModel, t: torch.Tensor) -> torch.Tensor:
    """Flow times t as the model was trained on them: its nearest timesteps'."""
    if model.flow_table is None:
        return t
    return model.flow_table[(t[:, None] - model.flow_table).abs().argmin(dim=1)]


# The file


@pytest.mark.parametrize("name", NAMES)
def test_file_is_small_half_precision_and_carries_its_record(name: str) -> None:
    resource = resources.files("oss_ext.zoo") / f"{name}.safetensors"
    with resources.as_file(resource) as path:
        assert path.stat().st_size <= LIMIT
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            card = json.loads(file.metadata()["card"])
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert all(value.isfinite().all() for value in weights.values())
    assert card["parameter_count"] == sum(value.numel() for value in weights.values())
    assert card["classes"] == photos.class_names() == list(card["data"]["photographs"])
    assert card["steps"] > 1000 and card["batch"] > 0 and isinstance(card["seed"], int)
    assert len(card["commit"]) == 40 and set(card["commit"]) <= set("0123456789abcdef")
    assert len(card["loss"]["validation_by_t"]) == 10
    assert 0 < card["loss"]["validation"] < 0.2 * card["loss"]["validation_untrained"]
    assert {"torch", "device", "minutes", "optimizer", "architecture", "date"} <= card.keys()


def test_recorded_loss_is_that_of_the_weights(model: zoo.ZooModel, crops: photos.Crops) -> None:
    """Other crops and noises than in training, so only near: 400 of them leave a few percent of spread."""
    generator = torch.Generator().manual_seed(5)
    images, label = crops.draw(400, generator)
    noise = torch.randn(images.shape, generator=generator)
    t = known(model, (torch.arange(400).double() + torch.rand(400, generator=generator)) / 400)
    state = torch.lerp(images, noise, t.float()[:, None, None, None])
    with torch.inference_mode():
        loss = F.mse_loss(model.velocity(state, t, {"label": label}), noise - images)
    assert float(loss) == pytest.approx(model.card["loss"]["validation"], rel=0.25)


# The loader


def test_names() -> None:
    assert zoo.names() == NAMES
    assert [zoo.load(name).name for name in NAMES] == NAMES


def test_load_describes_itself(model: zoo.ZooModel) -> None:
    assert isinstance(model, Denoiser)
    assert (model.shape, model.guidance_scale) == ((3, 32, 32), 1.0)
    assert model.describe()["name"] == model.name
    assert model.describe()["parameterization"] == model.parameterization
    assert len(model.classes) == 9
    assert model.parameter_count == model.card["parameter_count"]
    assert not any(p.requires_grad for p in model.network.parameters())
    assert not model.network.training
    json.dumps(model.describe())


def test_the_two_are_of_different_kinds() -> None:
    flow, vp = (zoo.load(name) for name in NAMES)
    assert (flow.parameterization, flow.t_max, flow.t_min, flow.flow_table) == ("flow", 1.0, 0.0, None)
    assert (vp.parameterization, len(vp.flow_table)) == ("epsilon", 1000)
    assert vp.sigmas(torch.tensor([vp.t_min, vp.t_max])).tolist() == pytest.approx([0.02917, 14.6146], rel=2e-4)
    assert vp.timesteps(vp.flow_table[[0, 500, 999]]).tolist() == [0, 500, 999]
    assert not torch.equal(flow.network.position, vp.network.position)


def test_denoiser_is_what_the_network_says(model: zoo.ZooModel) -> None:
    """fn on the family's own scale, turned into velocity by hand."""
    x, cond = model.noise(4)
    t = known(model, torch.linspace(0.1, 0.9, 4, dtype=torch.float64))
    if model.parameterization == "flow":
        wanted = model.denoiser.fn(x, t.float(), **cond)
    else:
        shaped = t.float()[:, None, None, None]
        scale = (shaped.square() + (1 - shaped).square()).rsqrt()  # a + s
        noise = model.denoiser.fn(scale * x, model.timesteps(t).float(), **cond)
        wanted = (noise - x) / (1 - shaped)
    torch.testing.assert_close(model.velocity(x, t, cond), wanted, atol=1e-4, rtol=1e-4)


def test_velocity_is_smooth_between_timesteps() -> None:
    """Half way it is the mean of the neighbours', to a tenth of what they differ by or rounding."""
    model = zoo.load("photo32_vp", dtype=torch.float64)
    noise, cond = model.noise(9)
    below, above = model.flow_table[3:999:111], model.flow_table[4:1000:111]
    x = below[:, None, None, None] * noise
    first, last, middle = (model.velocity(x, t, cond) for t in (below, above, (below + above) / 2))
    change = (last - first).flatten(1).norm(dim=1)
    assert (change > 0).all()
    assert ((middle - (first + last) / 2).flatten(1).norm(dim=1) < 0.1 * change).all()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "photo64"}, "name"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"dtype": torch.int64}, "dtype"),
    ],
)
def test_load_names_the_bad_argument(arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: got"):
        zoo.load(**arguments)


def test_evaluation_names_the_bad_argument(model: zoo.ZooModel) -> None:
    x, cond = model.noise(2)
    t = torch.full((2,), 0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match="label"):
        model.velocity(x, t)
    with pytest.raises(ValueError, match=r"label.*int64 \[2\]"):
        model.velocity(x, t, {"label": cond["label"][:1]})
    with pytest.raises(TypeError, match=r"x: got torch.float64"):
        model.velocity(x.double(), t, cond)
    with pytest.raises(ValueError, match=r"x: got shape \[2, 3, 16, 32\]"):
        model.velocity(x[:, :, :16], t, cond)


def test_guidance_is_the_formula_on_two_evaluations(model: zoo.ZooModel) -> None:
    x, cond = model.noise(5)
    t = torch.linspace(0.2, model.t_max, 5, dtype=torch.float64)
    label = model.velocity(x, t, cond)
    null = model.velocity(x, t, {"label": torch.full((5,), len(model.classes))})
    assert (label - null).abs().max() > 1e-2
    for scale in (3.0, 0.0, 1.5):
        guided = zoo.load(model.name, guidance_scale=scale).velocity(x, t, cond)
        torch.testing.assert_close(guided, null + scale * (label - null), atol=1e-4, rtol=0)


def test_samples_of_a_batch_do_not_meet(model: zoo.ZooModel) -> None:
    x, cond = model.noise(6)
    t = torch.linspace(0.1, model.t_max, 6, dtype=torch.float64)
    together = model.velocity(x, t, cond)
    for k in range(6):
        alone = model.velocity(x[k : k + 1], t[k : k + 1], {"label": cond["label"][k : k + 1]})
        torch.testing.assert_close(alone[0], together[k], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_other_dtypes_agree(model: zoo.ZooModel, dtype: torch.dtype, tolerance: float) -> None:
    x, cond = model.noise(4)
    t = torch.linspace(0.25, model.t_max, 4, dtype=torch.float64)
    other = zoo.load(model.name, dtype=dtype)
    noise, _ = other.noise(4)
    assert noise.dtype == dtype
    out = other.velocity(noise, t, cond)
    wanted = model.velocity(x, t, cond)
    assert out.dtype == dtype
    assert (out.float() - wanted).square().mean().sqrt() < tolerance * wanted.square().mean().sqrt()


def test_images_take_gradients_and_weights_take_none(model: zoo.ZooModel) -> None:
    x, cond = model.noise(2)
    x.requires_grad_(True)
    model.velocity(x, torch.full((2,), 0.5, dtype=torch.float64), cond).square().sum().backward()
    assert x.grad is not None and float(x.grad.abs().max()) > 0


def test_device_agrees_with_cpu(model: zoo.ZooModel, device: torch.device) -> None:
    there = zoo.load(model.name, device=device)
    x, cond = model.noise(9, split="heldout")
    y, there_cond = there.noise(9, split="heldout")
    assert y.device.type == torch.device(device).type
    assert torch.equal(x, y.cpu()) and torch.equal(cond["label"], there_cond["label"].cpu())
    t = torch.linspace(0.1, model.t_max, 9, dtype=torch.float64)
    torch.testing.assert_close(there.velocity(y, t, there_cond).cpu(), model.velocity(x, t, cond), atol=1e-3, rtol=0)


# The samples


def test_samples_look_like_images_of_their_class(model: zoo.ZooModel, crops: photos.Crops) -> None:
    """Range and spread of the pixels, what the classifier takes them for, and the mean colour, nearest to whose it is.

    Mean colours of real crops fall nearest to their own class for three in five; one in nine is chance.
    """
    samples = euler(model, count=36, steps=20)
    assert samples.abs().quantile(0.99) < 1.2
    real, label = crops.draw(1800, torch.Generator().manual_seed(3))
    assert float(samples.std()) == pytest.approx(float(real.std()), rel=0.25)
    colour = torch.stack([real[label == k].mean(dim=(0, 2, 3)) for k in range(9)])
    guess = torch.cdist(samples.mean(dim=(2, 3)), colour).argmin(dim=1)
    assert float((guess == torch.arange(36) % 9).float().mean()) > 0.35
    classifier = zoo.features()  # knows nearly every real crop
    guess = classifier.logits(classifier(samples))[0].argmax(dim=1)
    assert float((guess == torch.arange(36) % 9).float().mean()) > 0.8


def test_guided_samples_are_taken_for_their_class(model: zoo.ZooModel) -> None:
    classifier = zoo.features()
    samples = euler(zoo.load(model.name, guidance_scale=3.0), count=18, steps=10)
    guess = classifier.logits(classifier(samples))[0].argmax(dim=1)
    assert float((guess == torch.arange(18) % 9).float().mean()) > 0.8


def test_to_image() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0]).expand(2, 3, 5, 4)
    image = zoo.to_image(x)
    assert image.dtype == torch.uint8 and image.shape == (2, 5, 4, 3)
    assert image[0, 0, :, 0].tolist() == [0, 0, 128, 255]
    with pytest.raises(ValueError, match="x: got shape"):
        zoo.to_image(torch.zeros(4, 32, 32))


# The noises


def test_noise_is_what_its_seed_says(model: zoo.ZooModel) -> None:
    for split, seed in NOISE_SEEDS.items():
        noise, cond = model.noise(20, split=split)
        assert torch.equal(noise[:7], model.noise(7, split=split)[0])
        for k in (0, 6, 19):
            expected = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(seed + k))
            assert torch.equal(noise[k], expected)
        assert cond["label"].tolist() == [k % 9 for k in range(20)]


def test_splits_share_no_noise(model: zoo.ZooModel) -> None:
    noise = torch.cat([model.noise(128, split=split)[0] for split in NOISE_SEEDS]).flatten(1)
    cosine = F.normalize(noise) @ F.normalize(noise).T - torch.eye(256)
    assert cosine.abs().max() < 6 / noise.shape[1] ** 0.5
    assert abs(float(noise.mean())) < 0.01 and float(noise.std()) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"count": 0}, "count"), ({"count": 10**9 + 1}, "count"), ({"count": 4, "split": "test"}, "split")],
)
def test_noise_names_the_bad_argument(model: zoo.ZooModel, arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: got"):
        model.noise(**arguments)


# The training data


def box(label: int, top: float, left: float, side: float, flip_x: bool = False, flip_y: bool = False) -> photos.Boxes:
    number = [torch.tensor([value], dtype=torch.float64) for value in (top, left, side)]
    return photos.Boxes(torch.tensor([label]), *number, torch.tensor([flip_x]), torch.tensor([flip_y]))


@pytest.mark.parametrize("label", range(9))
def test_whole_pixel_crop_is_the_block_mean(crops: photos.Crops, label: int) -> None:
    """Against torch's own area average, at the far corner, where an index error would show."""
    image = torch.tensor(photos.PHOTOS[label].read()).permute(2, 0, 1)[None].double() / 127.5 - 1
    height, width = image.shape[2:]
    wanted = F.interpolate(image[:, :, height - 128 :, width - 128 :], size=32, mode="area").float()
    got = crops.cut(box(label, height - 128, width - 128, 128))
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)
    flipped = crops.cut(box(label, height - 128, width - 128, 128, flip_x=True, flip_y=True))
    torch.testing.assert_close(flipped, wanted.flip(2, 3), atol=1e-6, rtol=0)


def test_fractional_crop_is_the_area_mean(crops: photos.Crops) -> None:
    """A box of 80 pixels at quarter-pixel places, against the mean of the photograph repeated 4 x 4."""
    image = torch.tensor(photos.PHOTOS[2].read()).permute(2, 0, 1)[None].double() / 127.5 - 1
    fine = image.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    wanted = F.avg_pool2d(fine[:, :, 4 * 30 + 1 : 4 * 110 + 1, 4 * 50 + 3 : 4 * 130 + 3], 10).float()
    torch.testing.assert_close(crops.cut(box(2, 30.25, 50.75, 80.0)), wanted, atol=1e-6, rtol=0)


def test_crops_repeat_by_seed_and_differ_without(crops: photos.Crops) -> None:
    first, label = crops.draw(256, torch.Generator().manual_seed(1))
    again, label_again = crops.draw(256, torch.Generator().manual_seed(1))
    other, _ = crops.draw(256, torch.Generator().manual_seed(2))
    assert torch.equal(first, again) and torch.equal(label, label_again)
    assert not torch.equal(first, other)
    assert first.abs().max() <= 1 + 1e-6
    assert sorted(set(label.tolist())) == list(range(9))


def test_boxes_lie_inside_their_photograph(crops: photos.Crops) -> None:
    boxes = crops.draw_boxes(20_000, torch.Generator().manual_seed(0))
    size = torch.tensor([photo.read().shape[:2] for photo in photos.PHOTOS])[boxes.label]
    short = size.min(dim=1).values
    assert (boxes.top >= 0).all() and (boxes.left >= 0).all()
    assert (boxes.top + boxes.side <= size[:, 0]).all() and (boxes.left + boxes.side <= size[:, 1]).all()
    assert (boxes.side >= 64 - 1e-9).all() and (boxes.side <= short / 2 + 1e-9).all()
    assert set(boxes.label[boxes.flip_y].tolist()) == {k for k, p in enumerate(photos.PHOTOS) if not p.upright}


def test_places_are_equally_likely_and_where_the_box_is(crops: photos.Crops) -> None:
    corners = [crops.cells(box(7, top, left, 100), 4) for top in (0, 327) for left in (0, 540)]
    assert torch.cat(corners).tolist() == [0, 3, 12, 15]  # china is 427 x 640
    assert crops.cells(box(7, 327 * 0.6, 540 * 0.3, 100), 4).tolist() == [2 * 4 + 1]
    boxes = crops.draw_boxes(16_000, torch.Generator().manual_seed(0))
    share = torch.bincount(crops.cells(boxes, 4), minlength=16) / 16_000
    torch.testing.assert_close(share, torch.full((16,), 1 / 16), atol=6 * (1 / 16 / 16_000) ** 0.5, rtol=0)


# The network and its training


def test_untrained_network_predicts_zero() -> None:
    config = NetworkConfig(width=32, depth=2, heads=2, classes=3)
    network = PatchTransformer(config)
    x = torch.randn(2, 3, 32, 32)
    out = network(x, torch.tensor([0.3, 1.0]), torch.tensor([0, network.null_label]))
    assert out.shape == x.shape and torch.count_nonzero(out) == 0
    assert NetworkConfig(**config.to_dict()) == config


@pytest.mark.parametrize(("field", "value"), [("image_size", 30), ("width", 190), ("time_features", 7)])
def test_config_names_the_bad_field(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=field):
        NetworkConfig(**{field: value})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch"), [("photo32", 8), ("photo32_vp", 8), ("photo32_features", 64)])
def test_training_script_learns_and_writes(tmp_path: Path, name: str, batch: int) -> None:
    options = (
        f"--steps 30 --warmup 5 --batch {batch} --validation 32 --pool 200 --sheet-steps 2 --device cpu --commit none"
    )
    command = [sys.executable, str(SCRIPT), "--model", name, *options.split(), "--out", str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=300)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}.{end}" for end in ("json", "png", "safetensors")
    ]
    with safe_open(tmp_path / f"{name}.safetensors", framework="pt") as file:
        card = json.loads(file.metadata()["card"])
        network = (
            Classifier(ClassifierConfig(**card["architecture"]))
            if name == "photo32_features"
            else PatchTransformer(NetworkConfig(**card["architecture"]))
        )
        network.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    assert json.loads((tmp_path / f"{name}.json").read_text()) == card
    assert card["steps"] == 30 and card["commit"] == "none"
    assert card["loss"]["validation"] < 0.95 * card["loss"]["validation_untrained"]
