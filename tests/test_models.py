from __future__ import annotations

import pytest
import torch
from helpers.analytic import ddpm_table, gaussian, mixture, normal

from oss_ext.models import Denoiser, EDMModel, EpsilonModel, FlowModel, VParamModel, X0Model

FAMILIES = list(gaussian().families())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("distribution", [gaussian(shape=(2, 3)), mixture(shape=(2, 3))], ids=["gaussian", "mixture"])
def test_every_family_gives_the_same_velocity(family, distribution):
    model = distribution.families()[family]
    assert isinstance(model, Denoiser) and model.parameterization == family
    t = torch.linspace(0.98, 0.011, 40, dtype=torch.float64)
    x = normal(40, 2, 3)
    wanted = distribution.flow().velocity(x, t)
    torch.testing.assert_close(model.velocity(x, t), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_velocity_is_eps_minus_x0(family):
    """For a point mass at m the posterior is m itself, so v = (x - m) / t."""
    distribution = gaussian(std=0.0)
    t = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    x = normal(3, 3)
    wanted = (x - distribution.means) / t[:, None]
    torch.testing.assert_close(distribution.families()[family].velocity(x, t), wanted, rtol=1e-9, atol=1e-9)


def test_edm_coordinates():
    seen = {}

    def fn(x, sigma):
        seen.update(x=x, sigma=sigma)
        return torch.zeros_like(x)

    model = EDMModel(fn, 0.002, 80)
    assert model.t_max == 80 / 81 and model.t_min == 0.002 / 1.002
    x = normal(2, 3)
    velocity = model.velocity(x, torch.tensor([0.75, 0.5], dtype=torch.float64))
    torch.testing.assert_close(seen["sigma"], torch.tensor([3.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(seen["x"], x * torch.tensor([[4.0], [2.0]], dtype=torch.float64))
    torch.testing.assert_close(velocity, x / torch.tensor([[0.75], [0.5]], dtype=torch.float64))


def test_vp_feeds_whole_timesteps_at_the_table_and_interpolates_log_sigma_between():
    model = EpsilonModel(lambda x, timestep: x, ddpm_table())
    assert torch.equal(model.timesteps(model.flow_table), torch.arange(1000, dtype=torch.float64))
    sigma = model.sigmas(model.flow_table)
    between = (sigma[300] ** 0.75) * (sigma[301] ** 0.25)
    torch.testing.assert_close(model.timesteps(between / (1 + between)).item(), 300.25, rtol=0, atol=1e-9)
    torch.testing.assert_close(sigma, ((1 - ddpm_table()) / ddpm_table()).sqrt(), rtol=1e-12, atol=0)
    for beyond in (model.t_max * 1.001, model.t_min * 0.999):
        with pytest.raises(ValueError, match=r"t: got .* wanted .*the table's range"):
            model.timesteps(torch.tensor([beyond], dtype=torch.float64))


def test_timesteps_can_be_differentiated():
    """Between the table's levels by differences; at them the value stays whole, and the slope that on one side."""
    model = EpsilonModel(lambda x, timestep: x, ddpm_table())
    between = torch.tensor([0.02, 0.13, 0.5, 0.77, 0.98], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(model.timesteps(between).sum(), between)
    at = between.detach()
    differences = (model.timesteps(at + 1e-7) - model.timesteps(at - 1e-7)) / 2e-7
    torch.testing.assert_close(slope, differences, rtol=1e-6, atol=0)
    levels = model.flow_table[[0, 400, 999]].clone().requires_grad_(True)
    steps = model.timesteps(levels)
    assert steps.tolist() == [0.0, 400.0, 999.0]
    (slope,) = torch.autograd.grad(steps.sum(), levels)
    at, sides = levels.detach(), []
    for way in (1e-7, -1e-7):
        moved = (at + way).clamp(model.t_min, model.t_max)
        sides.append((model.timesteps(moved) - model.timesteps(at)) / (moved - at).where(moved != at, 1))
    for got, up, down in zip(slope, *sides, strict=True):
        assert any(float(got) == pytest.approx(float(side), rel=1e-5) for side in (up, down))


@pytest.mark.parametrize("family", FAMILIES)
def test_velocities_can_be_differentiated_in_time(family):
    model, x = mixture(shape=(3,)).families()[family], normal(4, 3)
    t = torch.tensor([0.95, 0.6, 0.3, 0.05], dtype=torch.float64, requires_grad=True)
    weight = normal(4, 3, seed=2)
    (slope,) = torch.autograd.grad((model.velocity(x, t) * weight).sum(), t)
    at = t.detach()
    high, low = ((model.velocity(x, at + way) * weight).sum(1) for way in (1e-7, -1e-7))
    torch.testing.assert_close(slope, (high - low) / 2e-7, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_fed_and_returned(family, dtype):
    model = gaussian().families()[family]
    fed = []
    inner = model.fn

    def spy(x, level):
        fed.append((x.dtype, level.dtype, level.shape))
        return inner(x, level).to(x.dtype)

    model.fn = spy
    out = model.velocity(normal(2, 3, dtype=dtype), torch.tensor([0.5, 0.25], dtype=torch.float64))
    assert out.dtype == dtype and out.shape == (2, 3)
    level = torch.float64 if dtype == torch.float64 else torch.float32
    assert fed == [(dtype, level, torch.Size([2]))]


def test_cond_reaches_the_function_by_name():
    model = FlowModel(lambda x, t, label: x * label[:, None])
    out = model.velocity(torch.ones(2, 3), torch.tensor([0.5, 0.5]), {"label": torch.tensor([2.0, 3.0])})
    assert out[:, 0].tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("returned", "kind", "message"),
    [
        (lambda x: x[:, :1], ValueError, r"shape \[2, 1\], wanted that of its input, \[2, 3\]"),
        (lambda x: x.double(), TypeError, r"torch\.float64, wanted that of its input, torch\.float32"),
        (lambda x: None, TypeError, "returned NoneType"),
        (lambda x: (x,), TypeError, "returned tuple"),
    ],
)
@pytest.mark.parametrize("wrap", [FlowModel, lambda fn: EDMModel(fn, 0.002, 80), lambda fn: X0Model(fn, ddpm_table())])
def test_outputs_of_another_kind_are_refused_before_arithmetic_hides_them(wrap, returned, kind, message):
    model = wrap(lambda x, level: returned(x))
    with pytest.raises(kind, match="model: .*" + message):
        model.velocity(torch.ones(2, 3), torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_bad_constructors():
    with pytest.raises(TypeError, match="fn: got int"):
        FlowModel(3)
    with pytest.raises(ValueError, match="sigma_min, sigma_max: got 2 and 1"):
        EDMModel(torch.zeros_like, 2, 1)
    with pytest.raises(ValueError, match=r"alphas_cumprod: got shape \[1\]"):
        EpsilonModel(torch.zeros_like, torch.tensor([0.5]))
    with pytest.raises(ValueError, match=r"alphas_cumprod.*descending"):
        VParamModel(torch.zeros_like, torch.tensor([0.1, 0.5]))
    with pytest.raises(ValueError, match=r"alphas_cumprod\[:-1\]"):
        VParamModel(torch.zeros_like, torch.tensor([0.5, 0.1, 0.0]))


@pytest.mark.parametrize("family", FAMILIES)
def test_describe_is_plain(family):
    import json

    described = gaussian().families()[family].describe()
    assert described["parameterization"] == family
    assert json.loads(json.dumps(described)) == described
