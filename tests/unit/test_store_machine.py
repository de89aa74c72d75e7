"""Random operations and crashes, against a small model of the job: nothing is lost, nothing ends twice."""

from collections.abc import Coroutine
from typing import Any

from attrs import define, field
from contract_store import Life, failure, types
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from twisted.internet.defer import Deferred

from foreman.errors import JobUnfinished
from foreman.jobs.database import open_pools
from foreman.jobs.model import Claimed, Fence, Finish, Job, Retention, Status, Tombstone, Transition
from foreman.jobs.store import SqliteStore
from foreman.testing.store import compose_plainly

ENDS = {
    Transition.SUCCEEDED: "succeeded",
    Transition.FAILED: "failed",
    Transition.CANCELLED: "cancelled",
}
MOST_INTERRUPTIONS = 2
KEPT_SECONDS = 50.0


@define
class Expected:
    """A job as it must be. `history` is the states it went through."""

    job_id: str
    model: str
    priority: int
    order: int
    max_attempts: int
    on_interrupt: str
    within: float | None
    since: float
    deadline: float | None = None
    status: str = "queued"
    attempt: int = 0
    interruptions: int = 0
    started: bool = False
    cancel: bool = False
    fence: Fence | None = None
    not_before: float | None = None
    ended_at: float | None = None
    gone: bool = False
    errors: int = 0
    history: list[str] = field(factory=list)

    def become(self, status: str, now: float) -> None:
        self.status = status
        self.history.append(f"job.{status}")
        self.fence = self.fence if status == "running" else None
        self.ended_at = now if status in ("succeeded", "failed", "cancelled", "expired") else None
        if self.ended_at:
            self.not_before = None

    @property
    def waits(self) -> bool:
        return self.status == "queued" and self.not_before is None

    def wait(self, since: float, now: float) -> None:
        """Back in the queue, unless a cancel was asked for."""
        if self.cancel:
            self.become("cancelled", now)
        else:
            self.since = since
            self.not_before = since if since > now else None
            self.become("queued", now)

    def interrupted(self, now: float) -> None:
        self.interruptions += 1
        if self.cancel:
            self.become("cancelled", now)
        elif self.on_interrupt == "fail" or self.interruptions > MOST_INTERRUPTIONS:
            self.errors += 1
            self.become("failed", now)
        else:
            self.attempt -= 1
            self.wait(self.since, now)


