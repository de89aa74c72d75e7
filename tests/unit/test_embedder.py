"""The resident embedder: pinned when that helps, left alone when it hurts."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from attrs import evolve
from treq.testing import StubTreq
from twisted.internet import error as net
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from foreman.target.client import OllamaClient
from foreman.target.embedder import Embedder
from foreman.target.inventory import Inventory
from foreman.testing.gpu import FakeModel
from foreman.testing.ollama import FakeOllama

INTERVAL = 30.0


class Bench:
    """A fake target with room for two models, its inventory, and the embedder on one clock."""

    def __init__(self, slots: int = 2, model: str = "embed") -> None:
        self.clock = Clock()
        self.clock.advance(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
        models = [FakeModel.make(f"{name}:latest") for name in ("alpha", "beta", "embed")]
        self.fake = FakeOllama(self.clock, models=models, slots=slots)
        self.stub = StubTreq(self.fake.resource())
        self.refused = False
        self.client = OllamaClient(self, "http://target:11434", "", self.clock, 10, load_timeout_seconds=100)
        self.inventory = Inventory(self.clock, self.client, INTERVAL)
        self.turn_free = True
        self.swapped_at: float | None = None
        self.embedder = Embedder(
            self.clock, self.client, self.inventory, lambda: self.turn_free, lambda: self.swapped_at, model
        )
        self.embedder.start()

    def request(self, *args: Any, **kwargs: Any) -> "Deferred[Any]":
        return fail(net.ConnectionRefusedError()) if self.refused else self.stub.request(*args, **kwargs)

    def pass_seconds(self, seconds: float) -> None:
        for _ in range(round(seconds / 5)):
            self.clock.advance(5)
            self.stub.flush()

    def pins(self) -> int:
        return len(self.fake.seen("/api/embed"))

    async def use(self, name: str, **more: Any) -> None:
        """Somebody's generation, past foreman."""
        await self.client._call("POST", "/api/generate", dict, {"model": name} | more)

    async def swap(self, name: str) -> None:
        """A generation of foreman's own, after which it looks at once."""
        await self.use(name)
        self.swapped_at = self.clock.seconds()
        await self.inventory.refresh()


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_pinned_at_the_start_and_verified(bench: Bench) -> None:
    """The first poll pins it; it counts as resident when ps says so, and is not pinned again."""
    bench.fake.hold("/api/embed")
    bench.inventory.start()
    assert (bench.pins(), bench.embedder.resident) == (1, False)
    bench.fake.release()
    bench.stub.flush()
    assert (bench.embedder.resident, bench.embedder.hint) == (True, None)
    bench.pass_seconds(600)
    assert bench.pins() == 1
    await bench.inventory.stop()


async def test_a_pin_of_an_earlier_life_is_enough(bench: Bench) -> None:
    """What ps shows pinned already is not pinned again."""
    await bench.client.pin("embed")
    await bench.inventory.refresh()
    assert (bench.pins(), bench.embedder.resident) == (1, True)


async def test_a_copy_of_it_that_is_pinned_counts(bench: Bench) -> None:
    """Ollama shows the name that loaded the weights: a copy's name is as good."""
    bench.fake.models.append(evolve(bench.fake.models[2], name="twin:latest"))
    await bench.client.pin("twin")
    await bench.inventory.refresh()
    assert (bench.pins(), bench.embedder.resident) == (1, True)


async def test_gone_and_pinned_again(bench: Bench) -> None:
    """Unloaded by somebody else, it is pinned again at the next look."""
    bench.inventory.start()
    bench.pass_seconds(60)
    await bench.use("embed", keep_alive=0)
    await bench.inventory.refresh()
    assert bench.pins() == 2
    assert bench.embedder.resident
    await bench.inventory.stop()


async def test_not_while_somebody_has_the_turn(bench: Bench) -> None:
    """It waits for a free turn, and says meanwhile that it is not resident."""
    bench.turn_free = False
    bench.inventory.start()
    bench.pass_seconds(100)
    assert (bench.pins(), bench.embedder.resident) == (0, False)
    bench.turn_free = True
    bench.pass_seconds(INTERVAL)
    assert (bench.pins(), bench.embedder.resident) == (1, True)
    await bench.inventory.stop()


@pytest.mark.parametrize("lifetime", [timedelta(minutes=5), timedelta(days=365 * 50)])
async def test_a_finite_end_counts_as_gone(bench: Bench, lifetime: timedelta) -> None:
    """A request with a keep_alive of its own takes the pin away although the model is loaded."""
    bench.inventory.start()
    bench.pass_seconds(60)
    (runner,) = bench.fake.gpu.resident()
    runner.expires_at = bench.fake.gpu.now() + lifetime
    bench.turn_free = False
    await bench.inventory.refresh()
    assert not bench.embedder.resident
    bench.turn_free = True
    await bench.inventory.refresh()
    assert (bench.pins(), bench.embedder.resident, bench.fake.loads) == (2, True, ["embed:latest"])
    await bench.inventory.stop()


