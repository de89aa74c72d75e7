"""
Times of day at which something may happen, by the clock on the wall.

A range is written ``22:00-07:00``: local time, the end exclusive, over midnight when it ends before it
begins. On the days on which clocks are set, it is what the clock shows that counts: an hour that is shown
twice counts twice, and one that is left out is left out.
"""

import re
import time

from attrs import frozen

DAY_MINUTES = 24 * 60
_RANGE = re.compile(r"(\d{1,2}):(\d{2}) ?- ?(\d{1,2}):(\d{2})", re.ASCII)
# A range comes round every day, and the day on which clocks are set may leave it out.
_FAR_MINUTES = 3 * DAY_MINUTES


@frozen
class Hours:
    """
    Ranges of the day, and whether a moment (epoch seconds) is within one of them. No ranges: always.

    A range is the minutes of the day at which it begins and ends. Offsets from UTC are whole minutes, so the
    clock on the wall shows a new minute whenever a minute of the epoch begins.
    """

    ranges: tuple[tuple[int, int], ...] = ()

    def include(self, moment: float) -> bool:
        """Whether the clock shows a time within a range."""
        if not self.ranges:
            return True
        shown = time.localtime(moment)
        return self._include_minute(shown.tm_hour * 60 + shown.tm_min)

    def next_change(self, moment: float) -> float | None:
        """The next moment at which `include` says otherwise; None when it never does.

        It is looked for minute by minute, which is right on every day: half a millisecond for 9 hours.
        """
        if not self.ranges:
            return None
        included = self.include(moment)
        first = (int(moment // 60) + 1) * 60
        for candidate in range(first, first + _FAR_MINUTES * 60, 60):
            if self.include(candidate) != included:
                return float(candidate)
        return None

    def outside(self, since: float, until: float) -> list[tuple[float, float]]:
        """The spans between two moments that lie outside the ranges, oldest first."""
        spans: list[tuple[float, float]] = []
        begin = since
        while begin < until:
            change = self.next_change(begin)
            end = until if change is None else min(change, until)
            if not self.include(begin):
                spans.append((begin, end))
            begin = end
        return spans

    def reached(self, since: float, seconds: float) -> float:
        """The moment within the ranges at which they have lasted for so many seconds, from a moment on.

        Days that are filled are passed over at once: a walk through a thousand nights takes a second. Each
        is taken to have 24 hours, so that one on which clocks are set may be an hour wrong.
        """
        if not self.ranges:
            return since + seconds
        daily = 60 * sum(map(self._include_minute, range(DAY_MINUTES)))
        moment, left = since + seconds // daily * DAY_MINUTES * 60, seconds % daily
        while True:
            change = self.next_change(moment)
            if self.include(moment):
                if change is None or moment + left < change:
                    return moment + left
                left -= change - moment
            assert change is not None  # a range begins within three days
            moment = change

    def _include_minute(self, minute: int) -> bool:
        """Whether this minute of the day is within a range; there is one."""
        return any(
            begin <= minute < end if begin < end else minute >= begin or minute < end
            for begin, end in self.ranges
        )


def parse_hours(text: str) -> Hours:
    """
    Ranges with commas between; nothing at all is always.

    Raises ValueError, whose text says what is allowed, for anything else.
    """
    return Hours(tuple(_range(part.strip()) for part in text.split(","))) if text else Hours()


def _range(text: str) -> tuple[int, int]:
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ValueError("times of day are written as in 22:00-07:00, several with commas between")
    begin, end = _minute(match[1], match[2]), _minute(match[3], match[4])
    if begin == DAY_MINUTES or begin % DAY_MINUTES == end:
        raise ValueError("a range begins before 24:00, and ends at another time than it begins")
    return begin, end


def _minute(hour: str, minute: str) -> int:
    """The minute of the day; 24:00 is the end of it."""
    shown = int(hour) * 60 + int(minute)
    if int(minute) > 59 or shown > DAY_MINUTES:
        raise ValueError("a time of day is from 00:00 to 24:00")
    return shown
