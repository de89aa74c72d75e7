"""What `GET /queue` makes of the turn, and of what the target shows."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from foreman.scheduler.keys import KeyRegistry, Wanted
from foreman.scheduler.policy import Lane, Limits
from foreman.scheduler.residents import Residents
from foreman.scheduler.swaps import Swaps
from foreman.scheduler.turn import Turn
from foreman.testing.simulation import NoInventory
from foreman.web.queue import QueueReport

NOW = 1_800_000_000.0


class Bench:
    """A turn of width 2 on a clock; `models` are installed, by name, which is their digest too."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.loaded: list[Any] = []
        self.models: dict[str, Any] = {}
        self.turn = Turn(
            self.clock, KeyRegistry(NoInventory()), Limits(), patience=10.0, settle_limit=900.0, width=2
        )
        self.residents = Residents(self.clock, self, lambda: self.turn.holders)
        self.embedder: Any = None
        self.chats: list[Deferred[None]] = []

    def model(self, name: str, /) -> Any:
        return self.models.get(name)

    def model_by_digest(self, digest: str, /) -> Any:
        return self.models.get(digest)

    def install(self, name: str, *capabilities: str) -> None:
        weights = frozenset({name})
        self.models[name] = SimpleNamespace(
            weights=weights, options="", generates="completion" in capabilities
        )

    def load(self, name: str, lasts: timedelta) -> None:
        until = datetime.fromtimestamp(NOW, UTC) + lasts
        entry = SimpleNamespace(name=name, digest=name, context_length=4096, expires_at=until)
        self.loaded = [*self.loaded, entry]

    def chat(self, job_id: str, model: str | None, lane: Lane = Lane.INTERACTIVE) -> None:
        """A request that holds the turn until the end of the test, or waits."""

        async def work() -> None:
            wanted = None if model is None else Wanted(model)
            async with self.turn.take(job_id, wanted, lane=lane):
                await Deferred()

        chat = Deferred.fromCoroutine(work())
        chat.addErrback(lambda failure: None)
        self.chats.append(chat)

    def report(self) -> dict[str, Any]:
        report = QueueReport(
            self.clock.seconds,
            self.turn,
            Swaps(self.clock),
            self,
            self.residents,
            self.embedder,
            lambda: {"durable": {"until": None}},
        )
        return report.report()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_several_hold_the_turn(bench: Bench) -> None:
    """The first of them is shown, and how many they are."""
    bench.chat("one", "m")
    bench.clock.advance(3)
    bench.chat("two", "m")
    assert bench.report()["turn"] == {
        "lane": "interactive",
        "model": "m",
        "job_id": "one",
        "since": "2027-01-15T08:00:00.000Z",
        "sharing": 2,
        "visit": {"since": "2027-01-15T08:00:00.000Z"},
    }


def test_a_visit_that_was_won(bench: Bench) -> None:
    """Another line has won while a job runs: its visit is not that of the holder."""
    bench.chat("one", "m")
    bench.chat("two", "n")
    turn = bench.report()["turn"]
    assert (turn["job_id"], turn["sharing"], turn["visit"]) == ("one", 1, None)


def test_lines_by_when_they_are_overdue(bench: Bench) -> None:
    """One for each lane and key; a body that nobody could read has no model."""
    bench.chat("held", "m")
    bench.chat("batch", "b", Lane.DURABLE)
    bench.clock.advance(4)
    bench.chat("one", "n")
    bench.chat("two", "n")
    bench.chat("odd", None)
    bench.clock.advance(2)
    lines = bench.report()["lines"]
    shown = [(line["model"], line["key"], line["lane"], line["waiting"]) for line in lines]
    assert shown == [
        ("n", "n", "interactive", 2),
        (None, "unknown", "interactive", 1),
        ("b", "b", "durable", 1),
    ]
    assert [line["overdue_in_seconds"] for line in lines] == [3, 3, 3594]
    assert lines[0]["oldest_at"] == "2027-01-15T08:00:04.000Z"
    bench.clock.advance(10)
    assert bench.report()["lines"][0]["overdue_in_seconds"] == 0


def test_residents(bench: Bench) -> None:
    """Whose they are, and until when: null is for good, and nobody knows."""
    bench.residents.inventory_read(NOW)
    for name in ("mine", "stranger", "pinned"):
        bench.install(name, "completion")
    bench.install("embedding", "embedding")
    bench.embedder = SimpleNamespace(model="pinned", evicted=False)
    bench.load("stranger", timedelta(minutes=5))
    bench.load("pinned", timedelta(days=292 * 365))
    bench.load("embedding", timedelta(minutes=5))
    bench.load("gone from the list", timedelta(minutes=5))
    report = bench.report()
    assert [each["loaded_by_foreman"] for each in report["resident"]] == [False, True, None, None]
    assert [each["expires_at"] for each in report["resident"][:2]] == ["2027-01-15T08:05:00.000Z", None]
    assert [advice["code"] for advice in report["advice"]] == ["target_used_directly"]
    assert report["paused"] == {"durable": {"until": None}}
