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
from helpers.comfyui import EPS, PACKAGE, FlowSampling, Wrapped, eps_guider, flow_guider, nodes_package, part

import oss_ext
from oss_ext import EpsilonModel, FlowModel, Schedule, dp_search, solvers

nodes_package()
formulas, levels, plan, sampler, search = (part(name) for name in ("formulas", "levels", "plan", "sampler", "search"))
SHAPE = (4,)
DIST = mixture()


def flow_schedule(solver: str = "ab2", steps: int = 7) -> Schedule:
    return Schedule.from_grid(oss_ext.grids.make("flow:shift=3", steps), solver)


def vp_schedule(solver: str = "dpmpp_2m", steps: int = 6) -> Schedule:
    model = DIST.vp(EpsilonModel)
    return Schedule.from_grid(oss_ext.grids.for_model("ddim", steps, model), solver, model)


def fitted(family: str, **options) -> Schedule:
    model = DIST.flow() if family == "flow" else DIST.vp(EpsilonModel)
    return dp_search(model, normal(6, 4, seed=3), 5, teacher_steps=30, solver="fitted", **options).schedule


def of(schedule: Schedule, folder: Path):
    schedule.save(folder / "s.json")
    return plan.load(folder / "s.json")


def run(guider, made, noise, image=None, sigmas=None, **options):
    wrapped = Wrapped(guider)
    image = torch.zeros_like(noise) if image is None else image
    known = levels.Levels.of(guider.inner_model.model_sampling)
    sigmas = sampler.sigmas_of(made, known).double() if sigmas is None else sigmas
    return wrapped.sample(sampler.sampler_of(made), sigmas, noise, image, **options), wrapped


def test_a_plan_holds_what_the_schedule_does(tmp_path: Path) -> None:
    schedule = replace(fitted("flow", start="free"), network_t=fitted("flow").t[:-1] * 0.99)
    made = of(schedule, tmp_path)
    assert list(made.t) == schedule.t.tolist() and list(made.told) == schedule.told.tolist()
    assert [list(row) for row in made.coefficients] == schedule.coefficients.tolist()
    assert (made.carries, made.noise_scale) == (schedule.carries, schedule.noise_scale)
    assert (made.solver, made.family, made.steps) == (schedule.solver, schedule.parameterization, schedule.steps)
    plain = of(flow_schedule(), tmp_path)
    assert plain.told == plain.t[:-1] and plain.noise_scale == plain.t[0]


