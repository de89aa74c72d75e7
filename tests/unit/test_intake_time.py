"""How long a client may take: for a head as a whole, inside a body, between requests, after a refusal."""

from collections.abc import Callable
from typing import Any, cast

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.web.resource import Resource

from foreman.target.relay import Request
from foreman.web.gate import Gate
from foreman.web.intake import Channel
from foreman.web.native import Native
from foreman.web.origins import Origins
from foreman.web.site import Site
from foreman.web.spool import Spool

IDLE = 60
HEAD = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n"
GET = b"GET /api/tags HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Kept(Native):
    """Keeps every request, and answers none."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def handle(self, request: Request) -> None:
        self.requests.append(request)
        request.notifyFinish().addErrback(lambda _: None)

    def answer(self) -> None:
        """Answer the oldest."""
        request = self.requests.pop(0)
        request.responseHeaders.setRawHeaders(b"Content-Length", [b"2"])
        request.write(b"ok")
        request.finish()


class Transport(StringTransportWithDisconnection):
    """A connection in memory that can be reset."""

    def abortConnection(self) -> None:
        self.aborted = True
        self.loseConnection()


class Connection:
    """One connection to a site on a clock."""

    def __init__(self, idle: float = IDLE) -> None:
        self.clock = Clock()
        self.native = Kept()
        gate = Gate(Origins(), "", 1000, frozenset({b"healthz"}))
        self.site = Site(self.clock, Resource(), self.native, gate, Spool("/", 0), idle)
        self.transport = Transport(peerAddress=IPv4Address("TCP", "127.0.0.1", 1))
        self.channel = cast(Channel, self.site.buildProtocol(None))
        self.transport.protocol = cast(Any, self.channel)
        self.channel.makeConnection(self.transport)

    @property
    def is_open(self) -> bool:
        """Whether foreman has not closed it."""
        return bool(self.transport.connected)

    def send(self, data: bytes) -> None:
        """Let bytes come, as long as the connection is open."""
        if self.is_open and data:
            self.channel.dataReceived(data)

    def cut_after(self, act: Callable[[], None], at_most: int = 100_000) -> int:
        """Act once a second; return after how many it was cut."""
        for second in range(at_most):
            if not self.is_open:
                return second
            act()
            self.clock.advance(1)
        return at_most

    def trickle(self, data: bytes) -> int:
        """Send a byte a second; return after how many it was cut."""
        pieces = iter(data[at : at + 1] for at in range(len(data)))
        return self.cut_after(lambda: self.send(next(pieces, b"")), len(data))


def nothing() -> None:
    """Do nothing for a second."""


def test_silent_connection() -> None:
    """A client that says nothing is cut."""
    connection = Connection()
    assert connection.cut_after(nothing) == IDLE
    assert connection.clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * 1000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1000,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100,
    ],
    ids=["line", "field", "fields"],
)
def test_trickled_head_has_one_limit(head: bytes) -> None:
    """Slowloris: a byte a second does not keep a head alive beyond the limit for it as a whole."""
    connection = Connection()
    assert connection.trickle(head) == IDLE
    assert connection.native.requests == []


def test_head_has_its_own_time_after_a_pause() -> None:
    """On a kept connection the limit starts with the head's first byte, not with the pause before it."""
    connection = Connection()
    connection.send(GET)
    connection.native.answer()
    connection.clock.advance(IDLE - 1)
    assert connection.trickle(GET + b" " * IDLE) > IDLE - 1
    assert len(connection.native.requests) == 1


def test_second_trickled_head_has_one_limit() -> None:
    """The limit holds for each head on a connection."""
    connection = Connection()
    connection.send(GET)
    connection.native.answer()
    assert connection.trickle(b"GET /" + b"x" * 1000) == IDLE


def test_body_has_its_own_time_after_a_slow_head() -> None:
    """A head that took almost all of its time leaves the body's untouched."""
    connection = Connection()
    connection.send(HEAD[:10])
    connection.clock.advance(IDLE - 1)
    connection.send(HEAD[10:])
    connection.clock.advance(IDLE - 1)
    assert connection.is_open
    connection.send(b"x" * 10)
    assert len(connection.native.requests) == 1


def test_body_that_makes_progress_is_not_cut() -> None:
    """Ten bytes in ten times almost the limit."""
    connection = Connection()
    connection.send(HEAD)
    for _ in range(10):
        connection.clock.advance(IDLE - 1)
        connection.send(b"x")
    assert len(connection.native.requests) == 1


def test_body_that_stops_is_cut() -> None:
    """Silence inside a body has the limit."""
    connection = Connection()
    connection.send(HEAD + b"x" * 9)
    assert connection.cut_after(nothing) == IDLE
    assert connection.native.requests == []


def test_waiting_for_an_answer_has_no_limit() -> None:
    """A chat may wait for hours; the next request, sent meanwhile, waits behind it."""
    connection = Connection()
    connection.send(HEAD + b"x" * 10)
    connection.clock.advance(3 * 3600)
    connection.send(GET)
    connection.clock.advance(3 * 3600)
    assert connection.is_open
    connection.native.answer()
    connection.native.answer()
    assert connection.transport.value().count(b"HTTP/1.1 200 OK") == 2
    assert connection.cut_after(nothing) == IDLE


@pytest.mark.parametrize("idle", [2, IDLE])
@pytest.mark.parametrize("piece", [b"", b"x"], ids=["silent", "sending"])
def test_client_that_never_ends_its_refused_body(idle: int, piece: bytes) -> None:
    """It gets five seconds to see the answer, and is reset; no timer is left."""
    connection = Connection(idle)
    connection.send(HEAD.replace(b"10", b"1000000"))
    assert connection.transport.value().startswith(b"HTTP/1.1 413 ")
    assert connection.cut_after(lambda: connection.send(piece)) == 5
    assert connection.transport.aborted
    assert connection.clock.getDelayedCalls() == []
