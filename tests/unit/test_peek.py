"""The look into a request's body: as Ollama's decoder reads it, whatever the bytes."""

import json
import mmap
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from foreman.target.peek import UNREADABLE, Peek, look
from foreman.target.routes import ROUTES, Route, Streaming, find

CHAT, GENERATE, V1 = find(b"/api/chat"), find(b"/api/generate"), find(b"/v1/chat/completions")
EMBED, AUDIO = find(b"/api/embed"), find(b"/v1/audio/transcriptions")
ALL = [*ROUTES.values(), find(b"/v1/new")]


def peek(body: bytes, route: Route = CHAT, content_type: bytes = b"", encoding: bytes = b"") -> Peek:
    """Look into a body."""
    return look(body, route, content_type, encoding)


def model_of(body: bytes, route: Route = CHAT) -> str | None:
    """The model that a readable body names."""
    found = peek(body, route)
    assert found.readable
    return found.model


@given(
    st.binary(), st.sampled_from(ALL), st.binary(max_size=40), st.sampled_from([b"", b"gzip", b" Identity"])
)
@example(b'{"model": ' + b"[" * 100_000, CHAT, b"", b"")
@example(b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", CHAT, b"", b"")
@example(b'{"keep_alive": ' + b"9" * 10_000 + b"}", CHAT, b"", b"")
@example(b'{"keep_alive": "' + b"9" * 10_000 + b'h"}', CHAT, b"", b"")
@example(b'{"keep_alive": 1e999}', CHAT, b"", b"")
@example(b'{"model": "\\ud800"}', CHAT, b"", b"")
@example(b'{"model": "\xff"}', CHAT, b"", b"")
@example(b'{"\xff": 1}', CHAT, b"", b"")
@example(b"\xef\xbb\xbf{}", CHAT, b"", b"")
def test_no_bytes_make_it_raise(body: bytes, route: Route, content_type: bytes, encoding: bytes):
    """What cannot be read is UNREADABLE: nothing else may come of it."""
    assert isinstance(peek(body, route, content_type, encoding), Peek)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from(["model", "stream", "keep_alive", "prompt", "messages", "options"]) | st.text()
VALUES = JSON_VALUES | st.sampled_from(["smol", "", [], 0, "0s", "5m", True, False, None])


def expected(fields: dict[str, Any], route: Route) -> Peek:
    """The same, worked out from the decoded object the plain way."""
    loads = route.prompt is not None and not fields.get(route.prompt)
    stream, model, keep_alive = fields.get("stream"), fields.get("model"), fields.get("keep_alive")
    streams = stream if isinstance(stream, bool) else route.streaming is Streaming.BY_DEFAULT
    zero = route.prompt is not None and keep_alive in (0, "0s", "0") and not isinstance(keep_alive, bool)
    return Peek(
        readable=True,
        model=model if isinstance(model, str) and model else None,
        streams=streams and not loads and route.streaming is not Streaming.NEVER,
        unloads=loads and zero,
        loads=loads and not zero,
        drops=zero,
    )


@given(st.dictionaries(KEYS, VALUES), st.sampled_from(ALL), st.booleans(), st.sampled_from([None, 2]))
def test_it_agrees_with_json(fields: dict[str, Any], route: Route, ascii_only: bool, indent: int | None):
    """On a valid object it says what a full decoding says."""
    known = ("model", "stream", "keep_alive", "prompt", "messages")
    lowered = [key for key in fields if key.lower().replace("ſ", "s") in known and key not in known]
    for key in lowered:
        del fields[key]
    # Only whether they are empty is looked at; other types than Ollama's are refused by itself.
    fields = {key: value for key, value in fields.items() if key not in ("prompt", "messages")} | {
        key: fields[key] for key in ("prompt", "messages") if isinstance(fields.get(key), str | list)
    }
    if isinstance(fields.get("keep_alive"), str) and fields["keep_alive"] not in ("0s", "0", "5m"):
        del fields["keep_alive"]
    body = json.dumps(fields, ensure_ascii=ascii_only, indent=indent).encode()
    assert peek(body, route) == expected(fields, route)


def any_case(draw: st.DrawFn, word: str) -> str:
    return "".join(draw(st.sampled_from([letter.lower(), letter.upper()])) for letter in word)


@st.composite
def pairs(draw: st.DrawFn) -> list[tuple[str, str]]:
    """`model` a few times, in any case."""
    count = draw(st.integers(1, 4))
    names = [any_case(draw, "model") for _ in range(count)]
    return [(name, draw(st.text(st.characters(codec="ascii"), min_size=1))) for name in names]


@given(pairs())
def test_keys_match_in_any_case_and_the_last_wins(named: list[tuple[str, str]]):
    """As Go's encoding/json does it: otherwise a body could name one model to foreman, another to Ollama."""
    body = "{" + ",".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in named) + "}"
    assert model_of(body.encode()) == named[-1][1]


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model": "a"} trailing', "a"),
        (b'{"model": "a"}{"model": "b"}', "a"),
        (b' \r\n\t{"model": "a"}', "a"),
        (b'{"MODEL": "a"}', "a"),
        (b'{"Model": "a", "model": "b"}', "b"),
        (b'{"model": "b", "Model": "a"}', "a"),
        (b'{"model": "b", "Model": "a", "x": "\\ud800"}', "a"),
        (b'{"model": "a", "x": "\\ud800"}', "a"),
        (b'{"model": "a\\ud800"}', "a\ufffd"),
        (b'{"model": "a", "x": "\xff"}', "a"),
        ('{"me\u017f\u017fages": [1], "model": "a"}'.encode(), "a"),
        (b'{"model": null}', None),
        (b'{"model": ""}', None),
        (b'{"model": 7}', None),
        (b'{"model": ["a"]}', None),
        (b"{}", None),
        (b'{"x": {"model": "a"}}', None),
    ],
)
def test_the_model(body: bytes, model: str | None):
    """What Ollama would take for the model; it is never anything that a log cannot print."""
    assert model_of(body) == model


