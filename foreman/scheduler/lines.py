"""The waiting jobs in memory, grouped by lane, model name and priority. Names become keys when one is chosen.

So a name whose model was replaced while its jobs waited joins the line of the weights that it has now.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping

from attrs import define, field

from foreman.scheduler.keys import ModelKey
from foreman.scheduler.policy import Candidate, Lane, Line


@define(eq=False)
class _Group:
    """The waiting jobs of one model name in one lane: for each priority by id, in order of arrival."""

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

    _groups: dict[tuple[Lane, str | None], _Group] = field(factory=dict, init=False)
    _places: dict[str, tuple[Lane, str | None, int]] = field(factory=dict, init=False)
    _counts: dict[Lane, int] = field(factory=lambda: dict.fromkeys(Lane, 0), init=False)

    def count(self, lane: Lane) -> int:
        """How many jobs wait in this lane."""
        return self._counts[lane]

    def add(self, lane: Lane, model: str | None, job: Candidate) -> None:
        """A job waits from now on. Raises ValueError when a job of this id waits already."""
        if job.job_id in self._places:
            raise ValueError(f"job {job.job_id} waits already; a job takes one turn at a time")
        group = self._groups.setdefault((lane, model), _Group())
        # An OrderedDict: the first of a plain dict is the slower to find, the more were taken from its front.
        group.by_priority.setdefault(job.priority, OrderedDict())[job.job_id] = job
        self._places[job.job_id] = (lane, model, job.priority)
        self._counts[lane] += 1

    def remove(self, job_id: str) -> None:
        """A job waits no longer. Raises KeyError when it did not."""
        lane, model, priority = self._places.pop(job_id)
        group = self._groups[lane, model]
        jobs = group.by_priority[priority]
        del jobs[job_id]
        if not jobs:
            del group.by_priority[priority]
        if not group.by_priority:
            del self._groups[lane, model]
        self._counts[lane] -= 1

    def lines(
        self,
        key: Callable[[str | None], ModelKey],
        last_visit_ended_at: Mapping[tuple[Lane, ModelKey], float],
    ) -> list[Line]:
        """The lines as the policy sees them: names of one key are one line."""
        heads: dict[tuple[Lane, ModelKey], tuple[Candidate, Candidate]] = {}
        for (lane, model), group in self._groups.items():
            place = (lane, key(model))
            head, oldest = group.head(), group.oldest()
            if place in heads:
                other_head, other_oldest = heads[place]
                head = min(head, other_head, key=lambda job: job.rank)
                oldest = min(oldest, other_oldest, key=lambda job: job.age)
            heads[place] = (head, oldest)
        return [
            Line(lane, key, head, oldest, last_visit_ended_at.get((lane, key)))
            for (lane, key), (head, oldest) in heads.items()
        ]
