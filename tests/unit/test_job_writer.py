"""The one writer: shared transactions, one bad write among many, order, and cancellation."""

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from held_pool import HeldPool
from twisted.internet.defer import CancelledError, Deferred

from foreman.errors import DatabaseFull, DatabaseUnavailable
from foreman.jobs.database import open_pools
from foreman.jobs.model import LineKey, LineView
from foreman.jobs.writer import MOST_TOGETHER, Transaction, Writer


@pytest.fixture
def pool() -> Any:
    pool = HeldPool()
    pool.connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY)")
    yield pool
    pool.close()


@pytest.fixture
def views() -> list[LineView]:
    return []


@pytest.fixture
def writer(pool: HeldPool, views: list[LineView]) -> Writer:
    return Writer(pool, "x.db", views.append)


def rows(pool: HeldPool) -> list[int]:
    return [n for (n,) in pool.connection.execute("SELECT n FROM t ORDER BY n").fetchall()]


def put(n: int, log: list[Any] | None = None) -> Callable[[Transaction], int]:
    """A write of one row. The second of one number fails."""

    def write(transaction: Transaction) -> int:
        transaction.connection.execute("INSERT INTO t VALUES (?)", (n,)).fetchall()
        if log is not None:
            transaction.notices.append(lambda: log.append(("notice", n)))
        return n

    return write


def outcomes(*deferreds: "Deferred[Any]") -> list[Any]:
    """What each has fired with; None for one that has not."""
    found: list[Any] = [None] * len(deferreds)

    def note(result: Any, index: int) -> None:
        found[index] = getattr(result, "value", result)

    for index, deferred in enumerate(deferreds):
        deferred.addBoth(note, index)
    return found


def test_writes_that_wait_share_the_next_transaction(pool: HeldPool, writer: Writer) -> None:
    """The first goes alone; what comes while it is under way goes together; all fire after the commit."""
    first = writer.write(put(0))
    others = [writer.write(put(n)) for n in range(1, 40)]
    assert len(pool.calls) == 1
    pool.work()
    assert outcomes(first, *others) == [0] + [None] * 39
    pool.work()
    assert (writer.commits, rows(pool)) == (2, list(range(40)))
    assert outcomes(*others) == [None] * 39  # the results were taken by the first look
    assert pool.statements.count("COMMIT") == 2
    assert not pool.calls


def test_a_transaction_is_not_without_end(pool: HeldPool, writer: Writer) -> None:
    """At most so many writes share one."""
    writer.write(put(-1))
    writes = [writer.write(put(n)) for n in range(MOST_TOGETHER + 1)]
    found = outcomes(*writes)
    pool.work()
    pool.work()
    assert found.count(None) == 1
    pool.work()
    assert found.count(None) == 0


def test_one_bad_write_among_many(pool: HeldPool, writer: Writer) -> None:
    """It fails alone, with its own error, and takes back what it did; its neighbours are kept."""

    def bad(transaction: Transaction) -> None:
        transaction.touched.add(LineKey("never"))
        transaction.notices.append(lambda: pytest.fail("it never happened"))
        put(100)(transaction)
        put(1)(transaction)

    def broken(transaction: Transaction) -> None:
        raise KeyError("a mistake")

    writer.write(put(0))
    found = outcomes(*[writer.write(func) for func in (put(1), bad, put(2), broken, put(3))])
    pool.work()
    pool.work()
    assert found[0::2] == [1, 2, 3]
    assert isinstance(found[1], sqlite3.IntegrityError)
    assert isinstance(found[3], KeyError)
    assert rows(pool) == [0, 1, 2, 3]


def test_a_full_disk_fails_what_does_not_fit(pool: HeldPool, writer: Writer) -> None:
    """SQLite undoes the whole transaction then; each is tried alone, and the small ones are kept."""
    ((pages,),) = pool.connection.execute("PRAGMA page_count").fetchall()
    pool.connection.execute(f"PRAGMA max_page_count = {pages + 2}").fetchall()

    def large(transaction: Transaction) -> None:
        transaction.connection.execute(
            "INSERT INTO piece (seq, run, name, number, data) VALUES (1, 0, '', 0, zeroblob(100000))"
        ).fetchall()

    writer.write(put(0))
    found = outcomes(*[writer.write(func) for func in (put(1), large, put(2))])
    pool.work()
    pool.work()
    assert found[0::2] == [1, 2]
    assert isinstance(found[1], DatabaseFull)
    assert "FOREMAN_DB_PATH, 'x.db', is full" in str(found[1])
    assert rows(pool) == [0, 1, 2]
    pool.connection.execute("PRAGMA max_page_count = 100000").fetchall()
    again = outcomes(writer.write(large))
    pool.work()
    assert again == [None]
    ((count,),) = pool.connection.execute("SELECT count(*) FROM piece").fetchall()
    assert count == 1


def test_no_connection(pool: HeldPool, writer: Writer) -> None:
    """All that wait are told; the next write is tried again."""
    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorname = "SQLITE_CANTOPEN"
    pool.broken = error
    found = outcomes(writer.write(put(0)))
    pool.work()
    assert isinstance(found[0], DatabaseUnavailable)
    pool.broken = None
    found = outcomes(writer.write(put(0)))
    pool.work()
    assert found == [0]


