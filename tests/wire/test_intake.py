"""How requests come in: what is refused by the head, what in the middle of the body, and what passes."""

import errno
import hashlib
import json
import os
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import pytest
import pytest_twisted
from intake_helpers import (
    DIALECTS,
    Client,
    Wired,
    check_error,
    chunk,
    dialect_of,
    request,
    turn_of_the_reactor,
    wired,
)

KIB = 1024
MIB = 1024 * KIB


@pytest_twisted.async_yield_fixture
async def foreman(tmp_path: Path) -> AsyncIterator[Wired]:
    """A foreman that takes bodies up to 100 kB."""
    async with wired(tmp_path, BODY_LIMIT="100000") as made:
        yield made


@pytest_twisted.async_yield_fixture
async def roomy(tmp_path: Path) -> AsyncIterator[Wired]:
    """A foreman with the usual limits."""
    async with wired(tmp_path) as made:
        yield made


class FullSpool:
    """A spool without room, or whose files take only so many bytes, written through or at a flush."""

    def __init__(self, folder: str, takes: int | None = None, *, at_flush: bool = False) -> None:
        self.folder = folder
        self.takes = takes
        self.at_flush = at_flush
        self.files: list[FullFile] = []

    def has_room(self, _size_bytes: int) -> bool:
        return self.takes is not None

    def open(self) -> "FullFile":
        assert self.takes is not None
        self.files.append(FullFile(self.takes, self.at_flush))
        return self.files[-1]


class FullFile(BytesIO):
    """A file on a disk that runs full; like a real one it cannot be flushed after that, not even to close."""

    def __init__(self, takes: int, at_flush: bool) -> None:
        super().__init__()
        self._takes = takes
        self._at_flush = at_flush
        self.was_closed = False

    def write(self, data: object) -> int:
        written = super().write(data)  # type: ignore[arg-type]
        if not self._at_flush:
            self._check()
        return written

    def flush(self) -> None:
        if not self.closed:
            self._check()

    def close(self) -> None:
        self.was_closed = True
        if not self.closed:
            try:
                self._check()
            finally:
                super().close()

    def _check(self) -> None:
        if self.tell() > self._takes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def pump(client: Client, piece: bytes, at_most: int) -> int:
    """Send the piece again and again, until the server has said something; return how often."""
    for number in range(at_most):
        if client.received or client.closed is not None:
            return number
        client.send(piece)
        await turn_of_the_reactor()
    return at_most


def too_long(path: str, headers: dict[str, str] | None = None) -> bytes:
    """The head of a request whose declared body is over the limit."""
    return request("POST", path, {"Content-Length": "100001", **(headers or {})})


def chunked(path: str, headers: dict[str, str] | None = None) -> bytes:
    """The head of a request with a chunked body."""
    return request("POST", path, {"Transfer-Encoding": "chunked", **(headers or {})})


# Over the limit


@pytest.mark.parametrize("expects", [False, True], ids=["", "expect"])
@pytest.mark.parametrize("path", DIALECTS)
async def test_declared_length_over_the_limit(foreman: Wired, path: str, expects: bool) -> None:
    """413 by the head alone: nobody has to send the body first, and no 100 invites it."""
    client = await foreman.connect()
    client.send(too_long(path, {"Expect": "100-continue"} if expects else None))
    answer = await client.answer()
    sentence = check_error(answer, DIALECTS[path], 413, "body_too_large")
    assert sentence == "the request body is larger than 100000 bytes, the limit of FOREMAN_BODY_LIMIT"
    assert answer.header("connection") == "close"
    await client.gone()
    assert client.received == b""
    assert foreman.target.requests == []


