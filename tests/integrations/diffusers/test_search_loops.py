"""A search's loops: pipeline classes that nobody has seen, several calls by turns, errors, Ctrl-C, and what is said
before the work begins."""

from __future__ import annotations

import copy
import logging
import signal
import threading
from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed, which diffusers' pipelines import")

import diffusers
from helpers import tiny_pipelines as tiny

import oss_ext
from oss_ext.integrations.diffusers import applied, family_of, search

SMALL = {"samples": 2, "teacher_steps": 8, "progress": False}


class Strange(diffusers.DiffusionPipeline):
    """A loop of its own. habit: how it treats its scheduler's timesteps and latents."""

    def __init__(self, network, scheduler, habit="plain"):
        super().__init__()
        self.register_modules(network=network, scheduler=scheduler)
        self.habit = habit

    @torch.no_grad()
    def __call__(self, count=2, power=1.0, generator=None, num_inference_steps=7, callback=None):
        self.tag = "left by the call"
        scheduler = self.scheduler
        if self.habit == "two loops":
            scheduler = copy.deepcopy(scheduler)
        scheduler.set_timesteps(num_inference_steps)
        timesteps = scheduler.timesteps
        if self.habit == "copies":
            timesteps = timesteps.clone()
        if self.habit == "lists":
            timesteps = timesteps.tolist()
        embedded = (scheduler.timesteps / 1000).clone()  # what "tables" feeds its network
        x = torch.randn(count, 3, 5, generator=generator)
        for i, t in enumerate(timesteps):
            level = embedded[i] if self.habit == "tables" else torch.as_tensor(t) / 1000
            output = self.network(x, level.expand(count)) * power
            x = scheduler.step(output, t, x, return_dict=False)[0]
            if self.habit == "rounds":
                x = x.to(torch.bfloat16).float()
            if self.habit == "inpaints":
                x = torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], 1)
            if self.habit == "ends early" and i == 4:
                break
        return (x,)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(5, 5, generator=generator))
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self.evaluations, self.fail_at = 0, None

    def forward(self, x, t):
        self.evaluations += 1
        if self.fail_at is not None and self.evaluations >= self.fail_at[0]:
            raise self.fail_at[1]
        t = t.reshape(-1, 1, 1).to(x)
        return torch.tanh(x @ self.weight * (1 + 2 * t)) + torch.sin(7 * t) * x


def strange(habit="plain"):
    return Strange(Network(), diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0), habit)


def noise(seed, count=2):
    return torch.randn(count, 3, 5, generator=torch.Generator().manual_seed(seed))


def plain(pipe, seeds=(3,), power=1.0, **options):
    family = family_of(pipe.scheduler)
    model = family.denoiser(lambda x, t: pipe.network(x, t / 1000) * power)
    return oss_ext.dp_search(model, torch.cat([noise(seed) for seed in seeds]), **options)


