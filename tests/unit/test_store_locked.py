"""Another program holds the database's write lock: nobody waits for it in vain, and a stop ends in time."""

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import pytest_twisted
from contract_store import Life
from twisted.internet.defer import Deferred, DeferredList

from foreman.errors import DatabaseUnavailable
from foreman.jobs import writer
from foreman.jobs.database import BUSY_LOOK_MS, open_pools, prepare
from foreman.jobs.store import SqliteStore
from foreman.testing.store import compose_plainly


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "foreman.db")
    prepare(path)
    return path


@pytest_twisted.async_yield_fixture
async def life(path: str) -> AsyncIterator[Life]:
    """One life on a file. The test closes it."""
    from twisted.internet import reactor

    async def begin(life: Life) -> Any:
        store = SqliteStore(path, open_pools(path, reactor), lambda: life.now, compose_plainly)
        await store.open()
        return store

    life = Life(begin)
    await life.crash()
    yield life


@pytest.fixture
def other(path: str, life: Life) -> Iterator[sqlite3.Connection]:
    """The other program, in the middle of a write."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection


async def submissions(life: Life, count: int) -> "list[Any]":
    """The errors of so many submissions that come together, or None for each that was kept."""
    found = await DeferredList(
        [Deferred.fromCoroutine(life.submit()) for _ in range(count)], consumeErrors=True
    )
    return [None if success else result.value for success, result in found]


async def test_all_that_come_together_fail_together(
    life: Life, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One wait for all of them, not one for each; and they work again by themselves."""
    monkeypatch.setattr(writer, "BUSY_LOOKS", 4)
    began = monotonic()
    errors = await submissions(life, 100)
    assert monotonic() - began < 20 * 4 * BUSY_LOOK_MS / 1000
    assert {type(error) for error in errors} == {DatabaseUnavailable}
    assert "database is locked" in str(errors[0])
    assert len(set(map(id, errors))) == 100
    other.execute("ROLLBACK")
    assert await submissions(life, 9) == [None] * 9
    await life.store.close()


async def test_a_close_waits_for_the_lock_within_its_limit(life: Life, other: sqlite3.Connection) -> None:
    """What was handed in before is still written if the other program ends meanwhile."""
    waiting = submissions(life, 9)
    done = Deferred.fromCoroutine(waiting)
    closed = Deferred.fromCoroutine(life.store.close(60.0))
    other.execute("ROLLBACK")
    assert await done == [None] * 9
    await closed


async def test_a_close_ends_in_time_whoever_holds_the_lock(life: Life, other: sqlite3.Connection) -> None:
    """What is not written by then fails, and so does what waits behind it; the thread is not left behind."""
    done = Deferred.fromCoroutine(submissions(life, 600))
    began = monotonic()
    await life.store.close(0.2)
    assert monotonic() - began < 2  # 5 s for the first alone
    errors = await done
    assert {str(error).rpartition(": ")[2] for error in errors} == {"foreman is stopping"}
    assert {type(error) for error in errors} == {DatabaseUnavailable}
    with pytest.raises(DatabaseUnavailable, match="foreman is stopping"):
        await life.submit()


async def test_a_close_with_nothing_to_write_asks_for_no_lock(life: Life, other: sqlite3.Connection) -> None:
    """An idle daemon does not stop as slowly as the other program works."""
    began = monotonic()
    await life.store.close()
    assert monotonic() - began < 2
