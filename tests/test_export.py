"""Exports read back to the same numbers, run as the tools would run them, and refuse what they cannot carry."""

from __future__ import annotations

import json
import sys
import types
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.analytic import mixture, normal, shared_grid
from helpers.comfyui import manual_sigmas
from torch import Tensor
from typer.testing import CliRunner, Result

import oss_ext
from oss_ext import EpsilonModel, Schedule, cli, export, published
from oss_ext.export import make, targets
from oss_ext.schedule_file import Calibration

LISTS = [name for name in targets() if name != "json"]


def flow(solver: str = "euler") -> Schedule:
    return Schedule.from_grid(oss_ext.grids.make("flow:shift=3", 7), solver)


def vp(solver: str = "euler", *, whole: bool = False) -> Schedule:
    model = mixture().vp(EpsilonModel)
    return Schedule.from_grid(oss_ext.grids.for_model("ddim" if whole else "edm", 6, model), solver, model)


def rounded(values: Tensor, decimals: int = 10) -> list[float]:
    return [round(value, decimals) for value in values.tolist()]


@pytest.mark.parametrize("decimals", [6, 10])
def test_comfy_reads_back_the_same_numbers(decimals: int) -> None:
    for schedule in (flow(), vp(), published.schedule("ays-svd"), published.schedule("oss-wan", 30)):
        text = export(schedule, to="comfy", decimals=decimals)
        assert manual_sigmas(text) == rounded(schedule.sigmas, decimals)
        assert manual_sigmas(text)[-1] == 0 and "e" not in text
        graph = json.loads(export(schedule, to="comfy-api", decimals=decimals))
        assert manual_sigmas(graph["oss_sigmas"]["inputs"]["sigmas"]) == rounded(schedule.sigmas, decimals)
        assert graph["oss_sampler"]["inputs"] == {"sampler_name": "euler"}


def test_small_levels_are_written_without_an_exponent() -> None:
    schedule = published.from_sigmas([1.0, 1e-3, 2e-5, 0.0])
    assert export(schedule, to="comfy") == "1.0, 0.001, 0.00002, 0.0"
    with pytest.raises(ValueError, match="zero, wanted more"):
        export(schedule, to="comfy", decimals=4)


class Wrapper:
    """`model` and samplers as k-diffusion has them, on a distribution whose denoiser is known."""

    def __init__(self, denoised: Any) -> None:
        self._denoised = denoised

    def sample_euler(self, model: Any, x: Tensor, sigmas: Tensor) -> Tensor:
        for now, then in pairwise(sigmas):
            x = x + (then - now) * (x - self._denoised(x, now)) / now
        return x

    def sample_dpmpp_2m(self, model: Any, x: Tensor, sigmas: Tensor) -> Tensor:
        """DPM-Solver++(2M) (arXiv 2211.01095, Algorithm 2) in x0 + sigma eps, of order 1 where it starts and ends."""
        old, lam = None, -sigmas.log()
        for i in range(len(sigmas) - 1):
            new, h = self._denoised(x, sigmas[i]), lam[i + 1] - lam[i]
            used = new
            if old is not None and sigmas[i + 1] > 0:
                r = (lam[i] - lam[i - 1]) / h
                used = (1 + 1 / (2 * r)) * new - old / (2 * r)
            x, old = sigmas[i + 1] / sigmas[i] * x - torch.expm1(-h) * used, new
        return x

    def sample_lms(self, model: Any, x: Tensor, sigmas: Tensor, order: int = 4) -> Tensor:
        """k-diffusion's: the derivatives' Lagrange polynomial over the last levels, integrated over the step."""
        slopes: list[Tensor] = []
        levels = sigmas.numpy()
        for i in range(len(sigmas) - 1):
            slopes.insert(0, (x - self._denoised(x, sigmas[i])) / sigmas[i])
            used = levels[max(0, i - order + 1) : i + 1][::-1]
            for j, level in enumerate(used):
                others = np.delete(used, j)
                area = (
                    np.polynomial.Polynomial.fromroots(others).integ()
                    if len(others)
                    else np.polynomial.Polynomial([0, 1])
                )
                weight = (area(levels[i + 1]) - area(levels[i])) / np.prod(level - others)
                x = x + weight * slopes[j]
        return x


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "lms_4"])
def test_the_k_diffusion_text_runs_and_lands_where_the_schedule_does(solver: str) -> None:
    distribution = mixture()
    schedule = vp(solver)
    wrapper = Wrapper(lambda x, s: distribution.posterior_mean(x, x.new_ones(len(x)), s.expand(len(x))))
    noise = normal(5, 4)
    text = export(schedule, to="k-diffusion").replace("device=", "dtype=torch.float64, device=")
    names: dict[str, Any] = {
        "torch": torch,
        "k_diffusion": types.SimpleNamespace(sampling=wrapper),
        "noise": noise,
        "model": None,
    }
    exec(text, names)
    assert names["sigmas"].tolist() == rounded(schedule.sigmas)
    wanted = schedule.sample(mixture().vp(EpsilonModel), noise)
    assert torch.allclose(names["samples"], wanted, atol=1e-7)


