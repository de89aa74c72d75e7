"""``make bench-scheduling``: foreman's scheduling beside its rivals, on the same arrivals, in seconds.

``--docs`` also writes the tables and plots of the documentation. ``--log FILE`` takes the arrivals from the
log of a foreman instead.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.scheduling import page
from bench.scheduling.compare import Compared, Grades, by_visit_length, compare, grade
from bench.scheduling.recorded import embedded, read
from bench.scheduling.runs import Summary
from bench.scheduling.workload import hot_model, poisson_chats, synthetic
from foreman.scheduler.policy import Limits

SEED = 1


LENGTHS_ON = (hot_model, poisson_chats(80), poisson_chats(95))


def visit_lengths(seed: int) -> dict[str, dict[float, Summary]]:
    """What the length of a visit changes, where chats for many models are pressing."""
    workloads = [make(seed) for make in LENGTHS_ON]
    return {workload.name: by_visit_length(workload) for workload in workloads}


def run(seed: int) -> tuple[list[Compared], dict[str, Grades]]:
    """All workloads by all rules, and how good the forecasts were. The history is that of another seed.

    There is only one recording, so that one is graded with its own.
    """
    workloads = [*synthetic(seed), embedded()]
    before = [*synthetic(seed + 1), embedded()]
    compared = [compare(workload, Limits()) for workload in workloads]
    grades = {
        workload.name: grade(found.runs["foreman"], workload, earlier, seed)
        for workload, found, earlier in zip(workloads, compared, before, strict=True)
    }
    return compared, grades


def show(compared: Sequence[Compared], grades: dict[str, Grades]) -> bool:
    """Print the tables. Whether all is as promised."""
    for found in compared:
        print(f"{found.workload.name}: {found.workload.what}, {len(found.workload.jobs)} jobs")
        print(page.as_text(page.comparison(found)) + "\n")
    print(page.as_text(page.promises(compared)) + "\n")
    print("Started within a factor of two of the forecast:")
    print(page.as_text(page.forecasts(grades)))
    return all(check.kept for found in compared for check in found.checks())


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code says whether every promise is kept."""
    parser = argparse.ArgumentParser(prog="python -m bench.scheduling", description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED, help="other arrivals (default: those of the docs)")
    parser.add_argument("--docs", action="store_true", help="write the tables and plots into docs/")
    parser.add_argument("--log", type=Path, help="take the arrivals from this log of a foreman")
    options = parser.parse_args(arguments)
    if options.log:
        lines = options.log.read_text("utf-8").splitlines()
        workload = read("log", f"recorded in {options.log.name}", lines)
        found = compare(workload, Limits())
        return 0 if show([found], {"log": grade(found.runs["foreman"], workload, workload, SEED)}) else 1
    compared, grades = run(options.seed)
    lengths = visit_lengths(options.seed)
    if options.docs:
        text = page.PAGE.read_text("utf-8")
        page.PAGE.write_text(page.filled(text, page.parts(compared, lengths, grades)), "utf-8")
        page.PLOTS.mkdir(exist_ok=True)
        for name, picture in page.plots(compared).items():
            (page.PLOTS / name).write_text(picture, "utf-8")
    kept = show(compared, grades)
    print("\n" + page.as_text(page.visit_lengths(lengths)))
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
