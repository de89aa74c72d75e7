"""
A target that costs next to nothing: prepared bytes for each route that the bench needs.

Run as ``python -m bench.target``; prints its port. A generation of no tokens is held until
``POST /bench/release``; ``POST /bench/gaps`` gives the seconds between the last byte of each answer and the
next request for a generation, since it was asked last.
"""

import asyncio
import json
import re
import time
from typing import ClassVar


def _answer(content_type: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _json(value: object) -> bytes:
    return _answer("application/json; charset=utf-8", json.dumps(value).encode())


DIGEST = "ab" * 32
MODEL = {"name": "bench:latest", "model": "bench:latest", "size": 1, "digest": DIGEST, "details": {}}
_MESSAGE = b'{"model":"bench","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":'
LINE = _MESSAGE + b'" word"},"done":false}\n'
LAST = _MESSAGE + b'""},"done":true}\n'
FIXED = {
    b"/api/version": _json({"version": "0.0.0"}),
    b"/api/tags": _json({"models": [MODEL]}),
    b"/api/ps": _json({"models": [{**MODEL, "expires_at": "2318-01-01T00:00:00Z", "context_length": 4096}]}),
    b"/api/show": _json({"modelfile": "FROM /blobs/sha256-" + DIGEST, "details": {}, "model_info": {}}),
}
WHOLE = _answer("application/json; charset=utf-8", LAST)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Target(asyncio.Protocol):
    """One connection, kept alive."""

    _gaps: ClassVar[list[float]] = []
    _held: ClassVar[list["Target"]] = []
    _ended_at: ClassVar[float | None] = None

    def __init__(self) -> None:
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self._data += data
        while True:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            found = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
            length = int(found[1]) if found else 0
            if len(rest) < length:
                return
            self._data = rest[length:]
            self._answer(head.split(b" ", 2)[1], rest[:length])

    def _answer(self, path: bytes, body: bytes) -> None:
        received_at = time.perf_counter()
        answer = FIXED.get(path)
        if path == b"/bench/gaps":
            answer = _json(Target._gaps)
            Target._gaps, Target._ended_at = [], None
        elif path == b"/bench/release":
            answer = _json(None)
            while Target._held:
                Target._held.pop()._stream(10)
        elif answer is None and b'"stream": false' in body:
            answer = WHOLE
        if answer is not None:
            self._transport.write(answer)
            return
        if Target._ended_at is not None:
            Target._gaps.append(received_at - Target._ended_at)
        found = re.search(rb'"num_predict": (\d+)', body)
        lines = int(found[1]) if found else 10
        if lines:
            self._stream(lines)
        else:
            Target._held.append(self)

    def _stream(self, lines: int) -> None:
        """One write a line, as Ollama flushes each."""
        write, line = self._transport.write, _chunk(LINE)
        write(STREAM_HEAD + line)
        for _ in range(lines - 2):
            write(line)
        write(_chunk(LAST) + b"0\r\n\r\n")
        Target._ended_at = time.perf_counter()


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(Target, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
