"""What the writer does to jobs: one function for each method of the store that changes something.

Each runs in the writer's thread, inside a transaction.
"""

from collections.abc import Callable, Collection
from functools import partial

from attrs import define, evolve, field

from foreman.errors import JobUnfinished, QueueFull
from foreman.jobs import rules
from foreman.jobs.lines import recount
from foreman.jobs.model import (
    ENDED,
    FINISHES,
    PIECE_BYTES,
    WAITING,
    Claimed,
    Fence,
    Finish,
    Finished,
    Job,
    LineKey,
    Status,
    Submission,
    Tombstone,
    Transition,
    Turnover,
)
from foreman.jobs.queries import changed, rows
from foreman.jobs.records import Record, insert, read_record, read_records, read_tombstone, save
from foreman.jobs.writer import Transaction


@define
class Callbacks:
    """Who is told in the reactor's thread after the commit; the store's own attributes stand behind them."""

    cancel_requested: Callable[[str], None]
    due: Callable[[float], None]


@define
class Changes:
    """The changes of one life of the database."""

    epoch: int
    _max_interruptions: int
    _queue_limit: int
    _callbacks: Callbacks
    # The data_version at the last count of what waits: it changes when another program has written.
    _counted_at: int | None = field(default=None, init=False)

    def submit(self, submission: Submission, now: float, transaction: Transaction) -> Job:
        """A new job with its body."""
        self._check_room(transaction)
        status, since = rules.beginning(submission, now)
        record = insert(transaction, submission, status, since)
        for number, start in enumerate(range(0, len(submission.body), PIECE_BYTES)):
            _put(transaction, record.seq, 0, "", number, submission.body[start : start + PIECE_BYTES])
        self._announce(transaction, record.job)
        return record.job

    def claim(
        self,
        job_id: str,
        finish: Finish | None,
        offered: Collection[LineKey],
        now: float,
        transaction: Transaction,
    ) -> Turnover:
        """Finish one run, and begin another. `offered` is the lines of which the job is the head, as told."""
        finished = None if finish is None else self.finish(finish, now, transaction)
        record = read_record(transaction.connection, job_id)
        if record is None and offered:
            recount(transaction.connection)  # it was deleted by hand, with sqlite3
        if record is None or record.job.status is not Status.QUEUED or record.job.not_before is not None:
            # If it was changed by hand, it would be offered and claimed again without end.
            transaction.touched.update(offered)
            return Turnover(None, finished)
        if rules.too_late(record.job, now):
            save(transaction, record, rules.ended(record, Transition.EXPIRED, now), Transition.EXPIRED, now)
            return Turnover(None, finished)
        running = rules.claimed(record, now, self.epoch)
        running = save(transaction, record, running, Transition.CLAIMED, now)
        body = b"".join(data for (data,) in rows(transaction.connection, "body", {"seq": record.seq}))
        return Turnover(Claimed(running.job, body, Fence(job_id, self.epoch, running.run)), finished)

    def finish(self, finish: Finish, now: float, transaction: Transaction) -> Finished:
        """End a run, if it is still the job's."""
        if finish.transition not in FINISHES:
            raise ValueError(f"a run cannot end as {finish.transition.value}")
        fence = finish.fence
        record = read_record(transaction.connection, fence.job_id)
        if record is None:
            return Finished(None, False)
        if record.job.status is not Status.RUNNING or (record.epoch, record.run) != (fence.epoch, fence.run):
            return Finished(record.job, False)
        return Finished(self._end_run(transaction, record, finish, now), True)

    def cancel(self, job_id: str, now: float, transaction: Transaction) -> Job | Tombstone | None:
        """Cancel what waits; ask for it of what runs."""
        record = read_record(transaction.connection, job_id)
        if record is None:
            return read_tombstone(transaction.connection, job_id)
        if record.job.status in WAITING:
            cancelled = rules.cancelled(record, now)
            return save(transaction, record, cancelled, Transition.CANCELLED, now).job
        if record.job.status is Status.RUNNING and record.job.cancel_requested_at is None:
            changed(transaction.connection, "job_request_cancel", {"seq": record.seq, "now": now})
            transaction.notices.append(partial(self._callbacks.cancel_requested, job_id))
            return evolve(record.job, cancel_requested_at=now)
        return record.job

    def retry(self, job_id: str, now: float, transaction: Transaction) -> Job | Tombstone | None:
        """Queue an ended job again."""
        record = read_record(transaction.connection, job_id)
        if record is None:
            return read_tombstone(transaction.connection, job_id)
        if record.job.status not in ENDED:
            raise JobUnfinished(job_id, record.job.status.value, "run again")
        self._check_room(transaction)
        changed(transaction.connection, "artifacts_drop", {"seq": record.seq})
        changed(transaction.connection, "discard_outputs", {"seq": record.seq})
        job = save(transaction, record, rules.requeued(record, now), Transition.REQUEUED, now).job
        self._announce(transaction, job)
        return job

    def recover(self, now: float, transaction: Transaction) -> int:
        """Queue the orphans of earlier lives again."""
        orphans = rows(transaction.connection, "jobs_orphaned", {"epoch": self.epoch})
        for record in read_records(transaction.connection, orphans):
            fence = Fence(record.job.job_id, record.epoch or 0, record.run)
            self._end_run(transaction, record, Finish(fence, Transition.INTERRUPTED), now)
        return len(orphans)

    def put_piece(self, fence: Fence, name: str, number: int, data: bytes, transaction: Transaction) -> bool:
        """One piece of an artifact of a running job."""
        found = rows(
            transaction.connection,
            "running_seq",
            {"job_id": fence.job_id, "epoch": fence.epoch, "run": fence.run},
        )
        for (seq,) in found:
            _put(transaction, seq, fence.run, name, number, data)
        return bool(found)

    def _end_run(self, transaction: Transaction, record: Record, finish: Finish, now: float) -> Job:
        transition, after = rules.finished(record, finish, now, self._max_interruptions)
        after = save(transaction, record, after, transition, now)
        if not after.job.status.ended:
            changed(transaction.connection, "discard_run", {"seq": record.seq, "run": record.run})
            self._announce(transaction, after.job)
        else:
            for piece in finish.pieces:
                _put(transaction, record.seq, record.run, piece.name, piece.number, piece.data)
        for position, artifact in enumerate(after.job.artifacts):
            changed(
                transaction.connection,
                "artifact_insert",
                {
                    "seq": record.seq,
                    "name": artifact.name,
                    "position": position,
                    "run": record.run,
                    "content_type": artifact.content_type,
                    "size": artifact.size,
                    "sha256": artifact.sha256,
                },
            )
        return after.job

    def _check_room(self, transaction: Transaction) -> None:
        """Called within the transaction that adds a job: the count is exact, however many come at once."""
        connection = transaction.connection
        found = rows(connection, "waiting")
        if found and found[0][0] < self._queue_limit:
            return
        # When it is full is when somebody clears it by hand, with sqlite3. 100,000 are counted in 13 ms: too
        # long for each refusal, so only after another program has written.
        ((version,),) = connection.execute("PRAGMA data_version").fetchall()
        if (found and version == self._counted_at) or recount(connection) >= self._queue_limit:
            self._counted_at = version
            raise QueueFull(self._queue_limit)

    def _announce(self, transaction: Transaction, job: Job) -> None:
        """Say when something will be due for a job that waits."""
        moments = [job.not_before]
        if job.started_at is None:
            moments.append(job.start_deadline)
        if job.status is Status.SCHEDULED:
            moments.append(job.run_at)
        given = [moment for moment in moments if moment is not None]
        if given:
            transaction.notices.append(partial(self._callbacks.due, min(given)))


