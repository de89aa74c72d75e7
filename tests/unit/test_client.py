"""The client of the target: what it sends, what it understands, and how each failure is named."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from treq.testing import StubTreq
from twisted.internet import error as net
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from foreman.errors import TargetFailed, TargetTimeout, TargetUnreachable
from foreman.target.client import BODY_LIMIT_BYTES, OllamaClient, ShowFacts, make_http
from foreman.testing.ollama import FakeOllama
from foreman.testing.scripted import Canned

URL = "http://target:11434"


class Bench:
    """A fake target on a clock, and the client before it."""

    def __init__(self, base_url: str = URL, token: str = "") -> None:
        self.clock = Clock()
        self.fake = FakeOllama(self.clock)
        self.http = StubTreq(self.fake.resource())
        self.client = OllamaClient(self.http, base_url, token, self.clock, 10, load_timeout_seconds=100)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def begin(call: Callable[[], Any]) -> "Deferred[Any]":
    return Deferred.fromCoroutine(call())


async def test_what_is_read(bench: Bench) -> None:
    """Each method returns the typed facts of its route."""
    alpha, beta = bench.fake.models
    assert await bench.client.version() == "0.0.0"
    assert [(entry.name, entry.digest) for entry in await bench.client.tags()] == [
        ("alpha:latest", alpha.digest),
        ("beta:latest", beta.digest),
    ]
    assert await bench.client.ps() == []
    completes = frozenset({"completion"})
    assert await bench.client.show("alpha") == ShowFacts(frozenset({alpha.weights}), "", completes)
    assert await bench.client.show("beta:latest") == ShowFacts(
        frozenset({beta.weights}), '{"num_ctx":2048}', completes
    )


async def test_pin_sends_a_number_and_is_seen(bench: Bench) -> None:
    """A pin is an embed without input, with the JSON number -1; ps shows an end in another century."""
    await bench.client.pin("alpha")
    (sent,) = bench.fake.seen("/api/embed")
    assert json.loads(sent.body) == {"model": "alpha", "input": [], "keep_alive": -1}
    (loaded,) = await bench.client.ps()
    assert (loaded.name, loaded.context_length) == ("alpha:latest", 4096)
    assert loaded.expires_at.year > 2200
    assert loaded.expires_at.tzinfo is not None


async def test_what_is_sent() -> None:
    """The token goes up as a bearer, and a path prefix of the URL is kept."""
    bench = Bench("http://target:11434/prefix/", "secret")
    with pytest.raises(TargetFailed, match="with 404"):
        await bench.client.version()
    (sent,) = bench.fake.requests
    assert sent.path == "/prefix/api/version"
    assert sent.headers["authorization"] == "Bearer secret"
    assert "secret" not in repr(bench.client)


async def test_no_token_sends_none(bench: Bench) -> None:
    """Without a token there is no Authorization."""
    await bench.client.version()
    assert "authorization" not in bench.fake.requests[0].headers


@pytest.mark.parametrize(
    ("canned", "says"),
    [
        (Canned(500, b'{"error":"boom"}'), "with 500: boom"),
        (Canned(404, b"404 page not found", "text/plain"), "with 404: '404 page not found'"),
        (Canned(301, b""), "with 301"),
        (Canned(204, b""), "with 204"),
        (Canned(200, b"<html>hello</html>", "text/html"), "is not Ollama's"),
        (Canned(200, b'{"models":[{"name":"x'), "is not Ollama's"),
        (Canned(200, b'{"models":"many"}'), "is not Ollama's"),
        (Canned(200, b'{"models":[{"name":1,"digest":"x"}]}'), "is not Ollama's"),
        (Canned(200, b'{"models":[{"name":"x"}]}'), "is not Ollama's"),
        (Canned(200, b"{}"), "is not Ollama's"),
        (Canned(200, b""), "is not Ollama's"),
        (Canned(200, b"\xff\xfe"), "is not Ollama's"),
        (Canned(200, b'{"models":' + b"[" * 100_000), "is not Ollama's"),
        (Canned(200, b'{"models":[', cut=True), "broke off"),
    ],
)
async def test_bad_answers(bench: Bench, canned: Canned, says: str) -> None:
    """Whatever is not a good answer becomes TargetFailed, with a sentence that says what came."""
    bench.fake.answer("/api/tags", canned)
    with pytest.raises(TargetFailed, match=says):
        await bench.client.tags()


async def test_an_empty_list_of_go_is_null(bench: Bench) -> None:
    """Go writes an empty list as null in places."""
    bench.fake.answer("/api/tags", Canned(200, b'{"models":null}'))
    assert await bench.client.tags() == []


async def test_a_date_without_a_zone_is_refused(bench: Bench) -> None:
    """A moment has to say its zone: it is compared with others."""
    entry = {"name": "x", "digest": "y", "expires_at": "2026-01-01T00:00:00"}
    bench.fake.answer("/api/ps", Canned(200, json.dumps({"models": [entry]}).encode()))
    with pytest.raises(TargetFailed, match="expires_at"):
        await bench.client.ps()


class Failing:
    """A treq that fails, or never answers."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    def request(self, *args: Any, **kwargs: Any) -> "Deferred[Any]":
        return fail(self.outcome) if isinstance(self.outcome, Exception) else self.outcome


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (net.ConnectionRefusedError(), "connection refused"),
        (net.DNSLookupError("no results"), "its name does not resolve"),
        (net.UnknownHostError(), "its name does not resolve"),
        (net.TimeoutError(), "no connection in time"),
        (net.NoRouteError(), "no route to its host"),
    ],
)
async def test_nothing_could_be_sent(error: Exception, reason: str) -> None:
    """Refused, unknown or not connected in time is TargetUnreachable, with the URL and a short reason."""
    client = OllamaClient(Failing(error), URL, "", Clock(), 10)
    with pytest.raises(TargetUnreachable) as caught:
        await client.version()
    assert (caught.value.target_url, caught.value.reason) == (URL, reason)


