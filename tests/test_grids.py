from __future__ import annotations

import ast
import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.analytic import Mixture, ddpm_table, gaussian, mixture

from oss_ext import Schedule, grids
from oss_ext.beta_quantile import beta_cdf, beta_quantile
from oss_ext.models import EpsilonModel


def sigma(t):
    return t / (1 - t)


@pytest.mark.parametrize("family", ["flow", "edm", "epsilon"])
@pytest.mark.parametrize("name", grids.names())
@pytest.mark.parametrize("steps", [1, 2, 7, 200])
def test_every_grid_is_legal_for_every_family(name, family, steps):
    model = gaussian().families()[family]
    t = grids.for_model(name, steps, model)
    assert t.shape == (steps + 1,) and t.dtype == torch.float64
    assert t[-1] == 0 and (t.diff() < 0).all()
    assert model.t_min * (1 - 1e-6) <= t[-2] and t[0] <= model.t_max * (1 + 1e-6)


def test_flow_grid_is_uniform_and_the_shift_is_the_published_map():
    uniform = grids.make("flow", 4)
    torch.testing.assert_close(uniform, torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64), rtol=0, atol=1e-15)
    shifted = grids.make("flow:shift=3", 4)
    wanted = torch.tensor([1, 0.9, 0.75, 0.5, 0], dtype=torch.float64)
    torch.testing.assert_close(shifted, wanted, rtol=0, atol=1e-15)
    assert torch.equal(shifted, grids.make("flow", 4, shift=3))


def test_flow_grid_of_a_family_with_a_range_ends_at_its_ends_then_0():
    t = grids.make("flow:shift=2", 5, t_max=0.9, t_min=0.1)
    torch.testing.assert_close(t[[0, 4, 5]], torch.tensor([0.9, 0.1, 0.0], dtype=torch.float64), rtol=0, atol=1e-15)
    unshifted = t[:-1] / (2 - t[:-1])
    assert unshifted.diff().diff().abs().max() < 1e-15


def test_edm_grid_is_karras_equation_5():
    t = grids.make("edm:rho=7,sigma_min=0.002,sigma_max=80", 18)
    i = torch.arange(18, dtype=torch.float64)
    wanted = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(sigma(t[:-1]), wanted, rtol=1e-11, atol=0)
    assert torch.equal(t, grids.make("edm", 18)), "the defaults on a flow model are EDM's"
    own = grids.for_model("edm", 5, gaussian().edm())
    torch.testing.assert_close(sigma(own[[0, 4]]), torch.tensor([80, 0.002], dtype=torch.float64), rtol=1e-11, atol=0)


def test_logsnr_grid_is_uniform_in_log_sigma():
    steps = sigma(grids.make("logsnr:sigma_max=10,sigma_min=0.1", 9)[:-1]).log().diff()
    torch.testing.assert_close(steps, torch.full_like(steps, -math.log(100) / 8), rtol=1e-11, atol=0)


def test_ddim_grid_takes_whole_timesteps_of_the_models_table():
    model = EpsilonModel(lambda x, timestep: x, ddpm_table())
    for steps in (1, 3, 50, 999, 1000):
        timesteps = model.timesteps(grids.for_model("ddim", steps, model)[:-1])
        assert torch.equal(timesteps, timesteps.round()), "whole"
        assert timesteps[0] == 999 and (steps == 1 or timesteps[-1] == 0)
        assert steps < 3 or timesteps.diff().diff().abs().max() <= 1, "uniform up to rounding"
    with pytest.raises(ValueError, match=r"1001 steps.*at most 1000"):
        grids.for_model("ddim", 1001, model)


def test_ddim_grid_without_a_table_is_ddpms():
    a2 = ddpm_table()
    wanted = (1 - a2).sqrt() / (a2.sqrt() + (1 - a2).sqrt())
    torch.testing.assert_close(grids.make("ddim", 1000)[:-1], wanted.flip(0), rtol=1e-12, atol=0)


