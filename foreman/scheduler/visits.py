"""The visits: which line of each lane has the turn, for how long it had it, and when earlier ones ended."""

from collections.abc import Collection, Sequence

from attrs import define, field

from foreman.scheduler.keys import ModelKey
from foreman.scheduler.policy import Choice, Lane, Line, Visit

Place = tuple[Lane, ModelKey]
"""A line by its lane and key."""


@define(eq=False)
class Visits:
    """Each lane has at most one visit. It goes on after the other lane took the turn in between.

    `won` is the line that has won the turn while jobs of another key still run.
    """

    current: dict[Lane, Visit] = field(factory=dict, init=False)
    last_ended_at: dict[Place, float] = field(factory=dict, init=False)
    won: Place | None = field(default=None, init=False)

    def look(self, lines: Sequence[Line], held: Collection[Place]) -> None:
        """A place is free, these lines wait, and jobs of `held` run: the visit of any other line is over.

        The end of such a visit need not be kept: whatever joins its line later waits from a later moment.
        """
        # Both are what most requests to an idle daemon find, before and after.
        if not self.current and not self.last_ended_at:
            return
        if not lines and not held:
            self.current, self.last_ended_at = {}, {}
            return
        alive = {(line.lane, line.key) for line in lines}
        if self.last_ended_at:
            self.last_ended_at = {place: at for place, at in self.last_ended_at.items() if place in alive}
        alive.update(held)
        self.current = {lane: visit for lane, visit in self.current.items() if (lane, visit.key) in alive}

    def granted(self, choice: Choice, now: float, since: float) -> None:
        """A job of a line gets the turn at `now` (the lane's waiting clock), `since` (the reactor's)."""
        self.won = None
        if not choice.begins_visit:
            return
        visit = self.current.get(choice.lane)
        if visit is not None and visit.key == choice.key:  # it was won before
            since = visit.since
        self._begin(choice, now, Visit(choice.key, 0.0, since))

    def wins(self, choice: Choice, now: float, since: float, lines: Sequence[Line]) -> None:
        """A line wins the turn while jobs of another key still run: its visit begins before its first job.

        The visits of those jobs are over if nothing more waits in their lines. What comes to them while the
        last ones run begins anew, or the lanes would take the turn from each other for two unfinished visits.
        """
        self.look(lines, ())
        self.won = (choice.lane, choice.key)
        visit = self.current.get(choice.lane)
        if choice.begins_visit and (visit is None or visit.key != choice.key):
            self._begin(choice, now, Visit(choice.key, 0.0, since, choice.why))

    def lost_to(self, lane: Lane) -> None:
        """The whole turn went to this lane: a visit that the other one had won, and not begun, never was.

        Its line is chosen anew, as when it had not won: another may have become overdue before it.
        """
        visit = self.current.get(lane.other)
        if visit is not None and visit.won_by is not None:
            del self.current[lane.other]

    def lasted(self, lane: Lane, key: ModelKey, seconds: float) -> None:
        """Jobs of this line held the turn for so many seconds more. Its visit may be over before they are."""
        visit = self.current.get(lane)
        if visit is not None and visit.key == key:
            self.current[lane] = Visit(key, visit.seconds + seconds, visit.since, visit.won_by)

    def _begin(self, choice: Choice, now: float, visit: Visit) -> None:
        before = self.current.get(choice.lane)
        if before is not None and before.key != choice.key:
            self.last_ended_at[choice.lane, before.key] = now
        self.current[choice.lane] = visit
