"""Linear multistep solvers in flow time, as coefficient functions.

A step from t to t_next is sum_p C_p u_p over the basis [state, output, earlier predictions, newest first]. The output
is the velocity at this node; what is kept of earlier nodes is what the solver `carries`: their velocities, or, since
the states that would turn one prediction into another are not kept, their x0 or epsilon predictions.

All is in canonical coordinates x_t = (1 - t) x0 + t eps. There dx/dt = v holds for every model family, Euler's step is
DDIM's (Song et al., arXiv 2010.02502, eq. 12 with eta = 0), sigma = t / (1 - t) is the noise level of x / (1 - t), and
lambda = -log sigma. The published formulae, which mostly work in sigma or lambda, are the same for every scaling of x.

The kernels take six basis vectors, so a step uses at most four earlier predictions (`MAX_HISTORY`).

Starts are of lower order (one step of order 1, then one of order 2, ...). Steps to t = 0 are of order 1 where the
deployed implementations make them so (every solver that works in lambda or log sigma): they return the x0 prediction.
diffusers' `lower_order_final` also lowers the last step but one (UniPC of order 3 always; DPM-Solver++ and DEIS of
order 3 below 15 steps): that is not done here, since a step does not know how many follow.

A node at t = 1 has sigma = inf: in formulae that interpolate over sigma or lambda it drops out, which is their limit.
"""

from oss_ext.solvers.dpm_solver import DpmSolverPlusPlus2M, DpmSolverPlusPlus3M
from oss_ext.solvers.epsilon import Deis, Ipndm, LinearMultistep
from oss_ext.solvers.fitted import Fitted, Mixed, is_searched, padded
from oss_ext.solvers.flow_time import AdamsBashforth, Euler
from oss_ext.solvers.registry import ALIASES, MAX_HISTORY, along, formulas, get, names, past_times
from oss_ext.solvers.solver import CARRIES, Carries, Solver, Walk, carried
from oss_ext.solvers.unipc import UniP, UniPC

__all__ = [
    "ALIASES",
    "CARRIES",
    "MAX_HISTORY",
    "AdamsBashforth",
    "Carries",
    "Deis",
    "DpmSolverPlusPlus2M",
    "DpmSolverPlusPlus3M",
    "Euler",
    "Fitted",
    "Ipndm",
    "LinearMultistep",
    "Mixed",
    "Solver",
    "UniP",
    "UniPC",
    "Walk",
    "along",
    "carried",
    "formulas",
    "get",
    "is_searched",
    "names",
    "padded",
    "past_times",
]
