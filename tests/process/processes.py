"""foreman as a real process, and a target in this one that streams for ever."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from attrs import define, field

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
# No start or stop comes near this; it is there so that a broken one ends.
PATIENCE_SECONDS = 30
LINE = b'{"response":" again"}\n'
_LISTENS = re.compile(r"foreman \S+ listens on (\S+):(\d+), target ")


def command(variant: str, folder: Path) -> list[str]:
    """The command line of one way to start foreman."""
    twistd, foreman = str(BIN / "twistd"), str(BIN / "foreman")
    return {
        "twistd -n foreman": [twistd, "-n", "foreman"],
        "twistd foreman": [
            twistd,
            f"--pidfile={folder / 'twistd.pid'}",
            f"--logfile={folder / 'twistd.log'}",
            "foreman",
        ],
        "foreman serve": [foreman, "serve"],
        "twistd -ny foreman.tac": [twistd, "-ny", str(ROOT / "foreman.tac")],
    }[variant]


def environment(folder: Path, **given: str) -> dict[str, str]:
    """A clean environment: a free port, a database in the folder, and what is given without its prefix."""
    variables = {
        "ADDR": "127.0.0.1:0",
        "OLLAMA_URL": "http://127.0.0.1:1",
        "DB_PATH": str(folder / "foreman.db"),
        **given,
    }
    kept = {name: text for name, text in os.environ.items() if not name.startswith("FOREMAN_")}
    return {**kept, **{f"FOREMAN_{name}": text for name, text in variables.items() if text}}


def until(true: Callable[[], object], what: str) -> None:
    """Wait for another process, which has no event for this one."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < end, f"it never came true: {what}"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet (a zombie) does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


@define
class Daemon:
    """A foreman that has started."""

    pid: int
    port: int
    log: Path
    _process: "subprocess.Popen[bytes] | None"

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def wait(self) -> int | None:
        """Wait for its end; return the exit code, None for a daemon, whose parent is another."""
        if self._process is not None:
            return self._process.wait(PATIENCE_SECONDS)
        until(lambda: not is_running(self.pid), f"the end of process {self.pid}")
        return None

    def kill(self) -> None:
        """End it for certain."""
        if is_running(self.pid):
            self.signal(signal.SIGKILL)
        self.wait()

    def text(self) -> str:
        """What it has logged."""
        return self.log.read_text("utf-8", "replace")


@contextmanager
def started(variant: str, folder: Path, **given: str) -> Iterator[Daemon]:
    """Start foreman in this way, wait until it listens, and see that it is gone afterwards."""
    daemonises = variant == "twistd foreman"
    output = folder / "output.txt"
    log = folder / "twistd.log" if daemonises else output
    with output.open("wb") as file:
        process = subprocess.Popen(
            command(variant, folder),
            cwd=folder,
            env=environment(folder, **given),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    daemon: Daemon | None = None
    try:
        if daemonises:
            assert process.wait(PATIENCE_SECONDS) == 0, output.read_text()
        until(
            lambda: (log.exists() and _LISTENS.search(log.read_text())) or process.poll() not in (None, 0),
            "foreman listens",
        )
        match = _LISTENS.search(log.read_text())
        assert match is not None, log.read_text()
        pid = int((folder / "twistd.pid").read_text()) if daemonises else process.pid
        daemon = Daemon(pid, int(match[2]), log, None if daemonises else process)
        yield daemon
    finally:
        if daemon is not None:
            daemon.kill()
        elif process.poll() is None:
            process.kill()
            process.wait()


def connect(port: int) -> socket.socket:
    """A connection with a limit on every wait."""
    return socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)


def post(path: str, body: bytes = b'{"model":"m"}') -> bytes:
    """A request as bytes; the connection ends after its answer."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def get(port: int, path: str) -> bytes:
    """The whole answer to a GET."""
    with connect(port) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return read_all(client)


def read_all(client: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    pieces = []
    while piece := client.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


@define(eq=False)
class EndlessTarget:
    """Streams NDJSON to every POST until its client leaves, and knows nothing else."""

    _socket: socket.socket = field(init=False)
    _threads: list[threading.Thread] = field(factory=list, init=False)
    _stopping: threading.Event = field(factory=threading.Event, init=False)
    streams: int = field(default=0, init=False)
    left: threading.Event = field(factory=threading.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            if self._stopping.is_set():
                connection.close()
                return
            connection.settimeout(PATIENCE_SECONDS)
            thread = threading.Thread(target=self._answer, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as sent:
                if read_head(sent).startswith(b"POST"):
                    self._stream(connection)
                else:
                    connection.sendall(
                        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    )
        except OSError:
            self.left.set()

    def _stream(self, connection: socket.socket) -> None:
        self.streams += 1
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        while not self._stopping.wait(0.02):
            connection.sendall(b"%x\r\n%s\r\n" % (len(LINE), LINE))

    def __enter__(self) -> "EndlessTarget":
        self._threads.append(threading.Thread(target=self._serve))
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        socket.create_connection(self._socket.getsockname()).close()
        for thread in self._threads:
            thread.join()
        self._socket.close()


def read_head(sent: IO[bytes]) -> bytes:
    """A request's head; its body is left unread."""
    lines = []
    while (line := sent.readline()) not in (b"", b"\r\n"):
        lines.append(line)
    return b"".join(lines)
