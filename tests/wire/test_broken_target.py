"""Every way in which a target can fail, in every dialect: the right words, and the turn is free again."""

import json
from collections.abc import Callable

import pytest
from attrs import frozen
from fronts import Bench, Front
from raw_client import Answer, get
from streams import PATHS, exchange, last_sentence, sentence_of

from foreman.testing.replay import Ending, Recording, ReplayTarget, by_chunk, split_head, whole

GARBAGE = b"\x16\x03\x01\x02 what a TLS listener says to plain HTTP\r\n\r\n"


def in_the_head(exchange: Recording) -> int:
    """A position in the middle of the head."""
    return 20


def in_the_body(exchange: Recording) -> int:
    """A position in the body: after the first chunk, or after seven bytes of what has none."""
    writes = by_chunk(exchange.response)
    return len(writes[0]) + (len(writes[1]) if len(writes) > 2 else 7)


def in_a_line(exchange: Recording) -> int:
    """A position in the middle of a line."""
    return in_the_body(exchange) + 10


def at_the_start(exchange: Recording) -> int:
    """Before the first byte."""
    return 0


@frozen
class Fault:
    """
    How the target fails, and what the client has to see.

    `status` is that of the answer; 200: it had begun, and the error is its last words. `words` are in its
    sentence, for a request that streams and for one that does not.
    """

    stop: Callable[[Recording], int]
    ending: Ending
    status: int
    words: tuple[str, str]
    garbage: bool = False
    first_byte_timeout: str = "30s"
    silence_timeout: str = "30s"
    run_timeout: str = "0s"


BROKE = ("the target closed the connection in the middle of its answer",) * 2
NO_ANSWER = ("the target closed the connection without an answer",) * 2
FAULTS = {
    "closes at once": Fault(at_the_start, Ending.CLOSE, 502, NO_ANSWER),
    "resets at once": Fault(at_the_start, Ending.RESET, 502, NO_ANSWER),
    "garbage": Fault(at_the_start, Ending.SILENCE, 502, ("is not HTTP", "is not HTTP"), garbage=True),
    "half a head": Fault(in_the_head, Ending.CLOSE, 502, BROKE),
    "reset in the stream": Fault(in_the_body, Ending.RESET, 200, BROKE),
    "dies in a line": Fault(in_a_line, Ending.CLOSE, 200, BROKE),
    "silent from the start": Fault(
        at_the_start,
        Ending.SILENCE,
        504,
        ("FOREMAN_FIRST_BYTE_TIMEOUT", "500ms, the limit of FOREMAN_RUN_TIMEOUT"),
        first_byte_timeout="150ms",
        run_timeout="500ms",
    ),
    "silent in the stream": Fault(
        in_the_body,
        Ending.SILENCE,
        200,
        ("silent for 150ms, the limit of FOREMAN_SILENCE_TIMEOUT", ""),
        silence_timeout="150ms",
        run_timeout="500ms",
    ),
    "goes on and on": Fault(
        in_a_line, Ending.SILENCE, 200, ("500ms, the limit of FOREMAN_RUN_TIMEOUT", ""), run_timeout="500ms"
    ),
}


async def assert_works(front: Front, target: ReplayTarget, recording: Recording) -> None:
    """The turn is free, and the next request is answered."""
    assert front.parts.turn.free
    target.recordings, target.stop_after, target.ending = [recording], None, Ending.AS_RECORDED
    target.cut, target.delay = whole, 0.0
    got = await front.ask(recording.request)
    assert (got.status, got.complete) == (200, True)
    assert front.parts.turn.free


def assert_took_a_turn(answer: Answer) -> None:
    """Its job is named, whatever became of it."""
    assert len(answer.header(b"X-Foreman-Job-Id") or b"") == 26
    assert int(answer.header(b"X-Foreman-Queue-Ms") or b"-1") >= 0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", FAULTS)
async def test_the_error_speaks_the_dialect_of_its_path(bench: Bench, path: str, name: str):
    """
    Before a byte of the answer: 502, or 504 for a limit. In a stream: what came, the error as last words,
    and no terminating chunk. In any other body: what came, and less than was promised.
    """
    fault = FAULTS[name]
    for stream in (True, False):
        good = exchange(path, stream, chunks=1000 if name == "goes on and on" else 3)
        bad = Recording(path, good.request, GARBAGE) if fault.garbage else good
        target, port = bench.replay(bad, ending=fault.ending)
        target.stop_after = None if fault.garbage else fault.stop(good)
        if name == "goes on and on" and stream:
            target.stop_after, target.cut, target.delay = None, by_chunk, 0.01
        front = await bench.front(
            port,
            first_byte_timeout=fault.first_byte_timeout,
            silence_timeout=fault.silence_timeout,
            run_timeout=fault.run_timeout,
        )
        client = await front.connect()
        client.send(good.request)
        got = await client.answer()
        assert_took_a_turn(got)
        assert got.status == fault.status
        if fault.status != 200:
            assert got.complete
            assert (got.header(b"Content-Type") or b"").startswith(b"application/json")
            assert fault.words[not stream] in sentence_of(path, got.json)
            client.close()
        elif stream:
            assert (got.complete, got.rest) == (False, b"")
            assert fault.words[0] in last_sentence(path, got.chunks[-1])
            sent = [json.loads(chunk.removeprefix(b"data: "))["number"] for chunk in got.chunks[:-1]]
            assert sent == list(range(len(sent)))
            assert sent
        else:
            _, body = split_head(good.response)
            assert not got.complete
            assert body.startswith(got.rest)
            assert got.rest
        await client.closed()
        await front.until(lambda target=target: not target.open)
        assert len(target.received) == 1
        await assert_works(front, target, good)


