"""Keeps one embedding model in the target's memory, as long as that helps more than it hurts."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from foreman.errors import ForemanError
from foreman.target.client import Loaded, OllamaClient
from foreman.target.inventory import Inventory, Model
from foreman.target.names import canonical

FOREVER = timedelta(days=36500)
"""Ollama shows a pin as an ``expires_at`` some 292 years ahead. A limit this far also holds where the
reactor's clock does not count from 1970."""

EVICTION_WINDOW_SECONDS = 600.0
RETRY_SECONDS = 30.0
HOURLY_SECONDS = 3600.0

TOO_SMALL = (
    "foreman's own loads evict the embedding model {model} again and again: the target keeps one model only. "
    "Set OLLAMA_MAX_LOADED_MODELS=2 at the target if its memory holds both; foreman tries again every hour"
)


@define(eq=False)
class Embedder:
    """Pins the model of ``FOREMAN_EMBED_MODEL`` in the target; never raises, never an obstacle.

    It looks after each poll of the inventory. A model that is gone is pinned again, but only while nobody
    has the turn or waits for it. Two evictions by foreman's own swaps within ten minutes mean that the
    target has no room for both: pinning again would reload everything each time, so from then on it is
    tried hourly, until a pin has outlived those ten minutes.

    :ivar turn_free: whether nobody has the turn and nobody waits for it.
    :ivar swapped_at: the clock's seconds at the end of foreman's last swap; now, while one is under way.
    :ivar model: the name of the embedding model.
    :ivar resident: whether the last look found it pinned.
    :ivar hint: a sentence for people on why it is not resident; ``None`` when there is nothing to say.
    :ivar paused: somebody wants the memory for something else, so it is not pinned.
    """

    clock: IReactorTime
    client: OllamaClient
    inventory: Inventory
    turn_free: Callable[[], bool]
    swapped_at: Callable[[], float | None]
    model: str
    resident: bool = field(default=False, init=False)
    hint: str | None = field(default=None, init=False)
    paused: bool = field(default=False, init=False)
    _held: bool = field(default=False, init=False)  # pinned, and not yet seen gone
    _pinned_at: float = field(default=0.0, init=False)
    _seen_at: float = field(default=0.0, init=False)  # the last moment at which it surely was resident
    _evicted_at: list[float] = field(factory=list, init=False)
    _given_up: bool = field(default=False, init=False)
    _next_try: float = field(default=0.0, init=False)
    _failures: int = field(default=0, init=False)
    _busy: bool = field(default=False, init=False)
    _pinning: Deferred[None] | None = field(default=None, init=False)
    _log = Logger()

    @property
    def evicted(self) -> bool:
        """foreman's own loads evict it again and again."""
        return self._given_up

    def start(self) -> None:
        """Look after every poll from now on."""
        self._next_try = self.clock.seconds()
        self.inventory.on_read.append(self._look)

    async def stop(self) -> None:
        """Look no more, and cut a pin under way."""
        if self._look in self.inventory.on_read:
            self.inventory.on_read.remove(self._look)
        if self._pinning is not None:
            self._pinning.cancel()

    def pause(self) -> None:
        """Pin it no more, and cut a pin under way, until `resume`. Unloading it is for others."""
        self.paused = True
        if self._pinning is not None:
            self._pinning.cancel()

    def resume(self) -> None:
        """Pin it again, as soon as the turn is free."""
        if self.paused:
            self.paused = False
            # That it is gone is nobody's fault.
            self._held = self.resident = False
            self._next_try = self.clock.seconds()
            self.inventory.refresh()

    def _look(self, ps_asked_at: float | None) -> None:
        if ps_asked_at is None or self._busy or self.paused:
            return
        if any(self._is_pinned(entry) for entry in self.inventory.loaded):
            self._seen(ps_asked_at)
            return
        self.resident = False
        if self._held:
            self._gone()
        if not self.inventory.known:
            return
        if self.inventory.model(self.model) is None:
            self.hint = f"the embedding model {self.model} is not installed at the target: pull it"
        elif self.clock.seconds() >= self._next_try and self.turn_free():
            self._busy = True
            self._pinning = Deferred.fromCoroutine(self._pin())
            self._pinning.addErrback(lambda failure: self._log.failure("pinning failed", failure))

    def _is_pinned(self, entry: Loaded) -> bool:
        # A pin that got a finite end, by a request with a keep_alive of its own, is as good as gone.
        now = datetime.fromtimestamp(self.clock.seconds(), UTC)
        return self._is_the_model(entry) and entry.expires_at - now > FOREVER

    def _is_the_model(self, entry: Loaded) -> bool:
        # A copy runs on the same runner and shows under the name that loaded it: compare the weights.
        if canonical(entry.name) == canonical(self.model):
            return True
        mine: Model | None = self.inventory.model(self.model)
        its = self.inventory.model_by_digest(entry.digest)
        return mine is not None and its is not None and mine.weights == its.weights

    def _seen(self, ps_asked_at: float) -> None:
        if not self.resident:
            self._log.info("the embedding model {model} is resident", model=self.model)
        self.resident = True
        self.hint = None
        self._held = True
        self._seen_at = ps_asked_at
        if self._given_up and self.clock.seconds() - self._pinned_at > EVICTION_WINDOW_SECONDS:
            self._given_up = False
            self._next_try = self.clock.seconds()

    def _gone(self) -> None:
        """It was pinned and is not any more: say whose doing that was."""
        self._held = False
        # A swap that was under way when it was last seen may have evicted it afterwards.
        swapped_at = self.swapped_at()
        own = swapped_at is not None and swapped_at >= self._seen_at
        self._log.info("the embedding model {model} is gone (own swap: {own})", model=self.model, own=own)
        if not own:
            return
        now = self.clock.seconds()
        self._evicted_at = [at for at in self._evicted_at if now - at <= EVICTION_WINDOW_SECONDS] + [now]
        if self._given_up or len(self._evicted_at) >= 2:
            self._given_up = True
            self._next_try = now + HOURLY_SECONDS
            self.hint = TOO_SMALL.format(model=self.model)
            self._log.warn("{hint}", hint=self.hint)

    async def _pin(self) -> None:
        try:
            await self.client.pin(self.model)
        except CancelledError:
            return
        except ForemanError as error:
            self._failures += 1
            wait = min(RETRY_SECONDS * 2**self._failures, HOURLY_SECONDS)
            self.hint = f"the embedding model {self.model} cannot be loaded: {error}"
            self._log.warn("{hint}", hint=self.hint)
        else:
            self._failures = 0
            wait = RETRY_SECONDS
            # A swap may take it before it is seen.
            self._held = True
            self._pinned_at = self.clock.seconds()
            self._seen_at = self._pinned_at
        finally:
            self._busy = False
        # A pin that the target forgets at once must not become a loop.
        self._next_try = self.clock.seconds() + (HOURLY_SECONDS if self._given_up else wait)
        # Verified through /api/ps.
        self.inventory.refresh()
