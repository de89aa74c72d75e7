"""The timetable: opens and shuts the durable lane at the times of day that the owner set."""

from collections.abc import Callable

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from foreman.hours import Hours

_REMEMBERED_SECONDS = 7 * 24 * 3600.0


@define(eq=False)
class Timetable:
    """
    Calls `changed` with whether it is within the hours: at the start, and whenever that changes. Before the
    start it tells `shut` of each span of the last week in which the lane was shut.

    The clock shows epoch seconds.
    """

    _clock: IReactorTime
    _hours: Hours
    _changed: Callable[[bool], None]
    _shut: Callable[[float, float], None]
    _within: bool = field(default=True, init=False)
    _change_at: float | None = field(default=None, init=False)
    _call: IDelayedCall | None = field(default=None, init=False)

    def start(self) -> None:
        """Look at the clock now, and at each change from now on. Before this nothing may be granted."""
        now = self._clock.seconds()
        for begin, end in self._hours.outside(now - _REMEMBERED_SECONDS, now):
            self._shut(begin, end)
        self._look()

    def stop(self) -> None:
        """Look no more."""
        if self._call is not None and self._call.active():
            self._call.cancel()

    @property
    def opens_at(self) -> float | None:
        """The moment at which the hours begin; None within them."""
        return None if self._within else self._change_at

    def reached(self, since: float, seconds: float) -> float:
        """The moment within the hours at which they have lasted for so many seconds, from a moment on."""
        return self._hours.reached(since, seconds)

    def _look(self) -> None:
        now = self._clock.seconds()
        self._within = self._hours.include(now)
        # Anew at each change: the day after a change of the clocks has other edges.
        self._change_at = self._hours.next_change(now)
        if self._change_at is not None:
            self._call = self._clock.callLater(self._change_at - now, self._look)
        self._changed(self._within)
