"""
Kill a foreman again and again while jobs are submitted and run, and count what became of the promises.

By hand: ``python tests/process/kill.py 200``.
"""

# ruff: noqa: T201  (a script says what it found)

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from attrs import define, field
from load import Books, Callers, Life, Target, free_port, wait_until_all_ended, wrong_jobs


@define
class Report:
    """What was counted. Everything but the first four fields is to be empty."""

    acknowledged: int = 0
    runs: int = 0  # generations that the target began
    interruptions: int = 0  # runs that a kill ended, of all jobs together
    ready_seconds: list[float] = field(factory=list)
    damaged: list[str] = field(factory=list)  # what an integrity check had to say
    missing: list[str] = field(factory=list)  # promised, and in the database no more
    finished_twice: list[str] = field(factory=list)
    unfinished: list[str] = field(factory=list)
    wrong: list[str] = field(factory=list)  # ended, but not as it should
    refused: list[str] = field(factory=list)  # submissions that were answered with something else than 202

    def __str__(self) -> str:
        ready = sorted(self.ready_seconds)
        return (
            f"restarts {len(ready)}, serving after {statistics.median(ready):.2f} s (median), "
            f"{ready[int(len(ready) * 0.95)]:.2f} s (p95), {ready[-1]:.2f} s (most)\n"
            f"jobs acknowledged {self.acknowledged}, missing {len(self.missing)}, "
            f"finished twice {len(self.finished_twice)}, unfinished {len(self.unfinished)}, "
            f"ended otherwise {len(self.wrong)}, submissions refused {len(self.refused)}\n"
            f"generations begun {self.runs}, runs interrupted {self.interruptions}, "
            f"integrity checks that found something {len(self.damaged)}"
        )

    def take(self, books: Books, promised: list[str]) -> None:
        """Enter what a killed daemon has left behind."""
        if books.integrity != "ok":
            self.damaged.append(books.integrity)
        self.missing += books.missing(promised)
        self.finished_twice += books.finished_twice()
        self.interruptions = books.interruptions


def kill_often(
    kills: int, folder: Path, seed: int, limit_seconds: float, longest_life: float = 0.8, pause: float = 0.1
) -> Report:
    """
    Let foreman live for 0.1 s to `longest_life` at a time; the last life runs until all jobs have ended.

    `pause` is the mean of seconds between two submissions of each of four callers.
    """
    chance = random.Random(seed)
    scratch = folder / "copy"
    port = free_port()
    report = Report()
    with Target() as target:
        target.pace(0.005)
        with Callers(port, pause) as callers:
            for _ in range(kills):
                life = Life.begin(folder, port, target.url)
                try:
                    report.ready_seconds.append(life.ready_seconds)
                    time.sleep(chance.uniform(0.1, longest_life))
                finally:
                    life.kill()
                promised = list(callers.acknowledged)
                report.take(Books.read(folder, scratch), promised)
        report.refused = callers.failures
        life = Life.begin(folder, port, target.url)
        try:
            report.ready_seconds.append(life.ready_seconds)
            wait_until_all_ended(port, limit_seconds)
            report.wrong = wrong_jobs(port, callers.acknowledged)
        finally:
            life.kill()
        books = Books.read(folder, scratch)
        report.take(books, list(callers.acknowledged))
        report.unfinished = books.unfinished()
        report.acknowledged = len(callers.acknowledged)
        report.runs = target.runs
    return report


def main() -> int:
    """Print the figures; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description="Kill a foreman again and again.")
    parser.add_argument("kills", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument(
        "--limit-seconds", type=float, default=600, help="for the jobs that are left at the end"
    )
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        report = kill_often(given.kills, Path(folder), given.seed, given.limit_seconds)
    print(report)
    broken = [*report.damaged, *report.missing, *report.finished_twice, *report.unfinished, *report.wrong]
    for sentence in [*broken, *report.refused][:20]:
        print(sentence)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
