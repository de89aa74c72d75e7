"""The ticks of the store on a clock: what is due, and what is old."""

from typing import Any
from unittest.mock import Mock

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from foreman.errors import DatabaseUnavailable
from foreman.jobs.model import Retention
from foreman.jobs.shield import shield
from foreman.worker.upkeep import Upkeep


class Store:
    """Notes when it is asked; `next_due` is its answer, `wait` what it waits for."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.due_at: list[float] = []
        self.pruned_at: list[float] = []
        self.next_due: float | None = None
        self.wait: Deferred[None] | None = None
        self.error: Exception | None = None
        self.on_due: Any = None

    async def due(self, now: float) -> float | None:
        self.due_at.append(now)
        if self.wait is not None:
            await self.wait
        if self.error is not None:
            raise self.error
        return self.next_due

    async def prune(self, now: float, retention: Retention) -> int:
        self.pruned_at.append(now)
        if self.wait is not None:
            await self.wait
        if self.error is not None:
            raise self.error
        return 1


class Outbox:
    """Notes until when its log is pruned."""

    def __init__(self) -> None:
        self.pruned_until: list[float] = []

    async def prune(self, until: float) -> int:
        self.pruned_until.append(until)
        return 0


class Bench:
    def __init__(self) -> None:
        self.clock = Clock()
        self.store = Store(self.clock)
        self.outbox = Outbox()
        self.upkeep = Upkeep(self.store, self.clock, self.outbox, Retention(), 300.0)  # type: ignore[arg-type]


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_it_looks_at_the_start_and_when_something_is_due(bench: Bench) -> None:
    """The earliest moment that it was told counts; a later one is known by the look itself."""
    bench.store.next_due = 50.0
    bench.upkeep.start()
    bench.store.on_due(80.0)
    bench.store.on_due(20.0)
    bench.store.on_due(30.0)
    bench.clock.advance(19)
    assert bench.store.due_at == [0]
    bench.clock.advance(1)
    assert bench.store.due_at == [0, 20]
    bench.store.next_due = None
    bench.clock.advance(30)
    assert bench.store.due_at == [0, 20, 50]
    bench.clock.pump([1] * 100)
    assert bench.store.due_at == [0, 20, 50]
    await bench.upkeep.stop(1.0)
    assert bench.clock.getDelayedCalls() == []


async def test_what_becomes_due_during_a_look_is_not_lost(bench: Bench) -> None:
    """The look may have passed it already; and never do two run at once."""
    bench.upkeep.start()
    bench.store.wait = Deferred()
    bench.store.on_due(1.0)
    bench.clock.advance(1)
    bench.store.on_due(2.0)
    bench.clock.advance(5)
    assert bench.store.due_at == [0, 1]
    wait, bench.store.wait = bench.store.wait, None
    wait.callback(None)
    bench.clock.advance(0)
    assert bench.store.due_at == [0, 1, 6]
    await bench.upkeep.stop(1.0)


async def test_a_database_that_cannot_be_used_is_asked_again(bench: Bench) -> None:
    """After 5 s for what is due, after a minute for what is old."""
    bench.store.error = DatabaseUnavailable("x.db", "disk I/O error")
    bench.upkeep.start()
    bench.clock.pump([5] * 24)
    assert bench.store.due_at[:4] == [0, 5, 10, 15]
    assert bench.store.pruned_at == [60, 120]
    await bench.upkeep.stop(1.0)


async def test_stopping_ends_what_is_under_way(bench: Bench) -> None:
    """With its present batch: not all that is old is pruned first. And nothing more begins."""
    bench.upkeep.start()
    batch: Deferred[None] = Deferred()
    bench.store.wait = shield(batch)
    bench.clock.advance(60)
    stopped = Deferred.fromCoroutine(bench.upkeep.stop(1.0))
    assert not stopped.called
    batch.callback(None)
    assert stopped.called
    assert bench.outbox.pruned_until == []
    bench.store.on_due(61.0)
    assert bench.clock.getDelayedCalls() == []
    assert bench.store.pruned_at == [60]


async def test_stopping_has_a_limit(bench: Bench) -> None:
    """A database that does not answer does not keep foreman."""
    bench.upkeep.start()
    batch: Deferred[None] = Deferred()
    bench.store.wait = shield(batch)
    bench.clock.advance(60)
    stopped = Deferred.fromCoroutine(bench.upkeep.stop(1.0))
    bench.clock.advance(1.0)
    assert stopped.called
    batch.callback(None)


async def test_an_unforeseen_fault_is_no_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is due is looked for again after 5 s, and what is old after a minute."""
    log = Mock()
    monkeypatch.setattr(Upkeep, "_log", log)
    bench = Bench()
    bench.store.error = RuntimeError("a fault of foreman's own")
    bench.upkeep.start()
    bench.clock.pump([5] * 24)
    assert bench.store.due_at[:4] == [0, 5, 10, 15]
    assert bench.store.pruned_at == [60, 120]
    assert log.failure.called
    await bench.upkeep.stop(1.0)
