"""The policy: which waiting job gets the free slot. Pure functions over values: nothing waits or remembers.

The rules, in the words of this module:

- A line is *overdue* when its longest-waiting job has waited longer than its lane's bound. It is overdue
  *since* that moment or since the end of its own last visit, whichever is later: without the second half
  two lines with old jobs would starve a third.
- A line that wins keeps the turn within its lane until it is empty, or until its visit has lasted the
  lane's visit time and another line of the lane is overdue. Jobs of the other lane may run in between.
- Rule 1 chooses the lane, rule 2 the line in it, rule 3 the job in that.
- Several jobs of one key may share the turn, never two keys. When the choice for a place beside running jobs
  falls on another key, that line has *won*: nothing more is admitted until they have ended. Its visit begins
  at that moment, and the one before it in the lane ends.

So the queue drains by model, swaps are rare even when everything is late, and no line starves.
"""

import enum
from collections.abc import Collection, Mapping, Sequence

from attrs import frozen

from foreman.scheduler.keys import ModelKey, Wanted


class Lane(enum.Enum):
    """Interactive: the caller waits on an open connection. Durable: the job outlives its caller."""

    INTERACTIVE = "interactive"
    DURABLE = "durable"

    # Enum's own is a Python function, and a choice hashes lanes two dozen times.
    __hash__ = object.__hash__

    @property
    def other(self) -> "Lane":
        return Lane.DURABLE if self is Lane.INTERACTIVE else Lane.INTERACTIVE


@frozen
class Limits:
    """The settings of the scheduler. Times are in seconds, the share is a fraction of busy time."""

    interactive_max_wait: float = 5.0
    durable_max_wait: float = 3600.0
    interactive_visit: float = 30.0
    durable_visit: float = 600.0
    interactive_share: float = 0.8
    share_window: float = 600.0

    def max_wait(self, lane: Lane) -> float:
        """How long a job of this lane waits before its line is overdue."""
        return self.interactive_max_wait if lane is Lane.INTERACTIVE else self.durable_max_wait

    def visit(self, lane: Lane) -> float:
        """How long a visit of this lane lasts when another line of the lane is overdue."""
        return self.interactive_visit if lane is Lane.INTERACTIVE else self.durable_visit


@frozen
class Candidate:
    """One waiting job. `order` is its place of arrival: it decides between jobs that came in one instant."""

    job_id: str
    priority: int
    waiting_since: float
    order: int

    @property
    def rank(self) -> tuple[int, float, int]:
        """The smaller rank runs first: by priority, then by age."""
        return (-self.priority, self.waiting_since, self.order)

    @property
    def age(self) -> tuple[float, int]:
        """The smaller age waits longer."""
        return (self.waiting_since, self.order)


@frozen
class Line:
    """The waiting jobs of one model key in one lane: `count`, at least one, that ask for it as `wanted`.

    Its moments are on the waiting clock of its lane.
    """

    lane: Lane
    key: ModelKey
    head: Candidate
    oldest: Candidate
    last_visit_ended_at: float | None = None
    count: int = 1
    wanted: tuple[Wanted | None, ...] = ()


class Why(enum.Enum):
    """What a line won by: its visit goes on, it is overdue, it is resident, or it has the best head."""

    VISIT = "visit"
    OVERDUE = "overdue"
    RESIDENT = "resident"
    HEAD = "head"


@frozen
class Visit:
    """A visit that is not over, and began at `since` (the reactor's seconds).

    `seconds` counts only while its jobs hold the turn, loads included. `won_by` is None from the start of its
    first job on, which is at once unless jobs of another key still ran.
    """

    key: ModelKey
    seconds: float
    since: float = 0.0
    won_by: Why | None = None


@frozen
class Choice:
    """The job that goes next, and why."""

    lane: Lane
    key: ModelKey
    job_id: str
    why: Why

    @property
    def begins_visit(self) -> bool:
        """The line wins the turn of its lane anew."""
        return self.why is not Why.VISIT

    @property
    def overdue(self) -> bool:
        """The line wins by being overdue."""
        return self.why is Why.OVERDUE