async def test_a_card_too_small() -> None:
    """Evicted twice in ten minutes by foreman's own swaps: given up with a hint, then tried hourly."""
    bench = Bench(slots=1)
    bench.inventory.start()
    bench.pass_seconds(60)
    await bench.swap("alpha")
    assert (bench.pins(), bench.embedder.resident) == (2, True)
    bench.pass_seconds(60)
    await bench.swap("alpha")
    assert bench.pins() == 2
    assert not bench.embedder.resident
    assert "OLLAMA_MAX_LOADED_MODELS=2" in bench.embedder.hint
    bench.pass_seconds(3590)
    assert bench.pins() == 2
    bench.pass_seconds(40)
    assert (bench.pins(), bench.embedder.resident, bench.embedder.hint) == (3, True, None)
    # The hourly try is evicted at once: one time is enough now.
    await bench.swap("beta")
    assert "OLLAMA_MAX_LOADED_MODELS=2" in bench.embedder.hint
    bench.pass_seconds(3500)
    assert bench.pins() == 3
    bench.pass_seconds(140)
    assert bench.pins() == 4
    await bench.inventory.stop()


async def test_a_pin_that_lasts_ends_the_giving_up() -> None:
    """An hourly try that outlives ten minutes makes a fresh start: one eviction is forgiven again."""
    bench = Bench(slots=1)
    bench.inventory.start()
    bench.pass_seconds(60)
    for _ in range(2):
        await bench.swap("alpha")
        bench.pass_seconds(60)
    assert bench.pins() == 2
    bench.pass_seconds(3600 + 900)
    assert (bench.pins(), bench.embedder.resident) == (3, True)
    await bench.swap("alpha")
    assert (bench.pins(), bench.embedder.resident) == (4, True)
    await bench.inventory.stop()


async def test_evictions_far_apart_are_forgiven() -> None:
    """Two own evictions more than ten minutes apart are no pattern."""
    bench = Bench(slots=1)
    bench.inventory.start()
    bench.pass_seconds(60)
    for number in (2, 3, 4):
        await bench.swap("alpha")
        assert (bench.pins(), bench.embedder.resident) == (number, True)
        bench.pass_seconds(630)
    await bench.inventory.stop()


async def test_evictions_by_others_are_no_pattern() -> None:
    """Without a swap of foreman's own since it was last seen, somebody else did it: pinned again."""
    bench = Bench(slots=1)
    bench.inventory.start()
    bench.pass_seconds(60)
    for number in (2, 3, 4):
        await bench.use("alpha")
        await bench.inventory.refresh()
        assert (bench.pins(), bench.embedder.resident) == (number, True)
        bench.pass_seconds(60)
    await bench.inventory.stop()


async def test_evicted_before_it_was_verified() -> None:
    """A pin that a swap of foreman's own took before it was seen in ps counts too."""
    bench = Bench(slots=1)
    bench.fake.hold("/api/embed")
    bench.inventory.start()
    for pins in (1, 2):
        assert bench.pins() == pins
        bench.fake.hold("/api/ps")
        bench.fake.release("/api/embed")
        bench.stub.flush()
        await bench.use("alpha")
        bench.swapped_at = bench.clock.seconds()
        bench.fake.hold("/api/embed")
        bench.fake.release("/api/ps")
        bench.stub.flush()
        assert not bench.embedder.resident
        bench.pass_seconds(30)
    assert bench.pins() == 2
    assert "OLLAMA_MAX_LOADED_MODELS=2" in bench.embedder.hint
    await bench.inventory.stop()


async def test_seen_while_a_swap_was_under_way() -> None:
    """A poll between the grant and the eviction still finds it: it was that swap all the same."""
    bench = Bench(slots=1)
    bench.inventory.start()
    for _ in range(2):
        bench.pass_seconds(30)
        assert bench.embedder.resident
        bench.turn_free = False
        bench.swapped_at = bench.clock.seconds()
        await bench.inventory.refresh()
        assert bench.embedder.resident
        bench.pass_seconds(5)
        await bench.swap("alpha")
        bench.turn_free = True
        await bench.inventory.refresh()
    assert bench.pins() == 2
    assert "OLLAMA_MAX_LOADED_MODELS=2" in bench.embedder.hint
    await bench.inventory.stop()


