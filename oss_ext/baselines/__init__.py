"""The rivals: other methods that make schedules, each written from its paper. Their schedules sample as ours do.

Fixed grids are in `oss_ext.grids`, published tables (AYS) in `oss_ext.published`.
"""

from oss_ext.baselines.bns import bns
from oss_ext.baselines.dm import dm
from oss_ext.baselines.ds_solver import ds_solver
from oss_ext.baselines.dyweight import dyweight
from oss_ext.baselines.fit_grid import fit_grid
from oss_ext.baselines.found import Found
from oss_ext.baselines.gits import gits
from oss_ext.baselines.ld3 import ld3
from oss_ext.baselines.s4s import s4s
from oss_ext.baselines.training import Training

__all__ = ["Found", "Training", "bns", "dm", "ds_solver", "dyweight", "fit_grid", "gits", "ld3", "s4s"]
