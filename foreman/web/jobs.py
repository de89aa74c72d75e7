"""The job resource: what is asked of durable jobs, and how foreman answers."""

import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Protocol

from attrs import define, evolve
from ulid import ULID

from foreman.errors import InvalidParameters, JobGone, JobNotFound, ModelNotFound
from foreman.jobs.delivery import Outbox
from foreman.jobs.interface import JobStore
from foreman.jobs.model import Job, Status, Tombstone
from foreman.jobs.submission import parse
from foreman.target.names import is_cloud
from foreman.web import job_views as views
from foreman.web.gate import Answer
from foreman.web.outlook import Outlooks
from foreman.worker.attempt import Progress

LIST_LIMIT = 50
MOST_LISTED = 200
_PARAMETERS = ("status", "model", "limit", "after")
_JOB_ID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", re.ASCII)


class Model(Protocol):
    """An installed model, as far as jobs go."""

    @property
    def remote(self) -> bool: ...


class Inventory(Protocol):
    """Which models are installed."""

    @property
    def known(self) -> bool: ...

    def model(self, name: str, /) -> Model | None: ...

    async def fresh_look(self, name: str, /) -> Model | None: ...


@define(eq=False)
class Jobs:
    """Answers requests for jobs; raises a ForemanError for the app's error table.

    `check_receiver` raises ValueError for a URL that no webhook may go to. `wall_clock` gives epoch seconds;
    `progress` that of a running job.
    """

    _store: JobStore
    _outbox: Outbox
    _views: views.Views
    _check_receiver: Callable[[str], None]
    _inventory: Inventory
    _wall_clock: Callable[[], float]
    _progress: Callable[[str], Progress | None]
    _outlooks: Outlooks
    _new_id: Callable[[float], str] = lambda moment: str(ULID.from_timestamp(moment))

    async def submit(self, body: bytes) -> Answer:
        """``POST /jobs``: 202 when the job is on disk."""
        now = self._wall_clock()
        submission = parse(body, self._new_id(now), now, self._check_receiver)
        if submission.start_deadline is None and await self._is_missing(submission.line.model):
            raise ModelNotFound(submission.line.model)
        if self._runs_elsewhere(submission.line.model):
            submission = evolve(submission, line=evolve(submission.line, takes_turn=False))
        job = await self._store.submit(submission)
        return await self._taken(job)

    async def show(self, job_id: str) -> Answer:
        """``GET /jobs/{id}``."""
        return await self._whole(found(job_id, await self._store.get(ulid(job_id))))

    async def list(self, query: Mapping[str, str]) -> Answer:
        """``GET /jobs``: newest first. `query` holds the parameters by their names."""
        complaints = [
            {"parameter": name, "detail": f"is no parameter: those are {', '.join(_PARAMETERS)}"}
            for name in query
            if name not in _PARAMETERS
        ]
        status, limit = None, LIST_LIMIT
        if text := query.get("status"):
            try:
                status = Status(text)
            except ValueError:
                allowed = ", ".join(one.value for one in Status)
                complaints.append({"parameter": "status", "detail": f"is {text!r}: it is one of {allowed}"})
        if text := query.get("limit"):
            limit = int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else 0
            if not 1 <= limit <= MOST_LISTED:
                detail = f"is {text!r}: it is a whole number from 1 to {MOST_LISTED}"
                complaints.append({"parameter": "limit", "detail": detail})
        if complaints:
            raise InvalidParameters(complaints)
        page = await self._store.list(status, query.get("model") or None, limit, query.get("after") or None)
        states = await self._outbox.states([job.job_id for job in page.jobs])
        jobs = [
            self._views.entry(job, self._progress(job.job_id), states.get(job.job_id)) for job in page.jobs
        ]
        return Answer.json(200, {"jobs": jobs, "next": page.next})

    async def cancel(self, job_id: str) -> Answer:
        """``POST /jobs/{id}/cancel``: the job as it is now; of one that ended, nothing changes."""
        return await self._whole(found(job_id, await self._store.cancel(ulid(job_id))))

    async def retry(self, job_id: str) -> Answer:
        """``POST /jobs/{id}/retry``: 202 when it waits again; 409 for one that has not ended."""
        job = found(job_id, await self._store.retry(ulid(job_id)))
        return await self._taken(job)

    async def delete(self, job_id: str) -> Answer:
        """``DELETE /jobs/{id}``: 204 when its payloads are gone; 409 for one that has not ended."""
        if await self._store.delete(ulid(job_id)) is None:
            raise JobNotFound(job_id)
        return Answer(204, [])

    async def _is_missing(self, model: str) -> bool:
        """Whether the target surely does not have the model: after one fresh look, if need be."""
        if is_cloud(model) or not self._inventory.known or self._inventory.model(model) is not None:
            return False
        return await self._inventory.fresh_look(model) is None

    def _runs_elsewhere(self, model: str) -> bool:
        """Whether the model does not use the local GPU, and so needs no turn."""
        installed = self._inventory.model(model)
        return is_cloud(model) or (installed is not None and installed.remote)

    async def _taken(self, job: Job) -> Answer:
        position = await self._outlooks.position(job)
        headers = [
            (b"Location", self._views.urls.job(job.job_id).encode()),
            (b"Retry-After", b"%d" % views.poll_seconds(position)),
        ]
        return Answer.json(202, self._views.receipt(job, position), headers)

    async def _whole(self, job: Job) -> Answer:
        contents = {}
        for artifact in job.artifacts:
            if artifact.size <= views.INLINE_BYTES:
                piece = await self._store.piece(job.job_id, artifact.name, 0) if artifact.size else b""
                # None, or another content: the job was deleted, or run again, since it was read.
                if piece is not None and sha256(piece).hexdigest() == artifact.sha256:
                    contents[artifact.name] = piece
        outlook = await self._outlooks.of(job)
        states = await self._outbox.states([job.job_id])
        progress = self._progress(job.job_id)
        return Answer.json(200, self._views.whole(job, outlook, progress, states.get(job.job_id), contents))


def ulid(job_id: str) -> str:
    """The id as the store has it. Raises JobNotFound for what is no ULID."""
    # Crockford's letters are the same in either case.
    if not _JOB_ID.fullmatch(job_id.upper()):
        raise JobNotFound(job_id)
    return job_id.upper()


def found(job_id: str, job: Job | Tombstone | None) -> Job:
    """The job that the store found. Raises JobNotFound or JobGone."""
    if job is None:
        raise JobNotFound(job_id)
    if isinstance(job, Tombstone):
        raise JobGone(job.job_id, views.gravestone(job))
    return job
