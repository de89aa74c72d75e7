"""Errors in the words of each API family."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreman.target.dialects import Dialect, ends_whole, error_body, last_words, of_path

NDJSON, SSE = b"application/x-ndjson", b"text/event-stream"


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        (b"/api/chat", Dialect.OLLAMA),
        (b"/", Dialect.OLLAMA),
        (b"/nothing", Dialect.OLLAMA),
        (b"/v1", Dialect.OLLAMA),
        (b"/v1/chat/completions", Dialect.OPENAI),
        (b"/v1/models/x", Dialect.OPENAI),
        (b"/v1/new", Dialect.OPENAI),
        (b"/v1/responses", Dialect.RESPONSES),
        (b"/v1/messages", Dialect.ANTHROPIC),
    ],
)
def test_the_dialect_of_a_path(path: bytes, dialect: Dialect):
    """The first segments decide; what nobody knows speaks Ollama's."""
    assert of_path(path) is dialect


@pytest.mark.parametrize(
    ("dialect", "status", "expected"),
    [
        (Dialect.OLLAMA, 502, {"error": "no"}),
        (
            Dialect.OPENAI,
            502,
            {"error": {"message": "no", "type": "api_error", "param": None, "code": "c"}},
        ),
        (
            Dialect.RESPONSES,
            401,
            {"error": {"message": "no", "type": "authentication_error", "param": None, "code": "c"}},
        ),
        (Dialect.ANTHROPIC, 504, {"type": "error", "error": {"type": "api_error", "message": "no"}}),
        (Dialect.ANTHROPIC, 503, {"type": "error", "error": {"type": "overloaded_error", "message": "no"}}),
        (Dialect.ANTHROPIC, 413, {"type": "error", "error": {"type": "request_too_large", "message": "no"}}),
    ],
)
def test_an_error_body(dialect: Dialect, status: int, expected: dict[str, object]):
    """The shapes that the clients of each API read."""
    assert json.loads(error_body(dialect, status, "c", "no")) == expected


def words(dialect: Dialect, kind: bytes, after_newline: bool = True, sentence: str = "no") -> bytes:
    """Last words of a broken target."""
    return last_words(dialect, kind, 502, "c", sentence, after_newline=after_newline)


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize(
    "kind", [b"application/json", b"application/json; charset=utf-8", b"", b"text/plain"]
)
def test_no_words_where_there_is_no_stream(dialect: Dialect, kind: bytes):
    """Half an object stays half an object: nothing that is added could be read."""
    assert words(dialect, kind) == b""


@pytest.mark.parametrize("kind", [NDJSON, b"Application/X-NDJSON; charset=utf-8"])
@pytest.mark.parametrize("dialect", Dialect)
def test_last_words_in_ndjson_are_a_line(dialect: Dialect, kind: bytes):
    """One line; a line that was cut is ended first."""
    assert words(dialect, kind) == b'{"error":"no"}\n'
    assert words(dialect, kind, after_newline=False) == b'\n{"error":"no"}\n'


@pytest.mark.parametrize(
    ("dialect", "name", "value"),
    [
        (
            Dialect.OPENAI,
            b"",
            {"error": {"message": "no", "type": "api_error", "param": None, "code": "c"}},
        ),
        (
            Dialect.RESPONSES,
            b"event: error\n",
            {"type": "error", "code": "c", "message": "no", "param": None},
        ),
        (
            Dialect.ANTHROPIC,
            b"event: error\n",
            {"type": "error", "error": {"type": "api_error", "message": "no"}},
        ),
        (Dialect.OLLAMA, b"", {"error": "no"}),
    ],
)
def test_last_words_in_sse_are_an_event(dialect: Dialect, name: bytes, value: dict[str, object]):
    """One event, named where the API names its events; an event that was cut is ended first."""
    event = words(dialect, SSE)
    assert event.startswith(name + b"data: ")
    assert event.endswith(b"\n\n")
    assert json.loads(event.removeprefix(name + b"data: ")) == value
    assert words(dialect, SSE, after_newline=False) == b"\n\n" + event


@given(st.text(), st.sampled_from(Dialect), st.sampled_from([NDJSON, SSE]))
def test_no_sentence_breaks_the_framing(sentence: str, dialect: Dialect, kind: bytes):
    """Newlines and quotes in a sentence stay inside its JSON."""
    text = words(dialect, kind, sentence=sentence)
    assert text.rstrip(b"\n").count(b"\n") == text.startswith(b"event: error\n")
    value = json.loads(text.removeprefix(b"event: error\n").removeprefix(b"data: "))
    said = value.get("error", value)
    assert sentence == (said if isinstance(said, str) else said["message"])


@pytest.mark.parametrize(
    ("kind", "tail", "whole"),
    [
        (NDJSON, b"", True),
        (NDJSON, b"e}\n", True),
        (NDJSON, b"done", False),
        (SSE, b"", True),
        (SSE, b"}\n\n", True),
        (SSE, b"\r\n\r\n", True),
        (SSE, b"e}\r\n", False),
        (SSE, b"{}}\n", False),
        (SSE, b"data", False),
        (b"Text/Event-Stream; charset=utf-8", b"{}}\n", False),
    ],
)
def test_what_was_sent_ends_whole(kind: bytes, tail: bytes, whole: bool):
    """A line ends with a newline, an event with an empty line."""
    assert ends_whole(kind, tail) is whole
