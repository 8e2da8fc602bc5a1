"""Cells as a table: averages with their errors, paired differences, CSV, and the view in a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import torch
from rich.table import Table

from oss_ext.compare.cells import Cell
from oss_ext.compare.spread import Spread

OURS, BASES = "ours", ("stock", "published")
OTHERS = (*BASES, "rivals")
Entry = dict[str, Any]


def entries(cells: Sequence[Cell], naive: str = "naive") -> list[Entry]:
    """One entry a cell, in the same order: JSON values. A row on the first few noises alone is set beside the others on
    those.

    Averages: "psnr", of the squared error averaged over all noises; "mean_psnr", of the noises' own; "ssim", a mean.
    "std", "low", "high": standard deviation and 5 % and 95 % quantiles of the noises' own PSNRs. "worst_share": of all
    squared error, what is one noise's: of the pooled average, how much hangs on it. Paired differences,
    each [dB, standard error over noises] by both averages, or None where there is nothing to differ from:
    "over_stock" to the best of the groups "stock" and "published" with as large a budget, the best by that average;
    "over_naive" to the stock grid `naive`, the teacher's own, with the same solver; "over_ours" to the best row of
    ours, 0 for that row; "over_untrained" to the best of those that need no back-propagation.
    """
    found: dict[int, Entry] = {}
    places: dict[tuple[Any, ...], list[int]] = {}
    for place, cell in enumerate(cells):
        places.setdefault((cell.subject, cell.guidance, cell.budget), []).append(place)
    for some in places.values():
        for count in {_noises(cells[place]) for place in some}:
            long = [place for place in some if _noises(cells[place]) >= count]
            group = [cells[place] for place in long]
            spread = Spread(torch.tensor([(cell.psnr or [])[:count] for cell in group], dtype=torch.float64))
            for row, place in enumerate(long):
                if _noises(cells[place]) == count:
                    found[place] = _entry(group, row, spread, naive)
    return [found[place] for place in range(len(cells))]


def _noises(cell: Cell) -> int:
    return len(cell.psnr or ())


def _entry(group: Sequence[Cell], row: int, spread: Spread, naive: str) -> Entry:
    cell = group[row]
    assert cell.psnr is not None
    values = torch.tensor(cell.psnr, dtype=torch.float64)
    low, high = values.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    errors = 10 ** ((values.min() - values) / 10)  # squared, the worst being 1
    bases = {
        "over_stock": [n for n, one in enumerate(group) if one.group in BASES],
        "over_naive": [
            n
            for n, one in enumerate(group)
            if one.group == "stock" and one.name in (naive, "naive") and one.solver == cell.solver
        ],
        "over_ours": [n for n, one in enumerate(group) if one.group == OURS],
        "over_untrained": [n for n, one in enumerate(group) if one.group == OURS and not one.trained],
    }
    entry: Entry = {
        "subject": cell.subject,
        "guidance": cell.guidance,
        "budget": cell.budget,
        "group": cell.group,
        "name": cell.name,
        "solver": cell.solver,
        "trained": cell.trained,
        "nfe": cell.nfe,
        "noises": len(values),
        "psnr": float(spread.values["pooled"][row]),
        "psnr_error": spread.error("pooled", row),
        "mean_psnr": float(spread.values["mean"][row]),
        "mean_psnr_error": spread.error("mean", row),
        "std": float(values.std()) if len(values) > 1 else 0.0,
        "low": low,
        "high": high,
        "worst_share": float(1 / errors.sum()),
        "ssim": None if cell.ssim is None else sum(cell.ssim) / len(cell.ssim),
        "distances": cell.distances,
        "spent": cell.spent,
        "samples": cell.samples,
        "backpropagations": cell.backpropagations,
        "seconds": cell.seconds,
    }
    for name, among in bases.items():
        entry[name] = {
            measure: list(spread.gain(measure, row, max(among, key=lambda n: float(spread.values[measure][n]))))
            if among
            else None
            for measure in ("pooled", "mean")
        }
    return entry | {"t": cell.t, "t_spread": cell.t_spread, "notes": cell.notes, "recipe": cell.recipe}


def leaders(found: Sequence[Entry]) -> list[dict[str, Any]]:
    """Of every subject, guidance and budget: the best row of ours and the best of `OTHERS`, by both averages, and their
    paired difference [dB, standard error]; among all rows, and among those that need no training. Where there are no
    rows of ours, or no others, nothing."""
    best = []
    for key in dict.fromkeys(map(_cell, found)):
        for trained in (True, False):
            cell = [one for one in found if _cell(one) == key and (trained or not one["trained"])]
            ours = [one for one in cell if one["group"] == OURS]
            others = [one for one in cell if one["group"] in OTHERS]
            for measure, name in (("pooled", "psnr"), ("mean", "mean_psnr")):
                if ours and others:
                    mine, theirs = (max(some, key=lambda one: one[name]) for some in (ours, others))
                    line = dict(zip(("subject", "guidance", "budget", "noises"), key, strict=True))
                    line |= {"measure": measure, "training": trained, "ours": _called(mine), "ours_psnr": mine[name]}
                    over = theirs["over_ours" if trained else "over_untrained"][measure]
                    line |= {"rival": _called(theirs), "rival_psnr": theirs[name], "ahead": -over[0], "error": over[1]}
                    best.append(line)
    return best


def _cell(entry: Entry) -> tuple[Any, ...]:
    return entry["subject"], entry["guidance"], entry["budget"], entry["noises"]


def _called(entry: Entry) -> str:
    return f"{entry['group']}: {entry['name']}, {entry['solver']}"


def as_csv(found: Sequence[Entry]) -> str:
    """One line an entry; differences in two columns each, distances in one a number."""
    lines: list[dict[str, Any]] = []
    for one in found:
        line = {key: value for key, value in one.items() if not isinstance(value, dict | list)}
        line["evaluations"] = one["spent"].get("total", 0)
        for name in ("over_stock", "over_naive", "over_ours", "over_untrained"):
            for measure, pair in one[name].items():
                line[f"{name}_{measure}"], line[f"{name}_{measure}_error"] = pair or (None, None)
        for features, references in one["distances"].items():
            for reference, numbers in references.items():
                for kind, number in zip(("frechet", "kernel", "kernel_spread"), numbers, strict=True):
                    line[f"{features}_{reference}_{kind}"] = number
        line["t"] = " ".join(f"{t:.6g}" for t in one["t"])
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def view(found: Sequence[Entry], most: int = 15) -> Table:
    """Entries of one subject, guidance and budget: the `most` best by pooled PSNR, and the best of every group."""
    one = found[0]
    guided = "" if one["guidance"] is None else f", guidance {one['guidance']:g}"
    ranked = sorted(found, key=lambda each: -each["psnr"])
    best = {each["group"]: place for place, each in reversed(list(enumerate(ranked)))}
    kept = [each for place, each in enumerate(ranked) if place < most or place in best.values()]
    count = f"{len(kept)} of {len(found)} rows" if len(kept) < len(found) else f"{len(found)} rows"
    shown = Table(title=f"{one['subject']}{guided}, {one['budget']} evaluations, {count}", title_justify="left")
    shown.add_column("row", overflow="fold")
    heads = ["PSNR", "mean", "to stock", "to ours", "searched", "back-props"]
    features = next((name for each in found for name in each["distances"]), None)
    for name in [*heads, *(["Frechet"] if features else [])]:
        shown.add_column(name, justify="right", no_wrap=True)
    for each in kept:
        numbers = [each["distances"].get(features, {}).get("teacher")] if features else []
        shown.add_row(
            f"{each['group']}: {each['name']}, {each['solver']}",
            f"{each['psnr']:.2f}",
            f"{each['mean_psnr']:.2f}",
            _difference(each["over_stock"]["pooled"]),
            _difference(each["over_ours"]["pooled"]),
            f"{each['spent'].get('total', 0):.0f}",
            f"{each['backpropagations']}",
            *("" if each_distance is None else f"{each_distance[0]:.3g}" for each_distance in numbers),
            style="bold" if each is ranked[0] else None,
        )
    return shown


def _difference(pair: Sequence[float] | None) -> str:
    return "" if pair is None else f"{pair[0]:+.2f} ± {pair[1]:.2f}"
