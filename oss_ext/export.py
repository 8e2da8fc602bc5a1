"""Schedules as the text that other tools take: ComfyUI, k-diffusion, A1111 and Forge, diffusers, plain JSON.

Lists of noise levels carry the levels and nothing else. A schedule that is more than that (fitted coefficients, network
times, a scale of the noise of its own, calibrated states) is refused; where the target has no sampler of the schedule's
formula, that is said, since the same levels under another formula are another sampler.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from oss_ext import solvers
from oss_ext.schedule import Schedule
from oss_ext.sigma_text import DECIMALS, format_sigmas
from oss_ext.validate import choice

_VE = ("epsilon", "v_param", "x0", "edm")  # families whose sigmas are those of x = x0 + sigma eps
_NODES = "the OSS nodes of integrations/comfyui apply its coefficients"
_APPLY = "oss_ext.integrations.diffusers.apply(pipe, schedule) carries all of it"


@dataclass(frozen=True)
class Exported:
    """text: what to paste. where: where to paste it. notes: what the text does not carry, a sentence each."""

    text: str
    where: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Target:
    """families: those it knows. samplers: {(is it flow, solver): its name there}, only samplers of the very same steps.
    write: makes the text and the place from {steps: schedule}, the samplers' names and the decimals."""

    families: tuple[str, ...]
    samplers: Mapping[tuple[bool, str], str]
    write: Callable[[Mapping[int, Schedule], str | None, int], tuple[str, str]]
    instead: str
    several: bool = False
    lists: bool = True


def export(schedule: Schedule | Mapping[int, Schedule], to: str, *, decimals: int = DECIMALS) -> str:
    """The text to paste. `make` also says where, and returns what is lost; here that is a UserWarning.

    schedule: one, or {steps: schedule}, such as `result.schedules`, for a target that takes several ("a1111", "json").
    to: a name of `targets()`. decimals: of every number but those of "json", which are exact.
    Raises ValueError for what the target cannot carry.
    """
    made = make(schedule, to, decimals=decimals)
    for note in made.notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    return made.text


def make(schedule: Schedule | Mapping[int, Schedule], to: str, *, decimals: int = DECIMALS) -> Exported:
    """What `export` returns, where it goes and what it leaves out. Errors as there."""
    target = _TARGETS[choice("to", to, targets())]
    budgets = _budgets(schedule)
    if len(budgets) > 1 and not target.several:
        raise ValueError(f"schedule: got {len(budgets)} of them, wanted one: {to} takes one list")
    families = {one.parameterization for one in budgets.values()}
    names = {one.solver for one in budgets.values()}
    if target.lists:
        for one in budgets.values():
            _refuse(one, to, target)
    if len(families) > 1 and target.lists:
        raise ValueError(f"schedule: got schedules of the families {', '.join(sorted(families))}, wanted one")
    sampler = target.samplers.get((families == {"flow"}, next(iter(names)))) if len(names) == 1 else None
    notes = []
    if target.lists and sampler is None:
        solver = " and ".join(sorted(names))
        notes.append(
            f"{to} has no sampler that takes the steps of {solver}"
            + (" on flow models" if families == {"flow"} else "")
            + f": only the noise levels are exported, and another sampler lands elsewhere; {target.instead}"
        )
    text, where = target.write(budgets, sampler, decimals)
    return Exported(text, where, tuple(notes))


def targets() -> tuple[str, ...]:
    """The names that `export` knows."""
    return tuple(_TARGETS)


def takes_several(to: str) -> bool:
    """Whether that target takes schedules of several budgets at once."""
    return _TARGETS[choice("to", to, targets())].several


def _budgets(schedule: Schedule | Mapping[int, Schedule]) -> dict[int, Schedule]:
    given = {schedule.steps: schedule} if isinstance(schedule, Schedule) else schedule
    if not isinstance(given, Mapping) or not given:
        raise TypeError(f"schedule: got {type(schedule).__name__}, wanted a Schedule, or a dict of them by steps")
    for steps, one in given.items():
        if not isinstance(one, Schedule):
            raise TypeError(f"schedule: got {type(one).__name__} for {steps} steps, wanted a Schedule")
        if one.steps != steps:
            raise ValueError(f"schedule: got one of {one.steps} steps under {steps}")
    return dict(given)