async def test_an_unforeseen_error_is_the_targets() -> None:
    """Any other error on the way is TargetFailed, and says what it was."""
    client = OllamaClient(Failing(ValueError("odd")), URL, "", Clock(), 10)
    with pytest.raises(TargetFailed, match=r"broke off GET /api/version: odd"):
        await client.version()


async def test_a_limit_that_passes_before_the_connection() -> None:
    """A connection that is not there when the whole limit passes (a name that is looked up for ever) is
    unreachable, not silent."""
    clock = Clock()
    connecting: Deferred[Any] = Deferred(lambda d: d.errback(net.ConnectingCancelledError(None)))
    client = OllamaClient(Failing(connecting), URL, "", clock, 10)
    call = begin(client.version)
    clock.advance(10)
    with pytest.raises(TargetUnreachable, match="no connection within 10 s"):
        await call


async def test_silence_before_the_head(bench: Bench) -> None:
    """A target that accepts and says nothing is cut at the limit, and its connection closed."""
    bench.fake.hold()
    call = begin(bench.client.tags)
    bench.clock.advance(9.9)
    assert not call.called
    bench.clock.advance(0.1)
    with pytest.raises(TargetTimeout, match=r"did not answer GET /api/tags within 10 s"):
        await call
    bench.http.flush()
    assert len(bench.fake.aborted) == 1


