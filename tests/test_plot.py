"""Figures and sheets: real PNGs of the sizes they claim, which show what they were given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

import oss_ext
from oss_ext import Schedule, grids, plot


def uniform(steps: int) -> Schedule:
    return Schedule.from_grid(grids.make("flow", steps))


def pixels(path: Path) -> np.ndarray:
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return imread(path)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1


def test_schedules_show_what_they_were_given(tmp_path: Path) -> None:
    shifted = [Schedule.from_grid(grids.make("flow:shift=4", k)) for k in (2, 5)]
    plot.plot_schedules(shifted, tmp_path / "a.png")
    plot.plot_schedules([uniform(2), uniform(5)], tmp_path / "b.png")
    plot.plot_schedules(dict(enumerate(shifted)), tmp_path / "again.png")
    a, b, again = (pixels(tmp_path / f"{name}.png") for name in ("a", "b", "again"))
    assert a.shape == b.shape == (520, 1200, 4)
    assert not np.array_equal(a, b)
    assert np.array_equal(a, again)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "again.png", "b.png"]


def test_schedules_draws_every_node() -> None:
    figure = plot.plot_schedules([uniform(3), Schedule.from_grid(grids.make("flow:shift=4", 2))])
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines) == ["uniform", "2 steps", "3 steps"]
    np.testing.assert_allclose(lines["2 steps"].get_xydata(), [[0, 1], [0.5, 0.8], [1, 0]], atol=1e-12)


def test_schedules_of_a_result(tmp_path: Path) -> None:
    model = oss_ext.FlowModel(lambda x, t: -x * t.view(-1, 1))
    noise = torch.randn(2, 3, dtype=torch.float64)
    plot.plot_schedules(oss_ext.dp_search(model, noise, 3, teacher_steps=8), tmp_path / "a.svg")
    assert "<svg" in (tmp_path / "a.svg").read_text(encoding="utf-8")
    with pytest.raises(TypeError, match="per_sample"):
        plot.plot_schedules(oss_ext.dp_search(model, noise, 3, teacher_steps=8, share="per_sample"))


@pytest.mark.parametrize("given", [[], 3, ["flow"]])
def test_schedules_rejects(given: Any) -> None:
    with pytest.raises(TypeError, match="schedules: wanted"):
        plot.plot_schedules(given)


def test_comparison_shows_pixels_titles_and_psnr(tmp_path: Path, images: torch.Tensor) -> None:
    near = images + 0.02  # mse 4e-4, 4 / 4e-4 = 1e4: 40 dB
    columns = {"Teacher": images, "OSS, 5 steps": near}
    figure = plot.plot_comparison(columns, tmp_path / "a.png", scale=4, blocks=1, labels=["p", "q", "r", "s"])
    # 2 margins + name + 2 tiles + gap; 2 margins + head + 4 (tile + caption)
    assert pixels(tmp_path / "a.png").shape == (2 * 14 + 62 + 4 * (32 + 22), 2 * 14 + 20 + 2 * 32 + 6, 4)
    texts = [text.get_text() for text in figure.texts]
    assert texts.count("40.0 dB") == 4
    assert {"Teacher", "OSS", "5 steps", "all 4: 40.0 dB", "p", "q", "r", "s"} <= set(texts)


def test_comparison_upscales_nearest(tmp_path: Path, images: torch.Tensor) -> None:
    plot.plot_comparison({"Teacher": images, "same": images}, tmp_path / "a.png", scale=4, blocks=1)
    shown = pixels(tmp_path / "a.png")
    tile = shown[14 + 62 : 14 + 62 + 32, 14 : 14 + 32, :3]
    wanted = ((images[0].movedim(0, -1) + 1) * 127.5).round().numpy() / 255
    np.testing.assert_allclose(tile, np.kron(wanted, np.ones((4, 4, 1))), atol=1e-6)


def test_comparison_differs_with_its_input_and_takes_blocks(tmp_path: Path, images: torch.Tensor) -> None:
    plot.plot_comparison({"a": images, "b": images.flip(3)}, tmp_path / "a.png", blocks=2)
    plot.plot_comparison({"a": images, "b": images.flip(2)}, tmp_path / "b.png", blocks=2)
    a, b = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    assert a.shape == b.shape
    assert not np.array_equal(a, b)


@pytest.mark.parametrize(
    ("columns", "options", "error", "message"),
    [
        ({"a": torch.zeros(2, 3, 4, 4)}, {}, ValueError, "at least two titles"),
        ({"a": torch.zeros(2, 3, 4, 4), "b": torch.zeros(2, 3, 4, 5)}, {}, ValueError, "wanted one shape"),
        ({"a": torch.zeros(2, 4, 4, 4), "b": torch.zeros(2, 4, 4, 4)}, {}, ValueError, r"columns\['a'\]: got"),
        ({"a": None, "b": torch.zeros(2, 4, 4, 4)}, {}, TypeError, r"columns\['a'\]: got NoneType"),
        ({"a": torch.zeros(2, 3, 4, 4), "b": torch.ones(2, 3, 4, 4)}, {"labels": ["x"]}, ValueError, "labels: got 1"),
        ({"a": torch.zeros(2, 3, 4, 4), "b": torch.ones(2, 3, 4, 4)}, {"scale": 0}, ValueError, "scale: got"),
    ],
)
def test_comparison_rejects(columns: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plot.plot_comparison(columns, **options)


def test_sheet_is_exact(tmp_path: Path) -> None:
    images = torch.tensor([-1.0, 0.0, 1.0, 5.0, -5.0]).view(5, 1, 1, 1).expand(5, 1, 2, 2)
    plot.write_sheet(images, tmp_path / "sheet.png", scale=3)
    shown = (pixels(tmp_path / "sheet.png")[..., :3] * 255).round()
    assert shown.shape == (2 * 6 + 2, 3 * 6 + 2 * 2, 3)
    assert [shown[0, x, 0] for x in (0, 5, 6, 7, 8, 16)] == [0, 0, 255, 255, 128, 255]
    assert [shown[13, x, 0] for x in (0, 8, 16)] == [255, 0, 255]


def test_nothing_half_written(tmp_path: Path, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    def broken(self: Figure, path: Path, **options: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    target = tmp_path / "a.png"
    target.write_bytes(b"before")
    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(KeyboardInterrupt):
        plot.plot_comparison({"a": images, "b": images}, target)
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"wanted a file name that ends in \.png"):
        plot.plot_schedules(uniform(2), tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        plot.plot_schedules(uniform(2), tmp_path / "no" / "a.png")
    with pytest.raises(ValueError, match="is a folder"):
        (tmp_path / "b.png").mkdir()
        plot.plot_schedules(uniform(2), tmp_path / "b.png")
