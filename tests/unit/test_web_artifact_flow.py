"""Artifacts and bodies on a connection: the pace of the client, constant memory, and sides that go away."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, cast

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from web_jobs_bench import Bench, make_bench

from foreman.errors import DatabaseUnavailable
from foreman.jobs.model import PIECE_BYTES
from foreman.web.app import App
from foreman.web.gate import Gate
from foreman.web.intake import Channel
from foreman.web.native import Native
from foreman.web.origins import Origins
from foreman.web.site import Site
from foreman.web.spool import Spool

SOCKET_BYTES = 64 * 1024
BODY_LIMIT = 1000


class Transport(StringTransportWithDisconnection):
    """A connection whose socket takes 64 KiB, until the client reads. `most` bytes were held at once."""

    held = most = 0

    def write(self, data: bytes) -> None:
        super().write(data)
        self.held += len(data)
        self.most = max(self.most, self.held)
        if self.held > SOCKET_BYTES and self.producer is not None:
            self.producer.pauseProducing()

    def read(self) -> bytes:
        """The client reads what is there."""
        data = self.value()
        self.clear()
        self.held = 0
        if self.producer is not None:
            self.producer.resumeProducing()
        return data

    def abortConnection(self) -> None:
        self.loseConnection()


class Connection:
    """One connection to foreman's own paths."""

    def __init__(self, bench: Bench, folder: str) -> None:
        self.clock = Clock()
        gate = Gate(Origins(), "", 10_000, App.own_paths, job_body_limit=BODY_LIMIT)
        native = cast(Native, None)
        site = Site(self.clock, bench.app.resource(), native, gate, Spool(folder, 0), 60)
        self.transport = Transport(peerAddress=IPv4Address("TCP", "127.0.0.1", 1))
        self.channel = cast(Channel, site.buildProtocol(None))
        self.transport.protocol = cast(Any, self.channel)
        self.channel.makeConnection(self.transport)

    def send(self, head: str, body: bytes = b"") -> None:
        self.channel.dataReceived(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)

    def leave(self) -> None:
        self.transport.loseConnection()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with make_bench() as bench:
        yield bench


@pytest.fixture
def connection(bench: Bench, tmp_path: Any) -> Iterator[Connection]:
    connection = Connection(bench, str(tmp_path))
    yield connection
    if connection.transport.connected:
        connection.leave()
    assert connection.clock.getDelayedCalls() == []


