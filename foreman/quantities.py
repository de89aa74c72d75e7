"""
Durations as Go writes them, sizes in bytes, and moments.

The grammar of a duration is that of Go's ``time.ParseDuration``, which Ollama uses for ``keep_alive``:
a sign, then numbers each with a unit (``ns us µs ms s m h``), such as ``1h30m`` or ``1.5s``.
"""

import re
from datetime import UTC, datetime

_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
# Go counts nanoseconds in 64 bits.
_LONGEST_SECONDS = (2**63 - 1) / 1e9
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_UNIT_BYTES = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_SIZE = re.compile(r"(\d+)\s?(B|KiB|MiB|GiB|TiB|)", re.ASCII)


def parse_duration(text: str) -> float:
    """
    Seconds in a Go duration; ``0`` needs no unit.

    Raises ValueError, whose text says what is allowed, for anything else.
    """
    sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    seconds, at = 0.0, 0
    while match := _PART.match(rest, at):
        seconds += float(match[1]) * _UNIT_SECONDS[match[2]]
        at = match.end()
    if at == 0 or at != len(rest):
        raise ValueError("a duration is written as in 250ms, 30s or 1h30m")
    if seconds > _LONGEST_SECONDS:
        raise ValueError("a duration is at most 292 years")
    return sign * seconds


def format_duration(seconds: float) -> str:
    """The shortest Go spelling of a number of seconds, to the nanosecond: ``90`` is ``1m30s``."""
    nanoseconds = round(abs(seconds) * 1e9)
    sign = "-" if seconds < 0 and nanoseconds else ""
    if nanoseconds < 10**9:
        return f"{sign}{_decimal(nanoseconds, 6)}ms" if nanoseconds else "0s"
    minutes, rest = divmod(nanoseconds, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    parts = ((f"{hours}h", hours), (f"{minutes}m", minutes), (f"{_decimal(rest, 9)}s", rest))
    return sign + "".join(text for text, amount in parts if amount)


def _decimal(count: int, places: int) -> str:
    """`count` with so many of its digits behind the point, and no zeros at the end."""
    whole, fraction = divmod(count, 10**places)
    return f"{whole}.{fraction:0{places}}".rstrip("0").rstrip(".")


def parse_size(text: str) -> int:
    """
    Bytes in ``4096``, ``64KiB``, ``8MiB`` or ``2GiB``.

    Raises ValueError, whose text says what is allowed, for anything else.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError("a size is a number of bytes, or written as in 64KiB, 8MiB or 2GiB")
    return int(match[1]) * _UNIT_BYTES[match[2]]


def format_size(size_bytes: int) -> str:
    """The shortest exact spelling of a number of bytes: ``8388608`` is ``8MiB``."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % _UNIT_BYTES[unit] == 0:
            return f"{size_bytes // _UNIT_BYTES[unit]}{unit}"
    return str(size_bytes)


def format_moment(seconds: float | None) -> str | None:
    """RFC 3339 in UTC with milliseconds, of epoch seconds; None stays None."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_moment(text: str) -> float:
    """
    Epoch seconds of an RFC 3339 moment, which has a zone.

    Raises ValueError, whose text says what is allowed, for anything else.
    """
    try:
        if not _MOMENT.fullmatch(text):
            raise ValueError
        # In UTC, so that it can be shown: the last hours of the year 9999 may be those of the year 10,000.
        return datetime.fromisoformat(text.upper()).astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(
            "a moment is written as in 2026-12-01T02:00:00Z or 2026-12-01T03:00:00+01:00"
        ) from None
