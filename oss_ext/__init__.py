"""Optimal step schedules for diffusion and flow models (OSS, arXiv 2503.21774).

result = oss_ext.dp_search(oss_ext.FlowModel(velocity), noise, steps=10)
images = result.schedule.sample(model, noise)
"""

from oss_ext import costs, grids, published, solvers, zoo
from oss_ext.auto import Auto
from oss_ext.build import build_info
from oss_ext.calibration import amplitudes, amplitudes_of, fit_gains
from oss_ext.export import export
from oss_ext.models import Denoiser, EDMModel, EpsilonModel, FlowModel, VParamModel, X0Model
from oss_ext.refine import refine
from oss_ext.result import SearchResult
from oss_ext.schedule import Schedule
from oss_ext.schedule_calibration import Amplitudes
from oss_ext.search import dp_search
from oss_ext.solvers import Solver

__version__: str = build_info()["version"]
__all__ = [
    "Amplitudes",
    "Auto",
    "Denoiser",
    "EDMModel",
    "EpsilonModel",
    "FlowModel",
    "Schedule",
    "SearchResult",
    "Solver",
    "VParamModel",
    "X0Model",
    "amplitudes",
    "amplitudes_of",
    "build_info",
    "costs",
    "dp_search",
    "export",
    "fit_gains",
    "grids",
    "published",
    "refine",
    "solvers",
    "zoo",
]
