"""The timetable: the durable lane opens and shuts by the clock."""

from types import SimpleNamespace
from typing import Any

import pytest
from test_hours import at, zone
from twisted.internet.task import Clock

from foreman.errors import LanePaused
from foreman.hours import parse_hours
from foreman.jobs.model import Pause
from foreman.scheduler.gates import Gates
from foreman.scheduler.outages import WaitingClock
from foreman.scheduler.policy import Lane
from foreman.scheduler.timetable import Timetable
from foreman.service import _hold
from foreman.web.outlook import Hold


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


def test_a_pause_of_three_days_over_a_restart() -> None:
    """The nights in it are paused, too: nothing of it is waiting, as if foreman had been up all the time."""
    with zone("UTC") as utc:
        since, now = at(utc, "2026-12-01T21:00"), at(utc, "2026-12-04T23:00")
        clock = Clock()
        clock.advance(now)
        gates = Gates(clock)
        timetable = Timetable(
            clock, parse_hours("22:00-07:00"), gates.set_durable_hours, gates.was_beyond_hours
        )
        timetable.start()
        gates.pause(Lane.DURABLE, lambda: LanePaused("durable", None, now), since)
        assert gates.now()[Lane.DURABLE] - gates.clocks[Lane.DURABLE].at(since - 60) == 0.0
        gates.resume(Lane.DURABLE)
        clock.advance(100)
        assert gates.now()[Lane.DURABLE] - gates.clocks[Lane.DURABLE].at(since - 60) == 100.0
        # And in the life after that, in which it is over.
        gates = Gates(clock)
        timetable = Timetable(
            clock, parse_hours("22:00-07:00"), gates.set_durable_hours, gates.was_beyond_hours
        )
        timetable.start()
        gates.was_paused(Lane.DURABLE, since, now)
        assert gates.now()[Lane.DURABLE] - gates.clocks[Lane.DURABLE].at(since - 60) == 100.0
        assert gates.now()[Lane.INTERACTIVE] - gates.clocks[Lane.INTERACTIVE].at(now) == 100.0
        timetable.stop()


def held(timetable: Timetable, *until: float | None) -> Hold | None:
    """What holds durable jobs back, with one pause or none."""
    pauses = [Pause("durable", 0.0, end, False) for end in until]
    standing: Any = dict(zip([Lane.DURABLE], pauses, strict=False))
    return _hold(SimpleNamespace(standing=standing), timetable)


def test_held_back_until_both_let_it_go() -> None:
    """The pause and the hours: the first moment that is after the one and within the others."""
    with zone("UTC") as utc:
        _, timetable, _ = begin("22:00-07:00", at(utc, "2026-12-01T12:00"))
        evening = at(utc, "2026-12-01T22:00")
        assert held(timetable) == Hold("durable_hours", evening)
        thirteen = at(utc, "2026-12-01T13:00")
        assert held(timetable, thirteen) == Hold("lane_paused", evening, thirteen)
        later = at(utc, "2026-12-01T23:30")
        assert held(timetable, later) == Hold("lane_paused", later)
        assert held(timetable, None) == Hold("lane_paused", None)
        timetable.stop()
        _, timetable, _ = begin("22:00-07:00", at(utc, "2026-12-02T06:57"))
        assert held(timetable) is None
        after = at(utc, "2026-12-02T07:07")
        assert held(timetable, after) == Hold("lane_paused", evening + 24 * 3600, after)
        timetable.stop()
    _, timetable, _ = begin("", 1_800_000_000.0)
    assert held(timetable) is None
    assert held(timetable, 1_800_000_060.0) == Hold("lane_paused", 1_800_000_060.0)
