from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers.analytic import ddpm_table, gaussian, gaussian_path, mixture, normal

from oss_ext import grids, solvers
from oss_ext.models import EpsilonModel
from oss_ext.schedule import Schedule


@pytest.mark.parametrize("grid", ["flow", "flow:shift=3"])
@pytest.mark.parametrize("name", solvers.names())
def test_order_is_the_slope_of_the_error(name, grid, record_property):
    distribution, noise = gaussian(std=0.7), normal(16, 3)
    exact = gaussian_path(distribution, noise, 0.0)
    errors = []
    for steps in (40, 80, 160, 320):
        x0 = Schedule.from_grid(grids.make(grid, steps), name).sample(distribution.flow(), noise)
        errors.append(float((x0 - exact).abs().max()))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    record_property("slopes", slopes)
    order = solvers.get(name).order
    assert abs(slopes[-1] - order) < 0.1, (errors, slopes)


def test_hand_written_coefficients():
    euler, ab2 = solvers.get("euler"), solvers.get("ab2")
    t = torch.tensor([1.0, 0.8, 0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(
        solvers.along(euler, t), torch.tensor([[1, -0.2], [1, -0.3], [1, -0.5]], dtype=torch.float64)
    )
    # h (1 + h / (2 h_prev)), -h^2 / (2 h_prev)
    wanted = torch.tensor([[1, -0.2, 0], [1, -0.525, 0.225], [1, -0.5 - 0.25 / 0.6, 0.25 / 0.6]], dtype=torch.float64)
    torch.testing.assert_close(solvers.along(ab2, t), wanted)


@pytest.mark.parametrize("name", solvers.names())
def test_coefficients_broadcast_over_leading_dimensions(name):
    solver = solvers.get(name)
    t = torch.linspace(1, 0, 6, dtype=torch.float64)
    history = torch.stack([t, *[t + 0.1 * (age + 1) for age in range(solver.history)]], -1)
    table = solver.coefficients(history[:, None, :], t)
    assert table.shape == (6, 6, 2 + solver.history) and table.dtype == torch.float64
    assert torch.equal(table[2, 4], solver.coefficients(history[2], t[4]))


def test_an_euler_step_is_a_ddim_step():
    """Against Song et al., eq. 12 with eta = 0, written out in VP coordinates."""
    distribution, table = mixture(), ddpm_table()
    model = distribution.vp(EpsilonModel)
    t = grids.for_model("ddim", 10, model)
    noise = normal(5, 4)
    timesteps = model.timesteps(t[:-1])
    a, s = table[timesteps.long()].sqrt(), (1 - table[timesteps.long()]).sqrt()
    a, s = torch.cat([a, a.new_ones(1)]), torch.cat([s, s.new_zeros(1)])
    x = s[0] * noise
    for n in range(10):
        eps = model.fn(x, timesteps[n].expand(5))
        x = a[n + 1] * (x - s[n] * eps) / a[n] + s[n + 1] * eps
    torch.testing.assert_close(Schedule.from_grid(t, "euler", model).sample(model, noise), x, rtol=1e-9, atol=1e-9)


def test_get():
    class Own:
        name, order, history = "own", 1, 0

        def coefficients(self, t_history, t_next):
            raise AssertionError("not called here")

    own = Own()
    assert solvers.get(own) is own
    with pytest.raises(ValueError, match="solver: got 'rk4', wanted one of euler, ab2"):
        solvers.get("rk4")
    for wrong in (3, Own, None):
        with pytest.raises(TypeError, match="solver: got "):
            solvers.get(wrong)
    own.history = 7
    with pytest.raises(ValueError, match="history 7"):
        solvers.get(own)