@pytest.mark.parametrize("path", PATHS)
async def test_a_target_that_refuses(bench: Bench, path: str):
    """
    After FOREMAN_TARGET_WAIT callers get a 502 in their dialect: he who holds the turn, and who waits behind.
    """
    port = bench.reserve()
    front = await bench.front(port, target_wait="200ms")
    first, second = await front.connect(), await front.connect()
    good = exchange(path, stream=True)
    for client in (first, second):
        client.send(good.request)
    for client in (first, second):
        got = await client.answer()
        assert_took_a_turn(got)
        assert got.status == 502
        expected = f"foreman cannot reach the target http://127.0.0.1:{port}: connection refused"
        assert sentence_of(path, got.json) == expected
        client.close()
        await client.closed()
    target, _ = bench.replay(good, port=port)
    front.parts.reachability.found()
    await assert_works(front, target, good)


@pytest.mark.parametrize("request_", [exchange("/api/chat", True).request, get("/api/version")])
async def test_a_target_that_comes_late_is_waited_for(bench: Bench, request_: bytes):
    """A caller who waits for a target that comes within FOREMAN_TARGET_WAIT just gets the answer."""
    port = bench.reserve()
    front = await bench.front(port, target_wait="10s")
    client = await front.connect()
    client.send(request_)
    await front.until(lambda: not front.parts.reachability.up)
    version = Recording("version", get("/api/version"), b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n")
    answer = Recording("version", version.request, version.response + b'{"version":"0" }')
    bench.replay(exchange("/api/chat", True), answer, port=port)
    got = await client.answer()
    assert (got.status, got.complete) == (200, True)
    assert front.parts.reachability.up
    assert front.parts.turn.free
    client.close()
    await client.closed()


@pytest.mark.parametrize("path", ["/api/chat", "/v1/messages"])
async def test_503_of_the_target_passes_unchanged(bench: Bench, path: str):
    """Its own queue is full: that is an answer, not a fault, and the target counts as reachable."""
    body = b'{"error":"server busy, please try again.  maximum pending requests exceeded"}'
    head = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    busy = Recording("busy", exchange(path, True).request, head % len(body) + body)
    target, port = bench.replay(busy)
    front = await bench.front(port)
    got = await front.ask(busy.request)
    assert (got.status, got.reason, got.body) == (503, b"Service Unavailable", body)
    assert_took_a_turn(got)
    assert len(target.received) == 1
    assert front.parts.reachability.up
    assert front.parts.turn.free


@pytest.mark.parametrize(
    ("path", "kind", "line", "between"),
    [
        ("/api/chat", b"application/x-ndjson", b'{"message": {"con', b"\n"),
        ("/v1/chat/completions", b"text/event-stream", b'data: {"choi', b"\n\n"),
        ("/v1/chat/completions", b"text/event-stream", b'data: {"choices": []}\n', b"\n\n"),
        ("/v1/messages", b"text/event-stream", b'event: x\r\ndata: {"type": "x"}\r\n', b"\n\n"),
        ("/v1/messages", b"text/event-stream", b'event: x\r\ndata: {"type": "x"}\r\n\r\n', b""),
    ],
)
async def test_the_last_words_stand_by_themselves(
    bench: Bench, path: str, kind: bytes, line: bytes, between: bytes
):
    """A line or event that was cut in its middle is ended first, or the error would be a part of it."""
    request = exchange(path, True).request
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: 1000\r\n\r\n" % kind
    _, port = bench.replay(Recording("cut", request, head + line), ending=Ending.CLOSE)
    front = await bench.front(port)
    got = await front.ask(request)
    assert not got.complete
    assert got.rest.startswith(line + between)
    assert BROKE[0] in last_sentence(path, got.rest.removeprefix(line + between))


@pytest.mark.parametrize("path", ["/api/tags", "/v1/models"])
async def test_the_faults_of_what_takes_no_turn(bench: Bench, path: str):
    """Reads have no turn and no job, and the limits of a stream."""
    target, port = bench.replay(Recording("read", get(path), b""), ending=Ending.SILENCE)
    front = await bench.front(port, first_byte_timeout="100ms")
    got = await front.ask(get(path))
    assert got.status == 504
    assert "FOREMAN_FIRST_BYTE_TIMEOUT" in sentence_of(path, got.json)
    assert got.header(b"X-Foreman-Job-Id") is None
    target.stop_after, target.ending = 0, Ending.CLOSE
    front = await bench.front(port)
    got = await front.ask(get(path))
    assert (got.status, sentence_of(path, got.json)) == (502, NO_ANSWER[0])
