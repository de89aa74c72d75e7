"""What the choice of the next job and its claim cost: the worker and the store as they are, without HTTP."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.task import react
from ulid import ULID

from foreman.jobs.database import open_pools
from foreman.jobs.model import LineKey, Submission
from foreman.jobs.store import SqliteStore
from foreman.scheduler.grant import Grant
from foreman.scheduler.keys import KeyRegistry, ModelKey, Wanted
from foreman.scheduler.policy import Limits
from foreman.scheduler.turn import Turn
from foreman.target.watch import RunLimits
from foreman.testing.store import compose_plainly
from foreman.worker.worker import Worker

RUNS = 1000
WARM_RUNS = 50
# More than any of the databases holds: each job that ran is followed by a new one.
_QUEUE_LIMIT = 10_000_000
MODELS = tuple(f"bench{number}" for number in range(20))
"""Each of them is a line."""


@define
class Cost:
    """Seconds between the end of a run and the start of the next: on the wall's clock, and of processor.

    `choice` are those of the wall's clock in the turn alone: who is next.
    """

    wall: float
    processor: float
    choice: float


class _Nothing:
    """An inventory that never read anything, a target that is always up."""

    up = True
    loaded: Sequence[Any] = ()

    def model(self, name: str) -> None:
        """Not known."""

    def model_by_digest(self, digest: str) -> None:
        """Not known."""

    def concerns(self, grant: Grant) -> bool:
        """No model has to be loaded ahead."""
        return False

    def lost(self, reason: str) -> None:
        """A run failed, which makes the figures worthless."""
        raise AssertionError(reason)


@define(eq=False)
class _TimedTurn(Turn):
    """A turn that takes the time of its choices."""

    choice_seconds: float = 0.0

    def _choose(self) -> Grant | None:
        began = time.perf_counter()
        grant = super()._choose()
        if grant is not None:
            self.choice_seconds = time.perf_counter() - began
        return grant


@define(eq=False)
class _Bench:
    """The generator of one worker: a run ends at once, once it is its turn, and a new job takes its place."""

    store: SqliteStore
    own: "DeferredQueue[None]"
    other: "DeferredQueue[None]"
    turn: _TimedTurn
    lines: Mapping[ModelKey, LineKey]
    costs: list[Cost] = field(factory=list)
    done: "Deferred[None]" = field(factory=Deferred)
    _ended: tuple[float, float] | None = None

    async def run(
        self, path: str, body: bytes, receive: Callable[[bytes], None], limits: Any, grant: Any
    ) -> None:
        """The time from the end of the last run to here is what is measured."""
        if self._ended is not None:
            wall, processor = time.perf_counter() - self._ended[0], time.process_time() - self._ended[1]
            self.costs.append(Cost(wall, processor, self.turn.choice_seconds))
            await self._refill(self.lines[grant.key])
            self.other.put(None)
        if len(self.costs) == WARM_RUNS + RUNS:
            self.done.callback(None)
            await Deferred()  # for ever: the process ends with it
        await self.own.get()
        receive(b'{"done":true}\n')
        self._ended = (time.perf_counter(), time.process_time())

    async def _refill(self, line: LineKey) -> None:
        now = time.time()
        await self.store.submit(
            Submission(
                job_id=str(ULID.from_timestamp(now)),
                endpoint="/api/chat",
                line=line,
                body=b"{}",
                created_at=now,
            )
        )


async def _measure(reactor: Any, paths: Sequence[str], folder: str, costs: list[list[Cost]]) -> None:
    """The databases in turns, so that what else the machine does falls on all of them."""
    queues: list[DeferredQueue[None]] = [DeferredQueue() for _ in paths]
    benches = []
    for path, own, other in zip(paths, queues, [*queues[1:], queues[0]], strict=True):
        store = SqliteStore(
            path, open_pools(path, reactor), time.time, compose_plainly, queue_limit=_QUEUE_LIMIT
        )
        nothing = _Nothing()
        registry = KeyRegistry(nothing)
        turn = _TimedTurn(reactor, registry, Limits(), 60.0, 60.0)
        lines = {registry.key(Wanted(name)): LineKey(name, "", True) for name in MODELS}
        bench = _Bench(store, own, other, turn, lines)
        limits = RunLimits(600.0, 600.0, 0.0)
        worker = Worker(reactor, store, turn, bench, nothing, nothing, nothing, limits, folder)  # type: ignore[arg-type]
        await store.open()
        await worker.start()
        benches.append(bench)
    queues[0].put(None)
    for bench in benches:
        await bench.done
        costs.append(bench.costs[WARM_RUNS:])


def measure(paths: Sequence[str], folder: str) -> list[list[Cost]]:
    """The costs with each of the databases. Runs Twisted's reactor, which a process can do once."""
    costs: list[list[Cost]] = []
    try:
        react(lambda reactor: Deferred.fromCoroutine(_measure(reactor, paths, folder, costs)))
    except SystemExit as end:
        if end.code:
            raise
    return costs
