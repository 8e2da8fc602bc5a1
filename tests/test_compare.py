"""Comparisons: what a cell holds is what its schedule does, a stopped run goes on, differences are paired."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.analytic import mixture, normal
from helpers.counting import Counting
from torch import Tensor

import oss_ext
from oss_ext import grids
from oss_ext.compare import Features, Guide, Subject, as_csv, catalogue, chosen, compare, entries, leaders, rows, view
from oss_ext.compare.case import Case
from oss_ext.compare.cells import Cell, Cells
from oss_ext.compare.memory import Remembering
from oss_ext.compare.spread import Spread, gain, summary
from oss_ext.compare.together import sample_together
from oss_ext.costs import X0
from oss_ext.metrics import pooled_psnr, psnr

SHAPE = (1, 12, 12)
GUIDE = Guide("flow", 12, "unipc")
HELD = 6


def subject(model: oss_ext.Denoiser | None = None, name: str = "mixture", seed: int = 1) -> Subject:
    model = model or mixture(shape=SHAPE, std=0.3).flow()
    noise, search = normal(HELD, *SHAPE, seed=seed), normal(5, *SHAPE, seed=seed + 100)
    return Subject(name, model, noise, search)


def table_rows() -> list[rows.Row]:
    euler = rows.searched("euler")
    return [
        rows.stock("flow", "euler", priority=0, pictured=True),
        rows.stock("flow:shift=3", "dpmpp_2m", priority=0),
        rows.heun("flow", "heun_flow", priority=0),
        euler,
        rows.auto(searched=("euler",), free=(), grids=("flow",), stock=("euler",), moves=0),
        rows.searched("euler", group="published", name="OSS-ave", samples=2, share="median"),
        rows.per_sample("euler", 4),
        rows.refined(euler, "moved", method="nodes", evaluations=20),
        rows.refined(euler, "polished", method="gradient", iterations=2),
        rows.along(euler, "dpmpp_2m"),
        rows.along(euler, "fitted"),
        rows.calibrated(euler, "scale"),
        rows.calibrated(euler, "gain"),
        rows.rival("gits", "GITS", "euler", grid="flow", teacher_steps=8, coordinates="flow", teacher_solver="euler"),
        rows.rival("dm", "DM", "dpmpp_2m", iterations=3, starts="logsnr", row={"free": True}),
        rows.rival("bns", "BNS", rows.LEARNED, start=euler, shared_teacher=True, training=oss_ext.baselines.Training(2),
                   row={"most": 3, "trained": True}),
    ]  # fmt: skip


def made(one: Subject, some: list[rows.Row], budgets: tuple[int, ...] = (2, 3), **how: Any) -> Any:
    return compare([one], some, budgets, guide=GUIDE, candidates=8, **how)


def test_cells_hold_what_their_schedules_do(tmp_path: Path) -> None:
    one, some = subject(), table_rows()
    found = made(one, some, out=tmp_path)
    assert not found.left and not found.failed
    assert len(found.cells) == 2 * len(some)
    fine = oss_ext.Schedule.from_grid(grids.for_model("flow", 12, one.model), "unipc", one.model)
    reference = fine.sample(one.model, one.noise)
    store = Cells(found.cases[0], tmp_path)
    with_schedule = 0
    for row in some:
        for budget in (2, 3):
            cell, schedule = store.find(row, budget), store.schedule(row, budget)
            assert cell is not None and cell.psnr is not None
            if schedule is None:
                continue
            with_schedule += 1
            assert schedule.steps == cell.nfe == budget and cell.t == schedule.t.tolist()
            own = psnr(schedule.sample(one.model, one.noise), reference)
            torch.testing.assert_close(torch.tensor(cell.psnr, dtype=torch.float64), own, rtol=0, atol=1e-6)
            assert cell.ssim is not None and len(cell.ssim) == HELD and all(-1 <= value <= 1 for value in cell.ssim)
    assert with_schedule == 2 * (len(some) - 2)
    assert store.tensor("stock/flow/euler_02") is not None

    by_name = {(cell.name, cell.solver, cell.budget): cell for cell in found.cells}
    assert by_name["OSS, per sample", "euler", 3].t_spread is not None
    assert by_name["flow", "heun_flow", 3].nfe == 3
    search = oss_ext.dp_search(one.model, one.search_noise, 3, candidates=8, teacher_steps=12)
    assert by_name["joint", "euler", 3].t == search.schedule.t.tolist()  # type: ignore[union-attr]
    assert by_name["joint", "euler", 3].spent == search.nfe
    polished = by_name["polished", "euler", 3]
    assert polished.trained and polished.backpropagations == 2 * 4  # of five noises one judges
    bns = by_name["BNS", "learned", 3]
    assert bns.backpropagations == 2 * 4 and bns.spent["total"] > bns.spent["train"] + search.nfe["total"]
    assert by_name["DM", "dpmpp_2m", 3].spent["total"] == 0
    fitted = by_name["joint", "fitted", 3]
    assert fitted.spent["fit"] > 0 and fitted.spent["search"] == search.nfe["search"]


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    some = table_rows()[:7]
    counting = Counting(mixture(shape=SHAPE, std=0.3).flow())
    one = subject(counting)  # type: ignore[arg-type]
    nothing = made(one, some, out=tmp_path, limit_seconds=0)
    assert counting.evaluations == 0 and not nothing.cells
    assert len(nothing.left) == 2 * len(some)
    prepared = made(one, some, out=tmp_path, prepare=True)
    assert counting.evaluations == 0 and not prepared.cells
    first = made(one, some[:3], out=tmp_path)
    spent = counting.evaluations
    seen: list[Cell] = []
    whole = made(one, some, out=tmp_path, report=seen.append)
    assert counting.evaluations > spent
    assert {cell.name for cell in seen}.isdisjoint({"flow:shift=3"}) and len(seen) == 2 * 4
    spent = counting.evaluations
    again = made(one, some, out=tmp_path)
    assert counting.evaluations == spent
    assert again.cells == whole.cells
    assert [cell.psnr for cell in first.cells] == [cell.psnr for cell in whole.cells if cell.group == "stock"]
    changed = [rows.searched("euler", samples=3), *some[:1]]
    other = made(one, changed, out=tmp_path)
    assert counting.evaluations > spent and other.cells[0].samples == 3
    for wrong, word in (
        (replace(one, noise=one.noise[:4]), "heldout"),
        (replace(one, noise=-one.noise), "first_noise"),
    ):
        with pytest.raises(ValueError, match=word):
            made(wrong, some, out=tmp_path)


def test_features_are_added_to_finished_cells(tmp_path: Path) -> None:
    one, some = subject(), table_rows()[:4]
    plain = made(one, some, out=tmp_path)
    assert all(not cell.distances for cell in plain.cells)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 3, dtype=torch.float64))
    features = Features("random", network, real=normal(9, *SHAPE))
    found = made(one, some, out=tmp_path, features=features)
    for before, now in zip(plain.cells, found.cells, strict=True):
        assert now.psnr == before.psnr
        assert set(now.distances["random"]) == {"teacher", "real"}
        assert all(len(numbers) == 3 for numbers in now.distances["random"].values())


def test_priorities_and_failures(tmp_path: Path) -> None:
    order: list[str] = []

    def watched(name: str, priority: int, error: type[Exception] | None = None) -> rows.Row:
        def make(task: rows.Task, wanted: tuple[int, ...]) -> Iterator[tuple[int, rows.Made]]:
            order.append(f"{task.case.subject.name} {name}")
            if error is not None:
                raise error("no room")
            for budget in wanted:
                yield budget, rows.Made(schedule=task.case.stock("flow", budget, "euler"))

        return rows.Row("stock", name, "euler", {"kind": name}, make, priority=priority)

    some = [watched("late", 2), watched("broken", 1, RuntimeError), watched("early", 0)]
    found = compare([subject(name="a"), subject(name="b")], some, (2,), guide=GUIDE)
    assert order == ["a early", "b early", "a broken", "b broken", "a late", "b late"]
    assert found.failed == [("a", "stock/broken/euler", "no room"), ("b", "stock/broken/euler", "no room")]
    assert [cell.name for cell in found.cells] == ["late", "early"] * 2
    with pytest.raises(KeyError):
        compare([subject()], [watched("bug", 0, KeyError)], (2,), guide=GUIDE)
    for wrong, word in (
        ({"budgets": ()}, "budgets"),
        ({"rows": some[:1] * 2}, "twice"),
        ({"budgets": (0,)}, "least 1"),
    ):
        with pytest.raises(ValueError, match=word):
            compare(**({"subjects": [subject()], "rows": some, "budgets": (2,)} | wrong))  # type: ignore[arg-type]


def test_rows_are_chosen_by_patterns() -> None:
    every = catalogue()
    assert len({row.key for row in every}) == len(every)
    assert {row.group for row in chosen(every, ["rivals"])} == {"rivals"}
    assert [row.key for row in chosen(every, ["*/joint/*"], ["*/fitted", "*_*"])] == [
        f"ours/joint/{solver}" for solver in ("euler", "ab2", "unipc", "mixed")
    ]
    with pytest.raises(ValueError, match="only: got 'nobody'"):
        chosen(every, ["nobody"])
    with pytest.raises(ValueError, match="no row is left"):
        chosen(every, skip=["*"])


def test_recipes_are_json_and_tell_rows_apart() -> None:
    recipes = [json.dumps(row.recipe, sort_keys=True) for row in catalogue()]
    assert len(set(recipes)) == len(recipes)
    slower = {row.key: row.recipe for row in catalogue(graph=True)}
    assert slower == {row.key: row.recipe for row in catalogue()}


def cell(name: str, group: str, values: Tensor, **others: Any) -> Cell:
    fields: dict[str, Any] = {
        "subject": "s", "guidance": 1.0, "group": group, "name": name, "solver": "euler", "budget": 5, "recipe": {},
        "trained": False, "nfe": 5, "spent": {"total": 7}, "seconds": 1.0, "samples": 3, "backpropagations": 0,
        "t": [1.0, 0.0], "psnr": values.tolist(),
    }  # fmt: skip
    return Cell(**(fields | others))


def test_differences_are_paired() -> None:
    base = normal(40, seed=3) * 4 + 25
    better, trained = base + 1 + 0.1 * normal(40, seed=4), base + 2
    cells = [
        cell("flow", "stock", base),
        cell("edm", "stock", base - 3),
        cell("joint", "ours", better),
        cell("polished", "ours", trained, trained=True),
        cell("few", "published", base[:10] + 0.5),
        cell("DM", "rivals", base + 1.5),
    ]
    found = entries(cells, naive="flow")
    assert [one["name"] for one in found] == [one.name for one in cells]
    joint = found[2]
    over, error = joint["over_stock"]["mean"]
    assert over == pytest.approx(float((better - base).mean()))
    assert error == pytest.approx(float((better - base).std() / 40**0.5), rel=0.15)
    assert error < 0.1 < joint["mean_psnr_error"]
    assert joint["over_naive"] == joint["over_stock"] and joint["over_untrained"]["pooled"] == [0.0, 0.0]
    over, error = found[0]["over_ours"]["pooled"]
    assert over == pytest.approx(-2) and error == pytest.approx(0, abs=1e-9)
    assert joint["psnr"] == pytest.approx(float(pooled_psnr(better)))
    errors = 10 ** (-better.double() / 10)
    assert joint["worst_share"] == pytest.approx(float(errors.max() / errors.sum()))
    few = found[4]
    assert few["noises"] == 10 and few["over_ours"]["mean"][0] == pytest.approx(-1.5)
    best = {(one["measure"], one["training"]): one for one in leaders(found)}
    assert len(best) == 4
    assert best["pooled", True]["ours"] == "ours: polished, euler" and best["pooled", True]["ahead"] == pytest.approx(
        0.5
    )
    lost = best["mean", False]
    assert lost["rival"] == "rivals: DM, euler" and lost["ahead"] == pytest.approx(float((better - base).mean()) - 1.5)
    lines = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [line["name"] for line in lines] == [one.name for one in cells]
    assert float(lines[2]["over_stock_mean"]) == pytest.approx(joint["over_stock"]["mean"][0])
    assert view(found).row_count == 6


def test_spread_agrees_with_its_short_forms() -> None:
    values = normal(2, 30, seed=5) * 3 + 30
    spread = Spread(values)
    assert summary(values[1])["psnr_error"] == pytest.approx(spread.error("pooled", 1))
    assert gain(values[0], values[1], mean=False) == pytest.approx(spread.gain("pooled", 0, 1))
    drawn = values[0][torch.randint(30, (2000, 30), generator=torch.Generator().manual_seed(0))]
    assert spread.error("pooled", 0) == pytest.approx(float(pooled_psnr(drawn).std()))


def test_sampled_together_as_alone() -> None:
    model, noise = mixture(shape=(5,)).flow(), normal(4, 5)
    stock = [oss_ext.Schedule.from_grid(grids.for_model("flow", 4, model), name, model) for name in ("euler", "unipc")]
    levels = oss_ext.amplitudes(model, normal(6, 5, seed=8), teacher_steps=6)
    some = [*stock, stock[0].calibrated(levels), replace(stock[1], noise_scale=0.9)]
    for batch in (None, 3):
        for schedule, images in zip(some, sample_together(some, model, noise, batch_size=batch), strict=True):
            torch.testing.assert_close(images, schedule.sample(model, noise), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="one number"):
        sample_together(
            [*some, oss_ext.Schedule.from_grid(grids.for_model("flow", 5, model), "euler", model)], model, noise
        )


def test_searches_by_other_costs_are_other_searches() -> None:
    """Costs that live one after another, perhaps at one address."""
    model, noise = mixture(shape=(5,)).flow(), normal(4, 5)
    case = Case(Subject("s", model, noise, noise), Guide("flow", 12, "euler"), candidates=10)
    spent = []
    for sources in (1, 2, 3, 4, 5, 6):
        found, _ = case.search("euler", 3, cost=X0(sources))
        spent.append(found.nfe["cost"])
        again, _ = case.search("euler", 3)
        assert again is case.search("euler", 3)[0]
    assert len(set(spent)) == len(spent)


def test_memory_answers_what_it_was_taught() -> None:
    counting = Counting(mixture(shape=(5,)).flow())
    memory, noise = Remembering(counting), normal(6, 5)  # type: ignore[arg-type]
    fine = oss_ext.Schedule.from_grid(grids.for_model("flow", 8, counting), "unipc")  # type: ignore[arg-type]
    memory.learning = True
    fine.sample(memory, noise, batch_size=4)
    memory.learning, taught = False, counting.evaluations
    with_memory = oss_ext.dp_search(memory, noise, 3, teacher_steps=8, batch_size=4)
    saved, asked = memory.answered, counting.evaluations - taught
    plain = oss_ext.dp_search(counting, noise, 3, teacher_steps=8, batch_size=4)  # type: ignore[arg-type]
    assert with_memory.schedule.t.tolist() == plain.schedule.t.tolist()  # type: ignore[union-attr]
    assert saved >= 8 * 6 and saved + asked == counting.evaluations - taught - asked


def test_a_row_learns_from_more_noises_than_searches_see(tmp_path: Path) -> None:
    one, asked = subject(), []

    def more(count: int) -> tuple[Tensor, dict[str, Tensor]]:
        asked.append(count)
        return torch.cat([one.search_noise, normal(count - 5, *SHAPE, seed=9)]), {}

    fitted = rows.searched("fitted")
    polished = rows.refined(fitted, "polished", method="gradient", iterations=2, samples=12)
    found = made(replace(one, more=more), [fitted, polished], (3,), out=tmp_path)
    before, after = found.cells
    assert asked == [12] and not found.failed and after.trained
    assert after.samples == 12 and after.backpropagations == 2 * 9  # of twelve noises three judge
    schedule = found.stores[0].schedule(polished, 3)
    kept = found.stores[0].schedule(fitted, 3)
    assert schedule is not None and kept is not None
    noise, _ = more(12)
    fine = oss_ext.Schedule.from_grid(grids.for_model("flow", 12, one.model), "unipc", one.model)
    alone = oss_ext.refine(
        kept, one.model, noise, method="gradient", iterations=2, teacher=fine.sample(one.model, noise),
        teacher_steps=12, teacher_solver="unipc",
    )  # fmt: skip
    torch.testing.assert_close(schedule.coefficients, alone.coefficients)
    own = alone.provenance.nfe["total"] - kept.provenance.nfe["total"]
    # All evaluations: the search's on its five noises, then the teacher and the learning on twelve.
    assert after.spent["total"] * 12 == pytest.approx(before.spent["total"] * 5 + (12 + own) * 12)
    assert after.spent["total"] == pytest.approx(sum(value for key, value in after.spent.items() if key != "total"))
    failed = made(one, [polished], (3,)).failed
    assert len(failed) == 1 and "draws no more" in failed[0][2]
