"""Connections to receivers: resolve the name, judge the addresses, and connect to what was judged."""

import errno
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, urlsplit

from attrs import define, frozen
from OpenSSL import SSL
from twisted.internet import error as net
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
from twisted.python.failure import Failure

from foreman.allow import host_name
from foreman.urls import place
from foreman.webhooks.addresses import literal
from foreman.webhooks.destination import Connection, Opening
from foreman.webhooks.tls import TlsRefused, Trust, is_address

# What may stand in a request's target as it is; the rest (letters beyond ASCII, `"<>^`{|}`) is encoded.
_TARGET_SAFE = "!#$%&'()*+,/:;=?@[]~"
_UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL)
_Result = TypeVar("_Result")

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""The addresses of a host name; none, or an exception, when there are none."""


class Judge(Protocol):
    """Decides where a delivery may go. What `judge` raises refuses all addresses; its text is the reason."""

    async def judge(self, host: str, port: int, addresses: Sequence[str]) -> None: ...


class NoAnswer(Exception):
    """An attempt that ends without an answer. `code` is stable; the text is one sentence."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@frozen
class Place:
    """
    Where a checked URL points.

    `host` is ASCII, without brackets; `header` is the host as the URL gives it, `target` the URL for
    twisted's Agent, without its fragment.
    """

    scheme: str
    host: str
    port: int
    header: bytes
    target: bytes

    @classmethod
    def of(cls, url: str) -> "Place":
        """Raises NoAnswer for a host name that cannot be one."""
        return _place(url)


@lru_cache(maxsize=256)
def _place(url: str) -> Place:
    parts = urlsplit(url)
    host, port = place(url)
    if not host.isascii():
        try:
            host = host_name(host)
        except ValueError as error:
            raise NoAnswer("dns_error", str(error)) from None
    shown = f"[{host}]" if ":" in host else host
    target = quote(parts.path or "/", safe=_TARGET_SAFE)
    if parts.query:
        target += "?" + quote(parts.query, safe=_TARGET_SAFE)
    return Place(
        parts.scheme,
        host,
        port,
        (shown if parts.port is None else f"{shown}:{port}").encode("ascii"),
        f"{parts.scheme}://{shown}:{port}{target}".encode("ascii"),
    )


