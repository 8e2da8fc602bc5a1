"""Schedules against diffusers' schedulers, which are given the schedule's flow times; skipped without diffusers."""

from __future__ import annotations

import pytest
import torch
from helpers.analytic import mixture, normal

from oss_ext.schedule import Schedule

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")


def scheduler(kind, t, **options):
    made = getattr(diffusers, kind)(prediction_type="flow_prediction", use_flow_sigmas=True, **options)
    made.set_timesteps(len(t) - 1)
    made.sigmas, made.timesteps = t.clone(), torch.arange(1000, 1001 - len(t), -1)
    made.set_begin_index(0)
    return made


@pytest.mark.parametrize(
    ("name", "kind", "options", "lowered", "tolerance"),
    [
        # DPMSolverMultistepScheduler computes in float32. From 15 steps on only its step to 0 is lowered.
        ("euler", "DPMSolverMultistepScheduler", {"solver_order": 1}, 0, 1e-5),
        ("dpmpp_2m", "DPMSolverMultistepScheduler", {"solver_order": 2}, 0, 1e-5),
        ("dpmpp_3m", "DPMSolverMultistepScheduler", {"solver_order": 3}, 0, 1e-5),
        ("unip_2", "UniPCMultistepScheduler", {"solver_order": 2, "disable_corrector": list(range(20))}, 0, 1e-12),
        ("unipc_2", "UniPCMultistepScheduler", {"solver_order": 2}, 0, 1e-12),
        # Compared up to the last two steps, which it lowers both; DEIS gives NaN at sigma = 0.
        ("unip_3", "UniPCMultistepScheduler", {"solver_order": 3, "disable_corrector": list(range(20))}, 2, 1e-12),
        ("deis_2", "DEISMultistepScheduler", {"solver_order": 2}, 1, 1e-12),
        ("deis_3", "DEISMultistepScheduler", {"solver_order": 3}, 1, 1e-12),
    ],
)
def test_a_schedule_is_what_diffusers_runs(name, kind, options, lowered, tolerance):
    model, noise = mixture(1).flow(), normal(6, 4)
    t = torch.cat([torch.sigmoid(torch.linspace(5, -4, 18, dtype=torch.float64)), torch.zeros(1, dtype=torch.float64)])
    _, path = Schedule.from_grid(t, name).sample(model, noise, return_trajectory=True)
    run, x = scheduler(kind, t, **options), noise * t[0]
    for n in range(18 - lowered):
        x = run.step(model.velocity(x, t[n].expand(6)), run.timesteps[n], x).prev_sample.double()
    torch.testing.assert_close(x, path[:, 18 - lowered], rtol=tolerance, atol=tolerance)
