"""The real turn with its policy, visits and ledger, on a simulated clock, target and durable source."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure

from bench.scheduling.runs import Run
from bench.scheduling.sight import Sight
from bench.scheduling.workload import Job, Workload
from foreman.errors import TargetUnreachable
from foreman.scheduler.forecast import Estimates, Place, Scene
from foreman.scheduler.history import Average, History, Subject
from foreman.scheduler.keys import KeyRegistry, Wanted
from foreman.scheduler.policy import Lane, Limits
from foreman.scheduler.turn import Turn
from foreman.testing.durable import FakeDurable
from foreman.testing.simulation import NoInventory

DAY = 24 * 3600.0
Eta = Callable[[Scene, Place, Estimates], float]
"""Seconds until the job at this place starts."""


@define(eq=False)
class RealTurn:
    """
    Runs one workload to its end. Jobs are fed in as they come, so that the clock has few calls to sort.

    `earlier` is what was measured before, as it is kept over restarts.
    """

    workload: Workload
    limits: Limits = field(factory=Limits)
    eta: Eta | None = None
    ask_at: Mapping[int, Sequence[float]] = field(factory=dict)
    earlier: Sequence[tuple[Subject, Average]] = ()
    history: History = field(init=False)
    clock: Clock = field(factory=Clock, init=False)
    turn: Turn = field(init=False)
    runs: list[Run] = field(factory=list, init=False)
    _durable: FakeDurable = field(init=False)
    _sight: Sight = field(init=False)
    _etas: dict[int, list[tuple[float, float]]] = field(factory=dict, init=False)  # by the job's number
    _failures: list[Failure] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        registry = KeyRegistry(NoInventory())
        self.turn = Turn(
            self.clock, registry, self.limits, patience=DAY, settle_limit=900.0, interactive_limit=10**6
        )
        self._durable = FakeDurable(self.clock, self.turn)
        self._sight = Sight(registry)
        self.history = History(self.clock, lambda: self._sight.durable_waits)
        for subject, average in self.earlier:
            self.history.remember(subject, average.value, average.count)
        self.turn.on_release = self.history.released

    def run(self) -> list[Run]:
        """The runs in their order."""
        for begin, end in self.workload.asleep:
            self.clock.callLater(begin, self.turn.block, TargetUnreachable("http://target", "asleep"))
            self.clock.callLater(end, self.turn.unblock)
        self._feed(iter(self.workload.jobs))
        while calls := self.clock.getDelayedCalls():
            # Set, not added to: a sum may come out a bit short of the moment, for ever.
            self.clock.rightNow = max(self.clock.rightNow, calls[0].getTime())
            self.clock.advance(0)
            if self._failures:
                self._failures[0].raiseException()
        return self.runs

    def _feed(self, jobs: Iterator[Job]) -> None:
        """Begin what comes now, and wait for the next one."""
        for job in jobs:
            if job.arrives_at > self.clock.seconds():
                self.clock.callLater(job.arrives_at - self.clock.seconds(), self._arrive, job, jobs)
                return
            self._begin(job)

    def _arrive(self, job: Job, jobs: Iterator[Job]) -> None:
        self._begin(job)
        self._feed(jobs)

    def _begin(self, job: Job) -> None:
        self._sight.arrived(job)
        Deferred.fromCoroutine(self._work(job)).addErrback(self._failures.append)
        for moment in self.ask_at.get(job.number, ()):
            self.clock.callLater(moment - self.clock.seconds(), self._ask, job)

    def _ask(self, job: Job) -> None:
        place = self._sight.place(job)
        if self.eta is not None and place is not None:
            now = self.clock.seconds()
            eta = self.eta(self.turn.scene(), place, self.history)
            self._etas.setdefault(job.number, []).append((now, eta))

    async def _work(self, job: Job) -> None:
        source = self._durable if job.lane is Lane.DURABLE else self.turn
        async with source.take(str(job.number), Wanted(job.model), 0) as grant:
            self._sight.started(job, grant)
            load_seconds = self.workload.load_seconds[job.model] if grant.swap else 0.0
            etas = tuple(self._etas.pop(job.number, ()))
            self.runs.append(Run(job, self.clock.seconds(), load_seconds, grant.swap, grant.why, etas))
            await deferLater(self.clock, load_seconds)
            if grant.swap:
                self.history.swapped(grant, load_seconds)
            grant.first_byte()
            await deferLater(self.clock, job.run_seconds)