@pytest.mark.parametrize("expects", [False, True], ids=["", "expect"])
@pytest.mark.parametrize("path", DIALECTS)
async def test_chunked_body_over_the_limit(foreman: Wired, path: str, expects: bool) -> None:
    """A chunked body says no length: it is read up to the limit, and then the answer is 413."""
    client = await foreman.connect()
    client.send(chunked(path, {"Expect": "100-continue"} if expects else None))
    if expects:
        # Here the 100 is right: nobody knows yet that the body is too large.
        assert (await client.answer()).status == 100
    await pump(client, chunk(b"x" * 10_000), 100)
    check_error(await client.answer(), DIALECTS[path], 413, "body_too_large")
    assert foreman.target.requests == []


@pytest.mark.parametrize("head", [too_long("/api/chat"), chunked("/api/chat")], ids=["declared", "chunked"])
async def test_answer_reaches_a_client_that_goes_on_sending(foreman: Wired, head: bytes) -> None:
    """A client that sends on sees the answer and its end, and is not reset under its megabytes."""
    client = await foreman.connect()
    client.goes_on = True
    client.send(head)
    piece = chunk(b"x" * 60_000) if b"chunked" in head else b"x" * 1000
    await pump(client, piece, 200)
    check_error(await client.answer(), "ollama", 413, "body_too_large")
    await client.until(lambda: client.ended)
    for _ in range(50):
        client.send(piece)
        await turn_of_the_reactor()
    assert client.closed is None
    assert client.received == b""


async def test_refused_body_is_read_to_its_end_and_thrown_away(foreman: Wired) -> None:
    """A client that sends its whole body before it reads sees the answer and a clean end."""
    client = await foreman.connect()
    client.send(too_long("/api/chat") + b"x" * 100_001)
    check_error(await client.answer(), "ollama", 413, "body_too_large")
    await client.gone()
    assert client.closed is not None
    assert client.closed.type.__name__ == "ConnectionDone"
    assert client.received == b""


async def test_nothing_follows_a_refusal_with_a_body(foreman: Wired) -> None:
    """What comes after the refused body is not taken for a request."""
    client = await foreman.connect()
    client.send(too_long("/api/chat") + b"x" * 100_001 + request("GET", "/api/tags"))
    check_error(await client.answer(), "ollama", 413, "body_too_large")
    await client.gone()
    assert client.received == b""
    assert foreman.target.requests == []


@pytest.mark.parametrize("size", [0, 1, 99_999, 100_000])
async def test_up_to_the_limit_passes(foreman: Wired, size: int) -> None:
    """The limit itself is allowed, declared or chunked."""
    body = b"x" * size
    assert (await foreman.ask("POST", "/nope", {"Content-Length": str(size)}, body)).status == 404
    client = await foreman.connect()
    client.send(chunked("/nope") + (chunk(body) if body else b"") + b"0\r\n\r\n")
    assert (await client.answer()).status == 404
    assert [exchange.body for exchange in foreman.target.requests] == [body, body]


async def test_two_requests_after_a_refusal_without_a_body(tmp_path: Path) -> None:
    """A refused GET leaves the connection as good as new."""
    async with wired(tmp_path, TOKEN="s3cret") as foreman:
        client = await foreman.connect()
        client.send(request("GET", "/api/version"))
        check_error(await client.answer(), "ollama", 401, "unauthorized")
        for _ in range(2):
            client.send(request("GET", "/api/version", {"x-api-key": "s3cret"}))
            assert (await client.answer()).status == 200
        client.send(request("HEAD", "/api/version"))
        answer = await client.answer(no_body=True)
        assert answer.status == 401
        assert int(answer.header("content-length") or 0) > 0
        client.send(request("GET", "/api/version", {"x-api-key": "s3cret"}))
        assert (await client.answer()).status == 200
        assert client.closed is None


async def test_refusal_of_an_http_1_0_request(foreman: Wired) -> None:
    """An old client gets the answer and the end."""
    client = await foreman.connect()
    client.send(too_long("/api/chat").replace(b"HTTP/1.1", b"HTTP/1.0"))
    check_error(await client.answer(), "ollama", 413, "body_too_large")


