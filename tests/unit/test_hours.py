"""Times of day: how they are written, and when they begin and end, on every day of every zone."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreman.hours import DAY_MINUTES, Hours, parse_hours

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"]
NIGHT = parse_hours("22:00-07:00")


@contextmanager
def zone(name: str) -> Iterator[ZoneInfo]:
    """The clock on the wall of another place."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = name
    time.tzset()
    try:
        yield ZoneInfo(name)
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()


def at(place: ZoneInfo, text: str, fold: int = 0) -> float:
    """The moment at which the clock shows this; `fold` 1: for the second time."""
    return datetime.fromisoformat(text).replace(tzinfo=place, fold=fold).timestamp()


def changes(hours: Hours, begin: float, end: float, place: ZoneInfo) -> list[str]:
    """What the clock shows at each change, with its offset, and whether the hours begin or end."""
    found = []
    moment: float | None = begin
    while (moment := hours.next_change(moment or 0.0)) is not None and moment <= end:
        shown = datetime.fromtimestamp(moment, place).isoformat(timespec="minutes")
        found.append(f"{shown} {'begins' if hours.include(moment) else 'ends'}")
    return found


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("", ()),
        ("22:00-07:00", ((1320, 420),)),
        ("9:05-9:06", ((545, 546),)),
        ("12:30-13:30, 22:00-24:00", ((750, 810), (1320, 1440))),
        ("00:00-24:00", ((0, 1440),)),
        ("22:00-00:00", ((1320, 0),)),
        ("22:00 - 07:00", ((1320, 420),)),
    ],
)
def test_written_so(text: str, ranges: tuple[tuple[int, int], ...]) -> None:
    """Ranges with commas between; 24:00 is the end of a day."""
    assert parse_hours(text) == Hours(ranges)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("night", "22:00-07:00"),
        ("22:00", "22:00-07:00"),
        ("22-7", "22:00-07:00"),
        ("22:00-07:00,", "22:00-07:00"),
        ("22:00-07:00-08:00", "22:00-07:00"),
        ("-1:00-07:00", "22:00-07:00"),
        ("22:00:00-07:00:00", "22:00-07:00"),
        ("２２:00-07:00", "22:00-07:00"),
        ("25:00-07:00", "00:00 to 24:00"),
        ("22:60-07:00", "00:00 to 24:00"),
        ("22:00-24:01", "00:00 to 24:00"),
        ("07:00-07:00", "another time"),
        ("24:00-07:00", "before 24:00"),
        ("00:00-00:00", "another time"),
    ],
)
def test_not_written_so(text: str, word: str) -> None:
    """The sentence says what is allowed."""
    with pytest.raises(ValueError, match=word):
        parse_hours(text)


def test_no_hours_are_always() -> None:
    """And all day long is, too: nothing ever changes."""
    for text in ("", "00:00-24:00", "00:00-12:00,12:00-24:00", "06:00-05:59,05:59-06:00"):
        hours = parse_hours(text)
        assert all(hours.include(60.0 * minute) for minute in range(0, 2 * DAY_MINUTES, 7))
        assert hours.next_change(1_800_000_000.0) is None


def test_end_is_exclusive() -> None:
    """22:00 is within, 07:00 is not, each to the second."""
    with zone("Europe/Berlin") as berlin:
        begin, end = at(berlin, "2026-11-24T22:00"), at(berlin, "2026-11-25T07:00")
        assert [NIGHT.include(moment) for moment in (begin - 1, begin, end - 1, end)] == [
            False,
            True,
            True,
            False,
        ]
        assert NIGHT.next_change(begin - 3600) == begin
        assert NIGHT.next_change(begin - 0.001) == begin
        assert NIGHT.next_change(begin) == end
        assert NIGHT.next_change(end) == begin + 24 * 3600


def test_night_on_which_clocks_are_set() -> None:
    """It ends when the clock shows 07:00, an hour earlier or later than on other nights."""
    with zone("Europe/Berlin") as berlin:
        for day, hours in (("2026-03-28", 8), ("2026-10-24", 10), ("2026-11-24", 9)):
            begin = at(berlin, f"{day}T22:00")
            assert NIGHT.next_change(begin) == begin + hours * 3600


def test_edges_within_the_hour_that_is_set() -> None:
    """What is left out in spring is left out, and what comes twice in autumn comes twice."""
    hours = parse_hours("02:15-02:45")
    with zone("Europe/Berlin") as berlin:
        spring = changes(hours, at(berlin, "2026-03-28T12:00"), at(berlin, "2026-03-30T12:00"), berlin)
        assert spring == ["2026-03-30T02:15+02:00 begins", "2026-03-30T02:45+02:00 ends"]
        autumn = changes(hours, at(berlin, "2026-10-24T12:00"), at(berlin, "2026-10-25T12:00"), berlin)
        assert autumn == [
            "2026-10-25T02:15+02:00 begins",
            "2026-10-25T02:45+02:00 ends",
            "2026-10-25T02:15+01:00 begins",
            "2026-10-25T02:45+01:00 ends",
        ]
        jumped = changes(
            parse_hours("02:30-05:00"), at(berlin, "2026-03-29T00:00"), at(berlin, "2026-03-29T12:00"), berlin
        )
        assert jumped == ["2026-03-29T03:00+02:00 begins", "2026-03-29T05:00+02:00 ends"]
        back = changes(
            parse_hours("00:00-02:30"), at(berlin, "2026-10-25T01:00"), at(berlin, "2026-10-25T12:00"), berlin
        )
        assert back == [
            "2026-10-25T02:30+02:00 ends",
            "2026-10-25T02:00+01:00 begins",
            "2026-10-25T02:30+01:00 ends",
        ]


