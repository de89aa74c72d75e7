"""Where each job waits: the store and the web know that of real ones."""

from collections import deque

from attrs import define, field

from bench.scheduling.workload import Job
from foreman.scheduler.forecast import Place
from foreman.scheduler.grant import Grant
from foreman.scheduler.keys import KeyRegistry, ModelKey, Wanted
from foreman.scheduler.policy import Lane


@define(eq=False)
class Sight:
    """The lines of jobs that wait, in order."""

    _registry: KeyRegistry
    _waiting: dict[tuple[Lane, ModelKey], deque[Job]] = field(factory=dict, init=False)

    def arrived(self, job: Job) -> None:
        """It is the newest of its line."""
        self._waiting.setdefault((job.lane, self._key(job)), deque()).append(job)

    def started(self, job: Job, grant: Grant) -> None:
        """It was the oldest of its line: all are of one priority."""
        line = self._waiting[grant.lane, grant.key]
        assert line.popleft() is job
        if not line:
            del self._waiting[grant.lane, grant.key]

    @property
    def durable_waits(self) -> bool:
        """Whether a durable job waits."""
        return any(lane is Lane.DURABLE for lane, _ in self._waiting)

    def place(self, job: Job) -> Place | None:
        """Where this job waits; None when it waits no longer."""
        key = self._key(job)
        line = self._waiting.get((job.lane, key), ())
        return Place(job.lane, key, line.index(job)) if job in line else None

    def _key(self, job: Job) -> ModelKey:
        return self._registry.key(Wanted(job.model))
