"""A stream that waits for long: its head comes before its turn, and then whatever happens is said inside."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fronts import Bench, Front
from raw_client import Answer, RawClient, post
from streams import PATHS, exchange, last_sentence
from turn_rig import reactor
from twisted.internet.task import deferLater

from foreman.errors import Stopping
from foreman.target import heartbeat
from foreman.testing.replay import Ending, Recording, by_chunk, split_head

AFTER = "50ms"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat every 20 ms, in the place of 15 s."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.02)


def idle(path: str) -> bytes:
    """What a stream on this path says while it waits."""
    return b" " if path.startswith("/api/") else b": waiting\n\n"


@asynccontextmanager
async def held(front: Front) -> AsyncIterator[None]:
    """The turn is taken by somebody else."""
    async with front.parts.turn.take("HELD", None):
        yield


async def waits(front: Front, request: bytes) -> RawClient:
    """A client whose request waits for the turn."""
    before = front.parts.turn.waiting
    client = await front.connect()
    client.send(request)
    await front.until(lambda: front.parts.turn.waiting == before + 1)
    return client


def without_beats(path: str, answer: Answer) -> list[bytes]:
    """The chunks behind the beats, of which there must be some."""
    chunks = list(answer.chunks)
    beats = 0
    while chunks and chunks[0] == idle(path):
        beats += 1
        chunks.pop(0)
    assert beats
    assert idle(path) not in chunks
    return chunks


def assert_early(path: str, answer: Answer) -> None:
    """The head is foreman's own: that of a stream of this path."""
    kind = b"application/x-ndjson" if path.startswith("/api/") else b"text/event-stream"
    assert (answer.version, answer.status) == (b"HTTP/1.1", 200)
    assert answer.header(b"Content-Type") == kind
    assert answer.header(b"X-Accel-Buffering") == b"no"
    assert answer.chunked
    assert len(answer.header(b"X-Foreman-Job-Id") or b"") == 26
    assert answer.header(b"X-Foreman-Queue-Ms") is None
    assert answer.header(b"Date")


def refusal(path: str, status: int, body: bytes, kind: bytes = b"application/json") -> Recording:
    """The target answers with a status of its own."""
    head = b"HTTP/1.1 %d No\r\nContent-Type: %b\r\nContent-Length: %d\r\nX-Own: 1\r\n\r\n"
    return Recording(path, exchange(path, True).request, head % (status, kind, len(body)) + body)


@pytest.mark.parametrize("path", PATHS)
async def test_the_head_the_beats_and_the_stream_of_the_target(bench: Bench, path: str):
    """Head and beats while it waits; then each chunk of the target as it is, and the stream's own end."""
    good = exchange(path, stream=True)
    target, port = bench.replay(good)
    front = await bench.front(port, queue_headers_after=AFTER)
    async with held(front):
        client = await waits(front, good.request.replace(b"\r\n", b"\r\nAccept-Encoding: gzip\r\n", 1))
        assert_early(path, await client.begun())
        await client.begun(chunks=3)
        assert not target.received
    got = await client.answer()
    assert_early(path, got)
    assert got.complete
    pieces = [piece.split(b"\r\n", 1)[1][:-2] for piece in by_chunk(good.response)[1:-1]]
    assert without_beats(path, got) == pieces
    # What was packed could not be told apart any more: the head is out.
    assert b"\r\nAccept-Encoding: identity\r\n" in target.received[0].head
    assert target.received[0].head.lower().count(b"accept-encoding") == 1
    assert front.parts.turn.free
    # The connection goes on, and so does its next answer: with the target's own head.
    client.send(good.request)
    again = await client.answer()
    assert int(again.header(b"X-Foreman-Queue-Ms") or b"-1") >= 0
    assert again.chunks == pieces
    client.close()
    await client.closed()


async def test_beats_go_on_until_the_target_begins(bench: Bench):
    """A load may take a minute, and the gateway in between must not take it for the end; then none comes."""
    good = exchange("/api/chat", stream=True)
    head = by_chunk(good.response)[0]
    target, port = bench.replay(good, ending=Ending.SILENCE)
    target.stop_after = 0
    front = await bench.front(port, queue_headers_after=AFTER)
    async with held(front):
        client = await waits(front, good.request)
        await client.begun()
    await front.until(lambda: target.received)
    await client.begun(chunks=len((await client.begun()).chunks) + 3)
    (connection,) = target.open
    (running,) = front.parts.relay._running
    connection.transport.write(head)
    await front.until(lambda: running.watch.began)
    came = len((await client.begun()).chunks)
    await deferLater(reactor, 0.1)
    assert len((await client.begun()).chunks) <= came + 1  # it may have been on its way
    connection.transport.write(good.response[len(head) :])
    got = await client.answer()
    assert got.complete
    assert len(without_beats("/api/chat", got)) == 3
    client.close()
    await client.closed()


