"""Pauses: lanes that are held back, on disk first, and the memory that is given back."""

import sqlite3
from typing import Any

import pytest
from attrs import define, field
from pause_fakes import Hands
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from foreman.errors import DatabaseFull
from foreman.scheduler.keys import KeyRegistry
from foreman.scheduler.policy import Lane, Limits
from foreman.scheduler.turn import Turn
from foreman.testing.simulation import NoInventory
from foreman.testing.store import SlowPool, make_store
from foreman.worker.pauses import Pauses, Unloading

NOW = 1_800_000_000.0
HOUR = 3600.0
DURABLE, INTERACTIVE, BOTH = [Lane.DURABLE], [Lane.INTERACTIVE], list(Lane)


@define
class Bench:
    """One database, and life after life on it."""

    clock: Clock = field(factory=Clock)
    store: Any = field(init=False)
    pool: SlowPool = field(init=False)
    hands: Hands = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.clock.advance(NOW)
        self.store, self.pool = make_store(self.clock)
        self.hands = Hands(self.clock, self.store)

    async def live_again(self) -> Hands:
        """Another life."""
        await self.hands.pauses.stop()
        self.hands = Hands(self.clock, self.store)
        await self.hands.pauses.start()
        return self.hands

    async def pause(
        self, lanes: list[Lane], seconds: float | None = None, unload: bool = False, at_once: bool = False
    ) -> Hands:
        await self.hands.pauses.pause(lanes, seconds, unload=unload, at_once=at_once)
        return self.hands

    def said(self, lane: Lane) -> tuple[str, int | None]:
        """What a caller of this lane is told now, and when to try again."""
        error = self.hands.turn.paused[lane][0]()
        return str(error), error.retry_after


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_until_it_is_resumed(bench: Bench) -> None:
    """Callers are told so; resuming twice is once, and nothing is left of it."""
    hands = await bench.pause(INTERACTIVE)
    assert bench.said(Lane.INTERACTIVE) == (
        "the interactive lane is paused until it is resumed; meanwhile jobs can be handed in at /jobs",
        None,
    )
    assert set(hands.turn.paused) == {Lane.INTERACTIVE}
    bench.clock.advance(1000 * HOUR)
    assert set(hands.turn.paused) == {Lane.INTERACTIVE}
    for _ in range(2):
        await hands.pauses.resume(BOTH)
        assert not hands.turn.paused
        assert hands.worker.looks == 1
    assert not (await bench.live_again()).turn.paused
    assert not bench.clock.getDelayedCalls()


async def test_for_a_while(bench: Bench) -> None:
    """It ends by itself; until then the answer says when, and in how many seconds."""
    hands = await bench.pause(DURABLE, 2 * HOUR)
    bench.clock.advance(HOUR + 0.5)
    assert bench.said(Lane.DURABLE) == (
        "the durable lane is paused until 2027-01-15T10:00:00.000Z; meanwhile jobs can be handed in at /jobs",
        3600,
    )
    bench.clock.advance(HOUR - 0.6)
    assert bench.said(Lane.DURABLE)[1] == 1
    bench.clock.advance(0.1)
    assert not hands.turn.paused
    assert not hands.pauses.standing
    assert hands.worker.looks == 1
    assert not (await bench.live_again()).turn.paused
    await bench.hands.pauses.stop()


async def test_a_restart_changes_nothing(bench: Bench) -> None:
    """Lanes, ends and what is to be unloaded are those of before; the pause has its old beginning."""
    await bench.pause(INTERACTIVE, 2 * HOUR)
    await bench.pause(DURABLE, unload=True)
    before = dict(bench.hands.pauses.standing)
    bench.clock.advance(HOUR)
    hands = await bench.live_again()
    assert dict(hands.pauses.standing) == before
    assert {lane: since for lane, (_, since) in hands.turn.paused.items()} == dict.fromkeys(Lane, NOW)
    assert bench.said(Lane.INTERACTIVE)[1] == 3600
    assert hands.embedder.paused
    assert hands.pauses.unloading is Unloading.WAITING
    bench.clock.advance(HOUR)
    assert set(hands.turn.paused) == {Lane.DURABLE}
    await hands.pauses.stop()
    assert not bench.clock.getDelayedCalls()


async def test_over_while_foreman_was_down(bench: Bench) -> None:
    """Nothing of it is left in the next life."""
    await bench.pause(BOTH, HOUR, unload=True)
    await bench.hands.pauses.stop()
    bench.clock.advance(HOUR)
    hands = await bench.live_again()
    assert not hands.turn.paused
    assert not hands.embedder.paused
    assert hands.pauses.unloading is None


