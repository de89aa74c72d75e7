"""What is removed, in steps that never hold the writer for long; and what a look costs."""

import re
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from contract_store import FOREVER, Life
from twisted.internet.defer import Deferred, gatherResults

import foreman.jobs
from foreman.jobs import outbox
from foreman.jobs import retention as steps
from foreman.jobs.database import InlinePool, open_pools, prepare
from foreman.jobs.delivery import DeliveryState, Try
from foreman.jobs.model import PIECE_BYTES, Artifact, Finish, Retention, Status, Transition
from foreman.jobs.queries import QUERIES
from foreman.jobs.store import SqliteStore
from foreman.testing.store import compose_plainly

NOW = Retention(0, 0, 1e9)
MIB = 1024 * 1024


@pytest_twisted.async_yield_fixture
async def life(tmp_path: Path) -> AsyncIterator[Life]:
    """One life on a file."""
    from twisted.internet import reactor

    path = str(tmp_path / "foreman.db")
    prepare(path)
    store = SqliteStore(path, open_pools(path, reactor), lambda: life.now, compose_plainly)

    async def begin(life: Life) -> Any:
        await store.open()
        return store

    life = Life(begin)
    await life.crash()
    yield life
    await store.close()


async def count(life: Life, table: str) -> int:
    def read(connection: Any) -> int:
        ((rows,),) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
        return int(rows)

    return int(await life.store._read(read))


async def test_fifty_megabytes_come_and_go_in_bounded_memory(life: Life, tmp_path: Path) -> None:
    """An artifact is written, read and removed piece by piece, and the file shrinks again."""
    job = await life.submit()
    claimed = await life.claim(job.job_id)
    number = 50 * MIB // PIECE_BYTES
    artifact = Artifact("big.bin", "application/octet-stream", 50 * MIB, "0" * 64)
    tracemalloc.start()
    for index in range(number):
        assert await life.store.put_artifact_piece(
            claimed.fence, "big.bin", index, bytes([index]) * PIECE_BYTES
        )
    await life.store.finish(Finish(claimed.fence, Transition.SUCCEEDED, artifacts=(artifact,)))
    assert artifact.pieces == number
    for index in range(number):
        assert await life.store.piece(job.job_id, "big.bin", index) == bytes([index]) * PIECE_BYTES
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 * MIB
    path = tmp_path / "foreman.db"
    await life.store.delete(job.job_id)
    assert await count(life, "piece") == 0
    await life.store.prune(life.now, FOREVER)
    await life.store._write(lambda transaction: None)
    await life.store._pools.writer.runWithConnection(
        lambda connection: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    )
    assert path.stat().st_size < 8 * MIB


async def test_lost_runs_leave_nothing(life: Life) -> None:
    """Pieces of runs that were lost go with the next pass, and the rest with the job."""
    job = await life.submit()
    for _ in range(3):
        claimed = await life.claim(job.job_id)
        for number in range(5):
            await life.store.put_artifact_piece(claimed.fence, "a", number, b"lost")
        await life.store.finish(Finish(claimed.fence, Transition.PUT_BACK))
    claimed = await life.claim(job.job_id)
    await life.store.put_artifact_piece(claimed.fence, "a", 0, b"lost")
    await life.crash()
    assert await count(life, "piece") == 1 + 16
    assert await life.store.prune(life.now, FOREVER) == 0
    assert await count(life, "piece") == 1  # the body
    assert await count(life, "garbage") == 0
    await life.run(job.job_id)
    await life.store.retry(job.job_id)
    await life.store.cancel(job.job_id)
    assert await life.store.prune(life.now, NOW) == 1
    for table in ("job", "piece", "artifact", "garbage", "event", "line"):
        assert await count(life, table) == 0


