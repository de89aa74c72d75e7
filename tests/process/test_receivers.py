"""The receivers of the how-to, each as it is shown there, against what foreman sends."""

import base64
import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from attrs import frozen
from processes import PATIENCE_SECONDS, ROOT, until

from foreman.jobs.model import Event, Status
from foreman.secret import new_secret
from foreman.urls import JobUrls
from foreman.webhooks.body import compose
from foreman.webhooks.signature import Signer

FOLDER = ROOT / "docs/howto/receivers"
NEEDS = {"receiver.py": (sys.executable,), "receiver.mjs": ("node",), "receiver.sh": ("sh", "openssl", "od")}
JOB = "01KC8Z0V3N8Q4Z2W9T0B5E7H1M"
EVENT_ID = "01KC8Z0V3N8Q4Z2W9T0B5E7H2N"
FACTS = {"model": "llama3.2", "attempt": 1, "metadata": {"ü": "100 %s\n"}, "error": None, "metrics": None}
BODY = compose(
    Event(EVENT_ID, JOB, 3, Status.SUCCEEDED, Status.RUNNING, 1772366400.5, FACTS),
    b'{\n "response": "gr\xc3\xbcn \\u0000 \'$HOME\' `id`"\n}',
    JobUrls(),
)
NEW, OLD = new_secret(), "ein Geheimnis, 'alt' & $HOME"
UNPADDED = "whsec_" + base64.b64encode(b"16 bytes of key.").decode().rstrip("=")


