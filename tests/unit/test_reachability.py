"""Reachability: probing with a backoff, and the patience of those who wait."""

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from foreman.errors import TargetFailed, TargetTimeout, TargetUnreachable
from foreman.target.reachability import Reachability

URL = "http://target:11434"


class Bench:
    """A reachability on a clock, with a probe whose outcome a test sets."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.outcome: Any = TargetUnreachable(URL, "connection refused")
        self.probes: list[float] = []
        self.lost: list[str] = []
        self.found: list[float] = []
        self.reachability = Reachability(
            self.clock,
            URL,
            self.probe,
            10,
            lambda error: self.lost.append(error.reason),
            lambda: self.found.append(self.clock.seconds()),
        )

    async def probe(self) -> str:
        self.probes.append(self.clock.seconds())
        if isinstance(self.outcome, Deferred):
            return await self.outcome
        if self.outcome is not None:
            raise self.outcome
        return "0.0.0"

    def pass_seconds(self, seconds: float) -> None:
        # Quarters of a second add up without a rest.
        for _ in range(round(seconds * 4)):
            self.clock.advance(0.25)

    def wait(self) -> "Deferred[None]":
        return Deferred.fromCoroutine(self.reachability.ready())


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_up_at_first(bench: Bench) -> None:
    """Until somebody finds out otherwise the target is there, and nobody waits."""
    assert (bench.reachability.up, bench.reachability.reason, bench.reachability.since) == (True, None, 0)
    await bench.reachability.ready()
    assert bench.clock.getDelayedCalls() == []


async def test_the_backoff(bench: Bench) -> None:
    """Probes follow after 1, 2, 4, 8, 16 and then every 30 seconds."""
    bench.reachability.lost("connection refused")
    assert (bench.reachability.up, bench.reachability.reason) == (False, "connection refused")
    bench.pass_seconds(125)
    assert bench.probes == [1, 3, 7, 15, 31, 61, 91, 121]
    bench.reachability.stop()
    assert bench.clock.getDelayedCalls() == []


async def test_lost_twice_is_no_news(bench: Bench) -> None:
    """A second report changes nothing: not the moment, not the probes."""
    bench.reachability.lost("connection refused")
    bench.pass_seconds(0.5)
    bench.reachability.lost("no route to its host")
    bench.pass_seconds(1)
    assert (bench.lost, len(bench.probes), bench.reachability.since) == (["connection refused"], 1, 0)
    bench.reachability.stop()


async def test_a_new_reason_is_told(bench: Bench) -> None:
    """A probe that fails for another reason brings the explanation up to date."""
    bench.reachability.lost("connection refused")
    bench.outcome = TargetUnreachable(URL, "its name does not resolve")
    bench.pass_seconds(4)
    assert bench.lost == ["connection refused", "its name does not resolve"]
    assert bench.reachability.reason == "its name does not resolve"
    bench.reachability.stop()


@pytest.mark.parametrize("outcome", [None, TargetFailed("with 500"), TargetFailed("not Ollama's")])
async def test_any_answer_means_found(bench: Bench, outcome: Any) -> None:
    """A good answer and a bad one both say that the target is there; the probes end."""
    bench.reachability.lost("connection refused")
    waiting = bench.wait()
    bench.outcome = outcome
    bench.pass_seconds(1)
    await waiting
    assert (bench.reachability.up, bench.reachability.reason) == (True, None)
    assert bench.reachability.since == 1
    assert bench.found == [bench.reachability.since]
    assert bench.clock.getDelayedCalls() == []


async def test_silence_is_no_answer(bench: Bench) -> None:
    """A target that accepts and says nothing stays lost, with the reason."""
    bench.reachability.lost("connection refused")
    bench.outcome = TargetTimeout("nothing")
    bench.pass_seconds(2)
    assert not bench.reachability.up
    assert bench.reachability.reason == "it accepts connections and does not answer"
    bench.reachability.stop()


async def test_patience_ends(bench: Bench) -> None:
    """Who waits longer than the patience gets the error with the reason."""
    bench.reachability.lost("connection refused")
    bench.pass_seconds(3)
    waiting = bench.wait()
    bench.pass_seconds(9.75)
    assert not waiting.called
    bench.pass_seconds(0.25)
    with pytest.raises(TargetUnreachable, match=f"cannot reach the target {URL}: connection refused"):
        await waiting
    assert not bench.reachability.up
    bench.reachability.stop()
    assert bench.clock.getDelayedCalls() == []


async def test_a_waiter_brings_the_probe_forward(bench: Bench) -> None:
    """The next probe comes at most a second after somebody began to wait, and no later for each more."""
    bench.reachability.lost("connection refused")
    bench.pass_seconds(32)
    assert bench.probes[-1] == 31
    for _ in range(6):
        bench.wait().addErrback(lambda failure: failure.trap(TargetUnreachable))
        bench.pass_seconds(0.25)
    assert bench.probes[-1] == 33
    bench.reachability.stop()


async def test_a_waiter_during_a_probe_hurries_the_next(bench: Bench) -> None:
    """Somebody who comes while a probe is under way has the next one a second after it."""
    bench.reachability.lost("connection refused")
    bench.pass_seconds(14)
    bench.outcome = Deferred()
    bench.pass_seconds(2)
    assert len(bench.probes) == 4
    waiting = bench.wait()
    under_way, bench.outcome = bench.outcome, None
    under_way.errback(TargetUnreachable(URL, "no connection in time"))
    bench.pass_seconds(1)
    await waiting
    assert bench.probes[-1] == 17


async def test_cancelled_while_waiting(bench: Bench) -> None:
    """A waiter who leaves disturbs nobody and leaves nothing behind."""
    bench.reachability.lost("connection refused")
    leaving, staying = bench.wait(), bench.wait()
    leaving.cancel()
    with pytest.raises(CancelledError):
        await leaving
    bench.reachability.found()
    await staying
    assert bench.clock.getDelayedCalls() == []


async def test_found_by_others_ends_the_probe(bench: Bench) -> None:
    """Any answer that anybody gets is enough; a probe under way is dropped, and cannot say otherwise."""
    bench.reachability.lost("connection refused")
    bench.outcome = Deferred()
    bench.pass_seconds(1)
    bench.reachability.found()
    bench.reachability.found()
    assert bench.outcome.called
    assert len(bench.found) == 1
    assert (bench.reachability.up, bench.clock.getDelayedCalls()) == (True, [])


async def test_lost_again_at_once(bench: Bench) -> None:
    """Those who go on may find it lost again in the same breath: the backoff begins anew."""
    bench.reachability.lost("connection refused")
    bench.pass_seconds(20)
    waiting = bench.wait()
    waiting.addCallback(lambda _: bench.reachability.lost("connection refused"))
    bench.reachability.found()
    assert not bench.reachability.up
    began = bench.clock.seconds()
    bench.pass_seconds(1)
    assert bench.probes[-1] == began + 1
    bench.reachability.stop()


async def test_stopping(bench: Bench) -> None:
    """A stop lets those who wait go with the error, ends the probes, and nothing begins again."""
    bench.reachability.lost("connection refused")
    waiting = bench.wait()
    bench.outcome = Deferred()
    bench.pass_seconds(1)
    bench.reachability.stop()
    with pytest.raises(TargetUnreachable):
        await waiting
    with pytest.raises(TargetUnreachable):
        await bench.reachability.ready()
    bench.reachability.lost("connection refused")
    assert bench.clock.getDelayedCalls() == []
