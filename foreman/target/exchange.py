"""One answer on its way from the target to a client: its limits, its pace, and how it ends."""

from typing import BinaryIO

from attrs import define, evolve, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.web.http import Request
from zope.interface import implementer

from foreman.errors import ForemanError, TargetTimeout
from foreman.quantities import format_size
from foreman.target.caller import break_off, caller_of
from foreman.target.connection import Connection
from foreman.target.dialects import (
    NDJSON,
    SSE,
    ends_whole,
    last_words,
    media_type,
    refusal,
    words_of_refusal,
)
from foreman.target.heartbeat import Heartbeat
from foreman.target.hops import HOP_BY_HOP, connection_tokens
from foreman.target.task import Outcome, Task
from foreman.target.watch import RunLimits, Watch

_STREAMS = (NDJSON, SSE)
# An answer that surely fits into the client's socket needs no back-pressure.
_SMALL_ANSWER_BYTES = 64 * 1024
# So much is kept of a target's error for the last words of a stream.
_REFUSAL_BYTES = 64 * 1024


def _ran_too_long(limit: str) -> TargetTimeout:
    return TargetTimeout(f"the generation was cut after {limit}, the limit of FOREMAN_RUN_TIMEOUT")


@implementer(IPushProducer)
@define(eq=False)
class Exchange:
    """
    One request on one connection: an Answer to the connection, a producer to the client.

    The limits of its first byte and of silence are for answers that stream, and for those that do not hold
    the turn; that of the run is for whatever holds it. `buffer` is how many bytes a client may fall behind
    its turn.
    """

    clock: IReactorTime
    request: Request
    task: Task
    limits: RunLimits
    buffer: int
    running: set["Exchange"]
    connection: Connection | None = field(default=None, init=False)
    done: Deferred[bool] | None = field(default=None, init=False)
    outcome: Outcome = field(factory=lambda: Outcome(0, 0), init=False)
    content_type: bytes = field(default=b"", init=False)
    streaming: bool = field(default=False, init=False)
    tail: bytes = field(default=b"", init=False)
    watch: Watch = field(init=False)
    producing: bool = field(default=False, init=False)
    client_paused: bool = field(default=False, init=False)
    behind_bytes: int = field(default=0, init=False)
    refused_status: int | None = field(default=None, init=False)  # the target's, when its body is collected
    refused_body: bytearray = field(factory=bytearray, init=False)

    def __attrs_post_init__(self) -> None:
        limits = self.limits if self.task.grant is not None else evolve(self.limits, run=0.0)
        self.watch = Watch(self.clock, limits, _ran_too_long, self.fail, self._is_watched)
        if self.task.heartbeat is not None:
            self.content_type = self.task.heartbeat.content_type
            self.streaming = True
            self.outcome.status = 200

    def run(self, connection: Connection, head: bytes, body: bytes | BinaryIO) -> Deferred[bool]:
        """Fires with True when the client has its answer, with False when the connection was stale."""
        self.connection = connection
        self.done = Deferred(lambda _: self._give_up())
        self.running.add(self)
        self.watch.start(self.task.grant is not None and self.task.grant.settling)
        if not isinstance(body, bytes):
            body.seek(0)
        connection.send(head, body, self, has_body=self.request.method != b"HEAD")
        return self.done

    def _is_watched(self) -> bool:
        """A turn that does not stream is silent until its end; who does not hold it waits for the client."""
        if self.task.grant is None:
            return self.task.limited and not self.client_paused
        return self.task.limited and (self.task.streams or self.streaming)

    def stalled(self) -> bool:
        """Past half of its limit when it streams, past the first-byte limit when it does not."""
        if self.task.grant is None:
            return False
        return self.watch.stalled() if self.task.streams else self.watch.is_late()

    # What the connection reports

    def began(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """The target has begun to answer."""
        # A refusal's says nothing about what is loaded.
        if self.task.grant is not None and status < 400:
            self.task.grant.first_byte()
        if self.task.heartbeat is None:
            self._pass_head(status, reason, headers)
        else:
            self._go_on(self.task.heartbeat, status, headers)

    def _pass_head(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """Pass the head on, less what is between two hops."""
        request, sent = self.request, self.request.responseHeaders
        request.setResponseCode(status, reason or None)
        self.outcome.status = status
        dropped, length = HOP_BY_HOP, None
        for name, value in headers:
            low = name.lower()
            if low == b"connection":
                dropped = dropped | connection_tokens([value])
            elif low == b"content-length":
                length = value
            elif low == b"content-type":
                self.content_type = value
        for name, value in headers:
            if name.lower() not in dropped:
                sent.addRawHeader(name, value)
        self.streaming = self.content_type.startswith(_STREAMS)
        if self.streaming:
            # Without it nginx collects a stream until its buffer is full.
            sent.setRawHeaders(b"X-Accel-Buffering", [b"no"])
        if length is None or int(length) > _SMALL_ANSWER_BYTES:
            self.producing = True
            request.registerProducer(self, True)
        self.watch.begin()
        if self.streaming:
            request.write(b"")  # the head now, not with the first token

    def _go_on(self, heartbeat: Heartbeat, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The client has a head already: what follows is the target's stream, or a refusal in last words."""
        heartbeat.stop()
        kind = next((value for name, value in headers if name.lower() == b"content-type"), b"")
        # One whole object is a line, too; in SSE it would be read as nothing at all.
        if status == 200 and (heartbeat.content_type == NDJSON or media_type(kind) == SSE):
            self.producing = True
            self.request.registerProducer(self, True)
        else:
            self.refused_status = status
        self.watch.begin()

    def received(self, data: bytes) -> None:
        """Pass a chunk on: one write is one chunk."""
        self.watch.active()
        if self.refused_status is not None:
            self.refused_body += data[: _REFUSAL_BYTES - len(self.refused_body)]
            return
        self.outcome.sent_bytes += len(data)
        self.tail = data[-4:] if len(data) > 3 else (self.tail + data)[-4:]
        self.request.write(data)
        if self.client_paused and self.task.grant is not None:
            self.behind_bytes += len(data)
            if self.behind_bytes > self.buffer:
                self._cut_slow_client()

    def ended(self) -> None:
        """The answer is complete."""
        self._over()
        if self.refused_status is None:
            self.request.finish()
        else:
            self._say_refusal(self.refused_status, bytes(self.refused_body))
        self._fire(True)

    def broke(self, error: ForemanError, unanswered: bool) -> None:
        """The target's connection ended first."""
        self._over()
        if unanswered:
            self._fire(False)
        else:
            self._tell(error)

    def fail(self, error: ForemanError) -> None:
        """Give the target's request up, and tell the client: by a status, or when late by last words."""
        self._abort()
        self._tell(error)

    def _tell(self, error: ForemanError) -> None:
        self.outcome.error = error
        request = self.request
        if not request.startedWriting:
            # The head of the target's answer may be set, and is not the answer any more.
            for name, _ in list(request.responseHeaders.getAllRawHeaders()):
                if not name.lower().startswith((b"access-control-", b"vary", b"x-foreman-")):
                    request.responseHeaders.removeHeader(name)
            self._fire_error(error)
            return
        words = last_words(
            self.task.dialect,
            self.content_type,
            error.status,
            error.code,
            str(error),
            after_newline=ends_whole(self.content_type, self.tail),
        )
        break_off(request, words)
        self._fire(True)

    def _say_refusal(self, status: int, body: bytes) -> None:
        """The target answered what is no stream, and the client was promised one."""
        self.outcome.error = refusal(status, body)
        break_off(self.request, words_of_refusal(self.task.dialect, status, body))

    def _cut_slow_client(self) -> None:
        limit = format_size(self.buffer)
        self._abort()
        self.outcome.error = ForemanError(
            f"the client fell more than {limit} behind, the limit of FOREMAN_RELAY_BUFFER, and was cut off"
        )
        # What is buffered would never be read; a reset also tells the client that this is no end.
        caller_of(self.request).abort()
        self._fire(True)

    def _give_up(self) -> None:
        """The caller cancelled: the client has gone, or foreman stops."""
        self._abort()
        self.done = None

    def _abort(self) -> None:
        connection = self.connection
        self._over()
        if connection is not None:
            connection.abort()
            if self.task.grant is not None:
                self.task.grant.abort()

    def _over(self) -> None:
        self.connection = None
        self.running.discard(self)
        self.watch.stop()
        if self.producing:
            self.producing = False
            # A client that has gone took its channel along.
            if self.request.channel is not None:
                self.request.unregisterProducer()

    def _fire(self, answered: bool) -> None:
        done, self.done = self.done, None
        if done is not None:
            done.callback(answered)

    def _fire_error(self, error: ForemanError) -> None:
        done, self.done = self.done, None
        if done is not None:
            done.errback(error)

    # What the client's connection asks for

    def pauseProducing(self) -> None:
        """The client does not keep up. A turn goes on into a bounded buffer; all else waits for it."""
        if self.client_paused:
            return  # Twisted says it again at every write
        self.client_paused = True
        self.behind_bytes = 0
        if self.task.grant is None and self.connection is not None:
            self.connection.pause()

    def resumeProducing(self) -> None:
        """The client has caught up."""
        self.client_paused = False
        if self.task.grant is None and self.connection is not None:
            self.watch.active()
            self.connection.resume()
            self.watch.look_anew()

    def stopProducing(self) -> None:
        """The client has gone; its request's notifyFinish cancels what is left."""
