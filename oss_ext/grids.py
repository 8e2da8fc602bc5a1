"""Named grids of flow times: float64 [steps + 1], descending, the last 0.

A network that knows every t in (0, 1] (t_min = 0) gets `steps` intervals over [0, t_max]. One that ends at t_min > 0
(EDM, VP) gets `steps` nodes from t_max to t_min and then the jump to 0, as the samplers of these families do.
In flow time sigma = t / (1 - t) is the variance-exploding noise level, whatever the family.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from oss_ext.beta_quantile import beta_quantile
from oss_ext.models import Denoiser
from oss_ext.validate import choice, whole_number

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
"""EDM's range (Karras et al., arXiv 2206.00364, Table 1): the ends of "edm" and "logsnr" where the model names none."""

NODES = ("any", "integer")
SLACK = 1e-6  # relative: what a node may pass a model's t_max or t_min by


class NoiseRange(Protocol):
    """What a grid needs to know of a model; see `oss_ext.models.Denoiser`."""

    t_max: float
    t_min: float
    flow_table: Tensor | None


@dataclass(frozen=True)
class _Range:
    t_max: float
    t_min: float
    table: Tensor | None


def _sigma_to_t(sigma: Tensor) -> Tensor:
    return sigma / (1 + sigma)


def _sigma_range(known: _Range, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    """(min, max): as given, else the model's own ends where it has them, else EDM's."""
    low = sigma_min if sigma_min is not None else known.t_min / (1 - known.t_min) if known.t_min > 0 else SIGMA_MIN
    high = sigma_max if sigma_max is not None else known.t_max / (1 - known.t_max) if known.t_max < 1 else SIGMA_MAX
    if not 0 < low < high < math.inf:
        raise ValueError(f"grid: got sigma_min = {low} and sigma_max = {high}, wanted 0 < sigma_min < sigma_max < inf")
    return low, high


def _linear_beta_table() -> Tensor:
    """Flow times of DDPM's linear-beta table (arXiv 2006.11239): 1000 timesteps, beta from 1e-4 to 0.02."""
    alphas_cumprod = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    return _sigma_to_t(((1 - alphas_cumprod) / alphas_cumprod).sqrt())


def _interpolate(table: Tensor, timestep: Tensor) -> Tensor:
    """Flow times at fractional timesteps: log sigma linear between the table's entries, as the VP models do."""
    log_sigma = (table / (1 - table)).log()
    low = timestep.floor().long().clamp(0, len(table) - 2)
    between = log_sigma[low] + (timestep - low) * (log_sigma[low + 1] - log_sigma[low])
    exact = timestep == timestep.round()
    return torch.where(exact, table[timestep.round().long()], _sigma_to_t(between.exp()))


def _timestep(table: Tensor, t: float) -> float:
    """The fractional timestep of flow time t, clamped to the table."""
    if t <= float(table[0]):
        return 0.0
    if t >= float(table[-1]):
        return float(len(table) - 1)
    log_sigma = (table / (1 - table)).log()
    value = math.log(t / (1 - t))
    low = int(torch.searchsorted(table, torch.tensor(t, dtype=torch.float64), right=True)) - 1
    return low + (value - float(log_sigma[low])) / float(log_sigma[low + 1] - log_sigma[low])


def _unshifted(t: float, shift: float) -> float:
    return t / (shift - (shift - 1) * t)


def _shifted(u: Tensor, shift: float) -> Tensor:
    """The resolution shift u -> k u / (1 + (k-1) u) (Esser et al., arXiv 2403.03206, eq. 23)."""
    return shift * u / (1 + (shift - 1) * u)


def _flow(steps: int, known: _Range, shift: float = 1.0) -> Tensor:
    """Uniform u, then the resolution shift."""
    if not 0 < shift < math.inf:
        raise ValueError(f"grid: got shift = {shift}, wanted a positive number")
    first, last = _unshifted(known.t_max, shift), _unshifted(known.t_min, shift)
    if known.t_min > 0:
        return _shifted(torch.linspace(first, last, steps, dtype=torch.float64), shift)
    return _shifted(torch.linspace(first, 0, steps + 1, dtype=torch.float64)[:-1], shift)


def _edm(
    steps: int, known: _Range, rho: float = 7.0, sigma_min: float | None = None, sigma_max: float | None = None
) -> Tensor:
    """Karras et al., arXiv 2206.00364, eq. 5: sigma^(1/rho) uniform."""
    if not 0 < rho < math.inf:
        raise ValueError(f"grid: got rho = {rho}, wanted a positive number")
    low, high = _sigma_range(known, sigma_min, sigma_max)
    return _sigma_to_t(torch.linspace(high ** (1 / rho), low ** (1 / rho), steps, dtype=torch.float64) ** rho)


def _logsnr(steps: int, known: _Range, sigma_min: float | None = None, sigma_max: float | None = None) -> Tensor:
    """Uniform in log-SNR = -2 log sigma (Lu et al., DPM-Solver, arXiv 2206.00927, section 3.4)."""
    low, high = _sigma_range(known, sigma_min, sigma_max)
    return _sigma_to_t(torch.linspace(math.log(high), math.log(low), steps, dtype=torch.float64).exp())


def _timestep_axis(known: _Range) -> tuple[Tensor, float, float]:
    """(table, first timestep, last timestep). Without a table of its own: DDPM's, cut to the model's range."""
    table = known.table if known.table is not None else _linear_beta_table()
    first, last = _timestep(table, known.t_max), _timestep(table, known.t_min)
    if first <= last:
        raise ValueError(f"grid: the model's range {known.t_min}..{known.t_max} lies outside the table of timesteps")
    return table, first, last


def _ddim(steps: int, known: _Range) -> Tensor:
    """Uniform in the discrete timestep (Song et al., arXiv 2010.02502, "linear"), both ends included, whole timesteps.

    A model without a table gets DDPM's linear-beta one (1000 timesteps), and fractional timesteps of it.
    """
    table, first, last = _timestep_axis(known)
    timestep = torch.linspace(first, last, steps, dtype=torch.float64)
    if known.table is not None:
        if steps > len(table):
            raise ValueError(f"grid: got {steps} steps for 'ddim', wanted at most {len(table)}, the model's timesteps")
        timestep = (timestep + 0.5).floor()  # strictly descending still: the spacing is at least 1
    return _interpolate(table, timestep)


def _quadratic(steps: int, known: _Range) -> Tensor:
    """sqrt(timestep) uniform (Song et al., arXiv 2010.02502, "quadratic"), fractional timesteps; table as in "ddim"."""
    table, first, last = _timestep_axis(known)
    return _interpolate(table, torch.linspace(math.sqrt(first), math.sqrt(last), steps, dtype=torch.float64) ** 2)


def _shape(steps: int, known: _Range, alpha: float = 0.6, beta: float = 0.6, shift: float = 1.0) -> Tensor:
    """Quantiles of the Beta(alpha, beta) distribution (Lee et al., arXiv 2407.12173), as ComfyUI's "beta" lays them:
    at 1 - i / steps, along the model's own axis.

    That is the table of timesteps, rounded to whole ones as ComfyUI does unless two would meet (it then makes fewer
    steps); without a table log sigma between finite ends, and else flow time, with the shift of "flow".
    """
    for name, value in (("alpha", alpha), ("beta", beta), ("shift", shift)):
        if not 0 < value < math.inf:
            raise ValueError(f"grid: got {name} = {value}, wanted a positive number")
    place = beta_quantile(1 - torch.arange(steps, dtype=torch.float64) / steps, alpha, beta)
    if known.table is not None:
        table, first, last = _timestep_axis(known)
        timestep = last + place * (first - last)
        whole = (timestep * 2**20).round().div(2**20).round()  # the median, which often lies half-way, as such
        return _interpolate(table, whole if bool((whole.diff() < 0).all()) else timestep)
    if known.t_min > 0 and known.t_max < 1:
        low, high = _sigma_range(known, None, None)
        return _sigma_to_t((math.log(low) + place * math.log(high / low)).exp())
    low, high = (_unshifted(t, shift) for t in (known.t_min, known.t_max))
    return _shifted(low + place * (high - low), shift)


def _kl_optimal(
    steps: int, known: _Range, std: float = 1.0, sigma_min: float | None = None, sigma_max: float | None = None
) -> Tensor:
    """arctan(sigma / std) uniform: of all schedules of Euler's method the one that is best on Gaussian data of standard
    deviation std (Sabour et al., Align Your Steps, arXiv 2404.14507); with std = 1 what the web UIs call
    "KL Optimal". Ends that the model leaves open are sigma = inf and 0."""
    if not 0 < std < math.inf:
        raise ValueError(f"grid: got std = {std}, wanted a positive number")
    high = math.inf if known.t_max >= 1 else known.t_max / (1 - known.t_max)
    low = known.t_min / (1 - known.t_min)
    high, low = high if sigma_max is None else sigma_max, low if sigma_min is None else sigma_min
    if not 0 <= low < high:
        raise ValueError(f"grid: got sigma_min = {low} and sigma_max = {high}, wanted 0 <= sigma_min < sigma_max")
    first, last = math.atan(std / high), math.atan2(std, low)  # the angle's complement, 0 where sigma is inf
    if low > 0:
        angle = torch.linspace(first, last, steps, dtype=torch.float64)
    else:
        angle = torch.linspace(first, last, steps + 1, dtype=torch.float64)[:-1]
    return std * angle.cos() / (angle.sin() + std * angle.cos())


_BUILDERS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "flow": (_flow, ("shift",)),
    "edm": (_edm, ("rho", "sigma_min", "sigma_max")),
    "ddim": (_ddim, ()),
    "quadratic": (_quadratic, ()),
    "logsnr": (_logsnr, ("sigma_min", "sigma_max")),
    "beta": (_shape, ("alpha", "beta", "shift")),
    "kl_optimal": (_kl_optimal, ("std", "sigma_min", "sigma_max")),
}


