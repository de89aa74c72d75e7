"""Work in the background: what was begun and is not over, and writes that are tried until they succeed."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as WaitEnded
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from foreman.errors import DatabaseFull, DatabaseUnavailable

T = TypeVar("T")

FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 30.0


@define(eq=False)
class Works:
    """Coroutines that run by themselves. A failure of one ends in the log; that it was cancelled is none."""

    _clock: IReactorTime
    _log: Logger
    _begun: "set[Deferred[None]]" = field(factory=set, init=False)
    _idle: "list[Deferred[None]]" = field(factory=list, init=False)

    def begin(self, coroutine: Coroutine[Deferred[Any], Any, None]) -> "Deferred[None]":
        """Run it. Cancelling the Deferred cancels it."""
        work = Deferred.fromCoroutine(coroutine)
        self._begun.add(work)
        work.addErrback(self._failed)
        work.addBoth(lambda _: self._ended(work))
        return work

    def cancel(self) -> None:
        """Cancel everything that was begun."""
        for work in list(self._begun):
            work.cancel()

    async def wait_until_idle(self, seconds: float) -> bool:
        """Whether everything that was begun has ended within this time."""
        if not self._begun:
            return True
        idle: Deferred[None] = Deferred()
        self._idle.append(idle)
        idle.addTimeout(seconds, self._clock)
        try:
            await idle
        except WaitEnded:
            return False
        finally:
            self._idle.remove(idle)
        return True

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("work in the background failed inside foreman", failure)

    def _ended(self, work: "Deferred[None]") -> None:
        self._begun.discard(work)
        if not self._begun:
            for idle in list(self._idle):
                idle.callback(None)


@define(eq=False)
class Retries:
    """
    Tries what the database refuses again, after 1 s, 2 s and so on up to 30 s.

    `failing_since` is the moment, in the clock's seconds, since which nothing has succeeded.
    """

    _clock: IReactorTime
    _log: Logger
    failing_since: float | None = field(default=None, init=False)
    _delays: "set[Deferred[None]]" = field(factory=set, init=False)
    _stopping: bool = field(default=False, init=False)

    async def until_done(self, what: str, attempt: Callable[[], Awaitable[T]]) -> T | None:
        """
        The result of `attempt`, or None when foreman stops before there is one.

        Only what the database says is waited out, and logged under `what`; any other error is raised.
        """
        delay = FIRST_DELAY_SECONDS
        while True:
            try:
                result = await attempt()
            except (DatabaseFull, DatabaseUnavailable) as error:
                self._log.warn("{what} is not done yet: {why}", what=what, why=str(error))
                if self.failing_since is None:
                    self.failing_since = self._clock.seconds()
            except Exception:
                self.failing_since = None  # whatever it is, the database is there
                raise
            else:
                self.failing_since = None
                return result
            if self._stopping or not await self._wait(delay):
                return None
            delay = min(delay * 2, LONGEST_DELAY_SECONDS)

    def stop(self) -> None:
        """Try nothing a second time from now on."""
        self._stopping = True
        for delay in list(self._delays):
            delay.cancel()

    async def _wait(self, seconds: float) -> bool:
        """False when foreman stopped meanwhile."""
        delay: Deferred[None] = deferLater(self._clock, seconds)
        self._delays.add(delay)
        try:
            await delay
        except CancelledError:
            return False
        finally:
            self._delays.discard(delay)
        return True