def test_quadratic_grid_is_uniform_in_the_root_of_the_timestep():
    model = EpsilonModel(lambda x, timestep: x, ddpm_table())
    root = model.timesteps(grids.for_model("quadratic", 20, model)[:-1]).sqrt()
    assert root.diff().diff().abs().max() < 1e-5


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("karras", r"'karras'.*flow, edm, ddim, quadratic, logsnr"),
        ("edm:rho", r"'rho'.*key=value"),
        ("edm:shift=3", r"'shift'.*edm takes rho, sigma_min, sigma_max"),
        ("ddim:n=3", r"'n'.*ddim takes no parameters"),
        ("flow:shift=big", r"shift = 'big'.*a number"),
        ("flow:shift=-1", r"shift = -1.*positive"),
        ("flow:shift=nan", r"shift = nan.*positive"),
        ("edm:rho=0", r"rho = 0.*positive"),
        ("edm:rho=3,rho=4", r"'rho' twice"),
        ("edm:sigma_min=5,sigma_max=2", r"sigma_min = 5.*sigma_max = 2"),
    ],
)
def test_bad_specs_are_explained(spec, message):
    with pytest.raises(ValueError, match="grid: .*" + message):
        grids.make(spec, 10)


def test_bad_arguments_of_make():
    with pytest.raises(TypeError, match="grid: got int"):
        grids.make(3, 10)
    with pytest.raises(TypeError, match="steps: got True"):
        grids.make("flow", True)
    with pytest.raises(ValueError, match="steps: got 0"):
        grids.make("flow", 0)
    with pytest.raises(ValueError, match=r"first node 0\.989.*at most 0\.987"):
        grids.for_model("edm:sigma_max=90", 10, mixture().edm())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0, 0.0]], r"shape \[1, 2\]"),
        ([0.0], r"shape \[1\]"),
        ([1.0, float("nan"), 0.0], "nan at node 1"),
        ([1.0, 0.5, 0.5, 0.0], "0.5 then 0.5 at nodes 1 and 2"),
        ([0.0, 0.5, 1.0], "strictly descending"),
        ([1.0, 0.5], "last node 0.5, wanted exactly 0"),
        ([1.5, 0.5, 0.0], "first node 1.5, wanted at most 0.9"),
        ([0.95, 0.5, 0.0], "first node 0.95, wanted at most 0.9"),
        ([0.9, 0.05, 0.0], "0.05 before the 0, wanted at least 0.1"),
        ([0.9, 0.5, 0.0, -0.5], "last node -0.5"),
    ],
)
def test_check_names_what_is_wrong(values, message):
    with pytest.raises(ValueError, match=r"grid: got .*" + message):
        grids.check(torch.tensor(values, dtype=torch.float64), t_max=0.9, t_min=0.1)


def test_check_refuses_other_types_and_keeps_good_ones():
    with pytest.raises(TypeError, match="grid: got list"):
        grids.check([1.0, 0.0])
    with pytest.raises(TypeError, match=r"grid: got a tensor of torch\.int64"):
        grids.check(torch.tensor([1, 0]))
    good = grids.check(torch.tensor([0.9 * (1 + 1e-7), 0.5, 0.0]), t_max=0.9, t_min=0.1)
    assert good.dtype == torch.float64


def test_snap_takes_the_nearest_time_and_merges_nodes_that_meet():
    times = torch.tensor([0.9, 0.6, 0.5, 0.2, 0.1], dtype=torch.float64)
    snapped = grids.snap(torch.tensor([0.95, 0.7, 0.56, 0.52, 0.51, 0.03, 0.0]), times)
    assert snapped.tolist() == [0.9, 0.6, 0.5, 0.1, 0] and snapped.dtype == torch.float64
    halfway = torch.tensor([0.75, 0.0], dtype=torch.float64)
    assert grids.snap(halfway, torch.tensor([1, 0.5], dtype=torch.float64)).tolist() == [0.5, 0]
    assert torch.equal(grids.snap(snapped, times), snapped), "what is representable stays"
    assert torch.equal(grids.snap(snapped, torch.cat([times, times.new_zeros(1)])), snapped), "the 0 is no node"
    assert grids.snap(snapped, times[:1]).tolist() == [0.9, 0]


@pytest.mark.parametrize("family", ["epsilon", "v_param", "x0"])
@pytest.mark.parametrize("name", grids.names())
def test_snapped_grids_are_fed_whole_timesteps(name, family):
    model = gaussian().families()[family]
    times = model.flow_table.flip(0)
    assert torch.equal(model.timesteps(times), torch.arange(999, -1, -1, dtype=torch.float64))
    t = grids.for_model(name, 40, model)
    snapped = grids.on_whole_timesteps(t, model)
    timesteps = model.timesteps(snapped[:-1])
    assert torch.equal(timesteps, timesteps.round())
    assert torch.equal(grids.check(snapped, t_max=model.t_max, t_min=model.t_min), snapped)
    moved = (snapped[:, None] - t).abs().amin(1)
    assert (moved <= (times[:-1] - times[1:]).max() / 2).all()
    if name == "ddim":
        assert torch.equal(snapped, t)


