"""``foreman secret``, ``foreman listen`` and ``foreman webhook-test`` as a person runs them."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from attrs import define
from processes import BIN, PATIENCE_SECONDS, until
from standardwebhooks.webhooks import Webhook

from foreman.secret import new_secret
from foreman.webhooks.body import announcement
from foreman.webhooks.signature import Signer

FOREMAN = str(BIN / "foreman")
SECRET = new_secret()
EVENT_ID = "01KC8Z0V3N8Q4Z2W9T0B5E7H2N"
JOB = "01KC8Z0V3N8Q4Z2W9T0B5E7H1M"
BODY = announcement(EVENT_ID, "job.running", 1772366400.0, {"job_id": JOB, "sequence": 2, "für": "Zoë"})


def clean(**given: str) -> dict[str, str]:
    """The environment without foreman's settings but these."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("FOREMAN_")}
    return {**kept, **{f"FOREMAN_{name}": text for name, text in given.items()}}


def foreman(*arguments: str, **given: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        [FOREMAN, *arguments],
        env=clean(**given),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


@define
class Listening:
    """A ``foreman listen`` that runs."""

    port: int
    output: Path
    process: "subprocess.Popen[bytes]"

    def send(self, headers: Mapping[bytes, bytes], body: bytes = BODY, method: str = "POST") -> int:
        """The status of its answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request(
                method,
                "/any/path",
                body,
                {name.decode(): value.decode("latin-1") for name, value in headers.items()},
            )
            return connection.getresponse().status
        finally:
            connection.close()

    def lines(self) -> list[str]:
        """What it has printed after its first line."""
        return self.output.read_text("utf-8").splitlines()[1:]


@contextmanager
def listening(folder: Path, *arguments: str, **given: str) -> Iterator[Listening]:
    """Start ``foreman listen`` on a free port."""
    output = folder / "listen.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [FOREMAN, "listen", "--port", "0", *arguments], env=clean(**given), stdout=file, stderr=file
        )
    try:
        says = re.compile(r"http://127\.0\.0\.1:(\d+)/ takes webhooks")
        until(lambda: says.search(output.read_text()) or process.poll() is not None, "foreman listens")
        match = says.search(output.read_text())
        assert match, output.read_text()
        yield Listening(int(match[1]), output, process)
    finally:
        process.kill()
        process.wait()


def sent(*secrets: str, ago: int = 0, event_id: str = EVENT_ID, attempt: int = 1) -> dict[bytes, bytes]:
    """The headers of an attempt."""
    signed = Signer(secrets).headers(event_id, int(time.time()) - ago, BODY)
    return dict([*signed, (b"X-Foreman-Attempt", b"%d" % attempt)])


# foreman secret


def test_secret_is_new_each_time() -> None:
    """One line that the settings and the libraries of Standard Webhooks take."""
    first, second = foreman("secret"), foreman("secret")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout != second.stdout
    secret = first.stdout.removesuffix("\n")
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", secret)
    headers = {name.decode(): value.decode() for name, value in sent(secret).items()}
    Webhook(secret).verify(BODY, headers)


# foreman listen


def test_listen_shows_what_arrives(tmp_path: Path) -> None:
    """One line: time, type, job, sequence, attempt, signature; below it the JSON."""
    with listening(tmp_path, WEBHOOK_SECRET=SECRET) as receiver:
        assert receiver.send(sent(SECRET)) == 204
        until(lambda: receiver.lines()[-1:] == ["    }"], "it is printed")
        line, *shown = receiver.lines()
    expected = rf"\d\d:\d\d:\d\d  job\.running +job {JOB}  sequence 2  attempt 1  verified, answered 204"
    assert re.fullmatch(expected, line)
    assert json.loads("\n".join(shown)) == json.loads(BODY)
    assert '        "für": "Zoë"' in shown


def test_listen_refuses_a_wrong_signature(tmp_path: Path) -> None:
    """401, and a person is told why; what is not signed is refused as well."""
    with listening(tmp_path, "--quiet", "--secret", SECRET, WEBHOOK_SECRET="not this one") as receiver:
        assert receiver.send(sent("not this one")) == 401
        assert receiver.send(sent(SECRET), BODY + b" ") == 401
        assert receiver.send(sent(SECRET, ago=400)) == 401
        assert receiver.send(sent()) == 401
        assert receiver.send(sent(SECRET)) == 204
        assert receiver.send({}, b"", "GET") == 405
        until(lambda: len(receiver.lines()) == 5, "each has its line")
        ends = [line.split("attempt 1  ")[1] for line in receiver.lines()]
    assert ends[0].startswith("WRONG signature: webhook-signature does not match")
    assert ends[1].startswith("WRONG signature: webhook-signature does not match")
    assert re.match(r"WRONG signature: webhook-timestamp is 40\d s from now", ends[2])
    assert ends[3:] == ["UNSIGNED, answered 401", "verified, answered 204"]


def test_listen_marks_what_came_before(tmp_path: Path) -> None:
    """The same id is the same event; what was refused does not count."""
    with listening(tmp_path, "--quiet", "--secret", SECRET) as receiver:
        assert receiver.send(sent("another")) == 401
        for attempt in (1, 2):
            assert receiver.send(sent(SECRET, attempt=attempt)) == 204
        assert receiver.send(sent(SECRET, event_id="01KC8Z0V3N8Q4Z2W9T0B5E7H2P")) == 204
        until(lambda: len(receiver.lines()) == 4, "each has its line")
        marks = ["seen before" in line for line in receiver.lines()]
    assert marks == [False, False, True, False]


def test_listen_without_a_secret(tmp_path: Path) -> None:
    """It takes everything, and says that it checks nothing."""
    with listening(tmp_path, "--quiet") as receiver:
        assert "checks no signatures" in receiver.output.read_text()
        assert receiver.send(sent()) == receiver.send(sent(SECRET)) == 204
        until(lambda: len(receiver.lines()) == 2, "each has its line")
        first, second = receiver.lines()
    assert "unsigned, answered 204" in first
    assert "signature not checked, seen before, answered 204" in second


def test_listen_fails_as_often_as_asked(tmp_path: Path) -> None:
    """500 to the first two; a wrong signature is none of them."""
    with listening(tmp_path, "--quiet", "--secret", SECRET, "--fail", "2") as receiver:
        assert receiver.send(sent("another")) == 401
        assert [receiver.send(sent(SECRET)) for _ in range(3)] == [500, 500, 204]


def test_listen_waits_before_it_answers(tmp_path: Path) -> None:
    """The line is there at once, the answer later; who leaves meanwhile breaks nothing."""
    with listening(tmp_path, "--quiet", "--slow", "0.3") as receiver:
        with socket.create_connection(("127.0.0.1", receiver.port), PATIENCE_SECONDS) as leaving:
            leaving.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
            until(lambda: len(receiver.lines()) == 1, "it is printed before it is answered")
        began = time.monotonic()
        assert receiver.send(sent()) == 204
        assert time.monotonic() - began >= 0.3
        assert "rror" not in receiver.output.read_text()


def test_listen_survives_any_body(tmp_path: Path) -> None:
    """Whatever comes, and nothing that a terminal would obey is printed."""
    bodies = (
        b"",
        b"[1]",
        b'"\\ud800"',
        b"\xff",
        b"[" * 10**5,
        b'{"type":"\\u001b[31m\\u009b","data":3}',
        b'{"type":[1],"data":{"job_id":{}}}',
        b"\x1b[2J",
    )
    with listening(tmp_path) as receiver:
        for body in bodies:
            assert receiver.send({b"X-Foreman-Event": b"\x9b31m"}, body) == 204, body
        until(lambda: "[2J" in receiver.lines()[-1], "the last one is printed")
        text = receiver.output.read_text("utf-8")
    assert text.count("answered 204") == len(bodies)
    assert all(letter.isprintable() or letter == "\n" for letter in text)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_listen_ends_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C also while a connection is open and an answer is due: a summary, no traceback, exit 0."""
    with listening(tmp_path, "--quiet", "--slow", "600") as receiver:
        with socket.create_connection(("127.0.0.1", receiver.port), PATIENCE_SECONDS) as waiting:
            waiting.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
            until(lambda: len(receiver.lines()) == 1, "it has come")
            receiver.process.send_signal(number)
            assert receiver.process.wait(PATIENCE_SECONDS) == 0
        assert receiver.lines()[1:] == ["1 received, 0 of them refused, 0 different events"]


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--port", "65536"], 2, "'65536' is no port: a number from 0 to 65535"),
        (["--port", "http"], 2, "'http' is no whole number"),
        (["--fail", "-1"], 2, "'-1' is no whole number"),
        (["--slow", "nan"], 2, "'nan' is no number of seconds from 0 to 3600"),
        (["--secret", "whsec_geheim-"], 2, "the secret cannot be used: what follows whsec_ must be base64"),
        (
            ["--host", "192.0.2.1"],
            1,
            "cannot listen on 192.0.2.1, port 9000: this machine has no such address",
        ),
    ],
)
def test_listen_says_what_is_wrong(arguments: list[str], status: int, sentence: str) -> None:
    """In one sentence, without a traceback and without the secret."""
    result = foreman("listen", *arguments)
    assert (result.returncode, result.stdout) == (status, "")
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert "geheim" not in result.stderr