def test_a_database_that_cannot_be_written(pool: HeldPool, writer: Writer) -> None:
    """Everything is refused while it is so, and works again by itself."""
    pool.connection.execute("PRAGMA query_only = ON").fetchall()
    found = outcomes(writer.write(put(0)))
    pool.work()
    assert isinstance(found[0], DatabaseUnavailable)
    assert "cannot be used now: attempt to write a readonly database" in str(found[0])
    pool.connection.execute("PRAGMA query_only = OFF").fetchall()
    found = outcomes(writer.write(put(0)))
    pool.work()
    assert found == [0]


def test_others_hear_before_the_results_are_there(
    pool: HeldPool, writer: Writer, views: list[LineView]
) -> None:
    """Views and notices come after the commit and before the results, and each line comes once."""
    log: list[Any] = []
    line = LineKey("m")

    def touch(transaction: Transaction) -> None:
        transaction.touched.add(line)

    writer.write(put(0, log)).addCallback(lambda n: log.append(("result", n, len(views))))
    for n in (1, 2):
        writer.write(put(n, log)).addCallback(lambda n: log.append(("result", n, len(views))))
        writer.write(touch)
    assert log == []
    pool.work()
    pool.work()
    assert log == [
        ("notice", 0), ("result", 0, 0), ("notice", 1), ("notice", 2), ("result", 1, 1), ("result", 2, 1),
    ]  # fmt: skip
    assert views == [LineView(line, 0, None, None)]


def test_a_write_that_a_callback_asks_for_comes_later() -> None:
    """Also with a pool whose results are there at once: what is told is told in order."""
    pool = open_pools(":memory:", None).writer
    log: list[Any] = []

    def hear(view: LineView) -> None:
        log.append(view.line.model)
        if len(log) == 1:
            writer.write(touch("third"))

    def touch(*models: str) -> Callable[[Transaction], None]:
        return lambda transaction: transaction.touched.update(LineKey(model) for model in models)

    writer = Writer(pool, "x.db", hear)
    writer.write(touch("first", "second"))
    assert sorted(log[:2]) == ["first", "second"]
    assert log[2:] == ["third"]
    pool.close()


def test_cancelling_waits_for_the_end_and_undoes_nothing(pool: HeldPool, writer: Writer) -> None:
    """Whether the write waits or is under way: it is committed, and then the canceller goes on."""
    first, second = writer.write(put(0)), writer.write(put(1))
    found = outcomes(first, second)
    first.cancel()
    second.cancel()
    second.cancel()
    assert found == [None, None]
    pool.work()
    assert isinstance(found[0], CancelledError)
    assert found[1] is None
    pool.work()
    assert isinstance(found[1], CancelledError)
    assert rows(pool) == [0, 1]


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged of the failures that nobody waits for: the name of an error, or a sentence."""
    from foreman.jobs import shield

    logged: list[str] = []

    class Log:
        def failure(self, text: str, failure: Any) -> None:
            logged.append(failure.type.__name__)

        def warn(self, text: str, why: str) -> None:
            logged.append(text.format(why=why))

    monkeypatch.setattr(shield, "_log", Log())
    return logged


def test_a_failure_that_nobody_waits_for_is_logged(pool: HeldPool, writer: Writer, logged: list[str]) -> None:
    """It must not be lost with its waiter."""
    writer.write(put(0)).addErrback(lambda _: None)
    pool.work()
    doomed = writer.write(put(0))
    found = outcomes(doomed)
    doomed.cancel()
    pool.work()
    assert isinstance(found[0], CancelledError)
    assert logged == ["IntegrityError"]


def test_a_refusal_that_nobody_waits_for_is_one_line(
    pool: HeldPool, writer: Writer, logged: list[str]
) -> None:
    """A full disk is no mistake of foreman's, and a thousand callers may leave while it is full."""
    pool.connection.execute("PRAGMA query_only = ON").fetchall()
    doomed = writer.write(put(0))
    found = outcomes(doomed)
    doomed.cancel()
    pool.work()
    assert isinstance(found[0], CancelledError)
    (line,) = logged
    assert line.startswith("what nobody waited for any more was not done: the database of FOREMAN_DB_PATH")


def test_a_batch_that_is_not_over_in_time_is_undone(
    pool: HeldPool, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of a close holds between the writes of a transaction as well, and for those behind it."""
    seconds = [0.0]
    monkeypatch.setattr("foreman.jobs.writer.monotonic", lambda: seconds[0])

    def slow(transaction: Transaction) -> None:
        put(2)(transaction)
        seconds[0] += 5

    found = outcomes(*[writer.write(func) for func in (put(0), put(1), slow, put(3))])
    closed = outcomes(Deferred.fromCoroutine(writer.close(4)))
    pool.work()
    assert (found, closed) == ([0, None, None, None], [None])
    pool.work()
    assert [str(error).rpartition(": ")[2] for error in found[1:]] == ["foreman is stopping"] * 3
    assert (rows(pool), pool.calls) == ([0], [])