@pytest.fixture
def web_ui(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """modules.sd_schedulers of A1111 and Forge, as far as an extension touches it."""

    class Scheduler(types.SimpleNamespace):
        def __init__(self, name: str, label: str, function: Any) -> None:
            super().__init__(name=name, label=label, function=function)

    module = types.SimpleNamespace(Scheduler=Scheduler, schedulers=[], schedulers_map={})
    monkeypatch.setitem(sys.modules, "modules", types.SimpleNamespace(sd_schedulers=module))
    return module


def test_the_a1111_text_registers_a_scheduler_of_all_budgets(web_ui: types.SimpleNamespace) -> None:
    model = mixture().vp(EpsilonModel)
    budgets = {k: Schedule.from_grid(oss_ext.grids.for_model("edm", k, model), "dpmpp_2m", model) for k in (3, 5)}
    made = make(budgets, "a1111")
    assert "DPM++ 2M" in made.where and "3, 5" in made.where and not made.notes
    exec(made.text, {})
    exec(made.text, {})  # a reloaded UI runs its scripts again
    assert len(web_ui.schedulers) == 1
    assert web_ui.schedulers_map["OSS"] is web_ui.schedulers_map["oss"] is web_ui.schedulers[0]
    for k, schedule in budgets.items():
        sigmas = web_ui.schedulers[0].function(k, 0.03, 14.6, "cpu")
        assert torch.allclose(sigmas.double(), schedule.sigmas, atol=1e-6) and sigmas[-1] == 0
    with pytest.raises(ValueError, match="no schedule of 4 steps, only of 3, 5"):
        web_ui.schedulers[0].function(4, 0.03, 14.6, "cpu")


@pytest.mark.parametrize(
    ("schedule", "beta"),
    [(flow(), None), (vp(), "linear"), (vp("dpmpp_2m", whole=True), "linear")],
    ids=["flow", "epsilon-euler", "epsilon-2m"],
)
def test_the_diffusers_text_makes_a_scheduler_of_these_levels(schedule: Schedule, beta: str | None) -> None:
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers")
    stock = (
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        if beta is None
        else diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule=beta)
    )
    seen: dict[str, Any] = {}

    class Pipe:
        scheduler = stock

        def __call__(self, *_: Any, **given: Any) -> None:
            if "sigmas" in given:
                self.scheduler.set_timesteps(sigmas=given["sigmas"])
            else:
                self.scheduler.set_timesteps(timesteps=given["timesteps"])
            seen.update(given)

    pipe = Pipe()
    exec(export(schedule, to="diffusers"), {"pipe": pipe})
    made = pipe.scheduler
    assert torch.allclose(made.sigmas.double(), schedule.sigmas, rtol=1e-4, atol=1e-7)
    if beta is None:
        assert len(seen["sigmas"]) == schedule.steps
    # its own steps, on the same denoiser
    noise, model = normal(4, 4), (mixture().flow() if beta is None else mixture().vp(EpsilonModel))
    x = noise * (float(schedule.t[0]) if beta is None else float(made.init_noise_sigma))
    for index, timestep in enumerate(made.timesteps):
        t = schedule.t[index].expand(len(x))
        if beta is None:
            out = model.velocity(x, t)
        else:
            out = model.fn(made.scale_model_input(x, timestep), timestep.expand(len(x)).double())
        x = made.step(out, timestep, x).prev_sample
    if "timesteps" in seen:  # DPM-Solver++ starts at unit noise, not at s of it
        top = float(schedule.sigmas[0])
        schedule = replace(schedule, noise_scale=(1 + top**2) ** 0.5 / (1 + top))
    assert torch.allclose(x, schedule.sample(model, noise), atol=1e-4)