def _refuse(schedule: Schedule, to: str, target: _Target) -> None:
    """Raises ValueError for what a list of noise levels cannot carry."""
    if schedule.parameterization not in target.families:
        raise ValueError(
            f"schedule: got one of a {schedule.parameterization} model, but {to} knows {', '.join(target.families)}"
        )
    if schedule.network_t is not None:
        raise ValueError(
            f"schedule: its network_t differ from its noise levels, which {to} cannot be told; {target.instead}"
        )
    if not math.isclose(schedule.noise_scale, float(schedule.t[0]), rel_tol=1e-6):
        raise ValueError(
            f"schedule: it starts at {schedule.noise_scale:.6g} times the noise instead of {float(schedule.t[0]):.6g}, "
            f"which {to} cannot be told; {target.instead}"
        )
    if schedule.calibration is not None:
        raise ValueError(f"schedule: it calibrates its states, which {to} cannot be told; {target.instead}")
    if _has_own_coefficients(schedule):
        raise ValueError(
            f"schedule: its coefficients ({schedule.solver}) are its own, which a list of noise levels cannot carry; "
            f"{target.instead}"
        )


def _has_own_coefficients(schedule: Schedule) -> bool:
    """Whether they are not those of the formula that the solver's name stands for."""
    if schedule.solver not in solvers.formulas():
        return True
    formula = solvers.along(solvers.get(schedule.solver), schedule.t)
    return formula.shape != schedule.coefficients.shape or not torch.allclose(
        formula, schedule.coefficients, rtol=1e-9, atol=1e-9
    )


def _only(budgets: Mapping[int, Schedule]) -> Schedule:
    (schedule,) = budgets.values()
    return schedule


def _levels(schedule: Schedule, decimals: int, *, final: bool = True) -> str:
    values = schedule.sigmas.tolist()
    return format_sigmas(values if final else values[:-1], decimals=decimals)


def _about(budgets: Mapping[int, Schedule]) -> str:
    counts = ", ".join(str(steps) for steps in sorted(budgets))
    one = next(iter(budgets.values()))
    return f"oss_ext: {counts} steps of {one.solver}, {one.parameterization} model"


def _comfy(budgets: Mapping[int, Schedule], sampler: str | None, decimals: int) -> tuple[str, str]:
    where = "Into a ManualSigmas node, its SIGMAS into SamplerCustom or SamplerCustomAdvanced"
    if sampler is not None:
        where += f", with KSamplerSelect at {sampler}"
    return _levels(_only(budgets), decimals), where + ". A list for the whole way: denoise 1, no further shift."


