"""The waiting jobs of one lane in memory, grouped by model name and priority.

Names become keys when a job is chosen. So a name whose model was replaced while its jobs waited joins the
line of the weights that it has now.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping

from attrs import define, field, frozen

from foreman.scheduler.keys import ModelKey
from foreman.scheduler.policy import Candidate, Lane, Line


@frozen
class NamedLine:
    """The waiting jobs of one model name in one lane, at least one. None: a body that nobody can read."""

    model: str | None
    head: Candidate
    oldest: Candidate


@define(eq=False)
class _Group:
    """The waiting jobs of one model name: for each priority by id, in order of arrival."""

    by_priority: dict[int, OrderedDict[str, Candidate]] = field(factory=dict)

    def head(self) -> Candidate:
        return self._first(max(self.by_priority))

    def oldest(self) -> Candidate:
        return min((self._first(priority) for priority in self.by_priority), key=lambda job: job.age)

    def _first(self, priority: int) -> Candidate:
        return next(iter(self.by_priority[priority].values()))


@define(eq=False)
class Lines:
    """Adding and removing cost the same with one job waiting or many; a choice costs a look at each name.

    Jobs are added in the order of their `waiting_since`.
    """

    _groups: dict[str | None, _Group] = field(factory=dict, init=False)
    _places: dict[str, tuple[str | None, int]] = field(factory=dict, init=False)

    @property
    def count(self) -> int:
        """How many jobs wait."""
        return len(self._places)

    def add(self, model: str | None, job: Candidate) -> None:
        """A job waits from now on. Raises ValueError when a job of this id waits already."""
        if job.job_id in self._places:
            raise ValueError(f"job {job.job_id} waits already; a job takes one turn at a time")
        group = self._groups.setdefault(model, _Group())
        # An OrderedDict: the first of a plain dict is the slower to find, the more were taken from its front.
        group.by_priority.setdefault(job.priority, OrderedDict())[job.job_id] = job
        self._places[job.job_id] = (model, job.priority)

    def remove(self, job_id: str) -> None:
        """A job waits no longer. Raises KeyError when it did not."""
        model, priority = self._places.pop(job_id)
        group = self._groups[model]
        jobs = group.by_priority[priority]
        del jobs[job_id]
        if not jobs:
            del group.by_priority[priority]
        if not group.by_priority:
            del self._groups[model]

    def lines(self) -> Iterator[NamedLine]:
        """The head and the longest-waiting job of each name."""
        for model, group in self._groups.items():
            yield NamedLine(model, group.head(), group.oldest())


def join(
    lane: Lane,
    named: Iterable[NamedLine],
    key: Callable[[str | None], ModelKey],
    last_visit_ended_at: Mapping[tuple[Lane, ModelKey], float],
) -> list[Line]:
    """The lines of a lane as the policy sees them: names of one key are one line."""
    joined: dict[ModelKey, tuple[Candidate, Candidate]] = {}
    for line in named:
        place = key(line.model)
        head, oldest = line.head, line.oldest
        if place in joined:
            other_head, other_oldest = joined[place]
            head = min(head, other_head, key=lambda job: job.rank)
            oldest = min(oldest, other_oldest, key=lambda job: job.age)
        joined[place] = (head, oldest)
    return [
        Line(lane, place, head, oldest, last_visit_ended_at.get((lane, place)))
        for place, (head, oldest) in joined.items()
    ]
