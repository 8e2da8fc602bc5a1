"""docs/results.md, from benchmarks/results/compare_*.json."""

from __future__ import annotations

import json
from typing import Any


def dumps(result: dict[str, Any]) -> str:
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


def write() -> None:
    raise NotImplementedError
