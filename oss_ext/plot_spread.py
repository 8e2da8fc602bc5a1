"""The figure of several schedules with their spread over samples. Needs the extra "demo" (matplotlib)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from oss_ext.plot import _GREY, _new_figure, _save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKS = "osD^vPX*<>"
Line = tuple[Sequence[float], Sequence[float] | None]
"""Flow times [k + 1], and their standard deviations over samples [k + 1] or None."""


def plot_spread(panels: Mapping[str, Mapping[str, Line]], path: str | os.PathLike[str] | None = None) -> Figure:
    """Flow time over the share of steps done, one panel a title, one line a name; a band of one standard deviation over
    samples where there is one (in the form of OSS, arXiv 2503.21774, Figures 5 and 10).

    panels: {title: {name: (flow times, their spread or None)}}; a name keeps its colour in every panel.
    path: where to write it too: .png (1200 x 520 pixels), .svg or .pdf; the file appears whole or not at all.
    Raises ValueError; ImportError without matplotlib.
    """
    if not panels or not all(panels.values()):
        raise ValueError("panels: wanted at least one, with at least one line each")
    for title, lines in panels.items():
        for name, (t, spread) in lines.items():
            if len(t) < 2 or (spread is not None and len(spread) != len(t)):
                raise ValueError(
                    f"panels[{title!r}][{name!r}]: got {len(t)} flow times and a spread of "
                    f"{'none' if spread is None else len(spread)}, wanted as many, at least 2"
                )
    figure = _new_figure(1200, 520)
    import matplotlib as mpl

    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    shades = mpl.colormaps["turbo"]([0.06 + 0.86 * k / max(len(names) - 1, 1) for k in range(len(names))])
    styles = {name: (shade, _MARKS[k % len(_MARKS)]) for k, (name, shade) in enumerate(zip(names, shades, strict=True))}
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, lines) in zip(every, panels.items(), strict=True):
        axes.plot([0, 1], [1, 0], "--", color=_GREY, linewidth=1.2, zorder=1)
        for name, (t, spread) in lines.items():
            shade, mark = styles[name]
            share = np.linspace(0, 1, len(t))
            level = np.asarray(t)
            axes.plot(share, level, color=shade, marker=mark, markersize=4, linewidth=1.5, label=name)
            if spread is not None:
                band = np.asarray(spread)
                axes.fill_between(share, level - band, level + band, color=shade, alpha=0.18, linewidth=0)
        axes.set_title(title, fontsize=12)
        axes.set_xlabel("share of the steps done")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e6e6", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=9, loc="lower left")
    every[0].set_ylabel("flow time t  (1: noise, 0: clean)")
    figure.tight_layout()
    _save(figure, path)
    return figure
