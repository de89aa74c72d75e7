"""The dispatcher on a Clock, with the real outbox in memory."""

import sqlite3
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from ulid import ULID

from foreman.errors import DatabaseFull, DeliveryNotFound, DeliveryUnderWay
from foreman.jobs.delivery import DeliveryState
from foreman.jobs.model import Finish, Job, LineKey, Submission, Transition
from foreman.testing.sender import SILENCE, ScriptedSender, answer
from foreman.testing.store import make_store
from foreman.webhooks.dispatcher import BACKLOG_SECONDS, Dispatcher
from foreman.webhooks.signature import Signer

NOW = 1_800_000_000.0
BACKOFF = (5.0, 30.0, 120.0, 600.0, 3600.0)


def now(awaitable: Any) -> Any:
    """The result of what needs no waiting."""
    results: list[Any] = []
    Deferred.fromCoroutine(awaitable).addBoth(results.append)
    assert results, "it is not done yet"
    if hasattr(results[0], "raiseException"):
        results[0].raiseException()
    return results[0]


def submission(number: int, url: str, **values: Any) -> Submission:
    """A job to be handed in."""
    return Submission(
        **{
            "job_id": str(ULID.from_timestamp(NOW + number)),
            "endpoint": "/api/chat",
            "line": LineKey("m"),
            "body": b"{}",
            "created_at": NOW,
            "webhook_url": url,
            **values,
        }
    )


