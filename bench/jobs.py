"""``make bench``, durable jobs: submissions, the gap between two jobs, a choice, a start, and memory."""

import asyncio
import json
import os
import random
import sqlite3
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

from bench import choice
from bench.common import Client, Row, bench_target, cores, daemon, report, request, resident_mb
from foreman.jobs.database import prepare

QUEUED = 10_000
SUBMITTERS = 64
GAP_SECONDS = 10.0
SYNCS = 100
STARTS = 5
ASKED = 300
FEW, MORE, MANY = 20, 10_000, 1_000_000

_JOBS = """
INSERT INTO job (
    id, status, endpoint, takes_turn, model, option_key, priority, metadata, max_attempts, on_interrupt,
    transcript, created_at, waiting_since, started_at, finished_at, attempt, run, epoch, sequence
)
WITH RECURSIVE number(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM number WHERE n + 1 < :count)
SELECT
    printf('00%024d', n), :status, '/api/chat', 1, printf('bench%d', n % :models), '', 0, '{}', 3, 'retry',
    0, :now, :now, :ended, :ended, :ended IS NOT NULL, :ended IS NOT NULL, NULL, 1
FROM number WHERE :count
"""
_BODIES = "INSERT INTO piece (seq, run, name, number, data) SELECT seq, 0, '', 0, :body FROM job"


def job(tokens: int) -> bytes:
    """A job to be submitted."""
    messages = [{"role": "user", "content": "Why is the sky blue?"}]
    return request("/jobs", {"model": "bench", "messages": messages, "options": {"num_predict": tokens}})


