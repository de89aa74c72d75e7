"""foreman as it is deployed: the program of `docs/deploy` under a real supervisord, the image's commands."""

import configparser
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from attrs import define, field
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.protocols.policies import WrappingFactory

from foreman.lock import FileLock
from foreman.testing.ollama import FakeOllama

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
PROGRAM = "program:foreman"
# No step comes near this; it is there so that a broken one ends.
PATIENCE_SECONDS = 30
DROPS = 40
DROP_SECONDS = 0.05
# Most of it are seconds that supervisord waits; the starts in between take long on a machine that is busy.
pytestmark = pytest.mark.timeout(180)
_LISTENS = re.compile(r"foreman \S+ listens on 127\.0\.0\.1:(\d+), target ")


def until(true: Callable[[], object], what: str) -> None:
    """Wait for another process, which has no event for this one."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < end, f"it never came true: {what}"
        time.sleep(0.02)


def ports(log: Path) -> list[int]:
    """Where foreman has listened, one port for each start that the log tells of."""
    return [int(port) for port in _LISTENS.findall(log.read_text())] if log.exists() else []


def environment(folder: Path, target: str) -> dict[str, str]:
    """foreman's settings in a test: each start gets another free port."""
    return {
        "FOREMAN_OLLAMA_URL": target,
        "FOREMAN_ADDR": "127.0.0.1:0",
        "FOREMAN_DB_PATH": str(folder / "foreman.db"),
    }


def clean_environment() -> dict[str, str]:
    """The caller's environment without settings of its own for foreman."""
    return {name: text for name, text in os.environ.items() if not name.startswith("FOREMAN_")}


