"""
A look into a request body: which model on which options, whether it streams, only loads or unloads.

Ollama decodes with Go's encoding/json: keys match in any case and the last one wins, what follows the
first value is ignored, and the Content-Type is never looked at [tried on v0.24]. The body itself is
passed on untouched; only a body that nobody can read waits for a turn alone.
"""

import json
import re
from typing import Any

import msgspec
from attrs import frozen

from foreman import runner_options
from foreman.quantities import parse_duration
from foreman.target.routes import Route, Streaming

_RAW_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
# The standard library's scanner holds the reactor for about 10 ms a MiB; what msgspec refuses is rarely big.
_TOLERANT_LIMIT_BYTES = 8 << 20
_WANTED = frozenset({"model", "stream", "keep_alive", "prompt", "messages", "options", "shift"})
_NANOSECOND = 1e-9
# Go leaves a string as it was when null follows; a list or a pointer becomes empty.
_STRINGS = frozenset({"model", "prompt"})
_MULTIPART_MODEL = re.compile(
    rb'content-disposition:[^\r\n]*[; ]name="?model"?(?=[;\r ])[^\r\n]*\r\n'  # the part's own header …
    rb"(?:[^\r\n]+\r\n)*\r\n"  # … any others, an empty line …
    rb"([^\r\n]{1,512})\r\n",  # … and its value
    re.IGNORECASE,
)


@frozen
class Peek:
    """
    What a body says.

    `readable` is False when nobody could tell. `model` is None when it names none. `streams` is whether
    the answer comes in pieces. `loads`: there is nothing to generate, so the target only loads the model.
    `unloads`: the target answers at once, and applies it after what runs.
    `drops`: the target unloads the model as soon as nothing runs on it (`keep_alive` is 0).
    `options` is the canonical text of the runner options, "" when it says nothing about them.
    """

    readable: bool
    model: str | None = None
    streams: bool = False
    unloads: bool = False
    options: str = ""
    loads: bool = False
    drops: bool = False


UNREADABLE = Peek(readable=False)


def look(body: Any, route: Route, content_type: bytes, content_encoding: bytes) -> Peek:
    """
    Read the top level of `body`, a bytes-like object.

    Never raises: what cannot be read is `UNREADABLE`.
    """
    if content_encoding.strip().lower() not in (b"", b"identity"):
        return UNREADABLE
    if content_type.lower().startswith(b"multipart/"):
        match = _MULTIPART_MODEL.search(body)
        return Peek(readable=True, model=match[1].decode("utf-8", "replace")) if match else UNREADABLE
    fields = _read(body)
    if fields is None:
        return UNREADABLE
    model = fields.get("model")
    loads = route.prompt is not None and not fields.get(route.prompt)
    stream = fields.get("stream")
    if loads or route.streaming is Streaming.NEVER:
        streams = False
    else:
        streams = stream if isinstance(stream, bool) else route.streaming is Streaming.BY_DEFAULT
    # The OpenAI and Anthropic routes have no such field: Ollama ignores it there.
    drops = route.prompt is not None and _is_zero(fields.get("keep_alive"))
    unloads = loads and drops
    return Peek(
        readable=True,
        model=_printable(model) if isinstance(model, str) and model else None,
        streams=streams,
        unloads=unloads,
        options=_options(fields, route),
        loads=loads and not unloads,
        drops=drops,
    )


def _options(fields: dict[str, Any], route: Route) -> str:
    """The OpenAI and Anthropic routes have no such fields: Ollama ignores them there."""
    if route.prompt is None or ("options" not in fields and "shift" not in fields):
        return ""
    return runner_options.of_request(fields.get("options"), fields.get("shift"))


def _read(body: Any) -> dict[str, Any] | None:
    """The wanted fields by lower-case name, or None."""
    try:
        raw = _RAW_OBJECT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _read_tolerantly(body)
    fields: dict[str, Any] = {}
    for key, value in raw.items():
        name = key if key in _WANTED else _fold(key)
        if name not in _WANTED:
            continue
        # A dict has lost which of two spellings came last, and what came before a null.
        if name in fields or (name in _STRINGS and bytes(memoryview(value)[:5]) == b"null"):
            return _read_tolerantly(body)
        if name == "options":
            try:
                fields[name] = msgspec.json.decode(value)
            except (msgspec.DecodeError, UnicodeDecodeError):  # a text in it may not be UTF-8
                return _read_tolerantly(body)
        else:
            fields[name] = _summary(name, value)
    return fields


def _summary(name: str, value: msgspec.Raw) -> Any:
    """A prompt or messages may be megabytes: only whether they are empty is wanted."""
    raw = bytes(memoryview(value)[:16]).strip()
    if name in ("prompt", "messages"):
        return raw not in (b'""', b"[]", b"null") and not re.fullmatch(rb"\[\s*\]", raw)
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


class _Pairs(list[tuple[str, Any]]):
    """An object as it came, keys given twice included. Only those of the top level are folded."""


def _read_tolerantly(body: Any) -> dict[str, Any] | None:
    """What msgspec refuses and Ollama accepts: bytes after the value, lone surrogates, keys given twice."""
    if len(body) > _TOLERANT_LIMIT_BYTES:
        return None
    text = bytes(body).decode("utf-8", "replace").lstrip(" \t\r\n")
    try:
        pairs, _ = json.JSONDecoder(object_pairs_hook=_Pairs).raw_decode(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(pairs, _Pairs):
        return None
    folded = [(_fold(key), value) for key, value in pairs]
    fields = {name: value for name, value in folded if value is not None or name not in _STRINGS}
    if "options" in fields:
        fields["options"] = runner_options.merged(
            dict(value) if isinstance(value, _Pairs) else value for name, value in folded if name == "options"
        )
    return fields


def _printable(text: str) -> str:
    """A lone surrogate is U+FFFD to Go; and no log file could take it."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _fold(key: str) -> str:
    """Go's folding of names: case, and the long s (the Kelvin sign is lower-cased to k by str.lower)."""
    return key.lower().replace("ſ", "s")


def _is_zero(keep_alive: Any) -> bool:
    """Go counts whole nanoseconds, and less than one is none; but a number below zero is for ever."""
    if isinstance(keep_alive, str):
        try:
            return abs(parse_duration(keep_alive)) < _NANOSECOND
        except ValueError:
            return False
    if isinstance(keep_alive, bool) or not isinstance(keep_alive, int | float):
        return False
    return 0 <= keep_alive < _NANOSECOND
