"""
One kept-alive connection to the target, and the few that wait for the next request.

The parser is httptools' (llhttp): it reports the target's chunks one by one, however TCP cut them,
so that one chunk from the target can be one chunk to the client.
"""

from collections.abc import Callable
from typing import BinaryIO, Protocol

import httptools
from attrs import define, field
from twisted.internet.interfaces import IStreamClientEndpoint, ITCPTransport
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.protocols.basic import FileSender
from twisted.python.failure import Failure

from foreman.errors import ForemanError, TargetFailed

# Most of a laptop's clients together; what comes back beyond it is closed.
_IDLE_LIMIT = 32
# A chunk goes on whole up to this size, and in pieces beyond it.
_WHOLE_CHUNK_BYTES = 256 * 1024


class Answer(Protocol):
    """Who receives an answer. Nothing is called after `ended` or `broke`."""

    def began(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """The head is complete; informational (1xx) heads are passed over."""

    def received(self, data: bytes) -> None:
        """One whole chunk of the target's, or a piece of a body that has none."""

    def ended(self) -> None:
        """The answer is complete."""

    def broke(self, error: ForemanError, unanswered: bool) -> None:
        """The connection ended before the answer did; `unanswered`: before a single byte of it."""


class _BodySender(FileSender):
    CHUNK_SIZE = 256 * 1024


class Connection(TwistedProtocol):
    """One connection; one request at a time."""

    _answer: Answer | None = None
    _parser: httptools.HttpResponseParser | None = None
    _sender: _BodySender | None = None

    def __init__(
        self, give_back: Callable[["Connection"], None], gone: Callable[["Connection"], None]
    ) -> None:
        self._give_back = give_back
        self._gone = gone

    def connectionMade(self) -> None:
        """Each token is a small packet of its own: nothing may wait for more to come."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)

    def send(self, head: bytes, body: bytes | BinaryIO, answer: Answer, *, has_body: bool) -> None:
        """
        Send one request, and report its answer.

        `has_body` is False for an answer to HEAD. A file is sent as the target takes it.
        """
        assert self.transport is not None
        self._answer = answer
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._reason = b""
        self._pieces: list[bytes] | None = None
        self._pieces_bytes = 0
        self._has_body = has_body
        self._until_eof = False
        self._keep_alive = False
        self._informational = False
        self._answered = False
        self._complete = False
        if isinstance(body, bytes):
            self.transport.write(head + body)
            return
        self.transport.write(head)
        self._sender = _BodySender()
        # A send that is cut short is seen as the end of the connection, or as an early answer.
        self._sender.beginFileTransfer(body, self.transport).addCallbacks(self._sent, lambda _: None)

    def _sent(self, _last: object) -> None:
        self._sender = None

    def abort(self) -> None:
        """Give the request up: the target's side is reset at once, and nothing more is reported."""
        self._answer = None
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]

    def pause(self) -> None:
        """Stop reading from the target."""
        if self.transport is not None:
            self.transport.pauseProducing()  # type: ignore[attr-defined]

    def resume(self) -> None:
        """Read on."""
        if self.transport is not None and self.connected:
            self.transport.resumeProducing()  # type: ignore[attr-defined]

    # What the transport reports

    def dataReceived(self, data: bytes) -> None:
        """Feed the parser; nothing but an answer is expected, so what else comes ends the connection."""
        if self._answer is None or self._parser is None:
            self.abort()
            return
        self._answered = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as why:
            if not self._complete:
                self._broke(f"the target answered what is not HTTP: {why}")
                return
            self._keep_alive = False
        # Given up meanwhile: the connection is on its way out, and must not be used again.
        if self._complete and self._answer is not None:
            self._ended()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """An answer without a length ends here; any other is broken."""
        self.connected = 0
        self._gone(self)
        if self._answer is None:
            return
        if self._until_eof and reason.check(type(connectionDone.value)):
            self._flush()
            self._ended()
        else:
            self._broke("the target closed the connection in the middle of its answer")

    def _ended(self) -> None:
        answer, self._answer = self._answer, None
        self._parser = None
        if self._keep_alive and self._sender is None and self.connected:
            self._give_back(self)
        elif self.connected:
            # An answer that came before the whole body was taken leaves the rest unsent.
            self.abort()
        if answer is not None:
            answer.ended()

    def _broke(self, sentence: str) -> None:
        answer, self._answer = self._answer, None
        self._parser = None
        if self.connected:
            self.abort()
        if answer is not None:
            answer.broke(TargetFailed(sentence), not self._answered)

    # What the parser reports; it swallows what these raise, so they only collect and pass on

    def on_message_begin(self) -> None:
        """A head begins; after a 1xx there is another."""
        if self._complete:
            # Nobody asked for another answer: what else this connection says is not to be trusted.
            self._keep_alive = False
        self._headers = []
        self._reason = b""

    def on_status(self, piece: bytes) -> None:
        """The reason phrase, in as many pieces as it was read in."""
        self._reason += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field; after the body these are trailers, which are dropped."""
        if self._pieces is None:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is complete."""
        if self._parser is None or self._answer is None or self._complete:
            return
        status = self._parser.get_status_code()
        self._informational = 100 <= status < 200
        if self._informational:
            return
        names = {name.lower() for name, _ in self._headers}
        framed = b"content-length" in names or b"transfer-encoding" in names
        self._until_eof = self._has_body and not framed and status not in (204, 304)
        # llhttp knows it now, and has forgotten it when the answer is complete.
        self._keep_alive = self._parser.should_keep_alive() and not self._until_eof
        self._answer.began(status, self._reason, self._headers)
        if not self._has_body:
            # llhttp would wait for the body that the Content-Length of an answer to HEAD speaks of.
            self._complete = True

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self._pieces = []
        self._pieces_bytes = 0

    def on_body(self, data: bytes) -> None:
        """A piece of the body: kept until its chunk is whole, or passed on."""
        if self._complete:
            self._keep_alive = False  # a body after an answer that has none
            return
        if self._answer is None:
            return
        if self._pieces is None:
            self._answer.received(data)
            return
        self._pieces.append(data)
        self._pieces_bytes += len(data)
        if self._pieces_bytes > _WHOLE_CHUNK_BYTES:
            self._flush()

    def on_chunk_complete(self) -> None:
        """A chunk is whole."""
        self._flush()

    def on_message_complete(self) -> None:
        """The answer is complete; what follows is done when the parser has returned."""
        if not self._informational:
            self._complete = True

    def _flush(self) -> None:
        if self._pieces and self._answer is not None:
            pieces, self._pieces, self._pieces_bytes = self._pieces, [], 0
            self._answer.received(pieces[0] if len(pieces) == 1 else b"".join(pieces))


@define
class Connections:
    """The idle connections to the one target."""

    _endpoint: IStreamClientEndpoint
    _idle: list[Connection] = field(factory=list)
    _open: set[Connection] = field(factory=set)
    _closed: bool = False

    def reusable(self) -> Connection | None:
        """The idle connection that was used last, or None."""
        return self._idle.pop() if self._idle else None

    async def connect(self) -> Connection:
        """A new connection. Raises what the endpoint raises, within the endpoint's own limit."""
        factory = Factory.forProtocol(lambda: Connection(self._give_back, self._gone))
        factory.noisy = False
        connection = await self._endpoint.connect(factory)
        assert isinstance(connection, Connection)
        self._open.add(connection)
        return connection

    def close(self) -> None:
        """Close what is idle now, and what is busy when it is done."""
        self._closed = True
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    def _give_back(self, connection: Connection) -> None:
        if self._closed or len(self._idle) >= _IDLE_LIMIT:
            connection.abort()
        else:
            self._idle.append(connection)

    def _gone(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
