"""Draws docs/images/psnr_vs_nfe.png of results/schedules.json: python benchmarks/plot_schedules.py [JSON] [picture]"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from oss_ext.plot_curves import plot_curves

ROOT = Path(__file__).resolve().parents[1]
STOCK, PUBLISHED = "best stock schedule", "published OSS, Euler"
SHOWN = {
    ("joint", "euler"): "ours, euler",
    ("joint", "ab2"): "ours, ab2",
    ("joint", "dpmpp_2m"): "ours, dpmpp_2m",
    ("joint", "unipc"): "ours, unipc",
    ("joint", "mixed"): "ours, mixed",
    ("joint", "fitted"): "ours, fitted",
    ("auto", "auto"): "ours, auto",
}


def panels(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """{guidance: {name: [(evaluations, pooled PSNR)]}}; of the stock rows the best of every budget."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for guidance in sorted({row["guidance"] for row in rows}):
        mine = [row for row in rows if row["guidance"] == guidance]
        stock = [row for row in mine if row["group"] == "stock"]
        curves = found[f"guidance {guidance:g}"] = {STOCK: [], PUBLISHED: []}
        for steps in sorted({row["steps"] for row in stock}):
            best = max((row for row in stock if row["steps"] == steps), key=lambda row: row["psnr"])
            curves[STOCK].append((steps, best["psnr"]))
        curves[PUBLISHED] = [(row["nfe"], row["psnr"]) for row in mine if row["group"] == "published"]
        for key, name in SHOWN.items():
            searched = [row for row in mine if row["group"] == "ours" and (row["schedule"], row["solver"]) == key]
            curves[name] = [(row["nfe"], row["psnr"]) for row in searched]
    return found


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks" / "results" / "schedules.json"
    picture = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs" / "images" / "psnr_vs_nfe.png"
    plot_curves(panels(json.loads(source.read_text())["rows"]), picture, references=(STOCK, PUBLISHED))
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()
