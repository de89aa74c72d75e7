"""Reading and writing Ollama's JSON: values pass as they came, long texts pass in chunks."""

import codecs
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec

from foreman.errors import BadResponse
from foreman.worker.outputs import Spooled

Shape = TypeVar("Shape")
Fields = dict[str, Callable[[], Iterable[bytes]]]
"""An object that is written later: each value's bytes, as often as it is called."""

ABSENT = msgspec.Raw()
"""The value of a key that is not there; msgspec knows no `Raw | None`."""

OBJECTS = msgspec.json.Decoder(dict[str, msgspec.Raw])
ARRAYS = msgspec.json.Decoder(list[msgspec.Raw])

# The order in which Ollama writes the keys of an answer; others follow as they came.
GENERATE_ORDER = (
    *("model", "remote_model", "remote_host", "created_at", "response", "thinking", "done", "done_reason"),
    *("context", "total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration"),
    *("eval_count", "eval_duration", "tool_calls", "_debug_info", "logprobs", "image"),
)
CHAT_ORDER = (
    *("model", "remote_model", "remote_host", "created_at", "message", "done", "done_reason"),
    *("_debug_info", "logprobs", "total_duration", "load_duration", "prompt_eval_count"),
    *("prompt_eval_duration", "eval_count", "eval_duration"),
)
MESSAGE_ORDER = ("role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id")


def decode(decoder: "msgspec.json.Decoder[Shape]", text: bytes | msgspec.Raw) -> Shape:
    """Raises BadResponse, with the beginning of what came."""
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        begin = bytes(memoryview(text)[:80]).decode("utf-8", "replace")
        raise BadResponse(f"the target's answer is not Ollama's ({error}): {begin!r}") from error


def is_null(value: msgspec.Raw) -> bool:
    """There is no value, or it is null."""
    return bytes(value) in (b"", b"null")


def error_text(error: msgspec.Raw) -> str:
    """Ollama's error is a text; anything else is shown as it is."""
    value = decode(msgspec.json.Decoder(), error)
    return value if isinstance(value, str) else bytes(error).decode("utf-8", "replace")


def plain(fields: dict[str, msgspec.Raw]) -> Fields:
    """Values that are written as they came."""
    return {name: lambda value=value: (bytes(value),) for name, value in fields.items()}  # type: ignore[misc]


def write_object(fields: Fields, order: Sequence[str]) -> Iterator[bytes]:
    """An object with the keys in this order; others follow as they stand."""
    places = {name: place for place, name in enumerate(order)}
    before = b"{"
    for name in sorted(fields, key=lambda name: places.get(name, len(places))):
        yield before + msgspec.json.encode(name) + b":"
        yield from fields[name]()
        before = b","
    yield b"}"


def write_array(items: Spooled) -> Iterator[bytes]:
    """An array of what was written with commas between."""
    yield b"["
    yield from items.chunks()
    yield b"]"


def write_string(text: Spooled) -> Iterator[bytes]:
    """A string of UTF-8 text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    yield b'"'
    for chunk in text.chunks():
        yield msgspec.json.encode(decoder.decode(chunk))[1:-1]
    yield b'"'
