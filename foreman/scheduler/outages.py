"""The clock of the waiting times: it stands still while the target is unreachable, or the lane held back."""

from bisect import bisect_left, bisect_right

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
        """Nothing could run in this span, which is over.

        Spans may be told in any order, and may share time, which is lost once: those of an earlier life are
        the pauses that somebody kept and the hours of the clock on the wall.
        """
        if self._stopped_at is not None and end >= self._stopped_at:
            self.stop(begin)
            return
        first, after = bisect_left(self._ends, begin), bisect_right(self._begins, end)
        if first < after:
            begin, end = min(begin, self._begins[first]), max(end, self._ends[after - 1])
        self._begins[first:after], self._ends[first:after] = [begin], [end]
        del self._lost[first:]
        for number in range(first, len(self._ends)):
            before = self._lost[-1] if self._lost else self._forgotten
            self._lost.append(before + self._ends[number] - self._begins[number])
        if len(self._ends) > _REMEMBERED:
            self._forgotten = self._lost[0]
            del self._begins[0], self._ends[0], self._lost[0]

    def stop(self, since: float | None = None) -> None:
        """Nothing may run from now on, or has been able to since an earlier moment."""
        if self._stopped_at is None:
            self._stopped_at = self._clock.seconds()
        if since is None or since >= self._stopped_at:
            return
        # The spans that it shares time with are part of it. They may be many nights: cut off at the end of
        # the last one, a pause of three days counted as 27 hours of waiting after a restart.
        first = bisect_left(self._ends, since)
        self._stopped_at = min([since, *self._begins[first : first + 1]])
        del self._begins[first:], self._ends[first:], self._lost[first:]

    def go_on(self) -> None:
        """The target is reachable again."""
        if self._stopped_at is None:
            return
        begin, end = self._stopped_at, max(self._stopped_at, self._clock.seconds())
        self._stopped_at = None
        self.lost(begin, end)
