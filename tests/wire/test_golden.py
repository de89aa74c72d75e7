"""Every recorded exchange through foreman: nothing is changed on the way, however TCP cut it."""

import json

import pytest
from fronts import GOLDEN_NAMES, Bench, golden
from raw_client import Answer, parse
from twisted.internet.task import Clock

from foreman.target import routes
from foreman.testing.replay import (
    Cut,
    Ending,
    Recording,
    after,
    by_chunk,
    every_byte,
    split_head,
    whole,
)

ADDED = (b"X-Foreman-", b"X-Accel-Buffering")
HOP_BY_HOP = {b"connection", b"transfer-encoding"}
# foreman answers these itself, or must hide from the target what made them different.
BY_RULES = {"cors-allowed", "cors-null", "cors-preflight", "cors-refused", "host-refused"}
RELAYED = [name for name in GOLDEN_NAMES if name not in BY_RULES]
# They could take a turn: but the target only unloads, only refuses, or does not use its GPU.
ANSWERED_AT_ONCE = {"chat-no-model", "chat-unload", "cloud-disabled", "generate-no-model", "generate-unload"}
CUTS: tuple[Cut, ...] = (whole, by_chunk, every_byte)
STREAMS = (b"application/x-ndjson", b"text/event-stream")


def recorded(recording: Recording) -> Answer:
    """The recorded answer."""
    answer, rest = parse(recording.response, recording.request.startswith(b"HEAD "), closed=True)
    assert answer is not None
    assert answer.complete
    assert rest == b""
    return answer


def end_to_end(answer: Answer) -> list[tuple[bytes, bytes]]:
    """The headers that a relay passes on."""
    return [
        (name, value)
        for name, value in answer.headers
        if name.lower() not in HOP_BY_HOP and not name.startswith(ADDED)
    ]


def takes_turn(recording: Recording) -> bool:
    """Whether foreman gives the request a turn."""
    method, path, _ = recording.key
    return routes.takes_turn(routes.find(path), method) and recording.name not in ANSWERED_AT_ONCE


def assert_same(got: Answer, recording: Recording) -> None:
    """Status, reason, headers in their order, body and chunks are the recorded ones."""
    expected = recorded(recording)
    assert (got.version, got.status, got.reason) == (b"HTTP/1.1", expected.status, expected.reason)
    assert end_to_end(got) == end_to_end(expected)
    added = {name for name, _ in got.headers if name.startswith(ADDED)}
    wanted = {b"X-Foreman-Job-Id", b"X-Foreman-Queue-Ms"} if takes_turn(recording) else set()
    if expected.header(b"content-type") in STREAMS:
        wanted.add(b"X-Accel-Buffering")
    assert added == wanted
    assert got.chunked == expected.chunked
    assert got.chunks == expected.chunks
    assert got.complete


def test_every_exchange_is_here():
    """The copy is whole, and each exchange is either relayed or made by foreman's own rules."""
    assert len(GOLDEN_NAMES) == 75
    assert set(GOLDEN_NAMES) > BY_RULES


@pytest.mark.parametrize("name", RELAYED)
async def test_the_answer_is_the_recorded_one(bench: Bench, name: str):
    """What the target says is what the client gets, and one chunk is one chunk, however TCP cut it."""
    recording = golden(name)
    target, port = bench.replay(recording)
    front = await bench.front(port)
    for target.cut in CUTS:
        assert_same(await front.ask(recording.request), recording)
    assert len(target.received) == len(CUTS)
    assert target.unmatched == []


@pytest.mark.parametrize("name", RELAYED)
async def test_what_has_come_goes_on_at_once(bench: Bench, name: str):
    """A chunk is with the client before the target sends the next one: nothing is collected on the way."""
    recording = golden(name)
    clock = Clock()
    target, port = bench.replay(recording, cut=by_chunk, delay=1.0, clock=clock)
    front = await bench.front(port)
    client = await front.connect()
    client.send(recording.request)
    await front.until(lambda: target.received)
    expected = recorded(recording)
    if expected.header(b"content-type") in STREAMS:
        clock.advance(1)
        assert (await client.begun()).chunks == []
        for number in range(len(expected.chunks)):
            clock.advance(1)
            assert (await client.begun(number + 1)).chunks == expected.chunks[: number + 1]
    while clock.getDelayedCalls():
        clock.advance(1)
    assert_same(await client.answer(), recording)
    client.close()
    await client.closed()