class Dripping(Resource):
    """Answers a head and a byte now and then, and never ends."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.gone = False

    def render(self, request: Request) -> int:
        request.write(b'{"version":"')
        self.request = request
        request.notifyFinish().addErrback(lambda _: setattr(self, "gone", True))
        return NOT_DONE_YET


async def test_the_limit_covers_the_body() -> None:
    """The limit is one for the whole call: bytes that come do not lengthen it. The connection is closed."""
    clock, surface = Clock(), Dripping()
    http = StubTreq(surface)
    call = begin(OllamaClient(http, URL, "", clock, 10).version)
    for _ in range(9):
        clock.advance(1)
        surface.request.write(b"1")
        http.flush()
    assert not call.called
    clock.advance(1)
    with pytest.raises(TargetTimeout):
        await call
    http.flush()
    assert surface.gone
    assert clock.getDelayedCalls() == []


async def test_cancelling_closes_the_connection() -> None:
    """Cancelled by its caller, in the body, a call ends as CancelledError and hangs up."""
    clock, surface = Clock(), Dripping()
    http = StubTreq(surface)
    call = begin(OllamaClient(http, URL, "", clock, 10).version)
    call.cancel()
    with pytest.raises(CancelledError):
        await call
    http.flush()
    assert surface.gone
    assert clock.getDelayedCalls() == []


async def test_cancelling_before_the_head(bench: Bench) -> None:
    """Cancelled by its caller before the head, a call is a CancelledError too, not a broken target."""
    bench.fake.hold()
    call = begin(bench.client.tags)
    call.cancel()
    with pytest.raises(CancelledError):
        await call
    bench.http.flush()
    assert len(bench.fake.aborted) == 1
    assert bench.clock.getDelayedCalls() == []


async def test_an_endless_answer_is_cut() -> None:
    """More than the limit of bytes is not kept: the call fails and the connection is closed."""
    clock, surface = Clock(), Dripping()
    http = StubTreq(surface)
    call = begin(OllamaClient(http, URL, "", clock, 10).version)
    surface.request.write(b"x" * (BODY_LIMIT_BYTES + 1))
    http.flush()
    with pytest.raises(TargetFailed, match="larger than"):
        await call
    http.flush()
    assert surface.gone


async def test_a_pin_may_take_a_load_s_time(bench: Bench) -> None:
    """A call that loads has a longer limit: leaving would abort the load."""
    bench.fake.gpu.load_seconds = 60
    call = begin(lambda: bench.client.pin("alpha"))
    bench.clock.advance(60)
    bench.http.flush()
    await call
    assert bench.fake.loads == ["alpha:latest"]


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ("", {}),
        ('{"num_ctx":8192,"use_mmap":false}', {"options": {"num_ctx": 8192, "use_mmap": False}}),
        ('{"shift":false}', {"shift": False}),
        ('{"num_gpu":-1,"shift":false}', {"options": {"num_gpu": -1}, "shift": False}),
    ],
)
async def test_a_load_has_the_runner_options_and_no_lifetime(
    bench: Bench, options: str, fields: dict[str, Any]
) -> None:
    """A generate without a prompt; `keep_alive` is for the request that follows to say."""
    await bench.client.load("alpha", options, 50)
    (sent,) = bench.fake.seen("/api/generate")
    assert json.loads(sent.body) == {"model": "alpha", **fields}
    assert bench.fake.loads == ["alpha:latest"]


async def test_a_load_has_a_limit_of_its_own(bench: Bench) -> None:
    """That which it is given, not that of the small calls."""
    bench.fake.gpu.load_seconds = 60
    call = begin(lambda: bench.client.load("alpha", "", 50))
    bench.clock.advance(49.9)
    assert not call.called
    bench.clock.advance(0.1)
    with pytest.raises(TargetTimeout, match="within 50 s"):
        await call


async def test_weights_are_read_from_the_head_of_the_modelfile(bench: Bench) -> None:
    """FROM and ADAPTER come first; a line in a template or licence that looks like one does not count."""
    modelfile = (
        '# FROM smol\n\nFROM /blobs/a\nFROM /blobs/projector\nADAPTER /blobs/b\nTEMPLATE "x\nFROM y\n"\n'
    )
    parameters = 'stop                           "num_ctx 5"\nnum_ctx                        8192\nseed  1'
    show = json.dumps({"modelfile": modelfile, "parameters": parameters}).encode()
    bench.fake.answer("/api/show", Canned(200, show))
    facts = await bench.client.show("alpha")
    assert facts == ShowFacts(frozenset({"/blobs/a", "/blobs/projector", "/blobs/b"}), '{"num_ctx":8192}')


async def test_a_show_without_facts(bench: Bench) -> None:
    """A model without a modelfile has no weights to tell."""
    bench.fake.answer("/api/show", Canned(200, b"{}"))
    assert await bench.client.show("alpha") == ShowFacts(frozenset())


def test_the_plain_bytes_are_asked_for() -> None:
    """The real client asks for no compression, keeps no connection and brings no cookie back."""
    reactor = MemoryReactorClock()
    client = OllamaClient(make_http(reactor, 5), "http://127.0.0.1:11434", "", reactor, 10)
    sent = []
    for _ in range(2):
        call = begin(client.version)
        connection = reactor.tcpClients.pop()
        assert connection[:2] == ("127.0.0.1", 11434)
        assert connection[3] == 5
        protocol = connection[2].buildProtocol(None)
        transport = StringTransport()
        protocol.makeConnection(transport)
        sent.append(transport.value().lower())
        protocol.dataReceived(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Path=/\r\nContent-Length: 15\r\n\r\n")
        protocol.dataReceived(b'{"version":"1"}')
        assert call.result == "1"
        assert transport.disconnecting
    for request in sent:
        assert b"\r\naccept-encoding: identity\r\n" in request
        assert b"\r\nconnection: close\r\n" in request
        assert b"gzip" not in request
        assert b"cookie" not in request
