"""The store of jobs, as the rest of foreman sees it. ``tests/contract_store.py`` says what it promises."""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

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


class JobStore(Protocol):
    """
    Jobs on disk. When a method's result is there, what it did is synced.

    Cancelling an await does not undo the work, and ends only when the work is done. Any method raises
    DatabaseFull or DatabaseUnavailable, after which it changed nothing; later calls work again by themselves.

    The three callbacks run synchronously in the reactor's thread after the commit, in the order of the
    commits, and before the results of the methods are there.
    """

    on_line_change: Callable[[LineView], None]
    """A line has another head, oldest job or count. So a view that began with `lines` stays exact."""

    on_cancel_requested: Callable[[str], None]
    """The running job of this id is to be cancelled."""

    on_due: Callable[[float], None]
    """Something will be due at this moment: a backoff ends, a deadline passes. Earlier ones still stand."""

    @property
    def epoch(self) -> int:
        """Which life of the database this is."""
        ...

    async def submit(self, submission: Submission) -> Job:
        """
        Keep a job. It is `scheduled` when its `run_at` is still to come, else `queued`.

        Raises QueueFull when as many jobs wait as may do.
        """
        ...

    async def get(self, job_id: str) -> Job | Tombstone | None:
        """A job as it is, what is left of it, or None when there never was one, or long ago."""
        ...

    async def list(
        self,
        status: Status | None = None,
        model: str | None = None,
        limit: int = 50,
        after: str | None = None,
    ) -> Page:
        """Jobs, newest first. `after` is the cursor of an earlier page; raises BadCursor for another text."""
        ...

    async def ahead(self, job_id: str, siblings: Collection[LineKey] = ()) -> int | None:
        """
        How many jobs run before this one in its line, and in its siblings, which are one line for the turn.

        None when it does not wait in a line.
        """
        ...

    async def claim(self, job_id: str, finish: Finish | None = None) -> Turnover:
        """
        Finish the old run, if there is one, and claim a waiting job, in one transaction.

        Nothing is claimed when the job does not wait any more, or its deadline to start passed (it is
        `expired` then). The attempt is raised.
        """
        ...

    async def finish(self, finish: Finish) -> Finished:
        """
        End a run. One that is not the job's running one changes nothing, and says so.

        Writes `finish.pieces` in the same transaction (so does `claim`).
        """
        ...

    async def cancel(self, job_id: str) -> Job | Tombstone | None:
        """
        Cancel: at once if it waits; if it runs, ask for it; if it has ended, leave it as it is.

        Twice is the same as once.
        """
        ...

    async def retry(self, job_id: str) -> Job | Tombstone | None:
        """
        Queue an ended job again: the same id and history, all attempts, no artifacts.

        Raises JobUnfinished, or QueueFull as `submit` does.
        """
        ...

    async def delete(self, job_id: str) -> Tombstone | None:
        """
        Remove an ended job, its payloads now; a tombstone stays. None when there is no such job.

        Raises JobUnfinished.
        """
        ...

    async def recover(self) -> int:
        """
        Queue again what ran when foreman died: at start, before anything else. Returns how many there were.

        Such a job is `cancelled` if that was asked, or `failed` after too many interruptions, or if it must
        not run again.
        """
        ...

    async def lines(self) -> Sequence[LineView]:
        """The lines in which jobs wait: at start, before anybody else writes."""
        ...

    async def due(self, now: float) -> float | None:
        """Expire and release what is due. Returns the next moment at which something will be, if any."""
        ...

    async def put_artifact_piece(self, fence: Fence, name: str, number: int, data: bytes) -> bool:
        """
        Write one piece of an artifact of the running job: all of `PIECE_BYTES`, but the last may be smaller.

        Nobody sees it before the finish. False when the run is no longer the job's running one.
        """
        ...

    async def artifact(self, job_id: str, name: str) -> Artifact | None:
        """The facts of one artifact."""
        ...

    async def piece(self, job_id: str, name: str, number: int) -> bytes | None:
        """One piece of an artifact; None when there is none, or none any more."""
        ...

    async def events(self, job_id: str) -> Sequence[Event]:
        """What happened to a job, oldest first."""
        ...

    async def put_estimates(self, estimates: Sequence[Estimate]) -> None:
        """Keep estimates, each in the place of an earlier one of its subject; the oldest are forgotten."""
        ...

    async def estimates(self) -> Sequence[Estimate]:
        """All that are kept, the latest last."""
        ...

    async def put_pauses(self, pauses: Sequence[Pause]) -> None:
        """Keep pauses, each in the place of an earlier one of its lane."""
        ...

    async def drop_pauses(self, lanes: Collection[str]) -> None:
        """The lanes of these names are paused no more; nothing is said of those that were not."""
        ...

    async def pauses(self) -> Sequence[Pause]:
        """The pauses that are not over."""
        ...

    async def ended_pauses(self) -> Sequence[Pause]:
        """Pauses that were over within the last week, the oldest first; `until` is when that was."""
        ...

    async def prune(self, now: float, retention: Retention) -> int:
        """
        Turn ended jobs whose time is over into tombstones, free what is no longer seen, drop old tombstones.

        Works in small transactions. Returns how many jobs it removed.
        """
        ...
