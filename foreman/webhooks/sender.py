"""The sender: one attempt to POST a body to a receiver, and what came of it."""

from collections.abc import Sequence
from typing import Any

from attrs import define, field, frozen
from twisted.internet import error as net
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IConsumer, IDelayedCall, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from foreman.webhooks.connector import Connector, NoAnswer, Place, was_cancelled
from foreman.webhooks.destination import DESTINATIONS, Connection, Destination, Destinations

KEPT_BYTES = 4096
"""So much of an answer's body is kept. What was not read by then is not read at all."""


@frozen
class Outcome:
    """
    What came of one attempt.

    `address` is where it went (None: nowhere). `status` is the HTTP status of the answer; without one
    `error` is a stable code: dns_error, forbidden_address, connection_refused, connection_reset,
    network_unreachable, timeout, tls_error, invalid_answer, answer_too_large. `detail` is one sentence for
    people. `retry_after` is the header as it came, `response` the first 4 KiB of the body as they came,
    `tls` what was agreed on.
    """

    address: str | None
    status: int | None
    error: str | None
    detail: str
    retry_after: bytes | None
    response: bytes
    duration_ms: int
    tls: str | None


@define(eq=False)
class Sender:
    """
    Sends over HTTP/1.1, on connections that are kept for a while.

    `timeout` is how many seconds a whole attempt may take, `destinations_limit` to how many addresses
    connections are kept. It sits on twisted's plain Agent: treq's client
    would keep cookies, decode gzip (a bomb would be opened) and follow redirects, past the guard; and
    nothing here reads the environment for a proxy.
    """

    _reactor: Any
    _connector: Connector
    _timeout: float
    _destinations_limit: int = DESTINATIONS
    _destinations: Destinations = field(init=False)
    _works: "set[Deferred[None]]" = field(factory=set, init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self._destinations = Destinations(self._reactor, self._destinations_limit)

    async def send(self, url: str, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> Outcome:
        """
        Make one attempt at a checked URL. Raises nothing but CancelledError.

        An answer counts when its head is there. Cancelling closes the connection at once.
        """
        started = self._reactor.seconds()
        attempt = _Attempt()
        work = Deferred.fromCoroutine(self._attempt(attempt, url, headers, body))
        self._works.add(work)
        limit: IDelayedCall = self._reactor.callLater(self._timeout, work.cancel)
        try:
            await work
        except CancelledError:
            if limit.active():
                raise
            if attempt.status is None:
                what = "no answer" if attempt.connected else "no connection"
                attempt.fail("timeout", f"{what} within {self._timeout:g} s")
        except NoAnswer as error:
            attempt.fail(error.code, str(error))
        except Exception:
            self._log.failure("an answer to a webhook could not be handled")
            attempt.fail("invalid_answer", "the answer could not be handled")
        finally:
            self._works.discard(work)
            if limit.active():
                limit.cancel()
        return attempt.outcome(self._reactor.seconds() - started)

    async def close(self) -> None:
        """Cancel what is on the wire, and close every connection."""
        for work in list(self._works):
            work.cancel()
        await self._destinations.close()

    async def _attempt(
        self, attempt: "_Attempt", url: str, headers: Sequence[tuple[bytes, bytes]], body: bytes
    ) -> None:
        place = Place.of(url)
        connect_by = self._reactor.seconds() + self._connector.connect_timeout
        addresses = await self._connector.find(place)
        # Where a connection is open first; the sort keeps the resolver's order otherwise.
        addresses = sorted(
            addresses, key=lambda address: not self._destinations.connected(_key(place, address))
        )
        sent = _headers(place, headers)
        for left in range(len(addresses), 0, -1):
            attempt.address = addresses[-left]
            # One that swallows everything leaves the others their share of the time.
            seconds = (connect_by - self._reactor.seconds()) / left
            try:
                await self._exchange(attempt, place, sent, body, seconds)
                return
            except NoAnswer as error:
                if left == 1 or attempt.connected or error.code == "tls_error":
                    raise

    async def _exchange(
        self, attempt: "_Attempt", place: Place, headers: Headers, body: bytes, seconds: float
    ) -> None:
        assert attempt.address is not None
        destination = self._destinations.enter(_key(place, attempt.address))
        try:
            route = _Route(self._connector, place, attempt, destination, seconds)
            try:
                response = await self._request(route, headers, body)
            except _Stale:
                # A connection that is idle may be closed at any moment: that says nothing about the
                # receiver. Whether it saw the request is not known, and it dedupes by the event's id. The
                # other idle connections are likely to be closed as well.
                destination.forget_idle()
                attempt.connected = False
                route = _Route(self._connector, place, attempt, destination, self._connector.connect_timeout)
                response = await self._request(route, headers, body)
            assert route.connection is not None
            await self._take(attempt, response, route.connection)
        finally:
            self._destinations.leave(destination)

    async def _request(self, route: "_Route", headers: Headers, body: bytes) -> IResponse:
        """Send, and wait for the head of the answer."""
        agent = Agent.usingEndpointFactory(self._reactor, route, route.destination.pool)
        try:
            response: IResponse = await agent.request(b"POST", route.place.target, headers, _Body(body))
            return response
        except NoAnswer:
            raise
        except Exception as error:
            if was_cancelled(error):
                raise CancelledError() from error
            connection = route.connection
            if connection is None:
                raise
            closed = _was_closed(error) and not connection.cut
            if closed and connection.exchanges > 1 and not connection.received_bytes:
                raise _Stale("closed", f"{route.place.host} closed a kept connection") from error
            raise _no_answer(error, connection, route.place.host) from error

    async def _take(self, attempt: "_Attempt", response: IResponse, connection: Connection) -> None:
        """Keep what is kept of the answer."""
        connection.head_complete = True
        version, code = response.version[0], response.code
        if version != b"HTTP" or not 200 <= code <= 999:
            connection.abort()
            raise NoAnswer("invalid_answer", f"the answer's first line is not HTTP's: its status is {code}")
        attempt.status = code
        followed = ", and redirects are not followed" if 300 <= code < 400 else ""
        attempt.detail = f"the receiver answered {code}{followed}"
        retry_after = response.headers.getRawHeaders(b"retry-after")
        attempt.retry_after = retry_after[0] if retry_after else None
        beginning = _Beginning(attempt.response, connection)
        response.deliverBody(beginning)
        await beginning.ended


class _Stale(NoAnswer):
    """A kept connection was closed before a byte of the answer came."""


@define(eq=False)
class _Attempt:
    """What is known of an attempt so far: it may be cut at any moment."""

    address: str | None = None
    connected: bool = False
    status: int | None = None
    error: str | None = None
    detail: str = ""
    retry_after: bytes | None = None
    response: bytearray = field(factory=bytearray)
    tls: str | None = None

    def fail(self, code: str, sentence: str) -> None:
        """There is no answer."""
        self.error, self.detail, self.status = code, sentence, None

    def outcome(self, seconds: float) -> Outcome:
        """What came of it."""
        return Outcome(
            self.address,
            self.status,
            self.error,
            self.detail,
            self.retry_after,
            bytes(self.response),
            max(0, round(seconds * 1000)),
            self.tls,
        )


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
@define(eq=False)
class _Route:
    """The way of one request to its destination: a kept connection, or a new one."""

    _connector: Connector
    place: Place
    _attempt: _Attempt
    destination: Destination
    _seconds: float
    connection: Connection | None = None
    """What the request went out on."""

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Always here: what the URI says was judged before."""
        return self

    def connect(self, protocolFactory: IProtocolFactory) -> "Deferred[Any]":
        """Called by the pool when no connection is kept."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> Any:
        assert self._attempt.address is not None
        connection = await self._connector.connect(
            self.place, self._attempt.address, factory, self.destination.open, self._seconds
        )
        return connection.http

    def took(self, connection: Connection) -> None:
        """Called by the pool with the connection that the request will use."""
        self.connection = connection
        self._attempt.connected = True
        self._attempt.tls = connection.tls
        connection.begin()


@implementer(IBodyProducer)
@frozen
class _Body:
    """A body in memory, written at once."""

    _data: bytes

    @property
    def length(self) -> int:
        """In bytes."""
        return len(self._data)

    def startProducing(self, consumer: IConsumer) -> "Deferred[None]":
        """Called when the head of the request is written."""
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None:
        """It is written by then."""

    def resumeProducing(self) -> None:
        """It is written by then."""

    def stopProducing(self) -> None:
        """It is written by then."""


class _Beginning(Protocol):
    """Keeps the first bytes of a body, and has the connection closed when there are more."""

    def __init__(self, kept: bytearray, connection: Connection) -> None:
        self._kept = kept
        self._connection = connection
        self.ended: Deferred[None] = Deferred(lambda _: connection.abort())

    def dataReceived(self, data: bytes) -> None:
        """A piece of the body, as it was sent but for the chunks."""
        room = KEPT_BYTES - len(self._kept)
        self._kept += data[:room]
        if len(data) > room:
            self._connection.enough = True

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end of the body, or of the connection: the status counts in any case."""
        self._connection.enough = False
        if not self.ended.called:
            self.ended.callback(None)


def _key(place: Place, address: str) -> tuple[str, str, int, str]:
    return place.scheme, place.host, place.port, address


def _headers(place: Place, headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    sent = Headers()
    sent.addRawHeader(b"Host", place.header)
    sent.addRawHeader(b"Accept-Encoding", b"identity")
    for name, value in headers:
        sent.addRawHeader(name, value)
    return sent


def _was_closed(error: Exception) -> bool:
    """Whether all that went wrong is that the connection ended."""
    reasons: Sequence[Failure] = getattr(error, "reasons", ())
    return bool(reasons) and all(reason.check(net.ConnectionClosed) for reason in reasons)


def _no_answer(error: Exception, connection: Connection, host: str) -> NoAnswer:
    if not _was_closed(error):
        reasons: Sequence[Failure] = getattr(error, "reasons", ())
        why = (reasons[0].value if reasons else None) or error
        # twisted's words; what follows them is the line itself, as long as it may be.
        said = str(why.args[0])[:100] if why.args else type(why).__name__
        return NoAnswer("invalid_answer", f"{host} answered what is not HTTP: {said}")
    if connection.cut:
        # Only a head or a line of it that is too long is cut without another reason.
        return NoAnswer("answer_too_large", f"the head of {host}'s answer is too large")
    if connection.received_bytes:
        return NoAnswer("connection_reset", f"{host} closed the connection within the head of its answer")
    return NoAnswer("connection_reset", f"{host} closed the connection without an answer")
