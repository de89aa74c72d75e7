"""The clock of the waiting times: it stands still during outages, also for moments in the past."""

import random

from twisted.internet.task import Clock

from foreman.scheduler.outages import WaitingClock


def test_now_stands_still_during_an_outage() -> None:
    """Stopped twice is stopped once; going on without a stop does nothing."""
    clock = Clock()
    waiting = WaitingClock(clock)
    clock.advance(10)
    waiting.go_on()
    waiting.stop()
    clock.advance(5)
    waiting.stop()
    clock.advance(5)
    assert waiting.now() == 10
    waiting.go_on()
    clock.advance(3)
    assert waiting.now() == 13


def test_a_moment_of_the_past_is_what_now_was_then() -> None:
    """For every moment of a random history, whenever it is asked for later."""
    dice = random.Random(5)
    clock = Clock()
    waiting = WaitingClock(clock)
    history: list[tuple[float, float]] = []
    for _ in range(500):
        dice.choice([waiting.stop, waiting.go_on])()
        for _ in range(dice.randint(1, 3)):
            history.append((clock.seconds(), waiting.now()))
            clock.advance(dice.choice([1, 2, 8]))
        for moment, then in dice.sample(history, min(20, len(history))):
            assert waiting.at(moment) == then


def test_many_outages_take_no_more_memory() -> None:
    """The oldest are forgotten; what came after them is exact."""
    clock = Clock()
    waiting = WaitingClock(clock)
    for _ in range(5000):
        waiting.stop()
        clock.advance(1)
        waiting.go_on()
        clock.advance(1)
    assert waiting.now() == 5000
    assert waiting.at(9998.5) == 4999
    assert len(waiting._ends) <= 1000


def test_spans_in_any_order() -> None:
    """Those of earlier lives, each told when somebody reads of it: what two of them share is lost once."""
    dice = random.Random(8)
    for _ in range(200):
        clock = Clock()
        clock.advance(100)
        waiting = WaitingClock(clock)
        spans = [(begin, begin + dice.randint(1, 30)) for begin in dice.choices(range(70), k=6)]
        stopped = dice.choice([None, dice.randint(0, 100)])
        told = [*spans, *([] if stopped is None else [(stopped, None)])]
        dice.shuffle(told)
        for begin, end in told:
            waiting.stop(begin) if end is None else waiting.lost(begin, end)
        shut = {second for begin, end in spans for second in range(begin, end)}
        shut |= set() if stopped is None else set(range(stopped, 100))
        for moment in range(101):
            assert waiting.now() - waiting.at(moment) == len(set(range(moment, 100)) - shut)
        waiting.go_on()
        clock.advance(7)
        assert waiting.now() - waiting.at(50) == len(set(range(50, 100)) - shut) + 7


def test_older_than_what_is_remembered() -> None:
    """It is as good as told in time: what comes after it is exact."""
    clock = Clock()
    clock.advance(10_000)
    waiting = WaitingClock(clock)
    for begin in range(5000, 7000, 2):
        waiting.lost(begin, begin + 1)
    before = waiting.now() - waiting.at(5001)
    waiting.lost(10, 20)
    assert waiting.now() - waiting.at(5001) == before
    assert len(waiting._ends) <= 1000


def test_a_stop_that_began_earlier() -> None:
    """In an earlier life, say: what waited then has waited no longer than until that moment."""
    clock = Clock()
    clock.advance(1000)
    waiting = WaitingClock(clock)
    waiting.stop(400)
    assert waiting.now() - waiting.at(300) == 100
    clock.advance(500)
    assert waiting.now() - waiting.at(300) == 100
    waiting.stop()
    waiting.stop(600)
    assert waiting.now() - waiting.at(300) == 100
    waiting.go_on()
    clock.advance(50)
    assert waiting.now() - waiting.at(300) == 150
    # Within an outage that is over nothing is taken away twice.
    waiting.stop(500)
    assert waiting.now() - waiting.at(300) == 100
    waiting.go_on()
    clock.advance(1)
    assert waiting.now() - waiting.at(300) == 101
