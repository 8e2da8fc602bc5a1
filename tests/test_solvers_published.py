"""Schedules against the published samplers, written out as loops in sigma = t / (1 - t) and
x / (1 - t) = x0 + sigma eps, with growing lists of whole histories, and sharing no code with the library."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.analytic import mixture, normal

from oss_ext import grids, solvers
from oss_ext.schedule import Schedule


def dpmpp_2m(denoise, x, sigmas):
    """k-diffusion, sample_dpmpp_2m."""
    old = None
    for i in range(len(sigmas) - 1):
        denoised = denoise(x, sigmas[i])
        if sigmas[i + 1] == 0:
            return denoised
        t, t_next = -math.log(sigmas[i]), -math.log(sigmas[i + 1])
        h, use = t_next - t, denoised
        if old is not None:
            r = (t + math.log(sigmas[i - 1])) / h
            use = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * old
        x = sigmas[i + 1] / sigmas[i] * x - math.expm1(-h) * use
        old = denoised


def dpmpp_3m(denoise, x, sigmas):
    """k-diffusion, sample_dpmpp_3m_sde with eta = 0."""
    d1 = d2 = h1 = h2 = None
    for i in range(len(sigmas) - 1):
        denoised = denoise(x, sigmas[i])
        if sigmas[i + 1] == 0:
            return denoised
        h = math.log(sigmas[i]) - math.log(sigmas[i + 1])
        x = math.exp(-h) * x - math.expm1(-h) * denoised
        phi_2 = math.expm1(-h) / h + 1
        phi_3 = phi_2 / h - 0.5
        if h2 is not None:
            r0, r1 = h1 / h, h2 / h
            near, far = (denoised - d1) / r0, (d1 - d2) / r1
            x = x + phi_2 * (near + (near - far) * r0 / (r0 + r1)) - phi_3 * (near - far) / (r0 + r1)
        elif h1 is not None:
            # k-diffusion puts phi_2 here; diffusers' second-order update, which is followed, the midpoint.
            x = x - 0.5 * math.expm1(-h) * (denoised - d1) / (h1 / h)
        d1, d2, h1, h2 = denoised, d1, h, h1


def integral_of_lagrange(nodes, which, low, high, weight=None):
    """The integral over [low, high] of the polynomial that is 1 at nodes[which] and 0 at the others, times weight(tau).
    By Gauss-Legendre quadrature of 60 points."""
    points, weights = np.polynomial.legendre.leggauss(60)
    tau = (high - low) / 2 * points + (high + low) / 2
    value = np.ones_like(tau) if weight is None else weight(tau)
    for k, node in enumerate(nodes):
        if k != which:
            value = value * (tau - node) / (nodes[which] - node)
    return float((value * weights).sum()) * (high - low) / 2


def multistep_in_sigma(denoise, x, sigmas, weights_of):
    """x + sum_m weight_m d_m over d = (x - denoised) / sigma, newest first."""
    history = []
    for i in range(len(sigmas) - 1):
        history.insert(0, (x - denoise(x, sigmas[i])) / sigmas[i])
        weights = weights_of(i, sigmas)
        x = x + sum(w * d for w, d in zip(weights, history, strict=False))
    return x


def lms(i, sigmas, order):
    """k-diffusion, sample_lms."""
    nodes = [sigmas[i - k] for k in range(min(order, i + 1))]
    return [integral_of_lagrange(nodes, k, sigmas[i], sigmas[i + 1]) for k in range(len(nodes))]


def deis(i, sigmas, order):
    """diffusers, DEISMultistepScheduler: epsilon interpolated in log rho, integrated over rho (d rho =
    e^u du); DDIM's step to 0."""
    if sigmas[i + 1] == 0:
        return [-sigmas[i]]
    nodes = [math.log(sigmas[i - k]) for k in range(min(order, i + 1))]
    return [
        integral_of_lagrange(nodes, k, math.log(sigmas[i]), math.log(sigmas[i + 1]), np.exp) for k in range(len(nodes))
    ]


def ipndm(i, sigmas, order):
    """diffusers, IPNDMScheduler, stopped at `order`."""
    table = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    return [(sigmas[i + 1] - sigmas[i]) * w for w in table[min(i + 1, order) - 1]]


