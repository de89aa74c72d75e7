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

from twisted.internet.protocol import Factory
from twisted.logger import Logger

from foreman.daemon import Foreman, Parts
from foreman.embedded.child import EmbeddedTarget, bind_embedded
from foreman.embedded.models import check_embedded
from foreman.errors import DatabaseRefused
from foreman.jobs.database import Pools, open_pools, prepare
from foreman.jobs.model import Retention
from foreman.jobs.store import SqliteStore
from foreman.listener import CannotBindError, Listener, bind
from foreman.lock import FileLock, LockHeldError
from foreman.quantities import format_duration
from foreman.scheduler.history import History
from foreman.scheduler.keys import KeyRegistry
from foreman.scheduler.policy import Lane
from foreman.scheduler.policy import Limits as PolicyLimits
from foreman.scheduler.records import Records
from foreman.scheduler.residents import Residents
from foreman.scheduler.swaps import Swaps
from foreman.scheduler.timetable import Timetable
from foreman.scheduler.turn import Turn
from foreman.settings import Settings, SettingsError, load, unknown
from foreman.target.client import OllamaClient, make_http
from foreman.target.connection import Connections
from foreman.target.embedder import Embedder
from foreman.target.endpoint import target_endpoint
from foreman.target.generation import Generator
from foreman.target.inventory import Inventory
from foreman.target.preload import Preloader
from foreman.target.reachability import Reachability
from foreman.target.relay import Relay
from foreman.target.unloading import Unloader
from foreman.target.watch import RunLimits
from foreman.urls import JobUrls, place
from foreman.values import EMBEDDED_URL
from foreman.web.app import App
from foreman.web.artifacts import Artifacts
from foreman.web.deliveries import Deliveries
from foreman.web.gate import Gate
from foreman.web.health import Health
from foreman.web.job_views import Views
from foreman.web.jobs import Jobs
from foreman.web.native import Native
from foreman.web.origins import Origins
from foreman.web.outlook import Hold, Outlooks
from foreman.web.pause import Pausing, paused
from foreman.web.queue import QueueReport
from foreman.web.site import Site
from foreman.web.spool import Spool
from foreman.webhooks.body import compose
from foreman.webhooks.connector import Connector
from foreman.webhooks.dispatcher import BACKLOG_SECONDS, Dispatcher
from foreman.webhooks.guard import Guard
from foreman.webhooks.resolver import Resolver, look_up_threads
from foreman.webhooks.sender import Sender
from foreman.webhooks.signature import Signer
from foreman.webhooks.tls import Trust, read_ca
from foreman.webhooks.watch import Watch
from foreman.worker.keeper import HistoryKeeper
from foreman.worker.pauses import Pauses
from foreman.worker.upkeep import Upkeep
from foreman.worker.worker import Worker

_CHILD_STOP_SECONDS = 0.3
# An aborted prompt is first finished, before its model is unloaded: 87 s were measured on a CPU.
_UNLOAD_SECONDS = 120.0
# The system's resolver gives a name up after 30 s, an attempt after FOREMAN_WEBHOOK_CONNECT_TIMEOUT, 5 s.
_LOOK_UPS_EACH = 6


def build_service(reactor: Any, environment: Mapping[str, str]) -> Foreman:
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
    trust = Trust(())
    try:
        # Now: later foreman may be another user, and the file another one.
        trust = Trust(read_ca(settings.webhook_ca))
    except ValueError as why:
        complaints["FOREMAN_WEBHOOK_CA"] = f"FOREMAN_WEBHOOK_CA is {settings.webhook_ca!r}: {why}."
    url = embedded.url if embedded else settings.ollama_url
    parts = _wire(reactor, settings, url, open_pools(settings.db_path, reactor), trust)
    listener: Listener | None = None
    if "FOREMAN_ADDR" not in complaints:
        try:
            listener = bind(reactor, settings.addr, parts.site)
        except CannotBindError as why:
            shown = environment.get("FOREMAN_ADDR") or ":8080"
            complaints["FOREMAN_ADDR"] = f"FOREMAN_ADDR is {shown!r}: {why}."
        else:
            parts.guard.own = listener.place
    if settings.webhook_url:
        try:
            parts.guard.check(settings.webhook_url)
        except ValueError as why:
            complaints["FOREMAN_WEBHOOK_URL"] = f"FOREMAN_WEBHOOK_URL is {settings.webhook_url!r}: {why}."
    if complaints or lock is None or listener is None:
        _refuse(complaints.values())
    parts.gate.checks_host = listener.is_loopback
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