def artifact(bench: Bench, size: int) -> tuple[str, str]:
    """The path of an artifact, and its digest."""
    content = bytes(range(256)) * (size // 256)
    job_id = bench.submit()
    bench.run(job_id, {"transcript.ndjson": content})
    return f"/jobs/{job_id}/artifacts/transcript.ndjson", hashlib.sha256(content).hexdigest()


def test_constant_memory(bench: Bench, connection: Connection) -> None:
    """50 MB for a slow client: at no time is more than one piece waiting for its socket."""
    size = 50 * 1000 * 1024
    path, digest = artifact(bench, size)
    connection.send(f"GET {path} HTTP/1.1\nHost: localhost")
    head, _, body = connection.transport.read().partition(b"\r\n\r\n")
    assert b"Content-Length: %d\r\n" % size in head + b"\r\n"
    assert b"Transfer-Encoding" not in head
    seen, hashed = len(body), hashlib.sha256(body)
    while seen < size:
        data = connection.transport.read()
        assert data
        seen += len(data)
        hashed.update(data)
    assert hashed.hexdigest() == digest
    assert connection.transport.most <= SOCKET_BYTES + PIECE_BYTES + 1000
    # The connection is good for another one.
    connection.send(f"HEAD {path} HTTP/1.1\nHost: localhost")
    head, _, body = connection.transport.read().partition(b"\r\n\r\n")
    assert b"Content-Length: %d\r\n" % size in head + b"\r\n"
    assert body == b""


def test_no_byte_more_than_the_part(bench: Bench, connection: Connection) -> None:
    """Where it begins and ends inside pieces: what follows on the connection is the next answer."""
    path, _ = artifact(bench, 2 * PIECE_BYTES)
    connection.send(f"GET {path} HTTP/1.1\nHost: localhost\nRange: bytes={PIECE_BYTES - 2}-{PIECE_BYTES + 2}")
    _, _, body = connection.transport.read().partition(b"\r\n\r\n")
    assert body == b"\xfe\xff\x00\x01\x02"


def test_deleted_while_it_is_read(bench: Bench, connection: Connection) -> None:
    """The connection ends before the length that was promised; nothing else is put in its place."""
    path, _ = artifact(bench, 4 * PIECE_BYTES)
    connection.send(f"GET {path} HTTP/1.1\nHost: localhost")
    _, _, body = connection.transport.read().partition(b"\r\n\r\n")
    assert bench.ask("DELETE", path.partition("/artifacts")[0]).status == 204
    while connection.transport.connected:
        body += connection.transport.read()
    assert len(body) < 4 * PIECE_BYTES
    assert body == (bytes(range(256)) * (4 * PIECE_BYTES // 256))[: len(body)]


def test_run_again_while_it_is_read(bench: Bench, connection: Connection) -> None:
    """The second half is never that of another run, though it has the same name and size."""
    path, _ = artifact(bench, 4 * PIECE_BYTES)
    connection.send(f"GET {path} HTTP/1.1\nHost: localhost")
    _, _, body = connection.transport.read().partition(b"\r\n\r\n")
    job = path.partition("/artifacts")[0]
    assert bench.ask("POST", f"{job}/retry").status == 202
    bench.run(job.rpartition("/")[2], {"transcript.ndjson": b"z" * (4 * PIECE_BYTES)})
    while connection.transport.connected:
        body += connection.transport.read()
    assert len(body) < 4 * PIECE_BYTES
    assert b"z" not in body.replace(bytes(range(256)), b"")


def test_database_that_fails_while_it_is_read(
    bench: Bench, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is cut: the status was sent before."""
    path, _ = artifact(bench, 4 * PIECE_BYTES)
    connection.send(f"GET {path} HTTP/1.1\nHost: localhost")
    _, _, body = connection.transport.read().partition(b"\r\n\r\n")

    async def unavailable(*_: Any) -> None:
        raise DatabaseUnavailable("foreman.db", "disk I/O error")

    monkeypatch.setattr(type(bench.store), "piece", unavailable)
    while connection.transport.connected:
        body += connection.transport.read()
    assert len(body) < 4 * PIECE_BYTES


def test_client_that_leaves_while_it_reads(bench: Bench, connection: Connection) -> None:
    """Nothing is read from the store any more, and nothing is logged as an error."""
    path, _ = artifact(bench, 4 * PIECE_BYTES)
    connection.send(f"GET {path} HTTP/1.1\nHost: localhost")
    connection.leave()
    sent = len(connection.transport.value())
    assert 0 < sent < 4 * PIECE_BYTES


def test_client_that_leaves_while_it_submits(bench: Bench, connection: Connection) -> None:
    """The write is not called back: the job is there, whole."""
    body = b'{"model":"m","prompt":"p"}'
    bench.pool.commit_seconds = 1.0
    connection.send(f"POST /jobs HTTP/1.1\nHost: localhost\nContent-Length: {len(body)}", body)
    connection.leave()
    bench.clock.advance(1.0)
    bench.pool.commit_seconds = 0.0
    (job,) = bench.ask("GET", "/jobs").json["jobs"]
    assert bench.claim(job["job_id"]).body == body


@pytest.mark.parametrize("method", ["POST /jobs", "POST /jobs/x/cancel"])
def test_body_over_the_limit(bench: Bench, connection: Connection, method: str) -> None:
    """413 before it is read, naming the setting."""
    connection.send(f"{method} HTTP/1.1\nHost: localhost\nContent-Length: {BODY_LIMIT + 1}")
    head, _, body = connection.transport.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    problem = json.loads(body)
    assert problem["code"] == "body_too_large"
    assert "1000 bytes, the limit of FOREMAN_JOB_BODY_LIMIT" in problem["detail"]


def test_chunked_body_over_the_limit(bench: Bench, connection: Connection) -> None:
    """413 as soon as it is past."""
    connection.send("POST /jobs HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked")
    connection.channel.dataReceived(b"3e8\r\n" + b" " * 1000 + b"\r\n")
    assert connection.transport.value() == b""
    connection.channel.dataReceived(b"1\r\n \r\n")
    assert b" 413 " in connection.transport.value()
    assert b"FOREMAN_JOB_BODY_LIMIT" in connection.transport.value()


def test_body_at_the_limit(bench: Bench, connection: Connection) -> None:
    """It is taken."""
    body = b'{"model":"m","prompt":"p"}'.ljust(BODY_LIMIT)
    connection.send(f"POST /jobs HTTP/1.1\nHost: localhost\nContent-Length: {BODY_LIMIT}", body)
    assert b" 202 " in connection.transport.value()
