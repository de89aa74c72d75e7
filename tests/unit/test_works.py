"""Work in the background, and writes that are tried until they succeed."""

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import Logger

from foreman.errors import DatabaseFull
from foreman.works import Retries, Works


class Log(Logger):
    """Notes what is said."""

    said: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.said = []

    def warn(self, format: str | None = None, **values: object) -> None:  # noqa: A002
        self.said.append(str(format).format(**values))

    def failure(self, format: str, *given: Any, **values: object) -> None:  # noqa: A002
        self.said.append(format)


def test_works_are_waited_for() -> None:
    """Until the last has ended, or the time is over."""
    clock, held = Clock(), Deferred[None]()
    works = Works(clock, Log())

    async def work() -> None:
        await held

    assert Deferred.fromCoroutine(works.wait_until_idle(5)).result is True
    works.begin(work())
    late = Deferred.fromCoroutine(works.wait_until_idle(5))
    early = Deferred.fromCoroutine(works.wait_until_idle(60))
    clock.advance(5)
    assert late.result is False
    held.callback(None)
    assert early.result is True


def test_what_fails_is_logged_and_what_is_cancelled_is_not() -> None:
    """Nobody watches these Deferreds but the log."""
    log = Log()
    works = Works(Clock(), log)

    async def work(held: "Deferred[None]") -> None:
        await held

    begun = works.begin(work(Deferred()))
    begun.cancel()
    assert log.said == []
    failing: Deferred[None] = Deferred()
    works.begin(work(failing))
    failing.errback(RuntimeError("a fault"))
    assert log.said == ["work in the background failed inside foreman"]
    assert Deferred.fromCoroutine(works.wait_until_idle(0.1)).result is True


def test_a_write_is_tried_until_it_succeeds() -> None:
    """After 1, 2, 4, 8, 16 and then each 30 s; how long nothing has succeeded is known meanwhile."""
    clock, log, tried = Clock(), Log(), list[float]()
    retries = Retries(clock, log)

    async def attempt() -> str:
        tried.append(clock.seconds())
        if len(tried) < 8:
            raise DatabaseFull("foreman.db")
        return "done"

    result = Deferred.fromCoroutine(retries.until_done("a write", attempt))
    assert retries.failing_since == 0
    clock.pump([1, 2, 4, 8, 16, 30, 30])
    assert result.result == "done"
    assert tried == [0, 1, 3, 7, 15, 31, 61, 91]
    assert retries.failing_since is None
    assert log.said[0].startswith("a write is not done yet: the disk of FOREMAN_DB_PATH")


def test_stopped_it_is_tried_once() -> None:
    """What waits is given up, and what comes later has one attempt."""
    clock, tried = Clock(), list[int]()
    retries = Retries(clock, Log())

    async def attempt() -> str:
        tried.append(1)
        raise DatabaseFull("foreman.db")

    waiting = Deferred.fromCoroutine(retries.until_done("a write", attempt))
    retries.stop()
    assert waiting.result is None
    assert Deferred.fromCoroutine(retries.until_done("a write", attempt)).result is None
    assert len(tried) == 2


def test_a_fault_is_not_waited_out() -> None:
    """Trying it again would bring it again."""

    async def attempt() -> str:
        raise RuntimeError("a fault")

    done = Deferred.fromCoroutine(Retries(Clock(), Log()).until_done("a write", attempt))
    with pytest.raises(RuntimeError):
        done.result.raiseException()  # type: ignore[union-attr]
    done.addErrback(lambda _: None)
