"""The sender's times and failures on a clock, and the resolver; without sockets."""

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import error as net
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from foreman.webhooks.connector import Connector, Judge
from foreman.webhooks.resolver import Resolver
from foreman.webhooks.sender import Outcome, Sender
from foreman.webhooks.tls import Trust, read_ca

URL = "http://hook.example/hook"


class Guard:
    """Lets everything pass, unless the test says what to wait for or to raise."""

    def __init__(self, waits: "Deferred[None] | None" = None) -> None:
        self.waits = waits

    async def judge(self, host: str, port: int, addresses: Sequence[str]) -> None:
        if self.waits is not None:
            await self.waits


class Wire(StringTransport):
    """A connection in memory; its end is reported in the next turn, as the reactor does."""

    def __init__(self, clock: MemoryReactorClock) -> None:
        super().__init__()
        self.clock = clock
        self.protocol: Any = None
        self.aborted = False

    def abortConnection(self) -> None:
        if not self.aborted:
            self.aborted = True
            self.clock.callLater(0, self.protocol.connectionLost, Failure(net.ConnectionAborted()))

    def loseConnection(self) -> None:
        """In good order."""
        if not self.disconnecting:
            super().loseConnection()
            self.clock.callLater(0, self.protocol.connectionLost, Failure(net.ConnectionDone()))


class Rig:
    """A sender on a clock; the limits are 6 s to connect and 15 s in all."""

    def __init__(
        self, addresses: "Sequence[str] | Deferred[Sequence[str]]", guard: Judge | None = None
    ) -> None:
        self.clock = MemoryReactorClock()
        self.addresses = addresses
        connector = Connector(self.clock, self._resolve, guard or Guard(), 6.0, Trust(()))
        self.sender = Sender(self.clock, connector, 15.0)

    async def _resolve(self, host: str) -> Sequence[str]:
        return await self.addresses if isinstance(self.addresses, Deferred) else self.addresses

    def send(self) -> "Deferred[Outcome]":
        return Deferred.fromCoroutine(self.sender.send(URL, [], b"{}"))

    @property
    def tried(self) -> list[str]:
        """The addresses that were connected to so far."""
        return [client[0] for client in self.clock.tcpClients]

    def fail(self, error: Exception) -> None:
        """The last connection does not come about."""
        factory, connector = self.clock.tcpClients[-1][2], self.clock.connectors[-1]
        factory.clientConnectionFailed(connector, Failure(error))

    def connect(self) -> Wire:
        """The last connection comes about."""
        wire = Wire(self.clock)
        wire.protocol = self.clock.tcpClients[-1][2].buildProtocol(None)
        wire.protocol.makeConnection(wire)
        return wire

    def end(self) -> None:
        """Nothing of the sender's is left on the clock but the timers of kept connections, and then none."""
        closed = Deferred.fromCoroutine(self.sender.close())
        self.clock.advance(0)
        assert closed.called
        assert [call for call in self.clock.getDelayedCalls() if call.active()] == []


def result(sending: "Deferred[Outcome]") -> Outcome:
    """The outcome, which must be there."""
    assert sending.called
    outcome = sending.result
    assert isinstance(outcome, Outcome)
    return outcome


def test_addresses_share_the_time_to_connect() -> None:
    """Addresses that swallow everything do not use up the time of those behind them."""
    rig = Rig(["192.0.2.1", "192.0.2.2", "2001:db8::3"])
    sending = rig.send()
    assert rig.tried == ["192.0.2.1"]
    rig.clock.advance(1.9)
    assert len(rig.tried) == 1
    rig.clock.advance(0.1)
    assert rig.tried == ["192.0.2.1", "192.0.2.2"]
    rig.clock.advance(2)
    assert rig.tried == ["192.0.2.1", "192.0.2.2", "2001:db8::3"]
    rig.clock.advance(1.9)
    assert not sending.called
    rig.clock.advance(0.1)
    outcome = result(sending)
    assert (outcome.error, outcome.address, outcome.duration_ms) == ("timeout", "2001:db8::3", 6000)
    assert outcome.detail == "no connection to hook.example (2001:db8::3, port 80) within 2 s"
    rig.end()


