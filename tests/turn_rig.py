"""The whole daemon in this process, in front of a fake Ollama on a real socket; a client of plain bytes."""

import ast
import json
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from attrs import define, field, frozen
from twisted.internet import reactor as _reactor  # noqa: TID253 - pytest-twisted has installed it
from twisted.internet import tcp
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.web.server import Site

from foreman.daemon import Foreman
from foreman.service import build_service
from foreman.testing.ollama import FakeOllama

reactor: Any = _reactor

# No test comes near these; they are there so that a broken one ends.
PATIENCE_SECONDS = 20
LOOK_SECONDS = 0.005
# What is done at once takes milliseconds, and on a machine that is busy elsewhere more. No timer is as short.
SOON_SECONDS = 2

TURN_LINE = re.compile(
    r"(?P<job_id>[0-9A-HJKMNP-TV-Z]{26}) model=(?P<model>.*) caller=(?P<caller>\S+) "
    r"waited=(?P<waited_seconds>[\d.]+)s (?:load=(?P<load_seconds>[\d.]+)s )?run=(?P<run_seconds>[\d.]+)s "
    r"status=(?P<status>\d+) bytes=(?P<sent_bytes>\d+): (?P<how>.*)"
)


async def until(true: Callable[[], object], what: str = "") -> None:
    """Wait until it holds: what the wire does next has no event that a test could wait for."""
    end = reactor.seconds() + PATIENCE_SECONDS
    while not true():
        assert reactor.seconds() < end, f"it never came true: {what or true}"
        await deferLater(reactor, LOOK_SECONDS)


@define(eq=False)
class Call(Protocol):
    """One request and its answer, on a connection of its own that the target's end closes."""

    request: bytes
    received: bytes = field(default=b"", init=False)
    sent_at: float = field(default=0.0, init=False)
    began: Deferred[None] = field(factory=Deferred, init=False)  # the first byte came, or the end
    ended: Deferred["Call"] = field(factory=Deferred, init=False)

    def connectionMade(self) -> None:
        self.sent_at = reactor.seconds()
        self.transport.write(self.request)

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self._begin()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._begin()
        self.ended.callback(self)

    def _begin(self) -> None:
        if not self.began.called:
            self.began.callback(None)

    def leave(self) -> None:
        """As a client that was killed."""
        self.transport.abortConnection()

    @property
    def status(self) -> int:
        return int(self.received.split(b" ", 2)[1])

    @property
    def headers(self) -> dict[str, str]:
        head = self.received.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
        return {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in head)}

    @property
    def body(self) -> bytes:
        """Without its chunk framing."""
        rest = self.received.partition(b"\r\n\r\n")[2]
        if self.headers.get("transfer-encoding") != "chunked":
            return rest
        whole = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            whole, rest = whole + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        return whole

    @property
    def complete(self) -> bool:
        """Whether the answer has the end that HTTP promises."""
        if self.headers.get("transfer-encoding") == "chunked":
            return self.received.endswith(b"0\r\n\r\n")
        return len(self.body) == int(self.headers["content-length"])

    def json(self) -> Any:
        return json.loads(self.body)


def content(asked: Any) -> bytes:
    return asked if isinstance(asked, bytes) else json.dumps(asked).encode()


def chat(model: str, **fields: Any) -> dict[str, Any]:
    """The body of a chat, streamed unless it says otherwise."""
    return {"model": model, "messages": [{"role": "user", "content": "rain?"}], **fields}


@frozen
class TurnLine:
    """The log line of a turn that is over. `model` is None for a body that nobody could read."""

    job_id: str
    model: str | None = field(converter=ast.literal_eval)
    caller: str
    waited_seconds: float = field(converter=float)
    load_seconds: float = field(converter=lambda text: float(text or 0))
    run_seconds: float = field(converter=float)
    status: int = field(converter=int)
    sent_bytes: int = field(converter=int)
    how: str


