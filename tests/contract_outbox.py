"""
What an outbox promises, whatever database is behind it.

A test module gives the fixture ``life`` (``contract_store.Life``) and subclasses the contract. Its store has
`compose_plainly` and `OWNER_URL` of ``foreman.testing.store``.
"""

from collections.abc import Sequence
from typing import Any

from contract_store import FOREVER, Life, failure, whole

from foreman.jobs.delivery import Delivery, DeliveryState, Taken, Try
from foreman.jobs.model import Finish, Job, Piece, Retention, Transition
from foreman.testing.store import OWNER_URL

URL = "http://10.0.0.5:9000/hook"
RECEIVER = "http://10.0.0.5:9000"
OTHER = "https://hook.example:443"
PENDING, DELIVERED, FAILED, STOPPED = DeliveryState


def attempt(at: float, status: int | None = 200, error: str | None = None) -> Try:
    """What came of an attempt."""
    return Try(at=at, address="10.0.0.5", status=status, error=error, duration_ms=500, response=b"ok")


async def take(life: Life, receiver: str = RECEIVER, limit: int = 10, besides: Sequence[str] = ()) -> Taken:
    """What is due now."""
    taken: Taken = await life.store.outbox.take(receiver, life.now, limit, besides)
    return taken


async def deliver(life: Life, state: DeliveryState = DELIVERED, due_at: float | None = None) -> list[int]:
    """Take all that is due and say what came of it; the sequences, in order."""
    sequences = []
    for due in (await take(life)).due:
        tried = attempt(life.now, 200 if state is DELIVERED else 500)
        assert await life.store.outbox.record(due.delivery, tried, state, due_at)
        sequences.append(due.delivery.sequence)
    return sequences


async def deliver_only(
    life: Life, sequence: int, state: DeliveryState = DELIVERED, due_at: float | None = None
) -> bool:
    """Say what came of one of those that are due."""
    (due,) = [due for due in (await take(life)).due if due.delivery.sequence == sequence]
    current: bool = await life.store.outbox.record(due.delivery, attempt(life.now), state, due_at)
    return current


async def one(life: Life) -> Delivery:
    """The one delivery that is due."""
    (due,) = (await take(life)).due
    return due.delivery


async def state_of(life: Life, job: Job) -> Any:
    """How the job's webhooks fare."""
    return (await life.store.outbox.states([job.job_id])).get(job.job_id)


