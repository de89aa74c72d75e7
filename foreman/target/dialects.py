"""
How an error is said on each family of paths, so that every client can read it.

Shapes: Ollama's ``{"error": "…"}``, OpenAI's and Anthropic's error objects (`docs/reference/errors.md`).
"""

import json
from enum import Enum
from urllib.parse import unquote_to_bytes

from foreman.errors import TargetRefused

NDJSON = b"application/x-ndjson"
SSE = b"text/event-stream"
# So much is shown of what a target says that is no error in the dialect of its path.
_SHOWN_CHARACTERS = 500


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
    if b"%" in path:
        path = unquote_to_bytes(path)  # as the target's router reads it
    if path.startswith(b"/v1/messages"):
        return Dialect.ANTHROPIC
    if path.startswith(b"/v1/responses"):
        return Dialect.RESPONSES
    return Dialect.OPENAI if path.startswith(b"/v1/") else Dialect.OLLAMA


def stream_type(dialect: Dialect) -> bytes:
    """The Content-Type of the dialect's streams, as Ollama writes it."""
    return NDJSON if dialect is Dialect.OLLAMA else SSE


def idle_words(dialect: Dialect) -> bytes:
    """
    What says nothing in a stream: a comment in SSE, a space in NDJSON.

    Ollama's clients for Python, JavaScript and Go read on after a space before a line; an empty line is an
    error to Python's [tried with the first two].
    """
    return b" " if dialect is Dialect.OLLAMA else b": waiting\n\n"


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


def media_type(content_type: bytes) -> bytes:
    """A Content-Type in lower case, without its parameters."""
    return content_type.partition(b";")[0].strip().lower()


def ends_whole(content_type: bytes, tail: bytes) -> bool:
    """Whether `tail`, the last four bytes or fewer that were sent, ends a line, or in SSE an event."""
    if not tail or media_type(content_type) != SSE:
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
    error = _error_object(dialect, status, code, sentence)
    if media_type(content_type) == NDJSON:
        error = {"error": sentence}
    elif dialect is Dialect.RESPONSES:
        error = {"type": "error", "code": code, "message": sentence, "param": None}
    return _framed(dialect, content_type, error, after_newline)


def words_of_refusal(dialect: Dialect, status: int, body: bytes) -> bytes:
    """
    An error answer of the target, whole, as the last words of a stream in which nothing else was said.

    An error in the dialect of the path stays what it is; any other is `target_refused`.
    """
    kind = stream_type(dialect)
    error = _object(body)
    details = error.get("error")
    if dialect is Dialect.RESPONSES and isinstance(details, dict):
        said = {name: details.get(name) for name in ("code", "message", "param")}
        return _framed(dialect, kind, {"type": "error", **said}, True)
    if isinstance(details, str if dialect is Dialect.OLLAMA else dict):
        return _framed(dialect, kind, error, True)
    refused = refusal(status, body)
    return last_words(dialect, kind, status, refused.code, str(refused), after_newline=True)


def refusal(status: int, body: bytes) -> TargetRefused:
    """An error answer of the target as an error of foreman's, with the beginning of its text."""
    return TargetRefused(status, body.decode("utf-8", "replace").strip()[:_SHOWN_CHARACTERS])


def _object(body: bytes) -> dict[str, object]:
    """The JSON object that `body` is; an empty one for anything else."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _framed(dialect: Dialect, content_type: bytes, error: dict[str, object], after_newline: bool) -> bytes:
    """One line or event; nothing when the answer is no stream."""
    kind = media_type(content_type)
    if kind == NDJSON:
        return (b"" if after_newline else b"\n") + _json(error) + b"\n"
    if kind != SSE:
        return b""
    name = b"event: error\n" if dialect in (Dialect.RESPONSES, Dialect.ANTHROPIC) else b""
    return (b"" if after_newline else b"\n\n") + name + b"data: " + _json(error) + b"\n\n"
