"""A worker on a clock: the real store in memory, the real turn, and a fake target."""

import json
import sqlite3
from collections.abc import Callable
from typing import Any

from treq.testing import StubTreq
from twisted.internet import error as net
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from ulid import ULID

from foreman.jobs.model import Job, LineKey, Retention, Submission
from foreman.scheduler.keys import KeyRegistry
from foreman.scheduler.policy import Limits
from foreman.scheduler.turn import Turn
from foreman.target.client import OllamaClient
from foreman.target.generation import Generator
from foreman.target.inventory import Inventory
from foreman.target.preload import Preloader
from foreman.target.reachability import Reachability
from foreman.target.watch import RunLimits
from foreman.testing.gpu import FakeModel
from foreman.testing.ollama import FakeOllama
from foreman.testing.simulation import NoInventory
from foreman.testing.store import make_store
from foreman.worker.upkeep import Upkeep
from foreman.worker.worker import Worker

URL = "http://target:11434"
NOW = 1_800_000_000.0


class Models:
    """The list of the target's models: all but those `missing`. It is not `known` before it was read once,
    and does not show yet that those of `unseen` are missing.
    """

    def __init__(self) -> None:
        self.known = True
        self.missing: set[str] = set()
        self.unseen: set[str] = set()
        self.looks = 0
        self.reads: Deferred[None] | None = None  # fires when the list that is asked for has come

    def model(self, name: str, /) -> str | None:
        return name if self.known and (name not in self.missing or name in self.unseen) else None

    async def fresh_look(self, name: str, /) -> str | None:
        self.looks += 1
        if self.reads is not None:
            await self.reads
        self.unseen.clear()
        return self.model(name)


class Bench:
    """`refused`: what the next connections fail with. `commit_seconds` is what each transaction takes."""

    def __init__(self, folder: str, commit_seconds: float = 0.0, **fake: Any) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        models = [FakeModel.make(f"{name}:latest") for name in ("alpha", "beta", "embed")]
        self.fake = FakeOllama(self.clock, models=models, **fake)
        self.stub = StubTreq(self.fake.resource())
        self.refused: Exception | None = None
        self.store, self.pool = make_store(self.clock)
        self.limits = RunLimits(900.0, 300.0, 3600.0)
        keys = KeyRegistry(NoInventory())
        self.turn = Turn(self.clock, keys, Limits(), patience=10.0, settle_limit=900.0)
        client = OllamaClient(self, URL, "", self.clock, 10)
        self.inventory = Inventory(self.clock, client, 30.0)
        self.preloader = Preloader(self.clock, client, self.inventory, self.turn, 900.0)
        self.turn.on_choice = self.preloader.look
        self.reachability = Reachability(self.clock, URL, client.version, 10.0, self.turn.block, self._found)
        self.generator = Generator(self, URL, "", self.clock)
        self.models = Models()
        self.missing = self.models.missing
        self.folder = folder
        self.worker = self.make_worker()
        self.wait(self.worker.start)
        self.upkeep = Upkeep(self.store, self.clock, self.store.outbox, Retention(), 336 * 3600.0)
        self.upkeep.start()
        self.pool.commit_seconds = commit_seconds

    def make_worker(self) -> Worker:
        return Worker(
            self.clock,
            self.store,
            self.turn,
            self.generator,
            self.preloader,
            self.reachability,
            self.models,
            self.limits,
            self.folder,
        )

    def _found(self) -> None:
        self.turn.unblock()
        self.worker.look()

    def request(self, *args: Any, **kwargs: Any) -> "Deferred[Any]":
        """The treq client: the target, or nobody there."""
        return fail(self.refused) if self.refused else self.stub.request(*args, **kwargs)

    def fill_the_disk(self) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorname = "SQLITE_FULL"
        self.pool.broken = error

    def refuse(self) -> None:
        self.refused = net.ConnectionRefusedError()

    def begin(self, call: Callable[[], Any]) -> "Deferred[Any]":
        return Deferred.fromCoroutine(call())

    def wait(self, call: Callable[[], Any]) -> Any:
        """The result of a call that needs no more time than a commit."""
        done = self.begin(call)
        for _ in range(50):
            if done.called:
                break
            self.pass_seconds(0.001)
        results: list[Any] = []
        done.addCallback(results.append)
        assert results, "it did not end"
        return results[0]

    def submit(self, model: str = "alpha", body: dict[str, Any] | None = None, **more: Any) -> str:
        """A job; its endpoint follows from its body."""
        given = {"model": model} | (
            {"messages": [{"role": "user", "content": "hi"}]} if body is None else body
        )
        endpoint = "/api/embed" if "input" in given else "/api/generate" if "prompt" in given else "/api/chat"
        submission = Submission(
            job_id=str(ULID()),
            endpoint=endpoint,
            line=LineKey(model, "", takes_turn=endpoint != "/api/embed"),
            body=json.dumps(given).encode(),
            created_at=self.clock.seconds(),
            **more,
        )
        self.begin(lambda: self.store.submit(submission))
        return submission.job_id

    def job(self, job_id: str) -> Job:
        found = self.wait(lambda: self.store.get(job_id))
        assert isinstance(found, Job)
        return found

    def status(self, job_id: str) -> str:
        return self.job(job_id).status.value

    def text(self, job_id: str, name: str) -> str:
        """An artifact whole."""
        artifact = self.wait(lambda: self.store.artifact(job_id, name))
        data = b""
        for number in range(artifact.pieces):
            data += self.wait(lambda number=number: self.store.piece(job_id, name, number))
        assert len(data) == artifact.size
        return data.decode()

    def pass_seconds(self, seconds: float, step: float = 0.0) -> None:
        """Let time pass, in small steps so that everybody gets to act."""
        left = seconds
        while left > 1e-9:
            each = min(left, step or 0.25)
            self.clock.advance(each)
            self.stub.flush()
            left -= each

    def close(self) -> None:
        self.wait(lambda: self.worker.stop(0.0, 1.0))
        self.wait(lambda: self.upkeep.stop(1.0))
        self.reachability.stop()
        self.pool.commit_seconds = 0.0
        self.wait(self.store.close)
        assert self.clock.getDelayedCalls() == []