def test_time_that_one_address_leaves_is_for_the_next() -> None:
    """A refusal takes no time."""
    rig = Rig(["192.0.2.1", "192.0.2.2"])
    sending = rig.send()
    rig.clock.advance(1)
    rig.fail(net.ConnectionRefusedError())
    rig.clock.advance(4.9)
    assert not sending.called
    rig.clock.advance(0.1)
    assert result(sending).duration_ms == 6000
    rig.end()


def test_whole_attempt_is_limited() -> None:
    """Connecting, head and body together."""
    rig = Rig(["192.0.2.1"])
    sending = rig.send()
    rig.clock.advance(5)
    wire = rig.connect()
    assert wire.value().startswith(b"POST /hook HTTP/1.1\r\n")
    assert wire.value().endswith(b"\r\n\r\n{}")
    rig.clock.advance(9.9)
    assert not sending.called
    rig.clock.advance(0.1)
    outcome = result(sending)
    assert (outcome.error, outcome.detail) == ("timeout", "no answer within 15 s")
    assert wire.aborted
    rig.end()


def test_name_that_is_not_resolved_in_time() -> None:
    """The limit for connecting covers the look-up."""
    rig = Rig(Deferred())
    sending = rig.send()
    rig.clock.advance(6)
    outcome = result(sending)
    assert (outcome.error, outcome.address) == ("timeout", None)
    assert outcome.detail == "hook.example was not resolved within 6 s"
    rig.end()


def test_look_up_takes_from_the_time_to_connect() -> None:
    """One limit for both."""
    answer: Deferred[Sequence[str]] = Deferred()
    rig = Rig(answer)
    sending = rig.send()
    rig.clock.advance(4)
    answer.callback(["192.0.2.1"])
    rig.clock.advance(2)
    assert result(sending).detail.endswith("within 2 s")
    rig.end()


def test_guard_that_fails_refuses() -> None:
    """What could not be judged is not connected to."""
    waits: Deferred[None] = Deferred()
    rig = Rig(["192.0.2.1"], Guard(waits))
    sending = rig.send()
    assert rig.tried == []
    waits.errback(ValueError("no verdict"))
    outcome = result(sending)
    assert (outcome.error, outcome.detail, rig.tried) == ("forbidden_address", "no verdict", [])
    rig.end()


def test_guard_that_goes_on_when_it_is_cancelled() -> None:
    """A verdict after the limit does not count: it was given without what the guard waited for."""

    class Careless:
        async def judge(self, host: str, port: int, addresses: Sequence[str]) -> None:
            try:
                await Deferred()
            except Exception:
                return

    rig = Rig(["192.0.2.1"], Careless())
    sending = rig.send()
    rig.clock.advance(6)
    assert (result(sending).error, rig.tried) == ("timeout", [])
    rig.end()


def test_resolver_that_fails() -> None:
    """Its text is the detail."""
    answer: Deferred[Sequence[str]] = Deferred()
    rig = Rig(answer)
    sending = rig.send()
    answer.errback(OSError("the server failed"))
    outcome = result(sending)
    assert (outcome.error, outcome.detail) == (
        "dns_error",
        "hook.example does not resolve: the server failed",
    )
    rig.end()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (net.ConnectionRefusedError(), "connection_refused"),
        (net.TCPTimedOutError(), "timeout"),
        (net.NoRouteError(), "network_unreachable"),
        (net.ConnectError(errno.EHOSTUNREACH, "no route to host"), "network_unreachable"),
        (net.ConnectError(errno.ECONNRESET, "reset"), "connection_reset"),
        (net.ConnectError(errno.EACCES, "a firewall"), "network_unreachable"),
    ],
)
def test_connection_that_fails(error: Exception, code: str) -> None:
    """Each way to fail has a code of its own, and the address that was tried."""
    rig = Rig(["192.0.2.1"])
    sending = rig.send()
    rig.fail(error)
    outcome = result(sending)
    assert (outcome.error, outcome.status, outcome.address) == (code, None, "192.0.2.1")
    assert outcome.detail.startswith("hook.example (192.0.2.1, port 80) ")
    rig.end()


