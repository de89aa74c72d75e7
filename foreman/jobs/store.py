"""The store of jobs on SQLite: ``foreman.jobs.interface`` over one writer and a few readers."""

import base64
import binascii
import math
import re
import sqlite3
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred

from foreman.errors import BadCursor, DatabaseUnavailable
from foreman.jobs import retention as keep
from foreman.jobs.changes import Callbacks, Changes, expire_some, next_due, release_some
from foreman.jobs.database import Pools, explained
from foreman.jobs.delivery import Compose
from foreman.jobs.estimates import put_estimates, read_estimates
from foreman.jobs.lines import ahead, recount, views
from foreman.jobs.model import (
    Artifact,
    Estimate,
    Event,
    Fence,
    Finish,
    Finished,
    Job,
    LineKey,
    LineView,
    Page,
    Pause,
    Retention,
    Status,
    Submission,
    Tombstone,
    Turnover,
)
from foreman.jobs.outbox import SqliteOutbox
from foreman.jobs.pauses import drop_pauses, put_pauses, read_ended_pauses, read_pauses
from foreman.jobs.queries import rows
from foreman.jobs.records import read_events, read_record, read_records, read_tombstone
from foreman.jobs.shield import shield
from foreman.jobs.writer import Transaction, Writer

T = TypeVar("T")

_ULID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}", re.ASCII)
_NEWEST = "~"  # greater than every id
_DUE_BATCH = 200


def _nobody(_: Any) -> None:
    """Who listens until somebody does."""


