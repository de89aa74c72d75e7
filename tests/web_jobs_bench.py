"""The job resource on the real store in memory; in the place of the worker is what a test says."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from attrs import define, field
from pause_fakes import Hands
from treq.testing import StubTreq
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from ulid import ULID

from foreman.jobs.model import (
    PIECE_BYTES,
    Artifact,
    Claimed,
    Finish,
    Transition,
)
from foreman.scheduler.history import History
from foreman.scheduler.keys import KeyRegistry
from foreman.scheduler.policy import Limits
from foreman.scheduler.residents import Residents
from foreman.scheduler.swaps import Swaps
from foreman.scheduler.turn import Turn
from foreman.testing.sender import ScriptedSender, answer
from foreman.testing.simulation import NoInventory
from foreman.testing.store import make_store
from foreman.urls import JobUrls, check_url
from foreman.web.app import App
from foreman.web.artifacts import Artifacts
from foreman.web.deliveries import Deliveries
from foreman.web.health import Health
from foreman.web.job_views import Views
from foreman.web.jobs import Jobs
from foreman.web.outlook import Outlooks
from foreman.web.pause import Pausing, paused
from foreman.web.queue import QueueReport
from foreman.webhooks.dispatcher import Dispatcher
from foreman.webhooks.signature import Signer
from foreman.worker.attempt import Progress

NOW = 1_800_000_000.25
UNKNOWN = "01J00000000000000000000000"


@define
class FakeInventory:
    """`installed` is what was read last, `pulled` what a fresh look would find; `remote` runs elsewhere."""

    known: bool = True
    installed: set[str] = field(factory=lambda: {"m", "n"})
    pulled: set[str] = field(factory=set)
    remote: set[str] = field(factory=set)
    looks: list[str] = field(factory=list)
    loaded: Sequence[Any] = ()

    def model(self, name: str, /) -> Any:
        return SimpleNamespace(remote=name in self.remote) if name in self.installed else None

    def model_by_digest(self, digest: str, /) -> None:
        return None

    async def fresh_look(self, name: str, /) -> Any:
        self.looks.append(name)
        self.installed |= self.pulled
        return self.model(name)


@define
class Reply:
    """One answer."""

    status: int
    headers: Any
    body: bytes
    length: int

    @property
    def json(self) -> Any:
        assert self.header("content-type") in ("application/json", "application/problem+json")
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        values = self.headers.getRawHeaders(name)
        return None if values is None else ", ".join(values)

    @property
    def problem(self) -> dict[str, Any]:
        """The members of an error, which is one as RFC 9457 describes it."""
        assert self.header("content-type") == "application/problem+json"
        members: dict[str, Any] = json.loads(self.body)
        assert members["type"] == "about:blank"
        assert members["status"] == self.status
        assert all(isinstance(members[name], str) and members[name] for name in ("title", "code", "detail"))
        return members


class Bench:
    """foreman's own paths, and hands on what is behind them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.store, self.pool = make_store(self.clock)
        self.inventory = FakeInventory()
        self.progress: dict[str, Progress] = {}
        self.target = SimpleNamespace(up=True, reason=None)
        self.count = 0
        self.sender = ScriptedSender(answer(200))
        self.dispatcher = Dispatcher(
            self.clock, self.store.outbox, self.sender, Signer(()), (5.0, 30.0, 120.0, 600.0, 3600.0), 64
        )
        keys = KeyRegistry(NoInventory())
        # The jobs of the store are not offered to it: who is granted what is the tests' to say.
        self.turn = Turn(self.clock, keys, Limits(), patience=10.0, settle_limit=900.0)
        jobs = Jobs(
            self.store,
            self.store.outbox,
            Views(JobUrls()),
            check_url,
            self.inventory,
            self.clock.seconds,
            self.progress.get,
            Outlooks(
                self.store,
                self.turn,
                keys,
                History(self.clock, lambda: False),
                self.inventory,
                self.target,
                self.clock.seconds,
                lambda: None,
                lambda: None,
                lambda since, seconds: since + seconds,
                list,
            ),
            self.new_id,
        )
        report = QueueReport(
            self.clock.seconds,
            self.turn,
            Swaps(self.clock),
            self.inventory,
            Residents(self.clock, self.inventory, lambda: self.turn.holders),
            None,
            lambda: paused(self.hands.pauses),
        )
        deliveries = Deliveries(self.store, self.store.outbox, self.dispatcher)
        self.hands = Hands(self.clock, self.store)
        pausing = Pausing(self.hands.pauses)
        self.app = App(Health({}), jobs, Artifacts(self.store), deliveries, pausing, report)
        self.client = StubTreq(self.app.resource())

    def new_id(self, moment: float) -> str:
        self.count += 1
        return str(ULID.from_timestamp(moment + self.count / 1000))

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """A whole exchange. An underscore in the name of a header stands for a dash."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        replies: list[Reply] = []

        async def exchange() -> None:
            response = await self.client.request(method, f"http://foreman{path}", data=data, headers=given)
            content: list[bytes] = []
            done = self.client.collect(response, content.append)
            self.client.flush()
            await done
            replies.append(Reply(response.code, response.headers, b"".join(content), response.length))

        Deferred.fromCoroutine(exchange()).addErrback(lambda failure: failure.raiseException())
        for _ in range(1000):
            if replies:
                break
            self.client.flush()
        assert replies, "no answer"
        return replies[0]

    def submit(self, body: Mapping[str, Any] | None = None, **job: Any) -> str:
        """A job that is taken; its id."""
        reply = self.ask("POST", "/jobs", {"model": "m", "prompt": "p", **(body or {}), "job": job})
        assert reply.status == 202, reply.body
        job_id: str = reply.json["job_id"]
        return job_id

    def show(self, job_id: str) -> dict[str, Any]:
        reply = self.ask("GET", f"/jobs/{job_id}")
        assert reply.status == 200, reply.body
        shown: dict[str, Any] = reply.json
        return shown

    def reason(self, job_id: str) -> str:
        """What a job waits for, in one word."""
        word: str = self.show(job_id)["waiting_for"]["reason"]
        return word

    def wait(self, coroutine: Any) -> Any:
        """What the store says at once."""
        results: list[Any] = []
        Deferred.fromCoroutine(coroutine).addCallback(results.append)
        return results[0]

    def claim(self, job_id: str) -> Claimed:
        claimed = self.wait(self.store.claim(job_id)).claimed
        assert isinstance(claimed, Claimed)
        return claimed

    def end(self, claimed: Claimed, transition: Transition = Transition.SUCCEEDED, **values: Any) -> None:
        assert self.wait(self.store.finish(Finish(claimed.fence, transition, **values))).changed

    def run(
        self, job_id: str, outputs: Mapping[str, bytes], transition: Transition = Transition.SUCCEEDED
    ) -> None:
        """The job runs, and these are its artifacts."""
        self.store_outputs(self.claim(job_id), outputs, transition)

    def store_outputs(
        self,
        claimed: Claimed,
        outputs: Mapping[str, bytes],
        transition: Transition = Transition.SUCCEEDED,
    ) -> None:
        """The run ends, and these are its artifacts."""
        artifacts = []
        for name, content in outputs.items():
            kind = "application/json" if name.endswith(".json") else "text/plain; charset=utf-8"
            kind = "image/png" if name.endswith(".png") else kind
            artifacts.append(Artifact(name, kind, len(content), hashlib.sha256(content).hexdigest()))
            for number, at in enumerate(range(0, len(content), PIECE_BYTES)):
                piece = content[at : at + PIECE_BYTES]
                assert self.wait(self.store.put_artifact_piece(claimed.fence, name, number, piece))
        self.end(claimed, transition, artifacts=tuple(artifacts))


EVERY_FIELD = [
    *("job_id", "status", "endpoint", "model", "priority", "attempt", "max_attempts", "interruptions"),
    *("created_at", "run_at", "start_deadline", "not_before", "started_at", "finished_at"),
    *("cancel_requested_at", "queue_position", "eta_seconds", "waiting_for", "progress", "metrics"),
    *("result", "error", "errors", "artifacts", "metadata", "webhook", "urls"),
]
"""The fields of a job in the order in which they are shown."""


@contextmanager
def make_bench() -> Iterator[Bench]:
    """A bench, and its end."""
    bench = Bench()
    yield bench
    bench.pool.broken = None
    bench.wait(bench.store.close())
