"""
Kill a foreman again and again while jobs run and their webhooks are sent, and count what the receivers got.

By hand: ``python tests/process/webhook_kill.py 1000 20``.
"""

# ruff: noqa: T201  (a script says what it found)

import argparse
import http.client
import json
import random
import sqlite3
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from attrs import define, field
from load import MODELS, Life, Target, ask, free_port, wait_until_all_ended
from standardwebhooks.webhooks import Webhook

SECRET = "whsec_Zm9yZW1hbiB0ZXN0cyBhcmUgc2lnbmVkIHdpdGggdGhpcyE="
SETTINGS = {
    "FOREMAN_WEBHOOK_SECRET": SECRET,
    "FOREMAN_WEBHOOK_BACKOFF": "200ms,400ms,800ms,1600ms,3200ms",
}


class _Hook(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "_Server"

    def do_POST(self) -> None:
        """Keep what came, check it, and now and then say that something is wrong."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.send_response(200 if self.server.keep(headers, body) else 500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Hook)
        self.chance = random.Random(seed)
        self.bodies: dict[str, bytes] = {}  # the first that came, by the event's id
        self.order: dict[str, list[int]] = defaultdict(list)  # sequences as they first came, by job
        self.requests = 0
        self.accepted: set[str] = set()  # events that were answered 200
        self.rejected: dict[str, int] = defaultdict(int)  # how often an event was answered 500
        self.duplicates = 0  # requests for one of these
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def keep(self, headers: dict[str, str], body: bytes) -> bool:
        """Note one request; whether to accept it."""
        with self._lock:
            self.requests += 1
            try:
                Webhook(SECRET).verify(body, headers)
            except Exception as why:
                self.wrong.append(f"signature: {why}")
            event = json.loads(body)
            if event["id"] != headers["webhook-id"]:
                self.wrong.append(f"{event['id']} came under the id {headers['webhook-id']}")
            known = self.bodies.setdefault(event["id"], body)
            if known is body:
                self.order[event["data"]["job_id"]].append(event["data"]["sequence"])
            elif known != body:
                self.wrong.append(f"{event['id']} came with other bytes")
            self.duplicates += event["id"] in self.accepted
            # Six times in a row would be the end of its retries, and no fault of foreman's.
            accept = self.chance.random() >= 0.1 or self.rejected[event["id"]] >= 3
            if accept:
                self.accepted.add(event["id"])
            else:
                self.rejected[event["id"]] += 1
            return accept

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that foreman's death has reset is no error here."""


@define
class Report:
    """What was counted. Everything but the first five fields is to be empty."""

    jobs: int = 0
    events: int = 0
    requests: int = 0
    kills: int = 0
    duplicates: int = 0  # requests for events that had been accepted
    missing: list[str] = field(factory=list)  # events in the database that no receiver has seen
    incomplete: list[str] = field(factory=list)  # jobs whose sequences have a gap
    unordered: list[str] = field(factory=list)  # jobs whose events first came in another order
    undelivered: list[str] = field(factory=list)
    wrong: list[str] = field(factory=list)  # bytes, ids and signatures

    def __str__(self) -> str:
        return (
            f"{self.jobs} jobs, {self.kills} kills: {self.events} events, {self.requests} requests, "
            f"{self.duplicates} of them duplicates\n"
            f"missing {len(self.missing)}, jobs with a gap {len(self.incomplete)}, "
            f"out of order {len(self.unordered)}, not delivered {len(self.undelivered)}, "
            f"wrong bytes or signatures {len(self.wrong)}"
        )

    @property
    def broken(self) -> list[str]:
        """Each promise that was broken."""
        return [*self.missing, *self.incomplete, *self.unordered, *self.undelivered, *self.wrong]


def kill_often(jobs: int, kills: int, folder: Path, seed: int, limit_seconds: float) -> Report:
    """Submit `jobs` jobs to three receivers, kill `kills` times, and wait until all has been delivered."""
    chance = random.Random(seed)
    port, report = free_port(), Report(jobs=jobs, kills=kills)
    hooks = [_Server(seed + number) for number in range(3)]
    for hook in hooks:
        threading.Thread(target=hook.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        with Target() as target:
            target.pace(0.0005)
            left = jobs
            for number in range(kills + 1):
                life = Life.begin(folder, port, target.url, **SETTINGS)
                try:
                    share = left if number == kills else min(left, -(-jobs // kills))
                    _submit(port, share, hooks, chance)
                    left -= share
                    if number < kills:
                        time.sleep(chance.uniform(0.05, 0.5))
                    else:
                        _wait(port, folder, limit_seconds)
                finally:
                    life.kill()
    finally:
        for hook in hooks:
            hook.shutdown()
            hook.server_close()
    _audit(report, folder, hooks)
    return report


def _submit(port: int, count: int, hooks: list[_Server], chance: random.Random) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        for _ in range(count):
            url = f"http://127.0.0.1:{chance.choice(hooks).server_port}/hook"
            job = {"model": chance.choice(MODELS), "prompt": "again", "state_webhook_url": url}
            connection.request("POST", "/jobs", json.dumps(job))
            answer = connection.getresponse()
            assert answer.status == 202, answer.read()
            answer.read()


def _wait(port: int, folder: Path, limit_seconds: float) -> None:
    """Until every job has ended and nothing of its events is to be sent any more."""
    end = time.monotonic() + limit_seconds
    wait_until_all_ended(port, limit_seconds)
    while _pending(folder):
        assert time.monotonic() < end, f"{_pending(folder)} deliveries are still pending"
        assert ask(port, "GET", "/healthz")[0] == 200
        time.sleep(0.1)


def _read(folder: Path, query: str) -> list[tuple]:
    with closing(sqlite3.connect(f"file:{folder / 'foreman.db'}?mode=ro", uri=True)) as database:
        return database.execute(query).fetchall()


def _pending(folder: Path) -> int:
    ((count,),) = _read(folder, "SELECT count(*) FROM delivery WHERE state = 'pending'")
    return int(count)


def _audit(report: Report, folder: Path, hooks: list[_Server]) -> None:
    report.duplicates = sum(hook.duplicates for hook in hooks)
    seen = {event_id for hook in hooks for event_id in hook.bodies}
    events = _read(folder, "SELECT id, job_id, sequence FROM event ORDER BY job_id, sequence")
    report.events, report.requests = len(events), sum(hook.requests for hook in hooks)
    report.missing = [event_id for event_id, *_ in events if event_id not in seen]
    report.undelivered = [
        f"{event_id} is {state}"
        for event_id, state in _read(
            folder, "SELECT event_id, state FROM delivery WHERE state != 'delivered'"
        )
    ]
    sequences: dict[str, list[int]] = defaultdict(list)
    for _, job_id, sequence in events:
        sequences[job_id].append(sequence)
    order = {job_id: came for hook in hooks for job_id, came in hook.order.items()}
    for job_id, expected in sequences.items():
        came = order.get(job_id, [])
        if sorted(came) != list(range(1, len(expected) + 1)):
            report.incomplete.append(f"{job_id}: {came} of {expected}")
        elif came != expected:
            report.unordered.append(f"{job_id}: {came}")
    report.wrong = [sentence for hook in hooks for sentence in hook.wrong]


def main() -> int:
    """Print the figures; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description="Kill a foreman while its webhooks are sent.")
    parser.add_argument("jobs", type=int, nargs="?", default=1000)
    parser.add_argument("kills", type=int, nargs="?", default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        report = kill_often(given.jobs, given.kills, Path(folder), given.seed, limit_seconds=600)
    print(report)
    for sentence in report.broken[:20]:
        print(sentence)
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
