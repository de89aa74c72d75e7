"""The sender against receivers that behave, and against those that do not; on real sockets."""

import datetime
import gzip
import itertools
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from attrs import define, field
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions

from foreman.allow import parse_allow
from foreman.testing.receiver import SILENCE, After, Answer, Receiver, response
from foreman.webhooks.connector import Connector, Judge
from foreman.webhooks.guard import Guard
from foreman.webhooks.resolver import Resolver, look_up_threads
from foreman.webhooks.sender import Outcome, Sender
from foreman.webhooks.tls import Trust, read_ca

BODY = b'{"id":"01J","type":"ping"}'
HEADERS = [(b"User-Agent", b"foreman/test"), (b"Content-Type", b"application/json"), (b"webhook-id", b"01J")]
GIB = 1024**3


class Refused(Exception):
    """What the guard of these tests says."""


@define
class Names:
    """A resolver under test control: each look-up of a name takes its next answer; the last one stays."""

    answers: dict[str, list[Sequence[str]]] = field(factory=dict)
    asked: list[str] = field(factory=list)

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        answers = self.answers[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]


@define
class Rules:
    """A guard: some addresses are refused, and with one of them all."""

    refused: set[str] = field(factory=set)
    judged: list[tuple[str, int, list[str]]] = field(factory=list)

    async def judge(self, host: str, port: int, addresses: Sequence[str]) -> None:
        self.judged.append((host, port, list(addresses)))
        for address in addresses:
            if address in self.refused:
                raise Refused(f"{host} resolves to {address}, which is refused")


@define
class Rig:
    """Receivers on loopback, and senders to them."""

    reactor: Any
    names: Names = field(factory=Names)
    rules: Rules = field(factory=Rules)
    _ports: list[Any] = field(factory=list)
    _receivers: list[Receiver] = field(factory=list)
    _senders: list[Sender] = field(factory=list)

    def receiver(self, *answers: Answer) -> Receiver:
        receiver = Receiver(self.reactor, queue=list(answers))
        self._receivers.append(receiver)
        return receiver

    def listen(self, receiver: Receiver, port: int = 0, interface: str = "127.0.0.1", tls: Any = None) -> int:
        if tls is None:
            listening = self.reactor.listenTCP(port, receiver, interface=interface)
        else:
            listening = self.reactor.listenSSL(port, receiver, tls, interface=interface)
        self._ports.append(listening)
        number: int = listening.getHost().port
        return number

    def sender(
        self,
        timeout: float = 5.0,
        connect_timeout: float = 5.0,
        ca: str = "",
        limit: int = 64,
        guard: Judge | None = None,
    ) -> Sender:
        connector = Connector(
            self.reactor, self.names, guard or self.rules, connect_timeout, Trust(read_ca(ca))
        )
        sender = Sender(self.reactor, connector, timeout, limit)
        self._senders.append(sender)
        return sender

    async def send_to(self, *answers: Answer, timeout: float = 5.0) -> tuple[Outcome, Receiver]:
        """One attempt at a receiver that answers so."""
        receiver = self.receiver(*answers)
        port = self.listen(receiver)
        return await self.sender(timeout).send(f"http://127.0.0.1:{port}/hook", HEADERS, BODY), receiver

    async def unlisten(self) -> None:
        """No receiver takes connections any more; those that are there go on."""
        while self._ports:
            await self._ports.pop().stopListening()

    async def stop(self) -> None:
        for sender in self._senders:
            await sender.close()
        await self.unlisten()
        for receiver in self._receivers:
            await receiver.stop()


@pytest_twisted.async_yield_fixture
async def rig() -> AsyncIterator[Rig]:
    """Everything that a test makes with it is closed after the test."""
    from twisted.internet import reactor  # late: pytest-twisted installs it

    rig = Rig(reactor)
    yield rig
    await rig.stop()


# What is sent, and what is kept of the answer.