def overdue_since(line: Line, limits: Limits) -> float:
    """The moment at which this line is overdue, or will be if nothing of it runs before."""
    moment = line.oldest.waiting_since + limits.max_wait(line.lane)
    return moment if line.last_visit_ended_at is None else max(moment, line.last_visit_ended_at)


def choose(
    lines: Sequence[Line],
    residents: Collection[ModelKey],
    visits: Mapping[Lane, Visit],
    now: Mapping[Lane, float],
    durable_owed: bool,
    limits: Limits,
    held: ModelKey | None = None,
    won: tuple[Lane, ModelKey] | None = None,
) -> Choice | None:
    """The job for the free place, or None when nothing waits.

    `lines` are the lines with waiting jobs that may run, `visits` the visits that were not over when a place
    was last taken, `now` is on the waiting clock of each lane, `durable_owed` says that the durable lane had
    less than its share lately.

    `held` is the key of the jobs that run beside the free place, None when the whole turn is free. A choice
    of another key is that line's win, and no start; `won` is the line that won so while they ran. It is
    chosen again as long as they run and it waits.
    """
    if held is not None:
        for line in lines:
            if (line.lane, line.key) == won:
                return _won(line, visits.get(line.lane))
        residents = {*residents, held}
    overdue = {(line.lane, line.key) for line in lines if overdue_since(line, limits) <= now[line.lane]}
    lane = _choose_lane(lines, residents, visits, overdue, durable_owed)
    if lane is None:
        return None
    mine = [line for line in lines if line.lane is lane]
    return _choose_line(mine, residents, visits.get(lane), overdue, limits)


def _choose_lane(
    lines: Sequence[Line],
    residents: Collection[ModelKey],
    visits: Mapping[Lane, Visit],
    overdue: Collection[tuple[Lane, ModelKey]],
    durable_owed: bool,
) -> Lane | None:
    """Rule 1: the first lane, if it is pressed or has a cheap line, or if the other one has no work."""
    first = Lane.DURABLE if durable_owed else Lane.INTERACTIVE
    waiting = {line.lane for line in lines}
    if not waiting:
        return None
    if first.other not in waiting:
        return first
    for line in lines:
        if line.lane is first and (
            _goes_on(line, visits.get(first)) or line.key in residents or (first, line.key) in overdue
        ):
            return first
    return first.other


def _choose_line(
    lines: Sequence[Line],
    residents: Collection[ModelKey],
    visit: Visit | None,
    overdue: Collection[tuple[Lane, ModelKey]],
    limits: Limits,
) -> Choice:
    """Rules 2 and 3 among the lines of one lane: there is at least one."""
    late = [line for line in lines if (line.lane, line.key) in overdue]
    for line in lines:
        if visit is not None and line.key == visit.key:
            others = [other for other in late if other is not line]
            if visit.won_by is not None or visit.seconds < limits.visit(line.lane) or not others:
                return _won(line, visit)
            late = others  # its visit is over: as of now it is the last of those that are late
    if late:
        return _chosen(
            min(late, key=lambda line: (overdue_since(line, limits), line.oldest.order)), Why.OVERDUE
        )
    cheap = [line for line in lines if line.key in residents]
    return _chosen(min(cheap or lines, key=lambda line: line.head.rank), Why.RESIDENT if cheap else Why.HEAD)


def _won(line: Line, visit: Visit | None) -> Choice:
    """The line whose visit goes on, or begins now with what it was won by."""
    return _chosen(line, Why.VISIT if visit is None or visit.won_by is None else visit.won_by)


def _goes_on(line: Line, visit: Visit | None) -> bool:
    """A visit that was only won does not press its lane: it would break off the other's visit for nothing."""
    return visit is not None and line.key == visit.key and visit.won_by is None


def _chosen(line: Line, why: Why) -> Choice:
    """Rule 3: the best head, but the longest-waiting job where the line won by being overdue."""
    job = line.oldest if why is Why.OVERDUE else line.head
    return Choice(line.lane, line.key, job.job_id, why)
