"""Clients that do not keep up: they never hold the turn, and never fill the memory."""

import socket

import pytest
from fronts import Bench, Front
from raw_client import RawClient, get, post
from twisted.internet.error import ConnectionLost
from twisted.internet.task import deferLater

from foreman.testing.replay import Recording, ReplayTarget, by_chunk

MIB = 1 << 20
# Far more than both sockets' buffers hold on loopback (measured: 2.5 MiB to 6 MiB).
STREAM_BYTES = 24 * MIB
CHUNK = b'{"message": "%b"}\n' % (b"x" * (64 * 1024 - 15 - 1))
CHAT = {"model": "smol", "messages": [{"role": "user", "content": "hi"}]}
SHORT = post("/api/chat", {**CHAT, "stream": False})


def long_stream(request: bytes) -> Recording:
    """A stream of lines, each as long as no line of Ollama's."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    framed = b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK)
    return Recording("long", request, head + framed * (STREAM_BYTES // len(CHUNK)) + b"0\r\n\r\n")


def short_answer() -> Recording:
    """The answer to SHORT."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
    return Recording("short", SHORT, head + b"{}")


async def reader_that_stops(front: Front, request: bytes) -> RawClient:
    """A client that sends a request and reads nothing of the answer."""
    client = await front.connect()
    client.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    client.send(request)
    client.pause()
    return client


async def test_past_the_buffer_the_client_is_cut(bench: Bench):
    """
    During a turn the target is read at full speed; a client that falls further behind than
    FOREMAN_RELAY_BUFFER is reset, so that it does not take what it has for the whole, and the turn is free.
    """
    request = post("/api/chat", CHAT)
    target, port = bench.replay(long_stream(request), short_answer(), cut=by_chunk)
    front = await bench.front(port, relay_buffer="1MiB")
    client = await reader_that_stops(front, request)
    await front.until(lambda: target.received)
    await front.until(lambda: front.parts.turn.free)
    await front.until(lambda: target.received[0].left_at is not None)
    assert target.sent_bytes < STREAM_BYTES
    assert (await front.ask(SHORT)).body == b"{}"
    client.resume()
    assert (await client.closed()).check(ConnectionLost)
    got = await client.answer()
    assert (got.status, got.complete) == (200, False)
    assert all(chunk == CHUNK for chunk in got.chunks)
    assert b"error" not in got.rest


async def test_below_the_buffer_nothing_is_lost(bench: Bench):
    """A client may read as late as it likes: its turn is over long before, and every byte comes."""
    request = post("/api/chat", CHAT, "Connection: close")
    target, port = bench.replay(long_stream(request), short_answer(), cut=by_chunk)
    front = await bench.front(port, relay_buffer="32MiB")
    client = await reader_that_stops(front, request)
    await front.until(lambda: target.received)
    await front.until(lambda: front.parts.turn.free)
    assert target.sent_bytes > STREAM_BYTES
    assert target.received[0].left_at is None
    assert (await front.ask(SHORT)).body == b"{}"
    client.resume()
    await client.closed()
    got = await client.answer()
    assert got.complete
    assert got.chunks == [CHUNK] * (STREAM_BYTES // len(CHUNK))


async def test_a_client_that_catches_up_starts_anew(bench: Bench):
    """How far a client is behind counts from when it stopped reading: what it caught up is forgotten."""
    request = post("/api/chat", CHAT, "Connection: close")
    target, port = bench.replay(long_stream(request), cut=by_chunk)
    front = await bench.front(port, relay_buffer="12MiB")
    client = await front.connect()
    client.send(request)
    await client.closed()
    got = await client.answer()
    assert got.complete
    assert got.body == CHUNK * (STREAM_BYTES // len(CHUNK))
    assert target.sent_bytes > STREAM_BYTES


async def held_target(front: Front, target: ReplayTarget) -> int:
    """Wait until the target is held back, and stays so; returns how much it has sent."""
    while True:
        sent = -1
        await front.until(lambda: target.held)
        sent = target.sent_bytes
        await deferLater(front.reactor, 0.05)
        if target.held and target.sent_bytes == sent:
            return sent


@pytest.mark.parametrize(
    "request_",
    [post("/api/pull", {"model": "smol"}, "Connection: close"), get("/api/new", "Connection: close")],
)
async def test_what_holds_no_turn_uses_back_pressure(bench: Bench, request_: bytes):
    """A client that pauses a pull pauses the target: foreman holds next to nothing, and loses nothing."""
    target, port = bench.replay(long_stream(request_), cut=by_chunk)
    front = await bench.front(port, relay_buffer="64KiB", silence_timeout="1s", run_timeout="1s")
    client = await reader_that_stops(front, request_)
    sent = await held_target(front, target)
    assert sent < STREAM_BYTES * 3 // 4
    (channel,) = front.parts.site.channels
    transport = channel.transport
    assert len(transport.dataBuffer) + transport._tempDataLen < MIB
    # A turn is not held up by it, and no limit of silence runs while the client itself does not read.
    target.recordings = [*target.recordings, short_answer()]
    await deferLater(front.reactor, 1.2)
    assert (await front.ask(SHORT)).body == b"{}"
    client.resume()
    await client.closed()
    got = await client.answer()
    assert got.complete
    assert got.chunks == [CHUNK] * (STREAM_BYTES // len(CHUNK))


async def test_a_client_that_leaves_a_paused_pull_frees_the_target(bench: Bench):
    """The target is not held for a client that will never read on."""
    request = post("/api/pull", {"model": "smol"})
    target, port = bench.replay(long_stream(request), cut=by_chunk)
    front = await bench.front(port)
    client = await reader_that_stops(front, request)
    await held_target(front, target)
    client.leave()
    await front.until(lambda: not target.open)
    assert target.received[0].left_at is not None
