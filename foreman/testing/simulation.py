"""A discrete-event simulation of the scheduler: the real turn and policy on a simulated clock and target."""

from collections.abc import Iterable, Mapping, Sequence

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from foreman.scheduler.keys import KeyRegistry
from foreman.scheduler.policy import Lane, Limits, Why
from foreman.scheduler.turn import Turn
from foreman.testing.durable import FakeDurable


@frozen
class SimulatedJob:
    """A job of the workload. Times are in seconds."""

    job_id: str
    lane: Lane
    model: str
    priority: int
    arrives_at: float
    run_seconds: float


@frozen
class SimulatedRun:
    """How a job ran: `load_seconds` is 0 where its model was resident."""

    job: SimulatedJob
    why: Why
    swap: bool
    started_at: float
    load_seconds: float

    @property
    def ended_at(self) -> float:
        return self.started_at + self.load_seconds + self.job.run_seconds


@frozen
class NoInventory:
    """An inventory that knows nothing: each name is a key of its own, and only what ran last is resident."""

    loaded: Sequence["NoEntry"] = ()

    def model(self, name: str) -> None:
        return None

    def model_by_digest(self, digest: str) -> None:
        return None


@frozen
class NoEntry:
    """An entry of /api/ps that never comes."""

    digest: str
    context_length: int


@define(eq=False)
class Simulation:
    """Runs a workload to its end. `load_seconds` is the time that each model takes to load."""

    _log = Logger()
    load_seconds: Mapping[str, float]
    limits: Limits = field(factory=Limits)
    clock: Clock = field(factory=Clock)
    turn: Turn = field(init=False)
    _durable: FakeDurable = field(init=False)
    runs: list[SimulatedRun] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.turn = Turn(
            self.clock, KeyRegistry(NoInventory()), self.limits, patience=10.0, settle_limit=900.0
        )
        self._durable = FakeDurable(self.clock, self.turn)

    def run(self, jobs: Iterable[SimulatedJob]) -> list[SimulatedRun]:
        """The runs in their order."""
        for job in jobs:
            self.clock.callLater(job.arrives_at, self._begin, job)
        while calls := self.clock.getDelayedCalls():
            self.clock.advance(min(call.getTime() for call in calls) - self.clock.seconds())
        return self.runs

    def _begin(self, job: SimulatedJob) -> None:
        Deferred.fromCoroutine(self._work(job)).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        self._log.failure("a simulated job failed", failure)

    async def _work(self, job: SimulatedJob) -> None:
        lane = self._durable if job.lane is Lane.DURABLE else self.turn
        async with lane.take(job.job_id, job.model, job.priority) as grant:
            started_at = self.clock.seconds()
            load_seconds = self.load_seconds[job.model] if grant.swap else 0.0
            self.runs.append(SimulatedRun(job, grant.why, grant.swap, started_at, load_seconds))
            await deferLater(self.clock, load_seconds)
            grant.first_byte()
            await deferLater(self.clock, job.run_seconds)