def assert_same(found, wanted):
    assert torch.equal(found.t, wanted.t)
    for budget, schedule in wanted.schedules.items():
        assert torch.equal(found.schedules[budget].t, schedule.t)
        torch.testing.assert_close(found.schedules[budget].coefficients, schedule.coefficients)
        torch.testing.assert_close(found.endpoints[budget], wanted.endpoints[budget], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("habit", ["plain", "copies", "lists", "tables"])
@pytest.mark.parametrize("loop", ["auto", "planned"])
def test_an_unknown_pipeline(habit, loop):
    """Its loop may read timesteps as they are written or keep a copy: the network is told the right ones."""
    pipe = strange(habit)
    found = search(pipe, 3, solver="unipc", seed=3, loop=loop, **SMALL)
    wanted = plain(pipe, steps=3, solver="unipc", teacher_steps=8, grid="flow:shift=2")
    assert_same(found, wanted)
    with applied(pipe, found.schedule):
        out = pipe(generator=torch.Generator().manual_seed(3))[0]
    torch.testing.assert_close(out, found.endpoints[3], rtol=1e-5, atol=1e-5)


def test_a_loop_that_rounds_its_latents():
    """To the network's dtype and back (Mochi): states are kept as they were before."""
    pipe = strange("rounds")
    found = search(pipe, 3, seed=3, **SMALL)
    wanted = plain(pipe, steps=3, solver="unipc", teacher_steps=8, grid="flow:shift=2")
    torch.testing.assert_close(found.teacher, wanted.teacher, rtol=3e-2, atol=3e-2)
    with applied(pipe, found.schedule):
        out = pipe(generator=torch.Generator().manual_seed(3))[0]
    model = family_of(pipe.scheduler).denoiser(
        lambda x, t: pipe.network(x if float(t[0]) == 1000 else x.to(torch.bfloat16).float(), t / 1000)
    )
    torch.testing.assert_close(out, found.schedule.sample(model, noise(3)).to(torch.bfloat16).float())


@pytest.mark.parametrize(("habit", "most"), [("plain", 7), ("copies", 20)])
def test_what_a_search_costs_beside_its_evaluations(habit, most):
    """One step of every call and the trial; copied timesteps cost a step more for every stage, not for every node."""
    pipe = strange(habit)
    found = search(pipe, 4, seed=3, **SMALL)
    assert 0 < pipe.network.evaluations - found.nfe["total"] <= most


def test_auto_and_a_free_start_through_the_loop():
    pipe = strange()
    found = search(pipe, 2, solver="auto", samples=4, calls=[{"count": 4}], teacher_steps=8, seed=3, progress=False)
    model = family_of(pipe.scheduler).denoiser(lambda x, t: pipe.network(x, t / 1000))
    wanted = oss_ext.dp_search(model, noise(3, 4), 2, solver="auto", teacher_steps=8, grid="flow:shift=2")
    assert [row["solver"] for row in found.table] == [row["solver"] for row in wanted.table]
    assert_same(found, wanted)
    free = search(pipe, 2, solver="fitted", start="free", seed=3, **SMALL)
    with applied(pipe, free.schedule):
        assert pipe.scheduler.start_scale == pytest.approx(free.schedule.noise_scale)


@pytest.mark.parametrize(
    "options",
    [
        {"calibration": "affine"},
        {"store": "host"},
        {"beam": 2, "solver": "fitted"},
        {"share": "per_sample"},
        {"cost": "x0"},
        {"cost": "x0", "share": "per_sample"},
    ],
)
def test_options_of_the_search(options):
    pipe = strange()
    options = {"solver": "unipc", **options}
    weight = torch.linspace(0.5, 1.5, 15).reshape(3, 5)
    more = {} if options.get("calibration") or options.get("share") else {"weight": weight}
    found = search(pipe, 3, seed=3, **SMALL, **options, **more)
    wanted = plain(pipe, steps=3, teacher_steps=8, grid="flow:shift=2", **options, **more)
    for budget in (1, 2, 3):
        torch.testing.assert_close(found.endpoints[budget], wanted.endpoints[budget], rtol=1e-4, atol=1e-4)
    assert found.nfe == wanted.nfe and ("cost" in found.nfe) == ("cost" in options)
    if options.get("calibration"):
        with (
            applied(pipe, found.schedule),
            pytest.warns(UserWarning, match="as it was, where the .* wants it calibrated"),
        ):
            pipe(generator=torch.Generator().manual_seed(3))
        made = tiny.flux()
        found = search(made.pipe, 3, seed=3, **SMALL, **options, **made.call)
        with applied(made.pipe, found.schedule):
            torch.testing.assert_close(made(3), found.endpoints[3], rtol=1e-4, atol=1e-4)
    elif options.get("share") != "per_sample":
        with applied(pipe, found.schedule):
            out = pipe(generator=torch.Generator().manual_seed(3))[0]
        torch.testing.assert_close(out, found.endpoints[3], rtol=1e-3, atol=1e-3)


def test_costs_of_features_and_of_activations():
    pipe = strange()
    cost = oss_ext.costs.Feature(lambda x: x.flatten(1)[:, ::2].sin(), of="x_t")
    found = search(pipe, 3, seed=3, solver="ab2", cost=cost, **SMALL)
    wanted = plain(pipe, steps=3, solver="ab2", teacher_steps=8, grid="flow:shift=2", cost=cost)
    torch.testing.assert_close(found.values, wanted.values, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="cost: got a perceptual one, which dp_search alone can make"):
        net = torch.nn.Sequential(torch.nn.Identity()).eval()
        search(pipe, 3, cost=oss_ext.costs.Perceptual(net, "0"), **SMALL)


def test_several_calls_take_turns():
    """Two calls of two prompts are one search over four samples; each keeps its own arguments."""
    pipe = strange()
    for solver in ("unipc", "fitted"):
        found = search(pipe, 3, solver=solver, samples=4, teacher_steps=8, seed=3, progress=False)
        assert_same(found, plain(pipe, (3, 4), steps=3, solver=solver, teacher_steps=8, grid="flow:shift=2"))
    given = tiny.stable_diffusion()
    text, negative = tiny.embeds(4, 3, 8, seed=8), tiny.embeds(4, 3, 8, seed=9)
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))

    def arguments(rows):
        return {
            "prompt_embeds": text[rows],
            "negative_prompt_embeds": negative[rows],
            "latents": latents[rows],
        }

    two = [arguments(slice(0, 2)), arguments(slice(2, 4))]
    by_turns = search(given.pipe, 3, calls=two, teacher_steps=8, progress=False, guidance_scale=3.0)
    at_once = search(given.pipe, 3, **arguments(slice(0, 4)), teacher_steps=8, progress=False, guidance_scale=3.0)
    assert by_turns.costs[3].shape == (4,)
    assert torch.equal(by_turns.schedule.t, at_once.schedule.t)
    torch.testing.assert_close(by_turns.teacher, at_once.teacher, rtol=1e-4, atol=1e-3)
    again = search(given.pipe, 3, calls=two, teacher_steps=8, progress=False, guidance_scale=3.0)
    assert torch.equal(again.schedule.coefficients, by_turns.schedule.coefficients)
    assert torch.equal(again.teacher, by_turns.teacher)


