"""Random histories of webhooks, against a small model: in order, one at a time, the same bytes, none lost."""

from collections.abc import Coroutine
from typing import Any

import pytest
from attrs import define, field
from contract_outbox import OTHER, RECEIVER, URL, attempt
from contract_store import Life, failure
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.defer import Deferred

from foreman.jobs.database import open_pools
from foreman.jobs.delivery import DeliveryState, Due, Taken
from foreman.jobs.model import Event, Finish, Job, Retention, Status, Transition
from foreman.jobs.store import SqliteStore
from foreman.testing.store import OWNER_URL

OWNER = "http://owner.example:80"
HOOKS = {URL: RECEIVER, "https://hook.example/x": OTHER, None: OWNER}


@define
class Expected:
    """A delivery as it must be."""

    event: Event
    receiver: str
    due_at: float | None
    state: DeliveryState = DeliveryState.PENDING
    series: int = 1
    tried: int = 0
    attempts: int = 0
    body: bytes | None = None
    ended_at: float | None = None

    @property
    def untried(self) -> bool:
        return self.state is DeliveryState.PENDING and self.series == 1 and self.tried == 0


@define
class History:
    """A job, its webhook, and the deliveries of its events that are still kept."""

    job_id: str
    receiver: str
    wanted: tuple[str, ...] | None
    gone: bool = False  # the job; its deliveries may be there
    seen: int = 0  # the last sequence
    deliveries: list[Expected] = field(factory=list)
    first_tries: list[int] = field(factory=list)