async def test_the_next_life_is_told_of_past_pauses(bench: Bench) -> None:
    """Also of one that was resumed, and of one that ended while foreman was down; not of more than a week."""
    await bench.pause(INTERACTIVE, HOUR)
    await bench.pause(DURABLE)
    bench.clock.advance(60)
    await bench.hands.pauses.resume(DURABLE)
    bench.clock.advance(40)
    await bench.pause(DURABLE)
    hands = await bench.live_again()
    assert hands.turn.past == [(Lane.DURABLE, NOW, NOW + 60)]
    await hands.pauses.stop()
    bench.clock.advance(HOUR)
    hands = await bench.live_again()
    assert set(hands.turn.past) == {(Lane.DURABLE, NOW, NOW + 60), (Lane.INTERACTIVE, NOW, NOW + HOUR)}
    assert hands.turn.paused[Lane.DURABLE][1] == NOW + 100
    bench.clock.advance(7 * 24 * HOUR)
    assert (await bench.live_again()).turn.past == []


async def test_time_paused_is_no_waiting_in_the_next_life(bench: Bench) -> None:
    """A pause that is over, by its time or by a resume: what came before or within it waits since its end."""

    def waited(turn: Turn, lane: Lane, since: float) -> float:
        clock = turn._gates.clocks[lane]
        return clock.now() - clock.at(since)

    def live() -> tuple[Turn, Pauses]:
        turn = Turn(bench.clock, KeyRegistry(NoInventory()), Limits(), patience=10.0, settle_limit=900.0)
        hands = bench.hands
        return turn, Pauses(bench.clock, bench.store, turn, hands.worker, hands.unloader, hands.embedder)

    _, pauses = live()
    bench.clock.advance(10)
    await pauses.pause(BOTH, 2 * HOUR, unload=False, at_once=False)
    bench.clock.advance(HOUR)
    await pauses.resume(INTERACTIVE)
    bench.clock.advance(2 * HOUR)
    await pauses.stop()
    for _ in range(2):
        turn, pauses = live()
        await pauses.start()
        assert waited(turn, Lane.INTERACTIVE, NOW + HOUR) == 2 * HOUR
        assert waited(turn, Lane.INTERACTIVE, NOW) == 2 * HOUR + 10
        assert waited(turn, Lane.DURABLE, NOW + HOUR) == HOUR
        assert waited(turn, Lane.DURABLE, NOW) == HOUR + 10
        assert not turn._gates.paused
        await pauses.stop()


async def test_a_past_pause_ends_now_at_the_latest(bench: Bench) -> None:
    """The system's clock was set back since somebody resumed it."""
    await bench.pause(BOTH)
    bench.clock.advance(100)
    await bench.hands.pauses.resume(BOTH)
    bench.clock.rightNow = NOW + 30
    assert set((await bench.live_again()).turn.past) == {(lane, NOW, NOW + 30) for lane in Lane}
    bench.clock.rightNow = NOW - 30
    assert (await bench.live_again()).turn.past == []


async def test_pausing_anew_replaces(bench: Bench) -> None:
    """The new end counts, longer or shorter; it has been paused since the first time."""
    hands = await bench.pause(BOTH, HOUR)
    bench.clock.advance(60)
    await bench.pause(DURABLE, 2 * HOUR)
    await bench.pause(INTERACTIVE, 60)
    assert {pause.since for pause in hands.pauses.standing.values()} == {NOW}
    bench.clock.advance(60)
    assert set(hands.turn.paused) == {Lane.DURABLE}
    await bench.pause(DURABLE)
    bench.clock.advance(100 * HOUR)
    assert set(hands.turn.paused) == {Lane.DURABLE}
    assert not bench.clock.getDelayedCalls()


async def test_at_once(bench: Bench) -> None:
    """Durable jobs that run are put back, when it is their lane that is paused; others go on."""
    hands = await bench.pause(INTERACTIVE, at_once=True)
    assert hands.worker.puts_back == 0
    await bench.pause(DURABLE, at_once=False)
    assert hands.worker.puts_back == 0
    await bench.pause(BOTH, at_once=True)
    assert hands.worker.puts_back == 1


