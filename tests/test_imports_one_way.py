"""Imports within the package go one way (lazy ones count): a module imports only from earlier groups of this list."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import oss_ext

GROUPS = [
    {"_C"},
    {
        "build",
        "validate",
        "progress",
        "provenance",
        "models",
        "files",
        "candidates",
        "beta_quantile",
        "transfer",
        "facts",
        "pace",
        "ranks",
    },
    {"kernels", "grids", "solvers", "evaluate", "schedule_file", "sigma_text", "costs"},
    {"sums"},
    {"fitting", "objective"},
    {"schedule", "single_step", "teacher", "plan", "proposals", "store"},
    {"checkpoint"},
    {"median", "stages", "walks", "drive", "calibration", "zoo", "published", "export"},
    {"distil", "mover"},
    {"auto"},
    {"search_core"},
    {"result", "refine"},
    {"search", "baselines", "metrics"},
    {"plot", "integrations"},
    {"compare"},
    {"cli"},
    {"__init__", "__main__"},
]
RANK = {name: rank for rank, group in enumerate(GROUPS) for name in group}
ALONE = {"reference"}  # the oracle: imports nothing of the package and nothing imports it
PACKAGE = Path(oss_ext.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def top_module(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The modules of the package, by first name, that the file at `path` imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import; write it out"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("oss_ext.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_imports_go_one_way(path):
    own = top_module(path)
    if own in ALONE:
        assert imported(path) == set()
        return
    base = own.split("_")[0] if own not in RANK else own  # cli_table belongs with cli, plot_curves with plot
    assert base in RANK, f"{own}: give the new module a place in GROUPS"
    for other in imported(path) - {own}:
        assert other not in ALONE, f"{own} imports {other}"
        if other in vars(oss_ext) and not (PACKAGE / f"{other}.py").exists() and not (PACKAGE / other).is_dir():
            assert other == "_C", f"{own} imports the public name {other} from oss_ext: import it from its module"
        rank = RANK[other if other in RANK else other.split("_")[0]]
        assert rank < RANK[base] or (rank == RANK[base] and other.startswith(base)), f"{own} imports {other}"


def test_only_kernels_and_build_touch_the_compiled_module():
    users = {top_module(path) for path in FILES if "_C" in imported(path)}
    users |= {top_module(path) for path in FILES if "import _C" in path.read_text(encoding="utf-8")}
    assert users <= {"build", "kernels"}


def test_the_files_are_the_installed_packages():
    assert {"search", "schedule", "kernels"} <= {top_module(path) for path in FILES}