def test_families_without_timesteps_have_no_whole_ones():
    for model in (gaussian().flow(), gaussian().edm()):
        with pytest.raises(ValueError, match="nodes: got 'integer' with a"):
            grids.on_whole_timesteps(grids.make("flow", 4), model)


@pytest.mark.parametrize(
    ("times", "error", "message"),
    [
        ([0.5], TypeError, "times: got list"),
        (torch.tensor([1]), TypeError, r"times: got a tensor of torch\.int64"),
        (torch.tensor([[0.5]]), ValueError, r"times: got shape \[1, 1\]"),
        (torch.tensor([0.0]), ValueError, "times: wanted at least one"),
        (torch.tensor([0.2, 0.5]), ValueError, "times: .*strictly descending"),
        (torch.tensor([0.5, float("nan"), 0.2]), ValueError, r"times: .*in \(0, 1\]"),
        (torch.tensor([1.5, 0.5]), ValueError, r"times: .*in \(0, 1\]"),
    ],
)
def test_snap_names_what_is_wrong(times, error, message):
    with pytest.raises(error, match=message):
        grids.snap(torch.tensor([1.0, 0.0]), times)
    with pytest.raises(ValueError, match="t: got the last node"):
        grids.snap(torch.tensor([1.0, 0.5]), torch.tensor([0.5]))


def test_beta_quantiles_are_exact_where_they_have_closed_forms():
    share = torch.linspace(0, 1, 21, dtype=torch.float64)
    for wanted, a, b in [
        (share, 1, 1),
        (share.sqrt(), 2, 1),
        (1 - (1 - share) ** (1 / 7), 1, 7),
        ((share * math.pi / 2).sin() ** 2, 0.5, 0.5),
    ]:
        torch.testing.assert_close(beta_quantile(share, a, b), wanted, rtol=1e-11, atol=2e-15)
    x = torch.linspace(0.001, 0.999, 40, dtype=torch.float64)
    for a, b in [(0.6, 0.6), (0.1, 3.0), (20.0, 50.0)]:
        torch.testing.assert_close(beta_cdf(x, a, b), 1 - beta_cdf(1 - x, b, a), rtol=0, atol=1e-13)
        inside = beta_cdf(x, a, b)
        inside = inside[(inside > 1e-6) & (inside < 1 - 1e-6)]
        torch.testing.assert_close(beta_cdf(beta_quantile(inside, a, b), a, b), inside, rtol=1e-9, atol=1e-11)


def test_beta_distribution_is_scipys():
    stats = pytest.importorskip("scipy.stats", reason="compared with scipy's beta distribution")
    share = torch.linspace(0, 1, 101, dtype=torch.float64)
    for a, b in [(0.6, 0.6), (0.3, 2.0), (8.0, 8.0), (50.0, 0.7)]:
        wanted = torch.from_numpy(stats.beta.ppf(share.numpy(), a, b))
        torch.testing.assert_close(beta_quantile(share, a, b), wanted, rtol=1e-9, atol=1e-15)


def test_beta_grid_takes_whole_timesteps_while_they_differ():
    model = EpsilonModel(lambda x, timestep: x, ddpm_table())
    share = 1 - torch.arange(21, dtype=torch.float64) / 21
    wanted = (999 * beta_quantile(share, 0.6, 0.6)).round()
    assert torch.equal(model.timesteps(grids.for_model("beta", 21, model)[:-1]), wanted)
    assert wanted[0] == 999 and (wanted.diff() < 0).all()
    assert model.timesteps(grids.for_model("beta", 10, model)[:-1])[5] == 500, "the median, 499.5, rounded as rint does"
    many = model.timesteps(grids.for_model("beta", 400, model)[:-1])
    assert (many.diff() < 0).all() and bool((many != many.round()).any())
    arcsine = grids.for_model("beta:alpha=0.5,beta=0.5", 9, model)  # quantiles sin^2
    share = 1 - torch.arange(9, dtype=torch.float64) / 9
    wanted = (999 * (share * math.pi / 2).sin() ** 2).round()
    assert torch.equal(model.timesteps(arcsine[:-1]), wanted)