def ask(port: int, method: str, path: str, body: bytes = b"") -> socket.socket:
    """A connection with a request on it; it ends after the answer."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}"
    client = socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)
    client.sendall(head.encode() + b"\r\n\r\n" + body)
    return client


def read_all(client: socket.socket) -> bytes:
    """Everything up to the end of the connection, however it ends."""
    pieces = []
    with client:
        try:
            while piece := client.recv(65536):
                pieces.append(piece)
        except ConnectionResetError:
            pass
    return b"".join(pieces)


def begin_stream(port: int) -> socket.socket:
    """A generation whose first piece of text is there."""
    client = ask(port, "POST", "/api/generate", b'{"model":"alpha","prompt":"Rain?"}')
    received = b""
    while b" drop" not in received:
        piece = client.recv(65536)
        assert piece, received
        received += piece
    return client


def submit(port: int, body: bytes) -> str:
    """The id of a durable job that was taken."""
    head, _, receipt = read_all(ask(port, "POST", "/jobs", body)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 202 "), head
    return str(json.loads(receipt)["job_id"])


def show(port: int, job_id: str) -> dict[str, Any]:
    """A durable job as it is now."""
    head, _, job = read_all(ask(port, "GET", f"/jobs/{job_id}")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    shown: dict[str, Any] = json.loads(job)
    return shown


def is_well(port: int) -> bool:
    """Whether `/healthz` says that nothing is wrong."""
    answer = read_all(ask(port, "GET", "/healthz"))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n"), answer
    return b'"degraded":false' in answer


@define
class Supervisor:
    """A supervisord of the test's own with the program of `docs/deploy`."""

    folder: Path
    settings: dict[str, str]
    overrides: dict[str, str] = field(factory=dict)

    @property
    def configuration(self) -> Path:
        """Its configuration file."""
        return self.folder / "supervisord.conf"

    @property
    def log(self) -> Path:
        """What foreman wrote."""
        return self.folder / "foreman.log"

    def events(self) -> str:
        """What supervisord itself wrote."""
        log = self.folder / "supervisord.log"
        return log.read_text() if log.exists() else ""

    def program(self) -> dict[str, str]:
        """The program of `docs/deploy`; only where things are on this machine is another."""
        parser = configparser.RawConfigParser()
        parser.read(ROOT / "docs" / "deploy" / "supervisord.conf")
        program = dict(parser[PROGRAM])
        command = program["command"]
        assert command.startswith("/opt/foreman/bin/twistd ")
        del program["user"]
        here = {
            "command": command.replace("/opt/foreman/bin", str(BIN), 1),
            "environment": ",".join(f'{name}="{text}"' for name, text in self.settings.items()),
            "directory": str(self.folder),
            "stdout_logfile": str(self.log),
        }
        return program | here | self.overrides

    def write(self) -> None:
        """Write the configuration."""
        address = f"{self.folder}/s"
        parser = configparser.RawConfigParser()
        parser.read_dict(
            {
                "unix_http_server": {"file": address},
                "supervisord": {
                    "logfile": f"{self.folder}/supervisord.log",
                    "pidfile": f"{self.folder}/supervisord.pid",
                    "childlogdir": str(self.folder),
                },
                "rpcinterface:supervisor": {
                    "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
                },
                "supervisorctl": {"serverurl": f"unix://{address}"},
                PROGRAM: self.program(),
            }
        )
        with self.configuration.open("w") as file:
            parser.write(file)

    @contextmanager
    def running(self) -> Iterator["Supervisor"]:
        """Start it, and end it with everything that it started."""
        self.write()
        with (self.folder / "output.txt").open("wb") as output:
            process = subprocess.Popen(
                [BIN / "supervisord", "--nodaemon", "-c", self.configuration],
                cwd=self.folder,
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            yield self
        finally:
            # It stops its programs first: TERM, and KILL after stopwaitsecs.
            process.terminate()
            process.wait(PATIENCE_SECONDS)

    def control(self, *words: str) -> str:
        """What `supervisorctl` says."""
        result = subprocess.run(
            [BIN / "supervisorctl", "-c", self.configuration, *words],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        return result.stdout + result.stderr

    def pid(self) -> int:
        """foreman's process."""
        return int(self.control("pid", "foreman"))

    def wait_until(self, state: str) -> None:
        """Wait for a state of supervisord's."""
        until(lambda: f" {state} " in f"{self.control('status', 'foreman')} ", f"the state {state}")

    def wait_for_start(self, number: int) -> int:
        """Wait until it has listened so many times; return the last port."""
        until(lambda: len(ports(self.log)) >= number, f"start {number}")
        assert len(ports(self.log)) == number
        return ports(self.log)[-1]


@pytest.fixture
def fake() -> FakeOllama:
    """A target that drips its answers."""
    from twisted.internet import reactor

    return FakeOllama(reactor, tokens=[" drop"] * DROPS, token_interval=DROP_SECONDS)


@pytest_twisted.async_yield_fixture
async def target(fake: FakeOllama) -> AsyncIterator[str]:
    """Its address; it is rid of its connections in the end."""
    from twisted.internet import reactor

    factory: Any = WrappingFactory(fake.site())
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    yield f"http://127.0.0.1:{port.getHost().port}"
    await port.stopListening()
    while factory.protocols:
        await deferLater(reactor, 0.01)


async def test_is_back_after_kill(fake: FakeOllama, target: str, tmp_path: Path) -> None:
    """
    After `kill -9` in the middle of a stream the next foreman serves, and ends with its supervisord. It does
    the durable jobs: the one that waited, and the one that ran, which is counted as interrupted.
    """
    supervisor = Supervisor(tmp_path, environment(tmp_path, target))
    fake.token_interval = 60  # the stream is in its middle for as long as it takes

    def scenario() -> None:
        with supervisor.running():
            port = supervisor.wait_for_start(1)
            supervisor.wait_until("RUNNING")
            killed = supervisor.pid()
            client = begin_stream(port)
            # An embedding passes the turn by, and waits at the target for the stream's end.
            ran = submit(port, b'{"model":"alpha","input":"Rain?"}')
            waited = submit(port, b'{"model":"alpha","prompt":"Rain?"}')
            until(lambda: show(port, ran)["status"] == "running", "the embedding runs")
            assert show(port, waited)["status"] == "queued"
            fake.token_interval = DROP_SECONDS
            os.kill(killed, signal.SIGKILL)
            assert b'"done":true' not in read_all(client)
            port = supervisor.wait_for_start(2)
            until(lambda: is_well(port), "the second foreman knows its target")
            assert supervisor.pid() != killed
            for job_id, interruptions in ((ran, 1), (waited, 0)):
                until(lambda job_id=job_id: show(port, job_id)["status"] == "succeeded", "the job is done")
                job = show(port, job_id)
                assert (job["attempt"], job["interruptions"], job["errors"]) == (1, interruptions, [])
            answer = read_all(begin_stream(port))
            assert b'"done":true' in answer
            assert answer.endswith(b"0\r\n\r\n")

    await deferToThread(scenario)
    events = supervisor.events()
    assert "exited: foreman (terminated by SIGKILL; not expected)" in events
    assert events.rstrip().endswith("stopped: foreman (terminated by SIGTERM)")
    assert "Traceback" not in supervisor.log.read_text()


async def test_stop_lets_a_stream_end(target: str, tmp_path: Path) -> None:
    """`supervisorctl stop`: no new connection, what runs comes to its end, and nothing has to be killed."""
    supervisor = Supervisor(tmp_path, environment(tmp_path, target))
    limit_seconds = float(supervisor.program()["stopwaitsecs"])

    def scenario() -> None:
        with supervisor.running():
            port = supervisor.wait_for_start(1)
            client = begin_stream(port)
            began = time.monotonic()
            said = supervisor.control("stop", "foreman")
            assert time.monotonic() - began < limit_seconds
            assert said == "foreman: stopped\n"
            # All of it is in the socket's buffer: foreman ended after its stream.
            answer = read_all(client)
            assert b'"done":true' in answer
            assert answer.endswith(b"0\r\n\r\n")
            with pytest.raises(ConnectionRefusedError):
                ask(port, "GET", "/healthz")
            assert " STOPPED " in supervisor.control("status", "foreman")

    await deferToThread(scenario)
    events = supervisor.events()
    assert "stopped: foreman (terminated by SIGTERM)" in events
    assert "SIGKILL" not in events
    assert len(ports(supervisor.log)) == 1
    assert "Traceback" not in supervisor.log.read_text()
    FileLock(str(tmp_path / "foreman.db.lock")).release()


def test_a_refused_start_is_tried_again_and_given_up(tmp_path: Path) -> None:
    """It counts as a start that failed, not as a run that ended; the log has the sentence that says why."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        settings = environment(tmp_path, "http://127.0.0.1:1") | {"FOREMAN_ADDR": address}
        # A refusal ends long before `startsecs`; on a machine that is busy, only before this.
        overrides = {"startretries": "1", "startsecs": "25"}
        with Supervisor(tmp_path, settings, overrides).running() as supervisor:
            until(lambda: "FATAL state" in supervisor.events(), "it gives up")
            sentence = f"foreman: FOREMAN_ADDR is '{address}': another program listens there already.\n"
            assert supervisor.log.read_text() == sentence * 2
            assert supervisor.events().count("exited: foreman (exit status 2; not expected)") == 2


def test_the_images_commands(tmp_path: Path) -> None:
    """CMD ends by SIGTERM, and leaves no pid file; HEALTHCHECK exits 0 while it runs, and 1 after that."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    command, check = (
        [str(BIN / word) if number == 0 else word for number, word in enumerate(json.loads(match))]
        for match in (
            re.search(pattern, dockerfile, re.MULTILINE)[1]  # type: ignore[index]
            for pattern in (r"^CMD (\[.*\])$", r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$")
        )
    )
    log = tmp_path / "foreman.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=clean_environment() | environment(tmp_path, "http://127.0.0.1:1"),
            stdout=output,
            stderr=output,
        )
    try:
        until(lambda: ports(log) or process.poll() is not None, "foreman listens")
        (port,) = ports(log)
        check[-1] = check[-1].replace("127.0.0.1:8080", f"127.0.0.1:{port}")
        # Docker hands in its client's proxy; nothing listens on this one.
        proxied = clean_environment() | {"http_proxy": "http://127.0.0.1:1"}
        assert subprocess.run(check, env=proxied, timeout=PATIENCE_SECONDS).returncode == 0
        assert sorted(path.name for path in tmp_path.iterdir() if "foreman.db" not in path.name) == [
            "foreman.log"
        ]
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == -signal.SIGTERM
        after = subprocess.run(check, env=proxied, timeout=PATIENCE_SECONDS, capture_output=True)
        assert after.returncode == 1
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
