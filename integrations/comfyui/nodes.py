"""The nodes. ComfyUI's modules are imported inside, so that the logic beside this file runs without it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, ClassVar

import torch

from .levels import Levels, check_family, start_level, starting_at
from .plan import Plan, load, parse
from .sampler import sampler_of, sigmas_of
from .search import OWN_GRID, Settings, inside, search

CATEGORY = "sampling/oss"
FOLDER = "oss_schedules"


def schedule_folder() -> Path:
    """models/oss_schedules of this ComfyUI, made where it is missing."""
    import folder_paths

    folder = Path(folder_paths.models_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def schedule_names() -> list[str]:
    """Files and folders of schedules, relative to `schedule_folder`, folders with a slash at their end."""
    root = schedule_folder()
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.json"))
    folders = sorted({name.rpartition("/")[0] + "/" for name in files if "/" in name})
    return [*folders, *files]


def schedule_path(name: str) -> Path:
    """Raises ValueError for a name that leads out of the folder."""
    root = schedule_folder().resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"schedule: got {name!r}, wanted a name inside of {root}")
    return path


def describe(plan: Plan, levels: Levels) -> str:
    listed = ", ".join(f"{levels.sigma(t):.5g}" for t in plan.t)
    return f"{plan.steps} steps of {plan.solver}, {plan.family} model, sigmas {listed}"


class OSSLoadSchedule:
    """A schedule file, or the folder of a search, from models/oss_schedules."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "schedule": (schedule_names(),),
                "steps": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": "0: the file's; folders: the most."}),
            }
        }

    RETURN_TYPES = ("OSS_SCHEDULE",)
    FUNCTION = "load"
    CATEGORY = CATEGORY

    @classmethod
    def IS_CHANGED(cls, schedule: str, steps: int) -> float:
        path = schedule_path(schedule)
        return max([os.path.getmtime(path), *(os.path.getmtime(file) for file in path.glob("*.json"))])

    def load(self, schedule: str, steps: int) -> tuple[Plan]:
        return (load(schedule_path(schedule), steps),)


class OSSScheduleFromText:
    """The text of a schedule file, pasted: a workflow that carries its schedule along."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {"multiline": True, "default": ""})}}

    RETURN_TYPES = ("OSS_SCHEDULE",)
    FUNCTION = "load"
    CATEGORY = CATEGORY

    def load(self, text: str) -> tuple[Plan]:
        return (parse(text, "text"),)


class OSSSchedule:
    """SIGMAS and SAMPLER of a schedule for a model. denoise < 1: as many steps, from that share of the noise."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "schedule": ("OSS_SCHEDULE",),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 1.0, "step": 0.01}),
            }
        }

    RETURN_TYPES = ("SIGMAS", "SAMPLER", "STRING")
    RETURN_NAMES = ("sigmas", "sampler", "description")
    FUNCTION = "make"
    CATEGORY = CATEGORY

    def make(self, model: Any, schedule: Plan, denoise: float) -> tuple[torch.Tensor, Any, str]:
        import comfy.samplers

        plan, levels = planned(model.get_model_object("model_sampling"), schedule, denoise)
        return sigmas_of(plan, levels), comfy.samplers.KSAMPLER(sampler_of(plan)), describe(plan, levels)


def planned(model_sampling: Any, schedule: Plan, denoise: float) -> tuple[Plan, Levels]:
    """The plan that a model runs at that denoise."""
    levels = Levels.of(model_sampling)
    check_family(schedule, levels, model_sampling)
    if denoise == 1:
        return schedule, levels
    least = 0.0 if levels.flow else levels.t(float(model_sampling.sigma_min))
    return starting_at(schedule, start_level(model_sampling, levels, denoise), least), levels


