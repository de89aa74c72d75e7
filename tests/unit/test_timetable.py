"""The timetable: the durable lane opens and shuts by the clock."""

import pytest
from test_hours import at, zone
from twisted.internet.task import Clock

from foreman.hours import parse_hours
from foreman.scheduler.timetable import Timetable


def begin(text: str, moment: float) -> tuple[Clock, Timetable, list[tuple[float, bool]]]:
    """A timetable that has started, and what it said when."""
    clock, said = Clock(), list[tuple[float, bool]]()
    clock.advance(moment)
    timetable = Timetable(clock, parse_hours(text), lambda within: said.append((clock.seconds(), within)))
    timetable.start()
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
