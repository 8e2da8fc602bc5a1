"""The search inside of ComfyUI's samplers, against dp_search on the same models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.analytic import ddpm_table, mixture, normal
from helpers.comfyui import Wrapped, eps_guider, flow_guider, nodes_package, part, plan_of, run

import oss_ext
from oss_ext import EpsilonModel, FlowModel, dp_search

nodes_package()
search = part("search")
DIST = mixture()


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
        again, _ = run(guider, plan_of(result.schedule, tmp_path), noise)
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
