"""
A target that answers with recorded bytes: the strictest witness of what a relay does to them.

It is no HTTP server: what it sends is what was recorded, head and framing included, however a test wants
it cut, delayed or broken off.
"""

from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from attrs import define, evolve, field, frozen
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

_END_OF_HEAD = b"\r\n\r\n"
_UNMATCHED = b"HTTP/1.1 599 Not Recorded\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@frozen
class Recording:
    """One recorded exchange; `request` and `response` are whole, as they were on the wire."""

    name: str
    request: bytes
    response: bytes

    @classmethod
    def read(cls, folder: Path, name: str) -> "Recording":
        """Read ``NAME.request`` and ``NAME.response`` in `folder`."""
        return cls(
            name, (folder / f"{name}.request").read_bytes(), (folder / f"{name}.response").read_bytes()
        )

    @property
    def key(self) -> tuple[bytes, bytes, bytes]:
        """Method, request target and body: what a request is recognised by."""
        head, body = split_head(self.request)
        method, target, _ = head.split(b"\r\n", 1)[0].split(b" ", 2)
        return method, target, body

    def kept_alive(self) -> "Recording":
        """The same exchange, on a connection that stays open after it."""
        head, body = split_head(self.response)
        lines = [line for line in head.split(b"\r\n") if line.lower() != b"connection: close"]
        return evolve(self, response=b"\r\n".join(lines) + body)


class Ending(Enum):
    """What becomes of the connection when the bytes are sent."""

    AS_RECORDED = "closed if the answer says Connection: close"
    CLOSE = "closed (FIN)"
    RESET = "reset (RST)"
    SILENCE = "left open, and silent"


Cut = Callable[[bytes], Sequence[bytes]]
"""How an answer is cut into writes."""


def whole(answer: bytes) -> Sequence[bytes]:
    """One write."""
    return [answer]


def every_byte(answer: bytes) -> Sequence[bytes]:
    """One write for each byte."""
    return [answer[at : at + 1] for at in range(len(answer))]


def after(count: int) -> Cut:
    """Two writes: `count` bytes, and the rest."""
    return lambda answer: [answer[:count], answer[count:]]


def by_chunk(answer: bytes) -> Sequence[bytes]:
    """One write for the head and one for each chunk, as Ollama flushes; an unchunked body is one write."""
    head, body = split_head(answer)
    writes = [head]
    if b"\r\ntransfer-encoding: chunked\r\n" not in head.lower():
        return [*writes, body]
    at = 0
    while at < len(body):
        data = body.index(b"\r\n", at) + 2
        end = data + int(body[at : data - 2], 16) + 2
        writes.append(body[at:end])
        at = end
    return writes


def split_head(message: bytes) -> tuple[bytes, bytes]:
    """The head with its empty line, and the body."""
    end = message.index(_END_OF_HEAD) + len(_END_OF_HEAD)
    return message[:end], message[end:]


@define(eq=False)
class Received:
    """
    One request that came: its head, its body, and the number of its connection, counted from 1.

    `left_at` is when the other side ended the connection before the answer was complete, else None.
    """

    head: bytes
    body: bytes
    connection: int
    left_at: float | None = None

    @property
    def key(self) -> tuple[bytes, bytes, bytes]:
        """Method, request target and body."""
        method, target, _ = self.head.split(b"\r\n", 1)[0].split(b" ", 2)
        return method, target, self.body

    def header(self, name: bytes) -> list[bytes]:
        """The values of one field."""
        lines = (line.partition(b":") for line in self.head.split(b"\r\n")[1:])
        return [value.strip() for key, _, value in lines if key.lower() == name.lower()]