def test_calls_differ_in_arguments():
    pipe = strange()
    found = search(pipe, 2, calls=[{"power": 1.0}, {"power": 0.5}], teacher_steps=8, seed=3, progress=False)
    full, half = plain(pipe, (3,), teacher_steps=8, steps=2, grid="flow:shift=2"), None
    half = plain(pipe, (4,), power=0.5, teacher_steps=8, steps=2, grid="flow:shift=2")
    torch.testing.assert_close(found.teacher, torch.cat([full.teacher, half.teacher]), rtol=1e-4, atol=1e-4)


def test_copied_timesteps_with_several_calls():
    pipe = strange("copies")
    found = search(pipe, 2, samples=4, teacher_steps=8, seed=3, progress=False)
    assert_same(found, plain(pipe, (3, 4), steps=2, solver="unipc", teacher_steps=8, grid="flow:shift=2"))


def test_a_search_where_a_schedule_is_applied():
    """It is searched as if there were none, and applied still afterwards."""
    made = tiny.flux()
    first = search(made.pipe, 2, **SMALL, **made.call)
    with applied(made.pipe, replace(first.schedule, noise_scale=0.8)):
        scheduler = made.pipe.scheduler
        again = search(made.pipe, 2, **SMALL, **made.call)
        assert made.pipe.scheduler is scheduler
    assert torch.equal(first.teacher, again.teacher)
    assert torch.equal(first.schedule.t, again.schedule.t)


def test_generators_are_not_used_up():
    pipe = strange()
    generator = torch.Generator().manual_seed(11)
    state, everyone = generator.get_state(), torch.get_rng_state()
    one = search(pipe, 2, generator=generator, **SMALL)
    assert torch.equal(generator.get_state(), state) and torch.equal(torch.get_rng_state(), everyone)
    assert_same(one, plain(pipe, (11,), steps=2, solver="unipc", teacher_steps=8, grid="flow:shift=2"))
    two = search(pipe, 2, generator=generator, samples=4, teacher_steps=8, progress=False)
    assert_same(two, plain(pipe, (11, 12), steps=2, solver="unipc", teacher_steps=8, grid="flow:shift=2"))


