"""Figures of schedules and of samples. Needs the extra "demo" (matplotlib); no display, and no state of pyplot's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from oss_ext.files import whole_file
from oss_ext.metrics import pooled_psnr, psnr
from oss_ext.result import SearchResult
from oss_ext.schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 100
_GREY = "#666666"
_GAP, _BLOCK_GAP, _MARGIN, _CAPTION, _HEAD = 6, 34, 14, 22, 62  # pixels


def _new_figure(width: float, height: float) -> Figure:
    """A figure of `width` x `height` pixels at 100 dots an inch."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f'figures need matplotlib ({error}): pip install "oss-ext[demo]"') from error
    return Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")


def _save(figure: Figure, path: str | os.PathLike[str] | None) -> None:
    if path is None:
        return
    kind = Path(path).suffix.removeprefix(".").lower()
    if kind not in figure.canvas.get_supported_filetypes():
        raise ValueError(f"path: got {os.fspath(path)!r}, wanted a file name that ends in .png, .svg or .pdf")
    with whole_file(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=_DPI)


def plot_schedules(
    schedules: SearchResult | Schedule | Mapping[int, Schedule] | Sequence[Schedule],
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Flow time over the share of steps done, one line a schedule, and where the nodes of each lie.

    schedules: a result of `dp_search` (joint or median), one schedule, or several, as a list or by budget.
    path: where to write it too: .png (1200 x 520 pixels), .svg or .pdf; the file appears whole or not at all.

    The broken line, and the hollow marks, are steps of equal length in flow time from the same first node.
    Raises TypeError, ValueError; ImportError without matplotlib.
    """
    chosen = sorted(_schedules(schedules), key=lambda schedule: schedule.steps)
    figure = _new_figure(1200, 520)
    import matplotlib as mpl

    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1, 1.25]})
    colours = mpl.colormaps["viridis"](torch.linspace(0.88, 0.0, len(chosen)).numpy())
    first = max(float(schedule.t[0]) for schedule in chosen)
    left.plot([0, 1], [first, 0], "--", color=_GREY, linewidth=1.6, label="uniform", zorder=4)
    for row, (schedule, colour) in enumerate(zip(chosen, colours, strict=True)):
        t, steps = schedule.t.numpy(), schedule.steps
        share = (torch.arange(steps + 1).double() / steps).numpy()
        heavy = row == len(chosen) - 1
        left.plot(
            share,
            t,
            "o-",
            color=colour,
            linewidth=2.4 if heavy else 1.2,
            markersize=5 if heavy else 3,
            label=f"{steps} step{'s' if steps > 1 else ''}",
            zorder=3 if heavy else 2,
        )
        uniform = torch.linspace(float(t[0]), 0, steps + 1).numpy()
        right.plot(t, [row] * (steps + 1), "-", color=colour, linewidth=1, alpha=0.5, zorder=1)
        right.plot(uniform, [row] * (steps + 1), "o", mfc="white", mec=_GREY, mew=1, markersize=8, zorder=2)
        right.plot(t, [row] * (steps + 1), "o", color=colour, markersize=6, zorder=3)
    left.set(xlabel="share of the steps done", ylabel="flow time t  (1: noise, 0: clean)", xlim=(-0.02, 1.02))
    left.set_title("Flow time along the schedule", fontsize=12)
    left.set_ylim(-0.02, first * 1.02 + 0.01)
    left.legend(frameon=False, fontsize=9, ncols=2 if len(chosen) > 5 else 1, loc="lower left")
    right.set(xlabel="flow time t", ylabel="budget (steps)", yticks=range(len(chosen)))
    right.set_yticklabels([str(schedule.steps) for schedule in chosen])
    right.set_xlim(first * 1.03, -0.03)
    right.set_ylim(len(chosen) - 0.5, -0.5)
    right.set_title("Where the nodes lie (filled), and a uniform schedule's (hollow)", fontsize=12)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e6e6", linewidth=0.7)
        axes.set_axisbelow(True)
    figure.tight_layout()
    _save(figure, path)
    return figure


def plot_comparison(
    columns: Mapping[str, Tensor],
    path: str | os.PathLike[str] | None = None,
    *,
    labels: Sequence[str] | None = None,
    blocks: int | None = None,
    scale: int | None = None,
) -> Figure:
    """Samples side by side: one row a sample, one column a sampler, the first of them the teacher.

    columns: {title: images [B, C, H, W] in [-1, 1]}, C = 1 or 3, all of one shape; values outside are clipped for
        display. What follows ", " in a title stands on a second line. Under each picture stands its PSNR to the first
        column, under each title that of the whole column (`pooled_psnr`).
    path: where to write it too: .png, .svg or .pdf; the file appears whole or not at all.
    labels: a name for each sample. blocks: how many blocks of rows stand side by side; default one for every 3 samples,
        at most 3. scale: pixels a pixel (nearest); default as many as fit into 128 pixels of height, at least 1.

    Raises TypeError, ValueError; ImportError without matplotlib or torchmetrics.
    """
    titles, images = _columns(columns)
    count, _, height, width = images[0].shape
    if labels is not None and len(labels) != count:
        raise ValueError(f"labels: got {len(labels)}, wanted {count}, one a sample")
    blocks = blocks if blocks is not None else max(1, min(3, count // 3))
    scale = scale if scale is not None else max(1, 128 // height)
    if blocks < 1 or scale < 1:
        raise ValueError(f"blocks, scale: got {blocks} and {scale}, wanted whole numbers of at least 1")
    scores = [psnr(column, images[0]) for column in images[1:]]
    rows = -(-count // blocks)
    tile_w, tile_h = width * scale, height * scale
    name_w = 0 if labels is None else 20
    block_w = name_w + len(images) * (tile_w + _GAP) - _GAP
    full_w = 2 * _MARGIN + blocks * (block_w + _BLOCK_GAP) - _BLOCK_GAP
    full_h = 2 * _MARGIN + _HEAD + rows * (tile_h + _CAPTION)
    figure = _new_figure(full_w, full_h)

    def text(x: float, y: float, content: str, **style: Any) -> None:
        figure.text(x / full_w, 1 - y / full_h, content, ha="center", **style)

    for block in range(-(-count // rows)):
        for column, title in enumerate(titles):
            x = _MARGIN + block * (block_w + _BLOCK_GAP) + name_w + column * (tile_w + _GAP)
            head, _, rest = title.partition(", ")
            text(x + tile_w / 2, _MARGIN + 12, head, fontsize=11, fontweight="bold", va="baseline")
            text(x + tile_w / 2, _MARGIN + 31, rest, fontsize=10, va="baseline")
            whole = "reference" if column == 0 else f"all {count}: {float(pooled_psnr(scores[column - 1])):.1f} dB"
            text(x + tile_w / 2, _MARGIN + 49, whole, fontsize=9, color=_GREY, va="baseline")
            for row, sample in enumerate(range(block * rows, min(count, (block + 1) * rows))):
                y = _MARGIN + _HEAD + row * (tile_h + _CAPTION)
                place = (x / full_w, 1 - (y + tile_h) / full_h, tile_w / full_w, tile_h / full_h)
                axes = figure.add_axes(place)
                axes.imshow(_pixels(images[column][sample]).numpy(), interpolation="nearest", aspect="auto")
                axes.set_axis_off()
                if column:
                    value = float(scores[column - 1][sample])
                    text(x + tile_w / 2, y + tile_h + 14, f"{value:.1f} dB", fontsize=9, va="baseline")
                elif labels is not None:
                    side = {"rotation": 90, "va": "center", "fontsize": 9, "color": _GREY}
                    text(x - name_w / 2 - 2, y + tile_h / 2, labels[sample], **side)
    _save(figure, path)
    return figure


def write_sheet(images: Tensor, path: str | os.PathLike[str], *, columns: int | None = None, scale: int = 1) -> None:
    """Writes a contact sheet as PNG, whole or not at all; tiles in rows from the upper left, two white pixels between.

    images: [B, C, H, W] in [-1, 1], C = 1 or 3; values outside are clipped. columns: tiles a row; default about square.
    scale: pixels a pixel (nearest). Raises TypeError, ValueError; ImportError without matplotlib.
    """
    _check_images("images", images)
    count, _, height, width = images.shape
    across = columns if columns is not None else next(n for n in range(1, count + 1) if n * n >= count)
    if across < 1 or scale < 1:
        raise ValueError(f"columns, scale: got {columns} and {scale}, wanted whole numbers of at least 1")
    try:
        from matplotlib.image import imsave
    except ImportError as error:
        raise ImportError(f'a PNG sheet needs matplotlib ({error}): pip install "oss-ext[demo]"') from error
    down, gap = -(-count // across), 2
    sheet = torch.full((down * (height * scale + gap) - gap, across * (width * scale + gap) - gap, 3), 255).byte()
    for index, image in enumerate(images):
        y, x = index // across * (height * scale + gap), index % across * (width * scale + gap)
        tile = _pixels(image).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        sheet[y : y + height * scale, x : x + width * scale] = tile
    with whole_file(path) as temporary:
        imsave(temporary, sheet.numpy(), format="png")


def is_image(samples: Tensor) -> bool:
    """Whether `samples` is [B, C, H, W] with 1 or 3 channels."""
    return samples.ndim == 4 and samples.shape[1] in (1, 3) and samples.is_floating_point() and samples.numel() > 0


def _check_images(name: str, images: Any) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"{name}: got {type(images).__name__}, wanted a floating tensor [B, C, H, W]")
    if not is_image(images):
        raise ValueError(
            f"{name}: got {images.dtype} of shape {list(images.shape)}, wanted floating [B, C, H, W] with C = 1 or 3"
        )


def _columns(columns: Mapping[str, Tensor]) -> tuple[list[str], list[Tensor]]:
    if not isinstance(columns, Mapping) or len(columns) < 2:
        raise ValueError("columns: wanted a dict of at least two titles, the first the teacher's")
    for title, images in columns.items():
        _check_images(f"columns[{title!r}]", images)
    shapes = {title: list(images.shape) for title, images in columns.items()}
    if len({tuple(shape) for shape in shapes.values()}) != 1:
        raise ValueError(f"columns: got shapes {shapes}, wanted one shape")
    return list(columns), [images.detach().cpu().float() for images in columns.values()]


def _pixels(image: Tensor) -> Tensor:
    """uint8 [H, W, 3] of one image [C, H, W] in [-1, 1]."""
    colour = image.detach().cpu().float().expand(3, -1, -1) if image.shape[0] == 1 else image.detach().cpu().float()
    return ((colour.movedim(0, -1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _schedules(given: Any) -> list[Schedule]:
    if isinstance(given, SearchResult):
        given = given.schedules
    if isinstance(given, Mapping):
        given = list(given.values())
    found = [given] if isinstance(given, Schedule) else list(given) if isinstance(given, Sequence) else None
    if not found or not all(isinstance(schedule, Schedule) for schedule in found):
        raise TypeError(
            "schedules: wanted a SearchResult with one schedule a budget, a Schedule, or a list or dict of them; "
            "of a per_sample result hand in the schedules of one sample"
        )
    return found
