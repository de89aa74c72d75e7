"""
How requests come in: the request and the channel of twisted.web, with what foreman needs of them.

This is the only module that touches private names of twisted.web; ``tests/unit/test_intake_pins.py`` pins
them. twisted.web reads a whole body before anybody is asked, into memory or the system's temporary
folder without a limit; here the gate is asked first, and large bodies go beside the database.
"""

import errno
import re
from contextlib import suppress
from http import HTTPStatus
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any, cast

from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import RESPONSES, HTTPChannel, datetimeToString
from twisted.web.server import Request

from foreman.errors import BodyTooLarge, DiskFull, ForemanError
from foreman.web.gate import Answer

if TYPE_CHECKING:
    from foreman.web.site import Site

# Up to here a body stays in memory.
_IN_MEMORY_BYTES = 1 << 20
# A body on disk asks for room again after this much: others write to the same disk meanwhile.
_ROOM_STEP_BYTES = 16 << 20
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# A slow reader of what is already written gets this long before its connection is reset.
_FLUSH_SECONDS = 300
# A client that was refused in the middle of its body gets this long to see the answer.
_LINGER_SECONDS = 5
# RFC 9112 §3.2.2: a server accepts the form that clients send to a proxy, and its host is the Host.
_ABSOLUTE_FORM = re.compile(rb"https?://([^/?]+)(.*)", re.IGNORECASE)
# As Go answers a request target that is none.
_PHRASES = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
_BAD_TARGET = Answer(400, [(b"Content-Type", b"text/plain; charset=utf-8")], b"400 Bad Request")


