"""What docs/results.md is made of: the result files of benchmarks/results, and how numbers of them are written."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
MISSING = "Not measured yet."
MEASURES = {"pooled": "psnr", "mean": "mean_psnr"}

Result = dict[str, Any]
Entry = dict[str, Any]
Pair = Sequence[float]


def dumps(result: Result) -> str:
    """JSON with one line a row and four digits behind the point."""

    def short(value: Any) -> Any:
        if isinstance(value, float):
            return round(value, 4)
        if isinstance(value, dict):
            return {key: short(each) for key, each in value.items()}
        return [short(each) for each in value] if isinstance(value, list) else value

    rows = ",\n".join(json.dumps(short(row)) for row in result["rows"])
    rest = json.dumps(short({key: value for key, value in result.items() if key != "rows"}), indent=1)
    return rest[:-2] + f',\n "rows": [\n{rows}\n ]\n}}\n'


class Found:
    """The studies that were measured, by name, and other benchmarks' files."""

    def __init__(self, folder: Path = RESULTS) -> None:
        self.folder = folder
        self._known: dict[str, Result | None] = {}

    def file(self, name: str) -> Result | None:
        """benchmarks/results/`name`.json; None where there is none."""
        if name not in self._known:
            path = self.folder / f"{name}.json"
            self._known[name] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        return self._known[name]

    def __getitem__(self, study: str) -> Result | None:
        return self.file(f"compare_{study}")

    def rows(self, study: str, **wanted: Any) -> list[Entry]:
        result = self[study]
        return [] if result is None else [row for row in result["rows"] if all(row[k] == v for k, v in wanted.items())]

    def one(self, study: str, **wanted: Any) -> Entry | None:
        """The best of the rows with these entries by pooled PSNR; None where there is none."""
        return max(self.rows(study, **wanted), key=lambda row: row["psnr"], default=None)

    def titles(self) -> list[tuple[str, float]]:
        """(model, guidance) of the main study."""
        result = self["main"]
        return [] if result is None else [(case["subject"], case["guidance"]) for case in result["cases"]]

    def budgets(self, study: str) -> list[int]:
        return sorted({row["budget"] for row in self.rows(study)})


def table(head: Sequence[str], lines: Iterable[Sequence[str]], words: int = 1, also: Collection[int] = ()) -> str:
    """words: columns at the left that are no numbers. also: places of more of them."""
    rule = ["---" if place < words or place in also else "---:" for place in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines])


def paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def both(row: Entry | None) -> str:
    return "" if row is None else f"{row['psnr']:.1f} / {row['mean_psnr']:.1f}"


def difference(pair: Pair | None, digits: int = 1) -> str:
    return "" if pair is None else f"{pair[0]:+.{digits}f} ± {pair[1]:.{digits}f}"


def called(row: Entry) -> str:
    return f"{row['name']}, {row['solver']}"
