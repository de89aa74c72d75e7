"""An HTTP server that a test scripts: it records what came, and holds, fails or breaks answers."""

import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ClassVar

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

JSON = "application/json; charset=utf-8"
BARE_JSON = "application/json"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
TEXT = "text/plain"


@define(eq=False)
class Exchange:
    """A request that came, and the way to its answer.

    :ivar at: the clock's seconds when it was there in full.
    :ivar over: whether its answer is finished, or broken off by the server itself.
    :ivar aborted_at: when its client left before that; ``None`` if it did not.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float
    request: Request = field(repr=False)
    over: bool = False
    aborted_at: float | None = None

    def reply(self, status: int, body: bytes, content_type: str = JSON) -> None:
        """Send a whole answer with its length; an empty one has no type."""
        self.request.setResponseCode(status)
        if body:
            self.request.setHeader(b"content-type", content_type.encode())
        self.request.setHeader(b"content-length", str(len(body)).encode())
        self.over = True
        self.request.write(body)
        self.request.finish()

    def break_off(self) -> None:
        """Close the connection after what was written, and without an end."""
        self.over = True
        self.request.channel.loseConnection()


@define
class Canned:
    """An answer that a test puts in the place of the real one; ``cut``: broken off after its body."""

    status: int
    body: bytes
    content_type: str = JSON
    cut: bool = False


class ConnectionBroken(Exception):
    """The script breaks the connection here."""


Handler = Callable[[Exchange], Awaitable[None]]


@define(eq=False)
class ScriptedServer:
    """Serves a table of routes under the script of a test.

    :ivar die_after: break the connection of the next streamed or generated answer after so many chunks.
    :ivar requests: every request that came, in order.
    """

    clock: IReactorTime
    die_after: int | None = field(default=None, kw_only=True)
    requests: list[Exchange] = field(factory=list, init=False)
    _canned: dict[str, list[Canned]] = field(factory=dict, init=False)
    _always: dict[str, Canned] = field(factory=dict, init=False)
    _held: set[str] = field(factory=set, init=False)
    _gates: list[tuple[str, Deferred[None]]] = field(factory=list, init=False)
    _log: ClassVar[Logger] = Logger()

    held_late: ClassVar[frozenset[str]] = frozenset()
    """The paths whose handlers call :meth:`gate` themselves."""

    def routes(self) -> dict[str, tuple[tuple[str, ...], Handler]]:
        """Return the methods (in the order of ``Allow``) and the handler of each path."""
        raise NotImplementedError

    def resource(self) -> Resource:
        """Return the resource that serves everything, for ``StubTreq``."""
        return _Surface(self)

    def site(self) -> Site:
        """Return a site for a real socket."""
        return Site(self.resource(), parsePOSTFormSubmission=False, reactor=self.clock, timeout=None)

    def answer(self, path: str, canned: Canned, times: int | None = 1) -> None:
        """Give this answer the next so many times, or (``None``) until :meth:`heal`."""
        if times is None:
            self._always[path] = canned
        else:
            self._canned.setdefault(path, []).extend([canned] * times)

    def fail(self, path: str, status: int, error: str = "out of luck", times: int | None = 1) -> None:
        """Answer with an error of Ollama's form."""
        self.answer(path, Canned(status, dump({"error": error})), times)

    def heal(self) -> None:
        """Forget every canned answer."""
        self._canned.clear()
        self._always.clear()

    def hold(self, *paths: str) -> None:
        """Hold back answers to these paths, or to all, until :meth:`release`: a silent server."""
        self._held.update(paths or ["*"])

    def release(self, *paths: str) -> None:
        """Hold these paths, or none at all, no more, and let their answers go on."""
        self._held = self._held - set(paths) if paths else set()
        gates, self._gates = self._gates, []
        for path, gate in gates:
            if self._is_held(path):
                self._gates.append((path, gate))
            else:
                gate.callback(None)

    def seen(self, path: str) -> list[Exchange]:
        """Return the requests to one path."""
        return [exchange for exchange in self.requests if exchange.path == path]

    @property
    def aborted(self) -> list[Exchange]:
        """The requests whose clients left before the end."""
        return [exchange for exchange in self.requests if exchange.aborted_at is not None]

    async def serve(self, exchange: Exchange) -> None:
        """Answer one request."""
        self.requests.append(exchange)
        try:
            await self._dispatch(exchange)
        except ConnectionBroken:
            exchange.break_off()

    async def _dispatch(self, exchange: Exchange) -> None:
        route = self.routes().get(exchange.path)
        if route is None:
            exchange.reply(404, b"404 page not found", TEXT)
            return
        methods, handler = route
        if exchange.method not in methods:
            exchange.request.setHeader(b"allow", ", ".join(methods).encode())
            exchange.reply(405, b"405 method not allowed", TEXT)
            return
        if exchange.path not in self.held_late:
            await self.gate(exchange.path)
        queue = self._canned.get(exchange.path)
        canned = queue.pop(0) if queue else self._always.get(exchange.path)
        if canned is None:
            await handler(exchange)
        elif canned.cut:
            exchange.request.setResponseCode(canned.status)
            exchange.request.setHeader(b"content-length", str(len(canned.body) + 1).encode())
            exchange.request.write(canned.body)
            raise ConnectionBroken
        else:
            exchange.reply(canned.status, canned.body, canned.content_type)

    async def gate(self, path: str) -> None:
        """Wait here while the test holds this path."""
        if self._is_held(path):
            gate: Deferred[None] = Deferred()
            self._gates.append((path, gate))
            try:
                await gate
            finally:
                self._gates = [(held, other) for held, other in self._gates if other is not gate]

    def _is_held(self, path: str) -> bool:
        return bool(self._held & {path, "*"})

    async def stream(
        self, exchange: Exchange, content_type: str, chunks: Iterable[bytes], interval: float
    ) -> None:
        """Send each piece as one chunk, so many seconds apart, and break off where the test wants it."""
        exchange.request.setHeader(b"content-type", content_type.encode())
        limit, self.die_after = self.die_after, None
        for number, chunk in enumerate(chunks):
            if number == limit:
                raise ConnectionBroken
            if number:
                await self.sleep(interval)
            exchange.request.write(chunk)
        exchange.over = True
        exchange.request.finish()

    async def work(self, seconds: float) -> None:
        """Take the time of an answer that has no byte before its end, or break off instead."""
        limit, self.die_after = self.die_after, None
        if limit is not None:
            raise ConnectionBroken
        await self.sleep(seconds)

    async def sleep(self, seconds: float) -> None:
        """Wait on the clock; not even a turn of it for 0."""
        if seconds:
            await deferLater(self.clock, seconds)


