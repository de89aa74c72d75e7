"""A large upload through a real foreman: byte for byte, in constant memory, and nothing left on the disk."""

import hashlib
import os
import re
import signal
import socket
import threading
from pathlib import Path

import pytest
from processes import PATIENCE_SECONDS, connect, read_all, read_head, started

PIECE = os.urandom(1 << 20)
PIECES = 200
# The body is 200 MiB; what foreman itself needs on the way are buffers.
GROWTH_BYTES = 24 << 20


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had in use."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def receive(server: socket.socket, received: list[tuple[bytes, int, str]]) -> None:
    """A target that takes one upload, and keeps its head, length and hash."""
    while not received:
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as sent:
            connection.settimeout(PATIENCE_SECONDS)
            head = read_head(sent)
            if not head.startswith(b"POST /api/blobs/"):
                connection.sendall(
                    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )
                continue
            match = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            assert match is not None
            left, digest = int(match[1]), hashlib.sha256()
            while left and (piece := sent.read(min(left, 1 << 20))):
                digest.update(piece)
                left -= len(piece)
            received.append((head, int(match[1]) - left, digest.hexdigest()))
            connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("is_chunked", [True, False], ids=["chunked", "declared"])
def test_upload_in_constant_memory(is_chunked: bool, tmp_path: Path) -> None:
    """200 MiB to /api/blobs, which has no limit: foreman does not grow, and the target gets every byte."""
    received: list[tuple[bytes, int, str]] = []
    digest = hashlib.sha256()
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = threading.Thread(target=receive, args=(server, received), daemon=True)
        target.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with started("foreman serve", tmp_path, OLLAMA_URL=url) as daemon, connect(daemon.port) as client:
            before = peak_bytes(daemon.pid)
            framing = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {PIECES * len(PIECE)}"
            lines = ("POST /api/blobs/sha256:abc HTTP/1.1", "Host: localhost", "Connection: close", framing)
            client.sendall("\r\n".join((*lines, "", "")).encode())
            files = set()
            for number in range(PIECES):
                piece = PIECE[number:] + PIECE[:number]
                digest.update(piece)
                client.sendall(b"%x\r\n%s\r\n" % (len(piece), piece) if is_chunked else piece)
                files |= set(os.listdir(tmp_path))
            if is_chunked:
                client.sendall(b"0\r\n\r\n")
            answer = read_all(client)
            grown = peak_bytes(daemon.pid) - before
            daemon.signal(signal.SIGTERM)
            daemon.wait()
            assert "Traceback" not in daemon.text()
        target.join(PATIENCE_SECONDS)
    assert answer.startswith(b"HTTP/1.1 201 Created\r\n")
    assert [(size, seen) for _, size, seen in received] == [(PIECES * len(PIECE), digest.hexdigest())]
    assert grown < GROWTH_BYTES, f"foreman grew by {grown >> 20} MiB"
    own = {"foreman.db", "foreman.db-wal", "foreman.db-shm", "foreman.db.lock", "output.txt"}
    assert files | set(os.listdir(tmp_path)) <= own
