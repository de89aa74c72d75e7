"""The lines of waiting durable jobs as the store last told them: a choice asks no database."""

from collections.abc import Callable, Iterator

from attrs import define, field

from foreman.jobs.model import LineKey, LineView, Waiting
from foreman.scheduler.keys import Wanted
from foreman.scheduler.lines import NamedLine
from foreman.scheduler.policy import Candidate


@define(eq=False)
class DurableLines:
    """A view of the store's lines. `installed` says whether a model is there, as far as anybody knows."""

    _installed: Callable[[str], bool]
    _views: dict[LineKey, LineView] = field(factory=dict, init=False)
    _absent: set[str] = field(factory=set, init=False)
    _taken: int = field(default=0, init=False)

    def put(self, view: LineView) -> None:
        """A line has changed."""
        if view.count:
            self._views[view.line] = view
        else:
            self._views.pop(view.line, None)

    def take(self) -> None:
        """A job that takes the turn was chosen, and the store has not said yet that it waits no more."""
        self._taken += 1

    def settle(self) -> None:
        """The store has said what became of the job that was taken."""
        self._taken -= 1

    @property
    def claiming(self) -> bool:
        """A job that was taken is not off its line yet, as far as the store has said."""
        return self._taken > 0

    def withhold(self, model: str) -> None:
        """This model is not installed: offer none of its jobs until it is, or until told to."""
        self._absent.add(model)

    def offer(self, model: str) -> None:
        """Offer the jobs of this model again, though it may not be installed."""
        self._absent.discard(model)

    @property
    def count(self) -> int:
        """How many jobs that take the turn are offered."""
        return max(0, sum(view.count for view in self._offered(takes_turn=True)) - self._taken)

    def lines(self) -> Iterator[NamedLine]:
        """The lines that take the turn, one for each model name and text of runner options."""
        for view in self._offered(takes_turn=True):
            if view.head is not None and view.oldest is not None:
                wanted = Wanted(view.line.model, view.line.option_key)
                yield NamedLine(wanted, _candidate(view.head), _candidate(view.oldest), view.count)

    def bypassing(self) -> str | None:
        """The id of the next job of those that bypass the turn."""
        heads = [_candidate(view.head) for view in self._offered(takes_turn=False) if view.head is not None]
        return min(heads, key=lambda job: job.rank).job_id if heads else None

    def bypassing_lines(self) -> list[LineKey]:
        """The lines of those that bypass the turn."""
        return [view.line for view in self._offered(takes_turn=False)]

    def _offered(self, takes_turn: bool) -> Iterator[LineView]:
        if self._absent:
            self._absent = {model for model in self._absent if not self._installed(model)}
        for view in self._views.values():
            if view.line.takes_turn == takes_turn and view.line.model not in self._absent:
                yield view


def _candidate(job: Waiting) -> Candidate:
    return Candidate(job.job_id, job.priority, job.since, job.order)
