"""JSON as Go reads and writes it, and the times and errors of Ollama's answers."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from attrs import frozen

# Go writes these characters of a string as escapes; outside of strings JSON has none of them.
GO_ESCAPES = str.maketrans(
    {"<": r"\u003c", ">": r"\u003e", "&": r"\u0026", "\u2028": r"\u2028", "\u2029": r"\u2029"}
)

# The longest duration that Go can hold: what `keep_alive: -1` means to Ollama.
GO_FOR_EVER = timedelta(microseconds=(2**63 - 1) // 1000)


@frozen
class OllamaError(Exception):
    """A request that is answered with an error: `status`, and `message` in Ollama's own words."""

    status: int
    message: str


def encode(value: Mapping[str, Any]) -> bytes:
    """Compact JSON in UTF-8, keys in the order given."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate(GO_ESCAPES).encode("utf-8", "replace")


def decode(body: bytes) -> dict[str, Any]:
    """The object at the start of `body`, with its top-level keys in lower case: Go matches them in any case.

    What follows the object is ignored, as Go does. Raises OllamaError 400.
    """
    text = body.decode("utf-8", "replace").lstrip()
    if not text:
        raise OllamaError(400, "missing request body")
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        raise OllamaError(400, _go_complaint(text, error)) from None
    except RecursionError:
        raise OllamaError(400, "exceeded max depth") from None
    if not isinstance(value, dict):
        raise OllamaError(400, f"json: cannot unmarshal {go_kind(value)} into Go value of type api.Request")
    return {key.lower(): entry for key, entry in value.items()}


def go_kind(value: Any) -> str:
    """What Go calls the JSON type of `value`."""
    if isinstance(value, bool):
        return "bool"
    for kind, name in ((str, "string"), (dict, "object"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "number"


def rfc3339(moment: datetime) -> str:
    """`2026-11-23T17:00:51.049652Z`, in UTC."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def nanoseconds(seconds: float) -> int:
    """A duration in Ollama's unit; at least 1, since Ollama leaves a zero out."""
    return max(1, round(seconds * 1e9))


def _go_complaint(text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos :].lstrip()
    # Python places an unclosed string's error at its beginning.
    if not rest or error.msg.startswith("Unterminated string"):
        return "unexpected EOF"
    return f"invalid character {rest[0]!r} looking for beginning of value"