def test_diffusers_without_whole_timesteps_is_refused() -> None:
    with pytest.raises(ValueError, match="timesteps are not whole"):
        export(vp("dpmpp_2m"), to="diffusers")


def test_json_carries_everything() -> None:
    schedule = replace(vp("ab3"), coefficients=normal(6, 5), network_t=vp().t[:-1] * 0.999, noise_scale=0.8)
    content = json.loads(export(schedule, to="json"))
    assert content["sigmas"] == schedule.sigmas.tolist() and content["t"] == schedule.t.tolist()
    assert content["coefficients"] == schedule.coefficients.tolist()
    assert content["network_t"] == schedule.network_t.tolist() and content["noise_scale"] == 0.8
    assert content["calibration"] is None
    gained = replace(schedule, calibration=Calibration(mode="gain", gain=(1.1,) * 6))
    assert json.loads(export(gained, to="json"))["calibration"]["gain"] == [1.1] * 6
    several = json.loads(export({6: schedule, 10: published.schedule("oss-flux")}, to="json"))
    assert [one["steps"] for one in several] == [6, 10]


@pytest.mark.parametrize("to", LISTS)
def test_lists_refuse_what_they_cannot_carry(to: str) -> None:
    plain = vp()
    with pytest.raises(ValueError, match="coefficients"):
        export(replace(plain, solver="fitted"), to=to)
    with pytest.raises(ValueError, match="coefficients"):
        export(replace(plain, coefficients=plain.coefficients * 1.01), to=to)
    with pytest.raises(ValueError, match="network_t"):
        export(replace(plain, network_t=plain.t[:-1] * 0.999), to=to)
    with pytest.raises(ValueError, match=r"starts at 0\.9 times"):
        export(replace(plain, noise_scale=0.9), to=to)
    with pytest.raises(ValueError, match="calibrates"):
        export(replace(plain, calibration=Calibration(mode="gain", gain=(1.0,) * 5 + (1.1,))), to=to)
    with pytest.raises(ValueError, match="score model"):
        export(replace(plain, parameterization="score"), to=to)
    if to != "a1111":
        with pytest.raises(ValueError, match="got 2 of them"):
            export({6: plain, 10: published.schedule("ays-sd15")}, to=to)


def test_k_diffusion_knows_no_flow_models() -> None:
    with pytest.raises(ValueError, match="flow model"):
        export(flow(), to="k-diffusion")


@pytest.mark.parametrize("to", LISTS)
def test_a_formula_that_the_target_lacks_is_said(to: str) -> None:
    with pytest.warns(UserWarning, match="no sampler that takes the steps of ab3"):
        text = export(vp("ab3"), to=to)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = export(vp("euler"), to=to)
    levels = export(vp("euler"), to="comfy")
    assert levels in text and levels in plain


def test_comfyuis_2m_on_flow_models_is_another_formula() -> None:
    with pytest.warns(UserWarning, match="dpmpp_2m on flow models"):
        export(flow("dpmpp_2m"), to="comfy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(vp("dpmpp_2m"), to="comfy")


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="to: got 'forge'"):
        export(flow(), to="forge")
    with pytest.raises(TypeError, match="schedule"):
        export([flow()], to="comfy")
    with pytest.raises(ValueError, match="one of 7 steps under 8"):
        export({8: flow()}, to="json")
    with pytest.raises(ValueError, match="decimals"):
        export(flow(), to="comfy", decimals=0)


