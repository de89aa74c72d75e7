"""The canonical text of runner options: equal exactly when Ollama would see no difference."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreman.jobs.submission import parse
from foreman.runner_options import RUNNER_OPTIONS, fields, merged, of_model, of_request, overlaid
from foreman.target.peek import look
from foreman.target.routes import find

CHAT = find(b"/api/chat")


def of_body(body: bytes) -> str:
    """The text that the look into a native request finds; a submission has to find the same."""
    text = look(body, CHAT, b"", b"").options
    assert parse(body, "id", 0.0).line.option_key == text
    return text


@pytest.mark.parametrize(
    ("options", "shift", "text"),
    [
        (None, None, ""),
        ({}, True, ""),
        ({"temperature": 1, "num_ctx": None, "num_keep": 4}, True, ""),
        ({"num_ctx": 8192}, None, '{"num_ctx":8192}'),
        ({"num_ctx": 8192.0}, None, '{"num_ctx":8192}'),
        ({"num_ctx": 8192.9}, None, '{"num_ctx":8192}'),
        ({"num_ctx": 0}, None, '{"num_ctx":4}'),
        ({"num_ctx": -1}, None, '{"num_ctx":4}'),
        ({"num_gpu": -5}, None, '{"num_gpu":-1}'),
        ({"num_gpu": 0, "num_thread": 0}, None, '{"num_gpu":0,"num_thread":0}'),
        ({"use_mmap": False, "num_gpu": 1}, False, '{"num_gpu":1,"shift":false,"use_mmap":false}'),
        ({}, False, '{"shift":false}'),
        ({"NUM_CTX": 1024, "numctx": 1024, "shift": False}, None, ""),
        ({"num_ctx": "8192", "num_gpu": True, "use_mmap": 1, "num_batch": [1]}, 0, ""),
        ({"num_ctx": 1e300, "num_gpu": float("nan"), "num_batch": 10**400}, None, ""),
        ({"num_ctx": 1 << 61}, None, '{"num_ctx":2305843009213693952}'),
        ([1], "no", ""),
        ("num_ctx", None, ""),
    ],
)
def test_of_request(options: Any, shift: Any, text: str) -> None:
    """What says nothing about the runner, and what Ollama refuses or ignores, leaves no trace."""
    assert of_request(options, shift) == text


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ("", ""),
        ("num_ctx                        4096", '{"num_ctx":4096}'),
        ("num_ctx                        1.048576e+06\nseed 1", '{"num_ctx":1048576}'),
        ("use_mmap                       false\nnum_gpu  -1", '{"num_gpu":-1,"use_mmap":false}'),
        ("use_mmap 0\nnum_gpu true\nnum_batch\nnum_thread many", ""),
        ('stop                           "num_ctx 5"\nstop  "\\nnum_ctx 5"\nnum_ctx_more 5', ""),
        ("num_ctx 512\r\nmain_gpu 1 \n", '{"main_gpu":1,"num_ctx":512}'),
    ],
)
def test_of_model(parameters: str, text: str) -> None:
    """The parameters of /api/show: a name, spaces, a value as Go prints it; texts are quoted."""
    assert of_model(parameters) == text


def test_overlaid() -> None:
    """The request wins, option by option."""
    own, asked = '{"num_ctx":2048,"num_gpu":1}', '{"num_gpu":-1,"shift":false}'
    assert overlaid(own, asked) == {"num_ctx": 2048, "num_gpu": -1, "shift": False}
    assert overlaid("", "") == {}


def test_merged() -> None:
    """As Go reads a map that comes again: over what it has; null empties it, what is no object is refused."""
    assert merged([]) is None
    assert merged([{"a": 1, "b": 1}, {"b": 2}]) == {"a": 1, "b": 2}
    assert merged([{"a": 1}, None, {"b": 2}]) == {"b": 2}
    assert merged([{"a": 1}, None]) is None
    assert merged([{"a": 1}, 7]) == {"a": 1}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"model":"m","messages":[]}', ""),
        (b'{"model":"m","messages":[],"OPTIONS":{"num_ctx":512}}', '{"num_ctx":512}'),
        (b'{"model":"m","messages":[],"options":{"Num_ctx":512}}', ""),
        (
            b'{"model":"m","messages":[],"options":{"num_ctx":512},"Options":{"num_gpu":1}} x',
            '{"num_ctx":512,"num_gpu":1}',
        ),
        (b'{"model":"m","messages":[],"options":{"num_ctx":512},"Options":null}', ""),
        (b'{"model":"m","messages":[],"options":{"num_ctx":512,"num_ctx":null}}', ""),
        (b'{"model":"m","messages":[],"options":{"num_ctx":1,"num_ctx":512}} x', '{"num_ctx":512}'),
        (b'{"model":"m","messages":[],"options":{"NUM_CTX":512}} x', ""),
        (b'{"model":"m","messages":[],"options":{"stop":["\xff"],"num_ctx":512}}', '{"num_ctx":512}'),
        (b'{"model":"m","messages":[],"options":{"stop":["\\ud800"],"num_ctx":512}}', '{"num_ctx":512}'),
        (b'{"model":"m","messages":[],"SHIFT":false}', '{"shift":false}'),
        (b'{"model":"m","messages":[],"shift":false,"shift":null}', ""),
        (b'{"model":"m","messages":[],"shift":true,"Shift":false}', '{"shift":false}'),
        (b'{"model":"m","messages":[],"options":7,"shift":0}', ""),
        (b'{"model":"m","messages":[{"options":{"num_ctx":512},"shift":false}]}', ""),
    ],
)
def test_of_a_body(body: bytes, text: str) -> None:
    """The names of fields match in any case, those of options do not; a native request and a job agree."""
    assert of_body(body) == text


INTEGERS = RUNNER_OPTIONS - {"use_mmap"}
EFFECTIVE = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.integers(4 if name == "num_ctx" else 0, 1 << 40) for name in INTEGERS},
        "use_mmap": st.booleans(),
        "shift": st.just(False),
    },
)
NOISE = st.dictionaries(
    st.sampled_from(["temperature", "seed", "stop", "NUM_CTX", "num_keep", "main-gpu"]),
    st.one_of(st.integers(), st.text(max_size=3), st.none()),
    max_size=3,
)


@st.composite
def spellings(draw: st.DrawFn, effective: dict[str, Any]) -> bytes:
    """A body that asks for these options, in one of many ways."""
    options: dict[str, Any] = dict(draw(NOISE))
    for name in draw(st.permutations(sorted(RUNNER_OPTIONS))):
        value = effective.get(name)
        if value is None:
            if draw(st.booleans()):
                options[name] = None
        elif name != "use_mmap" and draw(st.booleans()):
            options[name] = float(value)
        else:
            options[name] = value
    body: dict[str, Any] = {"model": "m", "messages": [{"content": "x"}]}
    if options or draw(st.booleans()):
        body[draw(st.sampled_from(["options", "Options", "OPTIONſ"]))] = options
    if "shift" in effective:
        body[draw(st.sampled_from(["shift", "SHIFT"]))] = False
    elif draw(st.booleans()):
        body["shift"] = draw(st.sampled_from([True, None]))
    pairs = draw(st.permutations(list(body.items())))
    trailing = draw(st.sampled_from(["", "\n", " x", "{}"]))
    return (json.dumps(dict(pairs), ensure_ascii=draw(st.booleans())) + trailing).encode()


@given(st.data())
def test_equal_texts_for_equal_meaning_and_only_then(data: st.DataObject) -> None:
    """However a body spells its options, the text says what they are; a text reads as it was written."""
    one = data.draw(EFFECTIVE, "one")
    other = data.draw(st.one_of(st.just(one), EFFECTIVE), "other")
    texts = [of_body(data.draw(spellings(effective))) for effective in (one, one, other)]
    assert texts[0] == texts[1]
    assert (texts[0] == texts[2]) == (one == other)
    assert overlaid("", texts[0]) == one
    assert of_request(overlaid("", texts[0]), one.get("shift")) == texts[0]


OPTIONS = st.dictionaries(
    st.sampled_from(sorted(RUNNER_OPTIONS)), st.booleans() | st.integers(-5, 9000) | st.floats(-5, 9000)
)


@given(OPTIONS, st.sampled_from([None, True, False]))
def test_the_fields_of_a_text_say_the_same_in_a_body(options: dict[str, Any], shift: bool | None):
    """Whoever asks for what the text says gets the same runner, so it is the same text again."""
    text = of_request(options, shift)
    said = fields(text)
    assert of_request(said.get("options"), said.get("shift")) == text
    assert set(said) <= {"options", "shift"}
    assert "options" not in said or said["options"]