def test_a_generator_for_every_sample():
    made = tiny.stable_diffusion()
    several = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    states = [generator.get_state() for generator in several]
    found = search(made.pipe, 2, **SMALL, generator=several, **made.call)
    assert all(torch.equal(a.get_state(), b) for a, b in zip(several, states, strict=True))
    drawn = torch.cat([torch.randn(1, 4, 8, 8, generator=generator) for generator in several])
    model = family_of(made.pipe.scheduler).denoiser(made.network)
    with torch.no_grad():
        wanted = oss_ext.dp_search(model, drawn, 2, solver="unipc", teacher_steps=8, grid=found.t)
    torch.testing.assert_close(found.teacher, wanted.teacher, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("samples", [2, 6])
@pytest.mark.parametrize("at", [1, 3, 8, 20])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_pipe_is_left_as_it_was(error, at, samples):
    pipe = strange()
    pipe.set_progress_bar_config(leave=False)
    pipe.network.fail_at = (at, error("on purpose"))
    before, config, threads = dict(vars(pipe)), dict(pipe.config), threading.active_count()
    with pytest.raises(error, match="on purpose"):
        search(pipe, 2, samples=samples, teacher_steps=8, progress=False)
    assert pipe.network.evaluations == at and dict(vars(pipe)) == before
    assert dict(pipe.config) == config and threading.active_count() == threads


@pytest.mark.parametrize("samples", [2, 6])
def test_a_signal_ends_it(samples, ctrl_c):
    """Ctrl-C reaches the thread that waits, also while another one evaluates."""
    pipe = strange()
    whole, count = pipe.network.forward, []

    def forward(x, t):
        count.append(1)
        if len(count) == 12:
            signal.raise_signal(signal.SIGINT)
        return whole(x, t)

    pipe.network.forward = forward
    before, threads = dict(vars(pipe)), threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        search(pipe, 2, samples=samples, teacher_steps=8, progress=False)
    assert dict(vars(pipe)) == before and threading.active_count() == threads
    assert len(count) <= 14


def test_a_pipeline_with_two_networks():
    """As Wan 2.2: the noisy end has its own, chosen by the timestep."""
    made, other = tiny.wan(), tiny.wan()
    pipe = diffusers.WanPipeline(
        None,
        None,
        made.pipe.vae,
        made.pipe.scheduler,
        made.pipe.transformer,
        transformer_2=tiny.lively(other.pipe.transformer, seed=5),
        boundary_ratio=0.7,
    )
    made.pipe = pipe
    model = family_of(pipe.scheduler).denoiser(
        lambda x, t: torch.where(t.reshape(-1, 1, 1, 1, 1) >= 700, made.network(x, t), other.network(x, t))
    )
    found = search(pipe, 3, seed=3, **SMALL, **made.call)
    with torch.no_grad():
        wanted = oss_ext.dp_search(model, made.noise(3), 3, solver="unipc", teacher_steps=8, grid=found.t)
        assert torch.equal(found.schedule.t, wanted.schedule.t)
        with applied(pipe, found.schedule):
            torch.testing.assert_close(made(3), found.schedule.sample(model, made.noise(3)), rtol=1e-4, atol=1e-4)
    times = found.schedule.t[:-1]
    assert bool((times > 0.7).any()) and bool((times < 0.7).any())


@pytest.mark.parametrize(
    ("habit", "message"),
    [
        ("inpaints", "the pipeline changes its latents between steps"),
        ("two loops", "copies its scheduler for a second loop"),
        ("ends early", "its loop ended before the search had all it wanted"),
    ],
)
def test_pipelines_that_cannot_be_followed_say_so(habit, message):
    pipe = strange(habit)
    with pytest.raises(RuntimeError, match=message):
        search(pipe, 3, samples=2, teacher_steps=12, progress=False)
    assert isinstance(pipe.scheduler, diffusers.FlowMatchEulerDiscreteScheduler)


def test_nan_names_where():
    pipe = strange()
    whole = pipe.network.forward
    pipe.network.forward = lambda x, t: whole(x, t) if float(t[0]) > 0.5 else x * float("nan")
    with pytest.raises(ValueError, match=r"its network returned NaN or inf.* in call 0"):
        search(pipe, 2, **SMALL)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 9}, ValueError, "steps: got 9, wanted at most 8"),
        ({"solver": "magic"}, ValueError, "solver"),
        ({"samples": 3}, ValueError, "samples: got 3, wanted a multiple of 2"),
        ({"samples": 2, "calls": [{}, {}]}, ValueError, "samples: got 2 with 2 calls of 2 each, wanted at least 4"),
        ({"nodes": "integer"}, ValueError, "nodes: got 'integer' with a flow model"),
        ({"loop": "fast"}, ValueError, "loop: got 'fast'"),
        ({"calls": []}, ValueError, "calls: got none"),
        ({"wrong": 1}, TypeError, "wrong: no argument of search, nor of Strange"),
        ({"metadata": {"a": object()}}, ValueError, "metadata: wanted JSON values"),
        ({"metadata": 3}, TypeError, "metadata: got int"),
        ({"progress": 3}, TypeError, "progress"),
        ({"share": "per_sample", "solver": "fitted"}, ValueError, "share"),
    ],
)
def test_bad_input(options, error, message):
    pipe = strange()
    with pytest.raises(error, match=message):
        search(pipe, **{"steps": 2, "teacher_steps": 8, "progress": False, **options})
    assert pipe.network.evaluations <= (4 if "samples" in options else 0)