@pytest.mark.parametrize("body", [b'{"model": "a", "model": null}', b'{"model": "a", "MODEL": null}'])
def test_null_leaves_a_string_as_it_was(body: bytes):
    """To Go a null for a string is no value: without this such a body would run beside the turn."""
    assert model_of(body) == "a"


@pytest.mark.parametrize(
    "body", [b'{"prompt": "hi", "prompt": null, "keep_alive": 0}', b'{"prompt": "hi", "keep_alive": 0}']
)
def test_a_null_prompt_unloads_nothing(body: bytes):
    """It is the prompt before it that is generated for, and that takes a turn."""
    assert not peek(body, GENERATE).unloads


def test_null_takes_a_list_and_a_lifetime_back():
    """To Go a null for those is empty: the load form takes a turn, and the unload form is one."""
    assert peek(b'{"messages": [1], "messages": null, "keep_alive": 0}').unloads
    assert not peek(b'{"messages": [], "keep_alive": 0, "keep_alive": null}').unloads
    assert not peek(b'{"messages": [], "keep_alive": 0, "KEEP_ALIVE": null}').unloads


@pytest.mark.parametrize(
    "body", [b"", b"hello", b'{"model": ', b"[]", b'"model"', b"7", b"null", b"\xef\xbb\xbf{}"]
)
def test_what_cannot_be_read(body: bytes):
    """It waits for a turn alone, and the target's own answer is the answer."""
    assert peek(body) is UNREADABLE


@pytest.mark.parametrize("encoding", [b"gzip", b"zstd", b"GZIP", b"identity, gzip"])
def test_a_compressed_body_is_not_looked_into(encoding: bytes):
    """Newer Ollamas take such bodies; foreman passes them on."""
    assert peek(b'{"model": "a"}', encoding=encoding) is UNREADABLE
    assert peek(b'{"model": "a"}', encoding=b" Identity ").model == "a"


def test_the_content_type_is_not_looked_at():
    """Ollama does not look at it either: ``curl -d`` sends a form's."""
    assert peek(b'{"model": "a"}', content_type=b"application/x-www-form-urlencoded").model == "a"


@pytest.mark.parametrize(
    ("route", "body", "streams"),
    [
        (CHAT, b'{"messages": [1]}', True),
        (CHAT, b'{"messages": [1], "stream": false}', False),
        (CHAT, b'{"messages": [1], "stream": null}', True),
        (CHAT, b'{"messages": [1], "stream": "no"}', True),
        (CHAT, b'{"messages": [1], "STREAM": false}', False),
        (CHAT, b'{"messages": [1], "stream": false, "Stream": true}', True),
        (CHAT, b'{"messages": []}', False),
        (CHAT, b'{"messages": [ \n ]}', False),
        (CHAT, b'{"messages": null}', False),
        (CHAT, b"{}", False),
        (GENERATE, b'{"prompt": "hi"}', True),
        (GENERATE, b'{"prompt": ""}', False),
        (GENERATE, b'{"messages": [1]}', False),
        (V1, b"{}", False),
        (V1, b'{"stream": true}', True),
        (V1, b'{"stream": false}', False),
        (EMBED, b'{"stream": true}', False),
    ],
)
def test_whether_it_streams(route: Route, body: bytes, streams: bool):
    """The route's own default, what the body says, and never for the load form: it answers in one piece."""
    assert peek(body, route).streams is streams


