"""A whole foreman on a real socket before a fake Ollama, and a client that sends and sees raw bytes."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from attrs import define, field, frozen
from twisted.internet import tcp
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from foreman.daemon import Parts
from foreman.errors import Stopping
from foreman.jobs.database import open_pools
from foreman.listener import Listener, bind
from foreman.service import _wire
from foreman.settings import load
from foreman.testing.ollama import FakeOllama
from foreman.webhooks.tls import Trust

LIMIT_SECONDS = 10
# One path of each dialect, and what it speaks.
DIALECTS = {
    "/api/chat": "ollama",
    "/api/generate": "ollama",
    "/api/pull": "ollama",
    "/nope": "ollama",
    "/v1/chat/completions": "openai",
    "/v1/completions": "openai",
    "/v1/responses": "openai",
    "/v1/unknown": "openai",
    "/v1/messages": "anthropic",
    "/healthz": "problem",
}


@frozen
class Answer:
    """A whole answer; header names are lower-case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The values of a header, joined; None when there is none."""
        values = [value for given, value in self.headers if given == name]
        return ", ".join(values) if values else None

    @property
    def names(self) -> set[str]:
        """The names of all headers."""
        return {name for name, _ in self.headers}


def dialect_of(path: str) -> str:
    """The dialect that a path's errors must speak."""
    if path == "/healthz" or path.startswith("/healthz/"):
        return "problem"
    if path.startswith("/v1/messages"):
        return "anthropic"
    return "openai" if path.startswith("/v1/") else "ollama"


def check_error(answer: Answer, dialect: str, status: int, code: str) -> str:
    """Hold an error to its dialect and to a Date; return its sentence."""
    assert answer.status == status
    assert answer.header("date") is not None
    assert answer.header("content-length") == str(len(answer.body))
    body = json.loads(answer.body)
    content_type = answer.header("content-type")
    if dialect == "problem":
        assert content_type == "application/problem+json"
        assert (body["status"], body["code"]) == (status, code)
        return str(body["detail"])
    if dialect == "ollama":
        assert content_type == "application/json; charset=utf-8"
        assert list(body) == ["error"]
        return str(body["error"])
    assert content_type == "application/json"
    if dialect == "anthropic":
        assert (list(body), body["type"], list(body["error"])) == (
            ["type", "error"],
            "error",
            ["type", "message"],
        )
    else:
        assert (list(body["error"]), body["error"]["code"]) == (["message", "type", "param", "code"], code)
    return str(body["error"]["message"])


def parse(data: bytes, *, no_body: bool = False) -> tuple[Answer | None, bytes]:
    """The first complete answer in `data`, or None, and what follows it; interim (1xx) heads count as one."""
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return None, data
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
    headers, status = dict(pairs), int(first.split(" ")[1])
    if no_body or status in (204, 304) or status < 200:
        return Answer(status, pairs, b""), rest
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while True:
            size_text, found, rest = rest.partition(b"\r\n")
            size = int(size_text, 16) if found else 0
            if not found or len(rest) < size + 2:
                return None, data
            body, rest = body + rest[:size], rest[size + 2 :]
            if size == 0:
                return Answer(status, pairs, body), rest
    length = int(headers.get("content-length", "0"))
    if len(rest) < length:
        return None, data
    return Answer(status, pairs, rest[:length]), rest[length:]


@implementer(IHalfCloseableProtocol)
class Client(Protocol):
    """One connection of a client's; one that `goes_on` does not close when the server has said its last."""

    goes_on = False

    def __init__(self) -> None:
        self.received = b""
        self.ended = False
        self.closed: Failure | None = None
        self._waiting: Deferred[None] | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = reason
        self._wake()

    def readConnectionLost(self) -> None:
        self.ended = True
        if not self.goes_on and self.transport is not None:
            self.transport.loseConnection()
        self._wake()

    def writeConnectionLost(self) -> None:
        """Only the transport wants to know."""

    def _wake(self) -> None:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(None)

    def send(self, data: bytes) -> None:
        """Send raw bytes."""
        assert self.transport is not None
        self.transport.write(data)

    async def until(self, done: Callable[[], bool]) -> None:
        """Wait until `done`, which is asked anew whenever something came or the connection ended."""
        from twisted.internet import reactor

        while not done():
            self._waiting = Deferred()
            self._waiting.addTimeout(LIMIT_SECONDS, reactor)  # type: ignore[arg-type]
            await self._waiting

    async def answer(self, *, no_body: bool = False) -> Answer:
        """Wait for the next whole answer, and take it off what was received."""
        await self.until(
            lambda: parse(self.received, no_body=no_body)[0] is not None or self.closed is not None
        )
        answer, self.received = parse(self.received, no_body=no_body)
        assert answer is not None, f"the connection ended ({self.closed}) after {self.received[:300]!r}"
        return answer

    async def gone(self) -> None:
        """Wait for the end of the connection."""
        await self.until(lambda: self.closed is not None)

    def close(self) -> None:
        """Reset the connection."""
        if self.transport is not None and self.closed is None:
            self.transport.abortConnection()  # type: ignore[attr-defined]


