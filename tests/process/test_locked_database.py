"""SIGTERM while another program has the database locked: foreman ends in its time all the same."""

import signal
import sqlite3
import time
from contextlib import ExitStack, closing
from pathlib import Path

from processes import connect, get, post, read_all, started

GRACE_SECONDS = 0.5
CALLERS = 12


def test_a_stop_does_not_wait_for_another_program(tmp_path: Path) -> None:
    """What could not be written is refused, or its connection is closed. It took 63 s once."""
    with (
        started("twistd -n foreman", tmp_path, STOP_GRACE=f"{GRACE_SECONDS}s") as daemon,
        ExitStack() as stack,
    ):
        other = stack.enter_context(closing(sqlite3.connect(tmp_path / "foreman.db", isolation_level=None)))
        other.execute("BEGIN IMMEDIATE")
        clients = [stack.enter_context(connect(daemon.port)) for _ in range(CALLERS)]
        for client in clients:
            client.sendall(post("/jobs", b'{"model":"m","prompt":"p"}'))
        # The callers' requests were read before this one's.
        assert get(daemon.port, "/healthz").startswith(b"HTTP/1.1 200 OK")
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == -signal.SIGTERM
        assert time.monotonic() - began < GRACE_SECONDS + 2  # the contract's second, and the end of Python
        for client in clients:
            try:
                answer = read_all(client)
            except ConnectionResetError:
                continue
            assert answer.startswith(b"HTTP/1.1 503 ") or not answer
        other.execute("ROLLBACK")
        ((jobs,),) = other.execute("SELECT count(*) FROM job").fetchall()
        assert jobs == 0
    assert "Traceback" not in daemon.text()
    with started("twistd -n foreman", tmp_path):
        pass
