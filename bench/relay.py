"""
``make bench``: what the relay adds to its target, measured in one run.

Everything is a pair: the same request straight to the target and through foreman, in turns. foreman has
one core to itself where the machine has two; the target and the client share the other.
"""

import asyncio
import os
import statistics
import tempfile
import time

from bench.common import (
    Client,
    Row,
    bench_target,
    cores,
    cpu_seconds,
    daemon,
    report,
    request,
    resident_mb,
)

PAIRS = 2000
CONNECTIONS = 8
SECONDS = 5.0
LINES = 100_000
IDLE_SECONDS = 10.0


def chat(stream: bool, lines: int = 10) -> bytes:
    """A chat."""
    messages = [{"role": "user", "content": "Why is the sky blue?"}]
    return request(
        "/api/chat",
        {"model": "bench", "messages": messages, "stream": stream, "options": {"num_predict": lines}},
    )


VERSION = request("/api/version")


def pairs(
    target: int, front: int, data: bytes
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """First byte and end, alone and through foreman, in turns."""
    alone, through = Client(target), Client(front)
    for client in (alone, through):
        for _ in range(200):
            client.first_byte_and_end(data)
    results = [(alone.first_byte_and_end(data), through.first_byte_and_end(data)) for _ in range(PAIRS)]
    alone.close()
    through.close()
    return [one for one, _ in results], [other for _, other in results]


class _Loader(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, counter: list[int]) -> None:
        self._counter = counter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The first request."""
        self._transport = transport
        transport.write(VERSION)

    def data_received(self, data: bytes) -> None:
        """An answer of this size always comes in one piece on loopback."""
        self._counter[0] += 1
        self._transport.write(VERSION)


async def _load(port: int) -> float:
    counter = [0]
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: _Loader(counter), "127.0.0.1", port) for _ in range(CONNECTIONS)
    ]
    await asyncio.sleep(0.5)
    counter[0], began = 0, time.perf_counter()
    await asyncio.sleep(SECONDS)
    rate = counter[0] / (time.perf_counter() - began)
    for transport, _ in made:
        transport.abort()
    return rate


def stream_seconds(port: int) -> float:
    """How long a stream of many lines takes, the best of five."""
    data = chat(True, LINES)
    times = []
    for _ in range(5):
        client = Client(port)
        times.append(client.first_byte_and_end(data)[1])
        client.close()
    return min(times)


def measure(target: int, front: int, pid: int) -> list[Row]:
    """All rows."""
    idle_mb, cpu = resident_mb(pid), cpu_seconds(pid)
    time.sleep(IDLE_SECONDS)
    idle_percent = (cpu_seconds(pid) - cpu) / IDLE_SECONDS * 100

    def median_ms(times: list[float]) -> float:
        return statistics.median(times) * 1000

    whole_alone, whole = pairs(target, front, chat(False))
    stream_alone, stream = pairs(target, front, chat(True))
    a, b = median_ms([end for _, end in whole_alone]), median_ms([end for _, end in whole])
    c, d = median_ms([first for first, _ in stream_alone]), median_ms([first for first, _ in stream])
    rate_alone, cpu = asyncio.run(_load(target)), cpu_seconds(pid)
    rate = asyncio.run(_load(front))
    cost_us = (cpu_seconds(pid) - cpu) / (rate * (SECONDS + 0.5)) * 1e6
    long_alone, long = stream_seconds(target), stream_seconds(front)
    return [
        Row("relayed non-stream request, added at the median", a, b, b - a, "ms", 0.4),
        Row("first streamed byte, added at the median", c, d, d - c, "ms", 0.4),
        Row("requests past the queue, 8 connections", rate_alone, rate, rate, "/s", 4500, at_least=True),
        Row(
            f"stream of {LINES:,} lines, times the target alone", long_alone, long, long / long_alone, "x", 2
        ),
        Row("resident memory, idle", 0, idle_mb, idle_mb, "MB", 80),
        Row("processor time a request past the queue", 0, cost_us, cost_us, "us", 220),
        Row("idle CPU", 0, idle_percent, idle_percent, "%", 0.5),
    ]


def main() -> int:
    """Print the table, write the JSON; the exit code says whether every budget is met."""
    others, own = cores()
    os.sched_setaffinity(0, others)
    with (
        tempfile.TemporaryDirectory() as folder,
        bench_target() as target_port,
        daemon(target_port, folder, own) as foreman,
    ):
        time.sleep(1)
        rows = measure(target_port, foreman.port, foreman.pid)
    report(rows, "relay")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
