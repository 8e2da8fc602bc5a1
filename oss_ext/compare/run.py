"""compare: every row's worth on every model, guidance and budget, on noises that no search has seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tqdm import tqdm

from oss_ext.compare.case import Case, Guide, Subject
from oss_ext.compare.cells import Cell, Cells, cell_of
from oss_ext.compare.measures import Features, measured
from oss_ext.compare.rows import Made, Row, Task
from oss_ext.compare.together import sample_together
from oss_ext.schedule import Schedule
from oss_ext.validate import whole_number

PICTURES = 9
"""Samples kept of the teacher and of rows that are pictured."""
AT_ONCE = 2**28
"""Numbers of all states that are sampled together."""

Report = Callable[[Cell], None]


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    cells: measured, in the order of subjects, budgets and rows. left: (subject, row, budget) of what the time did not
    suffice for. failed: (subject, row, message). cases: the subjects with their teachers; stores: what is kept of each.
    """

    cells: list[Cell]
    left: list[tuple[str, str, int]]
    failed: list[tuple[str, str, str]]
    cases: list[Case]
    stores: list[Cells]
    seconds: float


def chosen(rows: Sequence[Row], only: Sequence[str] = (), skip: Sequence[str] = ()) -> list[Row]:
    """The rows whose group, or group/name/solver, matches one of `only` (none: all) and none of `skip`; * and ? as in
    file names. Raises ValueError for a pattern that matches no row, and where nothing is left."""

    def matches(row: Row, pattern: str) -> bool:
        return fnmatchcase(row.group, pattern) or fnmatchcase(row.key, pattern)

    for name, patterns in (("only", only), ("skip", skip)):
        for pattern in patterns:
            if not any(matches(row, pattern) for row in rows):
                groups = ", ".join(dict.fromkeys(row.group for row in rows))
                raise ValueError(f"{name}: got {pattern!r}, which no row matches; groups are {groups}")
    found = [row for row in rows if not only or any(matches(row, pattern) for pattern in only)]
    found = [row for row in found if not any(matches(row, pattern) for pattern in skip)]
    if not found:
        raise ValueError("only, skip: no row is left")
    return found


def compare(
    subjects: Sequence[Subject],
    rows: Sequence[Row],
    budgets: Sequence[int] = (5, 10, 20),
    *,
    guide: Guide | None = None,
    out: Path | None = None,
    features: Features | None = None,
    candidates: int | None = None,
    data_range: float = 2.0,
    batch_size: int | None = None,
    limit_seconds: float | None = None,
    prepare: bool = False,
    report: Report | None = None,
    progress: bool = False,
) -> Comparison:
    """Measures every row on every subject at every budget. Rows of less `priority` come first, over all subjects.

    budgets: network evaluations a sample. guide: the teacher and the reference. out: a folder that finished cells are
    kept in; those that are there already are not made again, unless the row's recipe changed. features: for
    distribution distances; cells that lack them are sampled again. candidates: nodes that searches look at, where rows
    leave it open. data_range, batch_size: as for `psnr` and `dp_search`. limit_seconds: after it no row is begun,
    nor another budget of one that is trained.
    prepare: only make and keep what needs no evaluation of a model (`Row.free`), to spare a GPU the wait.
    report: told every cell as it is measured. progress: a bar over rows.

    A row that raises ValueError, RuntimeError or ImportError is left out, and named in `failed`.
    Raises TypeError or ValueError that names the argument, before any evaluation.
    """
    began = time.perf_counter()
    wanted = tuple(sorted({whole_number("budgets", budget, least=1) for budget in budgets}))
    if not subjects or not rows or not wanted:
        raise ValueError("subjects, rows, budgets: wanted at least one of each")
    if prepare:
        if out is None:
            raise ValueError("prepare: wanted out, a folder for what is made")
        rows = [row for row in rows if row.free]
    for name, keys in (
        ("rows", [row.key for row in rows]),
        ("subjects", [subject.title for subject in subjects]),
    ):
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise ValueError(f"{name}: got {', '.join(sorted(twice))} twice")
    folder = None if out is None else Path(out)
    runs = []
    for subject in subjects:
        case = Case(subject, guide, batch_size=batch_size, candidates=candidates, data_range=data_range)
        runs.append(_Run(case, Cells(case, folder), wanted, features, report))
    levels = sorted({row.priority for row in rows})
    units = [(run, [row for row in rows if row.priority == level]) for level in levels for run in runs]
    left: list[tuple[str, str, int]] = []
    failed: list[tuple[str, str, str]] = []

    def late() -> bool:
        return limit_seconds is not None and time.perf_counter() - began > limit_seconds

    with tqdm(total=sum(len(some) for _, some in units), desc="rows", disable=not progress, smoothing=0) as bar:
        for run, some in units:
            for row in some:
                bar.set_postfix_str(f"{run.case.subject.title}: {row.key}", refresh=False)
                missing = run.missing(row)
                if missing and late():
                    left += [(run.case.subject.title, row.key, budget) for budget in missing]
                elif missing:
                    try:
                        unmade = run.make(row, missing, late, prepare)
                        left += [(run.case.subject.title, row.key, budget) for budget in unmade]
                    except (ValueError, RuntimeError, ImportError) as error:  # one row's: too little memory, no scipy
                        failed.append((run.case.subject.title, row.key, " ".join(str(error).split())))
                bar.update()
            if not prepare:
                run.measure()
    cells = [
        cell
        for run in runs
        for budget in wanted
        for row in rows
        if (cell := run.cells.find(row, budget)) is not None and cell.psnr is not None
    ]
    return Comparison(
        cells, left, failed, [run.case for run in runs], [run.cells for run in runs], time.perf_counter() - began
    )


