"""One long answer of the target: its pieces, its limits, and every way in which it ends."""

import json
from typing import Any

import pytest
from attrs import define
from treq.testing import StubTreq
from twisted.internet import error as net
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport

from foreman.errors import ExecutionTimeout, TargetFailed, TargetRefused, TargetTimeout, TargetUnreachable
from foreman.target.client import make_http
from foreman.target.generation import Generator, streamed
from foreman.target.watch import RunLimits
from foreman.testing.ollama import FakeOllama
from foreman.testing.scripted import Canned

URL = "http://target:11434/"
LIMITS = RunLimits(first_byte=100.0, silence=30.0, run=500.0)
BODY = json.dumps({"model": "alpha", "messages": [{"role": "user", "content": "hi"}]}).encode()


@define
class Grant:
    settling: bool = False
    first_bytes: int = 0
    aborts: int = 0

    def first_byte(self) -> None:
        self.first_bytes += 1

    def abort(self) -> None:
        self.aborts += 1


class Bench:
    def __init__(self, **fake: Any) -> None:
        self.clock = Clock()
        self.fake = FakeOllama(self.clock, **fake)
        self.stub = StubTreq(self.fake.resource())
        self.grant = Grant()
        self.came: list[bytes] = []

    def begin(self, limits: RunLimits = LIMITS, http: Any = None) -> "Deferred[None]":
        self.generator = Generator(http or self.stub, URL, "secret", self.clock)
        return Deferred.fromCoroutine(
            self.generator.run("/api/chat", BODY, self.came.append, limits, self.grant)
        )

    def pass_seconds(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.clock.advance(1)
            self.stub.flush()


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b'{"model":"m"}', b'{"model":"m","stream":true}'),
        (b'{ "a" : 1.50 }\n', b'{ "a" : 1.50 ,"stream":true}\n'),
        (b'{"stream":false, "Stream":0}', b'{"stream":false, "Stream":0,"stream":true}'),
        (b"{ }", b'{ "stream":true}'),
    ],
)
def test_stream_is_the_last_key(body: bytes, sent: bytes) -> None:
    """For Ollama the last one wins, in any case; every other byte stays as it was."""
    assert streamed(body) == sent


async def test_the_pieces_come_as_they_are(bench: Bench) -> None:
    """Each is there as soon as it came, and the first byte is told once."""
    bench.fake.token_interval = 10
    run = bench.begin()
    assert (bench.grant.first_bytes, len(bench.came)) == (1, 1)
    bench.pass_seconds(10)
    assert len(bench.came) == 2
    bench.pass_seconds(40)
    await run
    assert json.loads(b"".join(bench.came).splitlines()[-1])["done"] is True
    assert (bench.grant.first_bytes, bench.grant.aborts) == (1, 0)
    assert bench.fake.requests[0].headers["authorization"] == "Bearer secret"
    assert bench.fake.requests[0].body == BODY
    assert bench.clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("canned", "status", "text"),
    [
        (Canned(404, b'{"error":"model \'x\' not found"}'), 404, "model 'x' not found"),
        (Canned(503, b"busy", "text/plain"), 503, "'busy'"),
        (Canned(500, b"x" * 100_000), 500, "''"),
        (Canned(400, b"half", cut=True), 400, "''"),
        (Canned(302, b""), 302, "''"),
    ],
)
async def test_a_refusal_is_its_status(bench: Bench, canned: Canned, status: int, text: str) -> None:
    """Even when its body is too long or breaks off. It teaches nothing about what is loaded."""
    bench.fake.answer("/api/chat", canned)
    with pytest.raises(TargetRefused) as caught:
        await bench.begin()
    assert (caught.value.target_status, caught.value.target_body) == (status, text)
    assert (bench.grant.first_bytes, bench.came) == (0, [])


@pytest.mark.parametrize("after", [0, 2])
async def test_the_target_breaks_off(bench: Bench, after: int) -> None:
    """What came is passed on; the loss is named."""
    bench.fake.die_after = after
    with pytest.raises(TargetFailed, match="broke off"):
        await bench.begin()
    assert len(bench.came) == after


@pytest.mark.parametrize("error", [net.ConnectionRefusedError(), net.DNSLookupError(), net.TimeoutError()])
async def test_nothing_could_be_sent(bench: Bench, error: Exception) -> None:
    """It is unreachable, and nothing was aborted."""

    class Nobody:
        def request(self, *_: Any, **__: Any) -> "Deferred[Any]":
            return fail(error)

    with pytest.raises(TargetUnreachable):
        await bench.begin(http=Nobody())
    assert bench.grant.aborts == 0


