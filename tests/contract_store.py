"""
What a store of jobs promises, whatever database is behind it.

A test module gives the fixture ``life`` (:class:`Life`) and subclasses the contract.
"""

import hashlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from attrs import define, evolve, field
from twisted.internet.defer import Deferred, gatherResults
from ulid import ULID

from foreman.errors import BadCursor, JobUnfinished, QueueFull
from foreman.jobs.model import (
    PIECE_BYTES,
    Artifact,
    AttemptError,
    Claimed,
    Estimate,
    Fence,
    Finish,
    Job,
    LineKey,
    LineView,
    Metrics,
    Pause,
    Piece,
    Retention,
    Status,
    Submission,
    Tombstone,
    Transition,
)

HOUR = 3600.0
FOREVER = Retention(1e12, 1e12, 1e12)


@define
class Life:
    """
    A store that is open, and what it told. ``crash`` opens the database anew, as after a kill; ``now`` is
    the wall clock.
    """

    begin: Callable[["Life"], Awaitable[Any]]
    now: float = 1_800_000_000.0
    max_interruptions: int = 10
    queue_limit: int = 100_000
    store: Any = None
    views: dict[LineKey, LineView] = field(factory=dict)
    cancels: list[str] = field(factory=list)
    dues: list[float] = field(factory=list)
    deliveries_due: list[tuple[str, float]] = field(factory=list)
    _count: int = 0

    async def crash(self) -> int:
        """Another life begins. Returns how many orphans were recovered."""
        self.store = await self.begin(self)
        self.store.on_line_change = self._changed
        self.store.on_cancel_requested = self.cancels.append
        self.store.on_due = self.dues.append
        self.store.outbox.on_delivery_due = lambda name, moment: self.deliveries_due.append((name, moment))
        self.views = {view.line: view for view in await self.store.lines()}
        recovered: int = await self.store.recover()
        return recovered

    async def submit(self, model: str = "m", **values: Any) -> Job:
        """Submit a job; ids rise with each."""
        self._count += 1
        submission = Submission(
            job_id=str(ULID.from_timestamp(self.now + self._count)),
            endpoint="/api/chat",
            line=LineKey(model, values.pop("option_key", ""), values.pop("takes_turn", True)),
            body=values.pop("body", b'{"model":"m"}'),
            created_at=self.now,
            **values,
        )
        job: Job = await self.store.submit(submission)
        return job

    async def claim(self, job_id: str, finish: Finish | None = None) -> Claimed:
        """Claim a job that can be claimed."""
        claimed: Claimed | None = (await self.store.claim(job_id, finish)).claimed
        assert claimed is not None
        return claimed

    async def run(self, job_id: str, transition: Transition = Transition.SUCCEEDED, **values: Any) -> Job:
        """Claim a job, and finish it."""
        claimed = await self.claim(job_id)
        finished = await self.store.finish(Finish(claimed.fence, transition, **values))
        assert finished.changed
        job: Job = finished.job
        return job

    async def heads(self) -> dict[str, tuple[int, str, str]]:
        """For each model with a line: how many wait, the head, the oldest; as told, and as asked."""
        told = {line: view for line, view in self.views.items() if view.count}
        assert told == {view.line: view for view in await self.store.lines()}
        return {
            line.model: (view.count, view.head.job_id, view.oldest.job_id)
            for line, view in told.items()
            if view.head is not None and view.oldest is not None
        }

    def _changed(self, view: LineView) -> None:
        self.views[view.line] = view


def failure(attempt: int = 1, code: str = "target_failed") -> AttemptError:
    """An error of an attempt."""
    return AttemptError(attempt, 1.0, code, "the target broke off", 500, "oops")


def whole(name: str, content: bytes) -> tuple[Artifact, list[bytes]]:
    """An artifact and its pieces."""
    artifact = Artifact(name, "text/plain", len(content), hashlib.sha256(content).hexdigest())
    return artifact, [content[at : at + PIECE_BYTES] for at in range(0, len(content), PIECE_BYTES)]


def types(events: Iterator[Any]) -> list[str]:
    return [event.type for event in events]


