"""Whether the target can be reached at all, and who waits until it can."""

from collections.abc import Awaitable, Callable

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as PatienceEnded
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from foreman.errors import ForemanError, TargetTimeout, TargetUnreachable

FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 30.0


@define(eq=False)
class Reachability:
    """Knows whether requests can be sent to the target, and probes while they cannot.

    ::

        up --lost()--> lost --probe answered, or found()--> up

    Any answer to a probe means found, a 500 too: then the target is there, and its own answers are the
    answers. A probe that cannot be sent (refused, unknown host, no connection) or that meets silence
    means still lost: what hangs on ``/api/version`` would let every request hang.

    :ivar target_url: for the errors' text.
    :ivar probe: asks the target something small; raises :class:`TargetUnreachable` when it cannot.
    :ivar patience: seconds that :meth:`ready` waits.
    :ivar on_lost: called when the target is lost, and when the reason has become another one.
    :ivar on_found: called when it is back, before those who wait go on.
    :ivar since: the clock's seconds at the last change.
    """

    clock: IReactorTime
    target_url: str
    probe: Callable[[], Awaitable[object]]
    patience: float
    on_lost: Callable[[TargetUnreachable], None]
    on_found: Callable[[], None]
    since: float = field(init=False)
    _error: TargetUnreachable | None = field(default=None, init=False)
    _delay: float = field(default=FIRST_DELAY_SECONDS, init=False)
    _hurried: bool = field(default=False, init=False)
    _next_probe: IDelayedCall | None = field(default=None, init=False)
    _probing: Deferred[None] | None = field(default=None, init=False)
    _waiters: list[Deferred[None]] = field(factory=list, init=False)
    _stopped: bool = field(default=False, init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self.since = self.clock.seconds()

    @property
    def up(self) -> bool:
        """Whether the target is believed to be there: true until somebody finds out otherwise."""
        return self._error is None

    @property
    def reason(self) -> str | None:
        """Why the target cannot be reached, in a few words; ``None`` while it can."""
        return None if self._error is None else self._error.reason

    def lost(self, reason: str) -> None:
        """Take note that a request could not be sent. Begins to probe; known already is no news."""
        if self._stopped or not self.up:
            return
        self.since = self.clock.seconds()
        self._delay = FIRST_DELAY_SECONDS
        self._log.warn("the target {url} cannot be reached: {reason}", url=self.target_url, reason=reason)
        self._schedule(self._delay)
        self._explain(reason)

    def found(self) -> None:
        """Take note that the target answered something. Ends the probes and lets everybody go on."""
        if self.up:
            return
        away_seconds = self.clock.seconds() - self.since
        self.since = self.clock.seconds()
        self._error = None
        self._halt()
        self._log.info("the target {url} answers again after {s:.1f} s", url=self.target_url, s=away_seconds)
        self.on_found()
        self._release(None)

    async def ready(self) -> None:
        """Return when the target can be reached: at once, or when it is found.

        A caller who begins to wait brings the next probe forward to at most one second from now.

        :raises TargetUnreachable: the patience ended first, or foreman stops.
        """
        if self._error is None:
            return
        if self._stopped:
            raise self._error
        waiter: Deferred[None] = Deferred()
        self._waiters.append(waiter)
        self._hurry()
        waiter.addTimeout(self.patience, self.clock)
        try:
            await waiter
        except PatienceEnded:
            raise TargetUnreachable(self.target_url, self.reason or "no answer") from None
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def stop(self) -> None:
        """End the probes; everybody who waits gets the error at once."""
        self._stopped = True
        self._halt()
        self._release(self._error)

    def _explain(self, reason: str) -> None:
        self._error = TargetUnreachable(self.target_url, reason)
        self.on_lost(self._error)

    def _release(self, error: TargetUnreachable | None) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if error is None:
                waiter.callback(None)
            else:
                waiter.errback(error)

    def _hurry(self) -> None:
        """Bring the next probe forward; when one is under way, the one after it."""
        if self._next_probe is None:
            self._hurried = True
        elif self._next_probe.getTime() - self.clock.seconds() > FIRST_DELAY_SECONDS:
            self._next_probe.reset(FIRST_DELAY_SECONDS)

    def _schedule(self, delay: float) -> None:
        self._hurried = False
        self._next_probe = self.clock.callLater(delay, self._begin_probe)

    def _begin_probe(self) -> None:
        self._next_probe = None
        self._probing = Deferred.fromCoroutine(self._probe_once())
        self._probing.addErrback(lambda failure: self._log.failure("the probe failed", failure))

    async def _probe_once(self) -> None:
        try:
            await self.probe()
        except CancelledError:
            return
        except TargetUnreachable as error:
            self._still_lost(error.reason)
            return
        except TargetTimeout:
            self._still_lost("it accepts connections and does not answer")
            return
        except ForemanError as error:
            self._log.info("the target is back with a bad answer: {reason}", reason=str(error))
        # This coroutine is not to be cancelled by what it finds.
        self._probing = None
        self.found()

    def _still_lost(self, reason: str) -> None:
        if self.up or self._stopped:
            return
        self._delay = min(self._delay * 2, LONGEST_DELAY_SECONDS)
        self._schedule(FIRST_DELAY_SECONDS if self._hurried else self._delay)
        if reason != self.reason:
            self._explain(reason)

    def _halt(self) -> None:
        if self._next_probe is not None:
            self._next_probe.cancel()
            self._next_probe = None
        probing, self._probing = self._probing, None
        if probing is not None:
            probing.cancel()
