"""
The composition root: everything is built here, in order, and started and stopped in order.

What can be refused is refused by `build_service`, before twistd forks: raised later, a refusal would
leave the parent of a daemon waiting for ever [tried].
"""

import os
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from attrs import define
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from foreman import __version__
from foreman.embedded.child import EmbeddedTarget, bind_embedded
from foreman.embedded.models import check_embedded
from foreman.errors import DatabaseRefused, Stopping
from foreman.jobs.database import Pools, open_pools, prepare
from foreman.jobs.model import Retention
from foreman.jobs.store import SqliteStore
from foreman.listener import CannotBindError, Listener, bind
from foreman.lock import FileLock, LockHeldError
from foreman.quantities import format_duration
from foreman.scheduler.keys import KeyRegistry
from foreman.scheduler.policy import Limits as PolicyLimits
from foreman.scheduler.turn import Turn
from foreman.settings import EMBEDDED_URL, Settings, SettingsError, load, unknown
from foreman.target.client import OllamaClient, make_http
from foreman.target.connection import Connections
from foreman.target.embedder import Embedder
from foreman.target.endpoint import target_endpoint
from foreman.target.exchange import Limits
from foreman.target.generation import GenerationLimits, Generator
from foreman.target.inventory import Inventory
from foreman.target.names import is_cloud
from foreman.target.reachability import Reachability
from foreman.target.relay import Relay
from foreman.urls import JobUrls, place
from foreman.web.app import App
from foreman.web.artifacts import Artifacts
from foreman.web.deliveries import Deliveries
from foreman.web.gate import Gate
from foreman.web.health import Health
from foreman.web.job_views import Views
from foreman.web.jobs import Jobs
from foreman.web.native import Native
from foreman.web.origins import Origins
from foreman.web.site import Site
from foreman.web.spool import Spool
from foreman.webhooks.body import compose
from foreman.webhooks.connector import Connector, Resolver
from foreman.webhooks.dispatcher import BACKLOG_SECONDS, Dispatcher
from foreman.webhooks.guard import Guard
from foreman.webhooks.sender import Sender
from foreman.webhooks.signature import Signer
from foreman.webhooks.tls import check_ca
from foreman.webhooks.watch import Watch
from foreman.worker.upkeep import Upkeep
from foreman.worker.worker import Worker

# Last words and resets after the grace take at most twice this: the stop ends within the grace and 1 s.
_CUT_SECONDS = 0.25
_CHILD_STOP_SECONDS = 0.3
# Beside one for each webhook: the names of the target.
_MORE_THREADS = 8
# A receiver that is silent does not make every stop as long as the grace.
_WEBHOOK_GRACE_SECONDS = 2.0


def build_service(reactor: Any, environment: Mapping[str, str]) -> "Foreman":
    """
    Check the settings, take the lock, bind the sockets, and build everything.

    When anything is wrong, prints a sentence for each complaint and raises SystemExit(2).
    """
    # "Starting factory …", four times for each poll, would be most of the log.
    Factory.noisy = False
    complaints: dict[str, str] = {}
    try:
        settings = load(environment)
    except SettingsError as wrong:
        complaints, settings = dict(wrong.complaints), wrong.settings
    embedded: EmbeddedTarget | None = None
    if "FOREMAN_OLLAMA_URL" not in complaints and settings.ollama_url == EMBEDDED_URL:
        folder = Path(settings.embedded_models) if settings.embedded_models else None
        for sentence in check_embedded(folder):
            complaints[sentence] = sentence
        log = Logger("foreman.embedded")
        embedded = EmbeddedTarget(reactor, bind_embedded(), folder, log, _CHILD_STOP_SECONDS)
    lock = _take_lock(settings.db_path, complaints)
    if lock is not None:
        try:
            prepare(settings.db_path)
        except DatabaseRefused as why:
            complaints["FOREMAN_DB_PATH"] = str(why)
    if settings.webhook_ca:
        try:
            check_ca(settings.webhook_ca)
        except ValueError as why:
            complaints["FOREMAN_WEBHOOK_CA"] = f"FOREMAN_WEBHOOK_CA is {settings.webhook_ca!r}: {why}."
    url = embedded.url if embedded else settings.ollama_url
    parts = _wire(reactor, settings, url, open_pools(settings.db_path, reactor))
    listener: Listener | None = None
    if "FOREMAN_ADDR" not in complaints:
        try:
            listener = bind(reactor, settings.addr, parts.site)
        except CannotBindError as why:
            shown = environment.get("FOREMAN_ADDR") or ":8080"
            complaints["FOREMAN_ADDR"] = f"FOREMAN_ADDR is {shown!r}: {why}."
    if complaints or lock is None or listener is None:
        _refuse(complaints.values())
    parts.gate.checks_host = listener.is_loopback
    parts.guard.own = listener.place
    return Foreman(reactor, settings, unknown(environment), lock, embedded, parts, listener)