@pytest.mark.parametrize("path", ["/api/chat", "/v1/messages"])
async def test_a_short_wait_changes_nothing(bench: Bench, path: str):
    """Who gets the turn in time has the target's own head, and no beat, however long the target takes."""
    good = exchange(path, stream=True)
    _, port = bench.replay(good, delay=1.1)
    front = await bench.front(port, queue_headers_after="1s")
    async with held(front):
        client = await waits(front, good.request)
        await deferLater(reactor, 0.02)
    got = await client.answer()
    assert got.chunks == [piece.split(b"\r\n", 1)[1][:-2] for piece in by_chunk(good.response)[1:-1]]
    assert 20 <= int(got.header(b"X-Foreman-Queue-Ms") or b"-1") < 1000
    assert got.header(b"Date") is None  # the made-up target sends none
    client.close()
    await client.closed()


@pytest.mark.parametrize(
    ("path", "asked", "after"),
    [
        ("/api/chat", {"model": "smol", "messages": [{}], "stream": False}, AFTER),
        ("/api/generate", {"model": "smol", "prompt": "x", "stream": False}, AFTER),
        ("/api/chat", {"model": "smol", "messages": []}, AFTER),
        ("/api/generate", {"model": "smol"}, AFTER),
        ("/v1/chat/completions", {"model": "smol", "messages": [{}]}, AFTER),
        ("/v1/messages", {"model": "smol", "messages": [{}], "stream": False}, AFTER),
        ("/v1/a/new/one", {"model": "smol", "stream": True}, AFTER),
        ("/api/chat", b"nobody can read it", AFTER),
        ("/api/chat", {"model": "smol", "messages": [{}]}, "0"),
        ("/v1/responses", {"model": "smol", "input": "x", "stream": True}, "0"),
    ],
)
async def test_the_others_just_wait(bench: Bench, path: str, asked: object, after: str):
    """Whoever gets one object, loads only, or is on a path that nobody knows; and everybody with 0."""
    request = post(path, asked)
    _, port = bench.replay(Recording(path, request, b"HTTP/1.1 418 No\r\nContent-Length: 2\r\n\r\nno"))
    front = await bench.front(port, queue_headers_after=after)
    async with held(front):
        client = await waits(front, request)
        await deferLater(reactor, 0.15)
        assert client.data == b""
        assert not client._pieces
    got = await client.answer()
    assert (got.status, got.body) == (418, b"no")
    assert int(got.header(b"X-Foreman-Queue-Ms") or b"-1") >= 150
    client.close()
    await client.closed()


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
async def test_a_client_that_leaves_still_leaves_the_queue(bench: Bench, path: str):
    """At once, and the target never sees its request."""
    good = exchange(path, stream=True)
    target, port = bench.replay(good)
    front = await bench.front(port, queue_headers_after=AFTER)
    async with held(front):
        client = await waits(front, good.request)
        await client.begun(chunks=1)
        client.leave()
        await client.closed()
        await front.until(lambda: front.parts.turn.waiting == 0)
    assert not target.received
    assert front.parts.turn.free


async def test_a_client_that_leaves_between_turn_and_first_byte(bench: Bench):
    """The target's request is aborted, and the turn is free."""
    good = exchange("/api/chat", stream=True)
    target, port = bench.replay(good, ending=Ending.SILENCE)
    target.stop_after = 0
    front = await bench.front(port, queue_headers_after=AFTER)
    async with held(front):
        client = await waits(front, good.request)
        await client.begun()
    await front.until(lambda: target.received)
    client.leave()
    await client.closed()
    await front.until(lambda: front.parts.turn.free)
    await front.until(lambda: not target.open)


async def ends_in_error(front: Front, path: str, client: RawClient) -> str:
    """The sentence in which the stream ends; nothing follows it, and the turn is free."""
    got = await client.answer()
    await client.closed()
    assert_early(path, got)
    assert (got.complete, got.rest) == (False, b"")
    assert b"[DONE]" not in got.body
    assert b'"done":true' not in got.body
    await front.until(lambda: front.parts.turn.free)
    return last_sentence(path, got.chunks[-1])