@pytest.mark.parametrize(
    ("name", "step"),
    [("chat-tools-stream", 1), ("chat-nostream", 1), ("tags-head", 1), ("v1-completions-stream", 7)],
)
async def test_the_answer_is_the_same_for_every_split_in_two(bench: Bench, name: str, step: int):
    """There is no position at which a read of the target's bytes may not end."""
    recording = golden(name)
    target, port = bench.replay(recording)
    front = await bench.front(port)
    for count in range(1, len(recording.response), step):
        target.cut = after(count)
        assert_same(await front.ask(recording.request), recording)


DIALECT_ERRORS = {"chat-tools-stream": ["error"], "v1-completions-stream": ["error", "message"]}


def error_of(name: str, words: bytes) -> str:
    """The sentence in the last words of a stream."""
    if name.startswith("v1"):
        assert words.startswith(b"data: ")
        assert words.endswith(b"\n\n")
        value = json.loads(words.removeprefix(b"data: "))
    else:
        assert words.endswith(b"}\n")
        value = json.loads(words)
    for key in DIALECT_ERRORS[name]:
        value = value[key]
    assert isinstance(value, str)
    return value


@pytest.mark.parametrize("ending", [Ending.CLOSE, Ending.RESET])
@pytest.mark.parametrize("name", DIALECT_ERRORS)
async def test_a_stream_that_is_cut_at_any_byte_never_looks_whole(bench: Bench, name: str, ending: Ending):
    """
    Cut in the head: 502 in the path's dialect. Cut in the body: every whole chunk, then the error as last
    words, then the end of the connection without the terminating chunk.
    """
    recording = golden(name)
    target, port = bench.replay(recording, ending=ending)
    front = await bench.front(port)
    head, _ = split_head(recording.response)
    expected = recorded(recording)
    for count in range(0, len(recording.response), 1 if ending is Ending.CLOSE else 7):
        target.stop_after = count
        got = await front.ask(recording.request)
        assert got.header(b"X-Foreman-Job-Id") is not None
        assert got.header(b"X-Foreman-Queue-Ms") is not None
        if count < len(head):
            assert (got.status, got.complete) == (502, True)
            value = got.json
            for key in DIALECT_ERRORS[name]:
                value = value[key]
            assert "the target closed the connection" in value
            assert got.header(b"X-Accel-Buffering") is None
            continue
        assert (got.status, got.complete, got.rest) == (200, False, b"")
        whole_chunks = parse(recording.response[:count], False, closed=True)[0]
        assert whole_chunks is not None
        assert got.chunks[:-1] == expected.chunks[: len(whole_chunks.chunks)]
        assert "the target closed the connection" in error_of(name, got.chunks[-1])
    assert front.parts.turn.free


@pytest.mark.parametrize("name", sorted(BY_RULES))
async def test_foreman_applies_the_rules_for_pages_itself(bench: Bench, name: str):
    """The target sees no Origin and only its own Host; the client sees what Ollama would have answered."""
    recording = golden(name)
    target, port = bench.replay(golden("version"))
    front = await bench.front(port)
    got, expected = await front.ask(recording.request), recorded(recording)
    assert (got.status, got.reason, got.body) == (expected.status, expected.reason, expected.body)

    def but_date(answer: Answer) -> list[tuple[bytes, bytes]]:
        return sorted(pair for pair in end_to_end(answer) if pair[0] != b"Date")

    assert but_date(got) == but_date(expected)
    assert got.header(b"Date") is not None
    if name == "cors-allowed":
        (received,) = target.received
        assert received.header(b"origin") == []
    else:
        assert target.received == []


async def test_what_goes_up(bench: Bench):
    """The request is the client's own, less what is between two hops; its body has a length."""
    recording = golden("chat-authorization")
    target, port = bench.replay(recording)
    front = await bench.front(port)
    await front.ask(recording.request.replace(b"\r\nAccept:", b"\r\nReferer: http://x/\r\nAccept:"))
    (received,) = target.received
    sent, _ = split_head(recording.request)

    def fields(head: bytes) -> list[bytes]:
        lines = head.split(b"\r\n")[1:-2]
        return sorted(line for line in lines if not line.lower().startswith((b"host:", b"connection:")))

    assert received.head.split(b"\r\n")[0] == sent.split(b"\r\n")[0]
    assert received.header(b"host") == [b"127.0.0.1:%d" % port]
    assert fields(received.head) == fields(sent)
    assert received.body == recording.key[2]


