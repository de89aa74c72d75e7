"""Races: whoever comes first wins, the other is told, and each job ends once."""

import random
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from contract_store import Life, failure, types, whole
from held_pool import HeldPool
from twisted.internet.defer import Deferred

from foreman.errors import JobUnfinished
from foreman.jobs.database import InlinePool, Pools
from foreman.jobs.model import Finish, Job, Retention, Status, Tombstone, Transition
from foreman.jobs.store import SqliteStore
from foreman.testing.store import compose_plainly

ROUNDS = 1000


class Held:
    """A store whose writer works when it is told to. `settle` lets everything happen."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pool = HeldPool()
        self.life = Life(self._begin)
        self.now(self.life.crash())

    async def _begin(self, life: Life) -> Any:
        store = SqliteStore(
            ":memory:",
            Pools(self.pool, InlinePool(self.pool.connection)),
            lambda: life.now,
            compose_plainly,
        )
        await store.open()
        return store

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> list[Any]:
        """Begin something. The list gets its result, or its error."""
        found: list[Any] = []
        Deferred.fromCoroutine(coroutine).addBoth(
            lambda result: found.append(getattr(result, "value", result))
        )
        return found

    def settle(self) -> None:
        while self.pool.calls:
            self.pool.work()

    def now(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        found = self.start(coroutine)
        self.settle()
        (result,) = found
        return result

    def shuffle(self, *steps: Any) -> None:
        """Do the steps in some order, with some work of the writer's between them."""
        for step in self.random.sample(steps, len(steps)):
            step()
            for _ in range(self.random.randrange(3)):
                if self.pool.calls:
                    self.pool.work()
        self.settle()


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held(1)
    yield held
    held.pool.close()


def test_cancel_against_finish(held: Held) -> None:
    """In 1,000 interleavings: one end, and what the user and the worker were told agrees with it."""
    life, ends = held.life, {Status.SUCCEEDED: 0, Status.CANCELLED: 0}
    for _ in range(ROUNDS):
        job = held.now(life.submit())
        claimed = held.now(life.claim(job.job_id))
        finishes: dict[Transition, list[Any]] = {}

        def finish(transition: Transition, claimed: Any = claimed, finishes: Any = finishes) -> None:
            finishes[transition] = held.start(life.store.finish(Finish(claimed.fence, transition)))

        def told(job_id: str, finish: Any = finish) -> None:
            finish(Transition.CANCELLED)  # the worker closes the target's connection, and writes it down

        life.store.on_cancel_requested = told
        cancels: list[list[Any]] = []

        def cancel(job: Job = job, cancels: list[list[Any]] = cancels) -> None:
            cancels.append(held.start(life.store.cancel(job.job_id)))

        held.shuffle(lambda finish=finish: finish(Transition.SUCCEEDED), cancel, cancel)
        after = held.now(life.store.get(job.job_id))
        ends[after.status] += 1
        won = [transition for transition, (result,) in finishes.items() if result.changed]
        assert [Transition(after.status.value)] == won
        assert all(result.job.status.ended for (result,) in finishes.values())
        assert len(cancels) == 2
        assert {result.status for (result,) in cancels} <= {Status.RUNNING, after.status}
        events = held.now(life.store.events(job.job_id))
        assert types(events) == ["job.queued", "job.running", f"job.{after.status.value}"]
        held.now(life.store.prune(life.now, Retention(0, 0, 0)))
    assert min(ends.values()) > ROUNDS // 10


def test_cancel_against_claim(held: Held) -> None:
    """A job is cancelled before it starts, or starts and is asked to stop; never both and never neither."""
    life = held.life
    for _ in range(200):
        job = held.now(life.submit())
        life.cancels.clear()
        results: dict[str, list[Any]] = {}
        held.shuffle(
            lambda job=job, results=results: results.update(claim=held.start(life.store.claim(job.job_id))),
            lambda job=job, results=results: results.update(cancel=held.start(life.store.cancel(job.job_id))),
        )
        (turnover,), (cancelled,) = results["claim"], results["cancel"]
        if turnover.claimed is None:
            assert (cancelled.status, life.cancels) == (Status.CANCELLED, [])
        else:
            assert (cancelled.status, life.cancels) == (Status.RUNNING, [job.job_id])
            assert cancelled.cancel_requested_at is not None
        assert all(view.count == 0 for view in life.views.values())


def test_two_claims_of_one_job(held: Held) -> None:
    """One of them gets it."""
    life = held.life
    job = held.now(life.submit())
    claims = [held.start(life.store.claim(job.job_id)) for _ in range(5)]
    held.settle()
    assert [turnover.claimed is not None for (turnover,) in claims] == [True] + [False] * 4


def test_retry_against_prune_and_delete(held: Held) -> None:
    """A job runs again with its body, or is a tombstone; its bytes are never half there."""
    life, ends = held.life, {"again": 0, "gone": 0}
    for _ in range(300):
        job = held.now(life.submit(body=b"the body"))
        held.now(life.run(job.job_id, Transition.FAILED, error=failure()))
        results: dict[str, list[Any]] = {}
        remove = held.random.choice(
            [
                lambda: life.store.prune(life.now, Retention(0, 0, 1e9)),
                lambda job=job: life.store.delete(job.job_id),
            ]
        )
        held.shuffle(
            lambda job=job, results=results: results.update(retry=held.start(life.store.retry(job.job_id))),
            lambda remove=remove, results=results: results.update(remove=held.start(remove())),
        )
        (retried,), (removed,) = results["retry"], results["remove"]
        after = held.now(life.store.get(job.job_id))
        if isinstance(retried, Tombstone):
            assert after == retried
            ends["gone"] += 1
        else:
            assert isinstance(removed, JobUnfinished) or removed == 0
            assert held.now(life.claim(job.job_id)).body == b"the body"
            ends["again"] += 1
    assert min(ends.values()) > 30
    ((left,),) = held.pool.connection.execute(
        "SELECT count(*) FROM piece WHERE seq NOT IN (SELECT seq FROM job)"
    ).fetchall()
    assert left == 0


def test_delete_against_read(held: Held) -> None:
    """A reader gets whole pieces up to the delete, and None from then on."""
    life = held.life
    for _ in range(30):
        job = held.now(life.submit())
        claimed = held.now(life.claim(job.job_id))
        artifact, pieces = whole("a.bin", bytes(range(256)) * 4096)  # four pieces
        for number, piece in enumerate(pieces):
            held.now(life.store.put_artifact_piece(claimed.fence, "a.bin", number, piece))
        held.now(life.store.finish(Finish(claimed.fence, Transition.SUCCEEDED, artifacts=(artifact,))))
        read: list[Any] = []
        at = held.random.randrange(5)
        for number in range(4):
            if number == at:
                deleted = held.start(life.store.delete(job.job_id))
                if held.random.random() < 0.5:
                    held.pool.work()
                else:
                    held.settle()
            read.append(held.now(life.store.piece(job.job_id, "a.bin", number)))
        whole_until = min(at, 4)
        assert read == pieces[:whole_until] + [None] * (4 - whole_until)
        assert at == 4 or isinstance(deleted[0], Tombstone)