@frozen
class Receiver:
    """A receiver that runs, and what it has printed."""

    port: int
    output: Path

    def status(self, headers: list[tuple[bytes, bytes]], body: bytes = BODY, method: str = "POST") -> int:
        """What it answers to one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.putrequest(method, "/hook")
            for name, value in (*headers, (b"Content-Length", b"%d" % len(body))):
                connection.putheader(name, value)
            connection.endheaders(body)
            return connection.getresponse().status
        finally:
            connection.close()

    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text("utf-8", "replace")


@contextmanager
def running(name: str, folder: Path, secret: str, previous: str = "") -> Iterator[Receiver]:
    """Start one of the receivers with these secrets."""
    missing = [tool for tool in NEEDS[name] if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{name} needs {missing[0]}, which this machine does not have")
    environment = {
        **os.environ,
        "FOREMAN_WEBHOOK_SECRET": secret,
        "FOREMAN_WEBHOOK_SECRET_PREVIOUS": previous,
    }
    output = folder / "output.txt"
    with output.open("wb") as file:
        if name == "receiver.sh":
            with each_connection([str(FOLDER / name)], folder, environment, file.fileno()) as port:
                yield Receiver(port, output)
            return
        process = subprocess.Popen(
            [NEEDS[name][0], FOLDER / name, "0"], env=environment, cwd=folder, stdout=file, stderr=file
        )
        try:
            listening = re.compile(r"listening on port (\d+)\n")
            until(
                lambda: listening.search(output.read_text()) or process.poll() is not None, f"{name} listens"
            )
            match = listening.search(output.read_text())
            assert match, output.read_text()
            yield Receiver(int(match[1]), output)
        finally:
            process.kill()
            process.wait()


@contextmanager
def each_connection(command: list[str], folder: Path, environment: dict[str, str], log: int) -> Iterator[int]:
    """Run a program for each connection, on the connection: what socat and inetd do."""
    stopping = threading.Event()

    def serve() -> None:
        while True:
            connection, _ = server.accept()
            with connection:
                if stopping.is_set():
                    return
                subprocess.run(
                    command, stdin=connection, stdout=connection, stderr=log, cwd=folder, env=environment,
                    timeout=PATIENCE_SECONDS, check=False,
                )  # fmt: skip

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield port
        finally:
            stopping.set()
            socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS).close()
            thread.join(PATIENCE_SECONDS)


def sent(*secrets: str, ago: int = 0, body: bytes = BODY) -> list[tuple[bytes, bytes]]:
    """The headers of an attempt that was made so many seconds ago."""
    return Signer(secrets).headers(EVENT_ID, int(time.time()) - ago, body)


def without(name: bytes, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """All but one of the headers."""
    return [(given, value) for given, value in headers if given != name]


def mixed(name: bytes, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """One of the two signatures is wrong, the other one right."""
    return [*without(name, headers), *(pair for pair in sent("another secret") if pair[0] == name)]


def refused() -> dict[str, tuple[list[tuple[bytes, bytes]], bytes]]:
    """Requests that are not what foreman sent with the secret NEW, or not lately."""
    right = sent(NEW)
    untimed, unnamed = without(b"webhook-timestamp", right), without(b"webhook-id", right)
    return {
        "another body": (right, BODY.replace(b"succeeded", b"succeedee")),
        "another secret": (sent(new_secret()), BODY),
        "the secret as text": (sent(NEW.removeprefix("whsec_")), BODY),
        "an old timestamp": (sent(NEW, ago=400), BODY),
        "a timestamp to come": (sent(NEW, ago=-400), BODY),
        "a changed timestamp": ([*untimed, sent(NEW, ago=5)[1]], BODY),
        "no timestamp": (untimed, BODY),
        "a strange timestamp": ([*untimed, (b"webhook-timestamp", b"1e9")], BODY),
        "another id": ([*unnamed, (b"webhook-id", b"other")], BODY),
        "no signature": (sent(), BODY),
        "no webhook-signature": (without(b"webhook-signature", right), BODY),
        "no X-Foreman-Signature": (without(b"X-Foreman-Signature", right), BODY),
        "a wrong webhook-signature": (mixed(b"webhook-signature", right), BODY),
        "a wrong X-Foreman-Signature": (mixed(b"X-Foreman-Signature", right), BODY),
        "nothing at all": ([], b""),
    }


@pytest.mark.parametrize("name", NEEDS)
def test_receiver_takes_what_is_signed_and_nothing_else(name: str, tmp_path: Path) -> None:
    """Both signatures and the age are checked; an event that comes twice is taken twice and handled once."""
    with running(name, tmp_path, NEW) as receiver:
        for what, request in refused().items():
            assert receiver.status(*request) == 401, what
        assert EVENT_ID not in receiver.text()
        assert "job.succeeded" not in receiver.text()
        for ago in (0, 200, -200):
            assert receiver.status(sent(NEW, ago=ago)) in (200, 204), receiver.text()
        assert receiver.status(sent(NEW, OLD)) in (200, 204)
        until(lambda: "job.succeeded" in receiver.text(), "the event is printed")
        assert receiver.text().count("job.succeeded") == 1
        assert JOB in receiver.text()
        assert receiver.status([], b"", "GET") >= 400


@pytest.mark.parametrize("name", NEEDS)
def test_secret_is_changed_without_a_loss(name: str, tmp_path: Path) -> None:
    """A receiver that knows both secrets takes what is sent before, during and after the change."""
    with running(name, tmp_path, NEW, OLD) as receiver:
        for secrets in ((OLD,), (NEW, OLD), (NEW,)):
            assert receiver.status(sent(*secrets)) in (200, 204), receiver.text()
        assert receiver.status(sent(new_secret(), OLD)) == 401


@pytest.mark.parametrize("secret", [OLD, UNPADDED, " grün "])
@pytest.mark.parametrize("name", NEEDS)
def test_every_form_of_a_secret(name: str, secret: str, tmp_path: Path) -> None:
    """Any text is a secret, and base64 needs no padding."""
    with running(name, tmp_path, secret) as receiver:
        assert receiver.status(sent(secret)) in (200, 204), receiver.text()
        assert receiver.status(sent(NEW)) == 401


@pytest.mark.parametrize("name", NEEDS)
def test_how_to_shows_the_receiver(name: str) -> None:
    """What is read there is what was tested here."""
    shown = (ROOT / "docs/howto/webhooks.md").read_text("utf-8")
    assert (FOLDER / name).read_text("utf-8") in shown