async def test_client_that_leaves_in_the_middle_of_its_body(roomy: Wired) -> None:
    """Nothing reaches the target, and nothing is left behind."""
    client = await roomy.connect()
    client.send(request("POST", "/api/blobs/sha256:abc", {"Content-Length": str(8 * MIB)}) + b"x" * 2 * MIB)
    await client_was_read(roomy)
    client.close()
    await client.gone()
    while roomy.parts.site.channels:
        await turn_of_the_reactor()
    assert roomy.target.requests == []
    assert os.listdir(roomy.folder) == []


async def client_was_read(foreman: Wired) -> None:
    """Wait until foreman has begun to receive a request's body."""
    while not any(channel.busy for channel in foreman.parts.site.channels):
        await turn_of_the_reactor()


# The disk


@pytest.mark.parametrize("expects", [False, True], ids=["", "expect"])
@pytest.mark.parametrize("path", DIALECTS)
async def test_no_room_for_a_declared_body(roomy: Wired, path: str, expects: bool) -> None:
    """507 by the head alone, in the dialect of the path."""
    roomy.parts.site.spool = FullSpool("/spool")  # type: ignore[assignment]
    client = await roomy.connect()
    headers = {"Content-Length": str(2 * MIB), **({"Expect": "100-continue"} if expects else {})}
    client.send(request("POST", path, headers))
    sentence = check_error(await client.answer(), DIALECTS[path], 507, "disk_full")
    assert sentence == "there is no room for the request body in /spool, beside FOREMAN_DB_PATH"
    assert roomy.target.requests == []


async def test_no_room_for_a_chunked_body(roomy: Wired) -> None:
    """A chunked body is refused when it no longer fits into memory."""
    roomy.parts.site.spool = FullSpool("/spool")  # type: ignore[assignment]
    client = await roomy.connect()
    client.send(chunked("/api/blobs/sha256:abc"))
    sent = await pump(client, chunk(b"x" * 64 * KIB), 1000)
    check_error(await client.answer(), "ollama", 507, "disk_full")
    assert sent > 16


@pytest.mark.parametrize("is_chunked", [False, True], ids=["declared", "chunked"])
async def test_small_bodies_need_no_disk(roomy: Wired, is_chunked: bool) -> None:
    """Up to 1 MiB a body stays in memory, so chats go on when the disk is full."""
    roomy.parts.site.spool = FullSpool("/spool")  # type: ignore[assignment]
    body = b"x" * MIB
    client = await roomy.connect()
    if is_chunked:
        client.send(chunked("/nope") + chunk(body) + b"0\r\n\r\n")
    else:
        client.send(request("POST", "/nope", body=body))
    assert (await client.answer()).status == 404
    assert [exchange.body for exchange in roomy.target.requests] == [body]


@pytest.mark.parametrize("takes", [0, MIB, 3 * MIB])
@pytest.mark.parametrize(
    "path", ["/api/blobs/sha256:abc", "/v1/chat/completions", "/v1/messages", "/healthz"]
)
async def test_disk_runs_full_in_the_middle(roomy: Wired, path: str, takes: int) -> None:
    """ENOSPC while the body is written: 507, and what was written is given back at once."""
    spool = FullSpool("/spool", takes)
    roomy.parts.site.spool = spool  # type: ignore[assignment]
    client = await roomy.connect()
    client.send(request("POST", path, {"Content-Length": str(8 * MIB)}))
    await pump(client, b"x" * 64 * KIB, 127)
    check_error(await client.answer(), dialect_of(path), 507, "disk_full")
    assert [file.was_closed for file in spool.files] == [True]
    assert roomy.target.requests == []


async def test_disk_is_full_at_the_last_flush(roomy: Wired) -> None:
    """The last bytes of a body may only fail to be written when it is complete."""
    spool = FullSpool("/spool", MIB, at_flush=True)
    roomy.parts.site.spool = spool  # type: ignore[assignment]
    client = await roomy.connect()
    client.send(request("POST", "/api/chat", body=b"x" * 2 * MIB))
    check_error(await client.answer(), "ollama", 507, "disk_full")
    await client.gone()
    assert spool.files[0].was_closed
    assert roomy.target.requests == []