async def test_a_chunked_upload_goes_up_with_a_length(bench: Bench):
    """Ollama's own async client sends chunked bodies; the target gets the same bytes."""
    recording = golden("blob-post-new")
    head, body = split_head(recording.request)
    target, port = bench.replay(recording)
    front = await bench.front(port)
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    chunked = b"\r\n".join([*lines[:-2], b"Transfer-Encoding: chunked", b"", b""])
    pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    assert_same(await front.ask(chunked + pieces), recording)
    (received,) = target.received
    assert received.header(b"transfer-encoding") == []
    assert received.header(b"content-length") == [b"%d" % len(body)]


def kept_alive(request: bytes) -> bytes:
    """The same request from a client that keeps its connection."""
    return request.replace(b"Connection: close\r\n", b"")


NAMES_ON_ONE_CONNECTION = ["chat-stream", "root-head", "tags", "blob-head-missing", "v1-chat-stream", "copy"]


async def test_one_connection_carries_many_exchanges(bench: Bench):
    """A client may keep its connection, whatever the target does with its own."""
    recordings = [golden(name) for name in NAMES_ON_ONE_CONNECTION]
    target, port = bench.replay(*recordings)
    front = await bench.front(port)
    client = await front.connect()
    for recording in recordings:
        client.send(kept_alive(recording.request))
        assert_same(await client.answer(), recording)
    assert target.connections == len(recordings)
    client.close()
    await client.closed()


async def test_pipelined_requests_are_answered_in_their_order(bench: Bench):
    """What a client sends ahead waits for the answer before it."""
    recordings = [golden(name) for name in NAMES_ON_ONE_CONNECTION]
    target, port = bench.replay(*recordings, cut=every_byte)
    front = await bench.front(port)
    client = await front.connect()
    for recording in recordings:
        client.send(kept_alive(recording.request))
    for recording in recordings:
        assert_same(await client.answer(), recording)
    assert [received.key for received in target.received] == [recording.key for recording in recordings]
    client.close()
    await client.closed()


