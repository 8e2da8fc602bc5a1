"""The ComfyUI nodes' logic, against oss_ext itself and ComfyUI's published formulae."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from helpers.analytic import ddpm_table, mixture, normal, shared_grid
from helpers.comfyui import (
    EPS,
    PACKAGE,
    FlowSampling,
    Wrapped,
    eps_guider,
    flow_guider,
    nodes_package,
    part,
    plan_of,
    run,
)

import oss_ext
from oss_ext import EpsilonModel, Schedule, dp_search, solvers
from oss_ext.schedule_file import Calibration

nodes_package()
formulas, levels, plan, sampler = (part(name) for name in ("formulas", "levels", "plan", "sampler"))
DIST = mixture()


def flow_schedule(solver: str = "ab2", steps: int = 7) -> Schedule:
    return Schedule.from_grid(oss_ext.grids.make("flow:shift=3", steps), solver)


def vp_schedule(solver: str = "dpmpp_2m", steps: int = 6) -> Schedule:
    model = DIST.vp(EpsilonModel)
    return Schedule.from_grid(oss_ext.grids.for_model("ddim", steps, model), solver, model)


def fitted(family: str, **options) -> Schedule:
    model = DIST.flow() if family == "flow" else DIST.vp(EpsilonModel)
    return dp_search(model, normal(6, 4, seed=3), 5, teacher_steps=30, solver="fitted", **options).schedule


def test_a_plan_holds_what_the_schedule_does(tmp_path: Path) -> None:
    schedule = replace(fitted("flow", start="free"), network_t=fitted("flow").t[:-1] * 0.99)
    made = plan_of(schedule, tmp_path)
    assert list(made.t) == schedule.t.tolist() and list(made.told) == schedule.told.tolist()
    assert [list(row) for row in made.coefficients] == schedule.coefficients.tolist()
    assert (made.carries, made.noise_scale) == (schedule.carries, schedule.noise_scale)
    assert (made.solver, made.family, made.steps) == (schedule.solver, schedule.parameterization, schedule.steps)
    plain = plan_of(flow_schedule(), tmp_path)
    assert plain.told == plain.t[:-1] and plain.noise_scale == plain.t[0]


def test_bad_files_are_refused_by_name(tmp_path: Path) -> None:
    flow_schedule().save(tmp_path / "s.json")
    text = (tmp_path / "s.json").read_text()
    for old, new, wanted in (
        ('"version": 1', '"version": 2', "version"),
        ('"oss_ext.schedule"', '"other"', "format"),
        ('"carries": "velocity"', '"carries": "score"', "carries"),
        ('"solver": "ab2",', "", "lacks 'solver'"),
        ("{", "{,", "not JSON"),
        ('"calibration": null', '"calibration": {"mode": "other"}', "calibration"),
        ('"calibration": null', '"calibration": {"mode": "gain", "gain": [1]}', "gain"),
        ('"solver"', '"future": 1, "solver"', "future.*update"),
    ):
        with pytest.raises(ValueError, match=rf"pasted.*{wanted}"):
            plan.parse(text.replace(old, new, 1), "pasted")
    content = asdict(plan.parse(text))
    for field, value in (
        ("t", (1.0, 0.5, 0.6, 0.0)),
        ("t", (1.0, 0.5)),
        ("told", (1.0,)),
        ("coefficients", ((1.0, 2.0),)),
        ("coefficients", ((1.0,),) * 7),
        ("noise_scale", float("nan")),
    ):
        with pytest.raises(ValueError, match=r"t|told|coefficients|finite"):
            plan.Plan(**{**content, field: value})


def test_folders_offer_the_counts_that_were_searched(tmp_path: Path) -> None:
    for k in (3, 5):
        flow_schedule(steps=k).save(tmp_path / f"steps_{k:02d}.json")
    assert plan.load(tmp_path).steps == 5 and plan.load(tmp_path, 3).steps == 3
    with pytest.raises(ValueError, match="3, 5"):
        plan.load(tmp_path, 4)
    with pytest.raises(ValueError, match="has 3"):
        plan.load(tmp_path / "steps_03.json", 4)
    flow_schedule(steps=3).save(tmp_path / "again.json")
    with pytest.raises(ValueError, match="several schedules of 3"):
        plan.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        plan.load(tmp_path / "none.json")


@pytest.mark.parametrize("solver", ["euler", "ab3", "dpmpp_2m", "unipc_3", "ipndm_4", "lms_4"])
@pytest.mark.parametrize("family", ["flow", "epsilon"])
def test_the_sampler_lands_where_the_schedule_does(tmp_path: Path, solver: str, family: str) -> None:
    noise = normal(3, 4)
    if family == "flow":
        schedule, guider, model = flow_schedule(solver), flow_guider(DIST), DIST.flow()
    else:
        schedule, guider, model = vp_schedule(solver), eps_guider(DIST, ddpm_table()), DIST.vp(EpsilonModel)
    out, wrapped = run(guider, plan_of(schedule, tmp_path), noise)
    torch.testing.assert_close(out, schedule.sample(model, noise), rtol=1e-5, atol=1e-5)
    assert [float(sigma[0]) for sigma, _ in wrapped.calls] == pytest.approx(schedule.sigmas[:-1].tolist(), rel=1e-6)


@pytest.mark.parametrize("start", ["fixed", "free"])
@pytest.mark.parametrize("family", ["flow", "epsilon"])
def test_fitted_coefficients_are_applied(tmp_path: Path, family: str, start: str) -> None:
    """Free starts too, whose noise has a fitted scale."""
    schedule, noise = fitted(family, start=start), normal(3, 4)
    assert (schedule.noise_scale != float(schedule.t[0])) == (start == "free")
    guider = flow_guider(DIST) if family == "flow" else eps_guider(DIST, ddpm_table())
    model = DIST.flow() if family == "flow" else DIST.vp(EpsilonModel)
    out, _ = run(guider, plan_of(schedule, tmp_path), noise)
    torch.testing.assert_close(out, schedule.sample(model, noise), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["flow", "edm"])
def test_network_times_of_their_own_are_told(tmp_path: Path, family: str) -> None:
    schedule = flow_schedule() if family == "flow" else Schedule.from_grid(shared_grid(7), "ab2", DIST.edm())
    schedule = replace(schedule, network_t=schedule.t[:-1] * 0.98)
    noise = normal(3, 4)
    guider = flow_guider(DIST) if family == "flow" else eps_guider(DIST, ddpm_table())
    wanted = schedule.sample(DIST.flow() if family == "flow" else DIST.edm(), noise)
    out, wrapped = run(guider, plan_of(schedule, tmp_path), noise)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    told = schedule.told if family == "flow" else schedule.told / (1 - schedule.told)
    assert [float(sigma[0]) for sigma, _ in wrapped.calls] == pytest.approx(told.tolist(), rel=1e-6)


CALIBRATIONS = {
    "gain": {"gain": (1.0, 1.02, 1.03, 0.98, 1.01, 1.0, 1.05)},
    "scale": {"quantiles": (0.1, 0.9), "low": (-1.2,) * 7, "high": (1.1, 1.2, 1.3, 1.2, 1.1, 1.0, 1.0)},
    "affine": {"quantiles": (0.1, 0.9), "low": (-1.2,) * 7, "high": (1.1, 1.2, 1.3, 1.2, 1.1, 1.0, 1.0)},
}


@pytest.mark.parametrize("mode", CALIBRATIONS)
@pytest.mark.parametrize("family", ["flow", "edm"])
def test_calibrated_states_are_calibrated(tmp_path: Path, family: str, mode: str) -> None:
    model = DIST.flow() if family == "flow" else DIST.edm()
    plain = flow_schedule() if family == "flow" else Schedule.from_grid(shared_grid(7), "dpmpp_2m", model)
    schedule = replace(plain, calibration=Calibration(mode=mode, **CALIBRATIONS[mode]))
    guider, noise = flow_guider(DIST) if family == "flow" else eps_guider(DIST, ddpm_table()), normal(3, 4)
    out, _ = run(guider, plan_of(schedule, tmp_path), noise)
    torch.testing.assert_close(out, schedule.sample(model, noise), rtol=1e-5, atol=1e-5)
    assert float((out - plain.sample(model, noise)).abs().max()) > 1e-3
    flat = torch.ones(2, 4)  # quantiles of no distance
    if mode != "gain":
        assert torch.equal(plan_of(schedule, tmp_path).calibration.apply(flat, 0), flat)
    assert levels.starting_at(plan_of(schedule, tmp_path), 0.3).calibration is None


def test_callbacks_and_arguments_pass_through(tmp_path: Path) -> None:
    seen = []
    made = plan_of(flow_schedule(), tmp_path)
    out, wrapped = run(flow_guider(DIST), made, normal(3, 4), callback=seen.append, extra_args={"seed": 7})
    assert [step["i"] for step in seen] == list(range(7)) and all(args == {"seed": 7} for _, args in wrapped.calls)
    assert all(sigma.shape == (3,) for sigma, _ in wrapped.calls)
    # the last denoised image plus what the last step adds is what comes back
    assert set(seen[-1]) >= {"x", "i", "sigma", "sigma_hat", "denoised"} and out.shape == (3, 4)


def test_parts_of_a_schedule(tmp_path: Path) -> None:
    """SplitSigmas: the second part goes on with what the first left, by the same sampler, from where it ended."""
    noise = normal(3, 4)
    for guider, schedule in (
        (flow_guider(DIST), flow_schedule("euler")),
        (flow_guider(DIST), flow_schedule("ab3")),
        (flow_guider(DIST), fitted("flow")),
        (eps_guider(DIST, ddpm_table()), vp_schedule("dpmpp_2m")),
        (eps_guider(DIST, ddpm_table()), fitted("epsilon")),
    ):
        made = plan_of(schedule, tmp_path)
        known = levels.Levels.of(guider.inner_model.model_sampling)
        sigmas = sampler.sigmas_of(made, known).double()
        whole, _ = run(guider, made, noise)
        function = sampler.sampler_of(made)
        wrapped = Wrapped(guider)
        high = wrapped.sample(function, sigmas[:4], noise, noise * 0)
        for _ in range(2):  # the second part alone again, too
            low = function(Wrapped(guider), high, sigmas[3:], disable=True)
            torch.testing.assert_close(low, whole, rtol=1e-6, atol=1e-6)
        if schedule.solver == "euler":  # which needs nothing from before
            again = sampler.sampler_of(made)(Wrapped(guider), high, sigmas[3:], disable=True)
            torch.testing.assert_close(again, whole, rtol=1e-6, atol=1e-6)
            continue
        with pytest.raises(ValueError, match="earlier predictions"):  # another node's sampler
            sampler.sampler_of(made)(Wrapped(guider), high, sigmas[3:], disable=True)
        with pytest.raises(ValueError, match="earlier predictions"):  # not where it ended
            function(Wrapped(guider), high + 0.1, sigmas[3:], disable=True)


def test_other_sigmas_and_other_models_are_refused(tmp_path: Path) -> None:
    made, noise = plan_of(flow_schedule(), tmp_path), normal(3, 4)
    with pytest.raises(ValueError, match="SIGMAS and the SAMPLER of one"):
        run(flow_guider(DIST), made, noise, sigmas=torch.linspace(1, 0, 8).double())
    with pytest.raises(ValueError, match="family 'flow'"):
        run(eps_guider(DIST, ddpm_table()), made, noise, sigmas=torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="family 'epsilon'"):
        run(flow_guider(DIST), plan_of(vp_schedule(), tmp_path), noise)
    short = EPS(ddpm_table()[:500])
    with pytest.raises(ValueError, match="made for another model"):
        levels.check_family(plan_of(vp_schedule(), tmp_path), levels.Levels(False), short)


def test_families_are_told_apart_by_their_noise() -> None:
    assert levels.Levels.of(FlowSampling()).flow and not levels.Levels.of(EPS(ddpm_table())).flow

    class Odd:
        def noise_scaling(self, sigma, noise, image, max_denoise=False):
            return 2 * sigma * noise + image

    with pytest.raises(ValueError, match="mixes 1 of the image with 1"):
        levels.Levels.of(Odd())


@pytest.mark.parametrize(("carries", "name"), [("velocity", "ab2"), ("x0", "dpmpp_2m"), ("epsilon", "ipndm_2")])
@pytest.mark.parametrize("top", [1.0, 0.9])
def test_formulas_are_those_of_oss_ext(carries: str, name: str, top: float) -> None:
    t = top * torch.tensor([1, 0.93, 0.8, 0.5, 0.42, 0.1, 0], dtype=torch.float64)
    wanted = solvers.along(solvers.get(name), t)
    rows = torch.tensor(formulas.coefficients(t.tolist(), carries), dtype=torch.float64)
    if name == "ipndm_2":  # deployed iPNDM steps to 0 with order 2 too
        assert wanted[-1, 2] != 0
    torch.testing.assert_close(rows, wanted, rtol=1e-12, atol=1e-12)
    euler = torch.tensor(formulas.coefficients(t.tolist(), "euler"), dtype=torch.float64)
    torch.testing.assert_close(euler, solvers.along(solvers.get("euler"), t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("denoise", [0.9, 0.6, 0.3, 0.05])
@pytest.mark.parametrize("family", ["flow", "epsilon"])
def test_denoise_starts_at_the_models_level_with_all_steps(tmp_path: Path, family: str, denoise: float) -> None:
    flow = family == "flow"
    schedule = flow_schedule("ab2") if flow else vp_schedule("dpmpp_2m")
    sampling = FlowSampling(3.0) if flow else EPS(ddpm_table())
    made = plan_of(schedule, tmp_path)
    start = levels.start_level(sampling, levels.Levels(flow), denoise)
    if flow:  # the shift that the model has in force
        assert start == pytest.approx(3 * denoise / (1 + 2 * denoise))
    else:  # its timestep
        s = float(((1 - ddpm_table()) / ddpm_table()).sqrt()[round(denoise * 999)])
        assert start == pytest.approx(s / (1 + s), rel=0.01)
    least = 0.0 if flow else levels.Levels(False).t(sampling.sigma_min)
    lower = levels.starting_at(made, start, least)
    assert lower.steps == made.steps and lower.t[0] == start and lower.t[-1] == 0
    assert all(a > b for a, b in zip(lower.t, lower.t[1:], strict=False)) and lower.t[-2] >= least * (1 - 1e-9)
    assert lower.noise_scale == start and lower.told == lower.t[:-1]
    assert levels.starting_at(made, made.t[0]) is made
    # an exact image-to-image result: a step for each, from the noised image
    guider = flow_guider(DIST) if flow else eps_guider(DIST, ddpm_table())
    image, noise = normal(3, 4, seed=9), normal(3, 4)
    out, wrapped = run(guider, lower, noise, image)
    again = Schedule.from_grid(torch.tensor(lower.t, dtype=torch.float64), "ab2" if flow else "dpmpp_2m")
    state = (1 - start) * image + start * noise
    wanted = again.sample(DIST.flow(), state / start)
    assert len(wrapped.calls) == made.steps
    torch.testing.assert_close(out, wanted, rtol=2e-5, atol=2e-5)


def test_denoise_reads_the_schedules_own_times() -> None:
    """Halfway along three steps 1, 0.8, 0.2, 0: at 0.5, which is step 1.5, then every half step."""
    made = plan.Plan((1.0, 0.8, 0.2, 0.0), (1.0, 0.8, 0.2), ((1.0, 0.0),) * 3, "velocity", 1.0, "euler", "flow")
    lower = levels.starting_at(made, 0.5)
    assert lower.t == pytest.approx((0.5, 0.2, 0.1, 0.0))
    assert [row[1] for row in lower.coefficients] == pytest.approx([-0.3, -0.1, -0.1])
    with pytest.raises(ValueError, match="denoise"):
        levels.start_level(FlowSampling(), levels.Levels(True), 0.0)
    with pytest.raises(ValueError, match="cleanest"):
        levels.starting_at(made, 0.05, 0.1)


def test_the_example_workflow_wires_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every input of our nodes given, every link to an output of the type that is wanted."""
    nodes = part("nodes")
    monkeypatch.setattr(nodes, "schedule_names", lambda: ["flux/"])
    graph = json.loads((PACKAGE / "example_workflow_api.json").read_text(encoding="utf-8"))
    ours = nodes_package().NODE_CLASS_MAPPINGS
    outputs = {"UNETLoader": ("MODEL",)}  # theirs that ours are wired to
    used = set()
    for node in graph.values():
        for value in node["inputs"].values():
            assert not isinstance(value, list) or value[0] in graph
        if node["class_type"] not in ours:
            continue
        used.add(node["class_type"])
        wanted = ours[node["class_type"]].INPUT_TYPES()["required"]
        assert set(node["inputs"]) == set(wanted)
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                source = graph[value[0]]["class_type"]
                kinds = ours[source].RETURN_TYPES if source in ours else outputs[source]
                assert kinds[value[1]] == wanted[name][0]
            elif isinstance(wanted[name][0], list):
                assert value in wanted[name][0]
    assert used == {"OSSLoadSchedule", "OSSSchedule"}
    kinds = ours["OSSSchedule"].RETURN_TYPES
    sample = next(node["inputs"] for node in graph.values() if node["class_type"] == "SamplerCustomAdvanced")
    assert kinds[sample["sigmas"][1]] == "SIGMAS" and kinds[sample["sampler"][1]] == "SAMPLER"


