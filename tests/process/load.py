"""A load for a foreman that is killed: a target, callers that never give up, a daemon, and the books."""

import http.client
import json
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from contextlib import closing
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from attrs import define, field
from processes import BIN, PATIENCE_SECONDS, environment

MODELS = ("alpha:latest", "beta:latest")
# More than one piece of the store, so that a run writes in several transactions.
LONG_BYTES = 300_000
TERMINAL = ("succeeded", "failed", "cancelled", "expired")
# So many deaths are no fault of the job, and nothing that ended may be pruned before it was counted.
SETTINGS = {
    "MAX_INTERRUPTIONS": "100000",
    "RETAIN_SUCCEEDED": "1000h",
    "RETAIN_FAILED": "1000h",
    "POLL_INTERVAL": "1s",
}


def words(prompt: str) -> list[str]:
    """The tokens that the target says to a prompt."""
    said = [f"{prompt} ", "was ", "heard", "."]
    return [*said, "x" * LONG_BYTES] if prompt.startswith("long") else said


class _Answers(BaseHTTPRequestHandler):
    """The few routes of Ollama that foreman asks here."""

    protocol_version = "HTTP/1.1"
    # The head and the body are two writes; with Nagle's algorithm the second waits 40 ms.
    disable_nagle_algorithm = True
    timeout: ClassVar[float] = PATIENCE_SECONDS
    server: "_Server"

    def do_GET(self) -> None:
        """What is installed, and nothing is loaded."""
        entries = [{"name": name, "model": name, "digest": name, "details": {}} for name in MODELS]
        answers = {"/api/version": {"version": "0.24.0"}, "/api/tags": {"models": entries}}
        self._reply(200, answers.get(self.path, {"models": []}))

    def do_POST(self) -> None:
        """A stream of lines, each after a little while."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/api/generate":
            self._reply(404, {"error": "not found"})
            return
        self.server.runs += 1
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for word in words(body["prompt"]):
                time.sleep(self.server.token_seconds)
                self._line({"model": body["model"], "response": word, "done": False})
            self._line({"model": body["model"], "response": "", "done": True, "done_reason": "stop"})
            self.wfile.write(b"0\r\n\r\n")
        except OSError:  # foreman was killed
            self.close_connection = True

    def _line(self, value: dict[str, Any]) -> None:
        line = json.dumps(value).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

    def _reply(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    runs = 0
    token_seconds = 0.0

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that foreman's death has reset is no error here."""


@define(eq=False)
class Target:
    """A small, fast Ollama with two models, in threads of this process. `token_seconds` may be changed."""

    _server: _Server = field(factory=lambda: _Server(("127.0.0.1", 0), _Answers))
    _thread: threading.Thread = field(init=False)

    def __enter__(self) -> "Target":
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def runs(self) -> int:
        """How many generations were begun."""
        return self._server.runs

    def pace(self, token_seconds: float) -> None:
        """How long each token takes from now on."""
        self._server.token_seconds = token_seconds