def expire_some(now: float, limit: int, transaction: Transaction) -> int:
    """Expire jobs that were not started in time. Returns how many, at most `limit`."""
    found = rows(transaction.connection, "jobs_expired", {"now": now, "limit": limit})
    for record in read_records(transaction.connection, found):
        save(transaction, record, rules.ended(record, Transition.EXPIRED, now), Transition.EXPIRED, now)
    return len(found)


def release_some(now: float, limit: int, transaction: Transaction) -> int:
    """Let jobs wait in their lines whose `run_at` came, or whose backoff is over. Returns how many."""
    found = rows(transaction.connection, "jobs_to_release", {"now": now, "limit": limit})
    for record in read_records(transaction.connection, found):
        save(transaction, record, rules.released(record), Transition.RELEASED, now)
    ended = rows(transaction.connection, "backoffs_end", {"now": now, "limit": limit})
    for takes_turn, model, option_key in ended:
        transaction.touched.add(LineKey(model, option_key, bool(takes_turn)))
    return max(len(found), len(ended))


def next_due(transaction: Transaction) -> float | None:
    """The next moment at which something is due."""
    ((moment,),) = rows(transaction.connection, "next_due")
    return None if moment is None else float(moment)


def _put(transaction: Transaction, seq: int, run: int, name: str, number: int, data: bytes) -> None:
    values = {"seq": seq, "run": run, "name": name, "number": number, "data": data}
    changed(transaction.connection, "piece_put", values)