class OutboxContract:
    """All of it."""

    async def test_each_transition_makes_a_delivery(self, life: Life) -> None:
        """With the event's id, in the transition's transaction, and the receiver is told of after it."""
        job = await life.submit(webhook_url=URL)
        assert life.deliveries_due == [(RECEIVER, life.now)]
        delivery = await one(life)
        (event,) = await life.store.events(job.job_id)
        assert delivery == Delivery(
            event_id=event.event_id,
            job_id=job.job_id,
            type="job.queued",
            sequence=1,
            url=URL,
            state=PENDING,
            series=1,
            tried=0,
            due_at=life.now,
        )

    async def test_bodies_are_the_same_at_each_attempt(self, life: Life) -> None:
        """Composed at the first, and on disk before it is sent: also in the next life."""
        job = await life.submit(webhook_url=URL)
        (first,) = (await take(life)).due
        assert first.body == f"{job.job_id} 1 queued ".encode()
        await life.store.cancel(job.job_id)
        await life.crash()
        (again,) = (await take(life)).due
        assert again == first

    async def test_who_is_not_to_be_told(self, life: Life) -> None:
        """Without a URL nobody is, and a filter leaves out what it does not name; an empty one everything."""
        plain = await life.submit()
        narrow = await life.submit(webhook_url=URL, webhook_events=("job.cancelled",))
        nothing = await life.submit(webhook_url=URL, webhook_events=())
        for job in (plain, narrow, nothing):
            await life.store.cancel(job.job_id)
        (delivery,) = [due.delivery for due in (await take(life)).due]
        assert (delivery.job_id, delivery.sequence) == (narrow.job_id, 2)
        assert (await life.store.get(narrow.job_id)).webhook_events == ("job.cancelled",)
        assert await state_of(life, plain) is None
        assert await state_of(life, nothing) is None

    async def test_the_owner_is_told_of_jobs_without_a_url(self, life: Life) -> None:
        """Of those that failed or expired, and of no others."""
        owner = "http://owner.example:80"
        failed = await life.submit()
        await life.run(failed.job_id, Transition.FAILED, error=failure())
        expired = await life.submit(start_deadline=life.now + 1)
        done = await life.submit()
        await life.run(done.job_id)
        silent = await life.submit(webhook_url=URL, webhook_events=())
        await life.run(silent.job_id, Transition.FAILED, error=failure())
        life.now += 2
        await life.store.due(life.now)
        taken = await take(life, owner)
        assert [(due.delivery.job_id, due.delivery.type, due.delivery.url) for due in taken.due] == [
            (failed.job_id, "job.failed", OWNER_URL),
            (expired.job_id, "job.expired", OWNER_URL),
        ]
        assert (await state_of(life, failed)).state is PENDING

    async def test_first_attempts_of_a_job_go_one_at_a_time(self, life: Life) -> None:
        """In the order of `sequence`: the next is due when the first attempt of the one before has ended."""
        job = await life.submit(webhook_url=URL)
        await life.run(job.job_id)
        assert await deliver(life) == [1]
        assert life.deliveries_due[-1] == (RECEIVER, life.now)
        assert await deliver(life, PENDING, life.now + 5) == [2]
        assert await deliver(life) == [3]
        assert await deliver(life) == []
        life.now += 5
        assert await deliver(life) == [2]
        assert (await state_of(life, job)).state is DELIVERED

    async def test_an_event_that_failed_holds_nothing_back(self, life: Life) -> None:
        """Nor one that was given up, nor one that was stopped."""
        job = await life.submit(webhook_url=URL)
        assert await deliver(life, FAILED) == [1]
        claimed = await life.claim(job.job_id)
        assert await deliver(life, STOPPED) == [2]
        await life.store.finish(Finish(claimed.fence, Transition.SUCCEEDED))
        assert await deliver(life) == [3]
        state = await state_of(life, job)
        assert (state.state, state.last_status, state.attempts) == (FAILED, 200, 3)

    async def test_an_event_that_waits_for_its_retry_holds_nothing_back(self, life: Life) -> None:
        """What happens meanwhile is due at once."""
        job = await life.submit(webhook_url=URL)
        assert await deliver(life, PENDING, life.now + 600) == [1]
        await life.store.cancel(job.job_id)
        assert await deliver(life) == [2]

    async def test_take_gives_what_is_due(self, life: Life) -> None:
        """The earliest first, at most so many, of this receiver only; and says when more is due."""
        jobs = []
        for _ in range(4):
            life.now += 1
            jobs.append(await life.submit(webhook_url=URL))
            await life.submit(webhook_url="https://hook.example/x")
        taken = await take(life, limit=2)
        assert [due.delivery.job_id for due in taken.due] == [job.job_id for job in jobs[:2]]
        assert taken.next_due_at == jobs[2].created_at
        besides = [due.delivery.event_id for due in taken.due]
        rest = await take(life, limit=5, besides=besides)
        assert [due.delivery.job_id for due in rest.due] == [job.job_id for job in jobs[2:]]
        assert rest.next_due_at is None
        assert len((await take(life, OTHER)).due) == 4

    async def test_what_is_due_later_is_not_given(self, life: Life) -> None:
        """But its moment is, and a new life knows it."""
        await life.submit(webhook_url=URL)
        await deliver(life, PENDING, life.now + 30)
        assert life.deliveries_due[-1] == (RECEIVER, life.now + 30)
        await life.crash()
        assert await life.store.outbox.receivers() == {RECEIVER: life.now + 30}
        assert await take(life) == Taken((), life.now + 30)

    async def test_receivers_at_start(self, life: Life) -> None:
        """Each with the earliest moment; those with nothing to come are not there."""
        await life.submit(webhook_url=URL)
        await deliver(life)
        assert await life.store.outbox.receivers() == {}
        began = life.now
        for port in (9001, 9002, 9003):
            for _ in range(3):
                await life.submit(webhook_url=f"http://10.0.0.5:{port}/hook")
                life.now += 1
        found = await life.store.outbox.receivers()
        assert found == {f"http://10.0.0.5:{9001 + n}": began + 3 * n for n in range(3)}

    async def test_result_is_handed_to_the_composer(self, life: Life) -> None:
        """For the event that ended the run, when it is small; not when the job has moved on since."""
        for size, wanted in ((20_000, True), (20_001, False)):
            content = b"x" * size
            artifact, pieces = whole("response.json", content)
            job = await life.submit(webhook_url=URL, webhook_events=("job.succeeded",))
            await life.run(job.job_id, artifacts=(artifact,), pieces=(Piece("response.json", 0, pieces[0]),))
            (due,) = (await take(life)).due
            assert due.body == f"{job.job_id} 3 succeeded ".encode() + (content if wanted else b"")
            await deliver(life)
        again = await life.submit(webhook_url=URL, webhook_events=("job.succeeded",))
        artifact, pieces = whole("response.json", b"{}")
        await life.run(again.job_id, artifacts=(artifact,), pieces=(Piece("response.json", 0, pieces[0]),))
        await life.store.retry(again.job_id)
        (due,) = (await take(life)).due
        assert due.body == f"{again.job_id} 3 succeeded ".encode()

    async def test_result_of_a_later_run_is_not_handed_over(self, life: Life) -> None:
        """The event of the first run is composed when a second one has ended well already."""
        job = await life.submit(webhook_url=URL, webhook_events=("job.succeeded",))
        for content in (b"first", b"second"):
            artifact, pieces = whole("response.json", content)
            await life.run(job.job_id, artifacts=(artifact,), pieces=(Piece("response.json", 0, pieces[0]),))
            if content == b"first":
                await life.store.retry(job.job_id)
        (due,) = (await take(life)).due
        assert due.body == f"{job.job_id} 3 succeeded ".encode()
        await deliver(life)
        (due,) = (await take(life)).due
        assert due.body == f"{job.job_id} 6 succeeded second".encode()

    async def test_only_a_first_attempt_lets_the_next_event_go(self, life: Life) -> None:
        """Not a retry of an earlier event, nor one that somebody asked for."""
        job = await life.submit(webhook_url=URL)
        await life.run(job.job_id)
        retried = await one(life)
        assert await deliver(life, PENDING, life.now) == [1]
        assert await deliver_only(life, 1, PENDING, life.now)
        assert [due.delivery.sequence for due in (await take(life)).due] == [1, 2]
        await life.store.outbox.redeliver(job.job_id, retried.event_id, life.now)
        assert await deliver_only(life, 1)
        assert [due.delivery.sequence for due in (await take(life)).due] == [2]

    async def test_an_attempt_that_is_written_twice(self, life: Life) -> None:
        """The second time changes nothing but the log."""
        job = await life.submit(webhook_url=URL)
        await life.run(job.job_id)
        delivery = await one(life)
        assert await life.store.outbox.record(delivery, attempt(life.now, 500), PENDING, life.now + 5)
        assert not await life.store.outbox.record(delivery, attempt(life.now, 500), PENDING, life.now + 9)
        (first, _), _, (third, _) = await life.store.outbox.deliveries(job.job_id)
        assert (first.tried, first.due_at, third.due_at) == (1, life.now + 5, None)

    async def test_log(self, life: Life) -> None:
        """Each delivery with its attempts, oldest first."""
        job = await life.submit(webhook_url=URL)
        await deliver(life, PENDING, life.now + 5)
        life.now += 5
        await life.store.cancel(job.job_id)
        delivery = (await take(life)).due[0].delivery
        refused = Try(
            at=life.now,
            address=None,
            status=None,
            error="dns_error",
            duration_ms=3,
            response=b"",
        )
        await life.store.outbox.record(delivery, refused, PENDING, life.now + 30)
        (first, tries), (second, none) = await life.store.outbox.deliveries(job.job_id)
        assert tries == [attempt(life.now - 5, 500), refused]
        assert (first.state, first.tried, first.due_at) == (PENDING, 2, life.now + 30)
        assert (second.type, none) == ("job.cancelled", [])
        state = await state_of(life, job)
        assert (state.state, state.last_status, state.attempts) == (PENDING, 500, 2)

    async def test_redeliver(self, life: Life) -> None:
        """A new series of an event that ended, or the place of a retry that waits; the same body."""
        job = await life.submit(webhook_url=URL)
        (first,) = (await take(life)).due
        await deliver(life)
        again = await life.store.outbox.redeliver(job.job_id, first.delivery.event_id, life.now + 9)
        assert (again.state, again.series, again.tried, again.due_at) == (PENDING, 2, 0, life.now + 9)
        assert life.deliveries_due[-1] == (RECEIVER, life.now + 9)
        assert (await state_of(life, job)).state is PENDING
        life.now += 9
        (due,) = (await take(life)).due
        assert (due.body, due.delivery.series) == (first.body, 2)
        await deliver(life, PENDING, life.now + 600)
        await life.store.outbox.redeliver(job.job_id, first.delivery.event_id, life.now)
        assert (await one(life)).series == 3

    async def test_redeliver_in_each_state_that_is_final(self, life: Life) -> None:
        """It begins anew, and its end is forgotten: it is not pruned while it waits."""
        for state in (DELIVERED, FAILED, STOPPED):
            job = await life.submit(webhook_url=URL, webhook_events=("job.queued",))
            delivery = await one(life)
            await deliver(life, state)
            assert await take(life) == Taken((), None)
            await life.store.outbox.redeliver(job.job_id, delivery.event_id, life.now)
            assert await life.store.outbox.prune(life.now + 1e9) == 0
            assert (await one(life)).series == 2
            assert await deliver(life) == [1]
            assert (await state_of(life, job)).attempts == 2
            assert await life.store.outbox.prune(life.now + 1) == 1

    async def test_an_attempt_that_was_on_the_wire_when_it_was_asked_for_again(self, life: Life) -> None:
        """It has tried as often as the new series has: still it is not of it."""
        job = await life.submit(webhook_url=URL)
        await deliver(life)
        ((sent, _),) = await life.store.outbox.deliveries(job.job_id)
        await life.store.outbox.redeliver(job.job_id, sent.event_id, life.now)
        on_wire = await one(life)
        await life.store.outbox.redeliver(job.job_id, on_wire.event_id, life.now)
        assert not await life.store.outbox.record(on_wire, attempt(life.now), DELIVERED)
        assert (await one(life)).series == 3

    async def test_an_attempt_of_an_old_series_only_stands_in_the_log(self, life: Life) -> None:
        """What came of it does not touch the series that somebody asked for meanwhile."""
        job = await life.submit(webhook_url=URL)
        delivery = await one(life)
        await life.store.outbox.record(delivery, attempt(life.now, 500), PENDING, life.now + 5)
        retried = (await life.store.outbox.deliveries(job.job_id))[0][0]
        await life.store.outbox.redeliver(job.job_id, delivery.event_id, life.now)
        assert not await life.store.outbox.record(retried, attempt(life.now, 500), FAILED)
        ((now, tries),) = await life.store.outbox.deliveries(job.job_id)
        assert (now.state, now.series, len(tries)) == (PENDING, 2, 2)

    async def test_redeliver_of_what_was_never_tried(self, life: Life) -> None:
        """It stays as it is: its first attempt comes in its order. Of an unknown one there is nothing."""
        job = await life.submit(webhook_url=URL)
        other = await life.submit(webhook_url=URL)
        await life.store.cancel(job.job_id)
        held = (await life.store.outbox.deliveries(job.job_id))[1][0]
        assert await life.store.outbox.redeliver(job.job_id, held.event_id, life.now) == held
        assert await life.store.outbox.redeliver(other.job_id, held.event_id, life.now) is None
        assert await life.store.outbox.redeliver(job.job_id, other.job_id, life.now) is None

    async def test_announcements(self, life: Life) -> None:
        """An event of foreman's own has its body at once, and the last one is known in the next life."""
        assert await life.store.outbox.last_announcement() is None
        await life.store.outbox.announce("E1", "foreman.degraded", URL, b"{}", life.now)
        await life.store.outbox.announce("E2", "foreman.recovered", URL, b"{2}", life.now)
        first, second = (await take(life)).due
        assert (first.body, first.delivery.type, first.delivery.job_id) == (b"{}", "foreman.degraded", None)
        await life.store.outbox.record(first.delivery, attempt(life.now), DELIVERED)
        await life.crash()
        assert await life.store.outbox.last_announcement() == second

    async def test_a_pruned_job_is_still_called_back(self, life: Life) -> None:
        """Its events stay until their deliveries have ended, and the log a while longer."""
        job = await life.submit(webhook_url=URL)
        await life.run(job.job_id)
        assert await deliver(life) == [1]
        life.now += 100
        assert await life.store.prune(life.now, Retention(10, 10, 1000)) == 1
        assert await deliver(life) == [2]
        assert await deliver(life) == [3]
        assert len(await life.store.outbox.deliveries(job.job_id)) == 3

    async def test_a_deleted_job_is_still_called_back(self, life: Life) -> None:
        """Its events stay with its tombstone, and those that are not sent yet longer than that."""
        job = await life.submit(webhook_url=URL)
        await life.run(job.job_id)
        assert await deliver(life) == [1]
        await life.store.delete(job.job_id)
        life.now += 2000
        for _ in range(2):
            await life.store.prune(life.now, Retention(10, 10, 1000))
        assert await life.store.get(job.job_id) is None
        assert [event.sequence for event in await life.store.events(job.job_id)] == [2, 3]
        assert [await deliver(life), await deliver(life)] == [[2], [3]]
        assert await life.store.outbox.prune(life.now + 1) == 3
        assert await life.store.events(job.job_id) == []

    async def test_prune(self, life: Life) -> None:
        """Deliveries go when their end is so long ago, the last events of a pruned job with them."""
        job = await life.submit(webhook_url=URL)
        await life.run(job.job_id)
        await deliver(life)
        ended = life.now + 0.5
        life.now += 50
        await life.store.prune(life.now, Retention(10, 10, 1000))
        assert await life.store.outbox.prune(ended - 0.1) == 0
        assert await life.store.outbox.prune(ended) == 1
        assert [one.sequence for one, _ in await life.store.outbox.deliveries(job.job_id)] == [2, 3]
        await deliver(life)
        await deliver(life)
        assert await life.store.outbox.prune(life.now + 1) == 2
        assert await life.store.events(job.job_id) == []
        waiting = await life.submit(webhook_url=URL)
        assert await life.store.outbox.prune(life.now + 1e9) == 0
        assert (await one(life)).job_id == waiting.job_id

    async def test_events_of_a_job_that_is_there_stay(self, life: Life) -> None:
        """They belong to the job; only their deliveries are pruned."""
        job = await life.submit(webhook_url=URL)
        await deliver(life)
        assert await life.store.outbox.prune(life.now + 1) == 1
        assert len(await life.store.events(job.job_id)) == 1
        await life.store.prune(life.now, FOREVER)
        assert await state_of(life, job) is None
