"""One wait of a native request for the turn, and then one hold on it."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from foreman.scheduler.grant import Grant
from foreman.scheduler.keys import Wanted
from foreman.scheduler.policy import Lane


@define(eq=False)
class Take(AbstractAsyncContextManager[Grant, None]):
    """Entered, it waits until it is granted; left, it gives the turn back.

    `_arrive` lets it wait, and may raise; `_leave` ends the wait or the hold, and may be called again.
    """

    job_id: str
    wanted: Wanted | None
    priority: int
    lane: Lane
    caller: str
    _arrive: "Callable[[Take], None]"
    _leave: "Callable[[Take], None]"
    arrived_at: float = field(default=0.0, init=False)
    granted: Deferred[Grant] = field(factory=Deferred, init=False)
    grant: Grant | None = field(default=None, init=False)
    patience: IDelayedCall | None = field(default=None, init=False)

    async def __aenter__(self) -> Grant:
        try:
            self._arrive(self)
            return await self.granted
        except BaseException:  # also a cancelled Deferred and a closed coroutine
            self._leave(self)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._leave(self)

    def keep_patience(self) -> None:
        """Wait as long as it takes."""
        if self.patience is not None and self.patience.active():
            self.patience.cancel()
        self.patience = None
