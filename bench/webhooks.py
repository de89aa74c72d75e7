"""``make bench``, webhooks: the rate to one receiver, the time to the first byte, and nine dead receivers."""

import asyncio
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from ulid import ULID

from bench.common import Client, Row, bench_target, cores, daemon, report, request, resident_mb
from bench.jobs import ask, job
from foreman.jobs.database import prepare

EVENTS = 5_000
IDLE_EVENTS = 200
DEAD, DEAD_EVENTS = 9, 1_000
WATCH_SECONDS = 30.0
HEALTHY_PER_SECOND = 10

_JOB = """
INSERT INTO job (
    id, status, endpoint, takes_turn, model, option_key, priority, metadata, max_attempts, on_interrupt,
    transcript, webhook_url, created_at, waiting_since, finished_at, sequence
) VALUES (?, 'cancelled', '/api/chat', 1, 'bench', '', 0, '{}', 3, 'retry', 0, ?, ?, ?, ?, 1)
"""
_EVENT = """
INSERT INTO event (id, job_id, sequence, status, previous_status, at, facts)
VALUES (?, ?, 1, 'cancelled', 'queued', ?, ?)
"""
_DELIVERY = """
INSERT INTO delivery (event_id, job_id, type, sequence, url, receiver, state, series, tried, due_at)
VALUES (?, ?, 'job.cancelled', 1, ?, ?, 'pending', 1, 0, ?)
"""


@contextmanager
def receiver(cpus: set[int]) -> Iterator[int]:
    """``python -m bench.receiver`` on these cores; its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.receiver"],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


def arrivals(port: int) -> dict[str, float]:
    """When the first byte of each event came: epoch seconds, by id."""
    found: dict[str, float] = json.loads(ask(port, "/arrivals"))
    return found


def fill(path: str, places: dict[str, int]) -> None:
    """A database with deliveries that are due: so many for each receiver."""
    prepare(path)
    now = time.time()
    facts = json.dumps(
        {
            "model": "bench",
            "endpoint": "/api/chat",
            "attempt": 0,
            "metadata": {},
            "webhook_url": None,
            "error": None,
            "metrics": None,
        }
    )
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        for place, count in places.items():
            for _ in range(count):
                job_id, event_id, url = str(ULID()), str(ULID()), f"{place}/hook"
                connection.execute(_JOB, (job_id, url, now, now, now))
                connection.execute(_EVENT, (event_id, job_id, now, facts))
                connection.execute(_DELIVERY, (event_id, job_id, url, place, now))
        connection.execute("COMMIT")
    os.sync()


def rate(folder: str, others: set[int], own: set[int]) -> Row:
    """Events a second from a full outbox to one receiver."""
    with receiver(others) as port, bench_target() as target_port:
        fill(f"{folder}/foreman.db", {f"http://127.0.0.1:{port}": EVENTS})
        with daemon(target_port, folder, own):
            until = time.monotonic() + 120
            while len(came := arrivals(port)) < EVENTS:
                if time.monotonic() > until:
                    raise SystemExit(f"only {len(came)} of {EVENTS} events came")
                time.sleep(0.5)
    moments = sorted(came.values())
    figure = (len(moments) - 1) / (moments[-1] - moments[0])
    return Row(f"webhooks to one receiver, of {EVENTS:,}", 0, figure, figure, "/s", 500, at_least=True)


def latencies(path: str, came: dict[str, float]) -> list[float]:
    """Seconds from just before the commit of each event to its first byte at the receiver."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        events = dict(connection.execute("SELECT id, at FROM event").fetchall())
    return [moment - events[event_id] for event_id, moment in came.items()]


