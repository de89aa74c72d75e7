"""
How a caller of a native path lets others go first: ``X-Foreman-Lane`` and ``X-Foreman-Priority``.

A caller may lower its request and never raise it, or everybody would. What cannot be read is ignored: a
client that sends nonsense still gets its answer.
"""

import re

from attrs import frozen
from twisted.web.http_headers import Headers

from foreman.scheduler.policy import Lane

_INTEGER = re.compile(rb"[+-]?[0-9]{1,18}")
# As that of a durable job.
_LOWEST_PRIORITY = -1_000_000


@frozen
class Lowering:
    """In which lane a request waits, and with which priority there: 0 or less."""

    lane: Lane = Lane.INTERACTIVE
    priority: int = 0


_NONE = Lowering()


def lowering(headers: Headers) -> Lowering:
    """What the headers of a request ask for."""
    lanes = headers.getRawHeaders(b"x-foreman-lane")
    priorities = headers.getRawHeaders(b"x-foreman-priority")
    if lanes is None and priorities is None:
        return _NONE
    # The first of several counts, as it does for Go.
    lane = lanes[0].strip().lower() if lanes else b""
    priority = priorities[0].strip() if priorities else b""
    asked = int(priority) if _INTEGER.fullmatch(priority) else 0
    return Lowering(
        Lane.DURABLE if lane == b"durable" else Lane.INTERACTIVE, max(_LOWEST_PRIORITY, min(0, asked))
    )
