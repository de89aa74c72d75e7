"""Reading the bodies of chat, generate and embed."""

import json
from typing import Any

import pytest

from foreman.embedded.asks import (
    DEFAULT_NUM_PREDICT,
    Ask,
    read_chat,
    read_embed,
    read_generate,
    read_options,
)
from foreman.embedded.engine import Sampling
from foreman.embedded.wire import OllamaError, encode


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def test_generate_goes_through_the_template_as_one_user_message():
    """`system` goes before it; with `raw` the prompt goes in as it is."""
    assert read_generate(body(prompt="hi")).messages == ({"role": "user", "content": "hi"},)
    assert read_generate(body(prompt="hi", system="be brief")).messages == (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
    )
    raw = read_generate(body(prompt="hi", raw=True))
    assert (raw.messages, raw.prompt) == (None, "hi")


@pytest.mark.parametrize(
    "ask",
    [
        read_chat(body()),
        read_chat(body(messages=[])),
        read_chat(body(messages=None)),
        read_generate(body()),
        read_generate(body(prompt="", system="x")),
        read_generate(body(prompt="", raw=True)),
        read_embed(body()),
        read_embed(body(input=[])),
        read_embed(body(input="")),
    ],
)
def test_nothing_to_work_on_is_the_load_form(ask: Ask):
    """An empty or absent prompt, message list or input only loads."""
    assert ask.empty


def test_keys_match_as_in_go():
    """In any case, the last of equal ones wins, and what follows the object is ignored."""
    ask = read_chat(
        b'{"MODEL":"a","model":"b","Messages":[{"ROLE":"user","Content":"x"}],"STREAM":false} trailing'
    )
    assert (ask.model, ask.stream) == ("b", False)
    assert ask.messages == ({"role": "user", "content": "x"},)


def test_streaming_is_the_default():
    """Of the native routes."""
    assert read_chat(body()).stream is True
    assert read_chat(body(stream=False)).stream is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "missing request body"),
        (b"hello", "invalid character 'h' looking for beginning of value"),
        (b'{"model": "smol", "prompt": ', "unexpected EOF"),
        (b'{"model": "smol', "unexpected EOF"),
        (b"[]", "json: cannot unmarshal array into Go value of type api.Request"),
        (b"[" * 100_000, "exceeded max depth"),
        (
            body(messages="hi"),
            "json: cannot unmarshal string into Go struct field ChatRequest.messages of type []api.Message",
        ),
        (
            body(messages=["hi"]),
            "json: cannot unmarshal string into Go struct field ChatRequest.messages of type api.Message",
        ),
        (
            body(model=5),
            "json: cannot unmarshal number into Go struct field ChatRequest.model of type string",
        ),
        (body(keep_alive="300"), 'time: missing unit in duration "300"'),
    ],
)
def test_refusals_are_in_ollamas_words(text: bytes, message: str):
    """All of them are 400."""
    with pytest.raises(OllamaError) as caught:
        read_chat(text)
    assert (caught.value.status, caught.value.message) == (400, message)


def test_embed_takes_a_text_or_a_list_of_texts():
    """Anything else is an invalid input type."""
    assert read_embed(body(input="a")).inputs == ("a",)
    assert read_embed(body(input=["a", "b"])).inputs == ("a", "b")
    for bad in (5, {"a": 1}, ["a", 5]):
        with pytest.raises(OllamaError, match="invalid input type"):
            read_embed(body(input=bad))


def test_options_become_sampling():
    """The honoured ones; unknown ones are ignored."""
    ask = read_generate(
        body(
            prompt="x",
            format="json",
            options={
                "num_ctx": 512,
                "num_predict": 3,
                "temperature": 0,
                "seed": 1,
                "top_k": 2,
                "top_p": 0.5,
                "stop": ["\n"],
                "mirostat": 1,
            },
        )
    )
    options = read_options(ask)
    assert options.num_ctx == 512
    assert options.sampling == Sampling(3, 0, 1, 2, 0.5, ("\n",), {"type": "json_object"})


@pytest.mark.parametrize(
    ("given", "max_tokens"),
    [
        ({}, DEFAULT_NUM_PREDICT),
        ({"num_predict": -1}, -1),
        ({"num_predict": -2}, -1),
        ({"num_predict": 0}, -1),
        ({"num_predict": 9}, 9),
    ],
)
def test_num_predict(given: dict[str, int], max_tokens: int):
    """Absent, it is capped: a small model may never stop. None above 0 means: until the context is full."""
    assert read_options(read_generate(body(prompt="x", options=given))).sampling.max_tokens == max_tokens


def test_a_whole_number_may_be_written_with_a_point() -> None:
    """Ollama reads every number as a float, and cuts it."""
    options = {"num_ctx": 2048.0, "num_predict": 3.9, "seed": 1.0, "top_k": 2.0, "temperature": 0.5}
    read = read_options(read_generate(body(prompt="x", options=options)))
    assert (read.num_ctx, read.sampling) == (2048, Sampling(3, 0.5, 1, 2, None, (), None))
    assert isinstance(read.num_ctx, int)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_ctx": "big"}, 'option "num_ctx" must be of type integer'),
        ({"num_ctx": True}, 'option "num_ctx" must be of type integer'),
        ({"temperature": "hot"}, 'option "temperature" must be of type float32'),
        ({"stop": "x"}, 'option "stop" must be of type array'),
    ],
)
def test_an_option_of_the_wrong_type_is_500(options: dict[str, Any], message: str):
    """Ollama finds it while it loads, so its status is not 400."""
    with pytest.raises(OllamaError) as caught:
        read_options(read_generate(body(prompt="x", options=options)))
    assert (caught.value.status, caught.value.message) == (500, message)


def test_json_is_written_as_go_writes_it():
    """Compact, in UTF-8, with Go's escapes; a lone surrogate is no reason to fail."""
    assert (
        encode({"a": "<b> & \u2028é", "c": [1, True]})
        == '{"a":"\\u003cb\\u003e \\u0026 \\u2028é","c":[1,true]}'.encode()
    )
    assert encode({"a": "\ud800"}) == b'{"a":"?"}'