def names() -> list[str]:
    """The names that `make` knows."""
    return list(_BUILDERS)


def parse(spec: str) -> tuple[str, dict[str, float]]:
    """("edm", {"rho": 7.0}) of "edm:rho=7". Raises TypeError (no string) or ValueError (name, parameter or number)."""
    if not isinstance(spec, str):
        raise TypeError(
            f"grid: got {type(spec).__name__}, wanted a name ({', '.join(names())}) or a tensor of flow times"
        )
    name, _, rest = spec.partition(":")
    name = name.strip()
    if name not in _BUILDERS:
        raise ValueError(f"grid: got {name!r}, wanted one of {', '.join(names())}, or a tensor of flow times")
    allowed = _BUILDERS[name][1]
    takes = ", ".join(allowed) if allowed else "no parameters"
    values: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError(f"grid: got {item!r} in {spec!r}, wanted key=value ({name} takes {takes})")
        if key not in allowed:
            raise ValueError(f"grid: got the parameter {key!r} in {spec!r}, but {name} takes {takes}")
        if key in values:
            raise ValueError(f"grid: got {key!r} twice in {spec!r}")
        try:
            values[key] = float(text)
        except ValueError:
            raise ValueError(f"grid: got {key} = {text!r} in {spec!r}, wanted a number") from None
    return name, values