def test_latents_given_to_several_calls_are_the_same_noise():
    made = tiny.stable_diffusion()
    with pytest.raises(ValueError, match="two calls of the pipeline drew the same noise"):
        search(made.pipe, 2, samples=4, teacher_steps=8, progress=False, latents=made.noise(), **made.call)


def test_latents_that_are_not_noise():
    made = tiny.stable_diffusion()
    with pytest.raises(ValueError, match=r"standard deviation of .*, wanted unit normal noise"):
        search(made.pipe, 2, **SMALL, latents=40 * made.noise(), **made.call)


def test_time_is_told_first(caplog, capsys):
    caplog.set_level(logging.INFO, logger="oss_ext")
    pipe, made = strange(), []
    search(pipe, 2, samples=4, teacher_steps=8, progress=lambda done, total: made.append((done, total)))
    assert "steps of 2 pipeline loops of 2 samples" in caplog.text and "about" in caplog.text
    total = made[0][1]
    assert made[-1] == (total, total) and [done for done, _ in made[:-1]] == list(range(1, total + 1))
    assert f"search: {total} steps" in caplog.text
    search(pipe, 1, **{**SMALL, "progress": True})
    told = capsys.readouterr()
    assert "steps of 1 pipeline loop of 2 samples" in told.out + told.err


def test_under_inference_mode_and_autocast():
    pipe = strange()
    with torch.inference_mode():
        found = search(pipe, 2, samples=4, teacher_steps=8, seed=3, progress=False)
    assert_same(found, plain(pipe, (3, 4), steps=2, solver="unipc", teacher_steps=8, grid="flow:shift=2"))
    seen = []
    whole = pipe.network.forward
    pipe.network.forward = lambda x, t: seen.append(torch.is_autocast_enabled("cpu")) or whole(x, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        search(pipe, 1, samples=4, teacher_steps=3, progress=False)
    assert all(seen) and torch.is_grad_enabled()


def test_a_loop_longer_than_promised(monkeypatch):
    monkeypatch.setattr("oss_ext.integrations.diffusers.calls.LIVE_LENGTH", 6)
    pipe = strange()
    found = search(pipe, 3, seed=3, **SMALL)
    assert_same(found, plain(pipe, steps=3, solver="unipc", teacher_steps=8, grid="flow:shift=2"))


def test_caches_are_refused():
    pipe = strange()
    pipe.network.is_cache_enabled = True
    with pytest.raises(ValueError, match="its network has a cache enabled"):
        search(pipe, 2, **SMALL)


def test_image_to_image_pipelines_are_searched_from_noise():
    made = tiny.stable_diffusion(
        pipeline=diffusers.StableDiffusionImg2ImgPipeline, image=torch.ones(tiny.BATCH, 4, 8, 8)
    )
    model = family_of(made.pipe.scheduler).denoiser(made.network)
    found = search(made.pipe, 2, **SMALL, seed=5, strength=0.3, **made.call)
    with torch.no_grad():
        wanted = oss_ext.dp_search(model, made.noise(5), 2, solver="unipc", teacher_steps=8, grid=found.t)
    assert torch.equal(found.schedule.t, wanted.schedule.t)
