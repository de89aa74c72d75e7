"""What the runs of a workload say about the promises: visits that ended by time, and how late lines started.

It knows the rules as the documentation states them, as bounds, and shares no code with the policy.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from attrs import define, field, frozen

from bench.scheduling.runs import Run, awake_seconds
from bench.scheduling.workload import Workload
from foreman.scheduler.policy import Lane, Limits, Why

Place = tuple[Lane, str]
NEVER = float("inf")


@frozen
class Visited:
    """One visit. Its jobs held the turn from `starts` on for `seconds` each, in this order."""

    place: Place
    starts: tuple[float, ...]
    seconds: tuple[float, ...]
    ended_at: float
    by_time: bool


@frozen
class Episode:
    """A line that was overdue got its turn: what it waited since it was overdue, and the bound for that."""

    place: Place
    waited: float
    bound: float

    @property
    def used(self) -> float:
        """The part of the bound that was used; 1 is all of it."""
        return self.waited / self.bound if self.bound else 0.0


@define
class _Line:
    """The jobs of one line by arrival: when they came, when they started, and the longest of them."""

    arrivals: list[float] = field(factory=list)
    starts: list[float] = field(factory=list)
    longest: float = 0.0
    _latest_start: list[float] = field(factory=list)

    def close(self) -> None:
        """All jobs are in."""
        self._latest_start = list(accumulate(self.starts, max))

    def oldest_at(self, moment: float, before_grant: bool = False) -> float:
        """When the oldest job that waits at this moment came; `NEVER` when none waits.

        A job that starts at this very moment waits still, as seen `before_grant`.
        """
        search = bisect_left if before_grant else bisect_right
        first = search(self._latest_start, moment)
        if first == len(self.arrivals) or self.arrivals[first] > moment:
            return NEVER
        return self.arrivals[first]


class Judge:
    """The visits and episodes of a workload's runs, on the clock that stops while the target is away."""

    def __init__(self, workload: Workload, limits: Limits, runs: Sequence[Run]) -> None:
        self._limits, self._load_seconds = limits, workload.load_seconds
        self._workload = workload
        self._runs = runs
        self._starts = [self._at(run.started_at) for run in runs]
        self._ends = [self._at(run.ended_at) for run in runs]
        self._lines: dict[Place, _Line] = defaultdict(_Line)
        by_arrival = sorted(zip(runs, self._starts, strict=True), key=lambda pair: pair[0].job.number)
        for run, start in by_arrival:
            line = self._lines[run.job.lane, run.job.model]
            line.arrivals.append(self._at(run.job.arrives_at))
            line.starts.append(start)
            line.longest = max(line.longest, run.job.run_seconds)
        for line in self._lines.values():
            line.close()
        self.visits = {lane: list(self._visits_of(lane)) for lane in Lane}
        self._ended: dict[Place, list[float]] = defaultdict(list)
        for visits in self.visits.values():
            for visit in visits:
                self._ended[visit.place].append(visit.ended_at)
        self._at_work = {lane: self._work_of(lane) for lane in Lane}

    @property
    def ended_by_time(self) -> int:
        """How many visits ended because their time was over."""
        return sum(visit.by_time for visits in self.visits.values() for visit in visits)

    @property
    def interruptions(self) -> int:
        """How often jobs of another model, of the other lane, ran within a visit."""
        number, last = 0, dict[Lane, str]()
        for before, run in pairwise(self._runs):
            last[before.job.lane] = before.job.model
            crossed = before.job.lane is not run.job.lane and before.job.model != run.job.model
            number += crossed and run.why is Why.VISIT
        return number

    def episodes(self) -> Iterator[Episode]:
        """Each time a line was overdue, as seen when its visit began."""
        longest = max(run.job.run_seconds for run in self._runs)
        load = max(self._load_seconds.values())
        for lane, visits in self.visits.items():
            for visit in visits:
                start = visit.starts[0]
                since = self._overdue_since(visit.place, start, before_grant=True)
                if since >= start:
                    continue
                bound = self._bound(visit.place, since)
                if self._works(lane.other, since, start):
                    share = self._limits.interactive_share
                    share = share if lane is Lane.INTERACTIVE else 1 - share
                    bound = (bound + self._limits.share_window + longest + load) / share
                yield Episode(visit.place, start - since, bound)

    def _at(self, moment: float) -> float:
        return awake_seconds(self._workload, 0.0, moment)

    def _visits_of(self, lane: Lane) -> Iterator[Visited]:
        mine = [n for n, run in enumerate(self._runs) if run.job.lane is lane]
        begins = [n for n, at in enumerate(mine) if self._runs[at].why is not Why.VISIT]
        for first, after in pairwise([*begins, len(mine)]):
            part = mine[first:after]
            place = (lane, self._runs[part[0]].job.model)
            last = part[-1]
            until = mine[after] if after < len(mine) else len(self._runs)
            free = [self._starts[n] for n in range(last + 1, min(until + 1, len(self._runs)))]
            line = self._lines[place]
            empty = next((at for at in free if line.oldest_at(at, before_grant=True) == NEVER), None)
            ended_at = empty if empty is not None else free[-1] if free else self._ends[last]
            yield Visited(
                place,
                tuple(self._starts[n] for n in part),
                tuple(self._ends[n] - self._starts[n] for n in part),
                ended_at,
                by_time=empty is None and after < len(mine),
            )

    def _work_of(self, lane: Lane) -> tuple[list[float], list[float]]:
        """When this lane began to have work, and when it had none any more: the intervals in their order."""
        spans = sorted(
            (self._at(run.job.arrives_at), end)
            for run, end in zip(self._runs, self._ends, strict=True)
            if run.job.lane is lane
        )
        begins: list[float] = []
        ends: list[float] = []
        for begin, end in spans:
            if ends and begin <= ends[-1]:
                ends[-1] = max(ends[-1], end)
            else:
                begins.append(begin)
                ends.append(end)
        return begins, ends

    def _works(self, lane: Lane, since: float, until: float) -> bool:
        begins, ends = self._at_work[lane]
        first = bisect_left(ends, since)
        return first < len(begins) and begins[first] <= until

    def _overdue_since(self, place: Place, moment: float, before_grant: bool = False) -> float:
        """Since when this line is overdue, or when it will be; `NEVER` while nothing of it waits."""
        oldest = self._lines[place].oldest_at(moment, before_grant)
        ended = self._ended[place]
        before = bisect_right(ended, moment)
        return max(oldest + self._limits.max_wait(place[0]), ended[before - 1] if before else 0.0)

    def _bound(self, place: Place, since: float) -> float:
        """The running job, the rest of the visit in progress, and one visit of each that was late before."""
        lane = place[0]
        running = bisect_right(self._starts, since) - 1
        total = max(0.0, self._ends[running] - since)
        visits = self.visits[lane]
        at = bisect_right([visit.starts[0] for visit in visits], since) - 1
        current = visits[at] if at >= 0 and since < visits[at].ended_at else None
        if current is not None:
            held = sum(s for start, s in zip(current.starts, current.seconds, strict=True) if start <= since)
            rest = self._limits.visit(lane) - held
            if rest > 0:
                total += rest + self._lines[current.place].longest
                if self._runs[running].job.lane is not lane:  # the other lane may have evicted its model
                    total += self._load_seconds[current.place[1]]
        for other, line in self._lines.items():
            in_visit = current is not None and other == current.place
            before = other[0] is lane and self._overdue_since(other, since) <= since
            if other != place and before and not in_visit:
                total += self._limits.visit(lane) + self._load_seconds[other[1]] + line.longest
        return total