@define
class Wired:
    """A foreman that accepts connections."""

    parts: Parts
    target: FakeOllama
    listener: Listener
    folder: Path
    _clients: list[Client] = field(factory=list)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(str(self.listener).rpartition(":")[2])

    async def connect(self) -> Client:
        """A new connection."""
        from twisted.internet import reactor

        factory = Factory.forProtocol(Client)
        factory.noisy = False
        client = await TCP4ClientEndpoint(reactor, "127.0.0.1", self.port).connect(factory)
        assert isinstance(client, Client)
        self._clients.append(client)
        return client

    async def ask(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """One request on a connection of its own, and its answer."""
        client = await self.connect()
        client.send(request(method, path, headers, body))
        answer = await client.answer(no_body=method == "HEAD")
        client.close()
        await client.gone()
        return answer

    async def stop(self) -> None:
        """Stop everything."""
        for client in self._clients:
            client.close()
        await self.listener.close()
        parts = self.parts
        parts.native.stop()
        parts.turn.close(Stopping())
        parts.relay.cut_all(Stopping())
        await parts.site.drain(0.05)
        await parts.site.abort(1)
        while parts.inventory._polls._busy:  # a swap asks for one
            await turn_of_the_reactor()
        await parts.inventory.stop()
        parts.reachability.stop()
        parts.connections.close()


def connections() -> set[Any]:
    """The sockets that the reactor has now, but for those that listen."""
    from twisted.internet import reactor

    return {reader for reader in reactor.getReaders() if isinstance(reader, tcp.Connection)}  # type: ignore[attr-defined]


def request(method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b"") -> bytes:
    """A request as bytes; its Content-Length is given when it has a body."""
    lines = {"Host": "127.0.0.1", **(headers or {})}
    if body:
        lines.setdefault("Content-Length", str(len(body)))
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return head.encode("latin-1") + b"\r\n" + body


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


async def turn_of_the_reactor() -> None:
    """Let the reactor do what is there to do."""
    from twisted.internet import reactor

    await deferLater(reactor, 0)  # type: ignore[arg-type]


@asynccontextmanager
async def wired(folder: Path, **given: str) -> AsyncIterator[Wired]:
    """A foreman with these settings (without their prefix), and a target, both on free ports."""
    from twisted.internet import reactor

    before = connections()
    target = FakeOllama(reactor)  # type: ignore[arg-type]
    target_site = target.site()
    target_port = reactor.listenTCP(0, target_site, interface="127.0.0.1")  # type: ignore[attr-defined]
    url = f"http://127.0.0.1:{target_port.getHost().port}"
    settings = load(
        {
            "FOREMAN_OLLAMA_URL": url,
            "FOREMAN_DB_PATH": str(folder / "foreman.db"),
            **{f"FOREMAN_{name}": text for name, text in given.items()},
        }
    )
    parts = _wire(reactor, settings, url, open_pools(":memory:", reactor), Trust(()))
    listener = bind(reactor, ("tcp:0:interface=127.0.0.1",), parts.site)
    parts.gate.checks_host = listener.is_loopback
    listener.accept()
    made = Wired(parts, target, listener, folder)
    try:
        yield made
    finally:
        await made.stop()
        await target_port.stopListening()
        end = reactor.seconds() + LIMIT_SECONDS  # type: ignore[attr-defined]
        while connections() - before:  # both ends of each are here, and one hears of the other
            assert reactor.seconds() < end, "a connection stays open"  # type: ignore[attr-defined]
            await turn_of_the_reactor()
        for _ in range(5):
            await turn_of_the_reactor()