async def test_a_step_ends_with_its_time(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much there is to do: other writes get between the steps."""
    await gatherResults([Deferred.fromCoroutine(life.submit(body=b"x" * 9)) for _ in range(300)])
    for job in (await life.store.list(limit=300)).jobs:
        await life.store.cancel(job.job_id)
    ticks = iter(range(10**9))
    # By this clock each look takes a third of a step, and a little more: rounding must not make it less.
    monkeypatch.setattr(steps, "monotonic", lambda: next(ticks) * steps.STEP_SECONDS * 0.34)
    before = life.store.commits
    assert await life.store.prune(life.now, NOW) == 300
    commits = life.store.commits - before
    assert commits > 300 / 3 + 300 / 3
    assert await count(life, "piece") == 0


async def test_a_step_that_is_late_before_it_begins_removes_one(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cold disk may need longer than a step to find what is old: that is not the end of the pass."""
    for _ in range(5):
        job = await life.submit(webhook_url="http://10.0.0.5/hook", webhook_events=("job.cancelled",))
        await life.store.cancel(job.job_id)
        for due in (await life.store.outbox.take("http://10.0.0.5:80", life.now, 1, ())).due:
            tried = Try(at=life.now, address=None, status=200, error=None, duration_ms=1, response=b"")
            await life.store.outbox.record(due.delivery, tried, DeliveryState.DELIVERED)
        await life.submit()
    for job in (await life.store.list(Status.QUEUED)).jobs:
        await life.run(job.job_id)
        await life.store.delete(job.job_id)
    hours = iter(range(10**9))
    monkeypatch.setattr(steps, "monotonic", lambda: float(next(hours)))
    monkeypatch.setattr(outbox, "monotonic", lambda: float(next(hours)))
    assert await life.store.prune(life.now, NOW) == 5
    for table in ("job", "piece", "garbage"):
        assert await count(life, table) == 0
    assert await life.store.outbox.prune(life.now + 1) == 5
    assert await count(life, "delivery") == 0
    await life.store.prune(life.now, Retention(0, 0, 0))
    for table in ("tombstone", "event"):
        assert await count(life, table) == 0


async def test_old_events_of_more_jobs_than_a_batch_holds(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full batch is not the last one, also when no tombstone is old."""
    monkeypatch.setattr(steps, "_BATCH", 2)
    for _ in range(7):
        job = await life.submit()
        await life.store.cancel(job.job_id)
        await life.store.delete(job.job_id)
    await life.store.prune(life.now, NOW)
    assert await count(life, "event") == 0
    assert await count(life, "tombstone") == 7


async def test_a_pass_over_nothing_is_four_looks(life: Life) -> None:
    """Nothing is written when there is nothing to remove."""
    before = life.store.commits
    assert await life.store.prune(life.now, NOW) == 0
    assert life.store.commits - before == 4


def steps_of(connection: Any, query: str, values: dict[str, Any]) -> int:
    """How much SQLite does for a query, in hundreds of its instructions."""
    hundreds = 0

    def tick() -> int:
        nonlocal hundreds
        hundreds += 1
        return 0

    connection.set_progress_handler(tick, 100)
    connection.execute(QUERIES[query], values).fetchall()
    connection.set_progress_handler(None, 0)
    return hundreds


@pytest.mark.parametrize("waiting", [10, 100_000])
def test_a_look_costs_the_same_however_many_wait(waiting: int) -> None:
    """The head, the oldest and the count of a line are each a step into an index."""
    pool = open_pools(":memory:", None).writer
    assert isinstance(pool, InlinePool)
    connection = pool._connection
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO job (id, status, endpoint, takes_turn, model, option_key, priority, metadata,"
        " max_attempts, on_interrupt, transcript, created_at, waiting_since, sequence)"
        " VALUES (?, 'queued', '/api/chat', 1, ?, '', ?, '{}', 3, 'retry', 0, 0, ?, 1)",
        ((str(n), "m" if n % 2 else "n", n % 7, n) for n in range(waiting)),
    )
    connection.execute("COMMIT")
    names = {"takes_turn": True, "model": "m", "option_key": ""}
    for query in ("line_count", "line_head", "line_oldest", "lines", "next_due"):
        assert steps_of(connection, query, names) <= 2, query
    now = {"now": 0.0, "limit": 200, "status": "succeeded", "until": 0.0, "epoch": 1}
    for query in ("jobs_orphaned", "jobs_expired", "jobs_to_release", "backoffs_end", "jobs_past_retention"):
        assert steps_of(connection, query, now) <= 2, query
    page = {"after": "~", "limit": 50, "status": "queued", "model": "m"}
    for query in ("list_all", "list_by_status", "list_by_model"):
        assert steps_of(connection, query, page) <= 50, query
    ahead = {**names, "priority": 5, "waiting_since": 3.0, "seq": 4}
    assert steps_of(connection, "line_ahead", ahead) <= 2 + waiting / 100
    assert steps_of(connection, "line_behind", {**ahead, "limit": 100}) <= 30
    pool.close()


def test_every_query_is_used_and_compiles() -> None:
    """Each named query is SQL for the schema as it is, and none is left over."""
    pool = open_pools(":memory:", None).writer
    assert isinstance(pool, InlinePool)
    sources = "".join(file.read_text() for file in Path(foreman.jobs.__file__).parent.glob("*.py"))
    for name, text in QUERIES.items():
        values = dict.fromkeys(re.findall(r":(\w+)", text))
        pool._connection.execute(f"EXPLAIN {text}", values).fetchall()
        assert f'"{name}"' in sources, name
    pool.close()
