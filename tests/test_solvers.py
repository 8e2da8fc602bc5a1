from __future__ import annotations

import decimal
import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from helpers.analytic import ddpm_table, gaussian, gaussian_path, mixture, normal

from oss_ext import grids, solvers
from oss_ext.models import EpsilonModel, FlowModel
from oss_ext.schedule import Schedule
from oss_ext.solvers.integrals import exponential_moments, polynomial_shares

EQUAL_STEPS = ("ipndm_3", "ipndm_4")  # whose order holds on equal steps of sigma only


def run(name, model, t, states):
    """The solver's state at t[-1], float64 [B, ...]; exact `states` at the nodes that make a full history."""
    solver = solvers.get(name)
    state, earlier = states[0], []
    for n, weights in enumerate(solvers.along(solver, t).tolist()):
        velocity = model.velocity(state, t[n].expand(len(state)))
        basis = [state, velocity, *earlier]
        earlier = [solvers.carried(solver.carries, state, velocity, float(t[n])), *earlier][: solver.history]
        state = sum(u * w for u, w in zip(basis, weights, strict=False))
        if n + 1 < len(states):
            state = states[n + 1]
    return state


def spaced(steps, spacing):
    """Flow times [steps + 1], equally spaced in lambda from 0.9 to 0.1, or in sigma from 0.75 to 0.5."""
    if spacing == "sigma":
        sigma = torch.linspace(3, 1, steps + 1, dtype=torch.float64)
        return sigma / (1 + sigma)
    return torch.sigmoid(-torch.linspace(-math.log(9), math.log(9), steps + 1, dtype=torch.float64))


def fine_path(model, states, t, steps):
    """States [len(t)] from `states` at t[0], by Runge-Kutta of order 4 with `steps` steps between nodes."""
    path = [states]
    for low, high in itertools.pairwise(t.tolist()):
        h, x = (high - low) / steps, path[-1]
        for n in range(steps):
            now = low + n * h
            v = [model.velocity(x, torch.full((len(x),), now, dtype=torch.float64))]
            for part in (h / 2, h / 2, h):
                v.append(model.velocity(x + part * v[-1], torch.full((len(x),), now + part, dtype=torch.float64)))
            x = x + h / 6 * (v[0] + 2 * v[1] + 2 * v[2] + v[3])
        path.append(x)
    return path


@pytest.mark.parametrize("name", solvers.formulas())
def test_order_is_the_slope_of_the_error(name, record_property):
    """On one Gaussian, whose path is known. A start of order 1 alone would leave an error of order 2."""
    distribution, noise = gaussian(std=0.7), normal(16, 3)
    errors = []
    for steps in (160, 320, 640):
        t = spaced(steps, "sigma" if name in EQUAL_STEPS else "lambda")
        exact = [gaussian_path(distribution, noise, float(time)) for time in t[: 1 + solvers.get(name).history]]
        error = run(name, distribution.flow(), t, exact) - gaussian_path(distribution, noise, float(t[-1]))
        errors.append(float(error.abs().max()))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    record_property("slopes", slopes)
    print(name, [f"{error:.2e}" for error in errors], [f"{slope:.2f}" for slope in slopes])
    assert abs(slopes[-1] - solvers.get(name).order) < 0.1, (errors, slopes)


@pytest.mark.parametrize("name", solvers.formulas())
def test_order_on_a_mixture(name, record_property):
    distribution, errors = mixture(std=0.5, components=3), []
    model, start = distribution.flow(), normal(8, 4)
    spacing = "sigma" if name in EQUAL_STEPS else "lambda"
    end = fine_path(model, start, spaced(1, spacing), steps=1600)[-1]
    for steps in (160, 320):
        t = spaced(steps, spacing)
        error = run(name, model, t, fine_path(model, start, t[: 1 + solvers.get(name).history], steps=20)) - end
        errors.append(float(error.square().mean().sqrt()))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    record_property("slopes", slopes)
    print(name, [f"{error:.2e}" for error in errors], [f"{slope:.2f}" for slope in slopes])
    assert abs(slopes[-1] - solvers.get(name).order) < 0.15, (errors, slopes)


@pytest.mark.parametrize("name", [*EQUAL_STEPS, "dpmpp_3m"])
def test_a_longer_history_and_yet_order_2(name):
    distribution, noise = gaussian(std=0.7), normal(16, 3)
    errors = []
    for steps in (160, 320):
        t = spaced(steps, "lambda")
        exact = [gaussian_path(distribution, noise, float(time)) for time in t[: 1 + solvers.get(name).history]]
        error = run(name, distribution.flow(), t, exact) - gaussian_path(distribution, noise, float(t[-1]))
        errors.append(float(error.abs().max()))
    assert abs(math.log2(errors[0] / errors[1]) - 2) < 0.1, errors


