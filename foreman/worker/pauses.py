"""Pauses: lanes that somebody holds back for a while, and a GPU that is theirs meanwhile."""

from collections.abc import Collection, Mapping
from enum import Enum
from functools import partial
from typing import Protocol

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from foreman.errors import LanePaused
from foreman.jobs.interface import JobStore
from foreman.jobs.model import Pause
from foreman.jobs.shield import shield
from foreman.quantities import format_moment
from foreman.scheduler.gates import Refusal
from foreman.scheduler.policy import Lane


class Turn(Protocol):
    """The turn, as far as pauses go."""

    def pause(self, lane: Lane, refusal: Refusal, since: float | None = None) -> None: ...

    def resume(self, lane: Lane) -> None: ...

    def was_paused(self, lane: Lane, begin: float, end: float) -> None: ...

    def when_idle(self) -> "Deferred[None]": ...


class Worker(Protocol):
    """The worker, as far as pauses go."""

    def put_back(self) -> None: ...

    def look(self) -> None: ...


class Unloader(Protocol):
    """Unloads what the target has in memory; says whether it could."""

    async def unload(self) -> bool: ...


class Embedder(Protocol):
    """What keeps a model in the target's memory."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Unloading(Enum):
    """How far the unloading is, for people."""

    WAITING = "waiting"  # for what runs
    UNLOADING = "unloading"
    DONE = "done"
    FAILED = "failed"


@define(eq=False)
class Pauses:
    """Holds lanes back, on disk first, so that a restart changes nothing; lets them go on at their time.

    The clock shows epoch seconds. `unloading` is how far that is, None while no pause asks for it.
    """

    _clock: IReactorTime
    _store: JobStore
    _turn: Turn
    _worker: Worker
    _unloader: Unloader
    _embedder: Embedder | None
    unloading: Unloading | None = field(default=None, init=False)
    _standing: dict[Lane, Pause] = field(factory=dict, init=False)
    _ends: dict[Lane, IDelayedCall] = field(factory=dict, init=False)
    _work: "Deferred[None] | None" = field(default=None, init=False)  # the unloading under way
    _stopped: bool = field(default=False, init=False)
    _log = Logger()

    @property
    def standing(self) -> Mapping[Lane, Pause]:
        """The pauses as they stand."""
        return self._standing

    async def start(self) -> None:
        """Go on with the pauses of the last life that are not over. Before this nothing may be granted.

        The turn is told of those that are: the time that they took is no waiting in this life, too.
        """
        now = self._clock.seconds()
        for past in await self._store.ended_pauses():
            end = min(past.until or now, now)  # the system's clock may have been set back since
            if past.since < end:
                self._turn.was_paused(Lane(past.lane), past.since, end)
        for pause in await self._store.pauses():
            self._hold(pause)
        self._settle_memory(again=True)

    async def stop(self) -> None:
        """Let no lane go on any more, and unload no more. The pauses stay on disk."""
        self._stopped = True
        for lane in Lane:
            self._cancel_end(lane)
        self._end_unloading()

    async def pause(
        self, lanes: Collection[Lane], seconds: float | None, *, unload: bool, at_once: bool
    ) -> None:
        """Pause these lanes for so many seconds, or until they are resumed; paused ones anew.

        What runs goes on, but `at_once` puts durable jobs back. With `unload` the target's models are
        unloaded when nothing runs any more, and the embedder stays away.

        Raises DatabaseFull or DatabaseUnavailable, after which nothing is paused that was not.
        """
        # A caller who leaves is not to leave it half done: on disk, and not in force.
        await shield(Deferred.fromCoroutine(self._pause(lanes, seconds, unload, at_once)))

    async def resume(self, lanes: Collection[Lane]) -> None:
        """These lanes go on, if they were paused. Raises DatabaseFull or DatabaseUnavailable."""
        await shield(Deferred.fromCoroutine(self._resume(lanes)))

    async def _pause(
        self, lanes: Collection[Lane], seconds: float | None, unload: bool, at_once: bool
    ) -> None:
        now = self._clock.seconds()
        until = None if seconds is None else now + seconds
        pauses = [Pause(lane.value, self._since(lane, now), until, unload) for lane in lanes]
        await self._store.put_pauses(pauses)
        if self._stopped:
            return
        for pause in pauses:
            self._hold(pause)
        if at_once and Lane.DURABLE in lanes:
            self._worker.put_back()
        self._settle_memory(again=unload)

    async def _resume(self, lanes: Collection[Lane]) -> None:
        await self._store.drop_pauses([lane.value for lane in lanes])
        for lane in lanes:
            self._go_on(lane)

    def _hold(self, pause: Pause) -> None:
        lane = Lane(pause.lane)
        self._cancel_end(lane)
        self._standing[lane] = pause
        if pause.until is not None:
            left = max(0.0, pause.until - self._clock.seconds())
            self._ends[lane] = self._clock.callLater(left, self._go_on, lane)
        self._log.info(
            "the {lane} lane is paused, {end}",
            lane=lane.value,
            end="until it is resumed" if pause.until is None else f"until {format_moment(pause.until)}",
        )
        self._turn.pause(lane, partial(self._refusal, lane, pause.until), pause.since)

    def _since(self, lane: Lane, now: float) -> float:
        """A lane that is paused anew has been paused since the first time."""
        return self._standing[lane].since if lane in self._standing else now

    def _refusal(self, lane: Lane, until: float | None) -> LanePaused:
        return LanePaused(lane.value, until, self._clock.seconds())

    def _go_on(self, lane: Lane) -> None:
        """The pause is over: by its time, or because somebody resumed it."""
        self._cancel_end(lane)
        if self._standing.pop(lane, None) is None:
            return
        self._log.info("the {lane} lane goes on", lane=lane.value)
        # Before the turn is granted: what is unloaded now would be somebody's again.
        self._settle_memory()
        self._turn.resume(lane)
        self._worker.look()

    def _cancel_end(self, lane: Lane) -> None:
        end = self._ends.pop(lane, None)
        if end is not None and end.active():
            end.cancel()

    # The memory of the GPU.

    def _settle_memory(self, again: bool = False) -> None:
        """Whether somebody wants the memory may have changed. `again`: unload though that was done."""
        wanted = any(pause.unload for pause in self._standing.values())
        if not wanted:
            self._end_unloading()
            self.unloading = None
            if self._embedder is not None:
                self._embedder.resume()
            return
        if self._embedder is not None:
            self._embedder.pause()
        if again and (self._work is None or self._work.called):
            self._work = Deferred.fromCoroutine(self._unload())
            self._work.addErrback(self._not_unloaded)

    def _end_unloading(self) -> None:
        if self._work is not None:
            self._work.cancel()

    async def _unload(self) -> None:
        self.unloading = Unloading.WAITING
        await self._turn.when_idle()
        self.unloading = Unloading.UNLOADING
        done = await self._unloader.unload()
        self.unloading = Unloading.DONE if done else Unloading.FAILED

    def _not_unloaded(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self.unloading = Unloading.FAILED
            self._log.failure("unloading failed inside foreman", failure)
