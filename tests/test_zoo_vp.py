"""The variance-preserving path of the bundled models: its levels, and the noise from a network's raw output."""

from __future__ import annotations

import pytest
import torch

from oss_ext.models import EpsilonModel
from oss_ext.zoo.vp import Betas, Levels

BETAS = Betas()


@pytest.fixture(scope="module")
def levels() -> Levels:
    return Levels(BETAS)


def test_levels_are_stable_diffusions(levels: Levels) -> None:
    """The ends that k-diffusion prints for Stable Diffusion: sigma 0.0292 to 14.6146."""
    a, s = levels.of(torch.tensor([0, 999]))
    assert (s / a).tolist() == pytest.approx([0.02917, 14.6146], rel=2e-4)
    a, s = levels.of(torch.arange(1000))
    torch.testing.assert_close(a.square(), BETAS.alphas_cumprod(), atol=1e-14, rtol=0)
    torch.testing.assert_close(a.square() + s.square(), torch.ones(1000, dtype=torch.float64), atol=1e-14, rtol=0)
    assert Betas(**BETAS.to_dict()) == BETAS


def test_levels_between_timesteps_are_those_of_epsilon_model(levels: Levels) -> None:
    """The network must read a fractional timestep as EpsilonModel wrote it."""
    model = EpsilonModel(lambda x, timestep: x, BETAS.alphas_cumprod())
    t = torch.linspace(model.t_min, model.t_max, 777, dtype=torch.float64)
    a, s = levels.of(model.timesteps(t))
    torch.testing.assert_close(s / (a + s), t, atol=1e-12, rtol=0)
    torch.testing.assert_close(levels.flow_table, model.flow_table, atol=1e-14, rtol=0)


def test_nearest_timestep(levels: Levels) -> None:
    t = torch.linspace(-0.1, 1.1, 2001, dtype=torch.float64)
    distance = (t[:, None] - levels.flow_table).abs()
    chosen = distance.gather(1, levels.nearest(t)[:, None])[:, 0]
    assert torch.equal(chosen, distance.min(dim=1).values)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-5), (torch.float16, 0.03)])
def test_a_perfect_output_gives_the_velocity(levels: Levels, dtype: torch.dtype, tolerance: float) -> None:
    """F = a eps - s x0, made into noise and by EpsilonModel into velocity, is eps - x0 at both ends and between."""
    generator = torch.Generator().manual_seed(0)
    image, noise = torch.randn(2, 60, 3, 4, 4, generator=generator, dtype=torch.float64)

    def network(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        a, s = (level.reshape(-1, 1, 1, 1) for level in levels.of(timestep))
        return levels.epsilon((a * noise - s * image).to(x.dtype), x, timestep)

    model = EpsilonModel(network, BETAS.alphas_cumprod())
    t = torch.linspace(model.t_min, model.t_max, 60, dtype=torch.float64)
    shaped = t.reshape(-1, 1, 1, 1)
    velocity = model.velocity(((1 - shaped) * image + shaped * noise).to(dtype), t)
    assert velocity.dtype == dtype
    torch.testing.assert_close(velocity.double(), noise - image, atol=tolerance, rtol=tolerance)


def test_errors_of_the_output_are_not_magnified(levels: Levels) -> None:
    """An error of F is at most as large in x0 = (x - s eps) / a and in the noise, at every timestep."""
    x, timestep = torch.zeros(1000, 1, dtype=torch.float64), torch.arange(1000)
    a, s = (level[:, None] for level in levels.of(timestep))
    noise = levels.epsilon(torch.ones_like(x), x, timestep) - levels.epsilon(torch.zeros_like(x), x, timestep)
    assert noise.abs().max() <= 1 and (s / a * noise).abs().max() <= 1
    assert (s / a).max() > 14  # what an error of the noise itself would be
