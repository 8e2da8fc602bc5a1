"""Figures of quality against network evaluations. Needs the extra "demo" (matplotlib)."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from oss_ext.plot import _GREY, _new_figure, _save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curves = Mapping[str, Sequence[tuple[float, float]]]
"""{name: points (evaluations, quality)}."""

_DASHES = ("--", ":", "-.")
_MARKS = "osD^vPX*<>"
_ACROSS = 5  # names in a line of the legend


def plot_curves(
    panels: Mapping[str, Curves],
    path: str | os.PathLike[str] | None = None,
    *,
    references: Collection[str] = (),
    y_label: str = "PSNR to the teacher, dB",
    log: bool = False,
) -> Figure:
    """One panel a title side by side, with one scale of quality: quality over evaluations, one line a name.

    panels: {title: {name: points}}; points are (evaluations > 0, quality), finite, and are joined in order of their
        evaluations, which lie on a logarithmic axis. A name keeps its colour and mark in every panel.
    path: where to write it too: .png (1200 x 520 pixels), .svg or .pdf; the file appears whole or not at all.
    log: a logarithmic axis of quality, which then has to be positive.
    references: names that are drawn grey and broken: what the others are compared with.

    Raises TypeError, ValueError; ImportError without matplotlib.
    """
    names = _check(panels, references)
    figure = _new_figure(1200, 520)
    import matplotlib as mpl

    ours = [name for name in names if name not in references]
    grey = [name for name in names if name in references]
    shades = mpl.colormaps["turbo"]([0.06 + 0.86 * k / max(len(ours) - 1, 1) for k in range(len(ours))])
    styles: dict[str, dict[str, Any]] = {
        name: {"color": shade, "linestyle": "-", "marker": _MARKS[k % len(_MARKS)], "linewidth": 1.8}
        for k, (name, shade) in enumerate(zip(ours, shades, strict=True))
    }
    for k, name in enumerate(grey):
        dash = _DASHES[k % len(_DASHES)]
        styles[name] = {"color": _GREY, "linestyle": dash, "marker": _MARKS[k % len(_MARKS)], "linewidth": 2}
    every_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, curves) in zip(every_axes, panels.items(), strict=True):
        for name in names:
            points = sorted(curves.get(name, ()))
            axes.plot([x for x, _ in points], [y for _, y in points], label=name, markersize=6, **styles[name])
        axes.set_xscale("log")
        if log:
            axes.set_yscale("log")
        ticks = sorted({x for points in curves.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("network evaluations a sample")
        axes.set_title(title, fontsize=12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e6e6", linewidth=0.7)
        axes.set_axisbelow(True)
    every_axes[0].set_ylabel(y_label)
    handles = every_axes[0].get_legend_handles_labels()
    lines = -(-len(names) // _ACROSS)
    figure.legend(
        *handles, frameon=False, fontsize=10, loc="lower center", handlelength=3, ncols=-(-len(names) // lines)
    )
    figure.tight_layout(rect=(0, 0.02 + 0.045 * lines, 1, 1))
    _save(figure, path)
    return figure


def _check(panels: Any, references: Any) -> list[str]:
    """The names of all panels, in order of first appearance."""
    if not isinstance(panels, Mapping) or not panels or not all(isinstance(one, Mapping) for one in panels.values()):
        raise TypeError("panels: wanted a dict of titles with a dict of names and points each")
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    for title, curves in panels.items():
        if not any(curves.values()):
            raise ValueError(f"panels[{title!r}]: got no points, wanted at least one")
        for name, points in curves.items():
            for point in points:
                if len(point) != 2 or not (point[0] > 0 and all(map(math.isfinite, point))):
                    raise ValueError(
                        f"panels[{title!r}][{name!r}]: got the point {point!r}, "
                        "wanted (evaluations > 0, quality), both finite"
                    )
    unknown = [name for name in references if name not in names]
    if unknown:
        raise ValueError(f"references: got {', '.join(unknown)}, wanted names of curves: {', '.join(names)}")
    return names
