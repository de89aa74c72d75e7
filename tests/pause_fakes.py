"""What pauses act on, for tests of one clock: each fake notes what was asked of it."""

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from foreman.jobs.interface import JobStore
from foreman.scheduler.gates import Refusal
from foreman.scheduler.policy import Lane
from foreman.worker.pauses import Pauses


@define
class FakeTurn:
    """`paused` has what the callers of a lane are told, and since when, `past` the pauses of earlier lives;
    `idle` is fired by the test.
    """

    paused: dict[Lane, tuple[Refusal, float | None]] = field(factory=dict)
    past: list[tuple[Lane, float, float]] = field(factory=list)
    idle: "list[Deferred[None]]" = field(factory=list)

    def pause(self, lane: Lane, refusal: Refusal, since: float | None = None) -> None:
        self.paused[lane] = (refusal, since)

    def resume(self, lane: Lane) -> None:
        self.paused.pop(lane, None)

    def was_paused(self, lane: Lane, begin: float, end: float) -> None:
        self.past.append((lane, begin, end))

    def when_idle(self) -> "Deferred[None]":
        self.idle.append(Deferred())
        return self.idle[-1]


@define
class FakeWorker:
    """How often it was asked."""

    puts_back: int = 0
    looks: int = 0

    def put_back(self) -> None:
        self.puts_back += 1

    def look(self) -> None:
        self.looks += 1


@define
class FakeUnloader:
    """Each unloading is done when the test fires it."""

    works: "list[Deferred[bool]]" = field(factory=list)

    async def unload(self) -> bool:
        self.works.append(Deferred())
        return await self.works[-1]


@define
class FakeEmbedder:
    """Whether it stays away."""

    paused: bool = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


@define
class Hands:
    """All of them, and the pauses that use them."""

    clock: Clock
    store: JobStore
    turn: FakeTurn = field(factory=FakeTurn)
    worker: FakeWorker = field(factory=FakeWorker)
    unloader: FakeUnloader = field(factory=FakeUnloader)
    embedder: FakeEmbedder = field(factory=FakeEmbedder)
    pauses: Pauses = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.pauses = Pauses(self.clock, self.store, self.turn, self.worker, self.unloader, self.embedder)
