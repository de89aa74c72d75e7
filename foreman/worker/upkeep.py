"""What the store needs from time to time: what is due is expired or released, what is old is pruned."""

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from foreman.errors import ForemanError
from foreman.jobs.delivery import Outbox
from foreman.jobs.interface import JobStore
from foreman.jobs.model import Retention
from foreman.works import Works

PRUNE_SECONDS = 60.0
RETRY_SECONDS = 5.0


@define(eq=False)
class Upkeep:
    """
    Two ticks on the clock. Each waits for its own end, so neither ever runs twice at once.

    `retain_deliveries` is how many seconds the log of a webhook is kept after its end.
    """

    _store: JobStore
    _clock: IReactorTime
    _outbox: Outbox
    _retention: Retention
    _retain_deliveries: float
    _due: IDelayedCall | None = field(default=None, init=False)
    _prune: IDelayedCall | None = field(default=None, init=False)
    _looking: bool = field(default=False, init=False)
    _due_at: float | None = field(default=None, init=False)  # the next moment, as far as it is known
    _works: Works = field(init=False)
    _stopped: bool = field(default=True, init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self._works = Works(self._clock, self._log)

    def start(self) -> None:
        """Look at once, and prune in a minute: a start has better things to do."""
        self._stopped = False
        self._store.on_due = self.due_at
        self._begin_look()
        self._prune = self._clock.callLater(PRUNE_SECONDS, self._begin_prune)

    async def stop(self, limit: float) -> None:
        """Begin nothing more. What was begun ends with its present batch, within `limit` seconds."""
        self._stopped = True
        for call in (self._due, self._prune):
            if call is not None and call.active():
                call.cancel()
        self._works.cancel()
        await self._works.wait_until_idle(limit)

    def due_at(self, moment: float) -> None:
        """Something will be due at this moment."""
        if self._due_at is None or moment < self._due_at:
            self._due_at = moment
            self._schedule()

    def _schedule(self) -> None:
        """While a look is under way, its end does this."""
        if self._stopped or self._looking:
            return
        if self._due is not None and self._due.active():
            self._due.cancel()
        if self._due_at is not None:
            self._due = self._clock.callLater(
                max(0.0, self._due_at - self._clock.seconds()), self._begin_look
            )

    def _begin_look(self) -> None:
        self._looking, self._due_at = True, None
        self._works.begin(self._look())

    async def _look(self) -> None:
        moment: float | None = self._clock.seconds() + RETRY_SECONDS  # whatever goes wrong
        try:
            moment = await self._store.due(self._clock.seconds())
        except ForemanError as error:
            self._log.warn("what is due waits: {why}", why=str(error))
        finally:
            self._looking = False
            if moment is not None:
                self.due_at(moment)
            # What was told during the look.
            self._schedule()

    def _begin_prune(self) -> None:
        self._works.begin(self._prune_once())

    async def _prune_once(self) -> None:
        try:
            now = self._clock.seconds()
            removed = await self._store.prune(now, self._retention)
            if removed:
                self._log.info("pruned {count} jobs", count=removed)
            await self._outbox.prune(now - self._retain_deliveries)
        except ForemanError as error:
            self._log.warn("pruning waits: {why}", why=str(error))
        finally:
            if not self._stopped:
                self._prune = self._clock.callLater(PRUNE_SECONDS, self._begin_prune)