class Machine(RuleBasedStateMachine):
    """One database in memory, many lives."""

    def __init__(self) -> None:
        super().__init__()
        pools = self.pools = open_pools(":memory:", None)

        async def begin(life: Life) -> Any:
            store = SqliteStore(
                ":memory:", pools, lambda: life.now, compose_plainly, None, life.max_interruptions
            )
            await store.open()
            return store

        self.life = Life(begin, max_interruptions=MOST_INTERRUPTIONS)
        self.jobs: list[Expected] = []
        self.fences: list[Fence] = []
        self.do(self.life.crash())

    def do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        found: list[Any] = []
        Deferred.fromCoroutine(coroutine).addBoth(
            lambda result: found.append(getattr(result, "value", result))
        )
        (result,) = found
        if isinstance(result, Exception) and not isinstance(result, JobUnfinished):
            raise result
        return result

    def teardown(self) -> None:
        self.pools.close()

    def pick(self, data: Any) -> Expected | None:
        return data.draw(st.sampled_from(self.jobs)) if self.jobs else None

    @rule(
        model=st.sampled_from("mn"),
        priority=st.integers(-1, 1),
        max_attempts=st.integers(1, 3),
        on_interrupt=st.sampled_from(["retry", "retry", "fail"]),
        within=st.none() | st.integers(1, 30).map(float),
    )
    def submit(self, model: str, **values: Any) -> None:
        within = values.pop("within")
        deadline = None if within is None else self.life.now + within
        job = self.do(self.life.submit(model, start_deadline=deadline, **values))
        self.jobs.append(
            Expected(
                job.job_id,
                model,
                order=len(self.jobs),
                since=self.life.now,
                within=within,
                deadline=deadline,
                history=["job.queued"],
                **values,
            )
        )

    @rule(data=st.data())
    def claim(self, data: Any) -> None:
        mine = self.pick(data)
        if mine is None:
            return
        claimed: Claimed | None = self.do(self.life.store.claim(mine.job_id)).claimed
        if mine.gone or not mine.waits:
            assert claimed is None
        elif mine.deadline is not None and not mine.started and mine.deadline <= self.life.now:
            assert claimed is None
            mine.become("expired", self.life.now)
        else:
            assert claimed is not None
            mine.attempt += 1
            mine.started = True
            mine.become("running", self.life.now)
            mine.fence = claimed.fence
            self.fences.append(claimed.fence)

    @rule(
        data=st.data(),
        transition=st.sampled_from([*ENDS, Transition.RETRIED, Transition.PUT_BACK, Transition.INTERRUPTED]),
        backoff=st.none() | st.integers(0, 20).map(float),
    )
    def finish(self, data: Any, transition: Transition, backoff: float | None) -> None:
        if not self.fences:
            return
        fence = data.draw(st.sampled_from(self.fences))
        now = self.life.now
        until = None if backoff is None else now + backoff
        error = failure() if transition in (Transition.RETRIED, Transition.FAILED) else None
        done = self.do(self.life.store.finish(Finish(fence, transition, error, not_before=until)))
        (mine,) = [job for job in self.jobs if job.job_id == fence.job_id]
        assert done.changed == (mine.fence == fence)
        if not done.changed:
            return
        mine.errors += error is not None
        if transition in ENDS:
            mine.become(ENDS[transition], now)
        elif transition is Transition.INTERRUPTED:
            mine.interrupted(now)
        elif transition is Transition.PUT_BACK:
            mine.attempt -= 1
            mine.started = bool(mine.attempt or mine.interruptions)
            mine.wait(mine.since if until is None else until, now)
        elif mine.attempt >= mine.max_attempts and not mine.cancel:
            mine.become("failed", now)
        else:
            mine.wait(now if until is None else until, now)

    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        mine = self.pick(data)
        if mine is None:
            return
        self.do(self.life.store.cancel(mine.job_id))
        if mine.status == "running":
            mine.cancel = True
        elif mine.status == "queued":
            mine.cancel = True
            mine.become("cancelled", self.life.now)

    @rule(data=st.data())
    def retry(self, data: Any) -> None:
        mine = self.pick(data)
        if mine is None:
            return
        result = self.do(self.life.store.retry(mine.job_id))
        if mine.gone:
            assert isinstance(result, Tombstone)
        elif mine.ended_at is None:
            assert isinstance(result, JobUnfinished)
        else:
            mine.attempt = mine.interruptions = 0
            mine.cancel = mine.started = False
            mine.since = self.life.now
            mine.deadline = None if mine.within is None else self.life.now + mine.within
            mine.become("queued", self.life.now)

    @rule(data=st.data())
    def delete(self, data: Any) -> None:
        mine = self.pick(data)
        if mine is None:
            return
        result = self.do(self.life.store.delete(mine.job_id))
        assert isinstance(result, Tombstone) == (mine.ended_at is not None)
        mine.gone = mine.ended_at is not None

    @rule(seconds=st.integers(1, 30))
    def time_passes(self, seconds: int) -> None:
        self.life.now += seconds
        now = self.life.now
        moment = self.do(self.life.store.due(now))
        pending = []
        for mine in self.jobs:
            limit = None if mine.started or mine.status != "queued" else mine.deadline
            if limit is not None and limit <= now:
                mine.become("expired", now)
            elif mine.not_before is not None and mine.not_before <= now:
                mine.not_before = None
            pending += [at for at in (mine.not_before, limit) if at is not None and at > now]
        assert moment == (min(pending) if pending else None)

    @rule()
    def prune(self) -> None:
        now = self.life.now
        over = [
            mine
            for mine in self.jobs
            if not mine.gone and mine.ended_at is not None and mine.ended_at <= now - KEPT_SECONDS
        ]
        assert self.do(self.life.store.prune(now, Retention(KEPT_SECONDS, KEPT_SECONDS, 1e9))) == len(over)
        for mine in over:
            mine.gone = True

    @rule()
    def crash(self) -> None:
        running = [mine for mine in self.jobs if mine.status == "running"]
        assert self.do(self.life.crash()) == len(running)
        for mine in running:
            mine.interrupted(self.life.now)

    @invariant()
    def every_job_is_as_it_must_be(self) -> None:
        for mine in self.jobs:
            job: Job | Tombstone = self.do(self.life.store.get(mine.job_id))
            assert job.status is Status(mine.status)
            if mine.gone:
                assert isinstance(job, Tombstone)
                continue
            assert isinstance(job, Job)
            assert (job.attempt, job.interruptions) == (mine.attempt, mine.interruptions)
            assert (job.not_before, job.finished_at) == (mine.not_before, mine.ended_at)
            assert (job.start_deadline, job.started_at is not None) == (mine.deadline, mine.started)
            assert ((job.cancel_requested_at is not None), len(job.errors)) == (mine.cancel, mine.errors)
            events = self.do(self.life.store.events(mine.job_id))
            assert types(events) == mine.history
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))

    @invariant()
    def the_view_is_exact(self) -> None:
        expected = {}
        for model in "mn":
            waiting = [mine for mine in self.jobs if mine.waits and mine.model == model]
            if waiting:
                head = min(waiting, key=lambda mine: (-mine.priority, mine.since, mine.order))
                oldest = min(waiting, key=lambda mine: (mine.since, mine.order))
                expected[model] = (len(waiting), head.job_id, oldest.job_id)
        assert self.do(self.life.heads()) == expected


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