def test_listen_on_a_port_that_is_taken() -> None:
    """Exit 1, and why."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        result = foreman("listen", "--port", str(other.getsockname()[1]))
    assert result.returncode == 1
    assert "another program listens there already" in result.stderr


# foreman webhook-test


def story(result: "subprocess.CompletedProcess[str]") -> dict[str, str]:
    """The lines of the story by their first word or two."""
    return {line[:10].rstrip(): line[11:] for line in result.stdout.splitlines()}


def webhook_test(url: str, **given: str) -> "subprocess.CompletedProcess[str]":
    """Run ``foreman webhook-test`` with the daemon's settings."""
    return foreman("webhook-test", url, **{"OLLAMA_URL": "http://127.0.0.1:11434", **given})


def test_webhook_test_of_a_receiver_that_is_well(tmp_path: Path) -> None:
    """The whole story, and exit 0; it is signed as the daemon's are."""
    with listening(tmp_path, "--secret", SECRET) as receiver:
        url = f"http://127.0.0.1:{receiver.port}/hook?a=1"
        result = webhook_test(url, WEBHOOK_SECRET=SECRET, WEBHOOK_SECRET_PREVIOUS="old")
        assert (result.returncode, result.stderr) == (0, "")
        until(lambda: receiver.lines()[-1:] == ["    }"], "it is printed")
        line, *shown = receiver.lines()
    told = story(result)
    assert re.fullmatch(r"\d+ ms", told.pop("time"))
    event = json.loads("\n".join(shown))
    size = re.fullmatch(rf"ping {event['id']}, (\d+) bytes, signed", told.pop("event"))
    assert size is not None
    assert told == {
        "URL": url,
        "addresses": f"127.0.0.1, port {receiver.port}",
        "guard": "allowed",
        "sent to": "127.0.0.1",
        "TLS": "none",
        "result": "the receiver answered 204",
    }
    assert re.search(r"  ping +job -  sequence -  attempt 1  verified, answered 204$", line)
    assert event["type"] == "ping"
    assert int(size[1]) == len(json.dumps(event, separators=(",", ":")))