def test_bad_files_are_refused_by_name(tmp_path: Path) -> None:
    flow_schedule().save(tmp_path / "s.json")
    text = (tmp_path / "s.json").read_text()
    for old, new, wanted in (
        ('"version": 1', '"version": 2', "version"),
        ('"oss_ext.schedule"', '"other"', "format"),
        ('"carries": "velocity"', '"carries": "score"', "carries"),
        ('"solver"', '"slover"', "solver"),
        ("{", "{,", "not JSON"),
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
    out, wrapped = run(guider, of(schedule, tmp_path), noise)
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
    out, _ = run(guider, of(schedule, tmp_path), noise)
    torch.testing.assert_close(out, schedule.sample(model, noise), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["flow", "edm"])
def test_network_times_of_their_own_are_told(tmp_path: Path, family: str) -> None:
    schedule = flow_schedule() if family == "flow" else Schedule.from_grid(shared_grid(7), "ab2", DIST.edm())
    schedule = replace(schedule, network_t=schedule.t[:-1] * 0.98)
    noise = normal(3, 4)
    guider = flow_guider(DIST) if family == "flow" else eps_guider(DIST, ddpm_table())
    wanted = schedule.sample(DIST.flow() if family == "flow" else DIST.edm(), noise)
    out, wrapped = run(guider, of(schedule, tmp_path), noise)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    told = schedule.told if family == "flow" else schedule.told / (1 - schedule.told)
    assert [float(sigma[0]) for sigma, _ in wrapped.calls] == pytest.approx(told.tolist(), rel=1e-6)


def test_callbacks_and_arguments_pass_through(tmp_path: Path) -> None:
    seen = []
    made = of(flow_schedule(), tmp_path)
    out, wrapped = run(flow_guider(DIST), made, normal(3, 4), callback=seen.append, extra_args={"seed": 7})
    assert [step["i"] for step in seen] == list(range(7)) and all(args == {"seed": 7} for _, args in wrapped.calls)
    assert all(sigma.shape == (3,) for sigma, _ in wrapped.calls)
    # the last denoised image plus what the last step adds is what comes back
    assert set(seen[-1]) >= {"x", "i", "sigma", "sigma_hat", "denoised"} and out.shape == (3, 4)


def test_parts_of_a_schedule(tmp_path: Path) -> None:
    """SplitSigmas: its first steps always, its last only where no earlier prediction is needed."""
    noise = normal(3, 4)
    for family, guider, schedule in (
        ("flow", flow_guider(DIST), flow_schedule("euler")),
        ("epsilon", eps_guider(DIST, ddpm_table()), vp_schedule("euler")),
    ):
        made = of(schedule, tmp_path)
        known = levels.Levels.of(guider.inner_model.model_sampling)
        sigmas = sampler.sigmas_of(made, known).double()
        whole, _ = run(guider, made, noise)
        high, _ = run(guider, made, noise, sigmas=sigmas[:4])
        low = sampler.sampler_of(made)(Wrapped(guider), high, sigmas[3:], disable=True)
        torch.testing.assert_close(low, whole, rtol=1e-6, atol=1e-6, msg=family)
    two = of(flow_schedule("ab2"), tmp_path)
    sigmas = sampler.sigmas_of(two, levels.Levels(True)).double()
    run(flow_guider(DIST), two, noise, sigmas=sigmas[:4])
    with pytest.raises(ValueError, match="earlier predictions"):
        run(flow_guider(DIST), two, noise, sigmas=sigmas[3:])


def test_other_sigmas_and_other_models_are_refused(tmp_path: Path) -> None:
    made, noise = of(flow_schedule(), tmp_path), normal(3, 4)
    with pytest.raises(ValueError, match="SIGMAS and the SAMPLER of one"):
        run(flow_guider(DIST), made, noise, sigmas=torch.linspace(1, 0, 8).double())
    with pytest.raises(ValueError, match="family 'flow'"):
        run(eps_guider(DIST, ddpm_table()), made, noise, sigmas=torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="family 'epsilon'"):
        run(flow_guider(DIST), of(vp_schedule(), tmp_path), noise)
    short = EPS(ddpm_table()[:500])
    with pytest.raises(ValueError, match="made for another model"):
        levels.check_family(of(vp_schedule(), tmp_path), levels.Levels(False), short)


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
    made = of(schedule, tmp_path)
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


def begin(wrapped, function):
    """guider.sample with a batch of one."""
    noise, top = normal(1, 4), wrapped.inner_model.inner_model.model_sampling.sigma_max
    return wrapped.sample(function, torch.tensor([top, 0.0]), noise, noise * 0)


@pytest.mark.parametrize(("solver", "batch"), [("fitted", None), ("euler", 3), ("auto", 1)])
@pytest.mark.parametrize("family", ["flow", "epsilon"])
def test_the_search_inside_a_sampler_finds_what_dp_search_does(
    tmp_path: Path, family: str, solver: str, batch: int | None
) -> None:
    noise = normal(4, 4, seed=5)
    guider = flow_guider(DIST, 1.0) if family == "flow" else eps_guider(DIST, ddpm_table())
    settings = search.Settings(steps=3, teacher_steps=20, solver=solver, grid="flow" if family == "flow" else "ddim")
    kept, ticks = [], []
    wrapped = Wrapped(guider)

    def find(models, x):
        options = {"batch_size": batch, "tick": lambda *made: ticks.append(made), "metadata": {"seed": 5}}
        kept.append(search.search(models, noise, settings, **options))
        return kept[0].endpoints[3]

    made = search.inside([wrapped], begin, find)
    model = DIST.flow() if family == "flow" else DIST.vp(EpsilonModel)
    wanted = dp_search(
        model,
        noise,
        3,
        teacher_steps=20,
        solver=solver,
        grid=settings.grid,
        nodes="any" if family == "flow" else "integer",
    )
    (result,) = kept
    for k in (1, 2, 3):
        mine, theirs = result.schedules[k], wanted.schedules[k]
        torch.testing.assert_close(mine.t, theirs.t, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mine.sigmas, theirs.sigmas, rtol=1e-4, atol=1e-5)
    assert result.schedule.parameterization == family
    assert result.schedule.provenance.metadata == {"seed": 5}
    torch.testing.assert_close(made, wanted.endpoints[3].to(made), rtol=1e-3, atol=1e-3)
    assert ticks[-1][0] == ticks[-1][1] == sum(len(sigma) for sigma, _ in wrapped.calls)
    assert all(bool((sigma == sigma[0]).all()) for sigma, _ in wrapped.calls)  # one level a call
    # what was found is what the sampler node then samples
    if solver != "auto":
        again, _ = run(guider, of(result.schedule, tmp_path), noise)
        torch.testing.assert_close(again, made, rtol=1e-4, atol=1e-4)


def test_several_prompts_share_a_schedule() -> None:
    """Three prompts, two of them a distribution of their own: the schedule of dp_search with that condition."""
    others = [mixture(seed) for seed in (0, 1, 2)]
    noise, settings = normal(5, 4, seed=5), search.Settings(steps=3, teacher_steps=16, solver="fitted", grid="flow")
    wrapped = [Wrapped(flow_guider(one, 1.0)) for one in others]
    kept = []

    def find(models, x):
        assert [model for model, _ in models] == wrapped and x.shape == (1, 4)
        kept.append(search.search(models, noise, settings, batch_size=2))
        return kept[0].endpoints[3]

    made = search.inside(wrapped, begin, find)

    def by_prompt(x, t, prompt):
        out = torch.empty_like(x)
        for k, one in enumerate(others):
            out[prompt == k] = one.flow().velocity(x[prompt == k], t[prompt == k])
        return out

    wanted = dp_search(
        FlowModel(by_prompt), noise, 3, teacher_steps=16, solver="fitted", cond={"prompt": torch.arange(5) % 3}
    )
    for k in (1, 2, 3):
        torch.testing.assert_close(kept[0].schedules[k].t, wanted.schedules[k].t)
        torch.testing.assert_close(kept[0].schedules[k].coefficients, wanted.schedules[k].coefficients)
    torch.testing.assert_close(made, wanted.endpoints[3])
    assert all(len(sigma) <= 2 for one in wrapped for sigma, _ in one.calls)
    evaluations = [sum(len(sigma) for sigma, _ in one.calls) for one in wrapped]
    assert evaluations[0] == evaluations[1] == 2 * evaluations[2]


def test_the_models_own_grid_has_its_shift() -> None:
    wrapped = Wrapped(flow_guider(DIST, 3.0))
    model = search.ComfyModel([(wrapped, {})])
    torch.testing.assert_close(search.grid_of(model, "model", 12), oss_ext.grids.make("flow:shift=3", 12))
    vp = search.ComfyModel([(Wrapped(eps_guider(DIST, ddpm_table())), {})])
    t = search.grid_of(vp, "model", 10)
    assert float(t[0]) == vp.t_max and len(t) == 11
    steps = vp.timesteps(t[:-1])
    assert torch.equal(steps, steps.round()) and torch.equal(vp.flow_table[steps.long()], t[:-1])
    assert isinstance(model, oss_ext.Denoiser) and isinstance(vp, oss_ext.Denoiser)


def test_the_search_stops_at_nan_and_at_interruptions() -> None:
    guider = flow_guider(DIST)
    settings = search.Settings(steps=2, teacher_steps=6, solver="euler")
    wrapped, noise = Wrapped(guider), normal(2, 4)

    class Interrupted(Exception):
        pass

    def tick(made: int, total: int) -> None:
        if made > 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        search.search([(wrapped, {})], noise, settings, tick=tick)
    guider.denoised = lambda x, s: x * float("nan")
    with pytest.raises(ValueError, match="NaN or inf at flow time 1"):
        search.search([(wrapped, {})], noise, settings)


def test_denoiser_over_comfyui_agrees_with_oss_exts() -> None:
    x, t = normal(6, 4), torch.tensor([0.9, 0.5, 0.5, 0.2, 0.1, 0.9], dtype=torch.float64)
    for guider, theirs in ((flow_guider(DIST), DIST.flow()), (eps_guider(DIST, ddpm_table()), DIST.edm())):
        mine = search.ComfyModel([(Wrapped(guider), {})])
        torch.testing.assert_close(mine.velocity(x, t), theirs.velocity(x, t), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(mine.sigmas(t), theirs.sigmas(t))
    assert isinstance(DIST.flow(), FlowModel)


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
