"""The figure of quality against evaluations: every point where it belongs, and the benchmark's numbers in it."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import same_color
from matplotlib.image import imread

from oss_ext.plot_curves import plot_curves

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
PANELS = {
    "one": {"stock": [(5, 20.0), (10, 24.0)], "ours": [(20, 40.0), (5, 25.0), (10, 31.0)]},
    "two": {"stock": [(5, 18.0)], "more": [(5, 19.0), (7, 22.0)]},
}


def test_every_point_is_drawn(tmp_path: Path) -> None:
    figure = plot_curves(PANELS, tmp_path / "a.png", references=["stock"])
    assert imread(tmp_path / "a.png").shape[:2] == (520, 1200)
    assert [axes.get_title() for axes in figure.axes] == ["one", "two"]
    for axes, curves in zip(figure.axes, PANELS.values(), strict=True):
        drawn = {line.get_label(): line.get_xydata() for line in axes.lines if len(line.get_xydata())}
        assert drawn.keys() == curves.keys()
        for name, points in curves.items():
            np.testing.assert_array_equal(drawn[name], sorted(points))
        assert axes.get_xticks().tolist() == sorted({x for points in curves.values() for x, _ in points})
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    left, right = ({line.get_label(): line for line in axes.lines} for axes in figure.axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["stock", "ours", "more"]
    assert left["stock"].get_linestyle() != "-" and left["ours"].get_linestyle() == "-"
    for name in ("stock", "ours", "more"):
        assert same_color(left[name].get_color(), right[name].get_color())
    assert not same_color(left["ours"].get_color(), left["more"].get_color())


@pytest.mark.parametrize(
    ("panels", "options", "error", "message"),
    [
        ({}, {}, TypeError, "panels"),
        ({"a": [(1, 2)]}, {}, TypeError, "panels"),
        ({"a": {"b": []}}, {}, ValueError, "no points"),
        ({"a": {"b": [(0, 2.0)]}}, {}, ValueError, "got the point"),
        ({"a": {"b": [(5, float("inf"))]}}, {}, ValueError, "got the point"),
        ({"a": {"b": [(5, 2.0)]}}, {"references": ["c"]}, ValueError, "references: got c"),
        ({"a": {"b": [(5, 2.0)]}}, {"path": "a.txt"}, ValueError, "path"),
    ],
)
def test_bad_input(panels: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plot_curves(panels, **options)


def row(group: str, name: str, solver: str, steps: int, nfe: int, psnr: float) -> dict[str, Any]:
    return {
        "guidance": 1.0, "group": group, "schedule": name, "solver": solver, "steps": steps, "nfe": nfe, "psnr": psnr,
    }  # fmt: skip


def test_the_benchmarks_figure_takes_the_best_stock_row_of_every_budget() -> None:
    rows = [
        row("stock", "flow", "euler", 5, 5, 20.0),
        row("stock", "edm", "heun", 5, 5, 21.0),
        row("stock", "edm", "heun", 10, 9, 26.0),
        row("published", "OSS median, all nodes", "euler", 5, 5, 24.0),
        row("ours", "joint", "fitted", 5, 5, 29.0),
        row("ours", "joint, free start", "fitted", 5, 5, 99.0),
        row("polished", "joint, nodes, gradient", "fitted", 5, 5, 98.0),
    ]
    curves = runpy.run_path(str(BENCHMARKS / "plot_schedules.py"))["panels"](rows)["guidance 1"]
    assert {name: points for name, points in curves.items() if points} == {
        "best stock schedule": [(5, 21.0), (10, 26.0)],
        "published OSS, Euler": [(5, 24.0)],
        "ours, fitted": [(5, 29.0)],
    }
