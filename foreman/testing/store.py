"""A store in memory whose commits take time, or fail, as a test wants."""

import sqlite3
from collections.abc import Callable
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, execute
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from foreman.jobs.database import MEMORY, InlinePool, Pools, open_pools
from foreman.jobs.model import Event
from foreman.jobs.store import SqliteStore

OWNER_URL = "http://owner.example/hook"


def compose_plainly(event: Event, result: bytes | None) -> bytes:
    """A body that a test can read: what happened, and the result."""
    return f"{event.job_id} {event.sequence} {event.status.value} ".encode() + (result or b"")


@define
class _Broken:
    """A connection on which nothing can be done."""

    error: sqlite3.Error
    in_transaction: bool = False

    def execute(self, sql: str, *values: Any) -> Any:
        raise self.error


@define(eq=False)
class SlowPool:
    """The writer's pool: each transaction is done after `commit_seconds` on the clock.

    :ivar broken: raised by every transaction while it is set.
    """

    _inner: InlinePool
    _clock: IReactorTime
    commit_seconds: float = 0.0
    broken: sqlite3.Error | None = field(default=None, init=False)

    def runWithConnection(self, func: Callable[..., Any], *args: Any) -> "Deferred[Any]":
        """At once when a commit takes no time."""
        if self.commit_seconds:
            done: Deferred[Any] = deferLater(self._clock, self.commit_seconds, self._run, func, *args)
            return done
        return execute(self._run, func, *args)

    def close(self) -> None:
        """Forget everything."""
        self._inner.close()

    def _run(self, func: Callable[..., Any], *args: Any) -> Any:
        if self.broken is not None:
            return func(_Broken(self.broken), *args)
        result: list[Any] = []
        self._inner.runWithConnection(func, *args).addBoth(result.append)
        return result[0]


def make_store(clock: IReactorTime) -> tuple[SqliteStore, SlowPool]:
    """An open store, and the pool of its writer. Its times are those of the clock."""
    inner = open_pools(MEMORY, clock).writer
    assert isinstance(inner, InlinePool)
    pool = SlowPool(inner, clock)
    store = SqliteStore(MEMORY, Pools(pool, inner), clock.seconds, compose_plainly, OWNER_URL)
    opened: Deferred[None] = Deferred.fromCoroutine(store.open())
    assert opened.called
    return store, pool
