"""What sampling needs of a schedule file, read without oss_ext, whose compiled module a user of a schedule lacks."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from .calibration import Calibration

FORMAT, VERSION = "oss_ext.schedule", 1
FIELDS = {
    *("format", "version", "steps", "parameterization", "solver", "carries", "noise_scale", "t", "nodes", "sigmas"),
    *("timesteps", "network_t", "coefficients", "calibration", "provenance"),
}
"""Those that these nodes know of: one more may change what a schedule means."""


@dataclass(frozen=True)
class Plan:
    """k steps in flow coordinates x_t = (1 - t) x0 + t eps; the fields are those of the file, as numbers.

    t: [k + 1], descending, the last 0. told: [k], the flow times that the network is told. coefficients: [k, P], of
    [state, velocity, earlier predictions, newest first]. carries: which prediction that is, "velocity", "x0" or
    "epsilon". noise_scale: sampling starts at noise_scale * noise. family: "flow", "edm", "epsilon", "v_param", "x0".
    calibration: what happens to a state before it is evaluated; None: nothing.
    """

    t: tuple[float, ...]
    told: tuple[float, ...]
    coefficients: tuple[tuple[float, ...], ...]
    carries: str
    noise_scale: float
    solver: str
    family: str
    calibration: Calibration | None = None

    @property
    def steps(self) -> int:
        return len(self.t) - 1

    def __post_init__(self) -> None:
        k = len(self.t) - 1
        numbers = [*self.t, *self.told, self.noise_scale, *(value for row in self.coefficients for value in row)]
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in numbers):
            raise ValueError("t, network_t, noise_scale, coefficients: wanted finite numbers")
        if k < 1 or self.t[-1] != 0 or self.t[0] > 1 or any(b >= a for a, b in zip(self.t, self.t[1:], strict=False)):
            raise ValueError(f"t: got {list(self.t)}, wanted at least two values from at most 1 down to 0")
        if len(self.told) != k or not all(0 < value <= 1 for value in self.told):
            raise ValueError(f"network_t: got {list(self.told)}, wanted {k} values above 0, at most 1")
        if len(self.coefficients) != k or len({len(row) for row in self.coefficients}) != 1:
            raise ValueError(f"coefficients: got rows of {[len(row) for row in self.coefficients]}, wanted {k} alike")
        if len(self.coefficients[0]) < 2:
            raise ValueError(f"coefficients: got rows of {len(self.coefficients[0])}, wanted at least 2")
        if self.carries not in ("velocity", "x0", "epsilon"):
            raise ValueError(f"carries: got {self.carries!r}, wanted velocity, x0 or epsilon")


def parse(text: str, name: str = "schedule") -> Plan:
    """The plan in the text of a schedule file. Raises ValueError that begins with `name`."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: not JSON ({error}), wanted a schedule file of oss_ext") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{name}: wanted a schedule file of oss_ext (format {FORMAT!r})")
    if content.get("version") != VERSION:
        raise ValueError(f"{name}: version: got {content.get('version')!r}, wanted {VERSION}: update these nodes")
    if unknown := set(content) - FIELDS:
        raise ValueError(f"{name}: has {', '.join(sorted(unknown))}, which these nodes do not know: update them")
    try:
        t, scale, told = content["t"], content.get("noise_scale"), content.get("network_t")
        return Plan(
            t=tuple(t),
            told=tuple(t[:-1] if told is None else told),
            coefficients=tuple(tuple(row) for row in content["coefficients"]),
            carries=content.get("carries", "velocity"),
            noise_scale=t[0] if scale is None else scale,
            solver=content["solver"],
            family=content["parameterization"],
            calibration=None
            if content.get("calibration") is None
            else Calibration.of(content["calibration"], len(t) - 1),
        )
    except KeyError as error:
        raise ValueError(f"{name}: lacks {error.args[0]!r}") from None
    except (TypeError, IndexError) as error:
        raise ValueError(f"{name}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def load(path: str | Path, steps: int = 0) -> Plan:
    """The plan in a schedule file, or of so many steps in the folder that a search wrote; 0: the file's, the most of a
    folder. Raises FileNotFoundError, or ValueError that lists the counts that there are: none is interpolated."""
    path = Path(path)
    if not path.is_dir():
        plan = parse(path.read_text(encoding="utf-8"), str(path))
        if steps not in (0, plan.steps):
            raise ValueError(f"steps: got {steps}, but {path.name} has {plan.steps}; search for {steps}, or set 0")
        return plan
    plans: dict[int, Plan] = {}
    for file in sorted(path.glob("*.json")):
        plan = parse(file.read_text(encoding="utf-8"), str(file))
        if plan.steps in plans:
            raise ValueError(f"{path}: holds several schedules of {plan.steps} steps; choose one of its files")
        plans[plan.steps] = plan
    if not plans:
        raise ValueError(f"{path}: holds no schedule files")
    if steps and steps not in plans:
        raise ValueError(f"steps: got {steps}, but {path.name} has schedules of {', '.join(map(str, sorted(plans)))}")
    return plans[steps or max(plans)]