@define(eq=False)
class Rig:
    """foreman and its target. `turns` are the log lines of the turns that are over."""

    foreman: Foreman
    fake: FakeOllama
    address: tuple[str, int]
    turns: list[TurnLine] = field(factory=list)
    calls: list[Call] = field(factory=list)

    @property
    def parts(self) -> Any:
        return self.foreman._parts

    @property
    def turn(self) -> Any:
        return self.parts.turn

    async def begin(self, path: str, asked: Any = None, method: str | None = None) -> Call:
        """Send a request; JSON goes by POST."""
        body = b"" if asked is None else content(asked)
        method = method or ("GET" if asked is None else "POST")
        lines = (f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close")
        head = "\r\n".join((*lines, f"Content-Length: {len(body)}", "", "")).encode()
        call = Call(head + body)
        self.calls.append(call)
        await connectProtocol(TCP4ClientEndpoint(reactor, *self.address), call)
        return call

    async def ask(self, path: str, asked: Any = None, method: str | None = None) -> Call:
        """Send a request, and wait for the end of its answer."""
        return await self.wait(await self.begin(path, asked, method))

    async def wait(self, call: Call) -> Call:
        """Wait for the end of an answer, within the limit of every test."""
        call.ended.addTimeout(PATIENCE_SECONDS, reactor)
        return await call.ended

    async def hold(self, model: str = "alpha", path: str = "/api/chat") -> Call:
        """Have a request hold the turn until `fake.release()`; later ones to this path are held too."""
        self.fake.hold(path)
        call = await self.begin(path, chat(model))
        await until(lambda: self.turn.holder is not None and self.fake._gates, "a request holds the turn")
        # Its model was loaded ahead, and at the end of a load the target's models are read.
        await until(lambda: not self.parts.inventory._polls._busy, "the models are read")
        return call

    async def health(self) -> dict[str, Any]:
        return (await self.ask("/healthz")).json()

    async def reasons(self) -> list[str]:
        return (await self.health()).get("reasons", [])

    def _watch(self, event: LogEvent) -> None:
        if match := TURN_LINE.fullmatch(formatEvent(event)):
            self.turns.append(TurnLine(**match.groupdict()))


async def listen(fake: FakeOllama, port: int = 0) -> tuple[Any, Site]:
    """Serve the fake on a real socket."""
    site = fake.site()
    return reactor.listenTCP(port, site, interface="127.0.0.1"), site


@contextmanager
def reserved() -> Iterator[int]:
    """
    The number of a port at which nobody listens, until somebody who was told of it does.

    It stays bound meanwhile: if let go, it could be another program's when it is wanted again.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        number = held.getsockname()[1]
        if sys.platform != "linux":
            held.close()  # elsewhere nobody could listen at it
        yield number


@asynccontextmanager
async def rig(
    folder: Path, fake: FakeOllama, target_port: int, known: bool = True, **variables: str
) -> AsyncIterator[Rig]:
    """Start the daemon as twistd would; `known`: wait until it has read the target's models."""
    before = _connections()
    service = build_service(
        reactor,
        {
            "FOREMAN_ADDR": "127.0.0.1:0",
            "FOREMAN_OLLAMA_URL": f"http://127.0.0.1:{target_port}",
            "FOREMAN_DB_PATH": str(folder / "foreman.db"),
            "FOREMAN_POLL_INTERVAL": "1h",
            "FOREMAN_STOP_GRACE": "1s",
            **{f"FOREMAN_{name.upper()}": text for name, text in variables.items()},
        },
    )
    service.startService()
    host, _, port = str(service._listener).rpartition(":")
    it = Rig(service, fake, (host, int(port)))
    globalLogPublisher.addObserver(it._watch)
    try:
        if known:
            await until(lambda: it.parts.inventory.known and not it.parts.inventory._polls._busy)
        yield it
    finally:
        fake.release()
        globalLogPublisher.removeObserver(it._watch)
        if service.running:
            await service.stopService()
        for call in it.calls:
            if call.transport is not None and not call.ended.called:
                call.leave()
        await until(lambda: all(call.ended.called for call in it.calls))
        await until(lambda: not _connections() - before, "every connection is closed")
        # A poll that was cut while a thread looked a name up ends with that.
        await until(lambda: not _timers(), "every delayed call is over")


def _connections() -> set[Any]:
    return {reader for reader in reactor.getReaders() if isinstance(reader, tcp.Connection)}


def _timers() -> list[str]:
    """All delayed calls but twisted.web's own clock for access logs, which the fake's listener keeps."""
    return [str(call) for call in reactor.getDelayedCalls() if "_updateLogDateTime" not in str(call)]