@define
class Bench:
    """A dispatcher that has started. `jitter` is what is drawn."""

    clock: Clock
    store: Any
    pool: Any
    sender: ScriptedSender = field(factory=ScriptedSender)
    jitter: float = 0.0
    concurrency: int = 64
    outbox: Any = None
    dispatcher: Dispatcher = field(init=False)
    _count: int = 0

    def begin(self) -> None:
        """The dispatcher of a new life."""
        self.dispatcher = Dispatcher(
            self.clock,
            self.outbox or self.store.outbox,
            self.sender,
            Signer(("a secret",)),
            BACKOFF,
            self.concurrency,
            lambda: self.jitter,
        )
        now(self.dispatcher.start())

    def end(self) -> None:
        """It stops with no patience."""
        stopped = Deferred.fromCoroutine(self.dispatcher.stop(1.0, 1.0))
        self.clock.pump([1.0, 1.0])
        assert stopped.called

    def submit(self, url: str = "http://a/hook", **values: Any) -> Job:
        """A job that waits: one event."""
        self._count += 1
        job: Job = now(
            self.store.submit(submission(self._count, url, created_at=self.clock.seconds(), **values))
        )
        return job

    def run(self, job: Job) -> None:
        """It runs and succeeds: two more events."""
        claimed = now(self.store.claim(job.job_id)).claimed
        now(self.store.finish(Finish(claimed.fence, Transition.SUCCEEDED)))

    def log(self, job: Job) -> Any:
        """Its deliveries with their attempts."""
        return now(self.store.outbox.deliveries(job.job_id))

    def sent(self) -> list[str]:
        """What was sent so far: the bodies."""
        return [post.body.decode().partition(" ")[2].strip() for post in self.sender.posts]


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Attempts end when a test says so."""
    clock = Clock()
    clock.advance(NOW)
    store, pool = make_store(clock)
    bench = Bench(clock, store, pool)
    bench.begin()
    yield bench
    bench.end()
    now(store.close())


def test_headers_and_body(bench: Bench) -> None:
    """What every attempt bears; the signature is over the bytes that are sent."""
    job = bench.submit()
    (post,) = bench.sender.posts
    (event,) = now(bench.store.events(job.job_id))
    assert post.url == "http://a/hook"
    assert post.body == f"{job.job_id} 1 queued ".encode()
    assert post.headers["user-agent"].startswith("foreman/")
    assert post.headers["content-type"] == "application/json"
    assert post.headers["x-foreman-event"] == "job.queued"
    assert post.headers["x-foreman-attempt"] == "1"
    assert post.headers["webhook-id"] == event.event_id
    assert post.headers["webhook-timestamp"] == str(int(NOW))
    signed = dict(Signer(("a secret",)).headers(event.event_id, int(NOW), post.body))
    assert post.headers["webhook-signature"] == signed[b"webhook-signature"].decode()


@pytest.mark.parametrize("jitter", [-1.0, 0.0, 1.0])
def test_schedule(bench: Bench, jitter: float) -> None:
    """One attempt and five retries, each so long after the end of the one before; then it has failed."""
    bench.jitter = jitter
    job = bench.submit()
    for number, planned in enumerate(BACKOFF, 1):
        (post,) = bench.sender.open
        assert post.headers["x-foreman-attempt"] == str(number)
        bench.clock.advance(2)  # the delay is counted from the end
        post.end(answer(500))
        delay = planned * (1 + 0.2 * jitter)
        # No step longer than the dispatcher sleeps: it wakes by itself.
        bench.clock.pump([delay - 0.001])
        assert not bench.sender.open
        bench.clock.pump([0.001] + [60.0] * 70 if delay > 60 else [0.001])
        assert len(bench.sender.open) == 1
    bench.sender.open[0].end(SILENCE)
    bench.clock.pump([3600.0] * 10)
    ((delivery, tries),) = bench.log(job)
    assert (delivery.state, delivery.due_at) == (DeliveryState.FAILED, None)
    assert [one.status for one in tries] == [500] * 5 + [None]
    assert len({post.body for post in bench.sender.posts}) == 1
    assert len({post.headers["webhook-id"] for post in bench.sender.posts}) == 1


def test_a_restart_neither_loses_nor_hurries_a_retry(bench: Bench) -> None:
    """Its moment is in the database."""
    bench.submit()
    bench.sender.open[0].end(answer(500))
    bench.clock.advance(2)
    bench.end()
    bench.begin()
    bench.clock.advance(0.9)  # the stop took two seconds
    assert len(bench.sender.posts) == 1
    bench.clock.advance(0.1)
    assert len(bench.sender.posts) == 2


def test_an_attempt_that_the_stop_cut_does_not_count(bench: Bench) -> None:
    """It is made again at once in the next life, as the same attempt."""
    job = bench.submit()
    bench.end()
    assert not bench.sender.open
    bench.begin()
    assert [post.headers["x-foreman-attempt"] for post in bench.sender.posts] == ["1", "1"]
    ((_, tries),) = bench.log(job)
    assert tries == []


def test_the_stop_waits_for_what_is_on_the_wire(bench: Bench) -> None:
    """An answer within the grace counts; nothing new is begun meanwhile."""
    job = bench.submit()
    stopped = Deferred.fromCoroutine(bench.dispatcher.stop(5.0, 1.0))
    bench.submit("http://b/hook")
    bench.clock.advance(1)
    assert not stopped.called
    bench.sender.open[0].end(answer(200))
    assert stopped.called
    assert bench.log(job)[0][0].state is DeliveryState.DELIVERED
    assert len(bench.sender.posts) == 1
    bench.begin()


def test_first_attempts_in_order(bench: Bench) -> None:
    """One at a time within a job; a first attempt that failed lets the next one go."""
    job = bench.submit()
    bench.run(job)
    assert bench.sent() == ["1 queued"]
    bench.sender.open[0].end(answer(500))
    assert bench.sent() == ["1 queued", "2 running"]
    bench.sender.open[0].end(answer(200))
    bench.sender.open[0].end(answer(200))
    bench.clock.advance(5)
    assert bench.sent() == ["1 queued", "2 running", "3 succeeded", "1 queued"]


def test_a_look_right_after_the_commit_loses_no_retry(bench: Bench) -> None:
    """What is due now may be told in the same commit as a retry that is due later."""
    job = bench.submit()
    bench.pool.commit_seconds = 0.5
    begun = [Deferred.fromCoroutine(bench.store.submit(submission(1, "http://b/hook")))]
    bench.sender.open[0].end(answer(500))
    begun.append(Deferred.fromCoroutine(bench.store.submit(submission(2, "http://a/hook"))))
    bench.clock.pump([0.5] * 4)
    bench.pool.commit_seconds = 0.0
    assert all(one.called for one in begun)
    for post in list(bench.sender.open):
        post.end(answer(200))
    bench.clock.pump([1.0] * 5)
    attempts = [
        post.headers["x-foreman-attempt"] for post in bench.sender.posts if job.job_id in str(post.body)
    ]
    assert attempts == ["1", "2"]


def test_retry_after_and_gone(bench: Bench) -> None:
    """503 may say when, and 410 ends it."""
    job = bench.submit()
    bench.sender.open[0].end(answer(503, retry_after=b"60"))
    bench.clock.advance(59)
    assert len(bench.sender.posts) == 1
    bench.clock.advance(1)
    bench.sender.open[0].end(answer(410))
    assert bench.log(job)[0][0].state is DeliveryState.STOPPED


def test_a_dead_receiver_delays_nobody(bench: Bench) -> None:
    """A thousand events for it: one attempt at once, few bodies in memory; the other gets all its own."""
    for _ in range(1000):
        bench.submit("http://dead/hook")
    for _ in range(20):
        bench.submit("http://well/hook")
    assert [post.url for post in bench.sender.open] == ["http://dead/hook", "http://well/hook"]
    while well := [post for post in bench.sender.open if "well" in post.url]:
        assert len(well) <= 4
        well[0].end(answer(200))
    assert sum("well" in post.url for post in bench.sender.posts) == 20
    for _ in range(3):
        bench.clock.advance(15)
        (dead,) = bench.sender.open
        dead.end(SILENCE)
    assert bench.dispatcher._ready < 20


def test_memory_is_bounded_with_many_receivers(bench: Bench) -> None:
    """All places are used, and few bodies wait for one."""
    for number in range(300):
        for _ in range(3):
            bench.submit(f"http://r{number}/hook")
    assert len(bench.sender.open) == 64
    for post in list(bench.sender.open):
        post.end(answer(200))
    assert len(bench.sender.open) == 64
    assert bench.dispatcher._ready <= 3 * 64


def test_redeliver(bench: Bench) -> None:
    """Again from the first attempt on, in the place of a retry that waits; not while it is on the wire."""
    job = bench.submit()
    event_id = bench.sender.posts[0].headers["webhook-id"]
    with pytest.raises(DeliveryUnderWay):
        now(bench.dispatcher.redeliver(job.job_id, event_id))
    bench.sender.open[0].end(answer(500))
    now(bench.dispatcher.redeliver(job.job_id, event_id))
    (post,) = bench.sender.open
    assert post.headers["x-foreman-attempt"] == "1"
    assert post.body == bench.sender.posts[0].body
    post.end(answer(200))
    bench.clock.pump([60.0] * 10)
    assert len(bench.sender.posts) == 2
    now(bench.dispatcher.redeliver(job.job_id, event_id))
    assert len(bench.sender.posts) == 3
    with pytest.raises(DeliveryNotFound):
        now(bench.dispatcher.redeliver(job.job_id, "01J00000000000000000000000"))


def test_redeliver_of_what_was_read_already(bench: Bench) -> None:
    """The copy of the old series is not sent: one attempt more, the first of the new series."""
    bench.sender.outcome = answer(500)
    jobs = [bench.submit() for _ in range(20)]
    bench.sender.outcome = None
    bench.submit()
    bench.sender.open[0].end(answer(200))  # the receiver is well, so that many are read at once
    bench.clock.advance(5)
    event_id = bench.log(jobs[10])[0][0].event_id
    assert len(bench.sender.open) == 4
    assert event_id in bench.dispatcher._besides
    now(bench.dispatcher.redeliver(jobs[10].job_id, event_id))
    while bench.sender.open:
        bench.sender.open[0].end(answer(200))
    attempts = [post.headers for post in bench.sender.posts if post.headers["webhook-id"] == event_id]
    assert [headers["x-foreman-attempt"] for headers in attempts] == ["1", "1"]
    assert all(bench.log(job)[0][0].state is DeliveryState.DELIVERED for job in jobs)


def test_redeliver_in_the_commit_of_the_last_attempt(bench: Bench) -> None:
    """Whoever looks after that commit still passes the event over; it is sent all the same."""
    job = bench.submit()
    event_id = bench.sender.posts[0].headers["webhook-id"]
    bench.pool.commit_seconds = 0.5
    other = Deferred.fromCoroutine(bench.store.submit(submission(2, "http://b/hook")))
    bench.sender.open[0].end(answer(200))  # its record waits for the writer
    again = Deferred.fromCoroutine(bench.dispatcher.redeliver(job.job_id, event_id))
    bench.clock.pump([0.5] * 6)
    assert other.called
    assert again.called
    bench.pool.commit_seconds = 0.0
    assert [post.headers["webhook-id"] for post in bench.sender.posts].count(event_id) == 2


def test_redeliver_though_the_caller_has_left(bench: Bench) -> None:
    """What is in the outbox is sent."""
    job = bench.submit()
    event_id = bench.sender.posts[0].headers["webhook-id"]
    bench.sender.open[0].end(answer(200))
    bench.pool.commit_seconds = 0.5
    again = Deferred.fromCoroutine(bench.dispatcher.redeliver(job.job_id, event_id))
    again.addErrback(lambda failure: failure.trap(CancelledError))
    again.cancel()
    bench.clock.pump([0.5] * 4)
    bench.pool.commit_seconds = 0.0
    assert len(bench.sender.posts) == 2


def test_a_database_that_cannot_be_written(bench: Bench) -> None:
    """Webhooks wait for it, are late meanwhile, and go on; an attempt that was made is not made again."""
    job = bench.submit()
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorname = "SQLITE_FULL"
    bench.pool.broken = full
    bench.sender.open[0].end(answer(200))
    bench.dispatcher.due("http://a:80", bench.clock.seconds())
    bench.clock.pump([30.0] * 11)
    assert bench.dispatcher.behind_seconds > BACKLOG_SECONDS
    assert len(bench.sender.posts) == 1
    bench.pool.broken = None
    bench.clock.pump([30.0] * 2)
    assert bench.dispatcher.behind_seconds == 0.0
    assert bench.log(job)[0][0].state is DeliveryState.DELIVERED
    bench.submit()
    assert len(bench.sender.posts) == 2


class Poisoned:
    """An outbox with a fault: it cannot read what is for one receiver, the first time."""

    def __init__(self, outbox: Any) -> None:
        self._outbox = outbox
        self.faults = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outbox, name)

    async def take(self, name: str, *given: Any) -> Any:
        if "poison" in name and not self.faults:
            self.faults += 1
            raise RuntimeError("a fault of foreman's own")
        return await self._outbox.take(name, *given)


def test_a_fault_with_one_receiver_holds_up_nobody_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What foreman itself cannot read is logged and read again later; its place is free meanwhile."""
    log = Mock()
    monkeypatch.setattr(Dispatcher, "_log", log)
    bench.end()
    bench.concurrency = 1
    bench.submit("http://poison/hook")
    bench.submit("http://well/hook")
    bench.outbox = Poisoned(bench.store.outbox)
    bench.begin()
    assert [post.url for post in bench.sender.posts] == ["http://well/hook"]
    assert log.failure.call_count == 1
    bench.sender.open[0].end(answer(200))
    bench.clock.advance(30)
    assert [post.url for post in bench.sender.open] == ["http://poison/hook"]


