"""A receiver of webhooks that a test scripts: it records what came, and answers in good ways and bad."""

import enum
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IPullProducer, IReactorTime, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer


def response(status: int = 200, body: bytes = b"", *headers: tuple[str, str]) -> bytes:
    """A whole answer, with its length."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in headers)]
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class After(enum.Enum):
    """What becomes of the connection after an answer."""

    KEEP = enum.auto()
    CLOSE = enum.auto()
    RESET = enum.auto()


@frozen
class Answer:
    """
    What is written after a request: the pieces, so many seconds apart, and no faster than they are taken.

    No pieces: silence. The pieces may be endless.
    """

    pieces: Iterable[bytes] = (response(),)
    interval_seconds: float = 0.0
    after: After = After.KEEP


SILENCE = Answer(())


@frozen
class Received:
    """A request that came. `connection` counts the receiver's connections from 1; `at` is its clock's."""

    connection: int
    method: str
    target: str
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    at: float

    def header(self, name: str) -> str | None:
        """The value of a header, or None; several are joined."""
        wanted = name.lower().encode("ascii")
        found = [value for given, value in self.headers if given.lower() == wanted]
        return b", ".join(found).decode("latin-1") if found else None


Script = Callable[[Received], Answer]


@define(eq=False, slots=False)
class Receiver(Factory):
    """
    An HTTP/1.1 server, as a factory for any port.

    Answers that were put into the queue are given first, each once; then `script` decides, which answers
    200 to everything when nothing else is said.
    """

    clock: IReactorTime
    script: Script = lambda _: Answer()
    requests: list[Received] = field(factory=list)
    queue: list[Answer] = field(factory=list)
    connections: int = 0
    """How many were accepted so far."""
    open: "set[ReceiverConnection]" = field(factory=set)
    written_bytes: int = 0
    _waiting: "list[tuple[Callable[[], bool], Deferred[None]]]" = field(factory=list)

    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> "ReceiverConnection":
        """Called by the port."""
        self.connections += 1
        return ReceiverConnection(self, self.connections)

    def answer(self, *answers: Answer) -> None:
        """Give these to the next requests."""
        self.queue.extend(answers)

    async def until(self, condition: Callable[["Receiver"], bool]) -> None:
        """Wait until this holds; it is looked at whenever something comes or a connection begins or ends."""
        if not condition(self):
            waiting: Deferred[None] = Deferred()
            self._waiting.append((lambda: condition(self), waiting))
            await waiting

    async def stop(self) -> None:
        """Close all connections; the port is whoever's opened it."""
        for connection in list(self.open):
            connection.reset()
        await self.until(lambda receiver: not receiver.open)

    def came(self, request: Received) -> Answer:
        """Called by a connection: what is answered."""
        self.requests.append(request)
        answer = self.queue.pop(0) if self.queue else self.script(request)
        self.changed()
        return answer

    def changed(self) -> None:
        """Called by a connection when there is something to look at."""
        if not self._waiting:
            return
        for condition, waiting in list(self._waiting):
            if condition():
                self._waiting.remove((condition, waiting))
                waiting.callback(None)


class ReceiverConnection(Protocol):
    """One connection: one request after another."""

    def __init__(self, receiver: Receiver, number: int) -> None:
        self._receiver = receiver
        self._number = number
        self._buffer = b""
        self._answering: _Answering | None = None

    def connectionMade(self) -> None:
        """It begins."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self._receiver.open.add(self)
        self._receiver.changed()

    def dataReceived(self, data: bytes) -> None:
        """A piece of a request."""
        self._buffer += data
        if self._answering is None:
            self._next()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It ended."""
        if self._answering is not None:
            self._answering.stop()
        self._receiver.open.discard(self)
        self._receiver.changed()

    def close(self) -> None:
        """Close in good order."""
        if self.transport is not None:
            self.transport.loseConnection()

    def reset(self) -> None:
        """Break it off: the other side sees a reset, not an end."""
        transport: Any = self.transport
        if transport is None:
            return
        handle = transport.getHandle()
        if isinstance(handle, socket.socket):
            # Closed with a linger of 0 seconds it is reset; under TLS only the connection ends.
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abortConnection()

    def _next(self) -> None:
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        first, *lines = head.split(b"\r\n")
        method, target, _ = first.decode("latin-1").split(" ", 2)
        headers = []
        length = 0
        for line in lines:
            name, _, value = line.partition(b":")
            headers.append((name, value.strip()))
            if name.lower() == b"content-length":
                length = int(value)
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        received = Received(
            self._number, method, target, headers, rest[:length], self._receiver.clock.seconds()
        )
        answer = self._receiver.came(received)
        if isinstance(answer.pieces, tuple) and len(answer.pieces) == 1 and answer.after is After.KEEP:
            self.write(answer.pieces[0])
        else:
            self._answering = _Answering(self, answer, self._receiver.clock)
            self._answering.start()

    def write(self, piece: bytes) -> None:
        """Send a piece of an answer."""
        self._receiver.written_bytes += len(piece)
        if self.transport is not None:
            self.transport.write(piece)

    def answered(self, after: After) -> None:
        """The answer is written."""
        self._answering = None
        if after is After.CLOSE:
            self.close()
        elif after is After.RESET:
            self.reset()
        elif self._buffer:
            self._next()


@implementer(IPullProducer)
class _Answering:
    """Writes the pieces of one answer."""

    def __init__(self, connection: ReceiverConnection, answer: Answer, clock: IReactorTime) -> None:
        self._connection = connection
        self._pieces: Iterator[bytes] = iter(answer.pieces)
        self._answer = answer
        self._clock = clock
        self._call: IDelayedCall | None = None
        self._over = False

    def start(self) -> None:
        """Begin."""
        if self._answer.interval_seconds:
            self._tick()
        else:
            # The transport asks for a piece whenever it has sent the last one.
            transport: Any = self._connection.transport
            transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """Called by the transport for the next piece."""
        piece = next(self._pieces, None)
        if piece is not None:
            self._connection.write(piece)
        elif not self._over:
            self._over = True
            transport: Any = self._connection.transport
            transport.unregisterProducer()
            self._connection.answered(self._answer.after)

    def stopProducing(self) -> None:
        """Called by the transport when the other side is gone."""
        self.stop()

    def stop(self) -> None:
        """Write no more."""
        self._over = True
        if self._call is not None and self._call.active():
            self._call.cancel()

    def _tick(self) -> None:
        piece = next(self._pieces, None)
        if piece is None:
            self._connection.answered(self._answer.after)
            return
        self._connection.write(piece)
        self._call = self._clock.callLater(self._answer.interval_seconds, self._tick)
