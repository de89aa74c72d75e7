"""The listener's factory: it knows every open connection, so that a stop can wait for what runs."""

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.web import server
from twisted.web.resource import IResource

from foreman.web.gate import Gate
from foreman.web.intake import Channel, Intake
from foreman.web.native import Native
from foreman.web.spool import Spool


class Site(server.Site):
    """`own` holds foreman's own paths; whatever the gate does not call own goes to `native`."""

    protocol = Channel  # type: ignore[assignment]
    requestFactory = Intake  # noqa: N815

    def __init__(
        self,
        reactor: IReactorTime,
        own: IResource,
        native: Native,
        gate: Gate,
        spool: Spool,
        idle_timeout: float,
    ) -> None:
        super().__init__(own, reactor=reactor, timeout=idle_timeout, parsePOSTFormSubmission=False)
        self.native = native
        self.gate = gate
        self.spool = spool
        self.channels: set[Channel] = set()
        self._empty: Deferred[None] | None = None

    def startFactory(self) -> None:
        """twisted.web would format the time every second for an access log that foreman does not write."""

    def stopFactory(self) -> None:
        """Nothing was started."""

    def log(self, request: object) -> None:
        """What took a turn is logged by the relay's own line; reads are not."""

    async def drain(self, grace: float) -> None:
        """
        Wait until every answer is flushed and every connection closed, at most `grace` seconds.

        Counting connections, not requests: a request is done when its last bytes are only in the buffer.
        Then cut what is left.
        """
        for channel in list(self.channels):
            if channel.busy:
                channel.persistent = 0
            else:
                channel.loseConnection()
        await self._wait_until_empty(grace)

    async def abort(self, limit: float) -> None:
        """Reset what is still open once the last words, if any, have had `limit` seconds to go out."""
        await self._wait_until_empty(limit)
        for channel in list(self.channels):
            channel.abort()
        await self._wait_until_empty(limit)

    def channel_gone(self) -> None:
        """A connection has ended."""
        if self._empty is not None and not self.channels:
            empty, self._empty = self._empty, None
            empty.callback(None)

    async def _wait_until_empty(self, limit: float) -> None:
        if not self.channels:
            return
        self._empty = Deferred()
        self._empty.addTimeout(limit, self.reactor)
        try:
            await self._empty
        except DeferredTimeout:
            self._empty = None