def _wire(reactor: Any, settings: Settings, url: str, pools: Pools, trust: Trust) -> Parts:
    """The object graph."""
    s = settings
    http = make_http(reactor, s.connect_timeout)
    client = OllamaClient(http, url, s.ollama_token, reactor, s.poll_timeout, s.first_byte_timeout)
    inventory = Inventory(reactor, client, s.poll_interval)
    keys = KeyRegistry(inventory)
    policy_limits = PolicyLimits(
        s.interactive_max_wait, s.durable_max_wait, s.interactive_visit, s.durable_visit, s.interactive_share
    )
    turn = Turn(
        reactor,
        keys,
        policy_limits,
        patience=s.target_wait,
        settle_limit=s.first_byte_timeout,
        width=s.parallel,
        interactive_limit=s.interactive_limit,
    )

    def found() -> None:
        # First: a target that was away has other models loaded, if any, or is another one.
        inventory.refresh()
        turn.unblock()
        worker.look()

    reachability = Reachability(reactor, url, client.version, s.target_wait, turn.block, found)
    connections = Connections(target_endpoint(reactor, url, s.connect_timeout))
    run_limits = RunLimits(s.first_byte_timeout, s.silence_timeout, s.run_timeout)
    relay = Relay(
        reactor, connections, reachability, url, s.ollama_token, not s.token, run_limits, s.relay_buffer
    )
    preloader = Preloader(reactor, client, inventory, turn, s.first_byte_timeout)

    def unloaded(weights: frozenset[str]) -> None:
        inventory.unloaded(weights)
        keys.unloaded(weights)

    residents = Residents(reactor, inventory, lambda: turn.holders, unloaded)
    native = Native(reactor, relay, turn, preloader, inventory, s.queue_headers_after, residents.told)
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
        queue_limit=s.queue_limit,
    )
    generator = Generator(http, url, s.ollama_token, reactor)
    worker = Worker(
        reactor,
        store,
        turn,
        generator,
        preloader,
        reachability,
        inventory,
        run_limits,
        folder,
    )
    unloader = Unloader(reactor, client, inventory, _UNLOAD_SECONDS, residents.told)
    pauses = Pauses(reactor, store, turn, worker, unloader, embedder)

    def hours_changed(within: bool) -> None:
        turn.set_durable_hours(within)
        worker.look()

    timetable = Timetable(reactor, s.durable_hours, hours_changed, turn.was_beyond_hours)
    upkeep = Upkeep(
        store, reactor, store.outbox, Retention(s.retain_succeeded, s.retain_failed), s.retain_deliveries
    )

    guard, sender, dispatcher = _wire_webhooks(reactor, s, url, store, trust)
    history = History(reactor, lambda: worker.count > 0 and worker.rests_until is None)
    keeper = HistoryKeeper(reactor, store, history)
    swaps = Swaps(reactor)
    records = Records(history, swaps, residents)

    def swapped() -> None:
        inventory.refresh()
        records.swapped(turn.holders)

    turn.on_swap = swapped
    turn.on_release = records.released
    preloader.on_load = records.loaded
    worker.on_tokens = history.produced
    turn.on_choice = preloader.look
    inventory.on_read.append(keys.inventory_read)
    inventory.on_read.append(preloader.inventory_read)
    inventory.on_read.append(records.inventory_read)
    inventory.on_read.append(lambda _: worker.look())
    inventory.on_read.append(lambda _: reachability.found() if inventory.reachable else None)

    health = Health(
        {
            "target_unreachable": lambda: _unreachable(url, reachability, inventory),
            "generation_stalled": lambda: _stalled(
                relay.stalled() or generator.stalled() or preloader.stalled(), settings
            ),
            "embed_model_not_resident": lambda: _not_resident(embedder),
            "webhook_backlog": lambda: _backlog(dispatcher),
        }
    )
    watch = Watch(reactor, store.outbox, health.report, s.webhook_url) if s.webhook_url else None
    outlooks = Outlooks(
        store,
        turn,
        keys,
        history,
        inventory,
        reachability,
        time.time,
        lambda: _hold(pauses, timetable),
        lambda: worker.rests_until,
        timetable.reached,
        worker.bypassing_lines,
    )
    jobs = Jobs(
        store, store.outbox, Views(urls), guard.check, inventory, time.time, worker.progress, outlooks
    )
    report = QueueReport(time.time, turn, swaps, inventory, residents, embedder, lambda: paused(pauses))
    deliveries = Deliveries(store, store.outbox, dispatcher)
    app = App(health, jobs, Artifacts(store), deliveries, Pausing(pauses), report)
    gate = Gate(Origins(s.origins), s.token, s.body_limit, app.own_paths, job_body_limit=s.job_body_limit)
    spool = Spool(folder, s.disk_reserve)
    site = Site(reactor, app.resource(), native, gate, spool, s.idle_timeout)
    # fmt: off
    return Parts(
        gate, site, native, turn, relay, connections, reachability, inventory, preloader, embedder, store,
        worker, keeper, pauses, timetable, upkeep, guard, sender, dispatcher, watch,
    )
    # fmt: on


def _wire_webhooks(
    reactor: Any, settings: Settings, url: str, store: SqliteStore, trust: Trust
) -> tuple[Guard, Sender, Dispatcher]:
    """From the outbox to the receivers."""
    s = settings
    # An attempt gives a name up long before its thread does.
    resolver = Resolver(look_up_threads(reactor, _LOOK_UPS_EACH * s.webhook_concurrency))
    guard = Guard(s.webhook_allow, place(url), resolver)
    connector = Connector(reactor, resolver, guard, s.webhook_connect_timeout, trust)
    sender = Sender(reactor, connector, s.webhook_timeout)
    signer = Signer((s.webhook_secret, s.webhook_secret_previous))
    dispatcher = Dispatcher(reactor, store.outbox, sender, signer, s.webhook_backoff, s.webhook_concurrency)
    return guard, sender, dispatcher


def _hold(pauses: Pauses, timetable: Timetable) -> Hold | None:
    pause = pauses.standing.get(Lane.DURABLE)
    if pause is None:
        return None if timetable.opens_at is None else Hold("durable_hours", timetable.opens_at)
    if pause.until is None:
        return Hold("lane_paused", None)
    # A pause may end beyond the hours.
    until = timetable.reached(pause.until, 0.0)
    return Hold("lane_paused", until, pause.until if until > pause.until else None)


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
    if embedder is None or embedder.resident or embedder.paused:
        return None
    return embedder.hint or f"{embedder.model} is not loaded yet"