def test_beta_grid_without_a_table():
    u = beta_quantile(1 - torch.arange(6, dtype=torch.float64) / 6, 0.6, 0.6)
    torch.testing.assert_close(grids.make("beta", 6)[:-1], u, rtol=1e-12, atol=0)
    torch.testing.assert_close(grids.make("beta:shift=3", 6)[:-1], 3 * u / (1 + 2 * u), rtol=1e-12, atol=0)
    edm = sigma(grids.for_model("beta", 6, gaussian().edm())[:-1]).log()
    wanted = math.log(0.002) + u * math.log(80 / 0.002)
    torch.testing.assert_close(edm, wanted, rtol=1e-10, atol=1e-10)


def test_kl_optimal_grid_is_uniform_in_the_angle():
    own = sigma(grids.for_model("kl_optimal", 8, gaussian().edm())[:-1])
    i = torch.arange(8, dtype=torch.float64) / 7
    wanted = ((1 - i) * math.atan(80) + i * math.atan(0.002)).tan()
    torch.testing.assert_close(own, wanted, rtol=1e-10, atol=0)
    whole = grids.make("kl_optimal:std=0.5", 6)
    assert whole[0] == 1
    angle = torch.atan2(whole, 0.5 * (1 - whole))
    torch.testing.assert_close(angle.diff(), torch.full((6,), -math.pi / 12, dtype=torch.float64), rtol=1e-12, atol=0)


def test_kl_optimal_is_eulers_best_grid_on_a_gaussian():
    """An Euler step between the angles a and b multiplies the deviation by cos(a - b) times the exact factor, so that
    equal angles lose least."""
    std = 0.5
    model = Mixture(torch.zeros(1, 3, dtype=torch.float64), std).flow()
    noise = torch.ones(1, 3, dtype=torch.float64)

    def final(t):
        return float(Schedule.from_grid(t).sample(model, noise)[0, 0])

    for steps in (3, 6, 10):
        t = grids.make("kl_optimal", steps, std=std)
        best = final(t)
        assert best == pytest.approx(std * math.cos(math.pi / 2 / steps) ** steps, rel=1e-12)
        generator = torch.Generator().manual_seed(steps)
        for _ in range(20):
            moved = t.clone()
            nudge = torch.rand(steps - 1, generator=generator, dtype=torch.float64) - 0.5
            moved[1:-1] += 0.1 * nudge * torch.minimum(t[:-2] - t[1:-1], t[1:-1] - t[2:])
            assert final(moved) < best < std
        assert final(grids.make("flow", steps)) < best


@pytest.mark.parametrize(
    "spec", ["beta:alpha=0", "beta:beta=-1", "beta:shift=inf", "kl_optimal:std=0", "kl_optimal:sigma_min=3,sigma_max=1"]
)
def test_beta_and_kl_optimal_refuse(spec):
    with pytest.raises(ValueError, match=r"grid: got (alpha|beta|shift|std|sigma_min)"):
        grids.make(spec, 5)


def test_beta_and_kl_optimal_are_comfyuis():
    """comfy/samplers.py of the checkout ComfyUI/ under OSS_PEERS, its two functions alone."""
    numpy = pytest.importorskip("numpy")
    scipy_stats = pytest.importorskip("scipy.stats", reason="ComfyUI's beta_scheduler uses scipy")
    root = os.environ.get("OSS_PEERS")
    path = Path(root or "", "ComfyUI", "comfy", "samplers.py")
    if not root or not path.is_file():
        pytest.skip("OSS_PEERS names no folder with a checkout ComfyUI/")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    wanted = [node for node in tree.body if getattr(node, "name", "") in ("beta_scheduler", "kl_optimal_scheduler")]
    names = {"numpy": numpy, "torch": torch, "math": math, "scipy": SimpleNamespace(stats=scipy_stats)}
    exec(compile(ast.Module(wanted, []), str(path), "exec"), names)
    model = EpsilonModel(lambda x, timestep: x, ddpm_table())
    table = SimpleNamespace(sigmas=sigma(model.flow_table))
    low, high = sigma(model.t_min), sigma(model.t_max)
    for steps in (2, 5, 10, 20, 50):
        ours = sigma(grids.for_model("beta", steps, model)).float()
        torch.testing.assert_close(ours, names["beta_scheduler"](table, steps), rtol=1e-6, atol=0)
        ours = sigma(grids.for_model("kl_optimal", steps, model)).float()
        torch.testing.assert_close(ours, names["kl_optimal_scheduler"](steps, low, high), rtol=2e-5, atol=0)
