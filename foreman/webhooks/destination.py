"""Kept connections: one pool for each place and each address of it, and a bound on how many of these."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener, IProtocol
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import HTTPConnectionPool
from zope.interface import implementer

HEAD_BYTES = 64 * 1024
"""An answer whose head is not complete after this is cut: twisted.web limits a line, but not their number."""

DESTINATIONS = 64
IDLE_SECONDS = 30.0
_IDLE_CONNECTIONS = 4

DestinationKey = tuple[str, str, int, str]
"""Scheme, host, port, and the address that was judged."""


@implementer(IHandshakeListener)
class Connection(ProtocolWrapper):
    """One connection to a receiver: counts what comes, and cuts what would fill memory."""

    def __init__(self, factory: "Opening", wrapped: IProtocol) -> None:
        super().__init__(factory, wrapped)
        self.handshake: Deferred[None] = Deferred()
        """Fires when TLS is agreed on, and fails with the reason when the connection ends before that."""
        self.lost: Deferred[None] = Deferred()
        self.tls: str | None = None
        self.exchanges = 0
        self.received_bytes = 0
        """Since the request that is on the wire was begun."""
        self.head_complete = False
        self.enough = False
        """Whether what comes is not wanted any more: the connection is closed unless that was the end."""
        self.cut = False
        """Whether this side closed it: for a head that is too long, or that cannot be read."""

    @property
    def http(self) -> IProtocol:
        """twisted.web's protocol on this connection."""
        wrapped = self.wrappedProtocol
        assert wrapped is not None
        return wrapped

    def begin(self) -> None:
        """A request goes out now."""
        self.exchanges += 1
        self.received_bytes = 0
        self.head_complete = False
        self.enough = False

    def handshakeCompleted(self) -> None:
        """Called by the TLS layer."""
        if not self.handshake.called:
            self.handshake.callback(None)

    def dataReceived(self, data: bytes) -> None:
        """Count, pass on, and stop what goes on for ever."""
        self.received_bytes += len(data)
        super().dataReceived(data)
        # Not before all of it was passed on: what is complete by now leaves the connection for the next.
        if self.enough or (not self.head_complete and self.received_bytes > HEAD_BYTES):
            self.cut = True
            self.abort()

    def loseConnection(self) -> None:
        """
        Close. Called by twisted.web when the exchanges are over, or when an answer cannot be read.

        In good order, for some servers print a traceback for a reset. But not with TLS, which waits until
        both have said goodbye: a receiver that is silent would keep the connection for ever.
        """
        self.cut = True
        if self.tls is None:
            super().loseConnection()
        else:
            self.abort()

    def abort(self) -> None:
        """Close at once, whatever is on the way."""
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end, by whomever."""
        if not self.handshake.called:
            # Nobody may be waiting for it: a plain connection has none.
            self.handshake.addErrback(lambda _: None)
            self.handshake.errback(reason)
        super().connectionLost(reason)
        self.lost.callback(None)


class Opening(WrappingFactory[Connection]):
    """Makes one connection, and keeps it in the given set as long as it is open."""

    noisy = False
    protocol = Connection

    def __init__(self, wrapped: Any, open_connections: set[Connection]) -> None:
        super().__init__(wrapped)
        self._open = open_connections

    def registerProtocol(self, p: Connection) -> None:
        """Called by the connection when it is made."""
        self._open.add(p)

    def unregisterProtocol(self, p: Connection) -> None:
        """Called by the connection when it is lost."""
        self._open.discard(p)


class _Pool(HTTPConnectionPool):
    """A pool that tells the endpoint of a request which connection was given to it."""

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        # It would try some requests again, in silence; which of ours may be is the sender's matter.
        self.retryAutomatically = False
        self.maxPersistentPerHost = _IDLE_CONNECTIONS
        self.cachedConnectionTimeout = IDLE_SECONDS  # type: ignore[assignment]

    def getConnection(self, key: Hashable, endpoint: Any) -> "Deferred[Any]":
        """A kept connection or a new one."""

        def took(http: Any) -> Any:
            endpoint.took(http.transport)
            return http

        return super().getConnection(key, endpoint).addCallback(took)


@define(eq=False)
class Destination:
    """
    One address of one place, and the connections to it.

    The address is part of it, so that a kept connection cannot be used once the name resolves elsewhere.
    """

    pool: HTTPConnectionPool
    open: set[Connection] = field(factory=set)
    users: int = 0

    def forget_idle(self) -> None:
        """Close the kept connections that are not in use."""
        # What it returns fires when they are lost, which `Destinations.close` waits for in its own way.
        self.pool.closeCachedConnections()


@define(eq=False)
class Destinations:
    """The destinations that were used last; the others' connections are closed."""

    _reactor: Any
    _limit: int = DESTINATIONS
    _kept: "OrderedDict[DestinationKey, Destination]" = field(factory=OrderedDict, init=False)

    def connected(self, key: DestinationKey) -> bool:
        """Whether a connection to it is open."""
        destination = self._kept.get(key)
        return destination is not None and bool(destination.open)

    def enter(self, key: DestinationKey) -> Destination:
        """The destination, until `leave`: it is not closed meanwhile."""
        destination = self._kept.get(key)
        if destination is None:
            destination = self._kept[key] = Destination(_Pool(self._reactor))
        self._kept.move_to_end(key)
        destination.users += 1
        return destination

    def leave(self, destination: Destination) -> None:
        """One user less. What is over the limit and in nobody's use is closed, the oldest first."""
        destination.users -= 1
        while len(self._kept) > self._limit:
            key = next((key for key, kept in self._kept.items() if not kept.users), None)
            if key is None:
                return
            self._kept.pop(key).forget_idle()

    async def close(self) -> None:
        """Close every connection, and return when they are gone."""
        kept = list(self._kept.values())
        self._kept.clear()
        for destination in kept:
            destination.forget_idle()
            for connection in list(destination.open):
                connection.abort()
        for destination in kept:
            for connection in list(destination.open):
                # Aborted: the reactor reports the loss in its next turn, whatever the receiver does.
                await connection.lost
