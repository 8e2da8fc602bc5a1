"""Finished cells on disk, each whole or not there, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from oss_ext.compare.case import Case
from oss_ext.compare.rows import Made, Row, Spent
from oss_ext.files import whole_file
from oss_ext.schedule import Schedule


class Cell(BaseModel):
    """What a row is worth for a budget. psnr, ssim: of every held-out noise, in order; ssim None where the samples are
    no images. distances: {features: {"teacher" or "real": [Frechet, kernel, kernel's spread]}}. t: the flow times, of
    several schedules their mean, and t_spread their standard deviation over samples."""

    model_config = ConfigDict(extra="forbid")

    subject: str
    guidance: float | None
    group: str
    name: str
    solver: str
    budget: int
    recipe: dict[str, Any]
    trained: bool
    nfe: int
    spent: dict[str, float]
    seconds: float
    samples: int
    backpropagations: int
    t: list[float]
    t_spread: list[float] | None = None
    psnr: list[float] | None = None
    ssim: list[float] | None = None
    distances: dict[str, dict[str, list[float]]] = {}
    notes: dict[str, Any] = {}

    def made(self, schedule: Schedule | None) -> Made:
        """The row's answer that this cell was measured of."""
        spent = Spent(dict(self.spent), self.seconds, self.samples, self.backpropagations)
        return Made(spent, schedule, nfe=self.nfe, notes=self.notes)


def cell_of(case: Case, row: Row, budget: int, made: Made) -> Cell:
    """The cell before it is measured."""
    times = made.schedule.t[None] if made.schedule is not None else made.times
    several = times is not None and len(times) > 1
    return Cell(
        subject=case.subject.name,
        guidance=case.guidance,
        group=row.group,
        name=row.name,
        solver=row.solver,
        budget=budget,
        recipe=json.loads(json.dumps(row.recipe)),
        trained=row.trained,
        nfe=made.nfe if made.schedule is None else made.schedule.steps,
        spent=made.spent.nfe,
        seconds=made.spent.seconds,
        samples=made.spent.samples,
        backpropagations=made.spent.backpropagations,
        t=[] if times is None else times.mean(0).tolist(),
        t_spread=times.std(0).tolist() if times is not None and several else None,
        notes=made.notes,
    )


def slug(text: str) -> str:
    """Letters, digits, ".", "_" and "-" alone."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")


class Cells:
    """Cells, schedules and a few pictures of one case. folder: where they are kept; None: in memory alone.

    Raises ValueError where the folder holds another comparison's: what differs is named.
    """

    def __init__(self, case: Case, folder: Path | None) -> None:
        self._case = case
        self._cells: dict[tuple[str, int], Cell] = {}
        self._schedules: dict[tuple[str, int], Schedule] = {}
        self._tensors: dict[str, Tensor] = {}
        self._folder = None if folder is None else folder / slug(case.subject.title)
        if self._folder is not None:
            self._open(self._folder)

    def _open(self, folder: Path) -> None:
        mine = json.loads(json.dumps(_identity(self._case)))
        (folder / "schedules").mkdir(parents=True, exist_ok=True)
        about = folder / "case.json"
        if about.exists():
            theirs = json.loads(about.read_text(encoding="utf-8"))
            for key in mine.keys() | theirs.keys():
                if mine.get(key) != theirs.get(key):
                    raise ValueError(
                        f"out: {folder} holds a comparison with {key} {theirs.get(key)!r}, this one has "
                        f"{mine.get(key)!r}; wanted another folder"
                    )
        else:
            _write(about, json.dumps(mine, indent=1))

    def find(self, row: Row, budget: int) -> Cell | None:
        """The cell, where the row is still made in the same way."""
        key = (row.key, budget)
        if key not in self._cells and self._folder is not None:
            path = self._path(row, budget)
            if path.exists():
                try:
                    self._cells[key] = Cell.model_validate_json(path.read_text(encoding="utf-8"))
                except ValidationError as error:
                    raise ValueError(f"{path}: {error.errors()[0]['msg']}; remove it to measure it again") from None
        cell = self._cells.get(key)
        return cell if cell is not None and cell.recipe == json.loads(json.dumps(row.recipe)) else None

    def schedule(self, row: Row, budget: int) -> Schedule | None:
        key = (row.key, budget)
        if key not in self._schedules and self._folder is not None:
            path = self._path(row, budget, "schedules")
            if path.exists():
                self._schedules[key] = Schedule.load(path)
        return self._schedules.get(key)

    def put(self, row: Row, cell: Cell, schedule: Schedule | None = None) -> None:
        key = (row.key, cell.budget)
        self._cells[key] = cell
        if schedule is not None:
            self._schedules[key] = schedule
        if self._folder is None:
            return
        if schedule is not None:
            schedule.save(self._path(row, cell.budget, "schedules"))
        _write(self._path(row, cell.budget), cell.model_dump_json())

    def tensor(self, name: str) -> Tensor | None:
        """What was kept under that name."""
        if name not in self._tensors and self._folder is not None:
            path = self._folder / f"{slug(name)}.safetensors"
            if path.exists():
                self._tensors[name] = load_file(path)["tensor"]
        return self._tensors.get(name)

    def keep(self, name: str, value: Tensor) -> None:
        self._tensors[name] = value.detach().cpu().contiguous()
        if self._folder is not None:
            with whole_file(self._folder / f"{slug(name)}.safetensors") as path:
                save_file({"tensor": self._tensors[name]}, path)

    def _path(self, row: Row, budget: int, below: str = "") -> Path:
        assert self._folder is not None
        return self._folder / below / f"{slug(row.key)}_{budget:02d}.json"


def _identity(case: Case) -> dict[str, Any]:
    """What has to agree for cells to be of one comparison."""
    return {
        "subject": case.subject.title,
        "model": case.model.describe(),
        "heldout": len(case.noise),
        "shape": list(case.noise.shape[1:]),
        "dtype": str(case.noise.dtype).removeprefix("torch."),
        "first_noise": float(case.noise.flatten()[0]),
        "samples": len(case.search_noise),
        "candidates": case.candidates,
        "data_range": case.data_range,
        **case.guide.options,
        "reference_steps": case.guide.reference_steps,
    }


def _write(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