def unipc(denoise, x, sigmas, order, corrector):
    """UniPC, Algorithms 1 and 2, as diffusers' UniPCMultistepScheduler: data prediction, bh2, alpha = 1."""

    def update(last, outputs, lambdas, used, target, new=None):
        h = target - lambdas[-1]
        ratios = [(lambdas[-1 - k] - lambdas[-1]) / h for k in range(1, used)]
        differences = [(outputs[-1 - k] - outputs[-1]) / r for k, r in enumerate(ratios, start=1)]
        ratios.append(1.0)
        phi, factorial, b = math.expm1(-h) / -h - 1, 1, []
        scale = math.expm1(-h)
        for k in range(1, used + 1):
            b.append(phi * factorial / scale)
            factorial *= k + 1
            phi = phi / -h - 1 / factorial
        matrix = np.array([[r**k for r in ratios] for k in range(used)])
        x = math.exp(-h) * last - scale * outputs[-1]
        if new is None:
            rho = [0.5] if used == 2 else np.linalg.solve(matrix[:-1, :-1], b[:-1]) if used > 2 else []
        else:
            rho = [0.5] if used == 1 else np.linalg.solve(matrix, b)
            differences.append(new - outputs[-1])
        return x - scale * sum(float(r) * d for r, d in zip(rho, differences, strict=True))

    outputs, lambdas, last, used = [], [], None, 0
    for i in range(len(sigmas) - 1):
        new, target = denoise(x, sigmas[i]), -math.log(sigmas[i])
        if corrector and i:
            x = update(last, outputs, lambdas, used, target, new)
        outputs.append(new)
        lambdas.append(target)
        if sigmas[i + 1] == 0:
            return new
        used, last = min(order, i + 1), x
        x = update(last, outputs, lambdas, used, -math.log(sigmas[i + 1]))


def in_flow_time(denoise, x, sigmas, order):
    """Adams-Bashforth on dx/dt = v, in t and x_t."""
    t = [sigma / (1 + sigma) for sigma in sigmas]
    x, velocities = x * (1 - t[0]), []
    for i in range(len(t) - 1):
        velocities.insert(0, (x - denoise(x / (1 - t[i]), sigmas[i])) / t[i])
        nodes = [t[i - k] for k in range(min(order, i + 1))]
        weights = [integral_of_lagrange(nodes, k, t[i], t[i + 1]) for k in range(len(nodes))]
        x = x + sum(w * v for w, v in zip(weights, velocities, strict=False))
    return x


PUBLISHED = {
    "euler": lambda *a: multistep_in_sigma(*a, lambda i, s: ipndm(i, s, 1)),
    "ab2": lambda *a: in_flow_time(*a, 2),
    "ab3": lambda *a: in_flow_time(*a, 3),
    "ab4": lambda *a: in_flow_time(*a, 4),
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "unip_2": lambda *a: unipc(*a, 2, False),
    "unip_3": lambda *a: unipc(*a, 3, False),
    "unipc_2": lambda *a: unipc(*a, 2, True),
    "unipc_3": lambda *a: unipc(*a, 3, True),
    "deis_2": lambda *a: multistep_in_sigma(*a, lambda i, s: deis(i, s, 2)),
    "deis_3": lambda *a: multistep_in_sigma(*a, lambda i, s: deis(i, s, 3)),
    "ipndm_2": lambda *a: multistep_in_sigma(*a, lambda i, s: ipndm(i, s, 2)),
    "ipndm_3": lambda *a: multistep_in_sigma(*a, lambda i, s: ipndm(i, s, 3)),
    "ipndm_4": lambda *a: multistep_in_sigma(*a, lambda i, s: ipndm(i, s, 4)),
    "lms_3": lambda *a: multistep_in_sigma(*a, lambda i, s: lms(i, s, 3)),
    "lms_4": lambda *a: multistep_in_sigma(*a, lambda i, s: lms(i, s, 4)),
}


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 25])
@pytest.mark.parametrize("grid", ["edm", "flow", "logsnr"])
@pytest.mark.parametrize("name", solvers.formulas())
def test_a_schedule_is_the_published_sampler(name, grid, steps):
    distribution, noise = mixture(1), normal(6, 4)
    model = distribution.edm()
    t = grids.for_model(grid, steps, model)
    x0 = Schedule.from_grid(t, name, model).sample(model, noise)

    def denoise(x, sigma):
        return distribution.posterior_mean(x, torch.ones(1), torch.tensor([sigma], dtype=torch.float64))

    sigmas = (t / (1 - t)).tolist()
    torch.testing.assert_close(x0, PUBLISHED[name](denoise, sigmas[0] * noise, sigmas), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", solvers.formulas())
def test_from_pure_noise_is_the_limit(name):
    """t = 1, sigma = inf: no NaN, and what starting ever nearer to it tends to."""
    model, noise = mixture(1).flow(), normal(6, 4)
    t = grids.make("flow", 8)
    limit = Schedule.from_grid(t, name).sample(model, noise)
    off = []
    # No nearer than 1e-9: sigma's own rounding, and lambda's slow way to -inf.
    for gap in (1e-3, 1e-6, 1e-9):
        near = torch.cat([t.new_tensor([1 - gap]), t[1:]])
        off.append(float((Schedule.from_grid(near, name).sample(model, noise) - limit).abs().max()))
    assert off[2] < off[0] and off[2] < 0.1, off