class Machine(RuleBasedStateMachine):
    """One database in memory, many lives."""

    def __init__(self) -> None:
        super().__init__()
        pools = self.pools = open_pools(":memory:", None)
        self.composed: list[str] = []

        async def begin(life: Life) -> Any:
            store = SqliteStore(":memory:", pools, lambda: life.now, self.compose, OWNER_URL)
            await store.open()
            return store

        self.life = Life(begin)
        self.jobs: list[History] = []
        self.wire: list[Due] = []  # taken, and not recorded yet
        self.do(self.life.crash())

    def compose(self, event: Event, result: bytes | None) -> bytes:
        """No two bodies are alike: one that is composed twice shows."""
        self.composed.append(event.event_id)
        return f"{event.event_id} {len(self.composed)}".encode()

    def do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        found: list[Any] = []
        Deferred.fromCoroutine(coroutine).addCallbacks(found.append, lambda why: why.raiseException())
        (result,) = found
        return result

    def teardown(self) -> None:
        self.pools.close()

    @property
    def kept(self) -> list[Expected]:
        return [one for job in self.jobs for one in job.deliveries]

    def find(self, event_id: str) -> tuple[History, Expected]:
        ((job, mine),) = [
            (job, one) for job in self.jobs for one in job.deliveries if one.event.event_id == event_id
        ]
        return job, mine

    def see(self, job: History) -> None:
        """The model's half of what the last operation did to a job."""
        job.gone = not isinstance(self.do(self.life.store.get(job.job_id)), Job)
        for event in self.do(self.life.store.events(job.job_id)):
            if event.sequence <= job.seen:
                continue
            job.seen = event.sequence
            if job.receiver == OWNER:
                wanted = event.status in (Status.FAILED, Status.EXPIRED)
            else:
                wanted = job.wanted is None or event.type in job.wanted
            if wanted:
                held = any(one.untried for one in job.deliveries)
                job.deliveries.append(Expected(event, job.receiver, None if held else event.at))

    @property
    def due(self) -> list[str]:
        """The receivers of what may be taken."""
        on_wire = {due.delivery.event_id for due in self.wire}
        return sorted(
            {
                one.receiver
                for one in self.kept
                if one.due_at is not None
                and one.due_at <= self.life.now
                and one.event.event_id not in on_wire
            }
        )

    @rule(
        url=st.sampled_from(list(HOOKS)),
        wanted=st.sampled_from([None, None, (), ("job.queued", "job.failed")]),
        limited=st.booleans(),
    )
    def submit(self, url: str | None, wanted: tuple[str, ...] | None, limited: bool) -> None:
        deadline = self.life.now + 5 if limited else None
        job = self.do(self.life.submit(webhook_url=url, webhook_events=wanted, start_deadline=deadline))
        self.jobs.append(History(job.job_id, HOOKS[url], wanted))
        self.see(self.jobs[-1])

    @precondition(lambda self: any(not job.gone for job in self.jobs))
    @rule(data=st.data(), transition=st.sampled_from([Transition.SUCCEEDED, Transition.FAILED]))
    def job_goes_on(self, data: Any, transition: Transition) -> None:
        """A job that waits runs to its end, and one that has ended is handed in again."""
        job = data.draw(st.sampled_from([job for job in self.jobs if not job.gone]))
        if self.do(self.life.store.get(job.job_id)).status is Status.QUEUED:
            claimed = self.do(self.life.store.claim(job.job_id)).claimed
            if claimed is not None:
                error = failure() if transition is Transition.FAILED else None
                self.do(self.life.store.finish(Finish(claimed.fence, transition, error)))
        else:
            self.do(self.life.store.retry(job.job_id))
        self.see(job)

    @rule(seconds=st.integers(1, 20))
    def time_passes(self, seconds: int) -> None:
        self.life.now += seconds
        self.do(self.life.store.due(self.life.now))
        for job in self.jobs:
            self.see(job)

    @precondition(lambda self: self.due)
    @rule(data=st.data(), limit=st.integers(1, 4))
    def take(self, data: Any, limit: int) -> None:
        receiver = data.draw(st.sampled_from(self.due))
        besides = [due.delivery.event_id for due in self.wire]
        taken: Taken = self.do(self.life.store.outbox.take(receiver, self.life.now, limit, besides))
        ours = [
            one
            for one in self.kept
            if one.receiver == receiver and one.due_at is not None and one.event.event_id not in besides
        ]
        moments = sorted(one.due_at for one in ours if one.due_at is not None)
        due = sum(moment <= self.life.now for moment in moments)
        assert [due.delivery.due_at for due in taken.due] == moments[: min(due, limit)]
        assert taken.next_due_at == (moments[len(taken.due)] if len(moments) > len(taken.due) else None)
        for each in taken.due:
            _, mine = self.find(each.delivery.event_id)
            assert mine.body is None or mine.body == each.body
            mine.body = each.body
        self.wire += taken.due

    @precondition(lambda self: self.wire)
    @rule(data=st.data(), state=st.sampled_from(list(DeliveryState)), seconds=st.integers(1, 30))
    def record(self, data: Any, state: DeliveryState, seconds: int) -> None:
        due = data.draw(st.sampled_from(self.wire))
        self.wire.remove(due)
        job, mine = self.find(due.delivery.event_id)
        if due.delivery.series == 1 and due.delivery.tried == 0:
            job.first_tries.append(due.delivery.sequence or 0)
        moment = self.life.now + seconds if state is DeliveryState.PENDING else None
        tried = attempt(self.life.now)
        current = self.do(self.life.store.outbox.record(due.delivery, tried, state, moment))
        assert current == (mine.series == due.delivery.series)
        mine.attempts += 1
        # What is written down twice changes nothing the second time, and lets nothing go.
        assert not self.do(self.life.store.outbox.record(due.delivery, tried, state, moment))
        mine.attempts += 1
        if not current:
            return
        was_untried = mine.untried
        mine.state, mine.tried, mine.due_at = state, mine.tried + 1, moment
        mine.ended_at = None if state is DeliveryState.PENDING else self.life.now + 0.5
        held = [one for one in job.deliveries if one.untried]
        if was_untried and held:
            held[0].due_at = held[0].event.at

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def redeliver(self, data: Any) -> None:
        mine = data.draw(st.sampled_from(self.kept))
        now = self.life.now
        self.do(self.life.store.outbox.redeliver(mine.event.job_id, mine.event.event_id, now))
        if not mine.untried:
            mine.state, mine.series, mine.tried = DeliveryState.PENDING, mine.series + 1, 0
            mine.due_at, mine.ended_at = now, None

    @precondition(lambda self: any(not job.gone for job in self.jobs))
    @rule()
    def prune_jobs(self) -> None:
        self.do(self.life.store.prune(self.life.now, Retention(5, 5, 10)))
        for job in self.jobs:
            self.see(job)

    @precondition(lambda self: self.jobs and not self.wire)  # what is on the wire has not ended
    @rule()
    def prune_deliveries(self) -> None:
        until = self.life.now - 10
        old = [one for one in self.kept if one.ended_at is not None and one.ended_at <= until]
        assert self.do(self.life.store.outbox.prune(until)) == len(old)
        for job in self.jobs:
            job.deliveries = [one for one in job.deliveries if one not in old]

    @precondition(lambda self: self.wire)
    @rule()
    def crash(self) -> None:
        """What was on the wire is due again."""
        self.wire.clear()
        self.do(self.life.crash())
        for job in self.jobs:
            self.see(job)

    @invariant()
    def first_attempts_are_in_order_and_one_at_a_time(self) -> None:
        for job in self.jobs:
            assert job.first_tries == sorted(set(job.first_tries))
            untried = [one for one in job.deliveries if one.untried]
            assert [one.due_at is not None for one in untried] == [n == 0 for n in range(len(untried))]

    @invariant()
    def every_delivery_is_as_it_must_be(self) -> None:
        for job in self.jobs:
            found = self.do(self.life.store.outbox.deliveries(job.job_id))
            assert [
                (one.event_id, one.state, one.series, one.tried, one.due_at, len(tries))
                for one, tries in found
            ] == [
                (one.event.event_id, one.state, one.series, one.tried, one.due_at, one.attempts)
                for one in job.deliveries
            ]

    @invariant()
    def every_body_was_composed_once(self) -> None:
        assert len(self.composed) == len(set(self.composed))

    @invariant()
    def the_receivers_are_exact(self) -> None:
        expected: dict[str, float] = {}
        for one in self.kept:
            if one.due_at is not None:
                expected[one.receiver] = min(one.due_at, expected.get(one.receiver, one.due_at))
        assert self.do(self.life.store.outbox.receivers()) == expected

    @invariant()
    def events_that_nobody_needs_are_gone(self) -> None:
        """A job that is no more leaves only events that are still to be sent for the first time, or kept."""
        ((orphans,),) = self.pools.writer._connection.execute(  # type: ignore[attr-defined]
            "SELECT count(*) FROM event WHERE job_id NOT IN (SELECT id FROM job)"
            " AND id NOT IN (SELECT event_id FROM delivery)"
        )
        assert orphans == 0


# A history that fails is made short before it is shown, which takes its time.
TestMachine = pytest.mark.timeout(400)(Machine.TestCase)
TestMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