class Intake(Request):
    """One request. `defaultContentType` is None: the relay adds nothing to the target's answer."""

    defaultContentType = None  # noqa: N815
    head_complete = False
    _early: Answer | None = None
    _body_limit: int | None = None
    _body_bytes = 0
    # There is room for so much of the body.
    _room_bytes = _IN_MEMORY_BYTES
    _intake_log = Logger()

    @property
    def _site(self) -> "Site":
        return cast("Channel", self.channel).site

    def getRequestHostname(self) -> bytes:
        """Asked by Klein, whose router fails for what is no name. No route depends on it."""
        return b"foreman"

    def setResponseCode(self, code: int, message: bytes | None = None) -> None:
        """Also with the phrases that twisted.web does not know, such as those of 422 and 429."""
        super().setResponseCode(code, message or RESPONSES.get(code) or _PHRASES.get(code))

    def gotLength(self, length: int | None) -> None:
        """The head is complete: ask the gate before anything is stored."""
        self.head_complete = True
        self.content = BytesIO()
        channel = cast("Channel", self.channel)
        channel.resetTimeout()  # the body has its own time
        self.method, self.uri, self.clientproto = channel.request_line()
        if match := _ABSOLUTE_FORM.fullmatch(self.uri):
            self.requestHeaders.setRawHeaders(b"host", [match[1]])
            self.uri = match[2] if match[2].startswith(b"/") else b"/" + match[2]
        self.path = self.uri.partition(b"?")[0]
        if not self.path.startswith(b"/") and (self.method, self.path) != (b"OPTIONS", b"*"):
            self._refuse(_BAD_TARGET, has_body=length != 0)
            return
        verdict = self._site.gate.judge(self.method, self.path, self.requestHeaders, length)
        for name, value in verdict.headers:
            self.responseHeaders.addRawHeader(name, value)
        self._body_limit = verdict.body_limit
        if verdict.answer is not None:
            self._refuse(verdict.answer, has_body=length != 0)
        elif length is not None and length > _IN_MEMORY_BYTES:
            try:
                self._need_room(length)
            except (DiskFull, OSError) as why:
                self._cannot_store(why)

    def handleContentChunk(self, data: bytes) -> None:
        """Store a piece of the body, unless the request was refused: then it is read and thrown away."""
        if self._early is not None:
            return
        self._body_bytes += len(data)
        if self._body_limit is not None and self._body_bytes > self._body_limit:
            self._refuse_with(BodyTooLarge(self._body_limit, self._site.gate.body_setting(self.path)))
            return
        try:
            if self._body_bytes > self._room_bytes:
                self._need_room(_ROOM_STEP_BYTES)
                self._room_bytes = self._body_bytes + _ROOM_STEP_BYTES
                if isinstance(self.content, BytesIO):
                    in_memory, self.content = self.content, cast(BytesIO, self._site.spool.open())
                    self.content.write(in_memory.getvalue())
            cast(IO[bytes], self.content).write(data)
        except (DiskFull, OSError) as why:
            self._cannot_store(why)

    def _need_room(self, size_bytes: int) -> None:
        spool = self._site.spool
        if not spool.has_room(size_bytes):
            raise DiskFull(spool.folder)

    def _cannot_store(self, why: Exception) -> None:
        if isinstance(why, DiskFull) or (isinstance(why, OSError) and why.errno in _NO_ROOM):
            self._refuse_with(DiskFull(self._site.spool.folder))
            return
        self._intake_log.failure("the body of a request to {path} cannot be stored", path=self.path)
        self._refuse_with(ForemanError("something went wrong inside foreman; its log says what"))

    def _refuse_with(self, error: ForemanError) -> None:
        self._refuse(self._site.gate.error(self.path, error), has_body=True)

    def _refuse(self, answer: Answer, *, has_body: bool) -> None:
        """
        Answer before the body is there.

        A request without a body is answered when twisted.web hands it on. With one, the answer goes out
        now, and the connection ends after it: what the client still sends is thrown away for a while,
        because closing at once would reset the connection and lose the answer on its way.
        """
        self._early = answer
        stored, self.content = self.content, BytesIO()
        with suppress(OSError):  # what cannot be flushed cannot be closed in peace
            cast(IO[bytes], stored).close()
        # twisted.web sends "100 Continue" after this returns, if the client asked for it.
        self.requestHeaders.removeHeader(b"expect")
        if not has_body:
            return
        cast(Any, self.channel).persistent = False
        self.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        self._write_answer(answer)
        cast("Channel", self.channel).linger()

    def _write_answer(self, answer: Answer) -> None:
        self.setResponseCode(answer.status)
        self.responseHeaders.setRawHeaders(b"Date", [datetimeToString()])
        for name, value in answer.headers:
            self.responseHeaders.addRawHeader(name, value)
        if answer.status != 204:
            self.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(answer.body)])
        self.write(answer.body)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The body is complete."""
        if self._early is None:
            try:
                cast(IO[bytes], self.content).flush()
            except OSError as why:
                self._cannot_store(why)
        if self._early is None:
            super().requestReceived(command, self.uri, version)
            return
        if not self.startedWriting:
            self._write_answer(self._early)
        self.finish()

    def process(self) -> None:
        """Hand the request on: to foreman's own resources, or to the relay, past Klein's router."""
        site = self._site
        if site.gate.is_own(self.path):
            super().process()
        else:
            site.native.handle(self)


class Channel(HTTPChannel):
    """One connection of a client."""

    site: "Site"
    # twisted.web's own 15 s would cut a slow reader in the middle of what is written already.
    abortTimeout = _FLUSH_SECONDS  # noqa: N815
    _head_begun = False

    def connectionMade(self) -> None:
        """Find out about clients that vanished: a chat may wait here for long without a byte."""
        super().connectionMade()
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpKeepAlive(True)
        self.site.channels.add(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget the connection."""
        self.site.channels.discard(self)
        super().connectionLost(reason)
        self.site.channel_gone()

    def resetTimeout(self) -> None:
        """
        Only the first byte of a head, its end, and the bytes of a body prove that a client goes on.

        A head has one limit as a whole: a byte a second would pass an idle timer for ever (slowloris).
        """
        in_head = not (self.requests and self.requests[-1].head_complete)
        if in_head and self._head_begun:
            return
        self._head_begun = in_head
        super().resetTimeout()

    def headerReceived(self, line: bytes) -> bool:
        """Whether a header field is valid; if not, the answer was 400."""
        try:
            return bool(super().headerReceived(line))
        except ValueError:
            # A Content-Length of thousands of digits: Python does not convert those, and says so by this.
            self._respondToBadRequestAndDisconnect()
            return False

    def lineLengthExceeded(self, line: bytes) -> None:
        """A line of the head is over 16 KiB: 400 as for a whole head, where twisted.web says nothing."""
        self._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        if self.requests and self.requests[-1].startedWriting:
            self.loseConnection()  # refused already; what is malformed now is the rest of its body
        else:
            super()._respondToBadRequestAndDisconnect()

    def request_line(self) -> tuple[bytes, bytes, bytes]:
        """Method, target and version of the request whose head is complete."""
        return self._command, self._path, self._version

    @property
    def busy(self) -> bool:
        """A request is being received or answered."""
        return bool(self.requests)

    def loseConnection(self) -> None:
        """Flush and close; a client that takes nothing more is reset, or its buffer would stay for ever."""
        if self in self.site.channels:
            self._abort_later(_FLUSH_SECONDS)
        super().loseConnection()

    def linger(self) -> None:
        """Say that no more will be written, and read on until the client has seen it."""
        # Else the idle timer, when it is the shorter one, would close at once.
        self.setTimeout(None)
        self._abort_later(_LINGER_SECONDS)
        # TLS has no half of a connection: there the client goes by the answer's length.
        if ITCPTransport.providedBy(self.transport) and not self.isSecure():
            self.transport.loseWriteConnection()

    def abort(self) -> None:
        """Reset the connection."""
        cast(ITCPTransport, self.transport).abortConnection()

    def _abort_later(self, seconds: float) -> None:
        if self._abortingCall is None:
            self._abortingCall = self.callLater(seconds, self._abort_now)

    def _abort_now(self) -> None:
        self._abortingCall = None
        self.abort()
