"""The figure of amplitudes over flow time. Needs the extra "demo" (matplotlib)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from oss_ext.plot import _GREY, _new_figure, _save
from oss_ext.schedule_calibration import Amplitudes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKS = "osD^vPX*<>"


def plot_amplitudes(amplitudes: Mapping[str, Amplitudes], path: str | os.PathLike[str] | None = None) -> Figure:
    """Both quantiles over flow time, noise on the left, and below them what each differs from the teacher's by (in the
    form of OSS, arXiv 2503.21774, Figure 4).

    amplitudes: {name: as from `oss_ext.amplitudes` or `amplitudes_of`}, the teacher's first, then at least one more;
        all of the same two quantiles, and none from above the teacher's first flow time.
    path: where to write it too: .png (1200 x 760 pixels), .svg or .pdf; the file appears whole or not at all.

    Raises TypeError, ValueError; ImportError without matplotlib.
    """
    name, teacher, students = _check(amplitudes)
    figure = _new_figure(1200, 760)
    import matplotlib as mpl

    grid = figure.subplots(2, 2, sharex=True, gridspec_kw={"height_ratios": [1.5, 1]})
    shades = mpl.colormaps["turbo"]([0.06 + 0.86 * k / max(len(students) - 1, 1) for k in range(len(students))])
    for side, (share, axes, below) in enumerate(zip(teacher.quantiles, grid[0], grid[1], strict=True)):
        axes.plot(teacher.t, (teacher.low, teacher.high)[side], "--", color=_GREY, linewidth=2.4, label=name, zorder=4)
        below.axhline(0, linestyle="--", color=_GREY, linewidth=1.6)
        for k, ((title, one), shade) in enumerate(zip(students.items(), shades, strict=True)):
            levels = torch.tensor((one.low, one.high)[side], dtype=torch.float64)
            t = torch.tensor(one.t, dtype=torch.float64)
            style: dict[str, Any] = {"color": shade, "marker": _MARKS[k % len(_MARKS)], "linewidth": 1.4}
            axes.plot(t.numpy(), levels.numpy(), label=title, markersize=5, **style)
            off = levels - teacher.at(t)[:, side]
            below.plot(t.numpy(), off.numpy(), label=title, markersize=5, **style)
        axes.set_title(f"{100 * share:g} % quantile of the states", fontsize=12)
        below.set_xlabel("flow time t  (1: noise, 0: clean)")
        for each in (axes, below):
            each.spines[["top", "right"]].set_visible(False)
            each.grid(color="#e6e6e6", linewidth=0.7)
            each.set_axisbelow(True)
    grid[0][0].set_xlim(teacher.t[0] * 1.03, -0.03)
    grid[0][0].set_ylabel("flow coordinates")
    grid[1][0].set_ylabel(f"minus {name}")
    grid[0][0].legend(frameon=False, fontsize=10)
    figure.tight_layout()
    _save(figure, path)
    return figure


def _check(amplitudes: Any) -> tuple[str, Amplitudes, dict[str, Amplitudes]]:
    """(the first name, its amplitudes, the others)."""
    if not isinstance(amplitudes, Mapping) or not all(isinstance(each, Amplitudes) for each in amplitudes.values()):
        raise TypeError("amplitudes: wanted a dict of names and Amplitudes")
    if len(amplitudes) < 2:
        raise ValueError(f"amplitudes: got {len(amplitudes)}, wanted the teacher's and at least one more")
    (name, teacher), *others = amplitudes.items()
    for title, one in others:
        if one.quantiles != teacher.quantiles:
            raise ValueError(f"amplitudes[{title!r}]: got the quantiles {one.quantiles}, wanted {teacher.quantiles}")
        if one.t[0] > teacher.t[0] * (1 + 1e-6):
            raise ValueError(
                f"amplitudes[{title!r}]: got the first flow time {one.t[0]:.9g}, wanted at most {teacher.t[0]:.9g}, "
                f"that of {name}"
            )
    return name, teacher, dict(others)
