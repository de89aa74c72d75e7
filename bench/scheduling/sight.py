"""What a forecast is told: who waits, what runs, and what runs and loads took so far."""

import math
from collections import deque

from attrs import define, field

from bench.scheduling.workload import Job
from foreman.scheduler.forecast import Place, Running, Scene
from foreman.scheduler.grant import Grant
from foreman.scheduler.keys import KeyRegistry, ModelKey, Wanted
from foreman.scheduler.policy import Lane
from foreman.scheduler.turn import Turn

# What is expected of a key that never ran or never loaded.
RUN_SECONDS, LOAD_SECONDS = 10.0, 5.0
SHARE_MEMORY_SECONDS = 600.0


@define
class Mean:
    """A mean that begins with an expectation, which the first measurement replaces."""

    value: float
    count: int = 0

    def add(self, measured: float) -> None:
        """One more."""
        self.count += 1
        self.value += (measured - self.value) / self.count


@define(eq=False)
class History:
    """What was measured. It is kept over restarts."""

    runs: dict[tuple[Lane, ModelKey], Mean] = field(factory=dict, init=False)
    loads: dict[ModelKey, Mean] = field(factory=dict, init=False)
    interactive_share: float = field(default=0.0, init=False)

    def run_seconds(self, lane: Lane, key: ModelKey) -> float:
        """The mean of this line's runs so far."""
        mean = self.runs.get((lane, key))
        return mean.value if mean else RUN_SECONDS

    def load_seconds(self, key: ModelKey) -> float:
        """The mean of this key's loads so far."""
        mean = self.loads.get(key)
        return mean.value if mean else LOAD_SECONDS

    def ended(self, lane: Lane, key: ModelKey, load_seconds: float, run_seconds: float) -> None:
        """A job took what it took."""
        self.runs.setdefault((lane, key), Mean(RUN_SECONDS)).add(run_seconds)
        if load_seconds:
            self.loads.setdefault(key, Mean(LOAD_SECONDS)).add(load_seconds)

    def contended(self, lost: float, seconds: float) -> None:
        """Durable jobs waited so many seconds of the target's time; so many of them were lost to chats."""
        weight = 1 - math.exp(-seconds / SHARE_MEMORY_SECONDS)
        self.interactive_share += weight * (lost / seconds - self.interactive_share)


@define(eq=False)
class Sight:
    """Beside a turn: its lines with their counts, and its holder."""

    _turn: Turn
    _registry: KeyRegistry
    history: History
    _waiting: dict[tuple[Lane, ModelKey], deque[Job]] = field(factory=dict, init=False)
    _interrupted: bool = field(default=False, init=False)

    def arrived(self, job: Job) -> None:
        """It is the newest of its line."""
        self._waiting.setdefault((job.lane, self._key(job)), deque()).append(job)

    def started(self, job: Job, grant: Grant) -> None:
        """It was the oldest of its line: all are of one priority."""
        line = self._waiting[grant.lane, grant.key]
        assert line.popleft() is job
        if not line:
            del self._waiting[grant.lane, grant.key]

    def ended(self, job: Job, key: ModelKey, load_seconds: float) -> None:
        """It took what it took. The load that a chat makes necessary is the chat's."""
        self.history.ended(job.lane, key, load_seconds, job.run_seconds)
        chat = job.lane is Lane.INTERACTIVE
        if not chat or any(lane is Lane.DURABLE for lane, _ in self._waiting):
            seconds = load_seconds + job.run_seconds
            lost = seconds if chat else load_seconds if self._interrupted else 0.0
            self.history.contended(lost, seconds)
        self._interrupted = chat

    def place(self, job: Job) -> Place | None:
        """Where this job waits; None when it waits no longer."""
        key = self._key(job)
        line = self._waiting.get((job.lane, key), ())
        return Place(job.lane, key, line.index(job)) if job in line else None

    def scene(self, now: float) -> Scene:
        """All that the policy would see, if the turn were free at this moment of the reactor's clock."""
        turn = self._turn
        turn._account()
        holders = [
            Running(grant.lane, grant.key, now - grant.granted_at, grant.swap) for grant in turn.holders
        ]
        return Scene(
            {lane: clock.at(now) for lane, clock in turn._gates.clocks.items()},
            turn._queue.lines(turn._visits.last_ended_at),
            holders,
            self._registry.resident(),
            turn.visits,
            turn._ledger._owed_seconds,
            turn._limits,
        )

    def _key(self, job: Job) -> ModelKey:
        return self._registry.key(Wanted(job.model))
