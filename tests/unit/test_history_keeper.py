"""What was measured, over restarts: read at the start, written now and then, on the real store."""

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from grants import make_grant
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from foreman.jobs.model import Estimate
from foreman.scheduler.history import RUN_SECONDS, History
from foreman.scheduler.keys import ModelKey
from foreman.scheduler.policy import Lane
from foreman.testing.store import make_store
from foreman.worker.keeper import WRITE_AFTER_SECONDS, HistoryKeeper

KEY = ModelKey(frozenset({"a"}), (("num_gpu", 10),), 4096)


class Bench:
    """A store, and lives of a history beside it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_800_000_000.0)
        self.store, self.pool = make_store(self.clock)
        self.begin()

    def begin(self) -> None:
        """Another life."""
        self.history = History(self.clock, lambda: False)
        self.keeper = HistoryKeeper(self.clock, self.store, self.history)
        self.wait(self.keeper.start())

    def run(self, seconds: float) -> None:
        grant = make_grant(self.clock, KEY, lane=Lane.DURABLE)
        self.clock.advance(seconds)
        grant.first_byte()
        self.history.released(grant)

    def wait(self, coroutine: Any) -> Any:
        results: list[Any] = []
        Deferred.fromCoroutine(coroutine).addCallback(results.append)
        return results[0]

    def kept(self) -> dict[tuple[str, str], Estimate]:
        """By measure and lane, for the one key."""
        return {(each.measure, each.lane): each for each in self.wait(self.store.estimates()) if each.key}

    @property
    def measured(self) -> float:
        return self.history.run_seconds(Lane.DURABLE, KEY)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.wait(bench.keeper.stop(9.0))
    bench.wait(bench.store.close())
    assert bench.clock.getDelayedCalls() == []


def test_over_a_restart(bench: Bench) -> None:
    """The next life expects what this one measured."""
    bench.run(30.0)
    bench.wait(bench.keeper.stop(9.0))
    bench.begin()
    assert bench.measured == pytest.approx(30.0)
    bench.run(60.0)
    assert bench.measured == pytest.approx(45.0)


def test_written_now_and_then(bench: Bench) -> None:
    """What changes within some seconds is one transaction; nothing is written when nothing changes."""
    commits = bench.store.commits
    for _ in range(10):
        bench.run(0.1)
    assert bench.store.commits == commits
    bench.clock.advance(WRITE_AFTER_SECONDS)
    assert bench.store.commits == commits + 1
    assert bench.kept()["run_seconds", "durable"].count == 10
    bench.clock.advance(10 * WRITE_AFTER_SECONDS)
    assert bench.store.commits == commits + 1
    bench.run(0.1)
    bench.clock.advance(WRITE_AFTER_SECONDS)
    assert bench.kept()["run_seconds", "durable"].count == 11


@pytest.mark.parametrize("more", [0, 1])
def test_stopping_while_it_writes(bench: Bench, more: int) -> None:
    """The write under way ends first, and what changed since is written too."""
    bench.run(30.0)
    bench.pool.commit_seconds = 3.0
    bench.clock.advance(WRITE_AFTER_SECONDS)
    for _ in range(more):
        bench.run(0.5)
    stopped: list[None] = []
    Deferred.fromCoroutine(bench.keeper.stop(9.0)).addCallback(stopped.append)
    seconds = 0.5 * more
    while not stopped:
        bench.clock.advance(0.5)
        seconds += 0.5
    assert seconds == 3.0 * (1 + more)
    assert bench.kept()["run_seconds", "durable"].count == 1 + more
    bench.pool.commit_seconds = 0.0


def test_a_database_that_cannot_be_written(bench: Bench) -> None:
    """Nothing is lost but these numbers: the next ones are written."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorname = "SQLITE_FULL"
    bench.pool.broken = error
    bench.run(30.0)
    bench.clock.advance(WRITE_AFTER_SECONDS)
    bench.pool.broken = None
    assert bench.kept() == {}
    bench.run(60.0)
    bench.clock.advance(WRITE_AFTER_SECONDS)
    assert bench.kept()["run_seconds", "durable"].value == pytest.approx(45.0)


def test_what_cannot_be_read(bench: Bench) -> None:
    """A row of another version is left alone."""
    rows = [Estimate("a new measure", "", "", 1.0, 1), Estimate("run_seconds", "durable", "no key", 1.0, 1)]
    bench.wait(bench.store.put_estimates(rows))
    bench.wait(bench.keeper.stop(9.0))
    bench.begin()
    assert bench.measured == RUN_SECONDS
