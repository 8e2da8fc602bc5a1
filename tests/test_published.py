"""Published tables and pasted lists: the numbers, what other counts become, what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.analytic import mixture, normal

from oss_ext import EDMModel, EpsilonModel, Schedule, published
from oss_ext.sigma_text import format_sigmas, parse_sigmas


def stable_diffusion() -> torch.Tensor:
    """Noise levels of timesteps 0..999 of Stable Diffusion: beta from 0.00085 to 0.012, linear in its root."""
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = np.cumprod(1 - beta)
    return torch.tensor(np.sqrt((1 - alphas) / alphas))


def comfyui(sigmas: list[float], steps: int) -> list[float]:
    """What ComfyUI's schedulers of these tables make of one at denoise 1: the logarithms interpolated from the end
    up, then the last level 0."""
    if len(sigmas) != steps + 1:
        places = np.linspace(0, 1, steps + 1)
        sigmas = np.exp(np.interp(places, np.linspace(0, 1, len(sigmas)), np.log(sigmas[::-1])))[::-1].tolist()
    return [*sigmas[:-1], 0.0]


@pytest.mark.parametrize("name", ["ays-sd15", "ays-sdxl"])
def test_ays_levels_are_those_of_its_timesteps(name: str) -> None:
    table = published.get(name)
    levels = stable_diffusion()[list(table.timesteps)]
    assert torch.allclose(torch.tensor(table.sigmas, dtype=torch.float64), levels, rtol=3e-9, atol=0)
    made = published.schedule(name)
    assert made.timesteps == pytest.approx(table.timesteps[:-1], abs=1e-5)
    assert made.parameterization == "epsilon" and made.sigmas[0] == pytest.approx(14.6146412293)


@pytest.mark.parametrize(
    ("name", "steps", "first", "last"),
    [
        ("ays-sd15", 10, 14.6146412293, 0.1515232662),
        ("ays-svd", 10, 700, 0.034),
        ("oss-flux", 10, 0.9968, 0.2808),
        ("oss-wan", 20, 1.0, 0.208),
        ("oss-chroma", 40, 0.992, 0.048),
    ],
)
def test_tables_begin_and_end_as_deployed(name: str, steps: int, first: float, last: float) -> None:
    made = published.schedule(name)
    assert made.steps == published.get(name).steps == steps
    assert made.sigmas[0] == pytest.approx(first, rel=1e-9)
    assert made.sigmas[-2] == pytest.approx(last, rel=1e-9)
    assert made.sigmas[-1] == 0 and not made.provenance.metadata["interpolated"]


@pytest.mark.parametrize("name", published.names())
@pytest.mark.parametrize("steps", [1, 3, 7, 10, 20, 40, 55])
def test_other_counts_are_what_comfyui_makes(name: str, steps: int) -> None:
    table = published.get(name)
    assert table.at(steps) == pytest.approx(comfyui(list(table.sigmas), steps), rel=1e-12)
    assert published.schedule(name, steps).sigmas.tolist() == pytest.approx(table.at(steps), rel=1e-9)


def test_appending_keeps_the_last_level() -> None:
    table = published.get("ays-sdxl")
    assert table.at(11, ending="append") == [*table.sigmas, 0.0]
    made = table.at(6, ending="append")
    assert len(made) == 7 and made[5] == pytest.approx(table.sigmas[-1]) and made[6] == 0


def test_a_table_in_the_terms_of_a_model() -> None:
    model = mixture().edm()
    made = published.schedule("ays-sd15", solver="dpmpp_2m", model=model)
    assert made.parameterization == "edm" and made.solver == "dpmpp_2m"
    assert torch.isfinite(made.sample(model, normal(3, 4))).all()
    with pytest.raises(ValueError, match="wanted at most"):
        published.schedule("ays-svd", model=model)  # 700, of a model that ends at 80
    assert published.schedule("ays-svd", 8, model=mixture().flow()).t[0] == pytest.approx(700 / 701)


def test_lists_from_elsewhere() -> None:
    made = published.from_sigmas([1.0, 0.9, 0.5], solver="ab2")
    assert made.t.tolist() == [1.0, 0.9, 0.5, 0.0] and made.solver == "ab2"
    # A1111 rounds AYS to 14.615, above the model's noisiest level
    rounded = published.from_sigmas([14.615, 6.475, 3.861, 0.029, 0.0], model="epsilon")
    assert rounded.timesteps[0] == 999 and rounded.timesteps[-1] == 0
    ve = published.from_sigmas([80.0, 1.0, 0.0], model="edm")
    assert ve.t.tolist() == pytest.approx([80 / 81, 0.5, 0.0]) and ve.sigmas.tolist() == pytest.approx([80, 1, 0])
    assert published.from_sigmas([3.0, 0.0], model="edm").steps == 1
    with pytest.raises(ValueError, match="at most 1"):
        published.from_sigmas([14.6, 1.0, 0.0], model="flow")
    with pytest.raises(ValueError, match="strictly descending"):
        published.from_sigmas([0.5, 0.9, 0.0])
    with pytest.raises(ValueError, match="wanted at most"):
        published.from_sigmas([20.0, 1.0, 0.0], model="epsilon")
    with pytest.raises(ValueError, match="model: got 'vp'"):
        published.from_sigmas([1.0, 0.0], model="vp")
    with pytest.raises(ValueError, match="none below 0"):
        published.from_sigmas([1.0, -0.1])


def test_schedules_survive_the_file(tmp_path) -> None:
    made = published.schedule("oss-flux", 8)
    made.save(tmp_path / "flux.json")
    read = Schedule.load(tmp_path / "flux.json")
    assert torch.equal(read.t, made.t) and read.provenance.metadata["published"] == "oss-flux"
    assert read.provenance.metadata["interpolated"] is True


def test_unknown_names_are_listed() -> None:
    with pytest.raises(ValueError, match=r"ays-sd15.*oss-chroma"):
        published.get("ays")
    with pytest.raises(ValueError, match="ending"):
        published.get("ays-svd").at(ending="keep")


@pytest.mark.parametrize(
    "text",
    [
        "1.0, 0.5, 1e-3, 0",
        "[1, .5, 0.001, 0.0]",
        "1 0.5\n0.001 0",
        "sigmas = torch.tensor([1., 0.5, 1E-3, 0], dtype=x)",
    ],
)
def test_lists_are_read_as_people_paste_them(text: str) -> None:
    assert parse_sigmas(text) == [1.0, 0.5, 0.001, 0.0]


@pytest.mark.parametrize("text", ["", "1, x", "1-3", "[1, 2], [3]", "1e999"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="sigmas"):
        parse_sigmas(text)


def test_numbers_are_written_with_fixed_decimals() -> None:
    values = [700.0, math.pi, 0.0291671582, 1e-3, 2e-7, 0.0]
    text = format_sigmas(values, decimals=9)
    assert text == "700.0, 3.141592654, 0.029167158, 0.001, 0.0000002, 0.0"
    assert parse_sigmas(text) == [round(value, 9) for value in values]
    with pytest.raises(ValueError, match="zero, wanted more"):
        format_sigmas(values, decimals=6)
    with pytest.raises(ValueError, match="the same, wanted more"):
        format_sigmas([0.50001, 0.50002], decimals=4)


def test_the_families_agree_with_models_of_the_same_range() -> None:
    sigma = stable_diffusion()
    model = EpsilonModel(lambda x, timestep: x, 1 / (1 + sigma**2))
    mine = published.schedule("ays-sd15", 6, model=model)
    assert torch.allclose(mine.timesteps, published.schedule("ays-sd15", 6).timesteps, atol=1e-6)
    video = published.schedule("ays-svd", model=EDMModel(lambda x, sigma: x, 0.002, 700))
    assert torch.equal(video.t, published.schedule("ays-svd").t)
