"""What the owner is told of foreman's health, on a Clock."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from foreman.testing.store import make_store
from foreman.webhooks.watch import Watch

NOW = 1_800_000_000.0
URL = "http://owner.example/hook"
MINUTE = 60.0


@define
class Bench:
    """A watch that has started. `reasons` are what `/healthz` says."""

    clock: Clock
    store: Any
    reasons: list[str] = field(factory=list)
    watch: Watch = field(init=False)

    def begin(self) -> None:
        """A new life."""
        self.watch = Watch(self.clock, self.store.outbox, self.report, URL)
        done = Deferred.fromCoroutine(self.watch.start())
        assert done.called

    def end(self) -> None:
        """It stops."""
        assert Deferred.fromCoroutine(self.watch.stop(1.0)).called

    def report(self) -> dict[str, object]:
        if not self.reasons:
            return {"status": "ok", "degraded": False}
        hints = {reason: f"{reason}, in words" for reason in self.reasons}
        return {"status": "ok", "degraded": True, "reasons": self.reasons, "hints": hints}

    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.clock.pump([5.0] * int(seconds / 5))

    def told(self) -> list[Any]:
        """The bodies that are to be sent to the owner, oldest first."""
        results: list[Any] = []
        taking = self.store.outbox.take("http://owner.example:80", self.clock.seconds(), 100, ())
        Deferred.fromCoroutine(taking).addBoth(results.append)
        return [json.loads(due.body) for due in results[0].due]

    def kinds(self) -> list[str]:
        return [body["type"] for body in self.told()]


@pytest.fixture
def bench() -> Iterator[Bench]:
    """All is well."""
    clock = Clock()
    clock.advance(NOW)
    store, _ = make_store(clock)
    bench = Bench(clock, store)
    bench.begin()
    yield bench
    bench.end()
    assert Deferred.fromCoroutine(store.close()).called


def test_a_reason_must_hold_for_a_minute(bench: Bench) -> None:
    """A short outage is not worth a message; a longer one is told with its reasons in words."""
    bench.reasons = ["target_unreachable"]
    bench.wait(55)
    bench.reasons = []
    bench.wait(300)
    assert bench.told() == []
    bench.reasons = ["target_unreachable"]
    bench.wait(2 * MINUTE)
    (body,) = bench.told()
    assert body["type"] == "foreman.degraded"
    assert body["data"] == {
        "reasons": ["target_unreachable"],
        "hints": {"target_unreachable": "target_unreachable, in words"},
    }


def test_recovered(bench: Bench) -> None:
    """Told when all has been well for a minute, and only if the owner thinks otherwise."""
    bench.reasons = ["disk_low"]
    bench.wait(2 * MINUTE)
    bench.reasons = []
    bench.wait(50)
    bench.reasons = ["disk_low"]
    bench.wait(2 * MINUTE)
    assert bench.kinds() == ["foreman.degraded"]
    bench.reasons = []
    bench.wait(2 * MINUTE)
    assert bench.kinds() == ["foreman.degraded", "foreman.recovered"]
    bench.wait(60 * MINUTE)
    assert len(bench.told()) == 2


def test_one_reason_more(bench: Bench) -> None:
    """It is told too, after the ten minutes; that one of several has gone is not."""
    bench.reasons = ["disk_low"]
    bench.wait(2 * MINUTE)
    bench.reasons = ["disk_low", "target_unreachable"]
    bench.wait(20 * MINUTE)
    bench.reasons = ["target_unreachable"]
    bench.wait(20 * MINUTE)
    assert [body["data"]["reasons"] for body in bench.told()] == [
        ["disk_low"],
        ["disk_low", "target_unreachable"],
    ]
    bench.reasons = []
    bench.wait(2 * MINUTE)
    assert bench.kinds()[2:] == ["foreman.recovered"]


def test_at_most_one_of_a_kind_in_ten_minutes(bench: Bench) -> None:
    """A health that flaps tells it once; what still holds after ten minutes is told then."""
    for _ in range(3):
        bench.reasons = ["disk_low"]
        bench.wait(90)
        bench.reasons = []
        bench.wait(90)
    assert bench.kinds() == ["foreman.degraded", "foreman.recovered"]
    bench.reasons = ["disk_low"]
    bench.wait(3 * MINUTE)
    assert bench.kinds() == ["foreman.degraded", "foreman.recovered", "foreman.degraded"]


def test_the_next_life_knows_what_was_told(bench: Bench) -> None:
    """A recovery is told though foreman was restarted in between; what was told is not told again."""
    bench.reasons = ["disk_low"]
    bench.wait(2 * MINUTE)
    bench.end()
    bench.begin()
    bench.wait(20 * MINUTE)
    assert bench.kinds() == ["foreman.degraded"]
    bench.reasons = []
    bench.wait(2 * MINUTE)
    assert bench.kinds() == ["foreman.degraded", "foreman.recovered"]
