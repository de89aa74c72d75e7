"""What the choice of the next job and its claim cost: the worker and the store as they are, without HTTP."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.task import react
from ulid import ULID

from foreman.jobs.database import open_pools
from foreman.jobs.model import LineKey, Submission
from foreman.jobs.store import SqliteStore
from foreman.scheduler.keys import KeyRegistry
from foreman.scheduler.policy import Limits
from foreman.scheduler.turn import Turn
from foreman.target.generation import GenerationLimits
from foreman.testing.store import compose_plainly
from foreman.worker.worker import Worker

RUNS = 1000
WARM_RUNS = 50


@define
class Cost:
    """Seconds between the end of a run and the start of the next: on the wall's clock, and of processor."""

    wall: float
    processor: float


class _Nothing:
    """An inventory that never read anything, a target that is always up."""

    up = True
    loaded: Sequence[Any] = ()

    def model(self, name: str) -> None:
        """Not known."""

    def model_by_digest(self, digest: str) -> None:
        """Not known."""

    def lost(self, reason: str) -> None:
        """A run failed, which makes the figures worthless."""
        raise AssertionError(reason)


@define(eq=False)
class _Bench:
    """The generator of one worker: a run ends at once, once it is its turn, and a new job takes its place."""

    store: SqliteStore
    own: "DeferredQueue[None]"
    other: "DeferredQueue[None]"
    line: LineKey
    costs: list[Cost] = field(factory=list)
    done: "Deferred[None]" = field(factory=Deferred)
    _ended: Cost | None = None

    async def run(
        self, path: str, body: bytes, receive: Callable[[bytes], None], limits: Any, grant: Any
    ) -> None:
        """The time from the end of the last run to here is what is measured."""
        if self._ended is not None:
            self.costs.append(
                Cost(time.perf_counter() - self._ended.wall, time.process_time() - self._ended.processor)
            )
            await self._refill()
            self.other.put(None)
        if len(self.costs) == WARM_RUNS + RUNS:
            self.done.callback(None)
            await Deferred()  # for ever: the process ends with it
        await self.own.get()
        receive(b'{"done":true}\n')
        self._ended = Cost(time.perf_counter(), time.process_time())

    async def _refill(self) -> None:
        now = time.time()
        await self.store.submit(
            Submission(
                job_id=str(ULID.from_timestamp(now)),
                endpoint="/api/chat",
                line=self.line,
                body=b"{}",
                created_at=now,
            )
        )


async def _measure(reactor: Any, paths: Sequence[str], folder: str, costs: list[list[Cost]]) -> None:
    """Both databases in turns, so that what else the machine does falls on both."""
    queues: list[DeferredQueue[None]] = [DeferredQueue(), DeferredQueue()]
    benches = []
    for path, own, other in zip(paths, queues, reversed(queues), strict=True):
        store = SqliteStore(path, open_pools(path, reactor), time.time, compose_plainly)
        bench = _Bench(store, own, other, LineKey("bench", "", True))
        nothing = _Nothing()
        turn = Turn(reactor, KeyRegistry(nothing), Limits(), 60.0, 60.0)
        limits = GenerationLimits(600.0, 600.0, 0.0)
        worker = Worker(reactor, store, turn, bench, nothing, lambda _: True, limits, folder)  # type: ignore[arg-type]
        await store.open()
        await worker.start()
        benches.append(bench)
    queues[0].put(None)
    for bench in benches:
        await bench.done
        costs.append(bench.costs[WARM_RUNS:])


def measure(paths: Sequence[str], folder: str) -> list[list[Cost]]:
    """The costs with each of two databases. Runs Twisted's reactor, which a process can do once."""
    costs: list[list[Cost]] = []
    try:
        react(lambda reactor: Deferred.fromCoroutine(_measure(reactor, paths, folder, costs)))
    except SystemExit as end:
        if end.code:
            raise
    return costs