class StoreContract:
    """All of it."""

    async def test_a_job_is_kept_as_it_was_handed_in(self, life: Life) -> None:
        """Every field of a submission is there in another life of the database."""
        job = await life.submit(
            priority=3,
            metadata={"ticket": "42", "odd": "\ud800"},
            timeout=60.0,
            start_deadline=life.now + 9,
            max_attempts=5,
            on_interrupt="fail",
            transcript=True,
            webhook_url="http://10.0.0.5/hook",
            webhook_events=("job.failed", "job.succeeded"),
            option_key="ctx=8192",
            takes_turn=False,
        )
        assert (job.status, job.attempt, job.sequence, job.waiting_since) == (
            Status.QUEUED, 0, 1, life.now,
        )  # fmt: skip
        assert job.metadata == {"ticket": "42", "odd": "\ud800"}
        assert (job.priority, job.timeout, job.start_deadline) == (3, 60.0, life.now + 9)
        assert (job.max_attempts, job.on_interrupt, job.transcript) == (5, "fail", True)
        assert (job.webhook_url, job.line) == ("http://10.0.0.5/hook", LineKey("m", "ctx=8192", False))
        assert job.webhook_events == ("job.failed", "job.succeeded")
        assert await life.crash() == 0
        assert await life.store.get(job.job_id) == job

    async def test_an_unknown_job(self, life: Life) -> None:
        """There is nothing to see and nothing to do."""
        store, nobody = life.store, "0" * 26
        assert await store.get(nobody) is None
        assert await store.cancel(nobody) is None
        assert await store.retry(nobody) is None
        assert await store.delete(nobody) is None
        assert await store.ahead(nobody) is None
        assert await store.artifact(nobody, "a") is None
        assert (await store.claim(nobody)).claimed is None
        assert (await store.finish(Finish(Fence(nobody, 1, 1), Transition.SUCCEEDED))).job is None

    async def test_an_id_is_used_once(self, life: Life) -> None:
        """A second job of one id is refused, and the first stays."""
        job = await life.submit()
        again = Submission(
            job_id=job.job_id, endpoint="/api/chat", line=job.line, body=b"other", created_at=0
        )
        with pytest.raises(Exception, match="UNIQUE"):
            await life.store.submit(again)
        assert (await life.claim(job.job_id)).body == b'{"model":"m"}'

    @pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
    async def test_a_body_comes_back_as_it_went_in(self, life: Life, size: int) -> None:
        """Whatever its length: it is stored in pieces."""
        body = bytes(index % 251 for index in range(size))
        job = await life.submit(body=body)
        assert (await life.claim(job.job_id)).body == body

    async def test_a_job_runs_and_succeeds(self, life: Life) -> None:
        """Claimed it is running; its finish carries metrics and artifacts; each step is an event."""
        job = await life.submit()
        life.now += 1
        claimed = await life.claim(job.job_id)
        assert (claimed.job.status, claimed.job.attempt) == (Status.RUNNING, 1)
        assert claimed.job.started_at == life.now
        assert claimed.fence == Fence(job.job_id, life.store.epoch, 1)
        assert await life.store.get(job.job_id) == claimed.job
        life.now += 2
        artifact, pieces = whole("content.txt", b"hello")
        finished = await life.store.finish(
            Finish(
                claimed.fence,
                Transition.SUCCEEDED,
                metrics=Metrics(queue_seconds=1.0, completion_tokens=2),
                artifacts=(artifact,),
                pieces=(Piece("content.txt", 0, pieces[0]),),
            )
        )
        assert finished.changed
        assert (finished.job.status, finished.job.finished_at) == (Status.SUCCEEDED, life.now)
        assert finished.job.metrics == Metrics(queue_seconds=1.0, completion_tokens=2)
        assert finished.job.artifacts == (artifact,)
        assert finished.job.error is None
        assert await life.store.get(job.job_id) == finished.job
        assert await life.store.artifact(job.job_id, "content.txt") == artifact
        assert await life.store.piece(job.job_id, "content.txt", 0) == b"hello"
        assert await life.store.piece(job.job_id, "content.txt", 1) is None
        events = await life.store.events(job.job_id)
        assert types(events) == ["job.queued", "job.running", "job.succeeded"]
        assert [event.sequence for event in events] == [1, 2, 3]
        assert [event.previous_status for event in events] == [None, Status.QUEUED, Status.RUNNING]
        assert [event.at for event in events] == [life.now - 3, life.now - 2, life.now]
        assert events[2].facts["metrics"]["completion_tokens"] == 2
        assert len({event.event_id for event in events}) == 3

    async def test_a_claim_takes_only_what_waits(self, life: Life) -> None:
        """A job is claimed once; not when it is cancelled, ended, in a backoff or scheduled."""
        running, cancelled, done, backoff = [await life.submit() for _ in range(4)]
        scheduled = await life.submit(run_at=life.now + 9)
        await life.claim(running.job_id)
        await life.store.cancel(cancelled.job_id)
        await life.run(done.job_id)
        await life.run(backoff.job_id, Transition.RETRIED, error=failure(), not_before=life.now + 5)
        for job in (running, cancelled, done, backoff, scheduled):
            before = await life.store.get(job.job_id)
            assert (await life.store.claim(job.job_id)).claimed is None
            assert await life.store.get(job.job_id) == before

    async def test_finish_and_claim_are_one_step(self, life: Life) -> None:
        """The finish stands, whether the claim finds its job waiting or not."""
        first, second, third = [await life.submit() for _ in range(3)]
        one = await life.claim(first.job_id)
        turnover = await life.store.claim(second.job_id, Finish(one.fence, Transition.SUCCEEDED))
        assert turnover.finished.changed
        assert turnover.finished.job.status is Status.SUCCEEDED
        await life.store.cancel(third.job_id)
        turnover = await life.store.claim(
            third.job_id, Finish(turnover.claimed.fence, Transition.FAILED, failure())
        )
        assert turnover.claimed is None
        assert turnover.finished.job.status is Status.FAILED
        assert (await life.store.get(second.job_id)).error == failure()

    async def test_a_late_finish_changes_nothing_and_says_so(self, life: Life) -> None:
        """Only the running run of this life may finish a job: epoch and run fence it."""
        job = await life.submit()
        lost = await life.claim(job.job_id)
        await life.store.finish(Finish(lost.fence, Transition.PUT_BACK))
        again = await life.claim(job.job_id)
        assert again.job.attempt == lost.job.attempt  # the same attempt, and yet another run
        late = await life.store.finish(Finish(lost.fence, Transition.SUCCEEDED))
        assert (late.changed, late.job) == (False, again.job)
        await life.crash()
        newest = await life.claim(job.job_id)
        for fence in (lost.fence, again.fence):
            assert not (await life.store.finish(Finish(fence, Transition.SUCCEEDED))).changed
            assert not await life.store.put_artifact_piece(fence, "a", 0, b"late")
        assert (await life.store.finish(Finish(newest.fence, Transition.SUCCEEDED))).changed
        assert not (await life.store.finish(Finish(newest.fence, Transition.FAILED, failure()))).changed
        assert (await life.store.get(job.job_id)).status is Status.SUCCEEDED

    async def test_attempts_are_counted_and_limited(self, life: Life) -> None:
        """A failed attempt is tried again after its backoff, until none is left; all errors are kept."""
        job = await life.submit(max_attempts=2)
        after = await life.run(job.job_id, Transition.RETRIED, error=failure(1), not_before=life.now + 5)
        assert (after.status, after.attempt, after.not_before) == (Status.QUEUED, 1, life.now + 5)
        assert (after.waiting_since, after.error) == (life.now + 5, None)
        assert life.dues == [life.now + 5]
        life.now += 5
        assert await life.store.due(life.now) is None
        after = await life.run(job.job_id, Transition.RETRIED, error=failure(2))
        assert (after.status, after.attempt) == (Status.FAILED, 2)
        assert after.errors == (failure(1), failure(2))
        assert after.error == failure(2)
        assert types(await life.store.events(job.job_id)) == [
            "job.queued", "job.running", "job.queued", "job.running", "job.failed",
        ]  # fmt: skip
        assert [event.facts["attempt"] for event in await life.store.events(job.job_id)] == [0, 1, 1, 2, 2]

    async def test_what_does_not_count_burns_no_attempt(self, life: Life) -> None:
        """A job whose request was not sent goes back as if it had not been claimed, deadline included."""
        job = await life.submit(max_attempts=1, start_deadline=life.now + 60)
        for _ in range(5):
            claimed = await life.claim(job.job_id)
            assert claimed.job.attempt == 1
            back = await life.store.finish(
                Finish(claimed.fence, Transition.PUT_BACK, not_before=life.now + 3)
            )
            assert (back.job.attempt, back.job.interruptions, back.job.started_at) == (0, 0, None)
            life.now += 3
            await life.store.due(life.now)
        life.now += 60
        assert await life.store.due(life.now) is None
        assert (await life.store.get(job.job_id)).status is Status.EXPIRED

    async def test_a_graceful_stop_burns_no_attempt(self, life: Life) -> None:
        """An interrupted job keeps its place, and is counted apart."""
        first, _ = await life.submit(), await life.submit()
        claimed = await life.claim(first.job_id)
        after = (await life.store.finish(Finish(claimed.fence, Transition.INTERRUPTED))).job
        assert (after.status, after.attempt, after.interruptions) == (Status.QUEUED, 0, 1)
        assert await life.heads() == {"m": (2, first.job_id, first.job_id)}

    async def test_orphans_are_queued_again(self, life: Life) -> None:
        """What ran when the daemon died runs again, first in its line, and its attempt does not count."""
        first, second = await life.submit(), await life.submit()
        await life.claim(first.job_id)
        assert await life.crash() == 1
        job = await life.store.get(first.job_id)
        assert (job.status, job.attempt, job.interruptions) == (Status.QUEUED, 0, 1)
        assert await life.heads() == {"m": (2, first.job_id, first.job_id)}
        assert types(await life.store.events(first.job_id)) == ["job.queued", "job.running", "job.queued"]
        assert await life.store.recover() == 0
        await life.claim(second.job_id)
        assert await life.store.recover() == 0  # it runs in this life

    async def test_an_orphan_that_was_being_cancelled_ends(self, life: Life) -> None:
        """That a cancel was asked for outlives the daemon."""
        job = await life.submit(on_interrupt="fail")
        await life.claim(job.job_id)
        await life.store.cancel(job.job_id)
        await life.crash()
        assert (await life.store.get(job.job_id)).status is Status.CANCELLED

    async def test_an_orphan_that_must_not_run_again_fails(self, life: Life) -> None:
        """`on_interrupt` "fail" opts out of running twice."""
        job = await life.submit(on_interrupt="fail")
        await life.claim(job.job_id)
        await life.crash()
        after = await life.store.get(job.job_id)
        assert (after.status, after.error.code) == (Status.FAILED, "interrupted")

    async def test_a_job_that_kills_the_daemon_is_given_up(self, life: Life) -> None:
        """After more interruptions than are allowed it fails with its history; a retry begins anew."""
        life.max_interruptions = 2
        await life.crash()
        job = await life.submit()
        await life.run(job.job_id, Transition.RETRIED, error=failure())
        for interruptions in (1, 2, 3):
            await life.claim(job.job_id)
            await life.crash()
            after = await life.store.get(job.job_id)
            assert after.interruptions == interruptions
            assert after.status is (Status.FAILED if interruptions == 3 else Status.QUEUED)
        assert [error.code for error in after.errors] == ["target_failed", "crash_loop"]
        again = await life.store.retry(job.job_id)
        assert (again.status, again.interruptions, again.errors) == (Status.QUEUED, 0, after.errors)

    async def test_cancel(self, life: Life) -> None:
        """Waiting: at once. Running: asked for, and told. Ended: as it is. Twice is the same as once."""
        waiting, running, done = [await life.submit() for _ in range(3)]
        scheduled = await life.submit(run_at=life.now + 9)
        claimed = await life.claim(running.job_id)
        await life.run(done.job_id)
        for job in (waiting, scheduled):
            after = await life.store.cancel(job.job_id)
            assert (after.status, after.cancel_requested_at, after.finished_at) == (
                Status.CANCELLED, life.now, life.now,
            )  # fmt: skip
            assert await life.store.cancel(job.job_id) == after
        after = await life.store.cancel(running.job_id)
        assert (after.status, after.cancel_requested_at) == (Status.RUNNING, life.now)
        life.now += 1
        assert await life.store.cancel(running.job_id) == after
        assert life.cancels == [running.job_id]
        before = await life.store.get(done.job_id)
        assert await life.store.cancel(done.job_id) == before
        artifact, (piece,) = whole("content.txt", b"partial")
        end = Finish(
            claimed.fence,
            Transition.CANCELLED,
            artifacts=(artifact,),
            pieces=(Piece("content.txt", 0, piece),),
        )
        assert (await life.store.finish(end)).job.status is Status.CANCELLED
        assert await life.store.piece(running.job_id, "content.txt", 0) == b"partial"

    @pytest.mark.parametrize("transition", [Transition.RETRIED, Transition.PUT_BACK, Transition.INTERRUPTED])
    async def test_what_is_to_be_cancelled_does_not_run_again(
        self, life: Life, transition: Transition
    ) -> None:
        """A run that would go back to the queue ends when a cancel was asked for."""
        job = await life.submit()
        claimed = await life.claim(job.job_id)
        await life.store.cancel(job.job_id)
        after = (await life.store.finish(Finish(claimed.fence, transition, not_before=life.now + 9))).job
        assert (after.status, after.not_before, after.finished_at) == (Status.CANCELLED, None, life.now)

    async def test_retry_by_hand(self, life: Life) -> None:
        """An ended job runs again: same id and body, history kept, all attempts, no artifacts."""
        artifact, (piece,) = whole("content.txt", b"old")
        job = await life.submit(body=b"the body", max_attempts=1, start_deadline=life.now + 60)
        with pytest.raises(JobUnfinished, match="is queued; only an ended job can be run again"):
            await life.store.retry(job.job_id)
        claimed = await life.claim(job.job_id)
        with pytest.raises(JobUnfinished, match="is running"):
            await life.store.retry(job.job_id)
        end = Finish(
            claimed.fence,
            Transition.FAILED,
            failure(),
            Metrics(1.0),
            (artifact,),
            (Piece("content.txt", 0, piece),),
        )
        assert (await life.store.finish(end)).job.artifacts == (artifact,)
        life.now += 100
        again = await life.store.retry(job.job_id)
        assert (again.status, again.attempt, again.error) == (Status.QUEUED, 0, None)
        assert (again.errors, again.artifacts, again.metrics) == ((failure(),), (), None)
        assert (again.created_at, again.waiting_since) == (job.created_at, life.now)
        assert again.start_deadline == life.now + 60
        assert (again.started_at, again.finished_at) == (None, None)
        assert await life.store.artifact(job.job_id, "content.txt") is None
        assert await life.store.piece(job.job_id, "content.txt", 0) is None
        claimed = await life.claim(job.job_id)
        assert (claimed.body, claimed.job.attempt, claimed.fence.run) == (b"the body", 1, 2)
        await life.store.finish(Finish(claimed.fence, Transition.SUCCEEDED))
        assert (await life.store.retry(job.job_id)).start_deadline == life.now + 60

    async def test_delete(self, life: Life) -> None:
        """An ended job becomes a tombstone at once; one that has not ended stays."""
        artifact, (piece,) = whole("content.txt", b"secret")
        job = await life.submit()
        with pytest.raises(JobUnfinished, match="is queued; only an ended job can be deleted"):
            await life.store.delete(job.job_id)
        ended = await life.run(job.job_id, artifacts=(artifact,), pieces=(Piece("content.txt", 0, piece),))
        stone = Tombstone(job.job_id, Status.SUCCEEDED, job.created_at, ended.finished_at or 0)
        assert await life.store.delete(job.job_id) == stone
        assert await life.store.delete(job.job_id) == stone
        assert await life.store.get(job.job_id) == stone
        assert await life.store.cancel(job.job_id) == stone
        assert await life.store.retry(job.job_id) == stone
        assert await life.store.piece(job.job_id, "content.txt", 0) is None
        assert await life.store.artifact(job.job_id, "content.txt") is None
        assert (await life.store.list()).jobs == ()
        assert types(await life.store.events(job.job_id))[-1] == "job.succeeded"  # may be undelivered

    async def test_artifacts_are_unseen_until_the_finish(self, life: Life) -> None:
        """Pieces of a run that goes on, or was lost, are nobody's."""
        job = await life.submit()
        lost = await life.claim(job.job_id)
        assert await life.store.put_artifact_piece(lost.fence, "content.txt", 0, b"lost")
        assert await life.store.piece(job.job_id, "content.txt", 0) is None
        await life.store.finish(Finish(lost.fence, Transition.PUT_BACK))
        claimed = await life.claim(job.job_id)
        artifact, (piece,) = whole("content.txt", b"kept")
        assert await life.store.put_artifact_piece(claimed.fence, "content.txt", 0, piece)
        await life.store.finish(Finish(claimed.fence, Transition.SUCCEEDED, artifacts=(artifact,)))
        assert await life.store.piece(job.job_id, "content.txt", 0) == b"kept"
        await life.store.prune(life.now, FOREVER)
        assert await life.store.piece(job.job_id, "content.txt", 0) == b"kept"

    @pytest.mark.parametrize("size", [0, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1])
    async def test_artifacts_of_every_size(self, life: Life, size: int) -> None:
        """The last piece may be smaller; an empty artifact has none."""
        artifact, pieces = whole("a.bin", bytes(index % 253 for index in range(size)))
        assert artifact.pieces == len(pieces)
        job = await life.submit()
        claimed = await life.claim(job.job_id)
        for number, piece in enumerate(pieces):
            assert await life.store.put_artifact_piece(claimed.fence, "a.bin", number, piece)
        await life.store.finish(Finish(claimed.fence, Transition.SUCCEEDED, artifacts=(artifact,)))
        read = [await life.store.piece(job.job_id, "a.bin", number) for number in range(artifact.pieces)]
        assert read == pieces
        assert await life.store.piece(job.job_id, "a.bin", artifact.pieces) is None

    async def test_a_job_starts_in_time_or_expires(self, life: Life) -> None:
        """The deadline is for the first start, and holds at the claim as well."""
        late, claimed_late, started = [await life.submit(start_deadline=life.now + 10) for _ in range(3)]
        scheduled = await life.submit(start_deadline=life.now + 10, run_at=life.now + 20)
        assert life.dues == [life.now + 10] * 4
        lost = await life.claim(started.job_id)
        assert await life.store.due(life.now + 9) == life.now + 10
        life.now += 10
        assert (await life.store.claim(claimed_late.job_id)).claimed is None
        await life.store.finish(Finish(lost.fence, Transition.INTERRUPTED))
        assert await life.store.due(life.now) is None
        for job in (late, claimed_late, scheduled):
            after = await life.store.get(job.job_id)
            assert (after.status, after.finished_at) == (Status.EXPIRED, life.now)
        assert (await life.store.get(started.job_id)).status is Status.QUEUED
        assert await life.heads() == {"m": (1, started.job_id, started.job_id)}

    async def test_a_scheduled_job_waits_from_its_moment_on(self, life: Life) -> None:
        """It is queued when its `run_at` comes, behind what waited before, and a past one is none."""
        at = life.now + 10
        later = await life.submit(run_at=at)
        assert (later.status, life.dues) == (Status.SCHEDULED, [at])
        life.now += 5
        sooner = await life.submit(run_at=life.now - 1)
        assert sooner.status is Status.QUEUED
        assert await life.heads() == {"m": (1, sooner.job_id, sooner.job_id)}
        assert await life.store.due(life.now) == at
        life.now = at + 3
        assert await life.store.due(life.now) is None
        after = await life.store.get(later.job_id)
        assert (after.status, after.waiting_since) == (Status.QUEUED, at)
        assert await life.heads() == {"m": (2, sooner.job_id, sooner.job_id)}
        assert types(await life.store.events(later.job_id)) == ["job.scheduled", "job.queued"]

    async def test_many_fall_due_at_once(self, life: Life) -> None:
        """More than one batch of them."""
        await gatherResults(
            [Deferred.fromCoroutine(life.submit(run_at=life.now + 1)) for _ in range(450)]
            + [Deferred.fromCoroutine(life.submit("n", start_deadline=life.now + 1)) for _ in range(450)]
        )
        life.now += 2
        assert await life.store.due(life.now) is None
        assert {model: count for model, (count, _, _) in (await life.heads()).items()} == {"m": 450}

    async def test_lines(self, life: Life) -> None:
        """A line is a model with its options; it has a head by priority, then age, and an oldest."""
        assert await life.store.lines() == []
        first = await life.submit()
        life.now += 1
        second = await life.submit()
        urgent = await life.submit(priority=9)
        other = await life.submit("n")
        assert await life.heads() == {
            "m": (3, urgent.job_id, first.job_id),
            "n": (1, other.job_id, other.job_id),
        }
        await life.submit(option_key="ctx=9")
        await life.submit(takes_turn=False)
        assert [view.count for view in await life.store.lines()] == [1, 3, 1, 1]
        assert [await life.store.ahead(job.job_id) for job in (urgent, first, second)] == [0, 1, 2]
        claimed = await life.claim(urgent.job_id)
        assert await life.store.ahead(urgent.job_id) is None
        assert life.views[first.line].head.job_id == first.job_id
        await life.store.cancel(first.job_id)
        assert life.views[first.line].oldest.job_id == second.job_id
        await life.store.finish(Finish(claimed.fence, Transition.INTERRUPTED))
        assert life.views[first.line].head.job_id == urgent.job_id
        await life.store.cancel(other.job_id)
        assert life.views[other.line] == LineView(other.line, 0, None, None)

    async def test_ahead_in_siblings(self, life: Life) -> None:
        """Lines that are one for the turn: by priority, then by age, whichever of them a job is in."""
        jobs = []
        for number in range(12):
            life.now += number // 3 % 2  # some of one moment
            jobs.append(await life.submit(option_key=str(number % 3), priority=number % 2))
        await life.submit("other", priority=5)
        order = sorted(range(12), key=lambda number: (-(number % 2), number))
        for place, number in enumerate(order):
            siblings = [LineKey("m", str(each)) for each in range(3) if each != number % 3]
            assert await life.store.ahead(jobs[number].job_id, siblings) == place
        assert await life.store.ahead(jobs[0].job_id, [LineKey("nobody")]) == 2

    async def test_ahead_is_right_wherever_a_job_stands(self, life: Life) -> None:
        """By priority, then by arrival: near the front of a long line, in its middle, and near its end."""
        together = [Deferred.fromCoroutine(life.submit(priority=-1 if n < 600 else 0)) for n in range(1200)]
        jobs = await gatherResults([*together, Deferred.fromCoroutine(life.submit("n"))])
        low, high = jobs[:600], jobs[600:1200]
        for place in (0, 99, 100, 101, 599):
            assert await life.store.ahead(high[place].job_id) == place
            assert await life.store.ahead(low[place].job_id) == 600 + place

    async def test_list(self, life: Life) -> None:
        """Newest first, page by page; pages stay as they are while jobs come and go."""
        jobs = [await life.submit("m" if index % 3 else "n") for index in range(10)]
        ids = [job.job_id for job in reversed(jobs)]
        for job in jobs[:4]:
            await life.run(job.job_id)
        page = await life.store.list(limit=4)
        assert [job.job_id for job in page.jobs] == ids[:4]
        await life.submit()
        rest = await life.store.list(limit=4, after=page.next)
        assert [job.job_id for job in rest.jobs] == ids[4:8]
        last = await life.store.list(limit=4, after=rest.next)
        assert [job.job_id for job in last.jobs] == ids[8:]
        assert last.next is None
        done = await life.store.list(status=Status.SUCCEEDED)
        assert [job.job_id for job in done.jobs] == ids[6:]
        assert done.next is None
        of_n = await life.store.list(model="n", limit=3)
        assert [job.job_id for job in of_n.jobs] == [jobs[index].job_id for index in (9, 6, 3)]
        of_n = await life.store.list(model="n", limit=3, after=of_n.next)
        assert [job.job_id for job in of_n.jobs] == [jobs[0].job_id]
        both = await life.store.list(model="n", status=Status.SUCCEEDED)
        assert [job.job_id for job in both.jobs] == [jobs[3].job_id, jobs[0].job_id]

    @pytest.mark.parametrize("cursor", ["", "x", "====", "ü", "MDE", "AA" * 40])
    async def test_a_cursor_is_one_of_ours(self, life: Life, cursor: str) -> None:
        """Any other text is refused."""
        with pytest.raises(BadCursor, match="not a cursor"):
            await life.store.list(after=cursor)

    async def test_retention(self, life: Life) -> None:
        """Ended jobs become tombstones after their time, and those vanish after theirs; others stay."""
        retention = Retention(succeeded=24 * HOUR, failed=168 * HOUR, tombstone=720 * HOUR)
        artifact, (piece,) = whole("content.txt", b"text")
        good = await life.submit()
        await life.run(good.job_id, artifacts=(artifact,), pieces=(Piece("content.txt", 0, piece),))
        bad, cancelled, waiting, running = [await life.submit() for _ in range(4)]
        await life.run(bad.job_id, Transition.FAILED, error=failure())
        await life.store.cancel(cancelled.job_id)
        await life.claim(running.job_id)
        start = life.now
        assert await life.store.prune(start + 24 * HOUR - 1, retention) == 0
        assert await life.store.prune(start + 24 * HOUR, retention) == 1
        stone = Tombstone(good.job_id, Status.SUCCEEDED, start, start)
        assert await life.store.get(good.job_id) == stone
        assert await life.store.piece(good.job_id, "content.txt", 0) is None
        assert await life.store.events(good.job_id) == []
        assert await life.store.prune(start + 168 * HOUR - 1, retention) == 0
        assert await life.store.prune(start + 168 * HOUR, retention) == 2
        assert (await life.store.get(cancelled.job_id)).status is Status.CANCELLED
        assert [job.job_id for job in (await life.store.list()).jobs] == [running.job_id, waiting.job_id]
        await life.store.prune(start + 744 * HOUR - 1, retention)
        assert await life.store.get(good.job_id) == stone
        await life.store.prune(start + 744 * HOUR, retention)
        assert await life.store.get(good.job_id) is None
        assert (await life.store.get(bad.job_id)).job_id == bad.job_id

    async def test_events_of_a_deleted_job_are_kept_for_its_time(self, life: Life) -> None:
        """They may not be delivered yet; but they do not stay as long as the tombstone."""
        job = await life.submit()
        await life.run(job.job_id)
        await life.store.delete(job.job_id)
        retention = Retention(10, 10, 100)
        await life.store.prune(life.now + 9, retention)
        assert len(await life.store.events(job.job_id)) == 3
        await life.store.prune(life.now + 10, retention)
        assert await life.store.events(job.job_id) == []
        assert await life.store.get(job.job_id) is not None

    async def test_retry_and_prune(self, life: Life) -> None:
        """Whichever comes first: a job that was asked to run again has its body, or is a tombstone."""
        retention = Retention(0, 0, 1e9)
        first, second = await life.submit(body=b"one"), await life.submit()
        await life.run(first.job_id)
        await life.run(second.job_id)
        await life.store.retry(first.job_id)
        assert await life.store.prune(life.now + 1, retention) == 1
        assert (await life.claim(first.job_id)).body == b"one"
        assert isinstance(await life.store.retry(second.job_id), Tombstone)

    async def test_time_to_start_begins_with_run_at(self, life: Life) -> None:
        """Run again by hand, the job has as much time to start as it had when it could run at first."""
        run_at = life.now + 100
        job = await life.submit(run_at=run_at, start_deadline=run_at + 10)
        life.now = run_at
        await life.store.due(life.now)
        await life.run(job.job_id)
        again = await life.store.retry(job.job_id)
        assert again.start_deadline == life.now + 10

    async def test_as_many_wait_as_may(self, life: Life) -> None:
        """Scheduled, queued or in a backoff, they count; those that run or have ended do not."""
        life.queue_limit = 3
        await life.crash()
        queued, other = await life.submit(), await life.submit("n", takes_turn=False)
        await life.submit(run_at=life.now + 9)
        with pytest.raises(QueueFull, match="3 jobs wait already, the limit of FOREMAN_QUEUE_LIMIT"):
            await life.submit()
        claimed = await life.claim(queued.job_id)
        await life.submit()
        with pytest.raises(QueueFull):
            await life.submit()
        retried = Finish(claimed.fence, Transition.RETRIED, not_before=life.now + 9, error=failure())
        assert (await life.store.finish(retried)).job.status is Status.QUEUED  # what ran is never refused
        await life.store.cancel(other.job_id)
        with pytest.raises(QueueFull):
            await life.submit()
        with pytest.raises(QueueFull):  # nor may an ended job come back
            await life.store.retry(other.job_id)
        life.now += 9
        await life.store.due(life.now)
        assert await life.crash() == 0
        with pytest.raises(QueueFull):
            await life.submit()
        await life.run(queued.job_id)
        await life.store.retry(other.job_id)
        assert [job.status for job in (await life.store.list()).jobs].count(Status.QUEUED) == 3

    async def test_exact_however_many_come_at_once(self, life: Life) -> None:
        """Of a hundred at once, as many are taken as there is room for."""
        life.queue_limit = 40
        await life.crash()
        coming = [Deferred.fromCoroutine(life.submit()) for _ in range(100)]
        refused = []
        for one in coming:
            one.addErrback(lambda failure: refused.append(failure.trap(QueueFull)))
        await gatherResults(coming)
        assert len(refused) == 60
        assert {line: view.count for line, view in life.views.items()} == {LineKey("m"): 40}

    async def test_estimates(self, life: Life) -> None:
        """They are there in the next life, one for each subject; the one that changed last comes last."""
        run, load = Estimate("run", "durable", "[1]", 30.5, 2), Estimate("load", "", "", 14.0, 1)
        await life.store.put_estimates([run])
        life.now += 1
        await life.store.put_estimates([load])
        await life.crash()
        assert list(await life.store.estimates()) == [run, load]
        life.now += 1
        anew = Estimate("run", "durable", "[1]", 40.0, 3)
        await life.store.put_estimates([anew])
        assert list(await life.store.estimates()) == [load, anew]

    async def test_old_estimates_are_forgotten(self, life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
        """As many are kept as a history needs."""
        monkeypatch.setattr("foreman.jobs.estimates.MOST_ESTIMATES", 5)
        for number in range(12):
            life.now += 1
            await life.store.put_estimates([Estimate("load", "", str(number), 1.0, 1)])
        assert [each.key for each in await life.store.estimates()] == ["7", "8", "9", "10", "11"]

    async def test_pauses(self, life: Life) -> None:
        """They are there in the next life, one for each lane, until they are over or dropped."""
        first = [Pause("a", life.now, None, True), Pause("b", life.now - 1, life.now + 10, False)]
        await life.store.put_pauses(first)
        await life.crash()
        assert list(await life.store.pauses()) == first
        anew = Pause("a", life.now, life.now + 20, False)
        await life.store.put_pauses([anew])
        assert list(await life.store.pauses()) == [anew, first[1]]
        life.now += 10
        assert list(await life.store.pauses()) == [anew]
        await life.store.drop_pauses(["a", "b", "c"])
        life.now -= 10
        assert list(await life.store.pauses()) == []

    async def test_pauses_that_are_over(self, life: Life) -> None:
        """By their time, by a resume, or by another one of their lane: with their true ends, for a week."""
        began = life.now
        await life.store.put_pauses([Pause("a", began, began + 10, True), Pause("b", began, None, False)])
        assert list(await life.store.ended_pauses()) == []
        life.now += 10
        over = Pause("a", began, began + 10, True)
        assert list(await life.store.ended_pauses()) == [over]
        life.now += 5
        await life.store.drop_pauses(["a", "b"])
        resumed = Pause("b", began, began + 15, False)
        assert sorted(await life.store.ended_pauses(), key=lambda pause: pause.lane) == [over, resumed]
        # Nobody resumed it, and its lane is paused anew as if it had never been.
        third, fourth = Pause("b", began + 15, None, False), Pause("b", began + 20, None, False)
        await life.store.put_pauses([third])
        life.now += 5
        await life.store.put_pauses([fourth])
        assert list(await life.store.pauses()) == [fourth]
        await life.crash()
        assert list(await life.store.pauses()) == [fourth]
        found = list(await life.store.ended_pauses())
        assert sorted(found, key=lambda pause: (pause.lane, pause.since)) == [
            over,
            resumed,
            evolve(third, until=began + 20),
        ]
        assert [pause.since for pause in found] == sorted(pause.since for pause in found)
        life.now += 7 * 24 * 3600.0
        assert list(await life.store.ended_pauses()) == []
        await life.store.put_pauses([Pause("a", life.now, None, False)])
        assert list(await life.store.pauses()) == [Pause("a", life.now, None, False), fourth]

    async def test_the_latest_pauses_that_are_over(self, life: Life) -> None:
        """As many as a waiting clock remembers."""
        began = life.now
        await life.store.put_pauses([Pause("a", began + number, None, False) for number in range(1010)])
        life.now += 1010
        await life.store.drop_pauses(["a"])
        found = list(await life.store.ended_pauses())
        assert (len(found), found[0].since, found[-1].until) == (1000, began + 10, began + 1010)
