"""Every method, and the rivals beside their authors' code."""

from __future__ import annotations

from results_found import MISSING, Entry, Found, both, difference, paragraph, table

GROUPS = ("stock", "published", "rivals", "ours")


def every_row(found: Found) -> str:
    """For every model and guidance: each method with its best solver, and ours one by one."""
    if found["main"] is None:
        return MISSING
    parts = []
    for subject, guidance in found.titles():
        rows = found.rows("main", subject=subject, guidance=guidance)
        budgets = sorted({row["budget"] for row in rows})
        most = max((row["noises"] for row in rows), default=0)
        lines = []
        for trained in (False, True):
            for group in GROUPS:
                some = [row for row in rows if (row["group"], row["trained"]) == (group, trained)]
                names = dict.fromkeys((row["name"], row["solver"] if group == "ours" else "") for row in some)
                lines += [_line(some, group, name, solver, budgets, most) for name, solver in names]
        head = [f"{subject}, guidance {guidance:g}", *(f"{budget} steps" for budget in budgets)]
        parts.append(table([*head, "evaluations", "back-props", "seconds"], lines))
    return "\n\n".join(parts)


def _line(some: list[Entry], group: str, name: str, solver: str, budgets: list[int], most: int) -> list[str]:
    """evaluations, seconds: of the row's largest budget."""
    label = f"{group}: {name}{', ' + solver if solver else ''}"
    line, last = [label], None
    for budget in budgets:
        mine = [
            row for row in some if row["name"] == name and row["budget"] == budget and solver in ("", row["solver"])
        ]
        best = max(mine, key=lambda row: row["psnr"], default=None)
        few = "" if best is None or best["noises"] == most else f" ({best['noises']} noises)"
        line.append(both(best) + ("" if best is None or solver else f" ({best['solver']})") + few)
        last = best or last
    if last is None:
        return [*line, "", "", ""]
    spent = f"{last['spent'].get('total', 0):.0f} x {last['samples']}" if last["samples"] else "0"
    return [*line, spent, str(last["backpropagations"] or ""), f"{last['seconds']:.1f}" if last["seconds"] else ""]


def peers(found: Found) -> str:
    """benchmarks/bench_peers.py: the authors' code and ours on the same model and noises."""
    result = found.file("peers")
    if result is None:
        return MISSING
    lines = [
        [row["method"], f"{row['repository']} {row['commit']}", row["what"], row["theirs"], row["ours"],
         f"{row['off']:.1e}" if row["off"] else "equal", f"{row['bound']:.0e}" if row["bound"] else "equal"]
        for row in result["rows"]
    ]  # fmt: skip
    head = ["", "their code", "compared", "theirs", "ours", "differ by", "bound"]
    about = f"On photo32, {result['cpu'] if not result['gpu'] else result['gpu']}, {result['date']}."
    return table(head, lines, 5) + "\n\n" + paragraph(about)


def training(found: Found) -> str:
    """benchmarks/bench_rivals.py: what the learned rivals reach with more iterations, and what an iteration takes."""
    result = found.file("rivals")
    if result is None:
        return MISSING
    rows = result["rows"]
    parts = []
    curves = [row for row in rows if "psnr" in row]
    counts = sorted({row["iterations"] for row in curves if "iterations" in row})
    if counts:
        lines = []
        keys = dict.fromkeys((row["guidance"], row["steps"], row["method"]) for row in curves if "iterations" in row)
        for guidance, steps, method in keys:
            line = [f"{guidance:g}", str(steps), method]
            for count in counts:
                same = {"guidance": guidance, "steps": steps, "method": method, "iterations": count, "rate": 1.0}
                one = next((row for row in curves if all(row.get(key) == value for key, value in same.items())), None)
                line.append("" if one is None else f"{both(one)} ({one['seconds']:.0f} s)")
            lines.append(line)
        head = ["guidance", "steps", "method", *(f"{count} iterations" for count in counts)]
        parts.append(table(head, lines, 3))
    timed = [row for row in rows if "ms" in row]
    if timed:
        lines = [
            [row["method"], str(row["steps"]), "yes" if row["graph"] else "no", f"{row['ms']:.1f}"] for row in timed
        ]
        parts.append(table(["method", "steps", "CUDA graph", "ms an iteration"], lines, 3))
    parts.append(paragraph(f"Device: {result['gpu'] or result['cpu']}, torch {result['torch']}, {result['date']}."))
    return "\n\n".join(parts)


def gains_of_training(found: Found) -> str:
    """What training adds to our own rows: polished beside what it was polished from."""
    lines = []
    for subject, guidance in found.titles():
        for budget in found.budgets("main"):
            where = {"subject": subject, "guidance": guidance, "budget": budget, "group": "ours"}
            for row in found.rows("main", trained=True, **where):
                base = row["over_untrained"]
                cells = [difference(base[measure], 2) for measure in ("pooled", "mean")]
                passes = str(row["backpropagations"])
                lines.append([f"{subject}, {guidance:g}", str(budget), row["name"], both(row), *cells, passes])
    head = ["model, guidance", "steps", "row", "PSNR", "over our best without training, pooled", "mean", "back-props"]
    return table(head, lines, 3) if lines else MISSING
