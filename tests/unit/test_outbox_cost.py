"""What the outbox costs: the same, however many deliveries wait for this receiver or for others."""

import re
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from contract_outbox import RECEIVER, URL, attempt
from contract_store import Life
from twisted.internet.defer import Deferred

from foreman.jobs.database import InlinePool, open_pools
from foreman.jobs.delivery import DeliveryState
from foreman.jobs.queries import QUERIES, load_queries
from foreman.jobs.store import SqliteStore
from foreman.testing.store import compose_plainly

DEAD = "http://10.0.0.9:80"
STEPS = 100  # instructions of SQLite


class Counted:
    """A store in memory, and how much SQLite does for a call."""

    def __init__(self) -> None:
        self.pools = open_pools(":memory:", None)
        writer = self.pools.writer
        assert isinstance(writer, InlinePool)
        self.connection: Any = writer._connection

        async def begin(life: Life) -> Any:
            store = SqliteStore(":memory:", self.pools, lambda: life.now, compose_plainly)
            await store.open()
            return store

        self.life = Life(begin)
        self.now(self.life.crash())

    def now(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What it returns: the pool has no threads."""
        found: list[Any] = []
        Deferred.fromCoroutine(coroutine).addCallbacks(found.append, lambda why: why.raiseException())
        (result,) = found
        return result

    def count(self, coroutine: Coroutine[Any, Any, Any]) -> tuple[int, Any]:
        """Hundreds of instructions, and what it returns."""
        hundreds = 0

        def tick() -> int:
            nonlocal hundreds
            hundreds += 1
            return 0

        self.connection.set_progress_handler(tick, STEPS)
        result = self.now(coroutine)
        self.connection.set_progress_handler(None, 0)
        return hundreds, result

    def fill(self, receiver: str, count: int) -> None:
        """Deliveries of as many jobs, due long ago."""
        self.connection.execute("BEGIN")
        self.connection.executemany(
            "INSERT INTO delivery (event_id, job_id, type, sequence, url, receiver, state, series, tried,"
            " due_at, body) VALUES (?, ?, 'job.failed', 1, ?, ?, 'pending', 1, 0, ?, x'7b7d')",
            ((f"{receiver} {n}", f"{receiver} job {n}", receiver, receiver, float(n)) for n in range(count)),
        )
        self.connection.execute("COMMIT")


@pytest.fixture
def counted() -> Iterator[Counted]:
    found = Counted()
    yield found
    found.pools.close()


@pytest.mark.parametrize("waiting", [0, 100_000])
@pytest.mark.parametrize("whose", [DEAD, RECEIVER])
def test_a_delivery_costs_the_same_however_many_wait(counted: Counted, whose: str, waiting: int) -> None:
    """To make it, to take it, and to write down what came of it: steps into indexes, no scans."""
    counted.fill(whose, waiting)
    outbox = counted.life.store.outbox
    submitted, _ = counted.count(counted.life.submit(webhook_url=URL))
    took, taken = counted.count(outbox.take(RECEIVER, counted.life.now, 4, ()))
    assert len(taken.due) == (4 if waiting and whose == RECEIVER else 1)
    recorded, current = counted.count(
        outbox.record(taken.due[0].delivery, attempt(counted.life.now), DeliveryState.PENDING, 1e12)
    )
    assert current
    assert submitted <= 6
    assert took <= 3
    assert recorded <= 2


def test_what_is_in_memory_is_passed_over_cheaply(counted: Counted) -> None:
    """The events that the dispatcher has already are at the head of the index: nothing behind is read."""
    counted.fill(DEAD, 10_000)
    besides = [f"{DEAD} {n}" for n in range(128)]
    took, taken = counted.count(counted.life.store.outbox.take(DEAD, counted.life.now, 1, besides))
    assert [due.delivery.event_id for due in taken.due] == [f"{DEAD} 128"]
    assert took <= 20


def test_receivers_are_found_without_reading_their_deliveries(counted: Counted) -> None:
    """From one to the next in the index."""
    counted.fill(DEAD, 10_000)
    for port in range(1, 11):
        counted.fill(f"http://10.0.0.5:{port}", 1_000)
    cost, found = counted.count(counted.life.store.outbox.receivers())
    assert len(found) == 11
    assert cost <= 12


def test_no_query_reads_a_whole_table(counted: Counted) -> None:
    """Each step of each plan is a search, but for what a query holds itself."""
    for name in load_queries("delivery"):
        values = dict.fromkeys(re.findall(r":(\w+)", QUERIES[name]))
        plan = counted.connection.execute(f"EXPLAIN QUERY PLAN {QUERIES[name]}", values).fetchall()
        scans = [step[3] for step in plan if step[3].startswith("SCAN")]
        # `next` is the recursion's one row; the latest announcement is the last entry of its index.
        allowed = {
            "SCAN next",
            "SCAN json_each VIRTUAL TABLE INDEX 1:",
            "SCAN delivery USING INDEX delivery_own",
        }
        assert not set(scans) - allowed, name
