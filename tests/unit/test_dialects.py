"""Errors in the words of each API family."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreman.target.dialects import (
    Dialect,
    ends_whole,
    error_body,
    idle_words,
    last_words,
    of_path,
    stream_type,
    words_of_refusal,
)

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
        (b"/v%31/%6dessages", Dialect.ANTHROPIC),
        (b"/api/%63hat", Dialect.OLLAMA),
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


@pytest.mark.parametrize("dialect", Dialect)
def test_what_says_nothing(dialect: Dialect):
    """A space before a line of JSON, or a whole comment: nobody reads anything in it."""
    words = idle_words(dialect)
    if stream_type(dialect) == NDJSON:
        assert words == b" "
    else:
        assert words.startswith(b":")
        assert words.endswith(b"\n\n")
        assert ends_whole(SSE, words[-4:])


OPENAI_ERROR = {"message": "no", "type": "not_found_error", "param": None, "code": None}
ANTHROPIC_ERROR = {"type": "error", "error": {"type": "x", "message": "no"}, "request_id": "r"}


@pytest.mark.parametrize(
    ("dialect", "prefix", "body", "said"),
    [
        (Dialect.OLLAMA, b"", {"error": "no"}, {"error": "no"}),
        (Dialect.OLLAMA, b"", {"error": "no", "signin_url": "x"}, {"error": "no", "signin_url": "x"}),
        (Dialect.OPENAI, b"data: ", {"error": OPENAI_ERROR}, {"error": OPENAI_ERROR}),
        (
            Dialect.RESPONSES,
            b"event: error\ndata: ",
            {"error": OPENAI_ERROR},
            {"type": "error", "code": None, "message": "no", "param": None},
        ),
        (Dialect.ANTHROPIC, b"event: error\ndata: ", ANTHROPIC_ERROR, ANTHROPIC_ERROR),
    ],
)
def test_an_error_of_the_target_keeps_its_words(
    dialect: Dialect, prefix: bytes, body: object, said: dict[str, object]
):
    """One line or event, whatever its layout was; with the members that only the target knows."""
    text = words_of_refusal(dialect, 404, json.dumps(body, indent=2).encode())
    assert text.startswith(prefix)
    assert text.endswith(b"\n" if dialect is Dialect.OLLAMA else b"\n\n")
    (line,) = text.removeprefix(prefix).splitlines()[:1]
    assert json.loads(line) == said
    assert text.removeprefix(prefix).strip() == line


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b" oops\n", "oops"),
        (b"", ""),
        (b"[1]", "[1]"),
        (b'{"message": "no"}', '{"message": "no"}'),
        (b'{"error": null}', '{"error": null}'),
        (b"\xff", "\ufffd"),
        (b"[" * 100_000, "[" * 500),
        ("é".encode() * 600, "é" * 500),
    ],
)
def test_what_is_no_error_of_the_dialect_is_told_with_its_status(dialect: Dialect, body: bytes, shown: str):
    """Its first 500 characters, as the last words of a target that failed."""
    sentence = f"the target answered with status 502: {shown}"
    expected = last_words(dialect, stream_type(dialect), 502, "target_refused", sentence, after_newline=True)
    assert words_of_refusal(dialect, 502, body) == expected


@given(st.binary(), st.sampled_from(Dialect))
def test_no_refusal_breaks_the_framing(body: bytes, dialect: Dialect):
    """Whatever the target says, it is one line or one event with an error in it."""
    text = words_of_refusal(dialect, 500, body)
    assert text.rstrip(b"\n").count(b"\n") == text.startswith(b"event: error\n")
    assert "error" in json.loads(text.removeprefix(b"event: error\n").removeprefix(b"data: ")).get(
        "type", "error"
    )