@define(eq=False)
class SqliteStore:
    """
    A `JobStore`. `wall_clock` gives epoch seconds. Call `open` first, and `close` last.

    `compose` makes the bodies of webhooks; `owner_url` is told of jobs without a URL of their own.
    `queue_limit` is how many jobs may wait.

    Times of submissions are the caller's; all others are read from the clock when a method is called.
    """

    _path: str
    _pools: Pools
    _wall_clock: Callable[[], float]
    _compose: Compose
    _owner_url: str | None = None
    _max_interruptions: int = 10
    _queue_limit: int = 100_000
    on_line_change: Callable[[LineView], None] = _nobody
    on_cancel_requested: Callable[[str], None] = _nobody
    on_due: Callable[[float], None] = _nobody
    outbox: SqliteOutbox = field(init=False)
    _writer: Writer = field(init=False)
    _opened: Changes | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)
    _heads: dict[LineKey, str] = field(factory=dict, init=False)  # as they were told

    def __attrs_post_init__(self) -> None:
        self.outbox = SqliteOutbox(self._write, self._read, self._compose, self._owner_url)
        self._writer = Writer(self._pools.writer, self._path, self._line_changed, self.outbox.emit)

    async def open(self) -> None:
        """Begin a new life of the database. What ran in an earlier one is an orphan: see `recover`."""
        epoch = await self._write(partial(_begin_life, self._wall_clock()))
        callbacks = Callbacks(
            lambda job_id: self.on_cancel_requested(job_id), lambda moment: self.on_due(moment)
        )
        self._opened = Changes(epoch, self._max_interruptions, self._queue_limit, callbacks)

    async def close(self, limit: float = math.inf) -> None:
        """
        Wait for what is under way, and close the database. Afterwards everything is refused.

        What is not written within `limit` seconds fails. It may take longer only by what the disk does.
        """
        self._closed = True
        await self._writer.close(limit)
        self._pools.close()

    @property
    def epoch(self) -> int:
        """Which life of the database this is."""
        return self._changes.epoch

    @property
    def commits(self) -> int:
        """How many transactions the writer has committed."""
        return self._writer.commits

    async def submit(self, submission: Submission) -> Job:
        return await self._write(partial(self._changes.submit, submission, self._wall_clock()))

    async def get(self, job_id: str) -> Job | Tombstone | None:
        def read(connection: sqlite3.Connection) -> Job | Tombstone | None:
            record = read_record(connection, job_id)
            return read_tombstone(connection, job_id) if record is None else record.job

        return await self._read(read)

    async def list(
        self,
        status: Status | None = None,
        model: str | None = None,
        limit: int = 50,
        after: str | None = None,
    ) -> Page:
        values = {
            "after": _NEWEST if after is None else _parse_cursor(after),
            "limit": limit + 1,
            "model": model,
        }
        statuses = [status] if status else list(Status)

        def read(connection: sqlite3.Connection) -> Page:
            if model is None:
                name = "list_by_status" if status else "list_all"
                found = rows(connection, name, {**values, "status": status.value if status else None})
            else:
                # One look at the index for each state: an index without the state could not serve both.
                each = [rows(connection, "list_by_model", {**values, "status": s.value}) for s in statuses]
                found = sorted(
                    (row for some in each for row in some), key=lambda row: row["id"], reverse=True
                )
            jobs = tuple(record.job for record in read_records(connection, found[:limit]))
            return Page(jobs, _make_cursor(jobs[-1].job_id) if len(found) > limit else None)

        return await self._read(read)

    async def ahead(self, job_id: str, siblings: Collection[LineKey] = ()) -> int | None:
        return await self._read(lambda connection: ahead(connection, job_id, siblings))

    async def claim(self, job_id: str, finish: Finish | None = None) -> Turnover:
        offered = [line for line, head in self._heads.items() if head == job_id]
        return await self._write(partial(self._changes.claim, job_id, finish, offered, self._wall_clock()))

    async def finish(self, finish: Finish) -> Finished:
        return await self._write(partial(self._changes.finish, finish, self._wall_clock()))

    async def cancel(self, job_id: str) -> Job | Tombstone | None:
        return await self._write(partial(self._changes.cancel, job_id, self._wall_clock()))

    async def retry(self, job_id: str) -> Job | Tombstone | None:
        return await self._write(partial(self._changes.retry, job_id, self._wall_clock()))

    async def delete(self, job_id: str) -> Tombstone | None:
        tombstone, seq = await self._write(partial(keep.delete, job_id, self._wall_clock()))
        while seq is not None and await self._write(partial(keep.sweep_some, seq)):
            pass
        return tombstone

    async def recover(self) -> int:
        return await self._write(partial(self._changes.recover, self._wall_clock()))

    async def lines(self) -> Sequence[LineView]:
        # In the writer: a reader could miss a change whose callback has run already.
        found = await self._write(lambda transaction: views(transaction.connection))
        self._heads = {view.line: view.head.job_id for view in found if view.head is not None}
        return found

    async def due(self, now: float) -> float | None:
        while await self._write(partial(expire_some, now, _DUE_BATCH)) == _DUE_BATCH:
            pass
        while await self._write(partial(release_some, now, _DUE_BATCH)) == _DUE_BATCH:
            pass
        return await self._write(next_due)

    async def put_artifact_piece(self, fence: Fence, name: str, number: int, data: bytes) -> bool:
        return await self._write(partial(self._changes.put_piece, fence, name, number, data))

    async def artifact(self, job_id: str, name: str) -> Artifact | None:
        values = {"job_id": job_id, "name": name}

        def read(connection: sqlite3.Connection) -> Artifact | None:
            for row in rows(connection, "artifact_by_name", values):
                return Artifact(*row)
            return None

        return await self._read(read)

    async def piece(self, job_id: str, name: str, number: int) -> bytes | None:
        values = {"job_id": job_id, "name": name, "number": number}

        def read(connection: sqlite3.Connection) -> bytes | None:
            for (data,) in rows(connection, "piece_by_number", values):
                return bytes(data)
            return None

        return await self._read(read)

    async def events(self, job_id: str) -> Sequence[Event]:
        return await self._read(lambda connection: read_events(connection, job_id))

    async def put_estimates(self, estimates: Sequence[Estimate]) -> None:
        await self._write(partial(put_estimates, estimates, self._wall_clock()))

    async def estimates(self) -> Sequence[Estimate]:
        return await self._read(read_estimates)

    async def put_pauses(self, pauses: Sequence[Pause]) -> None:
        await self._write(partial(put_pauses, pauses))

    async def drop_pauses(self, lanes: Collection[str]) -> None:
        await self._write(partial(drop_pauses, lanes, self._wall_clock()))

    async def pauses(self) -> Sequence[Pause]:
        return await self._read(partial(read_pauses, self._wall_clock()))

    async def ended_pauses(self) -> Sequence[Pause]:
        return await self._read(partial(read_ended_pauses, self._wall_clock()))

    async def prune(self, now: float, retention: Retention) -> int:
        removed = 0
        while count := await self._write(partial(keep.bury_some, now, retention)):
            removed += count
        while await self._write(partial(keep.sweep_some, None)):
            pass
        while await self._write(partial(keep.forget_some, now, retention)):
            pass
        while await self._write(keep.shrink_some):
            pass
        return removed

    @property
    def _changes(self) -> Changes:
        if self._opened is None:
            raise RuntimeError("the store is not open")
        return self._opened

    def _line_changed(self, view: LineView) -> None:
        if view.head is None:
            self._heads.pop(view.line, None)
        else:
            self._heads[view.line] = view.head.job_id
        self.on_line_change(view)

    def _write(self, func: Callable[[Transaction], T]) -> "Deferred[T]":
        self._check()
        return self._writer.write(func)

    def _read(self, func: Callable[[sqlite3.Connection], T]) -> "Deferred[T]":
        """Run `func` on one state of the database, beside the writer."""
        self._check()
        done: Deferred[T] = self._pools.readers.runWithConnection(_snapshot, func)
        done.addErrback(explained, self._path)
        return shield(done)

    def _check(self) -> None:
        if self._closed:
            raise DatabaseUnavailable(self._path, "foreman is stopping")


def _begin_life(now: float, transaction: Transaction) -> int:
    """The number of a new life. Its counters are right, whatever was done by hand meanwhile."""
    recount(transaction.connection)
    return int(rows(transaction.connection, "open_epoch", {"now": now})[0][0])


def _snapshot(connection: Any, func: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN")
    try:
        return func(connection)
    finally:
        connection.execute("ROLLBACK")


def _make_cursor(job_id: str) -> str:
    return base64.urlsafe_b64encode(job_id.encode()).decode().rstrip("=")


def _parse_cursor(text: str) -> str:
    try:
        job_id = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
    except (ValueError, binascii.Error):
        raise BadCursor(text) from None
    if not _ULID.fullmatch(job_id):
        raise BadCursor(text)
    return job_id
