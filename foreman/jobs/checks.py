"""What the fields of a body may be, and the complaints about those that may not."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, field

from foreman.jobs.top_level import decode
from foreman.quantities import parse_duration, parse_moment

LONGEST_SECONDS = 366 * 24 * 3600.0
_MOST_COMPLAINTS = 100


@define
class Complaints:
    """What is wrong, in the order in which it was found."""

    found: list[Mapping[str, str]] = field(factory=list)

    def add(self, detail: str, *path: str) -> None:
        """`path` leads to the value, one key for each level."""
        if len(self.found) < _MOST_COMPLAINTS:
            self.found.append({"pointer": "".join(f"/{_escaped(key)}" for key in path), "detail": detail})


def _escaped(key: str) -> str:
    """RFC 6901 §3."""
    return key.replace("~", "~0").replace("/", "~1")


def shown(value: Any) -> str:
    """A value for a sentence."""
    written = json.dumps(value, ensure_ascii=False)
    return written if len(written) <= 60 else f"{written[:60]}…"


def decoded(value: bytes) -> Any:
    """The value, or what is shown in its place when it is beyond what foreman reads."""
    try:
        return decode(value)
    except (ValueError, RecursionError):
        return ["…"]  # a list is never what is wanted


def whole_number(least: int, most: int) -> Callable[[Any], int]:
    """Each check returns what a value means, and raises ValueError with what is allowed."""

    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"it is a whole number from {least} to {most}")
        return value

    return check


def duration(*, zero: bool) -> Callable[[Any], float]:
    """A Go duration, in seconds. `zero`: whether none at all is allowed."""

    def check(value: Any) -> float:
        allowed = "it is a duration such as 30s or 1h30m, at most 8784h"
        allowed += ", or 0 for no limit" if zero else ", and more than zero"
        try:
            seconds = 0.0 if value == 0 and not isinstance(value, bool) else parse_duration(_text(value))
        except ValueError:
            raise ValueError(allowed) from None
        if not 0 <= seconds <= LONGEST_SECONDS or (seconds == 0 and not zero):
            raise ValueError(allowed)
        return seconds

    return check


def moment(value: Any) -> float:
    """A moment with its zone, in epoch seconds."""
    return parse_moment(value if isinstance(value, str) else "")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("it is a text")
    return value


def one_of(*allowed: str) -> Callable[[Any], str]:
    """One of these texts."""

    def check(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"it is {' or '.join(map(shown, allowed))}")
        return str(value)

    return check


def boolean(value: Any) -> bool:
    """True or false, and no number."""
    if not isinstance(value, bool):
        raise ValueError("it is true or false")
    return value