class _Run:
    """The rows of one case. Schedules wait until `measure`, which samples all of one length together."""

    def __init__(
        self, case: Case, cells: Cells, budgets: tuple[int, ...], features: Features | None, report: Report | None
    ) -> None:
        self.case, self.cells = case, cells
        self._budgets, self._features, self._report = budgets, features, report
        self._waiting: dict[int, list[tuple[Row, Cell, Schedule]]] = {}
        self._ready = False

    def missing(self, row: Row) -> tuple[int, ...]:
        """The budgets of the row that are to be made or measured."""
        if not row.fits(self.case.model):
            return ()
        return tuple(budget for budget in self._of(row) if not self._complete(self.cells.find(row, budget)))

    def _of(self, row: Row) -> tuple[int, ...]:
        return tuple(budget for budget in self._budgets if row.most is None or budget <= row.most)

    def _complete(self, cell: Cell | None) -> bool:
        if cell is None or cell.psnr is None:
            return False
        whole = self._features is not None and cell.ssim is not None and len(cell.psnr) == len(self.case.noise)
        return not whole or (self._features is not None and self._features.name in cell.distances)

    def make(
        self, row: Row, budgets: tuple[int, ...], late: Callable[[], bool], prepare: bool = False
    ) -> tuple[int, ...]:
        """Makes what is missing; returns the budgets of a trained row that it is too late for."""
        if not prepare:
            self._prepare()
        unmade = []
        for budget in budgets:
            cell, schedule = self.cells.find(row, budget), self.cells.schedule(row, budget)
            if cell is not None and schedule is not None:
                self._waiting.setdefault(budget, []).append((row, cell, schedule))
            else:
                unmade.append(budget)
        if unmade:
            task = Task(self.case, self._of(row), self._lookup)
            for budget, made in row.make(task, tuple(unmade)):
                self._take(row, budget, made)
                unmade.remove(budget)
                if row.trained and late():
                    break
        return tuple(unmade)

    def _take(self, row: Row, budget: int, made: Made) -> None:
        cell = cell_of(self.case, row, budget, made)
        if made.schedule is not None:
            self.cells.put(row, cell, made.schedule)
            self._waiting.setdefault(budget, []).append((row, cell, made.schedule))
        else:
            assert made.images is not None
            self._done(row, measured(cell, self.case, made.images, self._features))

    def _lookup(self, row: Row, budget: int) -> Made:
        """The row's answer: what is kept of it, or made now."""
        cell, schedule = self.cells.find(row, budget), self.cells.schedule(row, budget)
        if cell is not None and schedule is not None:
            return cell.made(schedule)
        task = Task(self.case, tuple(sorted({*self._of(row), budget})), self._lookup)
        found = None
        for each, made in row.make(task, (budget,)):
            self._take(row, each, made)
            found = made
        assert found is not None
        return found

    def measure(self) -> None:
        """Samples what waits."""
        for budget, some in sorted(self._waiting.items()):
            some = list({row.key: (row, cell, schedule) for row, cell, schedule in some}.values())
            few = max(1, AT_ONCE // (8 * self.case.noise.numel()))
            for begin in range(0, len(some), few):
                part = some[begin : begin + few]
                samples = sample_together(
                    [schedule for _, _, schedule in part],
                    self.case.model,
                    self.case.noise,
                    self.case.cond,
                    batch_size=self.case.batch_size,
                )
                for (row, cell, _), images in zip(part, samples, strict=True):
                    if row.pictured:
                        self.cells.keep(f"{row.key}_{budget:02d}", images[:PICTURES])
                    self._done(row, measured(cell, self.case, images, self._features))
        self._waiting.clear()

    def _done(self, row: Row, cell: Cell) -> None:
        self.cells.put(row, cell)
        if self._report is not None:
            self._report(cell)

    def _prepare(self) -> None:
        """The reference, from the folder or sampled."""
        if self._ready:
            return
        known = self.cells.tensor("reference")
        if known is None:
            self.cells.keep("reference", self.case.teacher)
        else:
            self.case.teacher = known.to(self.case.device)
        self._ready = True