class _Surface(Resource):
    """Everything under the root."""

    isLeaf = True  # noqa: N815 - twisted.web's name
    _log = Logger()

    def __init__(self, script: ScriptedServer) -> None:
        super().__init__()
        self.script = script

    def render(self, request: Request) -> int:
        # twisted.web's own, which Ollama does not send.
        request.responseHeaders.removeHeader(b"server")
        request.responseHeaders.removeHeader(b"content-type")
        headers = {
            name.decode("latin-1").lower(): b", ".join(values).decode("latin-1")
            for name, values in request.requestHeaders.getAllRawHeaders()
        }
        exchange = Exchange(
            method=request.method.decode("latin-1"),
            path=request.path.decode("latin-1"),
            headers=headers,
            body=request.content.read() if request.content else b"",
            at=self.script.clock.seconds(),
            request=request,
        )
        gone = request.notifyFinish()
        work = Deferred.fromCoroutine(self.script.serve(exchange))

        def left(_: object) -> None:
            if not exchange.over:
                exchange.aborted_at = self.script.clock.seconds()
            work.cancel()

        gone.addErrback(left)
        work.addErrback(lambda failure: None if failure.check(CancelledError) else failure)
        work.addErrback(lambda failure: self._log.failure("the fake failed", failure))
        return NOT_DONE_YET


def dump(value: Any) -> bytes:
    """Write JSON as Go does: no spaces, keys in the order given."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
