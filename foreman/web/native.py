"""The fall-through: what is not foreman's own goes to the target, with a turn if it generates."""

import mmap
from collections.abc import Callable
from io import BytesIO
from typing import Any

from attrs import define, evolve, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request, datetimeToString
from ulid import ULID

from foreman.errors import ForemanError, Stopping
from foreman.scheduler.grant import Grant
from foreman.scheduler.keys import Wanted
from foreman.scheduler.turn import Turn
from foreman.target import routes
from foreman.target.caller import caller_of
from foreman.target.dialects import of_path
from foreman.target.heartbeat import Heartbeat
from foreman.target.inventory import Inventory
from foreman.target.names import is_cloud
from foreman.target.peek import UNREADABLE, Peek, look
from foreman.target.preload import Preloader
from foreman.target.relay import Relay
from foreman.target.routes import Handling, Route, takes_turn
from foreman.target.task import Outcome, Task
from foreman.web.lowering import lowering
from foreman.web.problems import error_answer


@define(eq=False)
class Native:
    """
    Answers requests for the target's paths.

    `headers_after` is after how many seconds in the queue a stream gets its head (0: with its first byte).
    `unloading` hears the name of each model that a client told the target to unload.
    """

    _clock: IReactorTime
    _relay: Relay
    _turn: Turn
    _preloader: Preloader
    _inventory: Inventory
    _headers_after: float
    _unloading: Callable[[str], None]
    _new_id: Callable[[], str] = lambda: str(ULID())
    _stopping: bool = False
    _loading: "set[Deferred[None]]" = field(factory=set, init=False)  # those who wait for a load
    _log = Logger()

    def handle(self, request: Request) -> None:
        """Answer `request`, now or later; what happens is the client's, and nothing is raised."""
        answered = Deferred.fromCoroutine(self._answer(request))
        request.notifyFinish().addErrback(lambda _: answered.cancel())
        answered.addErrback(self._failed, request)

    def stop(self) -> None:
        """Refuse what comes from now on."""
        self._stopping = True

    def cut_loads(self) -> None:
        """Who waits for a load waits no longer: foreman stops."""
        loading, self._loading = self._loading, set()
        for load in loading:
            load.cancel()

    async def _answer(self, request: Request) -> None:
        route = routes.find(request.path)
        try:
            if self._stopping:
                raise Stopping()
            if route.handling is Handling.REFUSE:
                _not_found(request)
            elif takes_turn(route, request.method):
                await self._generate(request, route)
            else:
                await self._pass_on(request, route)
        except ForemanError as error:
            _say(request, error)

    async def _pass_on(self, request: Request, route: Route) -> None:
        task = Task(of_path(request.path), streams=False, limited=not route.waits_for_ever)
        try:
            await self._relay.carry(request, task)
        finally:
            if route.changes_models:
                self._inventory.refresh()

    async def _generate(self, request: Request, route: Route) -> None:
        peek = _peek(request, route)
        dialect = of_path(request.path)
        if peek.unloads:
            await self._unload(request, Task(dialect, streams=peek.streams), peek.model)
            return
        if await self._runs_elsewhere(peek, route):
            await self._relay.carry(request, Task(dialect, streams=peek.streams))
            return
        job = _Job(self._new_id(), peek.model, _address(request), self._clock.seconds())
        request.responseHeaders.setRawHeaders(b"X-Foreman-Job-Id", [job.id.encode()])
        asked = lowering(request.requestHeaders)
        wanted = Wanted(peek.model, peek.options) if peek.model is not None else None
        # What a path that is not known yet streams, nobody knows.
        patience = self._headers_after if peek.streams and route.known else 0.0
        heartbeat = Heartbeat(self._clock, request, dialect, patience)
        heartbeat.start()
        try:
            async with self._turn.take(
                job.id, wanted, priority=asked.priority, lane=asked.lane, caller=job.caller
            ) as grant:
                job.started_at = self._clock.seconds()
                if self._preloader.concerns(grant):
                    try:
                        await self._load(grant, peek)
                    finally:
                        job.load_seconds = self._clock.seconds() - job.started_at
                grant.drops = peek.drops
                task = Task(dialect, peek.streams, grant=grant)
                if heartbeat.begun:
                    task = evolve(task, heartbeat=heartbeat)
                else:
                    heartbeat.stop()
                    _say_queued(request, grant.queued_seconds)
                job.outcome = await self._relay.carry(request, task)
        except ForemanError as error:
            job.outcome = Outcome(error.status, 0, error)
            if heartbeat.begun:
                job.outcome.status = 200
                heartbeat.end(error)
                return
            if job.started_at is None:  # it waited in vain
                _say_queued(request, self._clock.seconds() - job.arrived_at)
            raise
        except CancelledError:
            job.left = True
            raise
        finally:
            heartbeat.stop()
            self._log_end(job)

    async def _unload(self, request: Request, task: Task, model: str | None) -> None:
        status = 200  # unless it is refused: of a client that leaves before the answer it was heard, too
        try:
            status = (await self._relay.carry(request, task)).status
        finally:
            if status == 200 and model is not None:
                self._unloading(model)

    async def _load(self, grant: Grant, peek: Peek) -> None:
        """Have the model loaded. Raises Stopping when that is cut, CancelledError when the client leaves."""
        load = Deferred.fromCoroutine(self._wait_for_load(grant, peek))
        self._loading.add(load)
        try:
            await load
        except CancelledError:
            if load in self._loading:
                raise
            raise Stopping() from None
        finally:
            self._loading.discard(load)

    async def _wait_for_load(self, grant: Grant, peek: Peek) -> None:
        await self._preloader.ready(grant, peek.model, peek.options, loads_itself=peek.loads)

    async def _runs_elsewhere(self, peek: Peek, route: Route) -> bool:
        """Whether the answer needs no turn: a cloud model, or the target's own error, which comes at once."""
        if not peek.readable:
            return False
        if peek.model is None:
            return route.known
        if is_cloud(peek.model):
            return True
        model = self._inventory.model(peek.model)
        if model is None and self._inventory.known:
            model = await self._inventory.fresh_look(peek.model)
            return model is None or model.remote
        return model is not None and model.remote

    def _log_end(self, job: "_Job") -> None:
        now = self._clock.seconds()
        started = now if job.started_at is None else job.started_at
        outcome = job.outcome or Outcome(0, 0)
        how = "client left" if job.left else str(outcome.error) if outcome.error else "ok"
        waited, run = started - job.arrived_at, now - started - job.load_seconds
        load = f"load={job.load_seconds:.3f}s " if job.load_seconds else ""
        line = (
            f"{job.id} model={job.model!r} caller={job.caller} waited={waited:.3f}s {load}run={run:.3f}s "
            f"status={outcome.status} bytes={outcome.sent_bytes}: {how}"
        )
        # One field, formatted here: the log's own formatting of nine took 0.1 ms of each turn.
        self._log.info("{line}", line=line, job_id=job.id)

    def _failed(self, failure: Failure, request: Request) -> None:
        if failure.check(CancelledError):
            return
        self._log.failure("a request to {path} failed inside foreman", failure, path=request.path)
        if getattr(request, "channel", None) is None:
            return
        if request.startedWriting:
            caller_of(request).loseConnection()
        else:
            _say(request, ForemanError("something went wrong inside foreman; its log says what"))


