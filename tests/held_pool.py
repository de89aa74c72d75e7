"""A pool of connections for tests that decide when its thread gets to work."""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from foreman.jobs.database import InlinePool, open_pools


class HeldPool:
    """A pool whose thread is slow: `work` does what was asked for, one call at a time."""

    def __init__(self) -> None:
        inner = open_pools(":memory:", None).writer
        assert isinstance(inner, InlinePool)
        self.connection = inner._connection
        self.calls: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []
        self.broken: Exception | None = None
        self.statements: list[str] = []
        self.connection.set_trace_callback(self.statements.append)

    def runWithConnection(self, func: Callable[..., Any], *args: Any) -> "Deferred[Any]":
        done: Deferred[Any] = Deferred()
        self.calls.append((done, func, args))
        return done

    def work(self) -> None:
        done, func, args = self.calls.pop(0)
        if self.broken is not None:
            done.errback(self.broken)
            return
        result = func(self.connection, *args)
        done.callback(result)

    def close(self) -> None:
        self.connection.close()