@pytest.mark.parametrize("name", ["chat-stream", "v1-chat-stream", "chat-nostream", "tags", "root-head"])
async def test_a_client_of_http_1_0(bench: Bench, name: str):
    """It knows no chunks: the body comes bare, and the end of the connection is its end."""
    recording = golden(name)
    _, port = bench.replay(recording)
    front = await bench.front(port)
    client = await front.connect()
    client.send(kept_alive(recording.request).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    await client.closed()
    got, expected = await client.answer(), recorded(recording)
    assert (got.status, got.body, got.chunked) == (expected.status, expected.body, False)
    assert end_to_end(got) == end_to_end(expected)


async def test_a_kept_connection_to_the_target_is_used_again(bench: Bench):
    """One connection carries what comes one after the other."""
    recordings = [golden(name).kept_alive() for name in NAMES_ON_ONE_CONNECTION]
    target, port = bench.replay(*recordings)
    front = await bench.front(port)
    for recording in recordings:
        assert_same(await front.ask(recording.request), recording)
    assert target.connections == 1


@pytest.mark.parametrize("name", ["tags", "chat-stream", "blob-post-new"])
async def test_a_stale_connection_costs_nobody_an_answer(bench: Bench, name: str):
    """
    The target closes a kept connection just when a request comes on it: it is sent once more, on a fresh
    connection, a POST too, for not a byte of an answer had come.
    """
    recording = golden(name).kept_alive()
    target, port = bench.replay(recording, dies_at_request=2)
    front = await bench.front(port)
    for _ in range(3):
        assert_same(await front.ask(recording.request), recording)
    assert [received.connection for received in target.received] == [1, 1, 2, 2, 3]
    assert len({received.body for received in target.received}) == 1


async def test_a_connection_that_was_closed_while_idle_is_forgotten(bench: Bench):
    """The end of an idle connection is seen at once: the next request does not meet it."""
    recording = golden("chat-nostream").kept_alive()
    target, port = bench.replay(recording)
    front = await bench.front(port)
    assert_same(await front.ask(recording.request), recording)
    target.drop()
    await front.until(lambda: front.parts.connections.reusable() is None)
    assert_same(await front.ask(recording.request), recording)
    assert [received.connection for received in target.received] == [1, 2]


@pytest.mark.parametrize("name", ["tags", "chat-nostream"])
async def test_an_answer_that_has_begun_is_never_asked_for_again(bench: Bench, name: str):
    """One byte of an answer shows that the target took the request: it may have done the work."""
    recording = golden(name).kept_alive()
    target, port = bench.replay(recording)
    front = await bench.front(port)
    assert_same(await front.ask(recording.request), recording)
    target.stop_after, target.ending = 1, Ending.CLOSE
    got = await front.ask(recording.request)
    assert (got.status, got.json) == (
        502,
        {"error": "the target closed the connection in the middle of its answer"},
    )
    assert [received.connection for received in target.received] == [1, 1]


async def test_a_connection_that_dies_twice_is_not_tried_a_third_time(bench: Bench):
    """Once more means once: a target that always hangs up makes a 502."""
    recording = golden("chat-nostream").kept_alive()
    target, port = bench.replay(recording)
    front = await bench.front(port)
    assert_same(await front.ask(recording.request), recording)
    target.stop_after, target.ending = 0, Ending.CLOSE
    got = await front.ask(recording.request)
    assert (got.status, got.json) == (502, {"error": "the target closed the connection without an answer"})
    assert [received.connection for received in target.received] == [1, 1, 2]


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("name", ["tags", "chat-stream", "root-head", "copy"])
@pytest.mark.parametrize("more", [b"evil", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Evil: 1\r\n\r\nevil"])
async def test_bytes_after_an_answer_are_nobodys(bench: Bench, name: str, close: bool, more: bytes):
    """A target that says more than its answer harms neither this client nor the next one."""
    recording = golden(name) if close else golden(name).kept_alive()
    loud = Recording(name, recording.request, recording.response + more)
    target, port = bench.replay(loud)
    front = await bench.front(port)
    client = await front.connect()
    for _ in range(2):
        client.send(kept_alive(recording.request))
        assert_same(await client.answer(), recording)
    assert target.connections == 2
    client.close()
    await client.closed()
    assert client.data == b""


async def test_a_body_that_ends_with_its_connection(bench: Bench):
    """RFC 9112 §6.3: without a length or chunks the end is the end; what comes goes on as chunks."""
    request = golden("version").request
    answer = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nsome words"
    target, port = bench.replay(
        Recording("eof", request, answer), ending=Ending.CLOSE, cut=after(len(answer) - 5)
    )
    front = await bench.front(port)
    got = await front.ask(request)
    assert (got.status, got.chunks, got.complete) == (200, [b"some ", b"words"], True)
    assert target.connections == 1


async def test_a_large_chunk_goes_on_in_pieces(bench: Bench):
    """Up to 256 KiB a chunk goes on whole; a larger one is not held in memory for its size."""
    request = golden("show").request
    small, large = bytes(range(256)) * 1024, bytes(range(256)) * 4096
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (small, large, b""))
    _, port = bench.replay(Recording("large", request, head + framed))
    front = await bench.front(port)
    got = await front.ask(request)
    assert got.complete
    assert got.chunks[0] == small
    assert len(got.chunks) > 3
    assert got.body == small + large


async def test_trailers_and_early_hints_stay_here(bench: Bench):
    """A 1xx answer is passed over, and fields after the body are dropped: the rest is untouched."""
    recording = golden("chat-stream")
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    answer = hints + recording.response[:-2] + b"X-Trailer: 1\r\n\r\n"
    for cut in (whole, every_byte):
        _, port = bench.replay(Recording("extras", recording.request, answer), cut=cut, ending=Ending.CLOSE)
        front = await bench.front(port)
        assert_same(await front.ask(recording.request), recording)


async def test_a_model_that_is_not_installed_is_answered_beside_the_turn(bench: Bench):
    """With the models known, the target's own 404 comes at once, though somebody generates."""
    missing, running = golden("chat-missing-model"), golden("chat-stream")
    tags, show = golden("tags").kept_alive(), golden("show")
    target, port = bench.replay(
        tags, show, golden("ps-loaded"), golden("version"), missing, running, cut=by_chunk
    )
    front = await bench.front(port, polls=True)
    await front.until(lambda: front.parts.inventory.version)
    target.stop_after, target.ending = len(split_head(running.response)[0]), Ending.SILENCE
    holder = await front.connect()
    holder.send(kept_alive(running.request))
    await holder.begun()
    target.stop_after, target.ending = None, Ending.AS_RECORDED
    got, expected = await front.ask(missing.request), recorded(missing)
    assert (got.status, got.body) == (404, expected.body)
    assert end_to_end(got) == end_to_end(expected)
    assert got.header(b"X-Foreman-Job-Id") is None
    assert front.parts.turn.holder is not None
    holder.leave()
    await holder.closed()
