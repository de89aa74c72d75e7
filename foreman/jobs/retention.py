"""Ended jobs become tombstones; what nobody sees any more is removed step by step.

A job vanishes at once, and its bytes go afterwards: so nobody meets half a job, and no step is long.
"""

import sqlite3
from collections.abc import Mapping
from time import monotonic

from foreman.errors import JobUnfinished
from foreman.jobs.model import ENDED, Retention, Status, Tombstone
from foreman.jobs.queries import changed, rows
from foreman.jobs.records import names_of, read_record, read_tombstone, tombstone
from foreman.jobs.writer import Transaction

STEP_SECONDS = 0.01
"""
A step ends after this time, or with its batch. With its commit it took 16 ms at the median, 40 at p99.

The clock is looked at after a removal: the search for the first may take longer than a step, on a cold disk,
and a step that removed nothing would be taken for the last.
"""

_BATCH = 200  # rows
_PIECES = 2  # of 256 KiB, at a time: 128 pages are freed
_VACUUM_PAGES = 64
_FREE_PAGES = 1024  # are kept: 4 MiB, which the next jobs will need anyhow


def delete(job_id: str, now: float, transaction: Transaction) -> tuple[Tombstone | None, int | None]:
    """Turn an ended job into a tombstone. Returns it, and the job's number if its bytes are still there."""
    record = read_record(transaction.connection, job_id)
    if record is None:
        return read_tombstone(transaction.connection, job_id), None
    if not record.job.status.ended:
        raise JobUnfinished(job_id, record.job.status.value, "deleted")
    return _bury(transaction.connection, record.seq, now, has_events=True), record.seq


def bury_some(now: float, retention: Retention, transaction: Transaction) -> int:
    """Turn jobs whose time is over into tombstones. Returns how many; 0 when there is none left."""
    started, count = monotonic(), 0
    for status, until in _cutoffs(now, retention).items():
        values = {"status": status.value, "until": until, "limit": _BATCH}
        for seq, job_id in rows(transaction.connection, "jobs_past_retention", values):
            changed(transaction.connection, "events_drop", {"job_id": job_id})
            _bury(transaction.connection, seq, now, has_events=False)
            count += 1
            if monotonic() - started >= STEP_SECONDS:
                return count
    return count


def sweep_some(seq: int | None, transaction: Transaction) -> bool:
    """Remove some bytes that nobody sees, of one job or of all. False when there is nothing left."""
    started = monotonic()
    while True:
        name = "garbage_runs" if seq is None else "garbage_runs_of"
        found = rows(transaction.connection, name, {"seq": seq})
        if not found:
            return False
        place = {"seq": found[0][0], "run": found[0][1]}
        if changed(transaction.connection, "garbage_pieces_drop", {**place, "limit": _PIECES}) < _PIECES:
            changed(transaction.connection, "garbage_run_done", place)
        if monotonic() - started >= STEP_SECONDS:
            return True


def forget_some(now: float, retention: Retention, transaction: Transaction) -> bool:
    """Remove old tombstones, and old events of jobs that were deleted. False when there is nothing left."""
    connection, started, count = transaction.connection, monotonic(), 0
    for status, until in _cutoffs(now, retention).items():
        values = {"status": status.value, "until": until, "limit": _BATCH}
        for (job_id,) in rows(connection, "tombstones_with_old_events", values):
            changed(connection, "events_drop", {"job_id": job_id})
            changed(connection, "tombstone_events_dropped", {"job_id": job_id})
            count += 1
            if monotonic() - started >= STEP_SECONDS:
                return True
    old = rows(connection, "tombstones_old", {"until": now - retention.tombstone, "limit": _BATCH})
    for (job_id,) in old:
        changed(connection, "events_drop", {"job_id": job_id})
        changed(connection, "tombstone_drop", {"job_id": job_id})
        count += 1
        if monotonic() - started >= STEP_SECONDS:
            return True
    return count > 0


def shrink_some(transaction: Transaction) -> bool:
    """Give some free pages back to the file system. False when there are few left."""
    started, before = monotonic(), _free_pages(transaction.connection)
    while before > _FREE_PAGES:
        transaction.connection.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
        after = _free_pages(transaction.connection)
        if after >= before:
            return False
        before = after
        if monotonic() - started >= STEP_SECONDS:
            return True
    return False


def _bury(connection: sqlite3.Connection, seq: int, now: float, has_events: bool) -> Tombstone:
    values = {"seq": seq, "now": now, "has_events": has_events, "allowed": names_of(ENDED)}
    (row,) = rows(connection, "tombstone_insert", values)
    changed(connection, "discard_all", {"seq": seq})
    changed(connection, "job_drop", values)
    return tombstone(row)


def _cutoffs(now: float, retention: Retention) -> Mapping[Status, float]:
    """A job of this state is removed when it ended at this moment or before."""
    return {
        status: now - (retention.succeeded if status is Status.SUCCEEDED else retention.failed)
        for status in sorted(ENDED, key=lambda status: status.value)
    }


def _free_pages(connection: sqlite3.Connection) -> int:
    ((count,),) = connection.execute("PRAGMA freelist_count").fetchall()
    return int(count)