@pytest.mark.parametrize(
    ("keep_alive", "unloads"),
    [
        (b"0", True),
        (b"0.0", True),
        (b'"0"', True),
        (b'"0s"', True),
        (b'"0h0m"', True),
        (b'"-0s"', True),
        (b"-0", True),
        (b"-0.0", True),
        (b'"-0"', True),
        (b"1e-10", True),  # Go counts whole nanoseconds
        (b'"-0.5ns"', True),
        (b"1e-9", False),
        (b'"1ns"', False),
        (b"-1e-10", False),  # a number is looked at before it is cut
        (b"-1", False),
        (b'"-1s"', False),
        (b"5", False),
        (b'"5m"', False),
        (b'""', False),
        (b'"soon"', False),
        (b"null", False),
        (b"false", False),
        (b"[]", False),
    ],
)
def test_the_unload_form(keep_alive: bytes, unloads: bool):
    """Nothing to generate, and a lifetime of nothing: the target answers at once, so nobody waits for it."""
    assert peek(b'{"keep_alive": %b}' % keep_alive).unloads is unloads
    assert peek(b'{"prompt": "", "keep_alive": %b}' % keep_alive, GENERATE).unloads is unloads
    assert not peek(b'{"messages": [1], "keep_alive": %b}' % keep_alive).unloads
    assert not peek(b'{"keep_alive": %b}' % keep_alive, V1).unloads
    # With any other lifetime it is the load form.
    assert peek(b'{"keep_alive": %b}' % keep_alive).loads is not unloads
    assert not peek(b'{"messages": [1], "keep_alive": %b}' % keep_alive).loads
    assert not peek(b'{"keep_alive": %b}' % keep_alive, V1).loads
    # Whatever it generates, the model goes afterwards; but only Ollama's own paths read the field.
    assert peek(b'{"messages": [1], "keep_alive": %b}' % keep_alive).drops is unloads
    assert peek(b'{"keep_alive": %b}' % keep_alive).drops is unloads
    assert not peek(b'{"keep_alive": %b}' % keep_alive, V1).drops


@pytest.mark.parametrize(
    ("route", "options"),
    [
        (CHAT, '{"num_ctx":512,"shift":false}'),
        (GENERATE, '{"num_ctx":512,"shift":false}'),
        (V1, ""),
        (find(b"/v1/messages"), ""),
        (find(b"/v1/new"), ""),
    ],
)
def test_the_runner_options(route: Route, options: str):
    """Ollama's own routes know them, the others ignore them, and so does the look."""
    body = b'{"model": "a", "options": {"num_ctx": 512.0, "seed": 1}, "shift": false}'
    assert peek(body, route).options == peek(body + b" x", route).options == options
    assert peek(b'{"model": "a"}', route).options == ""


FORM = b"multipart/form-data; boundary=x"


def part(head: bytes, value: bytes) -> bytes:
    """One part of a form."""
    return b"--x\r\n" + head + b"\r\n\r\n" + value + b"\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b'Content-Disposition: form-data; name="model"',
        b"content-disposition: form-data; name=model",
        b'Content-Disposition: form-data; name="model"; x=y\r\nContent-Type: text/plain',
        b'Content-Disposition: form-data;name="model"',
    ],
)
def test_a_form_is_scanned_for_its_model(head: bytes):
    """Transcriptions come as multipart; the rest of it may be a long recording."""
    file = part(b'Content-Disposition: form-data; name="file"; filename="a.wav"', bytes(range(256)))
    form = file + part(head, b"whisper") + b"--x--\r\n"
    assert peek(form, AUDIO, FORM) == Peek(readable=True, model="whisper")


@pytest.mark.parametrize(
    "form",
    [
        b"",
        part(b'Content-Disposition: form-data; name="models"', b"a"),
        part(b'Content-Disposition: form-data; name="file"; filename="model"', b"a"),
        part(b'Content-Disposition: form-data; name="model"', b""),
    ],
)
def test_a_form_without_a_model_is_unreadable(form: bytes):
    """It waits for a turn alone."""
    assert peek(form, AUDIO, FORM) is UNREADABLE


def test_a_file_is_looked_into_without_a_copy(tmp_path: Any):
    """Large bodies are mapped, not read: the look works on any bytes-like object."""
    path = tmp_path / "body"
    body = json.dumps({"model": "a", "messages": [{"content": "x" * 100_000}], "stream": False}).encode()
    for content in (body, body + b" trailing", body.replace(b'"model"', b'"MODEL": "b", "model"')):
        path.write_bytes(content)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert look(mapped, CHAT, b"", b"") == Peek(readable=True, model="a", streams=False)
