"""The one writer. Writes that wait while it is busy share its next transaction, and with it one sync.

A synced commit costs 0.2 to 5 ms, whatever is in it: 64 callers that each wait for their own would get 200
to 5,000 a second together; sharing, 18,000 were measured.
"""

import math
import sqlite3
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, Generic, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from foreman.errors import DatabaseUnavailable
from foreman.jobs.database import BUSY_LOOKS, Pool, explained, is_busy
from foreman.jobs.lines import view
from foreman.jobs.model import Event, Job, LineKey, LineView
from foreman.jobs.shield import shield

T = TypeVar("T")

MOST_TOGETHER = 256
"""How many writes share a transaction at most."""


def no_deliveries(transaction: "Transaction", job: Job, event: Event) -> None:
    """Nobody is told of this event."""


@define
class Transaction:
    """What a write is given: the connection, and where it notes what others must hear after the commit."""

    connection: sqlite3.Connection
    emit: "Emit" = no_deliveries
    touched: set[LineKey] = field(factory=set)  # lines whose head, oldest or count may have changed
    notices: list[Callable[[], None]] = field(factory=list)  # called in the reactor's thread


Emit = Callable[[Transaction, Job, Event], None]
"""Called within the transaction when an event was written: makes its delivery."""


class _Over(Exception):
    """The writer is closed, and the limit of that has passed."""


@define(eq=False)
class _Write(Generic[T]):
    """One write that waits for its transaction. `func` may be run twice, if the first time was undone."""

    func: Callable[[Transaction], T]
    done: "Deferred[T]" = field(factory=Deferred)


@define
class _Outcome:
    """What a transaction brought: for each write its result or failure, and what others must hear."""

    results: list[Any] = field(factory=list)
    views: list[LineView] = field(factory=list)
    notices: list[Callable[[], None]] = field(factory=list)
    commits: int = 0


@define(eq=False)
class Writer:
    """
    Runs writes in order. `on_line` gets the new view of each touched line after the commit; `emit` is called
    within the transaction for each event.
    """

    _pool: Pool
    _path: str
    _on_line: Callable[[LineView], None]
    _emit: Emit = no_deliveries
    commits: int = field(default=0, init=False)  # transactions so far
    _waiting: "deque[_Write[Any]]" = field(factory=deque, init=False)
    _results: "deque[tuple[_Write[Any], Any]]" = field(factory=deque, init=False)  # to be fired, in order
    _busy: bool = field(default=False, init=False)
    _ends_at: float = field(default=math.inf, init=False)  # monotonic; the writer's thread looks at it
    _idle: "Deferred[None] | None" = field(default=None, init=False)
    _log = Logger()

    def write(self, func: Callable[[Transaction], T]) -> "Deferred[T]":
        """
        Run `func` in a transaction that may be shared; its result is there when the commit is synced.

        `func` runs in the writer's thread, returns plain values, and when it raises, only what it did itself
        is undone. Cancelling waits for the end, and undoes nothing.
        """
        write: _Write[T] = _Write(func)
        self._waiting.append(write)
        self._next()
        return shield(write.done)

    async def close(self, limit: float) -> None:
        """
        Wait until nothing is written any more; the caller sees to it that nothing new comes.

        What is not written within `limit` seconds fails with DatabaseUnavailable.
        """
        self._ends_at = monotonic() + limit
        if self._busy:
            self._idle = Deferred()
            await self._idle

    def _next(self) -> None:
        # A loop, for a pool whose results are there at once: a thousand writes are no thousand frames.
        while self._waiting and not self._busy:
            self._busy = True
            together = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_TOGETHER))]
            done = self._pool.runWithConnection(
                _run, [write.func for write in together], self._path, self._emit, self._check_time
            )
            done.addErrback(_failed, len(together), self._path)
            done.addCallback(self._finished, together)
            done.addErrback(lambda failure: self._log.failure("the writer failed", failure))

    def _finished(self, outcome: _Outcome, together: "list[_Write[Any]]") -> None:
        self.commits += outcome.commits
        self._results.extend(zip(together, outcome.results, strict=True))
        # Still busy: a write that a callback asks for waits, or what it tells would come before the rest.
        for line_view in outcome.views:
            self._tell(partial(self._on_line, line_view))
        for notice in outcome.notices:
            self._tell(notice)
        self._busy = False
        # The next ones are on their way before the waiters run: the disk is not to wait for them.
        self._next()
        while self._results:
            write, result = self._results.popleft()
            if isinstance(result, Failure):
                write.done.errback(result)
            else:
                write.done.callback(result)
        if self._idle is not None and not self._busy:
            idle, self._idle = self._idle, None
            idle.callback(None)

    def _check_time(self) -> None:
        """Called in the writer's thread."""
        if monotonic() >= self._ends_at:
            raise _Over

    def _tell(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            self._log.failure("a callback of the store failed")


def _failed(failure: Failure, count: int, path: str) -> _Outcome:
    """There was not even a connection."""
    return _Outcome([explained(failure, path) for _ in range(count)])


def _run(
    connection: Any,
    funcs: "list[Callable[[Transaction], Any]]",
    path: str,
    emit: Emit,
    check_time: Callable[[], None],
) -> _Outcome:
    """In the writer's thread: all in one transaction, or when that fails as a whole, each in its own."""
    try:
        return _commit(connection, funcs, path, emit, check_time)
    except _Over:
        return _Outcome([Failure(DatabaseUnavailable(path, "foreman is stopping")) for _ in funcs])
    except sqlite3.Error as error:
        # Who waited for another program's lock in vain does not wait again for each: 256 took 21 minutes.
        if len(funcs) == 1 or is_busy(error):
            return _Outcome([explained(Failure(error), path) for _ in funcs])
    outcome = _Outcome()
    for func in funcs:
        alone = _run(connection, [func], path, emit, check_time)
        outcome.results += alone.results
        outcome.views += alone.views
        outcome.notices += alone.notices
        outcome.commits += alone.commits
    return outcome


def _commit(
    connection: Any,
    funcs: "list[Callable[[Transaction], Any]]",
    path: str,
    emit: Emit,
    check_time: Callable[[], None],
) -> _Outcome:
    """
    One transaction with a savepoint for each write.

    Raises sqlite3.Error or _Over when it failed as a whole: nothing of it is kept.
    """
    _begin(connection, check_time)
    try:
        outcome, touched = _Outcome(), set[LineKey]()
        for func in funcs:
            check_time()
            transaction = Transaction(connection, emit)
            connection.execute("SAVEPOINT one")
            try:
                result = func(transaction)
            except Exception as error:
                # After some errors (a full disk) SQLite has undone everything already.
                if not connection.in_transaction:
                    raise
                connection.execute("ROLLBACK TO one")
                outcome.results.append(explained(Failure(error), path))
            else:
                outcome.results.append(result)
                outcome.notices += transaction.notices
                touched |= transaction.touched
            connection.execute("RELEASE one")
        outcome.views = [view(connection, line) for line in touched]
        connection.execute("COMMIT")
        outcome.commits = 1
        return outcome
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _begin(connection: Any, check_time: Callable[[], None]) -> None:
    """Begin a transaction, as soon as no other program writes."""
    for left in reversed(range(BUSY_LOOKS)):
        check_time()
        try:
            # IMMEDIATE: a transaction that reads first and then writes is refused when another wrote in
            # between, and busy_timeout does not help it.
            connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.Error as error:
            if not left or not is_busy(error):
                raise