class OSSSearch:
    """Searches schedules of every count up to `steps` on a guider's model and conditioning, and saves them.

    Of several guiders, which share the samples evenly, the schedules serve all.
    """

    SOLVERS: ClassVar[list[str]] = ["fitted", "auto", "mixed", "euler", "dpmpp_2m", "ab2", "ab3", "unipc_2", "unipc_3"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "guider": ("GUIDER",),
                "latent_image": ("LATENT", {"tooltip": "An empty latent: its shape is what is searched for."}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF}),
                "samples": ("INT", {"default": 4, "min": 1, "max": 256, "tooltip": "Noises that share the schedule."}),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 256, "tooltip": "Samples a call of the model."}),
                "steps": ("INT", {"default": 10, "min": 1, "max": 100}),
                "teacher_steps": ("INT", {"default": 100, "min": 2, "max": 1000}),
                "solver": (cls.SOLVERS,),
                "grid": ("STRING", {"default": OWN_GRID, "tooltip": "model, or flow:shift=3, edm:rho=7, logsnr, ..."}),
                "name": ("STRING", {"default": "my_model"}),
            },
            "optional": {
                "start": (["fixed", "free"], {"tooltip": "free: the first step may leave a later node."}),
                "beam": ("INT", {"default": 1, "min": 1, "max": 64, "tooltip": "States that a node keeps."}),
                **{f"guider_{k}": ("GUIDER", {"tooltip": "Another prompt."}) for k in (2, 3, 4)},
            },
        }

    RETURN_TYPES = ("OSS_SCHEDULE", "LATENT", "STRING")
    RETURN_NAMES = ("schedule", "latent", "report")
    FUNCTION = "search"
    CATEGORY = CATEGORY
    OUTPUT_NODE = True

    def search(
        self,
        guider: Any,
        latent_image: dict[str, Any],
        seed: int,
        samples: int,
        batch_size: int,
        steps: int,
        teacher_steps: int,
        solver: str,
        grid: str,
        name: str,
        start: str = "fixed",
        beam: int = 1,
        guider_2: Any = None,
        guider_3: Any = None,
        guider_4: Any = None,
    ) -> tuple[Plan, dict[str, Any], str]:
        import comfy.sample
        import comfy.samplers
        import comfy.utils

        if not re.fullmatch(r"[\w][\w .-]*", name):
            raise ValueError(f"name: got {name!r}, wanted letters, digits, blanks, dots, - and _")
        guiders = [guider, *(one for one in (guider_2, guider_3, guider_4) if one is not None)]
        if samples < len(guiders):
            raise ValueError(f"samples: got {samples} for {len(guiders)} guiders, wanted at least one for each")
        patcher = guider.model_patcher
        if latent_image["samples"].is_nested:
            raise ValueError("latent_image: got several tensors (audio and video), wanted one")
        # newer ComfyUI: what an empty latent was sized for
        sized = {key: value for key, value in latent_image.items() if key.startswith("downscale_ratio_")}
        empty = comfy.sample.fix_empty_latent_channels(patcher, latent_image["samples"], **sized)
        empty = torch.zeros_like(empty[:1]).repeat(samples, *[1] * (empty.ndim - 1))
        noise = comfy.sample.prepare_noise(empty, seed)
        bar = comfy.utils.ProgressBar(1)  # its hook also is where ComfyUI stops what the user interrupts
        found: list[Any] = []
        settings = Settings(steps=steps, teacher_steps=teacher_steps, solver=solver, grid=grid, start=start, beam=beam)
        metadata = {
            "source": "ComfyUI",
            "seed": seed,
            "shape": list(empty.shape[1:]),
            "prompts": len(guiders),
            "cfg": getattr(guider, "cfg", None),
        }
        top = float(patcher.get_model_object("model_sampling").sigma_max)
        rows = min(batch_size, samples)  # by which ComfyUI sizes memory and conditions

        def begin(one: Any, function: Any) -> torch.Tensor:
            made: torch.Tensor = one.sample(
                noise[:rows],
                empty[:rows],
                comfy.samplers.KSAMPLER(function),
                torch.tensor([top, 0.0]),
                disable_pbar=True,
                seed=seed,
            )
            return made

        def run(models: Any, x: torch.Tensor) -> torch.Tensor:
            result = search(
                models,
                noise.to(x),
                settings,
                batch_size=batch_size,
                tick=lambda made, total: bar.update_absolute(made, total),
                metadata=metadata,
            )
            found.append(result)
            endpoint: torch.Tensor = result.endpoints[result.steps]
            return endpoint

        made = inside(guiders, begin, run)
        (result,) = found
        folder = schedule_folder() / name
        folder.mkdir(exist_ok=True)
        for stale in folder.glob("steps_*.json"):  # of an earlier search under this name
            stale.unlink()
        for budget, schedule in result.schedules.items():
            schedule.save(folder / f"steps_{budget:02d}.json")
        plan = load(folder / f"steps_{steps:02d}.json")
        lines = [f"{FOLDER}/{name}: {result.nfe['total']:g} evaluations a sample"]
        lines += [f"{k} steps: mean squared distance {float(c.mean()):.3e}" for k, c in result.costs.items()]
        return plan, {"samples": made}, "\n".join(lines)


NODE_CLASS_MAPPINGS = {
    "OSSLoadSchedule": OSSLoadSchedule,
    "OSSScheduleFromText": OSSScheduleFromText,
    "OSSSchedule": OSSSchedule,
    "OSSSearch": OSSSearch,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "OSSLoadSchedule": "OSS Load Schedule",
    "OSSScheduleFromText": "OSS Schedule from Text",
    "OSSSchedule": "OSS Sigmas and Sampler",
    "OSSSearch": "OSS Search",
}
