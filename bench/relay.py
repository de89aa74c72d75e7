"""
``make bench``: what the relay adds to its target, measured in one run.

Everything is a pair: the same request straight to the target and through foreman, in turns. foreman has
one core to itself where the machine has two; the target and the client share the other.
"""

import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from attrs import define

RESULTS = Path(__file__).with_name("results")
PAIRS = 2000
CONNECTIONS = 8
SECONDS = 5.0
LINES = 100_000
IDLE_SECONDS = 10.0


@define
class Row:
    """One line of the table: what, how much alone, how much through foreman, and its budget."""

    what: str
    alone: float
    through: float
    figure: float
    unit: str
    budget: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the budget holds."""
        return self.figure >= self.budget if self.at_least else self.figure <= self.budget


def request(path: str, body: object = None) -> bytes:
    """The bytes of a request."""
    if body is None:
        return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def chat(stream: bool, lines: int = 10) -> bytes:
    """A chat."""
    messages = [{"role": "user", "content": "Why is the sky blue?"}]
    return request(
        "/api/chat",
        {"model": "bench", "messages": messages, "stream": stream, "options": {"num_predict": lines}},
    )


VERSION = request("/api/version")


class Client:
    """One kept-alive connection, blocking."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(60)

    def first_byte_and_end(self, data: bytes) -> tuple[float, float]:
        """Seconds to the first byte of the body, and to the end of the answer."""
        began = time.perf_counter()
        self._socket.sendall(data)
        received = b""
        while not received.partition(b"\r\n\r\n")[2]:
            received += self._socket.recv(65536)
        first = time.perf_counter() - began
        head, _, rest = received.partition(b"\r\n\r\n")
        if found := re.search(rb"content-length: (\d+)", head, re.IGNORECASE):
            missing = int(found[1]) - len(rest)
            while missing > 0:
                missing -= len(self._socket.recv(65536))
        else:
            while not rest.endswith(b"0\r\n\r\n"):
                rest = rest[-8:] + self._socket.recv(1 << 20)
        return first, time.perf_counter() - began

    def close(self) -> None:
        """Close."""
        self._socket.close()


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


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


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
    cores = sorted(os.sched_getaffinity(0))
    own_core = {cores[-1]}
    if len(cores) > 1:
        os.sched_setaffinity(0, set(cores) - own_core)
    with tempfile.TemporaryDirectory() as folder:
        target = subprocess.Popen([sys.executable, "-m", "bench.target"], stdout=subprocess.PIPE, text=True)
        assert target.stdout is not None
        target_port = int(target.stdout.readline())
        environment = {name: text for name, text in os.environ.items() if not name.startswith("FOREMAN_")}
        environment |= {
            "FOREMAN_ADDR": "127.0.0.1:0",
            "FOREMAN_OLLAMA_URL": f"http://127.0.0.1:{target_port}",
            "FOREMAN_DB_PATH": f"{folder}/foreman.db",
        }
        log = Path(folder, "foreman.log")
        with log.open("wb") as sink:
            foreman = subprocess.Popen(
                [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "foreman"],
                env=environment,
                cwd=folder,
                stdout=sink,
                stderr=sink,
                preexec_fn=lambda: os.sched_setaffinity(0, own_core),
            )
        try:
            while not (found := re.search(r"listens on \S+:(\d+), target", log.read_text())):
                if foreman.poll() is not None:
                    raise SystemExit(log.read_text())
                time.sleep(0.05)
            time.sleep(1)
            rows = measure(target_port, int(found[1]), foreman.pid)
        finally:
            foreman.terminate()
            foreman.wait()
            target.terminate()
            target.wait()
    report(rows)
    return 0 if all(row.met for row in rows) else 1


def report(rows: list[Row]) -> None:
    """The table, and the same as JSON in ``bench/results``."""
    print(f"{'':<50} {'alone':>10} {'foreman':>10} {'ratio':>7} {'figure':>12} {'budget':>9}")
    for row in rows:
        ratio = f"{row.through / row.alone:.2f}" if row.alone else ""
        bound = f"{'≥' if row.at_least else '≤'} {row.budget:g}"
        print(
            f"{row.what:<50} {row.alone:>10.3f} {row.through:>10.3f} {ratio:>7} "
            f"{row.figure:>9.2f} {row.unit:<2} {bound:>9} {'met' if row.met else 'MISSED'}"
        )
    RESULTS.mkdir(exist_ok=True)
    named = [
        {"what": r.what, "alone": r.alone, "foreman": r.through, "figure": r.figure, "unit": r.unit}
        for r in rows
    ]
    (RESULTS / "relay.json").write_text(json.dumps(named, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
