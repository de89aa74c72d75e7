"""The tables as text and as Markdown, the plots, and the page of the documentation that shows them."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from bench.scheduling import svg
from bench.scheduling.compare import FOREMAN, NONE, Compared, Grades
from bench.scheduling.runs import Run, Summary, Waits
from foreman.scheduler.policy import Lane

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "scheduling.md"
PLOTS = DOCS / "img"
SHOWN = (FOREMAN, "first come", "Ollama", "drain", "overdue first")

Table = list[list[str]]


def seconds(value: float) -> str:
    """A time for people."""
    if value < 100:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 6000 else f"{value / 3600:.1f} h"


def _waits(waits: Waits | None) -> list[str]:
    if waits is None:
        return ["", "", "", ""]
    return [seconds(value) for value in (waits.p50, waits.p95, waits.p99, waits.longest)]


def comparison(compared: Compared) -> Table:
    """One workload by every rule."""
    lanes = [lane for lane in Lane if lane in compared.summaries[FOREMAN].waits]
    head = ["rule", "swaps", "loading", "all done after"]
    for lane in lanes:
        kind = "chat" if lane is Lane.INTERACTIVE else "batch"
        head += [f"{kind} p50", "p95", "p99", "longest"]
    rules = [*SHOWN, "chat-first drain"] if compared.two_lanes else SHOWN
    rows = []
    for rule in rules:
        found = compared.summaries[rule]
        row = [rule, str(found.swaps), seconds(found.load_seconds), seconds(found.makespan)]
        for lane in lanes:
            row += _waits(found.waits.get(lane))
        rows.append(row)
    return [head, *rows]


def promises(all_compared: Sequence[Compared]) -> Table:
    """What was promised, and what came of it."""
    rows = [["workload", "jobs", "promise", "figures", ""]]
    for compared in all_compared:
        for check in compared.checks():
            jobs = str(len(compared.workload.jobs))
            verdict = "kept" if check.kept else "BROKEN"
            rows.append([compared.workload.name, jobs, check.what, check.figures, verdict])
    return rows


def visit_lengths(found: Mapping[str, Mapping[float, Summary]]) -> Table:
    """Waits of chats by the length of a visit."""
    rows = [["workload", "FOREMAN_INTERACTIVE_VISIT", "swaps", "chat p50", "p95", "p99", "longest"]]
    for name, by_length in found.items():
        for length, of_length in by_length.items():
            figures = _waits(of_length.waits[Lane.INTERACTIVE])
            rows.append([name, f"{length:.0f}s", str(of_length.swaps), *figures])
    return rows


def forecasts(grades: Mapping[str, Grades]) -> Table:
    """How many jobs started within a factor of two of what was forecast."""
    rows = [["workload", "chats, asked at once", "batch jobs, asked at once", "batch jobs, asked later"]]
    sums = [NONE, NONE, NONE]
    for name, found in grades.items():
        three = (found.chats, found.batch, found.batch_later)
        rows.append([name, *(f"{g.part:.0%} of {g.jobs}" if g.jobs else "" for g in three)])
        sums = [one + other for one, other in zip(sums, three, strict=True)]
    rows.append(["all", *(f"{g.part:.0%} of {g.jobs}" for g in sums)])
    return rows


def as_text(table: Table) -> str:
    """Columns of one width each, the first one to the left."""
    widths = [max(len(row[n]) for row in table) for n in range(len(table[0]))]
    lines = []
    for row in table:
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def as_markdown(table: Table) -> str:
    """A table with its head."""
    head, *rows = table
    ruler = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ruler, *rows))


def parts(
    all_compared: Sequence[Compared],
    lengths: Mapping[str, Mapping[float, Summary]],
    grades: Mapping[str, Grades],
) -> dict[str, str]:
    """The generated parts of the page by the names of their markers."""
    found = {
        "promises": as_markdown(promises(all_compared)),
        "visits": as_markdown(visit_lengths(lengths)),
        "forecasts": as_markdown(forecasts(grades)),
    }
    for compared in all_compared:
        found[compared.workload.name] = comparison_part(compared)
    return found


def comparison_part(compared: Compared) -> str:
    """The part of one workload."""
    jobs = len(compared.workload.jobs)
    return (
        f"{compared.workload.what[0].upper()}{compared.workload.what[1:]} ({jobs} jobs).\n\n"
        + as_markdown(comparison(compared))
    )


def part_of(page: str, name: str) -> str:
    """What stands between the markers of this name. Raises ValueError when they are not there."""
    begin, end = _place(page, name)
    return page[begin:end]


def filled(page: str, generated: Mapping[str, str]) -> str:
    """The page with these parts."""
    for name, text in generated.items():
        begin, end = _place(page, name)
        page = page[:begin] + text + page[end:]
    return page


def _place(page: str, name: str) -> tuple[int, int]:
    first, last = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    return page.index(first) + len(first), page.index(last)


def plots(all_compared: Sequence[Compared]) -> dict[str, str]:
    """The pictures by file name."""
    swaps = {c.workload.name: {r: float(c.summaries[r].swaps) for r in SHOWN} for c in all_compared}
    chats = {
        c.workload.name: {rule: c.summaries[rule].waits[Lane.INTERACTIVE].p95 for rule in SHOWN}
        for c in all_compared
        if Lane.INTERACTIVE in c.summaries[FOREMAN].waits
    }
    ticks = {1.0: "1 s", 10.0: "10 s", 60.0: "1 min", 600.0: "10 min", 3600.0: "1 h", 36000.0: "10 h"}
    found = {
        "scheduling-swaps.svg": svg.bars(
            "Swaps", swaps, 1, {1.0: "1", 10.0: "10", 100.0: "100", 1000.0: "1000"}
        ),
        "scheduling-chats.svg": svg.bars("Wait of a chat, 95th percentile, in seconds", chats, 0.5, ticks),
    }
    for compared in all_compared:
        if compared.workload.name == "400 at once":
            rows = {rule: _spans(compared.runs[rule]) for rule in SHOWN}
            hours = max(spans[-1][1] for spans in rows.values()) / 3600
            found["scheduling-400.svg"] = svg.turns(compared.workload.what, rows, hours)
    return found


def _spans(runs: Sequence[Run]) -> list[tuple[float, float, str]]:
    """Runs of one model that follow each other are one span."""
    spans = []
    for model, group in groupby(runs, key=lambda run: run.job.model):
        of_model = list(group)
        spans.append((of_model[0].started_at, of_model[-1].ended_at, model))
    return spans
