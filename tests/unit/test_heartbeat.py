"""A stream's client that waits: when it gets a head, when a byte, and how the stream ends in an error."""

from typing import Any

import pytest
from attrs import define, field
from twisted.internet.task import Clock
from twisted.web.http import Request
from twisted.web.test.requesthelper import DummyChannel

from foreman.errors import Stopping
from foreman.target.dialects import Dialect
from foreman.target.heartbeat import Heartbeat

HEADS = {
    Dialect.OLLAMA: b"application/x-ndjson",
    Dialect.OPENAI: b"text/event-stream",
    Dialect.RESPONSES: b"text/event-stream",
    Dialect.ANTHROPIC: b"text/event-stream",
}


@define
class Wait:
    """A request that waits, on a clock; `sent` takes what was written to its client since the last look."""

    after: float = 60.0
    dialect: Dialect = Dialect.OLLAMA
    clock: Clock = field(factory=Clock)
    channel: Any = field(factory=DummyChannel)
    heartbeat: Heartbeat = field(init=False)

    def __attrs_post_init__(self) -> None:
        request = Request(self.channel)
        request.clientproto = b"HTTP/1.1"
        request.responseHeaders.setRawHeaders(b"X-Foreman-Job-Id", [b"01"])
        self.heartbeat = Heartbeat(self.clock, request, self.dialect, self.after)

    def sent(self) -> bytes:
        written = self.channel.transport.written
        data = bytes(written.getvalue())
        written.seek(0)
        written.truncate()
        return data


def chunk(data: bytes) -> bytes:
    """As HTTP/1.1 frames it."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize("dialect", Dialect)
def test_the_head_comes_after_its_time_and_a_beat_every_fifteen_seconds(dialect: Dialect):
    """Nothing for 60 s; then the stream's head and no body; then a space or a comment at 75 s, 90 s, …"""
    wait = Wait(dialect=dialect)
    wait.heartbeat.start()
    wait.clock.advance(59.999)
    assert (wait.sent(), wait.heartbeat.begun) == (b"", False)
    wait.clock.advance(0.001)
    head = wait.sent()
    assert wait.heartbeat.begun
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert head.endswith(b"\r\n\r\n")
    lines = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    assert lines.pop(b"Date").endswith(b" GMT")
    assert lines == {
        b"Content-Type": HEADS[dialect],
        b"Transfer-Encoding": b"chunked",
        b"X-Accel-Buffering": b"no",
        b"X-Foreman-Job-Id": b"01",
    }
    beat = chunk(b" " if dialect is Dialect.OLLAMA else b": waiting\n\n")
    for _ in range(20):
        wait.clock.advance(14.999)
        assert wait.sent() == b""
        wait.clock.advance(0.001)
        assert wait.sent() == beat
    wait.heartbeat.stop()


def test_without_a_time_there_is_no_head():
    """0 is never."""
    wait = Wait(after=0.0)
    wait.heartbeat.start()
    assert not wait.clock.getDelayedCalls()


@pytest.mark.parametrize("seconds", [0.0, 59.9, 60.0, 100.0])
def test_nothing_comes_after_the_stop(seconds: float):
    """Before the head or after it; a second stop does nothing."""
    wait = Wait()
    wait.heartbeat.start()
    for _ in range(int(seconds * 10)):
        wait.clock.advance(0.1)
    wait.heartbeat.stop()
    wait.sent()
    assert not wait.clock.getDelayedCalls()
    wait.heartbeat.stop()
    wait.clock.advance(1000)
    assert wait.sent() == b""


def test_an_error_is_the_last_line_and_the_stream_has_no_end():
    """The connection is closed without the last chunk, so that nobody takes the answer for whole."""
    wait = Wait()
    wait.heartbeat.start()
    wait.clock.advance(60)
    wait.sent()
    wait.heartbeat.end(Stopping())
    assert wait.sent() == chunk(b'{"error":"foreman is stopping; send the request again in a moment"}\n')
    assert wait.channel.transport.disconnected
    assert not wait.clock.getDelayedCalls()
