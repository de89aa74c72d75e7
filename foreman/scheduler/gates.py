"""The gates: which lanes may be granted now. The waiting clock of a lane that may not stands still."""

from collections.abc import Callable

from attrs import define, field
from twisted.internet.interfaces import IReactorTime

from foreman.errors import ForemanError
from foreman.scheduler.outages import WaitingClock
from foreman.scheduler.policy import Lane

Refusal = Callable[[], ForemanError]
"""Makes the error for one caller: an exception of one's own each, since each collects a traceback."""


@define(eq=False)
class Gates:
    """Three gates, one behind the other: the target can be reached, the lane is not paused, and for durable
    jobs it is within their hours. Setting one as it is already changes nothing.

    `paused` has what the callers of each paused lane are told: they are not to wait for it. `source_ready`:
    the jobs of the durable source may be granted. It is no gate of their lane, whose waiting clock goes on:
    native requests that were lowered into it do not need what the source is waiting for.
    """

    _clock: IReactorTime
    clocks: dict[Lane, WaitingClock] = field(init=False)
    unreachable: ForemanError | None = field(default=None, init=False)
    paused: dict[Lane, Refusal] = field(factory=dict, init=False)
    source_ready: bool = field(default=True, init=False)
    _within_hours: bool = field(default=True, init=False)

    def __attrs_post_init__(self) -> None:
        self.clocks = {lane: WaitingClock(self._clock) for lane in Lane}

    def open(self, lane: Lane) -> bool:
        """Jobs of this lane may start while the target can be reached."""
        return lane not in self.paused and (self._within_hours or lane is not Lane.DURABLE)

    @property
    def all_open(self) -> bool:
        """Neither lane is held back, nor the durable source."""
        return self._within_hours and not self.paused and self.source_ready

    def now(self) -> dict[Lane, float]:
        """This moment, on the waiting clock of each lane."""
        seconds = self._clock.seconds()
        return {lane: clock.at(seconds) for lane, clock in self.clocks.items()}

    def block(self, error: ForemanError) -> None:
        """The target is unreachable; the latest error is kept."""
        self.unreachable = error
        self._set_clocks()

    def unblock(self) -> None:
        """The target is reachable again."""
        self.unreachable = None
        self._set_clocks()

    def pause(self, lane: Lane, refusal: Refusal, since: float | None = None) -> None:
        """Hold this lane back and refuse its callers; called again, with these words from now on.

        `since`: it has been held back since an earlier moment.
        """
        self.paused[lane] = refusal
        self.clocks[lane].stop(since)
        self._set_clocks()

    def resume(self, lane: Lane) -> None:
        """The lane is paused no more."""
        self.paused.pop(lane, None)
        self._set_clocks()

    def was_paused(self, lane: Lane, begin: float, end: float) -> None:
        """In an earlier life this lane was paused for this span."""
        self.clocks[lane].lost(begin, end)

    def was_beyond_hours(self, begin: float, end: float) -> None:
        """In an earlier life it was beyond the hours of durable jobs in this span."""
        self.clocks[Lane.DURABLE].lost(begin, end)

    def set_durable_hours(self, within: bool) -> None:
        """Whether it is within the hours of durable jobs. Beyond them callers are not refused: they wait."""
        self._within_hours = within
        self._set_clocks()

    def _set_clocks(self) -> None:
        for lane, clock in self.clocks.items():
            if self.unreachable is None and self.open(lane):
                clock.go_on()
            else:
                clock.stop()
