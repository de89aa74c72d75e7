"""A client that sees the wire as it is, with a parser of its own: strict, and not the relay's."""

import json
from collections import deque
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

LIMIT_SECONDS = 20


@define
class Answer:
    """
    One answer; names of headers are as they came.

    `chunks`: the chunks of the framing, or for any other body the one whole of it. `complete` is False when
    the connection ended before its end; `rest` is what had come of a chunk that is not whole.
    """

    version: bytes
    status: int
    reason: bytes
    headers: list[tuple[bytes, bytes]]
    chunks: list[bytes] = field(factory=list)
    complete: bool = False
    rest: bytes = b""

    def header(self, name: bytes) -> bytes | None:
        """The one value of a field; None when it is not there."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) < 2, f"{name!r} came {len(values)} times"
        return values[0] if values else None

    @property
    def chunked(self) -> bool:
        return self.header(b"transfer-encoding") == b"chunked"

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def parse(data: bytes, head_only: bool, closed: bool) -> tuple[Answer | None, bytes]:
    """
    The first answer in `data`, and what follows it; None while its head is not whole.

    With a Content-Length an unfinished body is in `rest`. Fails on what is not HTTP/1.1.
    """
    head, end, after = data.partition(b"\r\n\r\n")
    if not end:
        return None, data
    first, *lines = head.split(b"\r\n")
    version, code, reason = first.split(b" ", 2)
    assert version in (b"HTTP/1.1", b"HTTP/1.0"), first
    headers = []
    for line in lines:
        name, colon, value = line.partition(b": ")
        assert colon, line
        headers.append((name, value))
    answer = Answer(version, int(code), reason, headers)
    length = answer.header(b"content-length")
    if head_only or answer.status in (204, 304):
        answer.complete = True
    elif answer.chunked:
        assert length is None
        after = _read_chunks(answer, after)
    elif length is not None:
        answer.complete = len(after) >= int(length)
        body, after = after[: int(length)], after[int(length) :]
        if answer.complete:
            answer.chunks = [body]
        else:
            answer.rest = body
    else:
        answer.chunks, answer.complete, after = [after], closed, b""
    return answer, after


def _read_chunks(answer: Answer, data: bytes) -> bytes:
    while True:
        size, end, after = data.partition(b"\r\n")
        if not end:
            answer.rest = data
            return b""
        count = int(size, 16)
        if len(after) < count + 2:
            answer.rest = data
            return b""
        assert after[count : count + 2] == b"\r\n"
        chunk, data = after[:count], after[count + 2 :]
        if not count:
            answer.complete = True
            return data
        answer.chunks.append(chunk)


class RawClient(Protocol):
    """One connection. Whatever is awaited has a limit of `LIMIT_SECONDS`."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._heads: deque[bool] = deque()
        self._waiters: list[Deferred[None]] = []
        self.data = b""
        self._pieces: list[bytes] = []
        self.lost: Failure | None = None

    @property
    def _wire(self) -> Any:
        return self.transport

    def send(self, request: bytes) -> None:
        """Send one whole request."""
        self._heads.append(request.startswith(b"HEAD "))
        self._wire.write(request)

    async def answer(self) -> Answer:
        """The next answer: whole, or as far as it came when the connection ended."""
        while True:
            answer, after = self._peek()
            if answer is not None and (answer.complete or self.lost is not None):
                self._heads.popleft()
                self.data = after
                return answer
            assert self.lost is None, f"closed without an answer: {self.lost} {self.data!r}"
            await self._change()

    async def begun(self, chunks: int = 0) -> Answer:
        """The next answer as it is when its head and so many chunks are there; it is not taken."""
        while True:
            answer, _ = self._peek()
            if answer is not None and len(answer.chunks) >= chunks:
                return answer
            assert self.lost is None, f"closed too early: {self.lost} {self.data!r}"
            await self._change()

    async def closed(self) -> Failure:
        """Wait for the end of the connection, and say how it ended."""
        while self.lost is None:
            await self._change()
        return self.lost

    def pause(self) -> None:
        """Read no more."""
        self._wire.pauseProducing()

    def resume(self) -> None:
        """Read on."""
        self._wire.resumeProducing()

    def leave(self) -> None:
        """Reset the connection."""
        self._wire.abortConnection()

    def close(self) -> None:
        """Close the connection."""
        self._wire.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        self._pieces.append(data)
        self._tell()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason
        self._tell()

    def _peek(self) -> tuple[Answer | None, bytes]:
        pieces, self._pieces = self._pieces, []
        self.data = b"".join([self.data, *pieces])
        return parse(self.data, self._heads[0], self.lost is not None)

    def _tell(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)

    async def _change(self) -> None:
        waiter: Deferred[None] = Deferred()
        self._waiters.append(waiter)
        waiter.addTimeout(LIMIT_SECONDS, self._clock)
        await waiter


async def connect(clock: Any, port: int) -> RawClient:
    """A new connection."""
    client = RawClient(clock)
    await connectProtocol(TCP4ClientEndpoint(clock, "127.0.0.1", port, timeout=5), client)
    return client


async def ask(clock: Any, port: int, request: bytes) -> Answer:
    """One exchange on a connection of its own."""
    client = await connect(clock, port)
    client.send(request)
    answer = await client.answer()
    client.close()
    await client.closed()
    return answer


def post(path: str, body: object, *headers: str) -> bytes:
    """A POST; `body` is written as JSON unless it is bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(data)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    """A request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers]).encode() + b"\r\n\r\n"
