"""What comes of an attempt: an end, or the moment of the next one. It knows only values."""

import re
from collections.abc import Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime

from foreman.jobs.delivery import DeliveryState

JITTER_SHARE = 0.2
LONGEST_RETRY_AFTER_SECONDS = 6 * 3600.0
_GONE = 410
_MAY_SAY_WHEN = (429, 503)
_SECONDS = re.compile(r"\d+", re.ASCII)


def verdict(
    tried: int,
    status: int | None,
    retry_after: bytes | None,
    ended_at: float,
    backoff: Sequence[float],
    jitter: float,
) -> tuple[DeliveryState, float | None]:
    """
    What the delivery is now, and when it is due again if it is PENDING.

    `tried` counts the attempts of the series, this one included. `status` is that of the answer, None when
    there was none. `ended_at` is in epoch seconds; the next attempt is counted from it. `backoff` has the
    seconds to wait after the first, second, … attempt; after one more it is over. `jitter`, from -1 to 1, is
    drawn by the caller: the wait is up to a fifth shorter or longer than planned.
    """
    if status is not None and 200 <= status < 300:
        return DeliveryState.DELIVERED, None
    if status == _GONE:
        return DeliveryState.STOPPED, None
    if tried > len(backoff):
        return DeliveryState.FAILED, None
    planned = backoff[tried - 1]
    asked = retry_after_seconds(retry_after, ended_at) if status in _MAY_SAY_WHEN else None
    if asked is None:
        return DeliveryState.PENDING, ended_at + planned * (1 + JITTER_SHARE * jitter)
    wait = max(planned, min(asked, LONGEST_RETRY_AFTER_SECONDS))
    # Whoever says when means it: jitter must not bring the attempt forward.
    return DeliveryState.PENDING, ended_at + wait * (1 + JITTER_SHARE * abs(jitter))


def retry_after_seconds(given: bytes | None, now: float) -> float | None:
    """
    The seconds that a ``Retry-After`` asks for: a number of them, or a date in any of the three forms of
    HTTP (RFC 9110, 10.2.3 and 5.6.7). None when it is missing, in the past or cannot be read.
    """
    text = (given or b"").decode("latin-1").strip()
    if _SECONDS.fullmatch(text):
        # As a float, any number of digits is read in no time.
        return float(text) or None
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        # asctime's form names no zone; HTTP's dates are all in UTC.
        date = date.replace(tzinfo=UTC)
    seconds = date.timestamp() - now
    return seconds if seconds > 0 else None