def idle(folder: str, others: set[int], own: set[int]) -> Row:
    """One event at a time; the target is held, so that a submission is one event."""
    with receiver(others) as port, bench_target() as target_port, daemon(target_port, folder, own) as foreman:
        ask(foreman.port, "/jobs", json.loads(job(0).partition(b"\r\n\r\n")[2]))
        body = {"model": "bench", "prompt": "x", "state_webhook_url": f"http://127.0.0.1:{port}/hook"}
        client = Client(foreman.port)
        for _ in range(IDLE_EVENTS):
            client.answer(request("/jobs", body))
            time.sleep(0.02)
        time.sleep(1)
        found = latencies(f"{folder}/foreman.db", arrivals(port))
        client.close()
    if len(found) != IDLE_EVENTS:
        raise SystemExit(f"{len(found)} of {IDLE_EVENTS} events came")
    figure = statistics.median(found) * 1000
    return Row("commit and first byte at the receiver, idle", 0, figure, figure, "ms", 10)


async def _silent(count: int) -> list[asyncio.Server]:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Until foreman gives up, or the measurement is over.
        with suppress(asyncio.CancelledError, ConnectionError):
            while await reader.read(65536):
                pass
        writer.close()

    return [await asyncio.start_server(hold, "127.0.0.1", 0) for _ in range(count)]


async def _submit(port: int, hook: int) -> None:
    """Jobs for the healthy receiver, at a steady pace."""
    body = request(
        "/jobs", {"model": "bench", "prompt": "x", "state_webhook_url": f"http://127.0.0.1:{hook}/h"}
    )
    client = Client(port)
    for _ in range(int(WATCH_SECONDS * HEALTHY_PER_SECOND)):
        client.answer(body)
        await asyncio.sleep(1 / HEALTHY_PER_SECOND)
    client.close()


async def _watch(
    folder: str, others: set[int], own: set[int], count: int
) -> tuple[list[float], float, float]:
    """Seconds of the healthy receiver's events, MB that foreman grew by, and the gap between jobs in ms."""
    servers = await _silent(DEAD)
    places = {f"http://127.0.0.1:{one.sockets[0].getsockname()[1]}": count for one in servers}
    fill(f"{folder}/foreman.db", places)
    with receiver(others) as port, bench_target() as target_port, daemon(target_port, folder, own) as foreman:
        before = resident_mb(foreman.pid)
        ask(target_port, "/bench/gaps", {})
        await _submit(foreman.port, port)
        await asyncio.sleep(1)
        grown = resident_mb(foreman.pid) - before
        gaps = json.loads(ask(target_port, "/bench/gaps", {}))
        found = latencies(f"{folder}/foreman.db", arrivals(port))
    for server in servers:
        server.close()
    return sorted(found), grown, statistics.median(gaps) * 1000


def dead(folder: str, others: set[int], own: set[int]) -> list[Row]:
    """Nine receivers that accept and stay silent, and one that is well; first with nothing for the nine."""
    figures = []
    for name, count in (("none", 0), ("dead", DEAD_EVENTS)):
        Path(folder, name).mkdir()
        figures.append(asyncio.run(_watch(f"{folder}/{name}", others, own, count)))
    (calm, calm_grown, calm_gap), (found, grown, gap) = figures
    one, other = (times[int(len(times) * 0.99)] for times in (calm, found))
    what = f"{DEAD} dead receivers, {DEAD_EVENTS:,} events each"
    return [
        Row(f"{what}: the healthy one, p99", one, other, other, "s", 1),
        Row(f"{what}: memory grows by", calm_grown, grown, grown, "MB", 20),
        Row(f"{what}: gap between two jobs, ms", calm_gap, gap, gap / calm_gap, "x", 1.2),
    ]


def main() -> int:
    """Print the table, write the JSON; the exit code says whether every budget is met."""
    others, own = cores()
    os.sched_setaffinity(0, others)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("rate", "idle", "dead"):
            Path(folder, name).mkdir()
        rows = [
            rate(f"{folder}/rate", others, own),
            idle(f"{folder}/idle", others, own),
            *dead(f"{folder}/dead", others, own),
        ]
    report(rows, "webhooks", ("least", "most"))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