async def test_unloads_when_nothing_runs(bench: Bench) -> None:
    """First what runs ends, then the memory is given back; the embedder is away from the beginning on."""
    hands = await bench.pause(BOTH, unload=True)
    assert hands.embedder.paused
    assert (hands.pauses.unloading, hands.unloader.works) == (Unloading.WAITING, [])
    hands.turn.idle[0].callback(None)
    assert hands.pauses.unloading is Unloading.UNLOADING
    hands.unloader.works[0].callback(True)
    assert hands.pauses.unloading is Unloading.DONE
    await hands.pauses.resume(DURABLE)
    assert hands.embedder.paused  # the other lane's pause wants the memory too
    await hands.pauses.resume(INTERACTIVE)
    assert not hands.embedder.paused
    assert hands.pauses.unloading is None


async def test_unloading_that_failed_is_said(bench: Bench) -> None:
    """And pausing again tries again, once at a time."""
    hands = await bench.pause(BOTH, unload=True)
    await bench.pause(DURABLE, unload=True)
    assert len(hands.turn.idle) == 1
    hands.turn.idle[0].callback(None)
    hands.unloader.works[0].callback(False)
    assert hands.pauses.unloading is Unloading.FAILED
    await bench.pause(DURABLE, unload=True)
    hands.turn.idle[1].callback(None)
    hands.unloader.works[1].callback(True)
    assert hands.pauses.unloading is Unloading.DONE
    await hands.pauses.resume(BOTH)


@pytest.mark.parametrize("begun", [False, True])
async def test_a_resume_ends_the_unloading(bench: Bench, begun: bool) -> None:
    """Whether it still waits for what runs, or is under way."""
    hands = await bench.pause(BOTH, unload=True)
    if begun:
        hands.turn.idle[0].callback(None)
    await hands.pauses.resume(BOTH)
    assert hands.turn.idle[0].called
    assert [work.called for work in hands.unloader.works] == [True] * begun
    assert hands.pauses.unloading is None
    await bench.pause(BOTH)
    assert len(hands.turn.idle) == 1
    assert not hands.embedder.paused


async def test_without_unload_nothing_is_unloaded(bench: Bench) -> None:
    """The models stay where they are, and the embedder pinned; anew without it gives that up, too."""
    hands = await bench.pause(BOTH)
    assert (hands.turn.idle, hands.embedder.paused, hands.pauses.unloading) == ([], False, None)
    await bench.pause(BOTH, unload=True)
    await bench.pause(BOTH)
    assert (hands.embedder.paused, hands.pauses.unloading) == (False, None)


async def test_on_disk_or_not_at_all(bench: Bench) -> None:
    """While the database cannot be written nothing is paused, and nothing is resumed."""
    hands = await bench.pause(DURABLE)
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorname = "SQLITE_FULL"
    bench.pool.broken = full
    with pytest.raises(DatabaseFull):
        await bench.pause(BOTH, unload=True)
    with pytest.raises(DatabaseFull):
        await hands.pauses.resume(BOTH)
    assert set(hands.turn.paused) == {Lane.DURABLE}
    assert not hands.embedder.paused


async def test_a_caller_who_leaves(bench: Bench) -> None:
    """What is on disk is in force, whoever still waits for the answer."""
    bench.pool.commit_seconds = 1.0
    hands = bench.hands
    pausing = Deferred.fromCoroutine(hands.pauses.pause(BOTH, None, unload=False, at_once=False))
    pausing.addErrback(lambda failure: failure.trap(CancelledError))
    pausing.cancel()
    bench.clock.advance(1.0)
    assert set(hands.turn.paused) == set(Lane)
    resuming = Deferred.fromCoroutine(hands.pauses.resume(BOTH))
    resuming.addErrback(lambda failure: failure.trap(CancelledError))
    resuming.cancel()
    bench.clock.advance(1.0)
    assert not hands.turn.paused
    bench.pool.commit_seconds = 0.0
    assert not (await bench.live_again()).turn.paused


async def test_a_pause_during_the_stop_is_for_the_next_life(bench: Bench) -> None:
    """Its commit came too late for this one: no clock is started."""
    bench.pool.commit_seconds = 1.0
    pausing = Deferred.fromCoroutine(bench.pause(BOTH, HOUR, unload=True))
    await bench.hands.pauses.stop()
    bench.clock.advance(1.0)
    assert pausing.called
    assert not bench.hands.turn.paused
    assert not bench.clock.getDelayedCalls()
    bench.pool.commit_seconds = 0.0
    assert set((await bench.live_again()).turn.paused) == set(Lane)
    await bench.hands.pauses.stop()