@pytest.mark.parametrize("phase", ["resolving", "judging", "connecting", "waiting"])
def test_cancelling(phase: str) -> None:
    """In every phase it ends as cancelled, at once, and leaves nothing."""
    waits: Deferred[Any] = Deferred()
    rig = Rig(
        waits if phase == "resolving" else ["192.0.2.1", "192.0.2.2"],
        Guard(waits if phase == "judging" else None),
    )
    sending = rig.send()
    wire = rig.connect() if phase == "waiting" else None
    seen: list[Failure] = []
    sending.addErrback(seen.append)
    sending.cancel()
    assert seen
    assert seen[0].check(CancelledError)
    assert wire is None or wire.aborted
    assert len(rig.tried) <= 1
    rig.end()


def test_closing_while_connecting() -> None:
    """What waits for a connection is cancelled as well."""
    rig = Rig(["192.0.2.1"])
    seen: list[Failure] = []
    rig.send().addErrback(seen.append)
    rig.end()
    assert seen
    assert seen[0].check(CancelledError)


def test_kept_connection_is_closed_after_a_while() -> None:
    """30 s without a request."""
    rig = Rig(["192.0.2.1"])
    sending = rig.send()
    wire = rig.connect()
    wire.protocol.dataReceived(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert result(sending).status == 204
    rig.clock.advance(29.9)
    assert not wire.disconnecting
    rig.clock.advance(0.2)
    assert (wire.disconnecting, wire.aborted) == (True, False)  # some servers print a traceback for a reset
    rig.clock.advance(0)
    rig.end()


def test_connection_that_says_something_unasked_is_closed() -> None:
    """What nobody asked for is not the answer to the next request."""
    rig = Rig(["192.0.2.1"])
    sending = rig.send()
    wire = rig.connect()
    wire.protocol.dataReceived(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert result(sending).status == 204
    wire.protocol.dataReceived(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert wire.disconnecting
    rig.clock.advance(0)
    rig.end()


async def test_one_look_up_for_all_who_ask() -> None:
    """A name whose server is silent holds one thread, not one for each attempt."""
    asked: list[tuple[str, Deferred[Sequence[str]]]] = []

    def in_thread(_: Any, host: str) -> "Deferred[Sequence[str]]":
        asked.append((host, Deferred()))
        return asked[-1][1]

    resolve = Resolver(in_thread)
    gone, one, two = (resolve("hook.example") for _ in range(3))
    gone.addErrback(lambda failure: failure.trap(CancelledError))
    gone.cancel()
    assert [host for host, _ in asked] == ["hook.example"]
    asked[0][1].callback(["192.0.2.1", "2001:db8::1"])
    assert await one == await two == ["192.0.2.1", "2001:db8::1"]
    again = resolve("hook.example")
    asked[1][1].errback(OSError("no such name"))
    with pytest.raises(OSError, match="no such name"):
        await again


def test_file_of_authorities(tmp_path: Path) -> None:
    """A file that cannot be read or holds no certificate is named, with what is wrong."""
    missing, empty = tmp_path / "missing.pem", tmp_path / "empty.pem"
    empty.write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    with pytest.raises(ValueError, match=r"missing\.pem cannot be read: No such file"):
        read_ca(str(missing))
    with pytest.raises(ValueError, match=r"empty\.pem holds no certificate"):
        read_ca(str(empty))
