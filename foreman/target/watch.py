"""The limits of one answer of the target: until its first byte, without a byte, and of the whole run."""

from collections.abc import Callable

from attrs import define, field, frozen
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from foreman.errors import ForemanError, TargetTimeout
from foreman.quantities import format_duration


@frozen
class RunLimits:
    """Seconds: until the first byte, without a byte, and in all (0: none)."""

    first_byte: float
    silence: float
    run: float


def _always() -> bool:
    return True


@define(eq=False)
class Watch:
    """Calls `passed` with the error when a limit has passed, and is over then.

    `too_long` makes the error for the whole run of what was exceeded, in words. While `expected` is false
    nothing need come: neither the first byte nor silence has a limit.
    """

    _clock: IReactorTime
    _limits: RunLimits
    _too_long: Callable[[str], ForemanError]
    _passed: Callable[[ForemanError], None]
    _expected: Callable[[], bool] = _always
    began: bool = field(default=False, init=False)
    _settling: bool = field(default=False, init=False)
    _started_at: float = field(default=0.0, init=False)
    _active_at: float = field(default=0.0, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)

    def start(self, settling: bool) -> None:
        """The request goes out, to a target that may still settle."""
        self._started_at = self._clock.seconds()
        self._settling = settling
        if settling:
            # Ollama finishes the prompt of a request that was aborted (87 s once, on a CPU) before it begins
            # with this one: its limits start at its own first byte, or when the settling has had its time.
            self._started_at += self._limits.first_byte
        self._active_at = self._started_at
        self._look()

    def begin(self) -> None:
        """The answer has begun."""
        self.began = True
        self.active()
        if self._settling:
            self._started_at = self._active_at
        self.look_anew()

    def active(self) -> None:
        """A piece of the answer came."""
        self._active_at = self._clock.seconds()

    def look_anew(self) -> None:
        """Another limit counts now."""
        self.stop()
        self._look()

    def stop(self) -> None:
        """It is over."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def stalled(self) -> bool:
        """Past half of the limit that counts now for one who expects a stream."""
        limit = self._limits.silence if self.began else self._limits.first_byte
        return self._clock.seconds() - self._active_at > limit / 2

    def is_late(self) -> bool:
        """It runs for longer than a first byte may take, which is no fault where that comes last."""
        return self._clock.seconds() - self._started_at > self._limits.first_byte

    def _look(self) -> None:
        """One delayed call, set anew when it fires: a reset for each token would cost more."""
        self._timer = None
        deadline = self._deadline()
        if deadline is None:
            return
        at, error = deadline
        left = at - self._clock.seconds()
        if left <= 0:
            self._passed(error())
        else:
            self._timer = self._clock.callLater(left, self._look)

    def _deadline(self) -> tuple[float, Callable[[], ForemanError]] | None:
        """The clock's time at which to give up, and what is to be said then."""
        limits = self._limits
        candidates: list[tuple[float, Callable[[], ForemanError]]] = []
        if limits.run:
            candidates.append(
                (self._started_at + limits.run, lambda: self._too_long(format_duration(limits.run)))
            )
        if self._expected():
            if self.began:
                candidates.append((self._active_at + limits.silence, self._fell_silent))
            else:
                candidates.append((self._started_at + limits.first_byte, self._never_began))
        return min(candidates, key=lambda candidate: candidate[0], default=None)

    def _never_began(self) -> TargetTimeout:
        limit = format_duration(self._limits.first_byte)
        return TargetTimeout(
            f"the target did not begin to answer within {limit}, the limit of FOREMAN_FIRST_BYTE_TIMEOUT"
        )

    def _fell_silent(self) -> TargetTimeout:
        limit = format_duration(self._limits.silence)
        return TargetTimeout(f"the target fell silent for {limit}, the limit of FOREMAN_SILENCE_TIMEOUT")
