"""The daemon: what `service.py` wired, started and stopped in order."""

from typing import Any

from attrs import define
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from foreman import __version__
from foreman.embedded.child import EmbeddedTarget
from foreman.errors import Stopping
from foreman.jobs.store import SqliteStore
from foreman.listener import Listener
from foreman.lock import FileLock
from foreman.quantities import format_duration
from foreman.scheduler.timetable import Timetable
from foreman.scheduler.turn import Turn
from foreman.settings import Settings
from foreman.target.connection import Connections
from foreman.target.embedder import Embedder
from foreman.target.inventory import Inventory
from foreman.target.preload import Preloader
from foreman.target.reachability import Reachability
from foreman.target.relay import Relay
from foreman.web.gate import Gate
from foreman.web.native import Native
from foreman.web.site import Site
from foreman.webhooks.dispatcher import Dispatcher
from foreman.webhooks.guard import Guard
from foreman.webhooks.sender import Sender
from foreman.webhooks.watch import Watch
from foreman.worker.keeper import HistoryKeeper
from foreman.worker.pauses import Pauses
from foreman.worker.upkeep import Upkeep
from foreman.worker.worker import Worker

# Last words and resets after the grace take at most twice this: the stop ends within the grace and 1 s.
_CUT_SECONDS = 0.25
# A receiver that is silent does not make every stop as long as the grace.
_WEBHOOK_GRACE_SECONDS = 2.0


@define
class Parts:
    """What was wired together."""

    gate: Gate
    site: Site
    native: Native
    turn: Turn
    relay: Relay
    connections: Connections
    reachability: Reachability
    inventory: Inventory
    preloader: Preloader
    embedder: Embedder | None
    store: SqliteStore
    worker: Worker
    keeper: HistoryKeeper
    pauses: Pauses
    timetable: Timetable
    upkeep: Upkeep
    guard: Guard
    sender: Sender
    dispatcher: Dispatcher
    watch: Watch | None


@define(slots=False, eq=False)
class Foreman(Service):
    """The daemon: started from the target up to the listener, stopped the other way, one at a time."""

    _reactor: Any
    _settings: Settings
    _unknown_variables: list[str]
    _lock: FileLock
    _embedded: EmbeddedTarget | None
    _parts: Parts
    _listener: Listener
    _starting: "Deferred[None] | None" = None
    _log = Logger()

    def startService(self) -> None:
        """Start everything; the listener last."""
        super().startService()
        for sentence in self._unknown_variables:
            self._log.warn("{sentence}", sentence=sentence)
        if not self._listener.is_loopback and not self._settings.token:
            self._log.warn(
                "foreman listens on {address} and FOREMAN_TOKEN is not set: whoever can connect may use it",
                address=str(self._listener),
            )
        if self._embedded is not None:
            self._embedded.startService()
        self._starting = Deferred.fromCoroutine(self._begin())
        self._starting.addErrback(self._not_begun)

    async def _begin(self) -> None:
        """Orphans of the last life are queued again before the first request is served."""
        parts = self._parts
        await parts.store.open()
        # Before anything may be granted or pinned.
        parts.timetable.start()
        await parts.pauses.start()
        if parts.embedder is not None:
            parts.embedder.start()
        parts.inventory.start()
        await parts.keeper.start()
        await parts.worker.start()
        parts.upkeep.start()
        await parts.dispatcher.start()
        if parts.watch is not None:
            await parts.watch.start()
        self._listener.accept()
        self._log.info(
            "foreman {version} listens on {address}, target {target}",
            version=__version__,
            address=str(self._listener),
            target=self._embedded.url if self._embedded else self._settings.ollama_url,
        )

    def _not_begun(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            # The file was good a moment ago; whoever supervises foreman starts it again.
            self._log.failure("the database cannot be used, foreman ends", failure)
            self._reactor.stop()

    def stopService(self) -> "Deferred[None]":
        """Stop; fires when the last connection is closed, at most the grace and one second later."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        parts = self._parts
        running = sum(channel.busy for channel in parts.site.channels)
        self._log.info(
            "stopping: what runs ({running}) gets {grace}",
            running=running,
            grace=format_duration(self._settings.stop_grace),
        )
        if self._starting is not None:
            self._starting.cancel()
        await self._listener.close()
        parts.native.stop()
        parts.turn.close(Stopping())
        began = self._reactor.seconds()
        if parts.watch is not None:
            await parts.watch.stop(_CUT_SECONDS)
        working = Deferred.fromCoroutine(parts.worker.stop(self._settings.stop_grace, _CUT_SECONDS))
        await parts.site.drain(self._settings.stop_grace)
        parts.native.cut_loads()
        parts.relay.cut_all(Stopping())
        left = self._settings.stop_grace - (self._reactor.seconds() - began)
        grace = min(max(left, _CUT_SECONDS), _WEBHOOK_GRACE_SECONDS)
        sending = Deferred.fromCoroutine(parts.dispatcher.stop(grace, _CUT_SECONDS))
        await parts.site.abort(_CUT_SECONDS)
        await working
        await sending
        await parts.sender.close()
        parts.timetable.stop()
        await parts.pauses.stop()
        await parts.upkeep.stop(_CUT_SECONDS)
        await parts.keeper.stop(_CUT_SECONDS)
        parts.preloader.stop()
        if parts.embedder is not None:
            await parts.embedder.stop()
        await parts.inventory.stop()
        parts.reachability.stop()
        parts.connections.close()
        if self._embedded is not None:
            await self._embedded.stopService()
        # All that is left of the stop's time but its end: another program may have the database locked.
        left = self._settings.stop_grace + 1 - _CUT_SECONDS - (self._reactor.seconds() - began)
        await parts.store.close(max(left, 0.0))
        self._lock.release()
