"""The schedule file: JSON, versioned, checked by pydantic on the way in and on the way out.

Python writes the shortest decimal that reads back as the same float64, so every number survives bit for bit.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from oss_ext.files import whole_file
from oss_ext.provenance import Provenance

FORMAT, VERSION = "oss_ext.schedule", 1

FlowTime = Annotated[float, Field(ge=0, le=1)]


class ScheduleFile(BaseModel):
    """The fields of `oss_ext.Schedule`, in the order in which they are written."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    format: Literal["oss_ext.schedule"] = "oss_ext.schedule"
    version: Literal[1] = 1
    steps: int = Field(ge=1)
    parameterization: str
    solver: str
    carries: Literal["velocity", "x0", "epsilon"] = "velocity"  # files of before it was recorded lack it
    noise_scale: float | None = None  # likewise: t[0]
    t: list[FlowTime] = Field(min_length=2)
    nodes: list[Annotated[int, Field(ge=0)]] | None
    sigmas: list[float]
    timesteps: list[float]
    network_t: list[Annotated[float, Field(gt=0, le=1)]] | None = None  # likewise: t[:-1]
    coefficients: list[list[float]]
    provenance: Provenance

    @model_validator(mode="after")
    def _consistent(self) -> ScheduleFile:
        count = self.steps
        lengths = {"t": count + 1, "sigmas": count + 1, "timesteps": count, "coefficients": count}
        if self.nodes is not None:
            lengths["nodes"] = count + 1
        if self.network_t is not None:
            lengths["network_t"] = count
        for field, wanted in lengths.items():
            if len(getattr(self, field)) != wanted:
                raise ValueError(f"{field}: got {len(getattr(self, field))} entries, wanted {wanted} for {count} steps")
        if any(late >= early for early, late in zip(self.t, self.t[1:], strict=False)):
            raise ValueError(f"t: got {self.t}, wanted strictly descending")
        if self.t[-1] != 0:
            raise ValueError(f"t: got the last entry {self.t[-1]}, wanted 0")
        if self.nodes is not None and any(b <= a for a, b in zip(self.nodes, self.nodes[1:], strict=False)):
            raise ValueError(f"nodes: got {self.nodes}, wanted strictly ascending")
        widths = {len(row) for row in self.coefficients}
        if len(widths) != 1 or min(widths) < 2:
            raise ValueError(f"coefficients: got rows of {sorted(widths)} numbers, wanted one width of at least 2")
        return self


def write(path: str | os.PathLike[str], content: ScheduleFile) -> None:
    """Writes the file whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(_layout(content.model_dump(mode="json")) + "\n", encoding="utf-8")


def read(path: str | os.PathLike[str]) -> ScheduleFile:
    """Raises FileNotFoundError, or ValueError that names the file and the field at fault."""
    target = Path(path)
    try:
        text = target.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{target}: not UTF-8 text ({error}), wanted a schedule file") from None
    try:
        head = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{target}: not JSON ({error}), wanted a schedule file") from None
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        came = head.get("format") if isinstance(head, dict) else type(head).__name__
        raise ValueError(f"{target}: format: got {came!r}, wanted {FORMAT!r}")
    if head.get("version") != VERSION:
        raise ValueError(f"{target}: version: got {head.get('version')!r}, wanted {VERSION}")
    try:
        return ScheduleFile.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(f"{target}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    parts = []
    for item in error.errors(include_url=False):
        where = ".".join(map(str, item["loc"]))
        parts.append(f"{where}: {item['msg']}" if where else str(item["msg"]).removeprefix("Value error, "))
    return "; ".join(parts)


def _layout(fields: dict[str, Any]) -> str:
    """One field a line; lists on one line, rows of a matrix and entries of a dict on one line each."""
    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {_value(value)}" for key, value in fields.items()) + "\n}"


def _value(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[\n" + ",\n".join(f"    {_compact(row)}" for row in value) + "\n  ]"
    if isinstance(value, dict) and value:
        return "{\n" + ",\n".join(f"    {json.dumps(key)}: {_compact(item)}" for key, item in value.items()) + "\n  }"
    return _compact(value)


def _compact(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)
