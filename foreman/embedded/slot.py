"""The one place for a loaded model: who uses it, when it is swapped, and when it is unloaded."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from attrs import Factory, define, field, frozen
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from foreman.embedded.engine import Engine
from foreman.embedded.models import EmbeddedModel
from foreman.embedded.wire import GO_FOR_EVER

# OLLAMA_KEEP_ALIVE's default.
DEFAULT_KEEP_ALIVE_SECONDS = 300.0

# A longer wait than this does not fit epoll's timer; such a model just stays.
LONGEST_TIMER_SECONDS = 20 * 86_400.0

log = Logger()


@frozen
class Resident:
    """A loaded model, under the name that loaded it, and the context length that it was loaded with."""

    model: EmbeddedModel
    num_ctx: int

    def serves(self, model: EmbeddedModel, num_ctx: int) -> bool:
        """Whether `model` runs on it without a reload: the same weights and the same context length."""
        return self.model.weights_digest == model.weights_digest and self.num_ctx == num_ctx


@define(eq=False)
class Slot:
    """One resident model; requests use it one at a time, first come, first served.

    This is an Ollama with OLLAMA_NUM_PARALLEL=1 and OLLAMA_MAX_LOADED_MODELS=1: it never looks ahead, so
    requests that alternate two models load at each step.
    """

    _clock: IReactorTime
    _engine: Engine
    resident: Resident | None = field(init=False, default=None)
    loads: int = field(init=False, default=0)
    """Loads since the start."""
    _lock: DeferredLock = field(init=False, default=Factory(DeferredLock))
    _keep_alive: float = field(init=False, default=DEFAULT_KEEP_ALIVE_SECONDS)
    _timer: IDelayedCall | None = field(init=False, default=None)

    @asynccontextmanager
    async def use(self, model: EmbeddedModel, num_ctx: int, keep_alive: float | None) -> AsyncIterator[float]:
        """Wait for the slot, bring the model into it, and give the time at which the wait ended.

        `keep_alive` is in seconds from the end of the use; None leaves the resident model's present one. A
        caller that is cancelled while it waits leaves the queue. Raises EngineError when the model cannot be
        loaded.
        """
        await self._lock.acquire()
        try:
            self._stop_timer()
            began = self._clock.seconds()
            await self._bring(model, num_ctx)
            if keep_alive is not None:
                self._keep_alive = keep_alive
            yield began
        finally:
            self._start_timer()
            self._lock.release()

    def expire(self, model: EmbeddedModel) -> None:
        """Unload `model`, if it is resident, as soon as nothing runs. Returns at once, as Ollama answers."""
        if self.resident is None or self.resident.model.weights_digest != model.weights_digest:
            return
        self._keep_alive = 0.0
        if not self._lock.locked:
            self._start_timer()

    @property
    def expires_at(self) -> datetime:
        """When the resident model is unloaded if nothing more comes; in 292 years for `for ever`."""
        if self._timer is not None:
            return datetime.fromtimestamp(self._timer.getTime(), UTC)
        now = datetime.fromtimestamp(self._clock.seconds(), UTC)
        return now + timedelta(seconds=min(self._keep_alive, GO_FOR_EVER.total_seconds()))

    async def _bring(self, model: EmbeddedModel, num_ctx: int) -> None:
        if self.resident is not None and self.resident.serves(model, num_ctx):
            return
        self.resident = None
        began = self._clock.seconds()
        try:
            await self._engine.load(model.weights, num_ctx)
        except BaseException:
            # A cancelled load may still succeed in the engine's thread. Ollama drops such a load; so do we.
            self._engine.unload().addErrback(lambda failure: log.failure("cannot unload", failure))
            raise
        self.resident = Resident(model, num_ctx)
        self.loads += 1
        self._keep_alive = DEFAULT_KEEP_ALIVE_SECONDS
        log.info(
            "loaded {name} num_ctx {num_ctx} in {seconds:.2f} s, load {loads}",
            name=model.name,
            num_ctx=num_ctx,
            seconds=self._clock.seconds() - began,
            loads=self.loads,
        )

    def _start_timer(self) -> None:
        self._stop_timer()
        if self.resident is not None and self._keep_alive <= LONGEST_TIMER_SECONDS:
            self._timer = self._clock.callLater(self._keep_alive, self._timed_out)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _timed_out(self) -> None:
        self._timer = None
        unloading = Deferred.fromCoroutine(self._unload())
        unloading.addErrback(lambda failure: log.failure("cannot unload", failure))

    async def _unload(self) -> None:
        # The timer runs only while nobody has the slot, so the lock is free here.
        async with self._lock:
            resident, self.resident = self.resident, None
            await self._engine.unload()
        if resident is not None:
            log.info("unloaded {name}", name=resident.model.name)
