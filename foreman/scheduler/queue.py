"""The queue: all jobs that wait for the turn, native requests in memory and the source's durable jobs."""

from collections.abc import Collection, Iterator, Mapping
from itertools import chain

from attrs import define, evolve, field, frozen

from foreman.scheduler.gates import Gates
from foreman.scheduler.grant import DurableSource, NoDurableJobs
from foreman.scheduler.keys import KeyRegistry, ModelKey, Wanted
from foreman.scheduler.lines import Lines, NamedLine, join
from foreman.scheduler.policy import Candidate, Lane, Limits, Line, overdue_since
from foreman.scheduler.take import Take


@frozen
class WaitingLine:
    """One line, for people: `count` jobs that ask for one key as `wanted`.

    `waiting_since` of `head` and `oldest` are the reactor's seconds of their arrival. `overdue_since` is the
    reactor's moment at which the line is overdue, if nothing of it runs before and the lane is not held back
    from now on.
    """

    lane: Lane
    key: ModelKey
    wanted: tuple[Wanted | None, ...]
    count: int
    head: Candidate
    oldest: Candidate
    overdue_since: float


@define(eq=False)
class Queue:
    """What waits, as the policy sees it. `takes` are the native requests by job id."""

    _keys: KeyRegistry
    _gates: Gates
    source: DurableSource = field(factory=NoDurableJobs, init=False)
    takes: dict[str, Take] = field(factory=dict, init=False)
    _interactive: Lines = field(factory=Lines, init=False)
    _lowered: Lines = field(factory=Lines, init=False)  # into the durable lane
    _source_offers: bool = field(default=False, init=False)

    @property
    def count(self) -> int:
        """How many jobs wait."""
        return len(self.takes) + self.source.count

    def look(self) -> None:
        """What the source offers may have changed."""
        self._source_offers = self.source.count > 0

    def waits(self, lane: Lane) -> bool:
        """Something waits in this lane that may run, as of the last look at the source."""
        if lane is Lane.INTERACTIVE:
            some = self._interactive.count > 0
        else:
            some = (self._source_offers and self._gates.source_ready) or self._lowered.count > 0
        return some and self._gates.open(lane)

    def add(self, take: Take, order: int) -> None:
        """A native request waits from now on. Raises ValueError when a job of its id waits already."""
        job = Candidate(take.job_id, take.priority, self._gates.clocks[take.lane].at(take.arrived_at), order)
        if take.lane is Lane.INTERACTIVE:
            self._interactive.add(take.wanted, job, take.caller)
        else:
            self._lowered.add(take.wanted, job)
        self.takes[take.job_id] = take

    def holds(self, take: Take) -> bool:
        """This request waits."""
        return self.takes.get(take.job_id) is take

    def remove(self, take: Take) -> None:
        """It waits no longer."""
        self._lines_of(take).remove(take.job_id)
        del self.takes[take.job_id]

    def serve(self, take: Take) -> None:
        """It gets the turn, and its caller the last place in the rotation."""
        self._lines_of(take).serve(take.job_id)
        del self.takes[take.job_id]

    def lines(self, last_visit_ended_at: Mapping[tuple[Lane, ModelKey], float]) -> list[Line]:
        """The lines of both lanes, on their waiting clocks; also of a lane or a source that is held back."""
        return self._lines(last_visit_ended_at, tuple(Lane), self._source_offers)

    def startable(
        self, last_visit_ended_at: Mapping[tuple[Lane, ModelKey], float], also: Collection[Lane] = ()
    ) -> list[Line]:
        """The same lines without what is held back; but the lanes `also` are taken as if they were open."""
        lanes = [lane for lane in Lane if lane in also or self._gates.open(lane)]
        with_source = self._source_offers and (self._gates.source_ready or Lane.DURABLE in also)
        return self._lines(last_visit_ended_at, lanes, with_source)

    def arrival(self, job_id: str) -> tuple[float, Wanted | None]:
        """Since when (the reactor's seconds) the head or the oldest job of a line waits, and for what."""
        if job_id in self.takes:
            take = self.takes[job_id]
            return take.arrived_at, take.wanted
        offered = ((line, job) for line in self.source.lines() for job in (line.head, line.oldest))
        return next((job.waiting_since, line.wanted) for line, job in offered if job.job_id == job_id)

    def lowered_ahead(self, key: ModelKey, priority: int, since: float) -> int:
        """How many native requests of a durable line run before its durable job of this priority and age."""
        return sum(
            take.lane is Lane.DURABLE
            and (-take.priority, take.arrived_at) < (-priority, since)
            and self._keys.key(take.wanted) == key
            for take in self.takes.values()
        )

    def explained(
        self, last_visit_ended_at: Mapping[tuple[Lane, ModelKey], float], limits: Limits, now: float
    ) -> list[WaitingLine]:
        """The same lines in the reactor's seconds, of which it is `now`."""
        arrived_at = {take.job_id: take.arrived_at for take in self.takes.values()}
        arrived_at |= {
            job.job_id: job.waiting_since for line in self.source.lines() for job in (line.head, line.oldest)
        }
        return [
            WaitingLine(
                line.lane,
                line.key,
                line.wanted,
                line.count,
                evolve(line.head, waiting_since=arrived_at[line.head.job_id]),
                evolve(line.oldest, waiting_since=arrived_at[line.oldest.job_id]),
                now + overdue_since(line, limits) - self._gates.clocks[line.lane].now(),
            )
            for line in self.lines(last_visit_ended_at)
        ]

    def _lines(
        self,
        last_visit_ended_at: Mapping[tuple[Lane, ModelKey], float],
        lanes: Collection[Lane],
        with_source: bool,
    ) -> list[Line]:
        lines: list[Line] = []
        if not self.takes and not with_source:
            return lines
        if Lane.INTERACTIVE in lanes and self._interactive.count:
            lines += join(Lane.INTERACTIVE, self._interactive.lines(), self._keys.key, last_visit_ended_at)
        if Lane.DURABLE in lanes and (with_source or self._lowered.count):
            durable = chain(self._lowered.lines(), self._durable() if with_source else ())
            lines += join(Lane.DURABLE, durable, self._keys.key, last_visit_ended_at)
        return lines

    def _lines_of(self, take: Take) -> Lines:
        return self._interactive if take.lane is Lane.INTERACTIVE else self._lowered

    def _durable(self) -> Iterator[NamedLine]:
        """The source's lines, on the waiting clock of their lane."""
        at = self._gates.clocks[Lane.DURABLE].at
        for line in self.source.lines():
            head, oldest = line.head, line.oldest
            since = at(head.waiting_since)
            on_clock = Candidate(head.job_id, head.priority, since, head.order)
            if oldest is head:
                yield NamedLine(line.wanted, on_clock, on_clock, line.count)
            else:
                yield NamedLine(
                    line.wanted, on_clock, evolve(oldest, waiting_since=at(oldest.waiting_since)), line.count
                )
