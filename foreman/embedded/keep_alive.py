"""`keep_alive` as Ollama reads it: how long an idle model stays loaded."""

import math
import re
from typing import Any

# Go's units of time, in seconds.
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

FOR_EVER = math.inf

PART = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)")


class KeepAliveError(ValueError):
    """The value is not a duration; the message is Ollama's own."""


def parse_keep_alive(value: Any) -> float | None:
    """Seconds; FOR_EVER when negative; None when absent or null, which leaves the present duration alone.

    A JSON number is seconds, a string is a Go duration. Raises KeepAliveError.
    """
    if value is None:
        return None
    if isinstance(value, str):
        seconds = _go_duration(value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise KeepAliveError(f"Unsupported type: '{_go_type(value)}'")
    return FOR_EVER if seconds < 0 else seconds


def _go_duration(text: str) -> float:
    """Seconds of a Go duration: `1h30m`, `-1m`, `0`. The errors are those of Go's time.ParseDuration."""
    sign, rest = (-1.0, text[1:]) if text[:1] == "-" else (1.0, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    seconds, at = 0.0, 0
    while at < len(rest):
        part = PART.match(rest, at)
        if part is None:
            break
        number, unit = part.groups()
        if not unit:
            raise KeepAliveError(f'time: missing unit in duration "{text}"')
        if unit not in UNITS:
            raise KeepAliveError(f'time: unknown unit "{unit}" in duration "{text}"')
        seconds += float(number) * UNITS[unit]
        at = part.end()
    if not rest or at < len(rest):
        raise KeepAliveError(f'time: invalid duration "{text}"')
    return sign * seconds


def _go_type(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    return "map[string]interface {}" if isinstance(value, dict) else "[]interface {}"
