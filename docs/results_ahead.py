"""Who is ahead in every cell, by how much, and where a rival is, why: the reasons stand in the template."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from results_found import MEASURES, MISSING, Entry, Found, called, difference, paragraph, table
from results_paper import TABLE2, TEACHERS

FREE = {
    "fixed grids": ("stock", ""),
    "AYS tables": ("published", "ays"),
    "OSS-ave": ("published", "OSS-ave"),
    "OSS, per sample": ("published", "OSS, per sample"),
    "GITS": ("rivals", "GITS"),
    "DM": ("rivals", "DM"),
}  # families of methods without training: (group, how the rows' names begin)
TRAINED = {name: ("rivals", name) for name in ("LD3", "S4S", "BNS", "DS-Solver", "DyWeight")}
SURE = 2.0  # standard errors that a difference is told apart from none by
REASON = re.compile(r"<!--\s*reason (.+?):\s(.*?)-->\n?", re.DOTALL)


@dataclass(frozen=True)
class Duel:
    """What our best row is ahead of the best row of a family by, in a cell; [dB, standard error] by both averages."""

    subject: str
    guidance: float
    budget: int
    family: str
    rivals: dict[str, Entry]
    ahead: dict[str, tuple[float, float]]

    @property
    def key(self) -> str:
        """As reasons name it."""
        return f"{cell_key(self.subject, self.guidance, self.budget)}, {self.family}"

    @property
    def lost(self) -> bool:
        return any(value < 0 for value, _ in self.ahead.values())

    @property
    def told_apart(self) -> bool:
        """Whether the rival is ahead by more than its noise, by one average at least."""
        return any(value < -SURE * error for value, error in self.ahead.values())


def cell_key(subject: str, guidance: float, budget: int) -> str:
    return f"{subject}, guidance {guidance:g}, {budget} steps"


def reasons_of(template: str) -> tuple[dict[str, str], str]:
    """({key: why}, the template without them). They are comments there: <!-- reason KEY: why -->."""
    found = {key: " ".join(why.split()) for key, why in REASON.findall(template)}
    return found, REASON.sub("", template)


def duels(found: Found, families: dict[str, tuple[str, str]], base: str) -> Iterator[Duel]:
    """base: "over_ours", or "over_untrained": our best row of all, or of those without training."""
    for subject, guidance in found.titles():
        for budget in found.budgets("main"):
            cell = found.rows("main", subject=subject, guidance=guidance, budget=budget)
            for family, (group, begins) in families.items():
                some = [row for row in cell if row["group"] == group and row["name"].startswith(begins)]
                some = [row for row in some if row[base]["pooled"] is not None]
                if some:
                    best = {measure: max(some, key=lambda row: row[name]) for measure, name in MEASURES.items()}
                    ahead = {measure: (-row[base][measure][0], row[base][measure][1]) for measure, row in best.items()}
                    yield Duel(subject, guidance, budget, family, best, ahead)


def decisive(found: Found) -> list[Duel]:
    """Ours without training against families without, and our best of all against those that are trained."""
    return [*duels(found, FREE, "over_untrained"), *duels(found, TRAINED, "over_ours")]


def leading(found: Found, training: bool) -> str:
    """Our best row and the best of all others in every cell."""
    result = found["main"]
    if result is None:
        return MISSING
    lines = []
    for subject, guidance in found.titles():
        for budget in found.budgets("main"):
            where = {"subject": subject, "guidance": guidance, "budget": budget, "training": training}
            cell = [one for one in result["leaders"] if all(one[key] == value for key, value in where.items())]
            for measure in MEASURES:
                one = next((each for each in cell if each["measure"] == measure), None)
                if one is None:
                    continue
                first = measure == "pooled"
                lines.append(
                    [
                        f"{subject}, {guidance:g}" if first else "",
                        str(budget) if first else "",
                        measure,
                        _plain(one["ours"]),
                        f"{one['ours_psnr']:.2f}",
                        _plain(one["rival"]),
                        f"{one['rival_psnr']:.2f}",
                        difference((one["ahead"], one["error"]), 2),
                    ]
                )
    head = ["model, guidance", "steps", "average", "our best row", "dB", "best other row", "dB", "ahead"]
    return table(head, lines, 4, also={5}) if lines else MISSING


def _plain(name: str) -> str:
    return name.split(": ", 1)[1]


def matrix(found: Found, families: dict[str, tuple[str, str]], base: str) -> str:
    """Cells down, families across: pooled above mean."""
    every = {(duel.subject, duel.guidance, duel.budget, duel.family): duel for duel in duels(found, families, base)}
    if not every:
        return MISSING
    lines = []
    for subject, guidance in found.titles():
        for budget in found.budgets("main"):
            line = [f"{subject}, {guidance:g}", str(budget)]
            for family in families:
                duel = every.get((subject, guidance, budget, family))
                pairs = [] if duel is None else [_marked(duel.ahead[measure]) for measure in MEASURES]
                line.append("<br>".join(pairs))
            lines.append(line)
    return table(["model, guidance", "steps", *families], lines)


def _marked(pair: tuple[float, float]) -> str:
    """Bold where the rival is ahead."""
    text = difference(pair, 2)
    return f"**{text}**" if pair[0] < 0 else text


def verdict(found: Found, reasons: dict[str, str]) -> str:
    """How many comparisons are won, and those that are not, with the reason. Raises ValueError where one is missing, or
    given for a cell that is not lost."""
    every = decisive(found)
    if not every:
        return MISSING
    lost = [duel for duel in every if duel.lost]
    count = len({(duel.subject, duel.guidance, duel.budget) for duel in every})
    sure = sum(all(value > SURE * error for value, error in duel.ahead.values()) for duel in every)
    text = (
        f"{len(every)} comparisons in {count} cells: ours is ahead by both averages in {len(every) - len(lost)}, by "
        f"more than {SURE:g} standard errors in {sure}."
    )
    cells = len(found.titles()) * len(found.budgets("main"))
    there = Counter(duel.family for duel in every)
    few = [f"{family} in {cells - there[family]}" for family in (*FREE, *TRAINED) if there[family] < cells]
    if few:
        text += f" Not measured yet: {', '.join(few)} of {cells} cells."
    given = {key for key in reasons if not key.startswith("margin")}
    _all_there({duel.key for duel in lost if duel.told_apart}, given, {duel.key for duel in lost})
    if not lost:
        return paragraph(text + " No rival is ahead in any cell, by either average.")
    parts = [paragraph(text + " A rival is ahead here:"), ""]
    for duel in lost:
        by = ", ".join(
            f"{difference((-value, error), 2)} dB {measure} ({called(duel.rivals[measure])}"
            + (f"; one noise of {duel.rivals[measure]['noises']} has {duel.rivals[measure]['worst_share']:.0%} of its "
               "squared error)" if measure == "pooled" else ")")
            for measure, (value, error) in duel.ahead.items()
            if value < 0
        )  # fmt: skip
        why = reasons.get(duel.key, "within the noise of these samples.")
        parts.append("- " + paragraph(f"{duel.key}: {by}. Why: {why}").replace("\n", "\n  "))
    return "\n".join(parts)


def _all_there(wanted: set[str], given: set[str], allowed: set[str]) -> None:
    """wanted: the keys that want a reason; allowed: those that may have one."""
    if wanted - given:
        raise ValueError(
            "results_template.md: no reason is given for "
            + "; ".join(sorted(wanted - given))
            + " (wanted <!-- reason KEY: why --> for each)"
        )
    if given - allowed:
        raise ValueError(f"results_template.md: reasons for what is not so: {'; '.join(sorted(given - allowed))}")


def margins(found: Found, reasons: dict[str, str]) -> str:
    """The paper's gains over naive step reduction beside ours, of Euler's method. Errors as `verdict`."""
    lines, missed = [], {}
    for study, teacher in ((f"table2_{grid}", grid) for grid in TEACHERS):
        for budget in (20, 10, 5):
            row = found.one(study, group="ours", name="joint", solver="euler", budget=budget)
            if row is not None:
                label = f"{row['subject']}, {row['guidance']:g}, {teacher} teacher"
                own = found.one(study, group="published", name="OSS, per sample", budget=budget)
                _margin(lines, missed, f"margin, {teacher} teacher, {budget} steps", label, teacher, row, own)
    for subject, guidance in found.titles():
        for budget in found.budgets("main")[::-1]:
            where = {"subject": subject, "guidance": guidance, "budget": budget}
            row = found.one("main", group="ours", name="joint", solver="euler", **where)
            if row is not None and budget in TABLE2["OSS"]:
                own = found.one("main", group="published", name="OSS, per sample", **where)
                label = f"{subject}, {guidance:g}, main study"
                _margin(lines, missed, f"margin, {cell_key(subject, guidance, budget)}", label, "flow", row, own)
    if not lines:
        return MISSING
    _all_there(set(missed), {key for key in reasons if key.startswith("margin")}, set(missed))
    head = ["", "steps", "paper's OSS", "our joint search", "OSS as published, here", "the paper's is"]
    text = table(head, lines, 1, also={5})
    if missed:
        listed = [f"- {paragraph(f'{label}: {reasons[key]}')}".replace("\n", "\n  ") for key, label in missed.items()]
        text += "\n\nNot reached, and why:\n\n" + "\n".join(listed)
    return text


def _margin(
    lines: list[list[str]], missed: dict[str, str], key: str, label: str, teacher: str, row: Entry, own: Entry | None
) -> None:
    place, budget = TEACHERS[teacher], row["budget"]
    paper = TABLE2["OSS"][budget][place] - TABLE2["naive"][budget][place]
    over = row["over_naive"]
    met = {measure: over[measure] is not None and over[measure][0] >= round(paper, 2) for measure in MEASURES}
    said = "reached" if all(met.values()) else "not reached"
    if any(met.values()) and not all(met.values()):
        said = f"reached by the {next(measure for measure in MEASURES if met[measure])} average alone"
    if not any(met.values()):
        missed[key] = f"{label}, {budget} steps"
    lines.append([label, str(budget), f"{paper:+.2f}", _gains(row), "" if own is None else _gains(own), said])


def _gains(row: Entry) -> str:
    return " / ".join(difference(row["over_naive"][measure]) for measure in MEASURES)