def make(
    spec: str, steps: int, *, t_max: float = 1.0, t_min: float = 0.0, table: Tensor | None = None, **parameters: float
) -> Tensor:
    """float64 [steps + 1], descending, the last 0.0.

    spec: a name, with parameters after a colon where wanted: "flow:shift=3", "edm:rho=7,sigma_min=0.002,sigma_max=80".
    parameters: the same as keyword arguments; they override those in `spec`.
    t_max, t_min, table: the model's `t_max`, `t_min`, `flow_table`.

    Where t_min is 0, "edm" and "logsnr" run from sigma 80 to 0.002 and so begin at t = 0.9877, "ddim" and "quadratic"
    follow DDPM's linear-beta table (t from 0.9937 to 0.0099); the last interval ends in 0. "beta" and "kl_optimal" then
    begin at t_max and have `steps` intervals down to 0.
    Raises ValueError or TypeError that names the grid, what came, and what was wanted.
    """
    count = whole_number("steps", steps, least=1)
    name, values = parse(spec)
    builder, allowed = _BUILDERS[name]
    for key, value in parameters.items():
        if key not in allowed:
            raise ValueError(
                f"grid: got the parameter {key!r}, but {name} takes {', '.join(allowed) or 'no parameters'}"
            )
        values[key] = float(value)
    nodes = builder(count, _Range(float(t_max), float(t_min), table), **values)
    return check(torch.cat([nodes, nodes.new_zeros(1)]), t_max=t_max, t_min=t_min)


def for_model(spec: str, steps: int, model: NoiseRange) -> Tensor:
    """`make` over the range and the table of `model`."""
    return make(spec, steps, t_max=model.t_max, t_min=model.t_min, table=model.flow_table)