def test_when_they_have_lasted_so_long() -> None:
    """What is beyond them is passed over, and their end itself is beyond them."""
    with zone("Europe/Berlin") as berlin:
        noon, begin = at(berlin, "2026-11-24T12:00"), at(berlin, "2026-11-24T22:00")
        end = begin + 9 * 3600
        assert NIGHT.reached(noon, 0.0) == begin
        assert NIGHT.reached(begin + 60, 0.0) == begin + 60
        assert NIGHT.reached(end, 0.0) == begin + 24 * 3600
        assert NIGHT.reached(noon, 3600.0) == begin + 3600
        assert NIGHT.reached(begin, 9 * 3600 - 1.0) == end - 1
        assert NIGHT.reached(begin, 9 * 3600.0) == begin + 24 * 3600
        assert NIGHT.reached(end - 153, 788.0) == begin + 24 * 3600 + 635
        assert NIGHT.reached(noon, 100 * 9 * 3600 + 60.0) == begin + 100 * 24 * 3600 + 60
        summer = at(berlin, "2026-07-24T12:00")  # one of the hundred nights has 10 hours
        found = NIGHT.reached(summer, 99 * 9 * 3600 + 7200.0)
        assert found == pytest.approx(at(berlin, "2026-10-31T23:00"), abs=3600)
    assert parse_hours("").reached(1000.0, 500.0) == 1500.0
    assert parse_hours("00:00-24:00").reached(1000.0, 1e9) == 1e9 + 1000.0


def test_far_away_costs_no_more() -> None:
    """A walk through a thousand nights would take a second."""
    with zone("Europe/Berlin") as berlin:
        hours, looks = parse_hours("02:15-02:45"), 0
        since = at(berlin, "2026-03-28T12:00")  # the next range is left out

        def counted(self: Hours, moment: float) -> bool:
            nonlocal looks
            looks += 1
            return include(self, moment)

        include = Hours.include
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Hours, "include", counted)
            assert include(hours, hours.reached(since, 1000 * 1800.0))
        assert 0 < looks < 3 * DAY_MINUTES


minutes = st.integers(0, DAY_MINUTES - 1)
ranges = st.lists(
    st.tuples(minutes, st.integers(1, DAY_MINUTES - 1)).map(lambda r: (r[0], (r[0] + r[1]) % DAY_MINUTES)),
    min_size=1,
    max_size=3,
)


@given(
    st.sampled_from(ZONES),
    ranges,
    # Most days are alike: half of the moments are near those on which clocks are set.
    st.floats(1.6e9, 2e9)
    | st.sampled_from([1774746000.0, 1793062800.0, 1772953200.0]).map(lambda s: s - 9e4),
)
def test_holds_between_two_changes(name: str, found: list[tuple[int, int]], moment: float) -> None:
    """What `include` says is what the clock shows, and holds until the next change and no longer."""
    text = ",".join(f"{b // 60:02}:{b % 60:02}-{e // 60:02}:{e % 60:02}" for b, e in found)
    hours = parse_hours(text)

    def within(seconds: float, place: ZoneInfo) -> bool:
        local = datetime.fromtimestamp(int(seconds), place)  # it would round a fraction up
        minute = local.hour * 60 + local.minute
        return any((minute - begin) % DAY_MINUTES < (end - begin) % DAY_MINUTES for begin, end in found)

    with zone(name) as place:
        change = hours.next_change(moment)
        until = moment + 3 * 86400 if change is None else change
        included = hours.include(moment)
        assert included == within(moment, place)
        step = max(1.0, (until - moment) / 50)
        seconds = moment
        while seconds < until:
            assert hours.include(seconds) == within(seconds, place) == included
            seconds += step
        if change is not None:
            assert hours.include(change) == within(change, place) != included
            assert within(change - 0.5, place) == included


@given(st.sampled_from(ZONES), ranges, st.floats(1.7e9, 1.8e9), st.floats(0.0, 10.0))
def test_reached_is_the_end_of_so_much(
    name: str, found: list[tuple[int, int]], since: float, days: float
) -> None:
    """Within the hours, and what lies within them up to it is as long as was asked."""
    hours = Hours(tuple(found))
    begin, end = found[0]
    seconds = days * 60 * ((end - begin) % DAY_MINUTES)
    with zone(name):
        moment = hours.reached(since, seconds)
        assert hours.include(moment)
        shut = sum(end - begin for begin, end in hours.outside(since, moment))
        # Whole days are taken as 24 hours; on one of them clocks may be set.
        assert moment - since - shut == pytest.approx(seconds, abs=0.001 if days < 1 else 3600.001)