@define(eq=False)
class ReplayTarget:
    """
    Serves recordings; everything public may be changed while it runs.

    `cut` says how an answer is cut into writes; each goes out by itself and is read by itself, after a turn
    of the reactor or `delay` seconds. `stop_after` bytes of an answer are sent (None: all), and then comes
    the `ending`. From its request number `dies_at_request` on, counted from 1, a connection is closed
    instead of answered. A request that was not recorded is answered 599 and stands in `unmatched`.
    """

    clock: IReactorTime
    recordings: Sequence[Recording]
    cut: Cut = whole
    delay: float = 0.0
    stop_after: int | None = None
    ending: Ending = Ending.AS_RECORDED
    dies_at_request: int | None = None
    received: list[Received] = field(factory=list, init=False)
    unmatched: list[Received] = field(factory=list, init=False)
    connections: int = field(default=0, init=False)
    sent_bytes: int = field(default=0, init=False)  # taken by the sockets, but for their buffers
    open: "set[_Connection]" = field(factory=set, init=False)

    def factory(self) -> "Factory[_Connection]":
        """What listens."""
        factory: Factory[_Connection] = Factory.forProtocol(lambda: _Connection(self))
        factory.noisy = False
        return factory

    @property
    def held(self) -> bool:
        """Whether an answer waits because the other side does not read."""
        return any(connection.paused for connection in self.open)

    def drop(self) -> None:
        """Reset every open connection."""
        for connection in list(self.open):
            connection.end(Ending.RESET)

    def answer(self, received: Received) -> bytes:
        """The recorded answer to a request."""
        for recording in self.recordings:
            if recording.key == received.key:
                return recording.response
        self.unmatched.append(received)
        return _UNMATCHED


@implementer(IPushProducer)
class _Connection(Protocol):
    def __init__(self, target: ReplayTarget) -> None:
        self._target = target
        self._data = b""
        self._count = 0
        self._current: Received | None = None
        self._writes: deque[bytes] = deque()
        self._ending = Ending.AS_RECORDED
        self._next: IDelayedCall | None = None
        self.paused = False

    def connectionMade(self) -> None:
        """Each write is a packet of its own."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self._target.connections += 1
        self._number = self._target.connections
        self._target.open.add(self)

    def dataReceived(self, data: bytes) -> None:
        """Answer when a request is whole; a length is the only framing that is known here."""
        self._data += data
        if _END_OF_HEAD not in self._data:
            return
        head, body = split_head(self._data)
        received = Received(head, body, self._number)
        lengths = received.header(b"content-length")
        length = int(lengths[0]) if lengths else 0
        if len(body) < length or self._current is not None:
            return
        received.body, self._data = body[:length], body[length:]
        self._count += 1
        self._current = received
        self._target.received.append(received)
        self._begin(received)

    def _begin(self, received: Received) -> None:
        target = self._target
        if target.dies_at_request is not None and self._count >= target.dies_at_request:
            self.end(Ending.CLOSE)
            return
        answer = target.answer(received)
        self._ending = target.ending
        if target.ending is Ending.AS_RECORDED and _says_close(answer):
            self._ending = Ending.CLOSE
        self._writes = deque(write for write in target.cut(answer[: target.stop_after]) if write)
        self._transport.registerProducer(self, True)
        self._wait()

    @property
    def _transport(self) -> Any:
        return self.transport

    def _go_on(self) -> None:
        self._next = None
        if self.paused:
            return
        if self._writes:
            write = self._writes.popleft()
            self._target.sent_bytes += len(write)
            self._transport.write(write)
            self._wait()
        else:
            self.end(self._ending)

    def _wait(self) -> None:
        clock, delay = self._target.clock, self._target.delay
        if delay:
            self._next = clock.callLater(delay, self._go_on)
        else:
            # A write goes out in its own turn, and is read in the next one: one turn between two writes, or
            # a reader in the same process would find both.
            self._next = clock.callLater(0, self._wait_once_more)

    def _wait_once_more(self) -> None:
        self._next = self._target.clock.callLater(0, self._go_on)

    def pauseProducing(self) -> None:
        """The other side does not keep up."""
        self.paused = True

    def resumeProducing(self) -> None:
        """It has caught up."""
        self.paused = False
        if self._next is None:
            self._go_on()

    def stopProducing(self) -> None:
        """It has gone: `connectionLost` follows."""

    def end(self, ending: Ending) -> None:
        """End the answer in this way."""
        if ending is Ending.SILENCE:
            return
        self._current = None
        self._transport.unregisterProducer()
        if ending is Ending.CLOSE:
            self._transport.loseConnection()
        elif ending is Ending.RESET:
            self._transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Whoever ended it."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._current is not None:
            self._current.left_at = self._target.clock.seconds()
        self._target.open.discard(self)


def _says_close(answer: bytes) -> bool:
    head, _, _ = answer.lower().partition(_END_OF_HEAD)
    return b"\r\nconnection: close" in head
