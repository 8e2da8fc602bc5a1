"""LD3's learner, with nothing of its loop."""

from __future__ import annotations

import math

import torch

from oss_ext import solvers
from oss_ext.baselines.ld3 import _Learner
from oss_ext.baselines.student import Student, at_the_end
from oss_ext.progress import Counter

LAMBDAS = torch.tensor([-math.log(80), -math.log(0.002)], dtype=torch.float64)


def learner(model, noise, target, steps=4, *, solver="dpmpp_2m", mode="lambda", ends=LAMBDAS, radius=0.0, loss=None):
    scheme = solvers.get(solver)
    counter = Counter(0, False, "")
    student = Student(model, scheme.carries, noise.dtype, 8, 8, counter, at_the_end(loss, noise.shape))
    return _Learner(student, noise, target.flatten(1), {}, scheme, steps, mode, ends, 0.5, radius)
