"""
A target that costs next to nothing: prepared bytes for each route that the bench needs.

Run as ``python -m bench.target``; prints its port.
"""

import asyncio
import json
import re


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
        answer = FIXED.get(path)
        if answer is None and b'"stream": false' in body:
            answer = WHOLE
        if answer is not None:
            self._transport.write(answer)
            return
        found = re.search(rb'"num_predict": (\d+)', body)
        self._stream(int(found[1]) if found else 10)

    def _stream(self, lines: int) -> None:
        """One write a line, as Ollama flushes each."""
        write, line = self._transport.write, _chunk(LINE)
        write(STREAM_HEAD + line)
        for _ in range(lines - 2):
            write(line)
        write(_chunk(LAST) + b"0\r\n\r\n")


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(Target, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
