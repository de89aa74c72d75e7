"""Clients that leave: the target is free at once, and nothing is done for nobody."""

from collections.abc import Callable

import pytest
from fronts import Bench, Front, golden
from raw_client import RawClient, get, post

from foreman.testing.replay import Ending, Recording, ReplayTarget, by_chunk

SOON_SECONDS = 2  # measured: 0.4 ms to 1.2 ms, on a machine that has nothing else to do
STREAM = golden("chat-stream").kept_alive()
WHOLE = golden("chat-nostream").kept_alive()


def reset(client: RawClient) -> None:
    """A client that dies."""
    client.leave()


def close(client: RawClient) -> None:
    """A client that hangs up."""
    client.close()


def half_close(client: RawClient) -> None:
    """A client that shuts its side down: it counts as gone, as it does for Ollama."""
    client.transport.loseWriteConnection()


async def begun(front: Front, recording: Recording, target: ReplayTarget, chunks: int) -> RawClient:
    """A client that has so many chunks of an answer that then stands still."""
    target.ending = Ending.SILENCE
    target.stop_after = sum(map(len, by_chunk(recording.response)[: chunks + 1])) if chunks else 0
    before = len(target.received)
    client = await front.connect()
    client.send(recording.request.replace(b"Connection: close\r\n", b""))
    if chunks:
        await client.begun(chunks)
    await front.until(lambda: len(target.received) > before)
    return client


async def seconds_to_abort(front: Front, target: ReplayTarget, client: RawClient, how: Callable) -> float:
    """Let the client leave; how long it takes until the target's connection is closed."""
    left_at = front.reactor.seconds()
    received = target.received[-1]
    how(client)
    await front.until(lambda: received.left_at is not None)
    await client.closed()
    return float(received.left_at - left_at)


@pytest.mark.parametrize("how", [reset, close, half_close])
@pytest.mark.parametrize("chunks", [0, 3])
@pytest.mark.parametrize("name", ["chat-stream", "v1-chat-stream", "create-from"])
async def test_a_client_that_leaves_aborts_the_target(bench: Bench, name: str, chunks: int, how: Callable):
    """Before the first byte or in the stream: the target's connection is closed at once, the turn is free."""
    recording = golden(name)
    target, port = bench.replay(recording, WHOLE)
    front = await bench.front(port)
    client = await begun(front, recording, target, chunks)
    took = await seconds_to_abort(front, target, client, how)
    assert took < SOON_SECONDS
    assert front.parts.turn.free
    assert not front.parts.relay._running
    target.stop_after, target.ending = None, Ending.AS_RECORDED
    assert (await front.ask(WHOLE.request)).status == 200


@pytest.mark.parametrize("how", [reset, close, half_close])
async def test_who_leaves_while_waiting_never_reaches_the_target(bench: Bench, how: Callable):
    """A waiting caller's place in the line is gone with the connection; those around it are not touched."""
    target, port = bench.replay(STREAM, WHOLE)
    front = await bench.front(port)
    holder = await begun(front, STREAM, target, 1)
    waiting = [await front.connect() for _ in range(3)]
    for client in waiting:
        client.send(WHOLE.request.replace(b"Connection: close\r\n", b""))
    await front.until(lambda: front.parts.turn.waiting == 3)
    how(waiting[1])
    await front.until(lambda: front.parts.turn.waiting == 2)
    target.stop_after, target.ending = None, Ending.AS_RECORDED
    holder.leave()
    for client in (waiting[0], waiting[2]):
        assert (await client.answer()).status == 200
        client.close()
        await client.closed()
    await waiting[1].closed()
    await holder.closed()
    assert waiting[1].data == b""
    assert [received.key for received in target.received] == [STREAM.key, WHOLE.key, WHOLE.key]
    assert front.parts.turn.free