class TwicePoisoned(Poisoned):
    """The disk is full, and then something else is wrong."""

    async def take(self, name: str, *given: Any) -> Any:
        if "poison" in name:
            self.faults += 1
            raise DatabaseFull("foreman.db") if self.faults == 1 else RuntimeError("a fault")
        return await self._outbox.take(name, *given)


def test_a_fault_after_a_full_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the disk was full for one receiver holds nobody up when it no longer is."""
    monkeypatch.setattr(Dispatcher, "_log", Mock())
    bench.end()
    bench.concurrency = 1
    bench.submit("http://poison/hook")
    bench.submit("http://well/hook")
    bench.outbox = TwicePoisoned(bench.store.outbox)
    bench.begin()
    assert bench.sender.posts == []
    bench.clock.pump([1.0] * 4)
    assert [post.url for post in bench.sender.posts] == ["http://well/hook"]
    assert bench.dispatcher.behind_seconds == 0.0


def test_waiting_for_a_place_is_late(bench: Bench) -> None:
    """For one's own receiver it is not; for the places of others it is."""
    bench.end()
    bench.concurrency = 1
    bench.begin()
    bench.submit("http://dead/hook")
    bench.submit("http://dead/hook")
    bench.clock.advance(400)
    assert bench.dispatcher.behind_seconds == 0.0
    bench.submit("http://other/hook")
    bench.clock.advance(400)
    assert bench.dispatcher.behind_seconds == 400.0