def test_unip_of_order_2_is_dpmpp_2m():
    t = grids.make("flow:shift=3", 12)
    torch.testing.assert_close(
        solvers.along(solvers.get("unip_2"), t), solvers.along(solvers.get("dpmpp_2m"), t), rtol=0, atol=0
    )


@pytest.mark.parametrize("name", solvers.formulas())
def test_predictions_that_do_not_change_are_integrated_exactly(name):
    """Constant v (ab), x0 or epsilon: x_t = (1 - t) x0 + t eps with both fixed solves all three. To t = 0 as well."""
    x0, eps, solver = normal(4, 3, seed=1), normal(4, 3, seed=2), solvers.get(name)
    schedule = Schedule.from_grid(grids.make("flow:shift=2", 7), solver)
    _, path = schedule.sample(FlowModel(lambda x, t: eps - x0), eps, return_trajectory=True)
    t = schedule.t[:, None]
    torch.testing.assert_close(path, (1 - t) * x0[:, None] + t * eps[:, None], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", solvers.formulas())
def test_a_path_younger_than_the_history_gets_lower_order(name):
    solver, t = solvers.get(name), torch.tensor([0.9, 0.8, 0.6, 0.4, 0.2, 0.1], dtype=torch.float64)
    table = solvers.along(solver, t)
    assert bool(torch.isfinite(table).all()) and table.shape == (5, 2 + solver.history)
    torch.testing.assert_close(table[0, :2], torch.tensor([1, -0.1], dtype=torch.float64))
    for step, row in enumerate(table):
        assert row[2:].count_nonzero() == min(step, solver.history) == row[2 : 2 + step].count_nonzero()


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "unip_2", "unip_3", "unipc_2", "unipc_3", "deis_2", "deis_3"])
def test_the_step_to_0_returns_the_x0_prediction(name):
    table = solvers.along(solvers.get(name), torch.tensor([0.9, 0.7, 0.4, 0.2, 0.0], dtype=torch.float64))
    assert table[-1, 0] == 1 and float(table[-1, 1]) == pytest.approx(-0.2) and not table[-1, 2:].any()


def test_short_steps_do_not_cancel():
    """Grids a thousand times finer than any in use: exact integrals tend to Adams-Bashforth's weights."""
    lambdas = torch.linspace(0.3, 0.3 + 3e-6, 4, dtype=torch.float64)
    for name in ("unip_3", "deis_3"):
        share = solvers.get(name).shares(list(torch.sigmoid(-lambdas[:3]).flip(0)), torch.sigmoid(-lambdas[3]))
        wanted = torch.tensor([23 / 12, -16 / 12, 5 / 12], dtype=torch.float64)
        torch.testing.assert_close(torch.stack(share), wanted, rtol=0, atol=1e-5)


def exact_moments(y, count):
    """By the same recurrence as beyond the quadrature's reach, in 200 decimals."""
    with decimal.localcontext(prec=200):
        y, one = decimal.Decimal(y), decimal.Decimal(1)
        mean, means = one, []
        for n in range(1, count + 1):
            mean = one / (one - (-y).exp()) - n / y * mean
            means.append(float(mean))
    return means


@pytest.mark.parametrize("y", [1e-12, 1e-5, 0.01, 0.3, 1.0, 2.5, 7.0, 5.9, 6.1, 40.0, 700.0, 1e5])
@pytest.mark.parametrize("sign", [1, -1])
def test_moments_to_rounding(y, sign):
    found = torch.cat(exponential_moments(torch.tensor([sign * y], dtype=torch.float64), 6))
    wanted = torch.tensor(exact_moments(sign * y, 6), dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=6e-15, atol=0)


def test_moments_at_the_ends():
    zero, up, down = torch.stack(exponential_moments(torch.tensor([0, math.inf, -math.inf]).double(), 4), 1)
    torch.testing.assert_close(zero, 1 / torch.arange(2, 6, dtype=torch.float64), rtol=4e-15, atol=0)
    assert up.tolist() == [1] * 4 and down.tolist() == [0] * 4


