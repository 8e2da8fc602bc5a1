"""Comparisons: models x rows (grids, searches, rivals) x budgets, on noises that no search has seen."""

from oss_ext.compare.case import Case, Guide, Subject
from oss_ext.compare.catalogue import catalogue
from oss_ext.compare.cells import Cell
from oss_ext.compare.measures import Features
from oss_ext.compare.rows import Row
from oss_ext.compare.run import Comparison, chosen, compare
from oss_ext.compare.table import as_csv, entries, leaders, view

__all__ = [
    "Case",
    "Cell",
    "Comparison",
    "Features",
    "Guide",
    "Row",
    "Subject",
    "as_csv",
    "catalogue",
    "chosen",
    "compare",
    "entries",
    "leaders",
    "view",
]