def test_sharing_too_few_places_is_late(bench: Bench) -> None:
    """Forty that are well and slow each get a place now and then, and are behind all the same."""
    for _ in range(150):
        for number in range(40):
            bench.submit(f"http://r{number}/hook")
    for _ in range(60):
        for post in list(bench.sender.open):
            post.end(answer(200))
        bench.clock.advance(14)
    assert bench.dispatcher.behind_seconds > BACKLOG_SECONDS


def test_bodies_are_on_disk_before_they_are_sent(bench: Bench) -> None:
    """And an event wakes the dispatcher: no time passes between its commit and its attempt."""
    bench.pool.commit_seconds = 0.5
    submitted = Deferred.fromCoroutine(bench.store.submit(submission(0, "http://a/hook")))
    bench.clock.advance(0.5)
    assert submitted.called
    assert bench.sender.posts == []
    bench.clock.advance(0.5)
    assert len(bench.sender.posts) == 1
    bench.pool.commit_seconds = 0.0


def test_log_line(bench: Bench) -> None:
    """It names what was tried and what comes next, without the body or the secret."""
    lines: list[str] = []

    def hear(event: LogEvent) -> None:
        lines.append(str(formatEvent(event)))

    globalLogPublisher.addObserver(hear)
    job = bench.submit()
    bench.sender.open[0].end(answer(500))
    globalLogPublisher.removeObserver(hear)
    assert lines == [f"webhook job.queued of job {job.job_id}, attempt 1: it answered 500; again in 5s"]