async def test_request_and_outcome(rig: Rig) -> None:
    """The bytes and headers as given, the host as the URL gives it, no compression asked for."""
    outcome, receiver = await rig.send_to(Answer((response(201, b"taken", ("Retry-After", "7")),)))
    (request,) = receiver.requests
    port = rig.rules.judged[0][1]
    assert (request.method, request.target, request.body) == ("POST", "/hook", BODY)
    assert request.header("host") == f"127.0.0.1:{port}"
    assert request.header("accept-encoding") == "identity"
    assert request.header("user-agent") == "foreman/test"
    assert request.header("webhook-id") == "01J"
    assert request.header("content-length") == str(len(BODY))
    assert sorted(name.lower() for name, _ in request.headers) == [
        b"accept-encoding", b"content-length", b"content-type", b"host", b"user-agent", b"webhook-id",
    ]  # fmt: skip
    assert (outcome.address, outcome.status, outcome.error, outcome.tls) == ("127.0.0.1", 201, None, None)
    assert (outcome.response, outcome.retry_after) == (b"taken", b"7")
    assert outcome.detail == "the receiver answered 201"
    assert 0 <= outcome.duration_ms < 5000


async def test_literal_is_judged_and_not_resolved(rig: Rig) -> None:
    """An address needs no look-up, and the guard sees it all the same."""
    await rig.send_to()
    assert rig.names.asked == []
    assert rig.rules.judged[0][0] == "127.0.0.1"
    assert rig.rules.judged[0][2] == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("rest", "target"),
    [("", "/"), ("?a=1", "/?a=1"), ("/a;b/c?d=%C3%A9&e", "/a;b/c?d=%C3%A9&e"), ("/é|x#part", "/%C3%A9%7Cx")],
)
async def test_target(rig: Rig, rest: str, target: str) -> None:
    """Path and query as given, encoded where HTTP demands it; a fragment stays here."""
    receiver = rig.receiver()
    port = rig.listen(receiver)
    await rig.sender().send(f"http://127.0.0.1:{port}{rest}", HEADERS, BODY)
    assert receiver.requests[0].target == target


async def test_international_host(rig: Rig) -> None:
    """A name beyond ASCII goes to the resolver and into Host in its ASCII form."""
    rig.names.answers["xn--bcher-kva.example"] = [["127.0.0.1"]]
    receiver = rig.receiver()
    port = rig.listen(receiver)
    outcome = await rig.sender().send(f"http://bücher.example:{port}/", HEADERS, BODY)
    assert outcome.status == 200
    assert receiver.requests[0].header("host") == f"xn--bcher-kva.example:{port}"


async def test_ipv6_literal(rig: Rig) -> None:
    """An IPv6 address keeps its brackets in Host and loses them in the socket."""
    receiver = rig.receiver()
    try:
        port = rig.listen(receiver, interface="::1")
    except CannotListenError:
        pytest.skip("this machine has no IPv6 loopback")
    outcome = await rig.sender().send(f"http://[::1]:{port}/", HEADERS, BODY)
    assert (outcome.status, outcome.address) == (200, "::1")
    assert receiver.requests[0].header("host") == f"[::1]:{port}"


