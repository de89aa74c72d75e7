"""The clock of the waiting times: it stands still while the target is unreachable."""

from bisect import bisect_right

from attrs import define, field
from twisted.internet.interfaces import IReactorTime

_REMEMBERED = 1000


@define(eq=False)
class WaitingClock:
    """Seconds that count as waiting. Moments go in as the reactor's seconds.

    It remembers the last thousand outages, a target that comes and goes every minute for most of a day. A
    moment before those counts as if it were after the older ones: such a job seems to wait less than it did.
    """

    _clock: IReactorTime
    _stopped_at: float | None = field(default=None, init=False)
    # Of the outages that are over: their ends, and what all of them up to each took.
    _ends: list[float] = field(factory=list, init=False)
    _lost: list[float] = field(factory=list, init=False)
    _begins: list[float] = field(factory=list, init=False)
    _forgotten: float = field(default=0.0, init=False)

    def now(self) -> float:
        """This moment, on the waiting clock."""
        return self.at(self._clock.seconds())

    def at(self, moment: float) -> float:
        """A moment of the reactor's clock, on this one. One within an outage is that of its begin."""
        if not self._ends and self._stopped_at is None:
            return moment
        if self._stopped_at is not None:
            moment = min(moment, self._stopped_at)
        over = bisect_right(self._ends, moment)
        if over < len(self._begins):
            moment = min(moment, self._begins[over])
        return moment - (self._lost[over - 1] if over else self._forgotten)

    def lost(self, begin: float, end: float) -> None:
        """Nothing could run in this span, which is over, and later than those that were told before."""
        self._begins.append(begin)
        self._ends.append(end)
        self._lost.append((self._lost[-1] if self._lost else self._forgotten) + end - begin)
        if len(self._ends) > _REMEMBERED:
            self._forgotten = self._lost[0]
            del self._begins[0], self._ends[0], self._lost[0]

    def stop(self, since: float | None = None) -> None:
        """Nothing may run from now on, or has been able to since an earlier moment."""
        if self._stopped_at is None:
            self._stopped_at = self._clock.seconds()
        if since is not None:
            # What is over is over: a moment within an earlier outage would count that twice.
            self._stopped_at = min(self._stopped_at, max([since, *self._ends[-1:]]))

    def go_on(self) -> None:
        """The target is reachable again."""
        if self._stopped_at is None:
            return
        begin, end = self._stopped_at, max(self._stopped_at, self._clock.seconds())
        self._stopped_at = None
        self.lost(begin, end)