@pytest.mark.parametrize("name", solvers.formulas())
@pytest.mark.parametrize("t", [[1, 1 - 1e-9, 0.5, 0.5 - 1e-9, 1e-9, 1e-200, 0], [1 - 1e-15, 0.9, 0.1, 1e-9, 1e-300, 0]])
def test_steps_of_any_length_give_finite_coefficients(name, t):
    assert bool(torch.isfinite(solvers.along(solvers.get(name), torch.tensor(t, dtype=torch.float64))).all())


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_shares_integrate_every_polynomial_through_their_nodes(count):
    """A polynomial of degree `count` in s is met exactly, and a node that is missing counts for nothing."""
    places = torch.tensor([-0.4, -1.7, -2.0, -9.0], dtype=torch.float64)
    weights, moments = normal(count + 1, seed=3), exponential_moments(torch.tensor(2.0, dtype=torch.float64), 4)
    values = [sum(w * s**k for k, w in enumerate(weights)) for s in (torch.zeros(()).double(), *places)]
    missing = [torch.tensor(k > count) for k in range(1, 5)]
    shares = polynomial_shares([s if k < count else s * torch.nan for k, s in enumerate(places)], missing, moments)
    wanted = weights[0] + sum(w * m for w, m in zip(weights[1:], moments, strict=False))
    found = sum(share * value for share, value in zip(shares, values, strict=True))
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)
    assert all(float(share) == 0 for share in shares[1 + count :])
    torch.testing.assert_close(sum(shares), torch.ones((), dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", solvers.formulas())
def test_files_keep_what_is_carried(name, tmp_path):
    model, noise = mixture().flow(), normal(3, 4)
    schedule = Schedule.from_grid(grids.make("flow", 6), name, model)
    assert schedule.carries == solvers.get(name).carries
    schedule.save(tmp_path / "s.json")
    again = Schedule.load(tmp_path / "s.json")
    assert again.carries == schedule.carries
    assert torch.equal(again.sample(model, noise), schedule.sample(model, noise))


def test_a_file_that_does_not_say_what_is_carried_means_velocities(tmp_path):
    path = tmp_path / "s.json"
    Schedule.from_grid(grids.make("flow", 4), "ab2").save(path)
    content = json.loads(path.read_text())
    assert content.pop("carries") == "velocity"
    path.write_text(json.dumps(content))
    assert Schedule.load(path).carries == "velocity"
    path.write_text(json.dumps({**content, "carries": "noise"}))
    with pytest.raises(ValueError, match=r"s\.json: carries: "):
        Schedule.load(path)
    with pytest.raises(ValueError, match="carries: got 'noise', wanted one of velocity, x0, epsilon"):
        replace(Schedule.from_grid(grids.make("flow", 4)), carries="noise")


def test_hand_written_coefficients():
    euler, ab2 = solvers.get("euler"), solvers.get("ab2")
    t = torch.tensor([1.0, 0.8, 0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(
        solvers.along(euler, t), torch.tensor([[1, -0.2], [1, -0.3], [1, -0.5]], dtype=torch.float64)
    )
    # h (1 + h / (2 h_prev)), -h^2 / (2 h_prev)
    wanted = torch.tensor([[1, -0.2, 0], [1, -0.525, 0.225], [1, -0.5 - 0.25 / 0.6, 0.25 / 0.6]], dtype=torch.float64)
    torch.testing.assert_close(solvers.along(ab2, t), wanted)


@pytest.mark.parametrize("name", solvers.formulas())
def test_coefficients_broadcast_over_leading_dimensions(name):
    solver = solvers.get(name)
    t = torch.linspace(0.8, 0.3, 6, dtype=torch.float64)
    history = torch.stack([t, *[t + 0.05 * (age + 1) for age in range(solver.history)]], -1)
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
        name, order, history, carries = "own", 1, 0, "velocity"

        def coefficients(self, t_history, t_next):
            raise AssertionError("not called here")

    own = Own()
    assert solvers.get(own) is own
    assert solvers.get("ddim") is solvers.get("euler") and solvers.get("lms") is solvers.get("lms_4")
    assert not set(solvers.ALIASES) & set(solvers.names())
    with pytest.raises(ValueError, match="solver: got 'rk4', wanted one of euler, ab2"):
        solvers.get("rk4")
    for wrong in (3, Own, None):
        with pytest.raises(TypeError, match="solver: got "):
            solvers.get(wrong)
    own.history = 7
    with pytest.raises(ValueError, match=r"history 7, wanted 0\.\.4"):
        solvers.get(own)
    own.history, own.carries = 1, "noise"
    with pytest.raises(ValueError, match="'own' that carries 'noise', wanted one of velocity, x0, epsilon"):
        solvers.get(own)
