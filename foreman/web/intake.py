"""
How requests come in: the request and the channel of twisted.web, with what foreman needs of them.

This is the only module that touches private names of twisted.web; ``tests/unit/test_intake_pins.py`` pins
them. twisted.web reads a whole body before anybody is asked, into memory or the system's temporary
folder without a limit; here the gate is asked first, and large bodies go beside the database.
"""

import errno
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any, cast

from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.server import Request

from foreman.errors import BodyTooLarge, DiskFull, ForemanError
from foreman.web.gate import Answer

if TYPE_CHECKING:
    from foreman.web.site import Site

# Up to here a body stays in memory.
_IN_MEMORY_BYTES = 1 << 20
# A slow reader of what is already written gets this long before its connection is reset.
_FLUSH_SECONDS = 300
# A client that was refused in the middle of its body gets this long to see the answer.
_LINGER_SECONDS = 5


class Intake(Request):
    """One request. `defaultContentType` is None: the relay adds nothing to the target's answer."""

    defaultContentType = None  # noqa: N815
    head_complete = False
    _early: Answer | None = None
    _body_limit: int | None = None
    _body_bytes = 0

    @property
    def _site(self) -> "Site":
        return cast("Channel", self.channel).site

    def gotLength(self, length: int | None) -> None:
        """The head is complete: ask the gate before anything is stored."""
        self.head_complete = True
        channel = cast(Any, self.channel)
        self.method, self.uri, self.clientproto = channel._command, channel._path, channel._version
        self.path = self.uri.partition(b"?")[0]
        verdict = self._site.gate.judge(self.method, self.path, self.requestHeaders, length)
        for name, value in verdict.headers:
            self.responseHeaders.addRawHeader(name, value)
        self._body_limit = verdict.body_limit
        self.content = BytesIO()
        if verdict.answer is not None:
            self._refuse(verdict.answer, has_body=length != 0)
        elif length is None or length > _IN_MEMORY_BYTES:
            self._open_spool(length or 0)

    def _open_spool(self, length: int) -> None:
        try:
            spool = self._site.spool
            if not spool.has_room(length):
                raise DiskFull(spool.folder)
            self.content = cast(IO[bytes], spool.open(_IN_MEMORY_BYTES))
        except (DiskFull, OSError):
            self._refuse_with(DiskFull(self._site.spool.folder))

    def handleContentChunk(self, data: bytes) -> None:
        """Store a piece of the body, unless the request was refused: then it is read and thrown away."""
        if self._early is not None:
            return
        self._body_bytes += len(data)
        if self._body_limit is not None and self._body_bytes > self._body_limit:
            self._refuse_with(BodyTooLarge(self._body_limit, "FOREMAN_BODY_LIMIT"))
            return
        try:
            cast(IO[bytes], self.content).write(data)
        except OSError as why:
            if why.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            self._refuse_with(DiskFull(self._site.spool.folder))

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
        if not has_body:
            return
        # twisted.web sends "100 Continue" after this returns, if the client asked for it.
        self.requestHeaders.removeHeader(b"expect")
        cast(Any, self.channel).persistent = False
        self.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        self._write_answer(answer)
        cast("Channel", self.channel).linger()

    def _write_answer(self, answer: Answer) -> None:
        self.setResponseCode(answer.status)
        for name, value in answer.headers:
            self.responseHeaders.addRawHeader(name, value)
        if answer.status != 204:
            self.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(answer.body)])
        self.write(answer.body)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The body is complete."""
        if self._early is None:
            super().requestReceived(command, path, version)
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
        Only the bytes of a body prove that a client goes on.

        A head has one limit as a whole: a byte a second would pass an idle timer for ever (slowloris).
        """
        if self.requests and self.requests[-1].head_complete:
            super().resetTimeout()

    @property
    def busy(self) -> bool:
        """A request is being received or answered."""
        return bool(self.requests)

    def cut(self) -> None:
        """Flush what was written, and close without ending the answer."""
        self._abort_later(_FLUSH_SECONDS)
        self.loseConnection()

    def linger(self) -> None:
        """Say that no more will be written, and read on until the client has seen it."""
        self._abort_later(_LINGER_SECONDS)
        if ITCPTransport.providedBy(self.transport):
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