class _Submitter(asyncio.Protocol):
    """One connection that submits the next job as soon as its last one is taken."""

    def __init__(self, left: list[int], done: "asyncio.Future[None]") -> None:
        self._left, self._done, self._data = left, done, job(10)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The first job."""
        self._transport = transport
        self._submit()

    def data_received(self, data: bytes) -> None:
        """An answer of this size always comes in one piece on loopback."""
        if not data.startswith(b"HTTP/1.1 202 ") and not self._done.done():
            self._done.set_exception(RuntimeError(f"not taken: {data[:200]!r}"))
        self._left[1] -= 1
        if not self._left[1] and not self._done.done():
            self._done.set_result(None)
        self._submit()

    def _submit(self) -> None:
        if self._left[0]:
            self._left[0] -= 1
            self._transport.write(self._data)


async def _submit_all(port: int, count: int) -> float:
    """Seconds until all are taken."""
    loop = asyncio.get_running_loop()
    left, done = [count, count], loop.create_future()
    began = time.perf_counter()
    made = [
        await loop.create_connection(lambda: _Submitter(left, done), "127.0.0.1", port)
        for _ in range(SUBMITTERS)
    ]
    await asyncio.wait_for(done, 600)
    seconds = time.perf_counter() - began
    for transport, _ in made:
        transport.abort()
    return seconds


def ask(port: int, path: str, body: object = None) -> bytes:
    """The body of an answer."""
    client = Client(port)
    try:
        return client.answer(request(path, body))
    finally:
        client.close()


def sync_ms(folder: str) -> float:
    """What the disk takes for one synced write of four pages, at the median: no commit is faster.

    Measured every now and then for `GAP_SECONDS`, while foreman works: the disk is others' too.
    """
    times = []
    with Path(folder, "sync").open("wb", buffering=0) as file:
        for _ in range(SYNCS):
            time.sleep(GAP_SECONDS / SYNCS)
            file.write(bytes(16384))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def queue_and_gap(folder: str, own: set[int]) -> list[Row]:
    """A target that is held while the queue grows, and then works it off for a while."""
    with bench_target() as target_port, daemon(target_port, folder, own) as foreman:
        time.sleep(1)
        idle_mb = resident_mb(foreman.pid)
        client = Client(foreman.port)
        client.answer(job(0))
        client.close()
        rate = QUEUED / asyncio.run(_submit_all(foreman.port, QUEUED))
        time.sleep(1)
        queued_mb = resident_mb(foreman.pid)
        ask(target_port, "/bench/release", {})
        disk_ms = sync_ms(folder)
        gaps = json.loads(ask(target_port, "/bench/gaps", {}))
    gap_ms = statistics.median(gaps) * 1000
    return [
        Row(f"submissions, {SUBMITTERS} clients", 0, rate, rate, "/s", 1000, at_least=True),
        Row(f"one synced write, gap between two jobs, of {len(gaps):,}", disk_ms, gap_ms, gap_ms, "ms", 3),
        Row("resident memory, idle", 0, idle_mb, idle_mb, "MB", 80),
        Row(f"resident memory, {QUEUED:,} jobs queued", idle_mb, queued_mb, queued_mb, "MB", 100),
    ]


def fill(path: str, count: int, status: str) -> None:
    """A database with so many jobs and their bodies, written as fast as it goes."""
    prepare(path)
    now = time.time()
    values = {
        "count": count,
        "status": status,
        "now": now,
        "models": len(choice.MODELS),
        "ended": now if status == "succeeded" else None,
        "body": job(10).partition(b"\r\n\r\n")[2],
    }
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -1000000")
        connection.execute("BEGIN")
        connection.execute(_JOBS, values)
        connection.execute(_BODIES, values)
        connection.execute("COMMIT")
    os.sync()


def start(folder: str, own: set[int]) -> Row:
    """From the start of the process until it answers, the median of some; first with an empty database."""
    medians = []
    with bench_target() as target_port:
        for name, count in (("empty", 0), ("full", MANY)):
            place = f"{folder}/{name}"
            Path(place).mkdir()
            fill(f"{place}/foreman.db", count, "succeeded")
            times = []
            for _ in range(STARTS):
                began = time.perf_counter()
                with daemon(target_port, place, own) as foreman:
                    ask(foreman.port, "/healthz")
                    times.append(time.perf_counter() - began)
            medians.append(statistics.median(times))
    empty, full = medians
    return Row(f"start with no or {MANY:,} finished jobs", empty, full, full, "s", 2)


def choices(folder: str) -> list[Row]:
    """The end of a run to the start of the next, with few and with many that wait in 20 lines."""
    counts = (FEW, MORE, MANY)
    paths = [f"{folder}/{count}.db" for count in counts]
    for path, count in zip(paths, counts, strict=True):
        fill(path, count, "queued")
    measured = choice.measure(paths, folder)
    rows = []
    for part, words in (
        ("wall", "and claim, ms"),
        ("processor", "and claim, CPU ms"),
        ("choice", "alone, ms"),
    ):
        ms = [statistics.median(getattr(cost, part) for cost in costs) * 1000 for costs in measured]
        for count, many in zip(counts[1:], ms[1:], strict=True):
            name = f"choice {words}, {FEW} or {count:,} in 20 lines"
            rows.append(Row(name, ms[0], many, many / ms[0], "x", 1.2))
    rows.append(Row(f"choice alone, {MANY:,} in 20 lines", ms[0], ms[-1], ms[-1], "ms", 1))
    return rows


def outlooks(folder: str, own: set[int]) -> list[Row]:
    """``GET /jobs/{id}`` of jobs anywhere in 20 lines, and ``GET /queue``."""
    fill(f"{folder}/foreman.db", MANY, "queued")
    asked = [f"/jobs/00{number:024d}" for number in random.Random(6).sample(range(MANY), ASKED)]
    rows = []
    with bench_target() as target_port, daemon(target_port, folder, own) as foreman:
        ask(foreman.port, "/queue/pause", {"lane": "durable"})
        client = Client(foreman.port)
        for name, paths in (("/jobs/{id}", asked), ("/queue", ["/queue"] * ASKED)):
            times = [client.first_byte_and_end(request(path))[1] * 1000 for path in paths]
            median = statistics.median(times)
            rows.append(Row(f"GET {name}, {MANY:,} in 20 lines", min(times), median, median, "ms", 20))
        client.close()
    return rows


def main() -> int:
    """Print the table, write the JSON; the exit code says whether every budget is met."""
    others, own = cores()
    os.sched_setaffinity(0, others)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("queue", "start", "outlook", "choice"):
            Path(folder, name).mkdir()
        rows += queue_and_gap(f"{folder}/queue", own)
        rows.append(start(f"{folder}/start", own))
        rows += outlooks(f"{folder}/outlook", own)
        rows += choices(f"{folder}/choice")
    report(rows, "jobs", ("least", "most"))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