async def test_room_is_asked_for_again(roomy: Wired) -> None:
    """Others fill the disk during a long upload: the reserve is kept, not only at its start."""
    asked: list[int] = []
    real = roomy.parts.site.spool

    class Shrinking:
        folder = real.folder

        def has_room(self, size_bytes: int) -> bool:
            asked.append(size_bytes)
            return len(asked) < 3

        def open(self) -> object:
            return real.open()

    roomy.parts.site.spool = Shrinking()  # type: ignore[assignment]
    client = await roomy.connect()
    client.send(chunked("/api/blobs/sha256:abc"))
    sent = await pump(client, chunk(b"x" * MIB), 64)
    check_error(await client.answer(), "ollama", 507, "disk_full")
    assert len(asked) == 3
    assert sent >= 33
    assert os.listdir(roomy.folder) == []


async def test_reserve_of_the_disk(tmp_path: Path) -> None:
    """FOREMAN_DISK_RESERVE counts: with a reserve larger than the disk there is room for nothing large."""
    async with wired(tmp_path, DISK_RESERVE="1000000TiB") as foreman:
        answer = await foreman.ask("POST", "/api/chat", {"Content-Length": str(2 * MIB)})
        check_error(answer, "ollama", 507, "disk_full")


# What passes


@pytest.mark.parametrize("is_chunked", [False, True], ids=["declared", "chunked"])
@pytest.mark.parametrize("path", ["/api/blobs/sha256:abc", "/nope"])
async def test_large_body_arrives_byte_for_byte(roomy: Wired, path: str, is_chunked: bool) -> None:
    """A body that went over the disk reaches the target as it was, and no file is ever seen."""
    body = os.urandom(5 * MIB + 7)
    client = await roomy.connect()
    if is_chunked:
        client.send(chunked(path))
        for at in range(0, len(body), 70_001):
            client.send(chunk(body[at : at + 70_001]))
        client.send(b"0\r\n\r\n")
    else:
        client.send(request("POST", path, body=body))
    assert (await client.answer()).status == 404
    (exchange,) = roomy.target.requests
    assert hashlib.sha256(exchange.body).digest() == hashlib.sha256(body).digest()
    assert exchange.headers["content-length"] == str(len(body))
    assert "transfer-encoding" not in exchange.headers
    assert os.listdir(roomy.folder) == []


async def test_100_continue(roomy: Wired) -> None:
    """A body that may come is invited once."""
    client = await roomy.connect()
    client.send(request("POST", "/nope", {"Content-Length": "5", "Expect": "100-continue"}))
    assert (await client.answer()).status == 100
    client.send(b"hello")
    assert (await client.answer()).status == 404
    (exchange,) = roomy.target.requests
    assert exchange.body == b"hello"
    assert "expect" not in exchange.headers


async def test_absolute_form(roomy: Wired) -> None:
    """A request line as clients send it to a proxy is taken apart: it takes its turn like any other."""
    client = await roomy.connect()
    body = b'{"model":"alpha","messages":[{"role":"user","content":"hi"}],"stream":false}'
    client.send(request("POST", "http://127.0.0.1:1/api/chat?x=1", body=body))
    answer = await client.answer()
    assert (answer.status, answer.header("x-foreman-job-id") is None) == (200, False)
    assert roomy.target.requests[-1].request.uri == b"/api/chat?x=1"
    client.send(request("GET", "HTTP://localhost/healthz"))
    assert (await client.answer()).status == 200
    client.send(request("GET", "http://localhost"))
    assert (await client.answer()).body == b"Ollama is running"
    # Its authority is the host that counts.
    client.send(request("GET", "http://evil.example/healthz", {"Host": "localhost"}))
    assert (await client.answer()).status == 403