def test_a_schedule_is_used_without_oss_ext(tmp_path: Path) -> None:
    """The package imports, reads a file and samples in a Python that cannot import oss_ext."""
    flow_schedule().save(tmp_path / "s.json")
    program = f"""
import importlib.util, sys
sys.modules["oss_ext"] = None
spec = importlib.util.spec_from_file_location("nodes_here", {str(PACKAGE / "__init__.py")!r},
                                              submodule_search_locations=[{str(PACKAGE)!r}])
package = importlib.util.module_from_spec(spec)
sys.modules["nodes_here"] = package
spec.loader.exec_module(package)
from nodes_here import levels, plan, sampler
import torch
from types import SimpleNamespace as Space
sampling = Space(noise_scaling=lambda s, n, i, m=False: s * n + (1 - s) * i, sigma_max=1.0)
class Model:
    inner_model = Space(inner_model=Space(model_sampling=sampling))
    noise, latent_image = torch.ones(1, 2), None
    def __call__(self, x, sigma):
        return x * 0
made = plan.load({str(tmp_path / "s.json")!r})
out = sampler.sampler_of(made)(Model(), torch.ones(1, 2), sampler.sigmas_of(made, levels.Levels(True)), disable=True)
assert out.abs().max() < 1e-6, out
print(sorted(package.NODE_CLASS_MAPPINGS))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "OSSSchedule" in done.stdout and "OSSSearch" in done.stdout