def run(*arguments: Any, text: str | None = None) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], input=text)


def test_the_command_prints_the_text_alone(tmp_path: Path) -> None:
    schedule = flow()
    schedule.save(tmp_path / "s.json")
    done = run("export", tmp_path / "s.json", "--to", "comfy")
    assert done.exit_code == 0 and manual_sigmas(done.stdout) == rounded(schedule.sigmas)
    assert "ManualSigmas" in done.stderr and "ManualSigmas" not in done.stdout
    done = run("export", tmp_path / "s.json", "--to", "comfy", "--output", tmp_path / "s.txt", "--decimals", 4)
    assert done.exit_code == 0 and done.stdout == ""
    assert manual_sigmas((tmp_path / "s.txt").read_text()) == rounded(schedule.sigmas, 4)
    done = run("export", tmp_path / "s.json", "--to", "comfy", "--steps", 5)
    assert done.exit_code == 2 and "has 7" in done.stderr
    flow("ab2").save(tmp_path / "ab2.json")
    done = run("export", tmp_path / "ab2.json", "--to", "comfy")
    assert done.exit_code == 0 and "note:" in done.stderr and "ab2" in done.stderr
    done = run("export", tmp_path / "none.json", "--to", "comfy")
    assert done.exit_code == 2 and "ays-sd15" in done.stderr


def test_the_command_takes_folders_and_tables(tmp_path: Path) -> None:
    for k in (3, 4):
        Schedule.from_grid(oss_ext.grids.make("flow", k)).save(tmp_path / f"steps_{k:02d}.json")
    assert run("export", tmp_path, "--to", "comfy").exit_code == 2
    done = run("export", tmp_path, "--to", "comfy", "--steps", 4)
    assert manual_sigmas(done.stdout) == [1.0, 0.75, 0.5, 0.25, 0.0]
    done = run("export", tmp_path, "--to", "comfy", "--steps", 5)
    assert done.exit_code == 2 and "3, 4" in done.stderr
    done = run("export", tmp_path, "--to", "a1111")
    assert done.exit_code == 0 and "3: [" in done.stdout and "4: [" in done.stdout
    done = run("export", "ays-svd", "--to", "comfy", "--steps", 5)
    assert manual_sigmas(done.stdout) == pytest.approx(published.get("ays-svd").at(5), abs=1e-9)


def test_import_makes_schedule_files(tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    assert run("import", "1.0, 0.5, 1e-3", "--out", out).exit_code == 0
    assert Schedule.load(out).t.tolist() == [1.0, 0.5, 0.001, 0.0]
    assert run("import", "-", "--out", out, "--family", "epsilon", text="14.6146412293 1 0").exit_code == 0
    assert Schedule.load(out).parameterization == "epsilon"
    (tmp_path / "list.txt").write_text("[80, 1, 0]\n", encoding="utf-8")
    assert run("import", tmp_path / "list.txt", "--out", out, "--family", "edm", "--solver", "dpmpp_2m").exit_code == 0
    assert Schedule.load(out).solver == "dpmpp_2m"
    assert run("import", "oss-flux", "--out", out, "--steps", 6).exit_code == 0
    assert Schedule.load(out).provenance.metadata["published"] == "oss-flux"
    assert run("import", "1, 0.5", "--out", out, "--steps", 6).exit_code == 2
    done = run("import", "oss-flax", "--out", out)
    assert done.exit_code == 2 and "oss-flax" in done.stderr
    # what export wrote, import reads
    schedule = flow()
    text = export(schedule, to="comfy")
    assert run("import", text, "--out", out).exit_code == 0
    assert Schedule.load(out).t.tolist() == rounded(schedule.t)


def test_shared_grid_is_legal_everywhere() -> None:
    """The families' one grid exports to the same list whatever the family."""
    models = mixture().families()
    texts = {
        name: export(Schedule.from_grid(shared_grid(5), "euler", model), to="comfy")
        for name, model in models.items()
        if name != "flow"
    }
    assert len(set(texts.values())) == 1