def _comfy_api(budgets: Mapping[int, Schedule], sampler: str | None, decimals: int) -> tuple[str, str]:
    graph = {"oss_sigmas": {"class_type": "ManualSigmas", "inputs": {"sigmas": _levels(_only(budgets), decimals)}}}
    links = '"sigmas": ["oss_sigmas", 0]'
    if sampler is not None:
        graph["oss_sampler"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": sampler}}
        links += ', "sampler": ["oss_sampler", 0]'
    where = f"Into an API-format workflow; the inputs of its SamplerCustom or SamplerCustomAdvanced then take {links}."
    return json.dumps(graph, indent=2), where


def _k_diffusion(budgets: Mapping[int, Schedule], sampler: str | None, decimals: int) -> tuple[str, str]:
    call = f"k_diffusion.sampling.{sampler or 'sample_...'}(model, noise * sigmas[0], sigmas)"
    text = f"# {_about(budgets)}\nsigmas = torch.tensor([{_levels(_only(budgets), decimals)}], device=noise.device)\n"
    return text + f"samples = {call}", "Into Python, with the k-diffusion wrapper of the network as `model`."


def _a1111(budgets: Mapping[int, Schedule], sampler: str | None, decimals: int) -> tuple[str, str]:
    rows = "".join(f"    {steps}: [{_levels(one, decimals)}],\n" for steps, one in sorted(budgets.items()))
    text = f'''"""{_about(budgets)}."""

import torch

from modules import sd_schedulers

NAME, LABEL = "oss", "OSS"
SIGMAS = {{
{rows}}}


def oss(n, sigma_min, sigma_max, device):
    if n not in SIGMAS:
        raise ValueError(f"{{LABEL}}: no schedule of {{n}} steps, only of {{', '.join(map(str, SIGMAS))}}")
    return torch.tensor(SIGMAS[n], device=device)


if NAME not in sd_schedulers.schedulers_map:
    scheduler = sd_schedulers.Scheduler(NAME, LABEL, oss)
    sd_schedulers.schedulers.append(scheduler)
    sd_schedulers.schedulers_map.update({{NAME: scheduler, LABEL: scheduler}})'''
    where = "Into extensions/oss/scripts/oss.py of the web UI; after a restart, Schedule type OSS"
    where += f", Sampling method {sampler}" if sampler is not None else ""
    counts = ", ".join(str(steps) for steps in sorted(budgets))
    return (
        text,
        f"{where}, Sampling steps {counts}. Image to image takes the last steps of it alone. Flow models: Forge only.",
    )


def _diffusers(budgets: Mapping[int, Schedule], sampler: str | None, decimals: int) -> tuple[str, str]:
    schedule = _only(budgets)
    flow = schedule.parameterization == "flow"
    if sampler is None:
        return (
            f"# {_about(budgets)}\nsigmas = [{_levels(schedule, decimals, final=not flow)}]",
            "Into Python, as the sigmas= of a pipeline's call.",
        )
    if sampler == "DPMSolverMultistepScheduler":
        steps = schedule.timesteps.tolist()
        if any(abs(value - round(value)) > 1e-6 for value in steps):
            raise ValueError(
                "schedule: its timesteps are not whole, and DPMSolverMultistepScheduler truncates them; search with "
                f"nodes='integer', or {_APPLY}"
            )
        call, options = f"timesteps = {[round(value) for value in steps]}", 'solver_order=2, solver_type="midpoint",'
    else:
        call = f"sigmas = [{_levels(schedule, decimals, final=not flow)}]"
        options = (
            "shift=1.0, use_dynamic_shifting=False, shift_terminal=None," if flow else 'timestep_spacing="linspace",'
        )
    argument = call.partition(" ")[0]
    text = f"""# {_about(budgets)}
from diffusers import {sampler}

{call}
pipe.scheduler = {sampler}.from_config(
    pipe.scheduler.config, {options}
    use_karras_sigmas=False, use_exponential_sigmas=False, use_beta_sigmas=False,
)
result = pipe(..., {argument}={argument})"""
    return text, f"Into Python, for a pipeline whose call takes {argument}=; for any other, {_APPLY}."


def _json(budgets: Mapping[int, Schedule], sampler: str | None, decimals: int) -> tuple[str, str]:
    rows = [
        {
            "steps": one.steps,
            "parameterization": one.parameterization,
            "solver": one.solver,
            "t": one.t.tolist(),
            "sigmas": one.sigmas.tolist(),
            "timesteps": one.timesteps.tolist(),
            "network_t": one.told.tolist(),
            "noise_scale": one.noise_scale,
            "carries": one.carries,
            "coefficients": one.coefficients.tolist(),
            "calibration": None if one.calibration is None else one.calibration.model_dump(mode="json"),
        }
        for one in budgets.values()
    ]
    return json.dumps(rows[0] if len(rows) == 1 else rows, indent=2, allow_nan=False), "Wherever JSON is read."


_TARGETS: dict[str, _Target] = {
    # On flow models ComfyUI's samplers but Euler's interpolate in other variables than the solvers of these names do.
    "comfy": _Target(
        ("flow", *_VE),
        {(True, "euler"): "euler", (False, "euler"): "euler", (False, "dpmpp_2m"): "dpmpp_2m"},
        _comfy,
        _NODES,
    ),
    "comfy-api": _Target(
        ("flow", *_VE),
        {(True, "euler"): "euler", (False, "euler"): "euler", (False, "dpmpp_2m"): "dpmpp_2m"},
        _comfy_api,
        _NODES,
    ),
    "k-diffusion": _Target(
        _VE,
        {(False, "euler"): "sample_euler", (False, "dpmpp_2m"): "sample_dpmpp_2m", (False, "lms_4"): "sample_lms"},
        _k_diffusion,
        "Schedule.sample applies its coefficients",
    ),
    "a1111": _Target(
        ("flow", *_VE),
        {
            (True, "euler"): "Euler",
            (False, "euler"): "Euler",
            (False, "dpmpp_2m"): "DPM++ 2M",
            (False, "lms_4"): "LMS",
        },
        _a1111,
        "ComfyUI can, with the OSS nodes of integrations/comfyui",
        several=True,
    ),
    "diffusers": _Target(
        ("flow", "epsilon", "v_param"),
        {
            (True, "euler"): "FlowMatchEulerDiscreteScheduler",
            (False, "euler"): "EulerDiscreteScheduler",
            (False, "dpmpp_2m"): "DPMSolverMultistepScheduler",
        },
        _diffusers,
        _APPLY,
    ),
    "json": _Target((), {}, _json, "", several=True, lists=False),
}
