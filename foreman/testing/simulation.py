"""A discrete-event simulation of the scheduler: the real turn and policy on a simulated clock and target."""

import itertools
from collections.abc import Iterable, Mapping, Sequence

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from foreman.errors import ForemanError
from foreman.scheduler.grant import Grant
from foreman.scheduler.keys import KeyRegistry, Wanted
from foreman.scheduler.policy import Lane, Limits, Why
from foreman.scheduler.turn import Turn
from foreman.testing.durable import FakeDurable


@frozen
class Cut:
    """A run that is cut after `run_seconds`; its job comes back after `backoff_seconds`."""

    run_seconds: float
    backoff_seconds: float


@frozen
class SimulatedJob:
    """A job of the workload. Times are in seconds.

    `cuts` are the runs before its last one. It leaves `leaves_after` its arrival, whatever it does then. A
    `lowered` one is a native request in the durable lane.
    """

    job_id: str
    lane: Lane
    model: str
    priority: int
    arrives_at: float
    run_seconds: float
    caller: str = ""
    cuts: tuple[Cut, ...] = ()
    leaves_after: float | None = None
    lowered: bool = False

    @property
    def longest(self) -> float:
        """Its longest run."""
        return max([self.run_seconds, *(cut.run_seconds for cut in self.cuts)])


@define(eq=False)
class SimulatedStay:
    """One time that a job waits in its line, from `since` to `until`: its start, or the moment it left.

    `came` and `went` order what happens in one instant: they count all coming and going.
    """

    job: SimulatedJob
    since: float
    came: int
    until: float = float("inf")
    went: int = -1


@define(eq=False)
class SimulatedRun:
    """How a job ran: `load_seconds` is 0 where its model was loaded already."""

    job: SimulatedJob
    stay: SimulatedStay
    why: Why
    swap: bool
    started_at: float
    load_seconds: float
    ended_at: float = float("inf")


@define(eq=False)
class SimulatedVisit:
    """A visit: that of `since`, as the turn shows it."""

    lane: Lane
    model: str
    since: float
    ended_at: float = float("inf")
    runs: list[SimulatedRun] = field(factory=list)


@frozen
class Closing:
    """A lane is held back, by a pause or (`hours`) beyond the durable hours."""

    lane: Lane
    begin: float
    end: float
    hours: bool = False


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


class Refused(ForemanError):
    """A native request met a paused lane."""


@define(eq=False)
class Simulation:
    """Runs a workload to its end. `load_seconds` is the time that each model takes to load."""

    _log = Logger()
    load_seconds: Mapping[str, float]
    limits: Limits = field(factory=Limits)
    width: int = 1
    closings: Sequence[Closing] = ()
    clock: Clock = field(factory=Clock)
    turn: Turn = field(init=False)
    runs: list[SimulatedRun] = field(factory=list, init=False)
    stays: list[SimulatedStay] = field(factory=list, init=False)
    visits: list[SimulatedVisit] = field(factory=list, init=False)
    _keys: KeyRegistry = field(factory=lambda: KeyRegistry(NoInventory()), init=False)
    _happened: "itertools.count[int]" = field(factory=itertools.count, init=False)
    _durable: FakeDurable = field(init=False)
    _loaded_at: dict[str, float] = field(factory=dict, init=False)
    _visits: dict[Lane, SimulatedVisit] = field(factory=dict, init=False)  # that are not over

    def __attrs_post_init__(self) -> None:
        self.turn = Turn(
            self.clock,
            self._keys,
            self.limits,
            patience=10.0,
            settle_limit=900.0,
            width=self.width,
            interactive_limit=1_000_000,
        )
        self._durable = FakeDurable(self.clock, self.turn)

    def run(self, jobs: Iterable[SimulatedJob]) -> list[SimulatedRun]:
        """The runs in their order."""
        for closing in self.closings:
            self.clock.callLater(closing.begin, self._close, closing)
            self.clock.callLater(closing.end, self._open, closing)
        for job in jobs:
            self.clock.callLater(job.arrives_at, self._begin, job)
        while calls := self.clock.getDelayedCalls():
            self.clock.advance(min(call.getTime() for call in calls) - self.clock.seconds())
            self._watch()
        return self.runs

    def _close(self, closing: Closing) -> None:
        if closing.hours:
            self.turn.set_durable_hours(within=False)
        else:
            self.turn.pause(closing.lane, Refused)

    def _open(self, closing: Closing) -> None:
        if closing.hours:
            self.turn.set_durable_hours(within=True)
        else:
            self.turn.resume(closing.lane)

    def _begin(self, job: SimulatedJob) -> None:
        work = Deferred.fromCoroutine(self._work(job))
        if job.leaves_after is not None:
            self.clock.callLater(job.leaves_after, work.cancel)
        work.addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError, Refused):
            self._log.failure("a simulated job failed", failure)

    async def _work(self, job: SimulatedJob) -> None:
        for cut in job.cuts:
            await self._run(job, cut.run_seconds)
            await deferLater(self.clock, cut.backoff_seconds)
        await self._run(job, job.run_seconds)

    async def _run(self, job: SimulatedJob, run_seconds: float) -> None:
        stay = SimulatedStay(job, self.clock.seconds(), next(self._happened))
        self.stays.append(stay)
        wanted = Wanted(job.model)
        take = (
            self._durable.take(job.job_id, wanted, job.priority)
            if job.lane is Lane.DURABLE and not job.lowered
            else self.turn.take(job.job_id, wanted, job.priority, lane=job.lane, caller=job.caller)
        )
        try:
            async with take as grant:
                self._end(stay)
                await self._hold(job, stay, grant, run_seconds)
        finally:
            self._end(stay)

    def _end(self, stay: SimulatedStay) -> None:
        if stay.went < 0:
            stay.until, stay.went = self.clock.seconds(), next(self._happened)

    async def _hold(self, job: SimulatedJob, stay: SimulatedStay, grant: Grant, run_seconds: float) -> None:
        now = self.clock.seconds()
        if grant.swap:
            self._loaded_at[job.model] = now + self.load_seconds[job.model]
        load_seconds = max(0.0, self._loaded_at[job.model] - now)
        run = SimulatedRun(job, stay, grant.why, grant.swap, now, load_seconds)
        self.runs.append(run)
        self._watch()
        self._visits[grant.lane].runs.append(run)
        try:
            await deferLater(self.clock, load_seconds)
            grant.first_byte()
            await deferLater(self.clock, run_seconds)
        finally:
            run.ended_at = self.clock.seconds()

    def _watch(self) -> None:
        """Take note of the visits that have begun or ended."""
        for lane in Lane:
            known, visit = self._visits.get(lane), self.turn.visits.get(lane)
            if visit is not None:
                model = next(iter(visit.key.weights)).removeprefix("name:")
                if known is not None and (known.model, known.since) == (model, visit.since):
                    continue
            if known is not None:
                known.ended_at = self.clock.seconds()
                del self._visits[lane]
            if visit is not None:
                self._visits[lane] = SimulatedVisit(lane, model, visit.since)
                self.visits.append(self._visits[lane])
