"""The waiting jobs of one lane in memory, grouped by what they ask for, then by priority and caller.

What they ask for becomes a key when a job is chosen. So a name whose model was replaced while its jobs waited
joins the line of the weights that it has now.

Callers take turns within a priority: who was served longest ago goes next. A caller who has nothing waiting
is forgotten, and one who comes anew joins at the end of the rotation, behind everybody who waits by then. So
coming back at once is never a way to the front, and the callers kept are never more than the waiting jobs.
"""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from attrs import define, field, frozen

from foreman.scheduler.keys import ModelKey, Wanted
from foreman.scheduler.policy import Candidate, Lane, Line


@frozen
class NamedLine:
    """The waiting jobs in one lane that ask for the same, at least one. None: a body that nobody can read.

    `served` orders the heads of interactive lines that turn out to be of one key, within one priority: the
    smallest is of the caller who was served longest ago.
    """

    wanted: Wanted | None
    head: Candidate
    oldest: Candidate
    count: int = 1
    served: int = 0


_Rotation = OrderedDict[str, "_Seat"]
"""The waiting jobs of one priority: by caller, the one who was served longest ago first."""


@define(eq=False)
class _Seat:
    """The waiting jobs of one caller in one rotation, in order of arrival, and when it was `served` last."""

    caller: str
    served: int
    jobs: "OrderedDict[str, Candidate]" = field(factory=OrderedDict)


@define(eq=False)
class _Group:
    """The waiting jobs that ask for the same: all in order of arrival, and a rotation for each priority."""

    # OrderedDicts: the first of a plain dict is the slower to find, the more were taken from its front.
    jobs: "OrderedDict[str, Candidate]" = field(factory=OrderedDict)
    rotations: dict[int, _Rotation] = field(factory=dict)

    def line(self, wanted: Wanted | None) -> NamedLine:
        rotations = self.rotations
        rotation = rotations[max(rotations)] if len(rotations) > 1 else next(iter(rotations.values()))
        seat = next(iter(rotation.values()))
        head = next(iter(seat.jobs.values()))
        count = len(self.jobs)
        oldest = head if count == 1 else next(iter(self.jobs.values()))
        return NamedLine(wanted, head, oldest, count, seat.served)


@define(eq=False)
class Lines:
    """Adding and removing cost the same with one job waiting or many; a choice costs a look at each group,
    and serving a step for each group.

    Jobs are added in the order of their `waiting_since`. Who gives no caller does not take turns.
    """

    _groups: dict[Wanted | None, _Group] = field(factory=dict, init=False)
    _places: dict[str, tuple[Wanted | None, int, _Seat]] = field(factory=dict, init=False)
    _turns: "itertools.count[int]" = field(factory=lambda: itertools.count(1), init=False)

    @property
    def count(self) -> int:
        """How many jobs wait."""
        return len(self._places)

    def add(self, wanted: Wanted | None, job: Candidate, caller: str = "") -> None:
        """A job waits from now on. Raises ValueError when a job of this id waits already."""
        job_id, priority = job.job_id, job.priority
        if job_id in self._places:
            raise ValueError(f"job {job_id} waits already; a job takes one turn at a time")
        group = self._groups.get(wanted)
        if group is None:
            group = self._groups[wanted] = _Group()
        rotation = group.rotations.get(priority)
        if rotation is None:
            rotation = group.rotations[priority] = OrderedDict()
        seat = rotation.get(caller)
        if seat is None:
            seat = rotation[caller] = _Seat(caller, next(self._turns))
        group.jobs[job_id] = seat.jobs[job_id] = job
        self._places[job_id] = (wanted, priority, seat)

    def remove(self, job_id: str) -> None:
        """A job waits no longer. Raises KeyError when it did not."""
        self._remove(job_id)

    def serve(self, job_id: str) -> None:
        """A job gets the turn, and its caller's others wait behind every other caller's from now on."""
        caller = self._remove(job_id)
        if not self._groups:
            return
        turn = next(self._turns)
        for group in self._groups.values():
            for rotation in group.rotations.values():
                seat = rotation.get(caller)
                if seat is not None:
                    seat.served = turn
                    rotation.move_to_end(caller)

    def lines(self) -> list[NamedLine]:
        """The head and the longest-waiting job of each group."""
        return [group.line(wanted) for wanted, group in self._groups.items()]

    def _remove(self, job_id: str) -> str:
        """The caller whose job it was."""
        wanted, priority, seat = self._places.pop(job_id)
        group = self._groups[wanted]
        del group.jobs[job_id], seat.jobs[job_id]
        if not group.jobs:
            del self._groups[wanted]
        elif not seat.jobs:
            rotation = group.rotations[priority]
            del rotation[seat.caller]
            if not rotation:
                del group.rotations[priority]
        return seat.caller


def join(
    lane: Lane,
    named: Iterable[NamedLine],
    key: Callable[[Wanted | None], ModelKey],
    last_visit_ended_at: Mapping[tuple[Lane, ModelKey], float],
) -> list[Line]:
    """The lines of a lane as the policy sees them: what asks for one key is one line."""
    lines = list(named)
    if len(lines) == 1:
        return [_line(lane, key(lines[0].wanted), lines, last_visit_ended_at)]
    joined: dict[ModelKey, list[NamedLine]] = {}
    for line in lines:
        joined.setdefault(key(line.wanted), []).append(line)
    return [_line(lane, place, parts, last_visit_ended_at) for place, parts in joined.items()]


def _line(
    lane: Lane, key: ModelKey, parts: list[NamedLine], ended: Mapping[tuple[Lane, ModelKey], float]
) -> Line:
    ended_at = ended.get((lane, key)) if ended else None
    if len(parts) == 1:
        (part,) = parts
        return Line(lane, key, part.head, part.oldest, ended_at, part.count, (part.wanted,))
    takes_turns = lane is Lane.INTERACTIVE
    head = min(
        parts, key=lambda part: (-part.head.priority, part.served if takes_turns else 0, part.head.rank)
    ).head
    oldest = min((part.oldest for part in parts), key=lambda job: job.age)
    return Line(
        lane,
        key,
        head,
        oldest,
        ended_at,
        sum(part.count for part in parts),
        tuple(part.wanted for part in parts),
    )