async def test_who_leaves_while_the_target_is_away_is_forgotten(bench: Bench):
    """Nothing is sent for him when the target comes back."""
    port = bench.reserve()
    front = await bench.front(port, target_wait="10s")
    clients = [await front.connect() for _ in range(2)]
    for client, request in zip(clients, (WHOLE.request, get("/api/version")), strict=True):
        client.send(request)
    await front.until(lambda: not front.parts.reachability.up)
    await front.until(lambda: len(front.parts.reachability._waiters) == 2)
    for client in clients:
        client.leave()
        await client.closed()
    await front.until(lambda: front.parts.turn.free)
    await front.until(lambda: not front.parts.reachability._waiters)
    target, _ = bench.replay(WHOLE, port=port)
    front.parts.reachability.found()
    assert (await front.ask(WHOLE.request)).status == 200
    assert len(target.received) == 1


async def answer_after(front: Front, target: ReplayTarget, seconds: float) -> int:
    """The status of a request that the target answers so many seconds later."""
    target.stop_after, target.ending, target.delay = None, Ending.AS_RECORDED, seconds
    status = (await front.ask(STREAM.request)).status
    target.delay = 0.0
    return status


@pytest.mark.parametrize("limit", ["first_byte_timeout", "run_timeout"])
async def test_after_an_abort_before_the_first_byte_the_target_settles(bench: Bench, limit: str):
    """
    An Ollama finishes the prompt of an aborted request first: the limits of the next one start at its own
    first byte. The one after that has its limits from its start again.
    """
    target, port = bench.replay(STREAM)
    front = await bench.front(port, **{"first_byte_timeout": "800ms", limit: "500ms"})
    client = await begun(front, STREAM, target, 0)
    client.leave()
    await client.closed()
    await front.until(lambda: front.parts.turn.free)
    assert await answer_after(front, target, 0.6) == 200
    assert await answer_after(front, target, 0.6) == 504


async def test_the_first_byte_ends_the_settling(bench: Bench):
    """From there on the limits are as ever: that of the run counts from the first byte, not from later."""
    target, port = bench.replay(STREAM)
    front = await bench.front(port, first_byte_timeout="5s", run_timeout="200ms")
    client = await begun(front, STREAM, target, 0)
    client.leave()
    await client.closed()
    await front.until(lambda: front.parts.turn.free)
    client = await begun(front, STREAM, target, 1)
    since = front.reactor.seconds()
    assert b"FOREMAN_RUN_TIMEOUT" in (await client.answer()).body
    assert front.reactor.seconds() - since < 3
    await client.closed()


async def test_after_an_abort_in_the_stream_nothing_settles(bench: Bench):
    """During generation an Ollama is free within 0.2 s: the next request has its limits from its start."""
    target, port = bench.replay(STREAM)
    front = await bench.front(port, first_byte_timeout="250ms")
    client = await begun(front, STREAM, target, 1)
    client.leave()
    await client.closed()
    await front.until(lambda: front.parts.turn.free)
    assert await answer_after(front, target, 0.3) == 504


async def test_settling_itself_has_a_limit(bench: Bench):
    """A target that stays silent after an abort is given FOREMAN_FIRST_BYTE_TIMEOUT twice, and no more."""
    target, port = bench.replay(STREAM)
    front = await bench.front(port, first_byte_timeout="150ms")
    client = await begun(front, STREAM, target, 0)
    client.leave()
    await client.closed()
    await front.until(lambda: front.parts.turn.free)
    began = front.reactor.seconds()
    assert (await front.ask(STREAM.request)).status == 504
    assert front.reactor.seconds() - began > 0.29


async def test_a_client_that_leaves_during_its_upload(bench: Bench):
    """A request whose body never came whole is no request."""
    target, port = bench.replay(WHOLE)
    front = await bench.front(port)
    client = await front.connect()
    client.send(post("/api/chat", b"x" * 100)[:-1])
    await front.until(lambda: front.parts.site.channels)
    client.leave()
    await client.closed()
    await front.until(lambda: not front.parts.site.channels)
    assert target.received == []
    assert front.parts.turn.free
