"""Rows that somebody changed by hand, with sqlite3: the counters are wrong then, and the lanes go on."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from contract_store import Life
from twisted.internet.defer import Deferred, gatherResults

from foreman.errors import QueueFull
from foreman.jobs import changes
from foreman.jobs.database import open_pools, prepare
from foreman.jobs.lines import recount
from foreman.jobs.store import SqliteStore
from foreman.testing.store import compose_plainly

QUEUED = "DELETE FROM job WHERE status = 'queued'"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "foreman.db")


@pytest_twisted.async_yield_fixture
async def life(path: str) -> AsyncIterator[Life]:
    """A store on a file; `crash` begins its next life."""
    from twisted.internet import reactor

    prepare(path)
    opened: list[SqliteStore] = []

    async def begin(life: Life) -> Any:
        store = SqliteStore(
            path, open_pools(path, reactor), lambda: life.now, compose_plainly, queue_limit=life.queue_limit
        )
        opened.append(store)
        await store.open()
        return store

    life = Life(begin)
    await life.crash()
    yield life
    for store in opened:
        await store.close()


def by_hand(path: str, *statements: str) -> None:
    """What a person does in a shell, while foreman has the file open."""
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


CLEARED = pytest.mark.parametrize(
    "statements", [(QUEUED,), (QUEUED, "DELETE FROM line", "DELETE FROM waiting")], ids=["jobs", "all"]
)


@CLEARED
async def test_a_cleared_queue_while_foreman_is_stopped(
    life: Life, path: str, statements: tuple[str, ...]
) -> None:
    """The next life counts anew, and begins."""
    for model in "mn":
        await life.submit(model)
    by_hand(path, *statements)
    await life.crash()
    assert await life.heads() == {}
    job = await life.submit()
    assert await life.heads() == {"m": (1, job.job_id, job.job_id)}
    assert await life.store.ahead(job.job_id) == 0


async def test_counters_that_are_wrong_are_right_in_the_next_life(life: Life, path: str) -> None:
    """Those of the lines, and how many jobs wait in all: also in a backoff, or scheduled."""
    job, _ = await life.submit(), await life.submit("n")
    await life.submit(run_at=life.now + 9)
    by_hand(path, "UPDATE line SET waiting = 7 WHERE model = 'm'", "DELETE FROM line WHERE model = 'n'")
    by_hand(path, "UPDATE waiting SET jobs = 1000000")
    life.queue_limit = 4
    await life.crash()
    assert {model: count for model, (count, _, _) in (await life.heads()).items()} == {"m": 1, "n": 1}
    await life.submit()
    with pytest.raises(QueueFull):
        await life.submit()
    await life.store.cancel(job.job_id)
    await life.submit()


@CLEARED
async def test_a_cleared_queue_while_foreman_runs(life: Life, path: str, statements: tuple[str, ...]) -> None:
    """What is gone is offered once more, and then no more; the next job of the line runs."""
    gone = await life.submit()
    await life.submit()
    other = await life.submit("n")
    by_hand(path, *(s.replace(QUEUED, f"{QUEUED} AND model = 'm'") for s in statements))
    assert life.views[gone.line].head.job_id == gone.job_id
    assert (await life.store.claim(gone.job_id)).claimed is None
    assert life.views[gone.line].count == 0
    assert await life.heads() == {"n": (1, other.job_id, other.job_id)}
    job = await life.submit()
    assert await life.heads() == {
        "m": (1, job.job_id, job.job_id),
        "n": (1, other.job_id, other.job_id),
    }
    assert await life.store.ahead(job.job_id) == 0
    assert (await life.claim(job.job_id)).job.job_id == job.job_id
    assert (await life.claim(other.job_id)).job.job_id == other.job_id


async def test_the_head_is_taken_away_while_foreman_runs(life: Life, path: str) -> None:
    """The line goes on with the next one, also in a life that has told nobody of a change yet."""
    first, second, third = [await life.submit() for _ in range(3)]
    await life.crash()
    by_hand(path, f"DELETE FROM job WHERE id IN ('{first.job_id}', '{third.job_id}')")
    assert (await life.store.claim(first.job_id)).claimed is None
    assert await life.heads() == {"m": (1, second.job_id, second.job_id)}
    await life.claim(second.job_id)
    assert life.views[first.line].count == 0


async def test_a_line_that_nobody_counts_is_counted_again(life: Life, path: str) -> None:
    """Its jobs are there, and its counter was deleted."""
    first, _ = await life.submit(), await life.submit()
    by_hand(path, "DELETE FROM line")
    third = await life.submit()
    assert life.views[first.line].head.job_id == first.job_id
    await life.claim(first.job_id)
    assert life.views[first.line].count == 2
    await life.claim(third.job_id)
    assert life.views[first.line].count == 1


async def test_a_full_queue_that_was_cleared_takes_jobs_again(life: Life, path: str) -> None:
    """That is when somebody clears it; it is counted before a job is refused."""
    life.queue_limit = 50
    await life.crash()
    await gatherResults([Deferred.fromCoroutine(life.submit()) for _ in range(50)])
    with pytest.raises(QueueFull):
        await life.submit()
    by_hand(path, QUEUED)
    await life.submit()
    by_hand(path, "DELETE FROM waiting")
    await life.submit()


async def test_a_full_queue_is_not_counted_for_each_refusal(
    life: Life, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and again when another program has written."""
    counts: list[int] = []

    def count(connection: Any) -> int:
        counts.append(recount(connection))
        return counts[-1]

    monkeypatch.setattr(changes, "recount", count)
    life.queue_limit = 3
    await life.crash()
    for _ in range(3):
        await life.submit()
    for _ in range(9):
        with pytest.raises(QueueFull):
            await life.submit()
    assert counts == [3]
    by_hand(path, "DELETE FROM boot WHERE epoch = 1")
    for _ in range(9):
        with pytest.raises(QueueFull):
            await life.submit()
    assert counts == [3, 3]


async def test_a_claim_that_comes_too_late_tells_the_line_as_it_is(life: Life) -> None:
    """Nothing is wrong then: somebody cancelled the job a moment before."""
    first, second = await life.submit(), await life.submit()
    await life.store.cancel(first.job_id)
    assert (await life.store.claim(first.job_id)).claimed is None
    assert await life.heads() == {"m": (1, second.job_id, second.job_id)}
