"""The visits: which line of each lane has the turn, for how long it had it, and when earlier ones ended."""

from collections.abc import Sequence

from attrs import define, field

from foreman.scheduler.keys import ModelKey
from foreman.scheduler.policy import Choice, Lane, Line, Visit


@define(eq=False)
class Visits:
    """Each lane has at most one visit. It goes on after the other lane took the turn in between."""

    current: dict[Lane, Visit] = field(factory=dict, init=False)
    last_ended_at: dict[tuple[Lane, ModelKey], float] = field(factory=dict, init=False)

    def look(self, lines: Sequence[Line]) -> None:
        """The turn is free, and these lines wait: a visit whose line is empty is over.

        The end of such a visit need not be kept: whatever joins its line later waits from a later moment.
        """
        waiting = {(line.lane, line.key) for line in lines}
        self.current = {lane: visit for lane, visit in self.current.items() if (lane, visit.key) in waiting}
        self.last_ended_at = {place: at for place, at in self.last_ended_at.items() if place in waiting}

    def chosen(self, choice: Choice, now: float) -> None:
        """A line got the turn at `now` (on the clock of the waiting times)."""
        if not choice.begins_visit:
            return
        before = self.current.get(choice.lane)
        if before is not None:
            self.last_ended_at[choice.lane, before.key] = now
        self.current[choice.lane] = Visit(choice.key, 0.0)

    def lasted(self, lane: Lane, seconds: float) -> None:
        """The visit of this lane held the turn for so many seconds more."""
        visit = self.current[lane]
        self.current[lane] = Visit(visit.key, visit.seconds + seconds)
