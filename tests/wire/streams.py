"""Made-up exchanges on the paths that generate, and the errors in their dialects."""

import json
from typing import Any

from raw_client import post

from foreman.testing.replay import Recording

PATHS = [
    "/api/chat",
    "/api/generate",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
]
EVENT_NAMES = {"/v1/responses": b"event: error\n", "/v1/messages": b"event: error\n"}


def exchange(path: str, stream: bool, chunks: int = 3) -> Recording:
    """A made-up exchange: a stream of so many lines or events, or one whole object."""
    native = path.startswith("/api/")
    asked = {"model": "smol", "stream": stream, "prompt": "hi", "input": "hi", "messages": [{"role": "user"}]}
    request = post(path, asked)
    if not stream:
        body = json.dumps({"model": "smol", "done": True}).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        return Recording(path, request, head + body)
    pieces = [json.dumps({"model": "smol", "number": number}).encode() for number in range(chunks)]
    pieces = [piece + b"\n" if native else b"data: " + piece + b"\n\n" for piece in pieces]
    kind = b"application/x-ndjson" if native else b"text/event-stream"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])
    return Recording(path, request, head + framed)


def sentence_of(path: str, value: Any) -> str:
    """The sentence of an error object; fails when it is not of the path's dialect."""
    if path.startswith("/api/"):
        assert list(value) == ["error"]
        return str(value["error"])
    if path == "/v1/messages":
        assert value["type"] == "error"
        assert set(value["error"]) == {"type", "message"}
        return str(value["error"]["message"])
    assert list(value) == ["error"]
    assert set(value["error"]) == {"message", "type", "param", "code"}
    return str(value["error"]["message"])


def last_sentence(path: str, words: bytes) -> str:
    """The sentence of a stream's last words; fails when they are not of the path's dialect."""
    if path.startswith("/api/"):
        assert words.count(b"\n") == 1
        assert words.endswith(b"\n")
        return sentence_of(path, json.loads(words))
    name = EVENT_NAMES.get(path, b"")
    assert words.startswith(name + b"data: ")
    assert words.endswith(b"\n\n")
    value = json.loads(words.removeprefix(name + b"data: "))
    if path == "/v1/responses":
        assert value["type"] == "error"
        return str(value["message"])
    return sentence_of(path, value)