def _refuse(complaints: "Mapping[str, str] | Any") -> NoReturn:
    for sentence in complaints:
        print(f"foreman: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def _take_lock(db_path: str, complaints: dict[str, str]) -> FileLock | None:
    path = f"{db_path}.lock"
    try:
        return FileLock(path)
    except LockHeldError:
        complaints["FOREMAN_DB_PATH"] = (
            f"FOREMAN_DB_PATH is {db_path!r}: another foreman is using it ({path} is locked)."
        )
    except OSError as why:
        complaints["FOREMAN_DB_PATH"] = (
            f"FOREMAN_DB_PATH is {db_path!r}: {path} cannot be written: {why.strerror}."
        )
    return None


@define
class _Parts:
    """What `_wire` built and the service starts and stops."""

    gate: Gate
    site: Site
    native: Native
    turn: Turn
    relay: Relay
    connections: Connections
    reachability: Reachability
    inventory: Inventory
    embedder: Embedder | None
    store: SqliteStore
    worker: Worker
    upkeep: Upkeep
    guard: Guard
    sender: Sender
    dispatcher: Dispatcher
    watch: Watch | None


def _wire(reactor: Any, settings: Settings, url: str, pools: Pools) -> _Parts:
    """The object graph."""
    s = settings
    http = make_http(reactor, s.connect_timeout)
    client = OllamaClient(
        http,
        url,
        s.ollama_token,
        reactor,
        s.poll_timeout,
        s.first_byte_timeout,
    )
    inventory = Inventory(reactor, client, s.poll_interval)
    keys = KeyRegistry(inventory)
    policy_limits = PolicyLimits(
        s.interactive_max_wait, s.durable_max_wait, s.interactive_visit, s.durable_visit, s.interactive_share
    )
    turn = Turn(reactor, keys, policy_limits, patience=s.target_wait, settle_limit=s.first_byte_timeout)

    def found() -> None:
        turn.unblock()
        worker.look()
        # A target that was away has other models loaded, if any, or is another one.
        inventory.refresh()

    reachability = Reachability(reactor, url, client.version, s.target_wait, turn.block, found)
    connections = Connections(target_endpoint(reactor, url, s.connect_timeout))
    relay_limits = Limits(s.first_byte_timeout, s.silence_timeout, s.run_timeout, s.relay_buffer)
    relay = Relay(reactor, connections, reachability, url, s.ollama_token, not s.token, relay_limits)
    native = Native(reactor, relay, turn, inventory)
    embedder = (
        Embedder(reactor, client, inventory, lambda: turn.free, lambda: turn.swapped_at, s.embed_model)
        if s.embed_model
        else None
    )

    folder = os.path.dirname(os.path.abspath(s.db_path))
    urls = JobUrls(s.public_url)
    store = SqliteStore(
        s.db_path,
        pools,
        time.time,
        partial(compose, urls=urls),
        owner_url=s.webhook_url or None,
        max_interruptions=s.max_interruptions,
    )
    generator = Generator(http, url, s.ollama_token, reactor)
    run_limits = GenerationLimits(s.first_byte_timeout, s.silence_timeout, s.run_timeout)
    worker = Worker(
        reactor,
        store,
        turn,
        generator,
        reachability,
        lambda name: not inventory.known or is_cloud(name) or inventory.model(name) is not None,
        run_limits,
        folder,
    )
    upkeep = Upkeep(
        store, reactor, store.outbox, Retention(s.retain_succeeded, s.retain_failed), s.retain_deliveries
    )

    # A name that does not resolve holds its thread for half a minute: others are not to wait for one.
    reactor.suggestThreadPoolSize(s.webhook_concurrency + _MORE_THREADS)
    resolver = Resolver(reactor)
    guard = Guard(s.webhook_allow, place(url), resolver)
    connector = Connector(reactor, resolver, guard, s.webhook_connect_timeout, s.webhook_ca)
    sender = Sender(reactor, connector, s.webhook_timeout)
    signer = Signer((s.webhook_secret, s.webhook_secret_previous))
    dispatcher = Dispatcher(reactor, store.outbox, sender, signer, s.webhook_backoff, s.webhook_concurrency)

    turn.on_swap = lambda: _refresh(inventory)
    inventory.on_read.append(lambda asked_at: keys.inventory_read(asked_at) if asked_at is not None else None)
    inventory.on_read.append(lambda _: worker.look())
    inventory.on_read.append(lambda _: reachability.found() if inventory.reachable else None)

    health = Health(
        {
            "target_unreachable": lambda: _unreachable(url, reachability, inventory),
            "generation_stalled": lambda: _stalled(relay.stalled() or generator.stalled(), settings),
            "embed_model_not_resident": lambda: _not_resident(embedder),
            "webhook_backlog": lambda: _backlog(dispatcher),
        }
    )
    watch = Watch(reactor, store.outbox, health.report, s.webhook_url) if s.webhook_url else None
    jobs = Jobs(
        store,
        store.outbox,
        Views(urls),
        guard.check,
        inventory,
        time.time,
        worker.progress,
        lambda: reachability.up,
    )
    app = App(health, jobs, Artifacts(store), Deliveries(store, store.outbox, dispatcher))
    gate = Gate(Origins(s.origins), s.token, s.body_limit, app.own_paths, job_body_limit=s.job_body_limit)
    spool = Spool(folder, s.disk_reserve)
    site = Site(reactor, app.resource(), native, gate, spool, s.idle_timeout)
    return _Parts(
        gate,
        site,
        native,
        turn,
        relay,
        connections,
        reachability,
        inventory,
        embedder,
        store,
        worker,
        upkeep,
        guard,
        sender,
        dispatcher,
        watch,
    )


def _refresh(inventory: Inventory) -> None:
    inventory.refresh()


def _unreachable(url: str, reachability: Reachability, inventory: Inventory) -> str | None:
    if not reachability.up:
        return f"{url} cannot be reached: {reachability.reason}"
    if inventory.reachable:
        return None
    return f"{url} did not answer the last poll" if inventory.known else f"{url} has not answered yet"


def _stalled(stalled: bool, settings: Settings) -> str | None:
    if not stalled:
        return None
    begin, silence = format_duration(settings.first_byte_timeout), format_duration(settings.silence_timeout)
    return f"a generation is past half of its limit (to begin {begin}, silence {silence}), and will be cut"


def _backlog(dispatcher: Dispatcher) -> str | None:
    if dispatcher.behind_seconds <= BACKLOG_SECONDS:
        return None
    return f"a webhook has been due for {format_duration(round(dispatcher.behind_seconds))}, and was not sent"


def _not_resident(embedder: Embedder | None) -> str | None:
    if embedder is None or embedder.resident:
        return None
    return embedder.hint or f"{embedder.model} is not loaded yet"


@define(slots=False, eq=False)
class Foreman(Service):
    """The daemon: started from the target up to the listener, stopped the other way, one at a time."""

    _reactor: Any
    _settings: Settings
    _unknown_variables: list[str]
    _lock: FileLock
    _embedded: EmbeddedTarget | None
    _parts: _Parts
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
        parts = self._parts
        if self._embedded is not None:
            self._embedded.startService()
        if parts.embedder is not None:
            parts.embedder.start()
        parts.inventory.start()
        self._starting = Deferred.fromCoroutine(self._begin())
        self._starting.addErrback(self._not_begun)

    async def _begin(self) -> None:
        """Orphans of the last life are queued again before the first request is served."""
        parts = self._parts
        await parts.store.open()
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
            await parts.watch.stop()
        working = Deferred.fromCoroutine(parts.worker.stop(self._settings.stop_grace, _CUT_SECONDS))
        await parts.site.drain(self._settings.stop_grace)
        parts.relay.cut_all(Stopping())
        left = self._settings.stop_grace - (self._reactor.seconds() - began)
        grace = min(max(left, _CUT_SECONDS), _WEBHOOK_GRACE_SECONDS)
        sending = Deferred.fromCoroutine(parts.dispatcher.stop(grace, _CUT_SECONDS))
        await parts.site.abort(_CUT_SECONDS)
        await working
        await sending
        await parts.sender.close()
        await parts.upkeep.stop()
        if parts.embedder is not None:
            await parts.embedder.stop()
        await parts.inventory.stop()
        parts.reachability.stop()
        parts.connections.close()
        if self._embedded is not None:
            await self._embedded.stopService()
        await parts.store.close()
        self._lock.release()