@define
class Life:
    """One life of a daemon on the folder's database.

    `ready_seconds` is the time from its start until ``/healthz`` answers.
    """

    port: int
    ready_seconds: float
    _process: "subprocess.Popen[bytes]"

    @classmethod
    def begin(cls, folder: Path, port: int, target: str, **given: str) -> "Life":
        """Start foreman, and wait until it serves. `given`: more variables, under their whole names."""
        settings = {"ADDR": f"127.0.0.1:{port}", "OLLAMA_URL": target, **SETTINGS}
        began = time.monotonic()
        with (folder / "output.txt").open("ab") as output:
            process = subprocess.Popen(
                [str(BIN / "twistd"), "-n", "--pidfile=", "foreman"],
                cwd=folder,
                env=environment(folder, **settings) | given,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        life = cls(port, 0.0, process)
        try:
            while not life._serves():
                broken = process.poll() is not None or time.monotonic() - began > PATIENCE_SECONDS
                assert not broken, (folder / "output.txt").read_text()
                time.sleep(0.005)
        except BaseException:
            life.kill()
            raise
        life.ready_seconds = time.monotonic() - began
        return life

    def _serves(self) -> bool:
        try:
            return ask(self.port, "GET", "/healthz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def kill(self) -> None:
        """As a crash does: nothing is said, nothing is finished."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code. twistd ends by the same signal once all is stopped."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(PATIENCE_SECONDS)


def ask(port: int, method: str, path: str, value: object = None) -> tuple[int, Any]:
    """The status and the JSON of an answer. Raises OSError or HTTPException when there was none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    with closing(connection):
        connection.request(method, path, None if value is None else json.dumps(value))
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, json.loads(body) if body else None


def free_port() -> int:
    """A port that nobody has now; foreman gets it again in each of its lives.

    Below those that the kernel gives to outgoing connections: between two lives, one of these could take it,
    even one that connects to itself.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue


@define(eq=False)
class Callers:
    """Threads that submit jobs, and remember the prompt of each that was acknowledged, by its id.

    `pause` is the mean of seconds between two jobs of one caller.
    """

    _port: int
    _pause: float
    _count: int = 4
    acknowledged: dict[str, str] = field(factory=dict, init=False)
    failures: list[str] = field(factory=list, init=False)  # answers that were no 202
    _stopping: threading.Event = field(factory=threading.Event, init=False)
    _threads: list[threading.Thread] = field(factory=list, init=False)

    def __enter__(self) -> "Callers":
        self._threads = [threading.Thread(target=self._submit, args=(n,)) for n in range(self._count)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _submit(self, caller: int) -> None:
        chance = random.Random(caller)
        number = 0
        while not self._stopping.wait(chance.uniform(0, 2 * self._pause)):
            number += 1
            prompt = f"{'long' if chance.random() < 0.02 else 'short'} {caller}-{number}"
            job = {"endpoint": "/api/generate", "model": chance.choice(MODELS), "prompt": prompt}
            try:
                status, answer = ask(self._port, "POST", "/jobs", job)
            except (OSError, http.client.HTTPException):
                continue  # no answer, no promise
            if status == 202:
                self.acknowledged[answer["job_id"]] = prompt
            else:
                self.failures.append(f"{status} {answer}")


@define
class Books:
    """What a database says: each job's status, how many ends each had, and what is wrong with the file."""

    integrity: str
    statuses: dict[str, str]
    ends: dict[str, int]
    interruptions: int

    @classmethod
    def read(cls, folder: Path, scratch: Path) -> "Books":
        """Read a copy, made while no daemon runs: opening the database would do the daemon's recovery."""
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        for name in ("foreman.db", "foreman.db-wal"):
            if (folder / name).exists():
                shutil.copy(folder / name, scratch / name)
        with closing(sqlite3.connect(scratch / "foreman.db")) as database:
            ((integrity,), *more) = database.execute("PRAGMA integrity_check").fetchall()
            jobs = database.execute("SELECT id, status, interruptions FROM job").fetchall()
            marks = ", ".join("?" * len(TERMINAL))
            count = f"SELECT job_id, count(*) FROM event WHERE status IN ({marks}) GROUP BY job_id"
            ends = dict(database.execute(count, TERMINAL).fetchall())
        return cls(
            f"{integrity} and {len(more)} more" if more else integrity,
            {job: status for job, status, _ in jobs},
            ends,
            sum(times for *_, times in jobs),
        )

    def missing(self, acknowledged: "list[str]") -> list[str]:
        """Jobs that were promised, and are not there."""
        return [job for job in acknowledged if job not in self.statuses]

    def finished_twice(self) -> list[str]:
        """Jobs with more than one end in the outbox."""
        return [job for job, times in self.ends.items() if times > 1]

    def unfinished(self) -> list[str]:
        """Jobs without an end that is told in the outbox and in the job alike."""
        return [
            job for job, status in self.statuses.items() if status not in TERMINAL or job not in self.ends
        ]


def wait_until_all_ended(port: int, limit_seconds: float) -> None:
    """Until nothing waits or runs."""
    end = time.monotonic() + limit_seconds
    for status in ("scheduled", "queued", "running"):  # as a job goes on, so that none slips through
        while ask(port, "GET", f"/jobs?status={status}&limit=1")[1]["jobs"]:
            assert time.monotonic() < end, f"jobs are still {status} after {limit_seconds} s"
            time.sleep(0.05)
    assert not ask(port, "GET", "/jobs?status=queued&limit=1")[1]["jobs"], "a job was put back meanwhile"


def wrong_jobs(port: int, acknowledged: dict[str, str]) -> list[str]:
    """Jobs that HTTP does not show as succeeded, with the whole text that belongs to their prompt."""
    wrong = []
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)) as connection:
        for job_id, prompt in acknowledged.items():
            connection.request("GET", f"/jobs/{job_id}")
            job = json.loads(connection.getresponse().read())
            digest = sha256("".join(words(prompt)).encode()).hexdigest()
            texts = [one["sha256"] for one in job.get("artifacts", []) if one["name"] == "content.txt"]
            if job.get("status") != "succeeded" or texts != [digest]:
                wrong.append(f"{job_id}: {job.get('status')}, {job.get('error')}, {texts}")
    return wrong