@pytest.mark.parametrize(
    ("interval", "limits", "seconds", "kind"),
    [
        pytest.param(0, LIMITS, 100, TargetTimeout, id="first byte"),
        pytest.param(40, LIMITS, 30, TargetTimeout, id="silence"),
        pytest.param(20, RunLimits(100, 30, 45), 45, ExecutionTimeout, id="run, generating"),
        pytest.param(0, RunLimits(100, 30, 45), 45, ExecutionTimeout, id="run, before the first byte"),
    ],
)
async def test_limits(
    bench: Bench, interval: float, limits: RunLimits, seconds: float, kind: type[Exception]
) -> None:
    """Each cuts the connection at its moment, and is told to the turn."""
    bench.fake.token_interval = interval
    if not interval:
        bench.fake.hold("/api/chat")
    run = bench.begin(limits)
    bench.pass_seconds(seconds - 1)
    assert not run.called
    bench.pass_seconds(1)
    with pytest.raises(TargetTimeout) as caught:
        await run
    assert type(caught.value) is kind
    bench.stub.flush()
    assert (len(bench.fake.aborted), bench.grant.aborts) == (1, 1)
    assert bench.clock.getDelayedCalls() == []


async def test_silence_counts_from_the_last_piece(bench: Bench) -> None:
    """The first byte's longer limit is over as soon as that has come."""
    bench.fake.hold("/api/chat")
    bench.fake.token_interval = 40
    run = bench.begin()
    bench.pass_seconds(5)
    bench.fake.release()
    bench.stub.flush()
    assert len(bench.came) == 1
    bench.pass_seconds(29)
    assert not run.called
    bench.pass_seconds(1)
    with pytest.raises(TargetTimeout, match="silent for 30s"):
        await run


async def test_no_limit_of_the_run(bench: Bench) -> None:
    """0 is none."""
    bench.fake.token_interval, bench.fake.tokens = 25, ["x"] * 100
    run = bench.begin(RunLimits(100, 30, 0))
    bench.pass_seconds(2600)
    await run


async def test_while_the_target_settles_the_limits_wait_for_the_first_byte(bench: Bench) -> None:
    """Of the job's 150 s none is spent on somebody else's prompt."""
    bench.grant.settling = True
    bench.fake.hold("/api/chat")
    bench.fake.token_interval, bench.fake.tokens = 20, ["x"] * 100
    run = bench.begin(RunLimits(100, 30, 150))
    bench.pass_seconds(190)
    assert not run.called
    bench.fake.release()
    bench.stub.flush()
    bench.pass_seconds(149)
    assert not run.called
    bench.pass_seconds(1)
    with pytest.raises(ExecutionTimeout):
        await run


@pytest.mark.parametrize("held", [True, False])
async def test_cancelling_closes_the_connection(bench: Bench, held: bool) -> None:
    """Before the first byte and after it."""
    bench.fake.token_interval = 10
    if held:
        bench.fake.hold("/api/chat")
    run = bench.begin()
    run.cancel()
    with pytest.raises(CancelledError):
        await run
    bench.stub.flush()
    assert (len(bench.fake.aborted), bench.grant.aborts) == (1, 1)
    assert bench.clock.getDelayedCalls() == []


async def test_a_receiver_that_fails(bench: Bench) -> None:
    """Its own error comes out, and the connection is closed."""
    bench.fake.token_interval = 10

    def receive(_: bytes) -> None:
        raise OSError(28, "No space left on device")

    generator = Generator(bench.stub, URL, "", bench.clock)
    with pytest.raises(OSError, match="No space"):
        await generator.run("/api/chat", BODY, receive, LIMITS)
    bench.stub.flush()
    assert len(bench.fake.aborted) == 1


async def test_stalled(bench: Bench) -> None:
    """Past half of the limit to begin, or of silence."""
    bench.fake.hold("/api/chat")
    bench.fake.token_interval = 25
    run = bench.begin()
    bench.pass_seconds(50)
    assert not bench.generator.stalled()
    bench.pass_seconds(1)
    assert bench.generator.stalled()
    bench.fake.release()
    bench.stub.flush()
    assert not bench.generator.stalled()
    bench.pass_seconds(16)
    assert bench.generator.stalled()
    bench.pass_seconds(100)
    await run
    assert not bench.generator.stalled()


async def test_no_kept_connection_and_no_compression() -> None:
    """Every request has a connection of its own, and asks for the plain bytes."""
    reactor = MemoryReactorClock()
    generator = Generator(make_http(reactor, 5), "http://127.0.0.1:11434", "", reactor)
    came: list[bytes] = []
    for number in range(2):
        run = Deferred.fromCoroutine(generator.run("/api/chat", b"{}", came.append, LIMITS))
        protocol = reactor.tcpClients[number][2].buildProtocol(None)
        transport = StringTransport()
        protocol.makeConnection(transport)
        sent = transport.value().lower()
        assert b"\r\naccept-encoding: identity\r\n" in sent
        assert b"\r\nconnection: close\r\n" in sent
        protocol.dataReceived(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        await run
        assert transport.disconnecting
    assert came == [b"hi", b"hi"]