@pytest.mark.parametrize("host", ["a..localhost", f"{'x' * 64}.localhost", ".localhost"])
async def test_host_that_is_no_name(roomy: Wired, host: str) -> None:
    """Klein's router would fail for it, before anybody is asked for a token."""
    client = await roomy.connect()
    client.send(request("GET", "/healthz", {"Host": host}))
    assert (await client.answer()).status == 200


async def test_two_slashes_are_not_one(roomy: Wired) -> None:
    """There is no such path, and no redirection to another one."""
    client = await roomy.connect()
    client.send(request("GET", "/jobs//x"))
    answer = await client.answer()
    assert (answer.status, json.loads(answer.body)["code"]) == (404, "not_found")


async def test_status_lines_have_their_phrase(roomy: Wired) -> None:
    """twisted.web knows none for 422."""
    client = await roomy.connect()
    client.send(request("GET", "/jobs?limit=0"))
    await client.until(lambda: b"\r\n" in client.received)
    assert client.received.startswith(b"HTTP/1.1 422 Unprocessable")
    await client.answer()


# What is no HTTP


@pytest.mark.parametrize(
    "sent",
    [
        b"NONSENSE\r\n\r\n",
        b"GET /api/tags\r\n\r\n",
        b"GET /api/tags HTTP/2.0\r\n\r\n",
        b"GET  /api/tags HTTP/1.1\r\n\r\n",
        b"G\x00T /api/tags HTTP/1.1\r\n\r\n",
        b"GET /api/\x01 HTTP/1.1\r\n\r\n",
        b"GET api/tags HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /api/tags HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /api/tags HTTP/1.1\r\nno colon\r\nHost: localhost\r\n\r\n",
        b"GET /api/tags HTTP/1.1\r\nna me: x\r\n\r\n",
        b"GET /api/tags HTTP/1.1\r\nName : x\r\n\r\n",
        b"GET /api/tags HTTP/1.1\r\nName: a\x00b\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\nHost: localhost\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST /api/chat HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /api/chat HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"POST /api/chat HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n",
    ],
)
async def test_malformed_request(roomy: Wired, sent: bytes) -> None:
    """400 and the end, nothing at the target, and nothing in the log (the fixture for all tests looks)."""
    client = await roomy.connect()
    client.send(sent)
    await client.until(lambda: b"\r\n\r\n" in client.received or client.closed is not None)
    assert client.received.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    client.send(request("GET", "/api/tags"))
    if sent.startswith((b"GET api", b"GET *", b"CONNECT")):
        # HTTP in itself, so the connection may go on.
        client.received = client.received.partition(b"400 Bad Request\r\n")[2].partition(b"400 Bad Request")[
            2
        ]
        await client.answer()
        assert len(roomy.target.requests) == 1
    else:
        await client.gone()
        assert roomy.target.requests == []


async def test_malformed_chunk_after_a_refusal(foreman: Wired) -> None:
    """The answer that went out is the only one."""
    client = await foreman.connect()
    client.send(chunked("/api/chat") + chunk(b"x" * 100_001) + b"zz\r\n")
    check_error(await client.answer(), "ollama", 413, "body_too_large")
    await client.gone()
    assert client.received == b""


@pytest.mark.parametrize(
    ("fields", "length", "status"),
    [(1, 15_000, 404), (1, 17_000, 400), (20, 700, 404), (20, 900, 400), (499, 1, 404), (501, 1, 400)],
)
async def test_head_limit(roomy: Wired, fields: int, length: int, status: int) -> None:
    """A head may have 16 KiB and 500 fields."""
    client = await roomy.connect()
    lines = b"".join(b"x%d: %s\r\n" % (number, b"x" * length) for number in range(fields))
    client.send(b"GET /nope HTTP/1.1\r\n" + lines + b"\r\n")
    await client.until(lambda: b"\r\n\r\n" in client.received or client.closed is not None)
    assert client.received.startswith(b"HTTP/1.1 %d " % status)
    assert len(roomy.target.requests) == (1 if status == 404 else 0)
