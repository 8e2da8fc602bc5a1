"""LD3's learner, with nothing of its loop."""

from __future__ import annotations

import math

import torch

from oss_ext import solvers
from oss_ext.baselines.ld3 import _Learner
from oss_ext.progress import Counter
from oss_ext.refine_gradient import Problem

LAMBDAS = torch.tensor([-math.log(80), -math.log(0.002)], dtype=torch.float64)


def learner(model, noise, target, steps=4, *, solver="dpmpp_2m", mode="lambda", ends=LAMBDAS, radius=0.0, loss=None):
    scheme = solvers.get(solver)
    counter = Counter(0, False, "")
    problem = Problem(model, noise, target.flatten(1), {}, noise.dtype, 8, 0, scheme.carries, counter)
    return _Learner(problem, scheme, steps, mode, ends, 0.5, loss, radius)
