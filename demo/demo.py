"""
A first run: foreman in front of a real, small language model, without an Ollama.

Starts `twistd foreman` on the embedded target, streams a chat, then sends six requests at once that
alternate two models: first straight to the target, then through foreman, and counts the loads. At last
it hands the same six in as durable jobs, which nobody has to wait for, fetches a result, and shows the
webhooks that came for them.
"""

import base64
import hashlib
import hmac
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODELS = ("smollm2", "smollm2-4k")
QUESTIONS = (
    "Name a colour.",
    "Name an animal.",
    "Name a fruit.",
    "Name a city.",
    "Name a river.",
    "Name a tool.",
)
SECRET = "whsec_" + base64.b64encode(b"the demo's own secret, 32 bytes.").decode()
START_SECONDS = 60
ANSWER_SECONDS = 120
ENDED = ("succeeded", "failed", "cancelled", "expired")


class Daemon:
    """A `twistd foreman` of our own in a temporary folder, at a free port."""

    def __init__(self, folder: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FOREMAN_")}
        environment |= {
            "FOREMAN_ADDR": "127.0.0.1:0",
            "FOREMAN_OLLAMA_URL": "embedded:",
            "FOREMAN_DB_PATH": f"{folder}/foreman.db",
            "FOREMAN_WEBHOOK_SECRET": SECRET,
        }
        self._log = Path(folder, "foreman.log")
        with self._log.open("wb") as log:
            twistd = Path(sys.executable).with_name("twistd")
            command = [str(twistd), "-n", "--pidfile=", "foreman"]
            self._process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
        found = self._wait_for(r"listens on (\S+), target (\S+)")
        self.url, self.target_url = f"http://{found[1]}", found[2]
        self._wait_for(r"embedded: serving")

    def _wait_for(self, pattern: str) -> "re.Match[str]":
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            if found := re.search(pattern, self._log.read_text()):
                return found
            time.sleep(0.05)
        self.stop()
        raise SystemExit(f"foreman did not start:\n{self._log.read_text()}")

    def loads(self) -> int:
        """How often the target has loaded a model so far, by the target's own log."""
        return len(re.findall(r"embedded: loaded ", self._log.read_text()))

    def stop(self) -> None:
        """As a supervisor would."""
        self._process.terminate()
        self._process.wait(timeout=20)


class Receiver:
    """A receiver of webhooks on loopback: it checks the signature of what comes, and keeps it."""

    def __init__(self) -> None:
        self.events: list[dict] = []
        self.forged = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if _is_signed(self.headers, body):
                    receiver.events.append(json.loads(body))
                else:
                    receiver.forged += 1
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def of(self, job_id: str) -> list[dict]:
        """The data of the events of one job, as they came."""
        return [event["data"] for event in list(self.events) if event["data"]["job_id"] == job_id]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _is_signed(headers: Message, body: bytes) -> bool:
    """As Standard Webhooks has it: HMAC-SHA256 over the id, the moment and the body."""
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
    return hmac.compare_digest(headers["webhook-signature"], expected)


def chat(url: str, model: str, question: str, tokens: int) -> "Iterator[tuple[str, dict[str, str]]]":
    """The pieces of an answer as they come, each with the answer's headers."""
    messages = [{"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "options": {"num_predict": tokens}}
    request = urllib.request.Request(f"{url}/api/chat", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
        for line in answer:
            yield json.loads(line)["message"]["content"], dict(answer.headers)


def six_at_once(url: str) -> list[tuple[str, str, float, str]]:
    """Six requests that alternate the models: model, question, seconds until the end, milliseconds queued."""
    results = [("", "", 0.0, "")] * len(QUESTIONS)

    def ask(number: int) -> None:
        model, question, began = MODELS[number % 2], QUESTIONS[number], time.monotonic()
        pieces = list(chat(url, model, question, 8))
        queued = pieces[-1][1].get("X-Foreman-Queue-Ms", "")
        results[number] = (model, question, time.monotonic() - began, queued)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(QUESTIONS))]
    for thread in threads:
        thread.start()
        time.sleep(0.02)  # so that they arrive in this order
    for thread in threads:
        thread.join()
    return results


def fetch(url: str, body: object = None) -> "tuple[int, bytes]":
    """Status and body of the answer; a body of ours goes by POST."""
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
        return answer.status, answer.read()


def submit_six(url: str, hook: str) -> list[str]:
    """The same six as durable jobs: their ids. Each is on the disk when its 202 is there."""
    ids = []
    for number, question in enumerate(QUESTIONS):
        messages = [{"role": "user", "content": question}]
        body = {"model": MODELS[number % 2], "messages": messages, "options": {"num_predict": 8}}
        body["state_webhook_url"] = hook
        status, receipt = fetch(f"{url}/jobs", body)
        job = json.loads(receipt)
        print(f"  {status}  {job['job_id']}  {body['model']:<11} {question}")
        ids.append(job["job_id"])
    return ids


def follow(url: str, ids: list[str]) -> None:
    """Poll until all have ended, with a line each time that the picture changes."""
    shown, until = "", time.monotonic() + ANSWER_SECONDS
    while True:
        listed = json.loads(fetch(f"{url}/jobs?limit={len(ids)}")[1])["jobs"]
        states = {job["job_id"]: job["status"] for job in listed}
        picture = "  ".join(f"{states[job_id]:<9}" for job_id in ids).rstrip()
        if picture != shown:
            print(f"  {picture}", flush=True)
            shown = picture
        if all(state in ENDED for state in states.values()):
            return
        if time.monotonic() > until:
            raise SystemExit(f"the jobs did not end within {ANSWER_SECONDS} s")
        time.sleep(0.05)


def main() -> int:
    """Exit code 0 when everything was as promised."""
    with tempfile.TemporaryDirectory(prefix="foreman-demo-") as folder:
        receiver = Receiver()
        daemon = Daemon(folder)
        try:
            return show(daemon, receiver)
        finally:
            daemon.stop()
            receiver.stop()


def show(daemon: Daemon, receiver: Receiver) -> int:
    """The whole demonstration."""
    print(f"foreman listens on {daemon.url}, in front of the embedded target at {daemon.target_url}\n")

    print("One chat, streamed as it is generated:")
    print("  > Why is the sky blue? Answer in one sentence.\n  ", end="")
    for piece, _ in chat(daemon.url, MODELS[1], "Why is the sky blue? Answer in one sentence.", 48):
        print(piece.replace("\n", "\n  "), end="", flush=True)
    print("\n")

    print("Six requests at once, alternating two models, straight to the target:")
    before = daemon.loads()
    began = time.monotonic()
    six_at_once(daemon.target_url)
    direct_loads, direct_seconds = daemon.loads() - before, time.monotonic() - began
    print(f"  {direct_loads} loads, {direct_seconds:.1f} s\n")

    print("The same six through foreman:")
    before = daemon.loads()
    began = time.monotonic()
    for model, question, seconds, queued in six_at_once(daemon.url):
        waited = int(queued) / 1000
        print(f"  {model:<11} {question:<16} waited {waited:5.2f} s, answered after {seconds:5.2f} s")
    loads, seconds = daemon.loads() - before, time.monotonic() - began
    print(f"  {loads} loads, {seconds:.1f} s: the queue drains one model before it swaps to the other\n")

    well = show_jobs(daemon, receiver)
    return 0 if well and loads <= len(MODELS) < direct_loads else 1


def show_jobs(daemon: Daemon, receiver: Receiver) -> bool:
    """The part with the durable jobs; whether everything was as promised."""
    print("The same six as durable jobs, which outlive their connection, and foreman's end too:")
    before = daemon.loads()
    ids = submit_six(daemon.url, receiver.url)
    print("What GET /jobs says meanwhile, one column for each of them:")
    follow(daemon.url, ids)
    loads = daemon.loads() - before
    print(f"  {loads} loads instead of {len(QUESTIONS)}\n")

    jobs = [json.loads(fetch(f"{daemon.url}/jobs/{job_id}")[1]) for job_id in ids]
    job = jobs[0]
    tokens = job["metrics"]["completion_tokens"]
    print(f"The first one, fetched with GET {job['urls']['self']}: {tokens} tokens,")
    print(f"  {job['result']['message']['content']!r}")
    print("and its artifacts:")
    for artifact in job["artifacts"]:
        status, content = fetch(f"{daemon.url}{artifact['url']}")
        print(f"  {status}  {artifact['name']:<13}  {len(content)} bytes of {artifact['content_type']}")
    told = show_webhooks(receiver, ids)
    spared = show_swaps(daemon)
    return told and spared and loads <= len(MODELS) and all(job["status"] == "succeeded" for job in jobs)


def show_swaps(daemon: Daemon) -> bool:
    """What foreman itself counts; whether it has spared any load."""
    swaps = json.loads(fetch(f"{daemon.url}/queue")[1])["swaps"]["day"]
    print("\nWhat GET /queue says of all this:")
    print(f"  {swaps['done']} swaps, and {swaps['avoided']} avoided beside first-come-first-served")
    return bool(swaps["avoided"] > 0)


def show_webhooks(receiver: Receiver, ids: list[str]) -> bool:
    """What a receiver was told of the jobs; whether everything came, signed and in order."""
    print("\nWhat their webhooks told a receiver, which checked each signature:")
    until = time.monotonic() + ANSWER_SECONDS
    while any(len(receiver.of(job_id)) < 3 for job_id in ids) and time.monotonic() < until:
        time.sleep(0.05)
    for job_id in ids:
        told = [f"{data['sequence']} {data['status']}" for data in receiver.of(job_id)]
        print(f"  {job_id}  {', '.join(told)}")
    orders = [[data["sequence"] for data in receiver.of(job_id)] for job_id in ids]
    print(f"  {len(receiver.events)} events, {receiver.forged} with a wrong signature")
    return not receiver.forged and all(order == [1, 2, 3] for order in orders)


if __name__ == "__main__":
    raise SystemExit(main())