def test_webhook_test_of_a_receiver_that_refuses(tmp_path: Path) -> None:
    """Anything but a 2xx is exit 1, with the first line of what the receiver said."""
    with listening(tmp_path, "--secret", SECRET) as receiver:
        url = f"http://127.0.0.1:{receiver.port}/"
        result = webhook_test(url, WEBHOOK_SECRET="another")
        assert result.returncode == 1
        assert story(result)["result"] == "the receiver answered 401"
        assert story(result)["it says"].startswith("WRONG signature: webhook-signature does not match")
        unsigned = webhook_test(url)
        assert unsigned.returncode == 1
        assert story(unsigned)["event"].endswith("not signed: FOREMAN_WEBHOOK_SECRET is not set")
        assert story(unsigned)["it says"] == "UNSIGNED"


def test_webhook_test_shows_tls(tmp_path: Path) -> None:
    """What was agreed on when the authority is known, else what is wrong; without TLS nothing is sent."""
    if shutil.which("openssl") is None:
        pytest.skip("this machine has no openssl to make a certificate")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-days", "2", "-subj", "/CN=hook", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    requests: list[bytes] = []

    def serve() -> None:
        for _ in range(2):
            connection, _ = server.accept()
            connection.settimeout(PATIENCE_SECONDS)
            try:
                with context.wrap_socket(connection, server_side=True) as secure:
                    requests.append(secure.recv(65536))
                    secure.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nok\n")
            except OSError:  # the client refused the certificate
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        url = f"https://127.0.0.1:{server.getsockname()[1]}/"
        refused, taken = webhook_test(url), webhook_test(url, WEBHOOK_CA=str(certificate))
        thread.join(PATIENCE_SECONDS)
    assert refused.returncode == 1
    assert story(refused)["result"].startswith("tls_error: the certificate of 127.0.0.1 is self-signed")
    assert taken.returncode == 0, taken.stdout
    assert re.fullmatch(r"TLSv1\.\d, certificate for 127\.0\.0\.1 until \d{4}-\d\d-\d\d", story(taken)["TLS"])
    assert story(taken)["it says"] == "ok"
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("url", "given", "reason"),
    [
        ("http://169.254.169.254/", {}, "foreman never sends"),
        ("http://127.0.0.1:9/", {"WEBHOOK_ALLOW": "public"}, "FOREMAN_WEBHOOK_ALLOW does not allow"),
        ("http://localhost:9/", {"WEBHOOK_ALLOW": "public"}, "FOREMAN_WEBHOOK_ALLOW does not allow"),
        ("http://localhost:8080/", {}, "foreman itself"),
        ("http://localhost:9/", {"ADDR": "127.0.0.1:9"}, "foreman itself"),
        ("http://localhost:9/", {"ADDR": "tcp:port=9:interface=\\:\\:"}, "foreman itself"),
        ("http://localhost:11434/", {}, "the target"),
    ],
)
def test_webhook_test_asks_the_guard(url: str, given: dict[str, str], reason: str) -> None:
    """What the daemon would not send is not sent: a forbidden address, foreman itself, the target."""
    result = webhook_test(url, **given)
    assert result.returncode == 1
    assert story(result)["guard"].startswith("refused: ")
    assert reason in story(result)["guard"]
    assert "sent to" not in story(result)


