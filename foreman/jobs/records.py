"""Jobs as rows: a record is a job with the columns that only the store knows, and every move rewrites it."""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import asdict, evolve, frozen
from ulid import ULID

from foreman.jobs.lines import line_names
from foreman.jobs.model import (
    TRANSITIONS,
    Artifact,
    AttemptError,
    Event,
    Job,
    LineKey,
    Metrics,
    Status,
    Submission,
    Tombstone,
    Transition,
)
from foreman.jobs.queries import changed, rows
from foreman.jobs.writer import Transaction


@frozen
class Record:
    """A job and its place (`seq`), the number of its latest run, and the epoch in which that was claimed.

    `start_within` is how many seconds it had to start when it was handed in.
    """

    job: Job
    seq: int
    run: int
    epoch: int | None
    start_within: float | None


def read_record(connection: sqlite3.Connection, job_id: str) -> Record | None:
    """The job of this id, with its artifacts."""
    found = read_records(connection, rows(connection, "job_by_id", {"job_id": job_id}))
    return found[0] if found else None


def read_records(connection: sqlite3.Connection, found: Iterable[Any]) -> list[Record]:
    """The records of some rows of `job`, with their artifacts."""
    records = [_record(row) for row in found]
    seqs = [record.seq for record in records if record.job.status.ended]
    if not seqs:
        return records  # a job has artifacts when it has ended, not before
    artifacts: dict[int, list[Artifact]] = {}
    for seq, *facts in rows(connection, "artifacts_of", {"seqs": json.dumps(seqs)}):
        artifacts.setdefault(seq, []).append(Artifact(*facts))
    return [
        evolve(record, job=evolve(record.job, artifacts=tuple(artifacts.get(record.seq, ()))))
        for record in records
    ]


def read_tombstone(connection: sqlite3.Connection, job_id: str) -> Tombstone | None:
    """What is left of the job of this id."""
    found = rows(connection, "tombstone_by_id", {"job_id": job_id})
    return tombstone(found[0]) if found else None


def tombstone(row: Any) -> Tombstone:
    """The tombstone of a row."""
    job_id, status, created_at, finished_at = row
    return Tombstone(job_id, Status(status), created_at, finished_at)


def insert(transaction: Transaction, submission: Submission, status: Status, since: float) -> Record:
    """A new job and its first event, without its body."""
    deadline = submission.start_deadline
    within = None if deadline is None else deadline - since
    (row,) = rows(
        transaction.connection,
        "job_insert",
        {
            "job_id": submission.job_id,
            "status": status.value,
            "endpoint": submission.endpoint,
            **line_names(submission.line),
            "priority": submission.priority,
            "metadata": _dump(submission.metadata),
            "timeout": submission.timeout,
            "start_within": within,
            "start_deadline": submission.start_deadline,
            "max_attempts": submission.max_attempts,
            "on_interrupt": submission.on_interrupt,
            "transcript": submission.transcript,
            "webhook_url": submission.webhook_url,
            "webhook_events": None if submission.webhook_events is None else _dump(submission.webhook_events),
            "created_at": submission.created_at,
            "run_at": submission.run_at,
            "waiting_since": since,
        },
    )
    record = _record(row)
    _emit(transaction, record.job, None, submission.created_at)
    transaction.touched.add(submission.line)
    return record


