"""The schedule file: JSON, versioned, checked by pydantic on the way in and on the way out.

Python writes the shortest decimal that reads back as the same float64, so every number survives bit for bit.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from oss_ext.files import whole_file
from oss_ext.provenance import Provenance

FlowTime = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Document = TypeVar("Document", bound=BaseModel)


class Calibration(BaseModel):
    """What a schedule does to its states before it evaluates them (OSS, arXiv 2503.21774, "amplitude calibration").

    mode: "scale": each sample's state times (S_high - S_low) / (x_high - x_low), S being quantiles of the teacher's
        states and x those of this very state (Eq. 13); "affine": times that and shifted, so that both quantiles become
        the teacher's (the paper's published code); "gain": times a number that all samples share. A state whose two
        quantiles are equal stays as it is, but for "gain".
    quantiles: which two, as shares; low, high: the teacher's at every evaluation, in flow coordinates; None for "gain".
    gain: the numbers, one an evaluation; None otherwise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    mode: Literal["scale", "affine", "gain"]
    quantiles: tuple[Share, Share] | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    gain: tuple[float, ...] | None = None

    @property
    def steps(self) -> int:
        return len(self.gain or self.low or ())

    @model_validator(mode="after")
    def _consistent(self) -> Calibration:
        needed = ("gain",) if self.mode == "gain" else ("quantiles", "low", "high")
        for name in ("quantiles", "low", "high", "gain"):
            if (getattr(self, name) is not None) != (name in needed):
                wanted = "a value" if name in needed else "none"
                raise ValueError(f"{name}: got {getattr(self, name)} with mode {self.mode!r}, wanted {wanted}")
        if self.low is not None and self.high is not None and self.quantiles is not None:
            check_levels(self.quantiles, self.low, self.high)
        return self


def check_levels(quantiles: tuple[float, float], low: tuple[float, ...], high: tuple[float, ...]) -> None:
    """Raises ValueError unless the quantiles ascend and so do their levels, two at every place."""
    if quantiles[0] >= quantiles[1]:
        raise ValueError(f"quantiles: got {quantiles}, wanted two ascending shares")
    if len(low) != len(high):
        raise ValueError(f"high: got {len(high)} entries, wanted {len(low)}, as many as low")
    for place, (below, above) in enumerate(zip(low, high, strict=True)):
        if below > above:
            raise ValueError(f"high: got {above} at place {place}, wanted at least the {below} of low")


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
    calibration: Calibration | None = None  # likewise: none
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
        if self.calibration is not None and self.calibration.steps != count:
            raise ValueError(f"calibration: got {self.calibration.steps} entries, wanted {count} for {count} steps")
        return self


def write(path: str | os.PathLike[str], content: BaseModel) -> None:
    """Writes the file whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(_layout(content.model_dump(mode="json")) + "\n", encoding="utf-8")


def read(path: str | os.PathLike[str]) -> ScheduleFile:
    """Raises FileNotFoundError, or ValueError that names the file and the field at fault."""
    return read_as(ScheduleFile, path, "a schedule file")


def read_as(kind: type[Document], path: str | os.PathLike[str], called: str) -> Document:
    """A file of the format and version that are the defaults of `kind`. Errors as `read`; called: for these."""
    known, version = kind.model_fields["format"].default, kind.model_fields["version"].default
    target = Path(path)
    try:
        text = target.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{target}: not UTF-8 text ({error}), wanted {called}") from None
    try:
        head = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{target}: not JSON ({error}), wanted {called}") from None
    if not isinstance(head, dict) or head.get("format") != known:
        came = head.get("format") if isinstance(head, dict) else type(head).__name__
        raise ValueError(f"{target}: format: got {came!r}, wanted {known!r}")
    if head.get("version") != version:
        raise ValueError(f"{target}: version: got {head.get('version')!r}, wanted {version}")
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(f"{target}: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """One line of what pydantic found."""
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