def test_webhook_test_of_nobody() -> None:
    """No answer at all is exit 1, and why."""
    with socket.socket() as bound:  # a free port could be taken by another program
        bound.bind(("127.0.0.1", 0))
        result = webhook_test(f"http://127.0.0.1:{bound.getsockname()[1]}/")
    assert (result.returncode, result.stderr) == (1, "")
    assert story(result)["guard"] == "allowed"
    assert story(result)["result"].startswith("connection_refused: 127.0.0.1")


@pytest.mark.parametrize(
    ("url", "given", "sentences"),
    [
        ("ftp://hook.example/", {}, ["the URL cannot be used: it is an http or https URL"]),
        ("http://hook.example/", {"OLLAMA_URL": ""}, ["FOREMAN_OLLAMA_URL is not set"]),
        ("http://hook.example/", {"WEBHOOK_CA": "/nowhere"}, ["FOREMAN_WEBHOOK_CA is '/nowhere': "]),
        (
            "http://hook.example/",
            {"WEBHOOK_SECRET": "whsec_geheim-", "WEBHOOK_ALLOW": "10.0.0.300/8"},
            ["FOREMAN_WEBHOOK_SECRET has a value that cannot be used: ", "FOREMAN_WEBHOOK_ALLOW is "],
        ),
    ],
)
def test_webhook_test_with_what_cannot_be_used(url: str, given: dict[str, str], sentences: list[str]) -> None:
    """Exit 2 before anything is sent, a sentence for each complaint, no secret, no traceback."""
    result = webhook_test(url, **given)
    assert (result.returncode, result.stdout) == (2, "")
    for sentence in sentences:
        assert f"foreman webhook-test: {sentence}" in result.stderr
    assert "geheim" not in result.stderr
    assert "Traceback" not in result.stderr


def test_webhook_test_needs_a_url() -> None:
    """Exit 2, and how it is used."""
    result = foreman("webhook-test")
    assert result.returncode == 2
    assert "usage: foreman webhook-test [-h] URL" in result.stderr