@define(eq=False)
class Connector:
    """
    Finds and reaches receivers.

    `connect_timeout` is how many seconds there are for both: the name, the connection, and TLS.
    """

    _reactor: Any
    _resolve: Resolve
    _guard: Judge
    connect_timeout: float
    _trust: Trust

    async def find(self, place: Place) -> Sequence[str]:
        """
        The addresses of a place; each of them may be connected to. An address is not looked up, however
        it is spelled.

        Raises NoAnswer: dns_error, forbidden_address, timeout.
        """
        late = f"{place.host} was not resolved within {self.connect_timeout:g} s"
        return await self._within(self.connect_timeout, self._find(place), late)

    async def _find(self, place: Place) -> Sequence[str]:
        try:
            spelled = literal(place.host)
        except ValueError as error:
            raise NoAnswer("dns_error", str(error)) from None
        addresses: Sequence[str] = [str(spelled)]
        if spelled is None:
            try:
                addresses = await self._resolve(place.host)
            except CancelledError:
                raise
            except Exception as error:
                why = getattr(error, "strerror", None) or error
                raise NoAnswer("dns_error", f"{place.host} does not resolve: {why}") from error
            # What is no address would be looked up once more when it is connected to, behind the guard.
            if not addresses or not all(map(is_address, addresses)):
                raise NoAnswer("dns_error", f"{place.host} does not resolve to an address")
        try:
            await self._guard.judge(place.host, place.port, addresses)
        except CancelledError:
            raise
        except Exception as error:
            raise NoAnswer("forbidden_address", str(error)) from error
        return addresses

    async def connect(
        self, place: Place, address: str, wrapped: Any, open_connections: set[Connection], seconds: float
    ) -> Connection:
        """
        A new connection to an address that `find` gave, on which nothing but TLS was said yet.

        `wrapped` makes the protocol on it; it is in the set as long as it is open. Raises NoAnswer:
        connection_refused, connection_reset, network_unreachable, timeout, tls_error.
        """
        late = f"no connection to {_shown(place, address)} within {seconds:.2g} s"
        opening = Opening(wrapped, open_connections)
        return await self._within(seconds, self._connect(place, address, opening, seconds), late)

    async def _connect(self, place: Place, address: str, opening: Opening, seconds: float) -> Connection:
        # It connects to a literal address of either family without a look-up; TCP6ClientEndpoint would
        # start one. Its own limit, 30 s without this, never comes before that of `_within`.
        endpoint: Any = TCP4ClientEndpoint(self._reactor, address, place.port, timeout=seconds + 1)
        if place.scheme != "https":
            return await _connected(endpoint, opening, place, address)
        client = self._trust.client(place.host)
        endpoint = wrapClientTLS(client, endpoint, self._reactor)
        connection = await _connected(endpoint, opening, place, address)
        try:
            await connection.handshake
            connection.tls = client.verified(connection.getHandle())
            return connection
        except SSL.Error as error:
            raise NoAnswer("tls_error", str(client.refusal(error))) from error
        except TlsRefused as error:
            raise NoAnswer("tls_error", str(error)) from error
        except net.ConnectionClosed as error:
            sentence = f"{_shown(place, address)} closed the connection instead of beginning with TLS"
            raise NoAnswer("connection_reset", sentence) from error
        finally:
            if connection.tls is None:
                connection.abort()

    async def _within(self, seconds: float, work: Coroutine[Any, Any, _Result], late: str) -> _Result:
        """The result of this work; NoAnswer with `late` when it takes longer. Cancelling ends it."""
        running: Deferred[_Result] = Deferred.fromCoroutine(work)
        if running.called and not isinstance(running.result, Failure):
            return await running
        limit = self._reactor.callLater(max(0.0, seconds), running.cancel)
        try:
            result = await running
            if not limit.active():
                # It went on although it was cancelled, and so without what it waited for.
                raise NoAnswer("timeout", late)
            return result
        except Exception as error:
            if not was_cancelled(error):
                raise
            if limit.active():
                raise CancelledError() from error
            raise NoAnswer("timeout", late) from None
        finally:
            if limit.active():
                limit.cancel()


async def _connected(endpoint: Any, opening: Opening, place: Place, address: str) -> Connection:
    try:
        connection: Connection = await endpoint.connect(opening)
        return connection
    except Exception as error:
        if was_cancelled(error):
            raise
        code, why = _unreachable(error)
        raise NoAnswer(code, f"{_shown(place, address)} {why}") from error


def _unreachable(error: Exception) -> tuple[str, str]:
    number = getattr(error, "osError", None)
    if isinstance(error, net.ConnectionRefusedError):
        return "connection_refused", "refused the connection"
    if isinstance(error, net.TimeoutError | net.TCPTimedOutError):
        return "timeout", "did not take the connection in time"
    if number == errno.ECONNRESET:
        return "connection_reset", "reset the connection"
    if isinstance(error, net.NoRouteError) or number in _UNREACHABLE:
        return "network_unreachable", "cannot be reached: there is no way to its network"
    return "network_unreachable", f"cannot be reached: {error}"


def was_cancelled(error: BaseException) -> bool:
    """Whether an error of twisted's says that somebody cancelled what failed."""
    if isinstance(error, CancelledError | net.ConnectingCancelledError):
        return True
    # Before the head of an answer a cancelled request ends as ResponseNeverReceived([CancelledError]).
    reasons: Sequence[Failure] = getattr(error, "reasons", ())
    return any(reason.check(CancelledError, net.ConnectingCancelledError) for reason in reasons)


def _shown(place: Place, address: str) -> str:
    at = f"port {place.port}" if place.host == address else f"({address}, port {place.port})"
    return f"{place.host} {at}"