def of_teacher(grid: str | Tensor, steps: int, model: NoiseRange) -> Tensor:
    """The grid of a teacher: `for_model` for a name, with `steps` as the caller's teacher_steps; a tensor, checked."""
    if isinstance(grid, Tensor):
        return check(grid, t_max=model.t_max, t_min=model.t_min)
    return for_model(grid, whole_number("teacher_steps", steps, least=1), model)


def on_nodes(t: Tensor, model: Denoiser, nodes: str) -> Tensor:
    """The grid `t` as `dp_search` wants it: "any": as it is; "integer": `on_whole_timesteps`."""
    return t if choice("nodes", nodes, NODES) == "any" else on_whole_timesteps(t, model)


def on_whole_timesteps(t: Tensor, model: Denoiser) -> Tensor:
    """`snap` to the flow times of the model's whole timesteps, the only ones that many deployed samplers can sit on.

    Raises ValueError, naming `nodes`, for a model without a table of them.
    """
    if model.flow_table is None:
        raise ValueError(f"nodes: got 'integer' with a {model.parameterization} model, which has no whole timesteps")
    return snap(t, model.flow_table.flip(0))


def snap(t: Tensor, times: Tensor) -> Tensor:
    """The grid `t` moved to flow times that a sampler can sit on: float64 [<= len(t)], descending, the last 0.

    t: a grid, as `check` wants it. times: floating [n], strictly descending in (0, 1], such as k / 1000 for flow
    samplers that truncate 1000 t; a last 0 is allowed and says nothing.
    Each node but the last goes to the nearest of `times` (halfway: the cleaner); nodes that meet become one.
    Raises TypeError or ValueError, naming `t` or `times`.
    """
    t = check(t, name="t")
    if not isinstance(times, Tensor) or not times.is_floating_point():
        came = f"a tensor of {times.dtype}" if isinstance(times, Tensor) else type(times).__name__
        raise TypeError(f"times: got {came}, wanted a floating 1-D tensor of flow times")
    if times.ndim != 1:
        raise ValueError(f"times: got shape {list(times.shape)}, wanted [n]")
    known = times.detach().to("cpu", torch.float64)
    known = known[:-1] if len(known) and float(known[-1]) == 0 else known
    if not len(known) or not bool(((known > 0) & (known <= 1)).all()) or not bool((known.diff() < 0).all()):
        raise ValueError("times: wanted at least one flow time in (0, 1], strictly descending")
    ascending = known.flip(0)
    nearest = ascending[torch.searchsorted((ascending[1:] + ascending[:-1]) / 2, t[:-1])]
    return torch.cat([nearest.unique_consecutive(), t.new_zeros(1)])


def check(grid: Any, *, t_max: float = 1.0, t_min: float = 0.0, name: str = "grid") -> Tensor:
    """`grid` as float64 on the CPU if it is a legal grid for a model that knows t_min..t_max.

    Legal: a floating tensor [>= 2], finite, strictly descending, ending in exactly 0, the first at most t_max, those
    before the 0 at least t_min (each to a relative 1e-6). Raises TypeError or ValueError, naming `name`.
    """
    if not isinstance(grid, Tensor) or not grid.is_floating_point():
        came = f"a tensor of {grid.dtype}" if isinstance(grid, Tensor) else type(grid).__name__
        raise TypeError(f"{name}: got {came}, wanted a floating 1-D tensor of flow times")
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"{name}: got shape {list(grid.shape)}, wanted [steps + 1] with at least one step")
    t = grid.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(t).all()):
        at = int((~torch.isfinite(t)).nonzero()[0])
        raise ValueError(f"{name}: got {float(t[at])} at node {at}, wanted finite flow times")
    if not bool((t.diff() < 0).all()):
        at = int((t.diff() >= 0).nonzero()[0])
        raise ValueError(
            f"{name}: got {float(t[at]):.9g} then {float(t[at + 1]):.9g} at nodes {at} and {at + 1}, "
            "wanted strictly descending values"
        )
    if float(t[-1]) != 0.0:
        raise ValueError(f"{name}: got the last node {float(t[-1]):.9g}, wanted exactly 0")
    if float(t[0]) > t_max * (1 + SLACK) or float(t[0]) > 1:
        raise ValueError(
            f"{name}: got the first node {float(t[0]):.9g}, wanted at most {t_max:.9g}, the model's noisiest"
        )
    if float(t[-2]) < t_min * (1 - SLACK):
        raise ValueError(
            f"{name}: got the node {float(t[-2]):.9g} before the 0, wanted at least {t_min:.9g}, the model's cleanest"
        )
    return t