async def test_not_installed(bench: Bench) -> None:
    """A model that is not installed is not asked for; the hint says so, and a pull mends it."""
    away = bench.fake.models.pop()
    bench.inventory.start()
    bench.pass_seconds(60)
    assert bench.pins() == 0
    assert bench.embedder.hint == "the embedding model embed is not installed at the target: pull it"
    bench.fake.models.append(away)
    bench.pass_seconds(INTERVAL)
    assert (bench.embedder.resident, bench.embedder.hint) == (True, None)
    await bench.inventory.stop()


async def test_a_pin_that_fails(bench: Bench) -> None:
    """A failure is said and tried again later and later; it ends when the target can."""
    bench.fake.fail("/api/embed", 500, "out of memory", times=3)
    bench.inventory.start()
    said = "the target answered POST /api/embed with 500: out of memory"
    assert bench.embedder.hint == f"the embedding model embed cannot be loaded: {said}"
    bench.pass_seconds(55)
    assert bench.pins() == 1
    bench.pass_seconds(5)
    assert bench.pins() == 2
    bench.pass_seconds(120 + 240)
    assert (bench.pins(), bench.embedder.resident, bench.embedder.hint) == (4, True, None)
    await bench.inventory.stop()


async def test_a_pin_that_is_not_kept_is_no_loop(bench: Bench) -> None:
    """A target that answers well and keeps nothing is asked at most every half minute."""

    def forgetful() -> None:
        for runner in bench.fake.gpu.resident():
            bench.fake.gpu.unload(runner.model)

    bench.inventory.start()
    for _ in range(60):
        forgetful()
        await bench.inventory.refresh()
        bench.pass_seconds(5)
    assert bench.pins() <= 11
    await bench.inventory.stop()


async def test_never_an_obstacle(bench: Bench) -> None:
    """With the target away nothing is pinned, nothing is raised, and a poll goes on beside a slow pin."""
    bench.refused = True
    bench.inventory.start()
    bench.pass_seconds(100)
    assert (bench.pins(), bench.embedder.resident) == (0, False)
    bench.refused = False
    bench.fake.gpu.load_seconds = 90
    bench.pass_seconds(60)
    polls = len(bench.fake.seen("/api/ps"))
    bench.pass_seconds(60)
    assert len(bench.fake.seen("/api/ps")) > polls
    assert bench.pins() == 1
    bench.pass_seconds(30)
    assert bench.embedder.resident
    await bench.inventory.stop()


async def test_ps_that_cannot_be_read_changes_nothing(bench: Bench) -> None:
    """What is not known to be gone is not pinned again."""
    bench.inventory.start()
    bench.fake.fail("/api/ps", 500, times=3)
    bench.pass_seconds(90)
    assert (bench.pins(), bench.embedder.resident) == (1, True)
    await bench.inventory.stop()


async def test_stopping_cuts_a_pin(bench: Bench) -> None:
    """A stop ends a pin under way and looks no more."""
    bench.fake.gpu.load_seconds = 90
    bench.inventory.start()
    await bench.embedder.stop()
    await bench.inventory.stop()
    bench.stub.flush()
    assert len(bench.fake.aborted) == 1
    await bench.inventory.refresh()
    assert bench.pins() == 1
    assert bench.clock.getDelayedCalls() == []


async def test_paused(bench: Bench) -> None:
    """Unloaded, it is not pinned again until the resume, and then at once; that is no eviction."""
    bench.inventory.start()
    bench.pass_seconds(60)
    bench.embedder.pause()
    bench.swapped_at = bench.clock.seconds()
    for _ in range(3):
        await bench.client.unload("embed")
        bench.pass_seconds(600)
    assert bench.pins() == 1
    bench.embedder.resume()
    bench.stub.flush()
    assert (bench.pins(), bench.embedder.resident, bench.embedder.hint) == (2, True, None)
    bench.embedder.resume()
    await bench.inventory.stop()


async def test_paused_before_the_start(bench: Bench) -> None:
    """It is not even pinned for a moment; when its turn comes, it waits for a free one."""
    bench.embedder.pause()
    bench.inventory.start()
    bench.pass_seconds(60)
    assert bench.pins() == 0
    bench.turn_free = False
    bench.embedder.resume()
    bench.pass_seconds(60)
    assert bench.pins() == 0
    bench.turn_free = True
    bench.pass_seconds(60)
    assert bench.pins() == 1
    await bench.inventory.stop()


async def test_a_pause_cuts_a_pin_under_way(bench: Bench) -> None:
    """So that the load is not finished just then; the next pin is another."""
    bench.fake.gpu.load_seconds = 20
    bench.inventory.start()
    bench.pass_seconds(5)
    bench.embedder.pause()
    bench.pass_seconds(60)
    assert (bench.pins(), bench.fake.loads) == (1, [])
    bench.embedder.resume()
    bench.pass_seconds(60)
    assert (bench.pins(), bench.embedder.resident) == (2, True)
    await bench.inventory.stop()