@pytest.mark.parametrize("path", PATHS)
async def test_a_target_that_went_away_meanwhile(bench: Bench, path: str):
    """Who waits for the turn, and who has just got it: after FOREMAN_TARGET_WAIT the 502 is in the stream."""
    port = bench.reserve()
    front = await bench.front(port, queue_headers_after=AFTER, target_wait="200ms")
    request = exchange(path, stream=True).request
    async with held(front):
        clients = [await waits(front, request) for _ in range(2)]
        for client in clients:
            await client.begun(chunks=1)
    for client in clients:
        assert await ends_in_error(front, path, client) == (
            f"foreman cannot reach the target http://127.0.0.1:{port}: connection refused"
        )
    front.parts.reachability.stop()


FAULTS = {
    "closes at once": (0, Ending.CLOSE, "30s", "the target closed the connection without an answer"),
    "half a head": (20, Ending.CLOSE, "30s", "the target closed the connection in the middle of its answer"),
    "never begins": (0, Ending.SILENCE, "150ms", "within 150ms, the limit of FOREMAN_FIRST_BYTE_TIMEOUT"),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", FAULTS)
async def test_a_target_that_fails_before_its_first_byte(bench: Bench, path: str, name: str):
    """The sentence is that of the 502 or 504 which there would have been."""
    stop, ending, limit, words = FAULTS[name]
    good = exchange(path, stream=True)
    target, port = bench.replay(good, ending=ending)
    target.stop_after = stop
    front = await bench.front(port, queue_headers_after=AFTER, first_byte_timeout=limit)
    async with held(front):
        client = await waits(front, good.request)
        await client.begun(chunks=1)
    assert words in await ends_in_error(front, path, client)


@pytest.mark.parametrize("path", ["/api/chat", "/v1/messages"])
async def test_a_run_that_is_cut_before_its_first_byte(bench: Bench, path: str):
    """FOREMAN_RUN_TIMEOUT."""
    good = exchange(path, stream=True)
    target, port = bench.replay(good, ending=Ending.SILENCE)
    target.stop_after = 0
    front = await bench.front(port, queue_headers_after=AFTER, run_timeout="150ms")
    async with held(front):
        client = await waits(front, good.request)
        await client.begun(chunks=1)
    assert "after 150ms, the limit of FOREMAN_RUN_TIMEOUT" in await ends_in_error(front, path, client)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("ending", [Ending.CLOSE, Ending.RESET])
async def test_a_target_that_breaks_off_in_the_stream(bench: Bench, path: str, ending: Ending):
    """What came is passed on, and a line that was cut is ended before the error."""
    good = exchange(path, stream=True)
    writes = by_chunk(good.response)
    target, port = bench.replay(good, ending=ending)
    target.stop_after = len(writes[0]) + len(writes[1])
    front = await bench.front(port, queue_headers_after=AFTER)
    async with held(front):
        client = await waits(front, good.request)
        await client.begun(chunks=1)
    got = await client.answer()
    await client.closed()
    first, words = without_beats(path, got)
    assert first == writes[1].split(b"\r\n", 1)[1][:-2]
    assert last_sentence(path, words) == "the target closed the connection in the middle of its answer"
    assert not got.complete
    assert front.parts.turn.free


OWN_ERROR = {
    "/api/chat": {"error": "model 'smol' not found"},
    "/api/generate": {"error": "model 'smol' not found"},
    "/v1/messages": {
        "type": "error",
        "error": {"type": "not_found_error", "message": "model 'smol' not found"},
    },
}
OPENAI_ERROR = {
    "error": {"message": "model 'smol' not found", "type": "not_found_error", "param": None, "code": None}
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("status", [400, 404, 500, 503])
async def test_an_error_of_the_target_is_the_last_line(bench: Bench, path: str, status: int):
    """In its own words; nothing of its head comes through."""
    body = json.dumps(OWN_ERROR.get(path, OPENAI_ERROR), indent=1).encode()
    _, port = bench.replay(refusal(path, status, body))
    front = await bench.front(port, queue_headers_after=AFTER)
    async with held(front):
        client = await waits(front, exchange(path, True).request)
        assert (await client.begun(chunks=1)).header(b"X-Own") is None
    assert await ends_in_error(front, path, client) == "model 'smol' not found"


@pytest.mark.parametrize("path", PATHS)
async def test_what_is_no_error_of_the_path_is_told_with_its_status(bench: Bench, path: str):
    """A gateway's page, say: the status would be lost, and the page is no error that a client could read."""
    _, port = bench.replay(refusal(path, 502, b"<html>Bad Gateway</html>\n", b"text/html"))
    front = await bench.front(port, queue_headers_after=AFTER)
    async with held(front):
        client = await waits(front, exchange(path, True).request)
        await client.begun(chunks=1)
    sentence = await ends_in_error(front, path, client)
    assert sentence == "the target answered with status 502: <html>Bad Gateway</html>"


async def test_an_error_of_any_length_and_one_that_breaks_off(bench: Bench):
    """64 KiB of it are kept; and what breaks off is told as that."""
    path = "/api/chat"
    long = refusal(path, 500, b"x" * 1_000_000, b"text/plain")
    target, port = bench.replay(long)
    front = await bench.front(port, queue_headers_after=AFTER)
    sentences = []
    for ending, stop in ((Ending.AS_RECORDED, None), (Ending.CLOSE, len(long.response) - 1)):
        target.ending, target.stop_after = ending, stop
        async with held(front):
            client = await waits(front, long.request)
            await client.begun(chunks=1)
        sentences.append(await ends_in_error(front, path, client))
    assert sentences[0] == "the target answered with status 500: " + "x" * 500
    assert sentences[1] == "the target closed the connection in the middle of its answer"
    target.ending, target.stop_after = Ending.SILENCE, len(long.response) - 1
    async with held(front):
        client = await waits(front, long.request)
        await client.begun(chunks=1)
    sent_before = target.sent_bytes
    await front.until(lambda: target.sent_bytes > sent_before)
    (running,) = front.parts.relay._running
    await front.until(lambda: len(running.refused_body) >= 64 * 1024)
    await deferLater(reactor, 0.05)
    assert len(running.refused_body) == 64 * 1024
    client.leave()
    await client.closed()


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
async def test_one_whole_object_in_the_place_of_a_stream(bench: Bench, path: str):
    """In NDJSON it is a line. Among server-sent events it would be read as nothing: it is an error."""
    whole = exchange(path, stream=False)
    request = exchange(path, stream=True).request
    _, port = bench.replay(Recording(path, request, whole.response))
    front = await bench.front(port, queue_headers_after=AFTER)
    async with held(front):
        client = await waits(front, request)
        await client.begun(chunks=1)
    if path == "/api/chat":
        got = await client.answer()
        assert got.complete
        assert without_beats(path, got) == [split_head(whole.response)[1]]
        client.close()
        await client.closed()
    else:
        assert "status 200" in await ends_in_error(front, path, client)


@pytest.mark.parametrize("path", PATHS)
async def test_a_stop_is_said_in_the_stream(bench: Bench, path: str):
    """To who waits for the turn, and to who waits for the target's first byte."""
    good = exchange(path, stream=True)
    target, port = bench.replay(good, ending=Ending.SILENCE)
    target.stop_after = 0
    front = await bench.front(port, queue_headers_after=AFTER)
    async with held(front):
        clients = [await waits(front, good.request) for _ in range(2)]
        for client in clients:
            await client.begun(chunks=1)
    await front.until(lambda: target.received)
    front.parts.turn.close(Stopping())
    front.parts.relay.cut_all(Stopping())
    for client in clients:
        assert await ends_in_error(front, path, client) == str(Stopping())
    assert len(target.received) == 1


async def test_a_slow_reader_is_cut_as_ever(bench: Bench):
    """Its stream is bounded by FOREMAN_RELAY_BUFFER behind an early head, too."""
    good = exchange("/api/chat", stream=True, chunks=200_000)
    _, port = bench.replay(good)
    front = await bench.front(port, queue_headers_after=AFTER, relay_buffer="64KiB")
    async with held(front):
        client = await waits(front, good.request)
        await client.begun(chunks=1)
        client.pause()
    await front.until(lambda: front.parts.turn.free)
    client.resume()
    await client.closed()
    assert not client.data.endswith(b"0\r\n\r\n")


async def test_a_client_of_http_1_0(bench: Bench):
    """It knows no chunks: the beats and the stream are plain, and the end of the connection is the end."""
    good = exchange("/api/chat", stream=True)
    _, port = bench.replay(good)
    front = await bench.front(port, queue_headers_after=AFTER)
    async with held(front):
        client = await waits(front, good.request.replace(b" HTTP/1.1", b" HTTP/1.0", 1))
        await front.until(lambda: b"\r\n\r\n  " in b"".join([client.data, *client._pieces]))
    got = await client.answer()
    lines = b"".join(piece.split(b"\r\n", 1)[1][:-2] for piece in by_chunk(good.response)[1:-1])
    assert got.body.lstrip(b" ") == lines
    assert not got.chunked
    await client.closed()
