"""Draws the pictures of docs/kernels.md: python docs/draw_kernels.py.

How a residual is cut, and how tiles lie over the pairs, on a small made-up trajectory; times beside their floors, from
benchmarks/results/kernels.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

ROOT = Path(__file__).resolve().parents[1]
IMAGES, RESULTS = ROOT / "docs" / "images", ROOT / "benchmarks" / "results"
RUN, TILE, BAND = 13, 26, 32  # targets of a run, of a tile; sources of a warp: of the picture, not of the kernel
STATE, TARGET, LINE, STEP, BENT = "#1f77b4", "#222222", "#999999", "#d62728", "#2ca02c"


def residual(path: Path) -> None:
    """One run of targets, its straight line, a source and its step to one of them."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    panel = figure.subplots()
    panel.set_aspect("equal")
    panel.set_axis_off()
    way = torch.linspace(0, 1, 9)
    x, y = 6 * way, 1.9 * (way * (1 - way)) * 4 * 0.55
    first, last, j = 0, 8, 5
    panel.plot([x[first], x[last]], [y[first], y[last]], "--", color=LINE, lw=1.2)
    panel.plot(x, y, "o-", color=TARGET, ms=5, lw=1, label="teacher's states, one run of targets")
    source, near, far = torch.tensor([-1.7, -0.75]), torch.tensor([0.12, 0.42]), torch.tensor([6.15, 0.75])
    on_line = torch.stack([x[j], torch.tensor(0.0)])
    landed = near + (far - near) * way[j]
    panel.plot(*source, "s", color=STATE, ms=8)
    panel.annotate("state of source i", source.tolist(), (-1.9, -1.15), color=STATE)
    for end in (near, far, landed):
        panel.annotate("", end.tolist(), source.tolist(), arrowprops={"arrowstyle": "->", "color": STATE, "lw": 0.9})
    panel.plot([near[0], far[0]], [near[1], far[1]], ":", color=STATE, lw=1.2)
    arrows = [
        ((x[first], y[first]), near, "$r0_i$", (-0.32, 0.1), STEP),
        ((x[last], y[last]), far, "$r1_i$", (0.1, -0.25), STEP),
        (on_line, landed, "$f_{ij}$", (0.1, -0.3), STEP),
        (on_line, (x[j], y[j]), "$y''_j$", (-0.45, 0.0), BENT),
    ]
    for begin, end, text, shift, colour in arrows:
        begin, end = [float(n) for n in begin], [float(n) for n in end]
        if text == "$y''_j$":
            begin[0] -= 0.06
            end[0] -= 0.06
        panel.annotate("", end, begin, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.8})
        panel.text((begin[0] + end[0]) / 2 + shift[0], (begin[1] + end[1]) / 2 + shift[1], text, color=colour, size=13)
    panel.text(x[first] - 0.1, y[first] - 0.38, "$y_f$", size=12)
    panel.text(x[last] + 0.02, y[last] - 0.42, "$y_l$", size=12)
    panel.text(x[j] - 0.05, y[j] + 0.14, "$y_j$", size=12)
    panel.text(landed[0] + 0.12, landed[1] + 0.02, "$z_{ij}$", size=12, color=STATE)
    panel.legend(loc="upper left", frameon=False)
    figure.savefig(path, dpi=120)


def tiles(path: Path) -> None:
    """Costs of all pairs of a stage, the tiles and bands over them, and the shortlists."""
    nodes, dim = 66, 4096
    generator = torch.Generator().manual_seed(0)
    t = torch.linspace(1, 0, nodes, dtype=torch.float64)[:, None]
    a, b, c = (torch.randn(dim, generator=generator, dtype=torch.float64) for _ in range(3))
    y = a * t + b * (1 - t) + c * t * (1 - t)
    x = y + 0.03 * (1 - t) * torch.randn(nodes, dim, generator=generator, dtype=torch.float64)
    v = a - b + c * (1 - 2 * t)
    cost = torch.full((nodes, nodes), torch.nan, dtype=torch.float64)
    for i in range(nodes):
        cost[i, i + 1 :] = (x[i] + (t[i + 1 :] - t[i]) * v[i] - y[i + 1 :]).square().mean(1)
    figure = Figure(figsize=(7.2, 6), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(cost.log10(), cmap="viridis_r", interpolation="nearest")
    figure.colorbar(image, label="log10 of the cost", shrink=0.8)
    for left in range(1, nodes, TILE):
        right = min(left + TILE, nodes)
        for top in range(0, right - 1, BAND):
            size = (right - left, min(top + BAND, right - 1) - top)
            panel.add_patch(Rectangle((left - 0.5, top - 0.5), *size, fill=False, lw=1.4))
        for run in range(left + RUN, right, RUN):
            panel.plot([run - 0.5] * 2, [-0.5, right - 1.5], color="black", lw=0.5, ls=":")
    best = cost.nan_to_num(torch.inf)
    kept = best <= 1.02 * best.min(0).values
    places = kept.nonzero()
    places = places[places[:, 1] > 0]
    panel.plot(places[:, 1], places[:, 0], ".", color="#d62728", ms=4, label="on a shortlist")
    panel.set_xlabel("target j")
    panel.set_ylabel("source i")
    panel.legend(loc="lower left")
    figure.savefig(path, dpi=110)


def times(path: Path) -> None:
    """Every size: the stage, the one with the cost of every pair, and peers, as multiples of the floor."""
    result = json.loads((RESULTS / "kernels.json").read_text(encoding="utf-8"))
    rows = result["rows"]
    figure = Figure(figsize=(9, 4), layout="constrained")
    panel = figure.subplots()
    series = {
        "best_step": lambda row: row["ours_graph"]["median_ms"],
        "every pair's cost": lambda row: row["exact_graph"]["median_ms"],
        "torch, TF32 Gram form (other sources)": lambda row: row["peers"]["gram_bmm_tf32"]["median_ms"],
        "published loop": lambda row: row["peers"]["source_loop"]["median_ms"],
    }
    for place, (name, value) in enumerate(series.items()):
        at = [k + 0.2 * (place - 1.5) for k in range(len(rows))]
        heights = [value(row) / row["floor_ms"] for row in rows]
        bars = panel.bar(at, heights, 0.19, label=name)
        panel.bar_label(bars, [f"{height:.1f}" if height < 10 else f"{height:.0f}" for height in heights], size=6.5)
    panel.set_yscale("log")
    panel.axhline(1, color="black", lw=0.8)
    panel.set_xticks(range(len(rows)), [f"{row['batch']}, {row['steps']}\n{row['dim']}" for row in rows], size=8)
    panel.set_ylabel("times the floor")
    panel.set_title(f"One stage (B, N, D), {result['gpu']}", size=10)
    panel.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=120)


def main() -> None:
    residual(IMAGES / "kernels_residual.png")
    tiles(IMAGES / "kernels_tiles.png")
    if "exact_graph" in json.loads((RESULTS / "kernels.json").read_text(encoding="utf-8"))["rows"][0]:
        times(IMAGES / "kernels_times.png")


if __name__ == "__main__":
    main()