async def test_no_cookies_no_proxies(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cookie is not sent back, and no variable makes a detour."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    receiver = rig.receiver(Answer((response(200, b"", ("Set-Cookie", "a=b")),)))
    url = f"http://127.0.0.1:{rig.listen(receiver)}/"
    sender = rig.sender()
    assert [(await sender.send(url, HEADERS, BODY)).status for _ in range(2)] == [200, 200]
    assert receiver.requests[1].header("cookie") is None


# Kept connections.


async def test_connection_is_kept(rig: Rig) -> None:
    """Answers that were read to their end leave the connection for the next attempt."""
    receiver = rig.receiver()
    url = f"http://127.0.0.1:{rig.listen(receiver)}/"
    sender = rig.sender()
    for _ in range(5):
        assert (await sender.send(url, HEADERS, BODY)).status == 200
    assert (receiver.connections, len(receiver.requests)) == (1, 5)


async def test_attempts_at_once_have_connections_of_their_own(rig: Rig) -> None:
    """Requests are not put one behind another on one connection."""
    receiver = rig.receiver(*[SILENCE] * 3)
    url = f"http://127.0.0.1:{rig.listen(receiver)}/"
    sender = rig.sender()
    works = [Deferred.fromCoroutine(sender.send(url, HEADERS, BODY)) for _ in range(3)]
    await receiver.until(lambda it: len(it.requests) == 3)
    assert receiver.connections == 3
    for work in works:
        work.cancel()
        with pytest.raises(CancelledError):
            await work


async def test_reused_connection_that_is_closed_is_tried_again(rig: Rig) -> None:
    """Closed before a byte of the answer: exactly one request more, on a new connection, in one attempt."""
    receiver = rig.receiver(Answer(), Answer((), after=After.CLOSE))
    url = f"http://127.0.0.1:{rig.listen(receiver)}/"
    sender = rig.sender()
    await sender.send(url, HEADERS, BODY)
    outcome = await sender.send(url, HEADERS, BODY)
    assert (outcome.status, outcome.error) == (200, None)
    assert [request.connection for request in receiver.requests] == [1, 1, 2]


async def test_reused_connection_that_is_reset_is_tried_again(rig: Rig) -> None:
    """A reset before a byte of the answer is the same; the second one is the attempt's failure."""
    receiver = rig.receiver(Answer(), *[Answer((), after=After.RESET)] * 2)
    url = f"http://127.0.0.1:{rig.listen(receiver)}/"
    sender = rig.sender()
    await sender.send(url, HEADERS, BODY)
    outcome = await sender.send(url, HEADERS, BODY)
    assert (outcome.status, outcome.error) == (None, "connection_reset")
    assert len(receiver.requests) == 3


async def test_all_idle_connections_are_given_up_at_once(rig: Rig) -> None:
    """Several stale connections cost one retry, not one each."""
    receiver = rig.receiver()
    url = f"http://127.0.0.1:{rig.listen(receiver)}/"
    sender = rig.sender()
    works = [Deferred.fromCoroutine(sender.send(url, HEADERS, BODY)) for _ in range(3)]
    for work in works:
        await work
    assert receiver.connections == 3
    receiver.answer(Answer((), after=After.CLOSE))
    assert (await sender.send(url, HEADERS, BODY)).status == 200
    assert receiver.requests[-1].connection == 4
    await receiver.until(lambda it: len(it.open) == 1)


async def test_reused_connection_that_breaks_within_the_answer_is_not_tried_again(rig: Rig) -> None:
    """The receiver has seen the request: the schedule decides, not the sender."""
    receiver = rig.receiver(Answer(), Answer((b"HTTP/1.1 2",), after=After.CLOSE))
    url = f"http://127.0.0.1:{rig.listen(receiver)}/"
    sender = rig.sender()
    await sender.send(url, HEADERS, BODY)
    assert (await sender.send(url, HEADERS, BODY)).error == "connection_reset"
    assert len(receiver.requests) == 2


async def test_fresh_connection_that_is_closed_is_not_tried_again(rig: Rig) -> None:
    """That is the receiver's doing, not the connection's age."""
    outcome, receiver = await rig.send_to(Answer((), after=After.CLOSE))
    assert outcome.error == "connection_reset"
    assert outcome.detail == "127.0.0.1 closed the connection without an answer"
    assert len(receiver.requests) == 1


async def test_destinations_are_bounded(rig: Rig) -> None:
    """Over the limit the destination that was used longest ago is closed."""
    first, second, third = receivers = [rig.receiver() for _ in range(3)]
    urls = [f"http://127.0.0.1:{rig.listen(receiver)}/" for receiver in receivers]
    sender = rig.sender(limit=2)
    for url in [urls[0], urls[1], urls[0], urls[2]]:
        assert (await sender.send(url, HEADERS, BODY)).status == 200
    await second.until(lambda it: not it.open)
    assert (len(first.open), len(third.open)) == (1, 1)


async def test_close_closes_everything(rig: Rig) -> None:
    """Kept connections end, and an attempt on the wire is cancelled."""
    receiver = rig.receiver(Answer(), SILENCE)
    url = f"http://127.0.0.1:{rig.listen(receiver)}/"
    sender = rig.sender()
    await sender.send(url, HEADERS, BODY)
    work = Deferred.fromCoroutine(sender.send(url, HEADERS, BODY))
    await receiver.until(lambda it: len(it.requests) == 2)
    await sender.close()
    with pytest.raises(CancelledError):
        await work
    await receiver.until(lambda it: not it.open)


async def test_cancelling_closes_the_connection(rig: Rig) -> None:
    """Within the head and within the body; nothing is reported but the cancellation."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
    receiver = rig.receiver(SILENCE, Answer((head, b"x"), 0.01))
    url = f"http://127.0.0.1:{rig.listen(receiver)}/"
    sender = rig.sender()
    for number in (1, 2):
        work = Deferred.fromCoroutine(sender.send(url, HEADERS, BODY))
        written = len(head) + 1 if number == 2 else 0
        await receiver.until(lambda it: len(it.requests) == number)  # noqa: B023
        while receiver.written_bytes < written:
            turn: Deferred[None] = Deferred()
            rig.reactor.callLater(0.01, turn.callback, None)
            await turn
        work.cancel()
        with pytest.raises(CancelledError):
            await work
        await receiver.until(lambda it: not it.open)


# Receivers that are slow, endless or broken.


async def test_silent(rig: Rig) -> None:
    """The limit of the whole attempt ends it, and the connection with it."""
    outcome, receiver = await rig.send_to(SILENCE, timeout=0.5)
    assert (outcome.status, outcome.error, outcome.address) == (None, "timeout", "127.0.0.1")
    assert outcome.detail == "no answer within 0.5 s"
    assert outcome.duration_ms >= 490
    await receiver.until(lambda it: not it.open)


async def test_head_that_trickles(rig: Rig) -> None:
    """Bytes that come do not lengthen the limit."""
    letters = itertools.chain(b"HTTP/1.1 200 OK\r\n", itertools.cycle(b"X-Slow: yes\r\n"))
    head = (bytes([byte]) for byte in letters)
    outcome, receiver = await rig.send_to(Answer(head, 0.005), timeout=0.5)
    assert (outcome.status, outcome.error) == (None, "timeout")
    assert receiver.written_bytes > 2
    await receiver.until(lambda it: not it.open)


async def test_body_that_trickles(rig: Rig) -> None:
    """The head was there in time: that is an answer, with what came of its body."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    outcome, receiver = await rig.send_to(Answer(itertools.chain([head], [b"x"] * 100), 0.01), timeout=0.5)
    assert (outcome.status, outcome.error) == (200, None)
    assert 0 < len(outcome.response) < 100
    assert set(outcome.response) == set(b"x")
    await receiver.until(lambda it: not it.open)


async def test_gibibyte(rig: Rig) -> None:
    """4 KiB are kept, the connection is cut, and neither side's memory sees the rest."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % GIB
    piece = b"x" * 65536
    tracemalloc.start()
    try:
        outcome, receiver = await rig.send_to(Answer(itertools.chain([head], itertools.repeat(piece))))
        await receiver.until(lambda it: not it.open)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (outcome.status, outcome.response) == (200, b"x" * 4096)
    assert receiver.written_bytes < 16 * 1024**2  # what fits into the sockets' buffers
    assert peak < 4 * 1024**2


async def test_longer_body_is_cut(rig: Rig) -> None:
    """More than is kept: its connection is closed when the rest was not there yet, and kept otherwise."""
    whole = [Answer((response(200, b"x" * size),)) for size in (4096, 4097)]
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"
    receiver = rig.receiver(*whole, Answer((head + b"x" * 4097,)), Answer())
    url = f"http://127.0.0.1:{rig.listen(receiver)}/"
    sender = rig.sender()
    outcomes = [await sender.send(url, HEADERS, BODY) for _ in range(4)]
    assert [(outcome.status, len(outcome.response)) for outcome in outcomes] == [(200, 4096)] * 3 + [(200, 0)]
    assert [request.connection for request in receiver.requests] == [1, 1, 1, 2]


async def test_gzip_bomb(rig: Rig) -> None:
    """Nobody asked for gzip; what comes is kept as it came."""
    bomb = gzip.compress(b"\0" * 10_000_000)
    outcome, _ = await rig.send_to(Answer((response(200, bomb, ("Content-Encoding", "gzip")),)))
    assert (outcome.status, outcome.response) == (200, bomb[:4096])


async def test_half_a_head(rig: Rig) -> None:
    """Closed within the head: there is no answer, and the status that was read does not count."""
    outcome, _ = await rig.send_to(Answer((b"HTTP/1.1 200 OK\r\nContent-",), after=After.CLOSE))
    assert (outcome.status, outcome.error) == (None, "connection_reset")
    assert outcome.detail == "127.0.0.1 closed the connection within the head of its answer"


@pytest.mark.parametrize(
    "lines",
    [
        itertools.chain([b"HTTP/1.1 200 OK\r\n"], itertools.repeat(b"X-More: and more\r\n" * 100)),
        itertools.chain([b"HTTP/1.1 200 OK\r\nX-Long: "], itertools.repeat(b"x" * 1000)),
        itertools.repeat(b"x" * 1000),
        itertools.repeat(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100),
    ],
    ids=["headers", "header", "line", "informational"],
)
async def test_endless_head(rig: Rig, lines: Any) -> None:
    """A head without end is cut before it fills memory."""
    outcome, receiver = await rig.send_to(Answer(lines))
    assert (outcome.status, outcome.error) == (None, "answer_too_large")
    await receiver.until(lambda it: not it.open)
    assert receiver.written_bytes < 16 * 1024**2


async def test_reset(rig: Rig) -> None:
    """A reset is a failure of its own kind."""
    outcome, _ = await rig.send_to(Answer((), after=After.RESET))
    assert (outcome.status, outcome.error, outcome.response) == (None, "connection_reset", b"")


async def test_reset_within_the_body(rig: Rig) -> None:
    """The head was there: its status counts."""
    head = b"HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\nsorry"
    outcome, _ = await rig.send_to(Answer((head, b"x"), 0.02, After.RESET))
    assert (outcome.status, outcome.error) == (503, None)
    assert outcome.response.startswith(b"sorry")


async def test_refused(rig: Rig) -> None:
    """Nobody listens."""
    with socket.socket() as bound:  # a free port could be taken by another program
        bound.bind(("127.0.0.1", 0))
        number = bound.getsockname()[1]
        outcome = await rig.sender().send(f"http://127.0.0.1:{number}/", HEADERS, BODY)
    assert (outcome.status, outcome.error, outcome.address) == (None, "connection_refused", "127.0.0.1")
    assert outcome.detail == f"127.0.0.1 port {number} refused the connection"


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        b"220 mail.example ESMTP\r\n",
        b"HTTP/1.1 42 Odd\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: other\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
)
async def test_not_http(rig: Rig, answer: bytes) -> None:
    """What cannot be read as HTTP is no answer, and its connection is not kept."""
    outcome, receiver = await rig.send_to(Answer((answer,)))
    assert (outcome.status, outcome.error) == (None, "invalid_answer")
    await receiver.until(lambda it: not it.open)


async def test_http_1_0(rig: Rig) -> None:
    """A body that ends with its connection is whole."""
    answer = b"HTTP/1.0 202 Accepted\r\nContent-Type: text/plain\r\n\r\nthanks"
    outcome, _ = await rig.send_to(Answer((answer,), after=After.CLOSE))
    assert (outcome.status, outcome.error, outcome.response) == (202, None, b"thanks")


async def test_informational_first(rig: Rig) -> None:
    """A 1xx is passed over."""
    pieces = (
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
        response(410),
    )
    outcome, _ = await rig.send_to(Answer(pieces))
    assert (outcome.status, outcome.error) == (410, None)


async def test_redirect_is_not_followed(rig: Rig) -> None:
    """Its status is kept; where it points is neither resolved nor judged nor connected to."""
    where = ("Location", "http://169.254.169.254/latest/meta-data/")
    outcome, receiver = await rig.send_to(Answer((response(302, b"", where),)))
    assert (outcome.status, outcome.error) == (302, None)
    assert "redirects are not followed" in outcome.detail
    assert (len(receiver.requests), len(rig.rules.judged)) == (1, 1)


# Names and addresses.


async def test_the_judged_address_is_connected_to(rig: Rig) -> None:
    """One look-up in each attempt; Host has the name."""
    rig.names.answers["hook.example"] = [["127.0.0.1"]]
    receiver = rig.receiver()
    port = rig.listen(receiver)
    sender = rig.sender()
    for _ in range(2):
        assert (await sender.send(f"http://hook.example:{port}/", HEADERS, BODY)).address == "127.0.0.1"
    assert rig.names.asked == ["hook.example"] * 2
    assert rig.rules.judged == [("hook.example", port, ["127.0.0.1"])] * 2
    assert receiver.requests[0].header("host") == f"hook.example:{port}"


async def test_rebinding(rig: Rig) -> None:
    """Public, then private: the second attempt is refused, although a connection to the first is kept."""
    rig.names.answers["hook.example"] = [["127.0.0.1"], ["127.0.0.2"]]
    rig.rules.refused = {"127.0.0.2"}
    first, inside = rig.receiver(), rig.receiver()
    port = rig.listen(first)
    rig.listen(inside, port, "127.0.0.2")
    sender = rig.sender()
    assert (await sender.send(f"http://hook.example:{port}/", HEADERS, BODY)).status == 200
    outcome = await sender.send(f"http://hook.example:{port}/", HEADERS, BODY)
    assert (outcome.status, outcome.error, outcome.address) == (None, "forbidden_address", None)
    assert outcome.detail == "hook.example resolves to 127.0.0.2, which is refused"
    assert (len(first.requests), inside.connections) == (1, 0)


async def test_one_refused_address_refuses_the_name(rig: Rig) -> None:
    """A public A beside a private AAAA: nothing is connected to."""
    rig.names.answers["hook.example"] = [["127.0.0.1", "::1"]]
    rig.rules.refused = {"::1"}
    receiver = rig.receiver()
    port = rig.listen(receiver)
    outcome = await rig.sender().send(f"http://hook.example:{port}/", HEADERS, BODY)
    assert (outcome.error, receiver.connections) == ("forbidden_address", 0)


async def test_kept_connection_is_not_used_for_another_address(rig: Rig) -> None:
    """The name resolves elsewhere: the attempt goes there, and back again over the kept connection."""
    rig.names.answers["hook.example"] = [["127.0.0.1"], ["127.0.0.2"], ["127.0.0.1"]]
    first, second = rig.receiver(), rig.receiver()
    port = rig.listen(first)
    rig.listen(second, port, "127.0.0.2")
    sender = rig.sender()
    addresses = [(await sender.send(f"http://hook.example:{port}/", HEADERS, BODY)).address for _ in range(3)]
    assert addresses == ["127.0.0.1", "127.0.0.2", "127.0.0.1"]
    assert (len(first.requests), len(second.requests)) == (2, 1)
    assert (first.connections, second.connections) == (1, 1)


async def test_next_address_when_one_refuses_the_connection(rig: Rig) -> None:
    """Addresses are tried in their order; the next attempt begins where a connection is open."""
    rig.names.answers["hook.example"] = [["127.0.0.2", "127.0.0.1"]]
    receiver, other = rig.receiver(), rig.receiver()
    port = rig.listen(receiver)
    sender = rig.sender()
    assert (await sender.send(f"http://hook.example:{port}/", HEADERS, BODY)).address == "127.0.0.1"
    rig.listen(other, port, "127.0.0.2")
    assert (await sender.send(f"http://hook.example:{port}/", HEADERS, BODY)).address == "127.0.0.1"
    assert (receiver.connections, other.connections) == (1, 0)


async def test_no_other_address_after_the_request_was_sent(rig: Rig) -> None:
    """A receiver that closes has seen the request: it is not sent to the next address as well."""
    rig.names.answers["hook.example"] = [["127.0.0.1", "127.0.0.2"]]
    first, second = rig.receiver(Answer((), after=After.CLOSE)), rig.receiver()
    port = rig.listen(first)
    rig.listen(second, port, "127.0.0.2")
    outcome = await rig.sender().send(f"http://hook.example:{port}/", HEADERS, BODY)
    assert (outcome.error, outcome.address, second.connections) == ("connection_reset", "127.0.0.1", 0)


async def test_next_address_when_a_kept_connection_was_all_that_was_left(rig: Rig) -> None:
    """The instant retry finds nobody: nothing was sent in it, and the next address has its turn."""
    rig.names.answers["hook.example"] = [["127.0.0.1", "127.0.0.2"]]
    first, second = rig.receiver(Answer(), Answer((), after=After.CLOSE)), rig.receiver()
    port = rig.listen(first)
    sender = rig.sender()
    await sender.send(f"http://hook.example:{port}/", HEADERS, BODY)
    await rig.unlisten()
    rig.listen(second, port, "127.0.0.2")
    outcome = await sender.send(f"http://hook.example:{port}/", HEADERS, BODY)
    assert (outcome.status, outcome.address) == (200, "127.0.0.2")
    assert (len(first.requests), len(second.requests)) == (2, 1)


@pytest.mark.parametrize("addresses", [[], ["localhost"], ["127.1"]])
async def test_name_without_address(rig: Rig, addresses: list[str]) -> None:
    """What is no address is not passed on: connecting would look it up again, behind the guard."""
    rig.names.answers["hook.example"] = [addresses]
    outcome = await rig.sender().send("http://hook.example/", HEADERS, BODY)
    assert (outcome.error, outcome.address, rig.rules.judged) == ("dns_error", None, [])


TARGET = ("127.0.0.1", 11434)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f.1", "127.1", "0177.0.0.1", "１２７.０.０.１"]
)
async def test_spellings_of_an_address(rig: Rig, host: str) -> None:
    """Each is the address that it spells, for the guard and for the connection, and nothing is looked up."""
    receiver = rig.receiver()
    port = rig.listen(receiver)
    outcome = await rig.sender().send(f"http://{host}:{port}/", HEADERS, BODY)
    assert (outcome.status, outcome.address) == (200, "127.0.0.1")
    assert rig.rules.judged == [(receiver.requests[0].header("host").rpartition(":")[0], port, ["127.0.0.1"])]


async def test_spelling_of_no_address(rig: Rig) -> None:
    """Neither an address nor a name."""
    outcome = await rig.sender().send("http://127.0.0.1.9.9/", HEADERS, BODY)
    assert (outcome.error, rig.names.asked, rig.rules.judged) == ("dns_error", [], [])


@pytest.mark.parametrize(
    "second",
    [
        ["169.254.169.254"],
        ["::ffff:169.254.169.254"],
        ["127.0.0.1", "fe80::1"],
        ["64:ff9b::a9fe:a9fe"],
        ["0.0.0.0"],
    ],
)
async def test_rebinding_with_the_real_guard(rig: Rig, second: list[str]) -> None:
    """A name that was well a moment ago resolves to what is never allowed: nothing is sent."""
    rig.names.answers["hook.example"] = [["127.0.0.1"], second]
    receiver = rig.receiver()
    port = rig.listen(receiver)
    sender = rig.sender(guard=Guard(parse_allow("lan"), TARGET, rig.names))
    assert (await sender.send(f"http://hook.example:{port}/", HEADERS, BODY)).status == 200
    outcome = await sender.send(f"http://hook.example:{port}/", HEADERS, BODY)
    assert (outcome.status, outcome.error, outcome.address) == (None, "forbidden_address", None)
    assert "foreman never sends webhooks there" in outcome.detail
    assert len(receiver.requests) == 1


async def test_system_resolver(rig: Rig) -> None:
    """The system's resolver finds localhost; look-ups at one time share one; nonsense has no address."""
    resolve = Resolver(look_up_threads(rig.reactor, 2))
    one, two = resolve("localhost"), resolve("localhost")
    first, second = await one, await two
    assert first == second
    assert set(first) <= {"127.0.0.1", "::1"}
    assert first
    for nobody in ("nobody.invalid", f"{'x' * 64}.example"):
        with pytest.raises((OSError, UnicodeError)):
            await resolve(nobody)


# TLS.


@define
class Authority:
    """Issues certificates for tests."""

    folder: Path
    called: str = "Test Authority"
    _key: Any = field(init=False)
    certificate: x509.Certificate = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = _name(self.called)
        builder = _builder(name, name, self._key.public_key(), 365).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.certificate = builder.sign(self._key, hashes.SHA256())

    @property
    def path(self) -> str:
        path = self.folder / "ca.pem"
        path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return str(path)

    def server(self, host: str, days: int = 30, self_signed: bool = False) -> CertificateOptions:
        """A server's options; the certificate ends in so many days."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer, issuer_key = self.certificate.subject, self._key
        if self_signed:
            issuer, issuer_key = _name(host), key
        try:
            alternative: x509.GeneralName = x509.IPAddress(ip_address(host))
        except ValueError:
            alternative = x509.DNSName(host)
        builder = _builder(_name(host), issuer, key.public_key(), days)
        builder = builder.add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        certificate = builder.sign(issuer_key, hashes.SHA256())
        return CertificateOptions(privateKey=key, certificate=certificate)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: x509.Name, issuer: x509.Name, key: Any, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=60))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A private authority."""
    return Authority(tmp_path)


async def _over_tls(
    rig: Rig, options: CertificateOptions, ca: str, host: str = "hook.example", times: int = 1
) -> tuple[Outcome, Receiver]:
    rig.names.answers.setdefault("hook.example", [["127.0.0.1"]])
    receiver = rig.receiver()
    port = rig.listen(receiver, tls=options)
    sender = rig.sender(ca=ca)
    for _ in range(times):
        outcome = await sender.send(f"https://{host}:{port}/hook", HEADERS, BODY)
    return outcome, receiver


async def test_private_authority(rig: Rig, authority: Authority) -> None:
    """An additional authority is trusted; the outcome says what was agreed on; the connection is kept."""
    options = authority.server("hook.example")
    until = options.certificate.not_valid_after_utc
    outcome, receiver = await _over_tls(rig, options, authority.path, times=2)
    assert (outcome.status, outcome.error) == (200, None)
    assert outcome.tls == f"TLSv1.3, certificate for hook.example until {until:%Y-%m-%d}"
    assert (receiver.connections, len(receiver.requests)) == (1, 2)


async def test_address_in_the_certificate(rig: Rig, authority: Authority) -> None:
    """An IP address is verified as one."""
    outcome, _ = await _over_tls(rig, authority.server("127.0.0.1"), authority.path, "127.0.0.1")
    assert outcome.status == 200


async def test_trailing_dot(rig: Rig, authority: Authority) -> None:
    """A name with the root's dot has the certificate of the name without it."""
    rig.names.answers["hook.example."] = [["127.0.0.1"]]
    outcome, _ = await _over_tls(rig, authority.server("hook.example"), authority.path, "hook.example.")
    assert outcome.status == 200


async def test_server_name(rig: Rig, authority: Authority) -> None:
    """The host's name goes into the TLS hello, not the address."""
    seen = []
    options = authority.server("hook.example")
    options.getContext().set_tlsext_servername_callback(lambda it: seen.append(it.get_servername()))
    await _over_tls(rig, options, authority.path)
    assert seen == [b"hook.example"]


Options = Callable[[Authority], CertificateOptions]


@pytest.mark.parametrize(
    ("options", "detail"),
    [
        (lambda it: it.server("hook.example", days=-1), "the certificate of hook.example expired on "),
        (
            lambda it: it.server("hook.example", self_signed=True),
            "hook.example is self-signed",
        ),
        (lambda it: it.server("other.example"), "the certificate is for other.example, not for hook.example"),
        (lambda it: it.server("127.0.0.1"), "the certificate is for 127.0.0.1, not for hook.example"),
        (
            lambda it: Authority(it.folder, "Other").server("hook.example"),
            "by an authority that is not trusted",
        ),
        (lambda it: Authority(it.folder).server("hook.example"), "by an authority that is not trusted"),
    ],
    ids=["expired", "self-signed", "wrong host", "address", "unknown authority", "another of its name"],
)
async def test_certificate_is_refused(rig: Rig, authority: Authority, options: Options, detail: str) -> None:
    """Nothing is sent, and the outcome says in words what is wrong with the certificate."""
    outcome, receiver = await _over_tls(rig, options(authority), authority.path)
    assert (outcome.status, outcome.error, outcome.address) == (None, "tls_error", "127.0.0.1")
    assert detail in outcome.detail
    assert receiver.requests == []
    await receiver.until(lambda it: not it.open)


async def test_private_authority_needs_to_be_named(rig: Rig, authority: Authority) -> None:
    """Without the file the machine's own authorities count alone."""
    outcome, receiver = await _over_tls(rig, authority.server("hook.example"), "")
    assert (outcome.error, receiver.requests) == ("tls_error", [])


async def test_no_tls(rig: Rig) -> None:
    """A server that speaks plain HTTP, and one that hangs up, where TLS is due."""
    plain = rig.receiver()
    plain_port = rig.listen(plain)
    sender = rig.sender(timeout=0.3, connect_timeout=0.1)
    # The receiver takes the hello for the beginning of a request, and is silent.
    outcome = await sender.send(f"https://127.0.0.1:{plain_port}/", HEADERS, BODY)
    assert outcome.error == "timeout"
    assert outcome.detail == f"no connection to 127.0.0.1 port {plain_port} within 0.1 s"
    await plain.until(lambda it: not it.open)

    class Says(Protocol):
        def dataReceived(self, data: bytes) -> None:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            self.transport.loseConnection()

    class Leaves(Protocol):
        def connectionMade(self) -> None:
            self.transport.loseConnection()

    sender = rig.sender()
    for protocol, error in ((Says, "tls_error"), (Leaves, "connection_reset")):
        port = rig.reactor.listenTCP(0, Factory.forProtocol(protocol), interface="127.0.0.1")
        outcome = await sender.send(f"https://127.0.0.1:{port.getHost().port}/", HEADERS, BODY)
        await port.stopListening()
        assert outcome.error == error, outcome