@define
class _Job:
    """One interactive job, for its log line."""

    id: str
    model: str | None
    caller: str
    arrived_at: float
    started_at: float | None = None
    load_seconds: float = 0.0
    outcome: Outcome | None = None
    left: bool = False


def _peek(request: Request, route: Route) -> Peek:
    content: Any = request.content
    headers = request.requestHeaders
    content_type = (headers.getRawHeaders(b"content-type") or [b""])[0]
    encoding = (headers.getRawHeaders(b"content-encoding") or [b""])[0]
    if isinstance(content, BytesIO):
        return look(content.getvalue(), route, content_type, encoding)
    content.seek(0, 2)
    if content.tell() == 0:
        return UNREADABLE
    # 15 ms for 50 MiB of images, nothing copied.
    with mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ) as body:
        return look(body, route, content_type, encoding)


def _address(request: Request) -> str:
    """Whose request it is: callers are told apart by their addresses; those on a Unix socket are one."""
    return str(getattr(request.getClientAddress(), "host", "unix"))


def _say_queued(request: Request, seconds: float) -> None:
    request.responseHeaders.setRawHeaders(b"X-Foreman-Queue-Ms", [b"%d" % round(seconds * 1000)])


def _say(request: Request, error: ForemanError) -> None:
    content_type, body = error_answer(request.path, False, error)
    if error.retry_after is not None:
        request.responseHeaders.setRawHeaders(b"Retry-After", [b"%d" % error.retry_after])
    _write(request, error.status, content_type, body)


def _not_found(request: Request) -> None:
    _write(request, 404, b"text/plain", b"404 page not found")


def _write(request: Request, status: int, content_type: bytes, body: bytes) -> None:
    request.setResponseCode(status)
    request.responseHeaders.setRawHeaders(b"Content-Type", [content_type])
    request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
    request.responseHeaders.setRawHeaders(b"Date", [datetimeToString()])
    request.write(body)
    request.finish()