def save(transaction: Transaction, old: Record, new: Record, transition: Transition, now: float) -> Record:
    """
    Write what a transition made of a record, and its event.

    Raises RuntimeError when the table does not allow it: that is a mistake in foreman.
    """
    job = evolve(new.job, sequence=old.job.sequence + 1)
    new = evolve(new, job=job)
    count = changed(
        transaction.connection,
        "job_move",
        {
            "seq": old.seq,
            "allowed": names_of(TRANSITIONS[transition].allowed),
            "old_run": old.run,
            "old_epoch": old.epoch,
            "status": job.status.value,
            "start_deadline": job.start_deadline,
            "not_before": job.not_before,
            "waiting_since": job.waiting_since,
            "started_at": job.started_at,
            "finished_at": job.finished_at,
            "cancel_requested_at": job.cancel_requested_at,
            "attempt": job.attempt,
            "interruptions": job.interruptions,
            "run": new.run,
            "epoch": new.epoch,
            "sequence": job.sequence,
            "errors": _dump([asdict(error) for error in job.errors]),
            "metrics": None if job.metrics is None else _dump(asdict(job.metrics)),
        },
    )
    if count != 1:
        raise RuntimeError(f"job {job.job_id} is {old.job.status.value}, and cannot be {transition.value}")
    _emit(transaction, job, old.job.status, now)
    if Status.QUEUED in (old.job.status, job.status):
        transaction.touched.add(job.line)
    return new


def read_events(connection: sqlite3.Connection, job_id: str) -> list[Event]:
    """The events of a job, oldest first."""
    return [_event(*row) for row in rows(connection, "events_of", {"job_id": job_id})]


def read_event(connection: sqlite3.Connection, job_id: str, sequence: int) -> Event:
    """One event of a job."""
    (row,) = rows(connection, "event_by_sequence", {"job_id": job_id, "sequence": sequence})
    return _event(*row)


def _event(
    event_id: str, job_id: str, sequence: int, status: str, previous: str | None, at: float, facts: str
) -> Event:
    before = None if previous is None else Status(previous)
    return Event(event_id, job_id, sequence, Status(status), before, at, json.loads(facts))


def names_of(statuses: Iterable[Status]) -> str:
    """Some states as a query wants them: a JSON list."""
    return json.dumps([status.value for status in statuses])


def _emit(transaction: Transaction, job: Job, previous: Status | None, now: float) -> None:
    facts: dict[str, Any] = {
        "model": job.model,
        "endpoint": job.endpoint,
        "attempt": job.attempt,
        "metadata": dict(job.metadata),
        "webhook_url": job.webhook_url,
        "error": None if job.error is None else asdict(job.error),
        "metrics": None if job.metrics is None else asdict(job.metrics),
    }
    event = Event(str(ULID.from_timestamp(now)), job.job_id, job.sequence, job.status, previous, now, facts)
    changed(
        transaction.connection,
        "event_insert",
        {
            "event_id": event.event_id,
            "job_id": event.job_id,
            "sequence": event.sequence,
            "status": event.status.value,
            "previous_status": None if previous is None else previous.value,
            "at": event.at,
            "facts": _dump(facts),
        },
    )
    transaction.emit(transaction, job, event)


def _dump(value: Mapping[str, Any] | Sequence[Any]) -> str:
    # In ASCII: a lone surrogate, which JSON can hold, is no text for SQLite.
    return json.dumps(value, separators=(",", ":"))


def _record(row: Any) -> Record:
    job = Job(
        job_id=row["id"],
        status=Status(row["status"]),
        endpoint=row["endpoint"],
        line=LineKey(row["model"], row["option_key"], bool(row["takes_turn"])),
        priority=row["priority"],
        metadata=json.loads(row["metadata"]),
        timeout=row["timeout"],
        start_deadline=row["start_deadline"],
        max_attempts=row["max_attempts"],
        on_interrupt=row["on_interrupt"],
        transcript=bool(row["transcript"]),
        webhook_url=row["webhook_url"],
        webhook_events=None if row["webhook_events"] is None else tuple(json.loads(row["webhook_events"])),
        attempt=row["attempt"],
        interruptions=row["interruptions"],
        sequence=row["sequence"],
        created_at=row["created_at"],
        run_at=row["run_at"],
        not_before=row["not_before"],
        waiting_since=row["waiting_since"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        cancel_requested_at=row["cancel_requested_at"],
        errors=tuple(AttemptError(**error) for error in json.loads(row["errors"])),
        metrics=None if row["metrics"] is None else Metrics(**json.loads(row["metrics"])),
        artifacts=(),
    )
    return Record(job, row["seq"], row["run"], row["epoch"], row["start_within"])
