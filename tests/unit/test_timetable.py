"""The timetable: the durable lane opens and shuts by the clock."""

import pytest
from test_hours import at, zone
from twisted.internet.task import Clock

from foreman.hours import parse_hours
from foreman.scheduler.outages import WaitingClock
from foreman.scheduler.timetable import Timetable


def begin(text: str, moment: float) -> tuple[Clock, Timetable, list[tuple[float, bool]]]:
    """A timetable that has started, and what it said when."""
    clock, said = Clock(), list[tuple[float, bool]]()
    past = list[tuple[float, float]]()

    def shut(begin: float, end: float) -> None:
        past.append((begin, end))

    clock.advance(moment)

    def changed(within: bool) -> None:
        said.append((clock.seconds(), within))

    timetable = Timetable(clock, parse_hours(text), changed, shut)
    timetable.start()
    assert all(begin < end <= moment for begin, end in past)
    return clock, timetable, said


def test_says_so_at_each_edge() -> None:
    """At the start and at both ends of each night, the one on which clocks are set included."""
    with zone("Europe/Berlin") as berlin:
        noon = at(berlin, "2026-10-24T12:00")
        clock, timetable, said = begin("22:00-07:00", noon)
        assert said == [(noon, False)]
        assert timetable.opens_at == noon + 10 * 3600
        clock.pump([900.0] * (4 * 49))
        assert [(moment - noon, within) for moment, within in said[1:]] == [
            (10 * 3600, True),
            (20 * 3600, False),
            (35 * 3600, True),
            (44 * 3600, False),
        ]
        timetable.stop()
        assert not clock.getDelayedCalls()


@pytest.mark.parametrize("text", ["", "00:00-24:00"])
def test_always_needs_no_clock(text: str) -> None:
    """Nothing is waited for."""
    clock, timetable, said = begin(text, 1_800_000_000.0)
    assert [within for _, within in said] == [True]
    assert timetable.opens_at is None
    assert not clock.getDelayedCalls()
    timetable.stop()


def test_opens_at() -> None:
    """Only while it is shut."""
    with zone("UTC") as utc:
        clock, timetable, _ = begin("22:00-07:00", at(utc, "2026-11-24T21:59:30"))
        assert timetable.opens_at == at(utc, "2026-11-24T22:00")
        clock.advance(30.0)
        assert timetable.opens_at is None
        timetable.stop()


@pytest.mark.parametrize(("started", "waited"), [("15:00", 0.0), ("22:30", 1800.0), ("12:30", 0.0)])
def test_time_outside_the_hours_of_an_earlier_life_is_no_waiting(started: str, waited: float) -> None:
    """A job of 10:00 has waited since 22:00, whenever foreman was started after it."""
    with zone("Europe/Berlin") as berlin:
        clock = Clock()
        clock.advance(at(berlin, f"2026-11-20T{started}"))
        waiting = WaitingClock(clock)

        def changed(within: bool) -> None:
            waiting.go_on() if within else waiting.stop()

        timetable = Timetable(clock, parse_hours("22:00-07:00"), changed, waiting.lost)
        timetable.start()
        job = at(berlin, "2026-11-20T10:00")
        assert waiting.now() - waiting.at(job) == waited
        evening = at(berlin, "2026-11-20T23:00")
        while clock.seconds() < evening:
            clock.advance(min(900.0, evening - clock.seconds()))
        assert waiting.now() - waiting.at(job) == 3600.0
        timetable.stop()
