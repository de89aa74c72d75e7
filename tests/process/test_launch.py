"""foreman as people start it: each way to start, how it stops, and every refusal to start."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from processes import (
    BIN,
    LINE,
    PATIENCE_SECONDS,
    EndlessTarget,
    command,
    connect,
    environment,
    get,
    post,
    read_all,
    started,
    until,
)

from foreman import __version__
from foreman.lock import FileLock

VARIANTS = ["twistd -n foreman", "twistd foreman", "foreman serve", "twistd -ny foreman.tac"]
GRACE_SECONDS = 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_starts_answers_and_stops(variant: str, number: signal.Signals, tmp_path: Path) -> None:
    """Each way to start it gives the same daemon, which ends soon after either signal, and leaves nothing."""
    with started(variant, tmp_path) as daemon:
        answer = get(daemon.port, "/healthz")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b'"status":"ok"' in answer
        began = time.monotonic()
        daemon.signal(number)
        code = daemon.wait()
        assert time.monotonic() - began < GRACE_SECONDS + 8
        # twistd ends by the signal that stopped it.
        assert code in (None, -number)
        assert "Traceback" not in daemon.text()
        with pytest.raises(ConnectionRefusedError):
            connect(daemon.port)
    FileLock(str(tmp_path / "foreman.db.lock")).release()
    assert not list(tmp_path.glob("*.pid"))


@pytest.mark.parametrize("variant", ["twistd -n foreman", "twistd foreman"])
@pytest.mark.parametrize(
    "again", [(), (signal.SIGTERM,), (signal.SIGINT, signal.SIGTERM)], ids=["once", "twice", "thrice"]
)
def test_a_stream_gets_the_grace(variant: str, again: tuple[int, ...], tmp_path: Path) -> None:
    """
    What runs goes on for the grace and is cut with last words; the end comes soon after.

    More signals meanwhile change nothing.
    """
    with (
        EndlessTarget() as target,
        started(variant, tmp_path, OLLAMA_URL=target.url, STOP_GRACE=f"{GRACE_SECONDS}s") as daemon,
        connect(daemon.port) as client,
    ):
        client.sendall(post("/api/generate"))
        assert client.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        for number in again:
            # The port is closed: the first was heard.
            until(lambda: refuses(daemon.port), "the port is closed")
            daemon.signal(number)
        rest = read_all(client)
        streamed_seconds = time.monotonic() - began
        daemon.wait()
        stopped_seconds = time.monotonic() - began
        text = daemon.text()
        # Twisted itself remarks on each signal that comes after the first.
        remarks = text.count(
            "twisted.internet.error.ReactorNotRunning: Can't stop reactor that isn't running."
        )
        assert text.count("Traceback") == remarks <= len(again), text
        assert target.left.wait(PATIENCE_SECONDS)
    assert GRACE_SECONDS - 0.1 < streamed_seconds < GRACE_SECONDS + 2
    # foreman itself needs a second at most; what the interpreter's end takes is up to the machine.
    assert stopped_seconds < GRACE_SECONDS + 4
    # The stream went on during the grace, and did not end as a whole one does.
    assert rest.count(LINE) > 10
    assert not rest.endswith(b"0\r\n\r\n")
    assert json.loads(rest.split(b"\r\n")[-2]) == {
        "error": "foreman is stopping; send the request again in a moment"
    }


def refuses(port: int) -> bool:
    """Whether nobody listens there."""
    try:
        connect(port).close()
    except ConnectionRefusedError:
        return True
    return False


def test_what_waits_is_refused_at_once(tmp_path: Path) -> None:
    """A request that waits for its turn gets 503 in its dialect while another still has its grace."""
    waiting_paths = ["/api/chat", "/v1/chat/completions", "/v1/responses", "/v1/messages"]
    with (
        EndlessTarget() as target,
        started("twistd -n foreman", tmp_path, OLLAMA_URL=target.url, STOP_GRACE="20s") as daemon,
        connect(daemon.port) as running,
    ):
        running.sendall(post("/api/generate"))
        running.recv(65536)
        waiting = [connect(daemon.port) for _ in waiting_paths]
        for client, path in zip(waiting, waiting_paths, strict=True):
            client.sendall(post(path))
        # An own path is answered after what was sent before it on other connections was read.
        until(lambda: get(daemon.port, "/healthz"), "the requests have arrived")
        daemon.signal(signal.SIGTERM)
        answers = [read_all(client) for client in waiting]
        for client in waiting:
            client.close()
        assert running.recv(65536)
        assert target.streams == 1
    bodies = []
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        bodies.append(json.loads(answer.partition(b"\r\n\r\n")[2]))
    sentence = "foreman is stopping; send the request again in a moment"
    openai = {"error": {"message": sentence, "type": "api_error", "param": None, "code": "stopping"}}
    assert bodies == [
        {"error": sentence},
        openai,
        openai,
        {"type": "error", "error": {"type": "overloaded_error", "message": sentence}},
    ]


def test_stops_at_once_when_nothing_runs(tmp_path: Path) -> None:
    """An idle connection of a client does not hold up the end."""
    with started("twistd -n foreman", tmp_path, STOP_GRACE="20s") as daemon, connect(daemon.port) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(65536)
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        daemon.wait()
        assert time.monotonic() - began < 5


# Refusals

URL = "FOREMAN_OLLAMA_URL"
URL_FORMS = "the target is written as in http://127.0.0.1:11434, https://gpu.lan/ollama or embedded:"
DURATION_FORMS = "a duration is written as in 250ms, 30s or 1h30m"
SIZE_FORMS = "a size is a number of bytes, or written as in 64KiB, 8MiB or 2GiB"
REFUSALS: dict[str, tuple[dict[str, str], list[str]]] = {
    "no URL": (
        {"OLLAMA_URL": ""},
        [f"{URL} is not set: name your Ollama, such as http://127.0.0.1:11434."],
    ),
    "not http": (
        {"OLLAMA_URL": "ftp://gpu.lan"},
        [f"{URL} is 'ftp://gpu.lan': {URL_FORMS}."],
    ),
    "password in URL": (
        {"OLLAMA_URL": "http://me:geheim@gpu.lan"},
        [f"{URL} has a value that cannot be used: {URL_FORMS}."],
    ),
    "bad duration": (
        {"POLL_INTERVAL": "30"},
        [f"FOREMAN_POLL_INTERVAL is '30': {DURATION_FORMS}."],
    ),
    "negative duration": (
        {"RUN_TIMEOUT": "-1h"},
        ["FOREMAN_RUN_TIMEOUT is '-1h': it must not be negative."],
    ),
    "negative limit": (
        {"BODY_LIMIT": "-1"},
        [f"FOREMAN_BODY_LIMIT is '-1': {SIZE_FORMS}."],
    ),
    "no such address": (
        {"ADDR": "192.0.2.1:0"},
        ["FOREMAN_ADDR is '192.0.2.1:0': this machine has no such address."],
    ),
    "no such endpoint": (
        {"ADDR": "carrier:pigeon"},
        ["FOREMAN_ADDR is 'carrier:pigeon': it is no endpoint that Twisted knows: "],
    ),
    "no such folder": (
        {"DB_PATH": "/nonexistent/foreman.db"},
        [
            "FOREMAN_DB_PATH is '/nonexistent/foreman.db': "
            "/nonexistent/foreman.db.lock cannot be written: No such file or directory."
        ],
    ),
    "everything at once": (
        {"OLLAMA_URL": "", "ADDR": "here", "POLL_INTERVAL": "often", "RELAY_BUFFER": "8MB", "TOKEN": "a b"},
        [
            "FOREMAN_ADDR is 'here': an address is :8080, 127.0.0.1:8080, [::1]:8080, "
            "or an endpoint string such as ssl:8443:….",
            f"{URL} is not set: name your Ollama, such as http://127.0.0.1:11434.",
            "FOREMAN_TOKEN has a value that cannot be used: "
            "a token is made of visible ASCII characters, without spaces.",
            f"FOREMAN_POLL_INTERVAL is 'often': {DURATION_FORMS}.",
            f"FOREMAN_RELAY_BUFFER is '8MB': {SIZE_FORMS}.",
        ],
    ),
}


def check_refused(variant: str, folder: Path, given: dict[str, str], sentences: list[str]) -> None:
    """Exit code 2, the sentences in any order and nothing else, and nothing left."""
    result = subprocess.run(
        command(variant, folder),
        cwd=folder,
        env=environment(folder, **given),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        encoding="utf-8",
    )
    pidfile = folder / "twistd.pid"
    if pidfile.exists():  # it was not refused: no broken test may leave a daemon
        os.kill(int(pidfile.read_text()), signal.SIGKILL)
    assert result.returncode == 2, result
    lines = sorted(result.stderr.splitlines())
    assert len(lines) == len(sentences), result.stderr
    for line, sentence in zip(lines, sorted(sentences), strict=True):
        assert line.startswith(f"foreman: {sentence}"), line
        assert line.endswith(".")
    assert "Traceback" not in result.stdout
    assert "geheim" not in result.stdout + result.stderr
    assert not list(folder.glob("*.pid"))


@pytest.mark.parametrize("variant", ["twistd -n foreman", "twistd foreman"])
@pytest.mark.parametrize("case", REFUSALS)
def test_refuses_to_start(variant: str, case: str, tmp_path: Path) -> None:
    """Every complaint in one go, a sentence each; when daemonising, no parent is left waiting."""
    given, sentences = REFUSALS[case]
    check_refused(variant, tmp_path, given, sentences)
    FileLock(str(tmp_path / "foreman.db.lock")).release()


@pytest.mark.parametrize("variant", ["foreman serve", "twistd -ny foreman.tac"])
def test_refuses_in_every_way_to_start(variant: str, tmp_path: Path) -> None:
    """The other two ways say the same."""
    check_refused(variant, tmp_path, *REFUSALS["everything at once"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_refuses_a_port_in_use_and_a_lock_that_is_held(variant: str, tmp_path: Path) -> None:
    """What only the machine can say comes in the same go as what the settings say."""
    lock = FileLock(str(tmp_path / "foreman.db.lock"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        database = tmp_path / "foreman.db"
        check_refused(
            variant,
            tmp_path,
            {"ADDR": address, "STOP_GRACE": "-1s"},
            [
                f"FOREMAN_ADDR is '{address}': another program listens there already.",
                f"FOREMAN_DB_PATH is '{database}': another foreman is using it ({database}.lock is locked).",
                "FOREMAN_STOP_GRACE is '-1s': it must not be negative.",
            ],
        )
    lock.release()


def test_second_foreman_on_the_same_database(tmp_path: Path) -> None:
    """The lock of a daemon outlives the fork that made it one, and its end gives it back."""
    with started("twistd foreman", tmp_path) as daemon:
        database = tmp_path / "foreman.db"
        second = tmp_path / "second"
        second.mkdir()
        check_refused(
            "twistd foreman",
            second,
            {"DB_PATH": str(database)},
            [f"FOREMAN_DB_PATH is '{database}': another foreman is using it ({database}.lock is locked)."],
        )
        assert get(daemon.port, "/healthz").startswith(b"HTTP/1.1 200 OK")
        daemon.signal(signal.SIGKILL)
        daemon.wait()
    (tmp_path / "twistd.pid").unlink()
    with started("twistd foreman", tmp_path):
        pass


# What is said at the start


def test_slips_of_the_pen_are_named_in_the_log(tmp_path: Path) -> None:
    """A variable that is no setting stops nothing, and is named with what was meant."""
    with started("twistd -n foreman", tmp_path, OLAMA_TOKEN="geheim", XYZZY="1") as daemon:
        text = daemon.text()
    assert "FOREMAN_OLAMA_TOKEN is not a setting; did you mean FOREMAN_OLLAMA_TOKEN?" in text
    assert "FOREMAN_XYZZY is not a setting." in text
    assert "geheim" not in text


@pytest.mark.parametrize(
    ("address", "token", "warned"),
    [(":0", "", True), ("0.0.0.0:0", "", True), (":0", "s3cret", False), ("127.0.0.1:0", "", False)],
)
def test_open_door_is_named_in_the_log(address: str, token: str, warned: bool, tmp_path: Path) -> None:
    """Whoever listens beyond this machine without a token is told so."""
    with started("twistd -n foreman", tmp_path, ADDR=address, TOKEN=token) as daemon:
        assert get(daemon.port, "/healthz").startswith(b"HTTP/1.1 200 OK")
        text = daemon.text()
    assert ("FOREMAN_TOKEN is not set: whoever can connect may use it" in text) is warned
    assert "s3cret" not in text


def test_serve_logs_to_standard_error(tmp_path: Path) -> None:
    """Standard output stays empty."""
    with subprocess.Popen(
        command("foreman serve", tmp_path),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        # The limit of every test ends a wait for a line that never comes.
        assert any(b" listens on 127.0.0.1:" in line for line in process.stderr)
        process.terminate()
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert output == b""


def test_version() -> None:
    """``foreman --version`` needs no settings."""
    result = subprocess.run(
        [BIN / "foreman", "--version"], capture_output=True, timeout=PATIENCE_SECONDS, check=True
    )
    assert result.stdout.decode() == f"foreman {__version__}\n"
