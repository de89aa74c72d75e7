"""The ledger: when the durable lane is owed some of the time."""

import pytest

from foreman.scheduler.ledger import Ledger
from foreman.scheduler.policy import Lane, Limits

INTERACTIVE, DURABLE = Lane.INTERACTIVE, Lane.DURABLE


def ran(ledger: Ledger, lane: Lane, seconds: float) -> None:
    """One job ran while both lanes had work."""
    ledger.begin_run(lane)
    ledger.record(lane, seconds)


def test_with_nothing_measured_no_lane_is_owed() -> None:
    """Interactive goes first then."""
    assert not Ledger(Limits()).owed_durable()


def test_durable_is_owed_while_it_had_less_than_its_share() -> None:
    """At 0.8 for interactive, one second in five is durable's."""
    ledger = Ledger(Limits())
    ran(ledger, INTERACTIVE, 1)
    assert ledger.owed_durable()
    ran(ledger, DURABLE, 1)
    assert not ledger.owed_durable()
    ran(ledger, INTERACTIVE, 2.5)
    assert not ledger.owed_durable()
    ran(ledger, INTERACTIVE, 1)
    assert ledger.owed_durable()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.95])
def test_the_lanes_come_to_their_shares(share: float) -> None:
    """Whoever is owed runs: over many jobs of any length each lane has its part."""
    ledger = Ledger(Limits(interactive_share=share))
    seconds = dict.fromkeys(Lane, 0.0)
    for number in range(3000):
        lane = DURABLE if ledger.owed_durable() else INTERACTIVE
        length = 1 + number * 37 % 101
        ran(ledger, lane, length)
        seconds[lane] += length
    assert seconds[INTERACTIVE] / sum(seconds.values()) == pytest.approx(share, abs=0.01)


def busy_until(ledger: Ledger, lane: Lane, owed: bool) -> int:
    """For how many seconds, in jobs of one second, this lane runs until durable is owed, or is no more."""
    for seconds in range(20_000):
        if ledger.owed_durable() is owed:
            return seconds
        ran(ledger, lane, 1)
    raise AssertionError("it never ends")


def test_no_more_is_remembered_than_ten_minutes_can_owe() -> None:
    """After hours of one lane the other gets what makes up its share of ten minutes: 2 or 8 of them."""
    ledger = Ledger(Limits())
    for _ in range(10_000):
        ran(ledger, INTERACTIVE, 1)
    assert busy_until(ledger, DURABLE, owed=False) == pytest.approx(120, abs=2)
    for _ in range(10_000):
        ran(ledger, DURABLE, 1)
    assert busy_until(ledger, INTERACTIVE, owed=True) == pytest.approx(480, abs=5)


def test_a_job_longer_than_ten_minutes_counts_in_full() -> None:
    """A durable job of an hour is paid back with four hours, or interactive would get half the time."""
    ledger = Ledger(Limits())
    ran(ledger, DURABLE, 3600)
    assert busy_until(ledger, INTERACTIVE, owed=True) == pytest.approx(4 * 3600, abs=5)


@pytest.mark.parametrize(("share", "owed"), [(0.0, True), (1.0, False)])
def test_a_share_of_all_or_nothing(share: float, owed: bool) -> None:
    """With 1 the durable lane is never owed; with 0 it is, whatever it had, once an interactive job ran."""
    ledger = Ledger(Limits(interactive_share=share))
    for lane, seconds in [
        (INTERACTIVE, 0.1),
        (DURABLE, 3600),
        (INTERACTIVE, 700),
        (DURABLE, 50),
        (DURABLE, 1),
    ]:
        ran(ledger, lane, seconds)
        assert ledger.owed_durable() is owed
