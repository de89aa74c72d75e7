"""
How an error is said on each family of paths, so that every client can read it.

Shapes: Ollama's ``{"error": "…"}``, OpenAI's and Anthropic's error objects (`docs/reference/errors.md`).
"""

import json
from enum import Enum


class Dialect(Enum):
    """The API family of a path."""

    OLLAMA = "ollama"
    OPENAI = "openai"
    RESPONSES = "openai responses"
    ANTHROPIC = "anthropic"


_OPENAI_TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def of_path(path: bytes) -> Dialect:
    """The dialect of a path; ``/`` and unknown paths speak Ollama's."""
    if path.startswith(b"/v1/messages"):
        return Dialect.ANTHROPIC
    if path.startswith(b"/v1/responses"):
        return Dialect.RESPONSES
    return Dialect.OPENAI if path.startswith(b"/v1/") else Dialect.OLLAMA


def _error_object(dialect: Dialect, status: int, code: str, sentence: str) -> dict[str, object]:
    if dialect is Dialect.OLLAMA:
        return {"error": sentence}
    if dialect is Dialect.ANTHROPIC:
        kind = _ANTHROPIC_TYPES.get(status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": sentence}}
    kind = _OPENAI_TYPES.get(status, "api_error")
    return {"error": {"message": sentence, "type": kind, "param": None, "code": code}}


def _json(value: dict[str, object]) -> bytes:
    """Without spaces, as Go writes it."""
    return json.dumps(value, separators=(",", ":")).encode()


def error_body(dialect: Dialect, status: int, code: str, sentence: str) -> bytes:
    """The whole body of an error answer; its Content-Type is ``application/json``."""
    return _json(_error_object(dialect, status, code, sentence))


def _kind(content_type: bytes) -> bytes:
    return content_type.partition(b";")[0].strip().lower()


def ends_whole(content_type: bytes, tail: bytes) -> bool:
    """Whether `tail`, the last four bytes or fewer that were sent, ends a line, or in SSE an event."""
    if not tail or _kind(content_type) != b"text/event-stream":
        return tail[-1:] in (b"", b"\n")
    return tail.endswith((b"\n\n", b"\n\r\n"))


def last_words(
    dialect: Dialect, content_type: bytes, status: int, code: str, sentence: str, *, after_newline: bool
) -> bytes:
    """
    The error that ends a stream which has begun: an NDJSON line, or a server-sent event.

    Empty when the answer is no stream: nothing that could be added would leave it readable.
    `after_newline` is whether what was sent is whole (`ends_whole`); what was cut in its middle is ended
    first, or the error would be taken for a part of it.
    """
    kind = _kind(content_type)
    if kind == b"application/x-ndjson":
        line = _json({"error": sentence}) + b"\n"
        return line if after_newline else b"\n" + line
    if kind != b"text/event-stream":
        return b""
    name = b""
    event = _error_object(dialect, status, code, sentence)
    if dialect is Dialect.RESPONSES:
        name, event = b"event: error\n", {"type": "error", "code": code, "message": sentence, "param": None}
    elif dialect is Dialect.ANTHROPIC:
        name = b"event: error\n"
    text = name + b"data: " + _json(event) + b"\n\n"
    return text if after_newline else b"\n\n" + text
