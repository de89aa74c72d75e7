"""What the measurements share: the table, a client, and a daemon beside its target."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import define

RESULTS = Path(__file__).with_name("results")


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

    def answer(self, data: bytes) -> bytes:
        """The body of an answer that has a length."""
        self._socket.sendall(data)
        received = b""
        while not received.partition(b"\r\n\r\n")[2]:
            received += self._socket.recv(65536)
        head, _, body = received.partition(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        while found and len(body) < int(found[1]):
            body += self._socket.recv(1 << 20)
        return body

    def close(self) -> None:
        """Close."""
        self._socket.close()


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


@define
class Daemon:
    """A foreman that serves."""

    port: int
    pid: int


def cores() -> tuple[set[int], set[int]]:
    """Those of the target and the clients, and foreman's own: the same one where the machine has but one."""
    every = sorted(os.sched_getaffinity(0))
    return set(every[:-1]) or set(every), {every[-1]}


@contextmanager
def bench_target() -> Iterator[int]:
    """The target of the bench; its port."""
    process = subprocess.Popen([sys.executable, "-m", "bench.target"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


@contextmanager
def daemon(target_port: int, folder: str, own_cores: set[int]) -> Iterator[Daemon]:
    """A foreman from the moment on at which it listens; its database is ``foreman.db`` in the folder."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("FOREMAN_")}
    environment |= {
        "FOREMAN_ADDR": "127.0.0.1:0",
        "FOREMAN_OLLAMA_URL": f"http://127.0.0.1:{target_port}",
        "FOREMAN_DB_PATH": f"{folder}/foreman.db",
    }
    log = Path(folder, "foreman.log")
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "foreman"],
            env=environment,
            cwd=folder,
            stdout=sink,
            stderr=sink,
            preexec_fn=lambda: os.sched_setaffinity(0, own_cores),
        )
    try:
        while not (found := re.search(r"listens on \S+:(\d+), target", log.read_text())):
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.01)
        yield Daemon(int(found[1]), process.pid)
    finally:
        process.terminate()
        process.wait()


def report(rows: list[Row], name: str, columns: tuple[str, str] = ("alone", "foreman")) -> None:
    """The table, and the same as JSON in ``bench/results``."""
    one, other = columns
    print(f"{'':<55} {one:>10} {other:>10} {'ratio':>7} {'figure':>12} {'budget':>9}")
    for row in rows:
        ratio = f"{row.through / row.alone:.2f}" if row.alone else ""
        bound = f"{'≥' if row.at_least else '≤'} {row.budget:g}"
        print(
            f"{row.what:<55} {row.alone:>10.3f} {row.through:>10.3f} {ratio:>7} "
            f"{row.figure:>9.2f} {row.unit:<2} {bound:>9} {'met' if row.met else 'MISSED'}"
        )
    print("load average " + " ".join(f"{load:.2f}" for load in os.getloadavg()))
    RESULTS.mkdir(exist_ok=True)
    named = [
        {"what": r.what, one: r.alone, other: r.through, "figure": r.figure, "unit": r.unit} for r in rows
    ]
    (RESULTS / f"{name}.json").write_text(json.dumps(named, indent=2) + "\n")
