"""The one place for a loaded model: order, reloads, expiry."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from embedded_fakes import ScriptedEngine, made_up_model
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from foreman.embedded.engine import EngineError
from foreman.embedded.keep_alive import FOR_EVER
from foreman.embedded.models import EmbeddedModel
from foreman.embedded.slot import Slot

A = made_up_model("a:latest", "wa")
A_LONG = made_up_model("a-long:latest", "wa", num_ctx=4096)
B = made_up_model("b:latest", "wb")


class Bench:
    """A slot on a clock, and requests that use it until they are told to end."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.engine = ScriptedEngine()
        self.slot = Slot(self.clock, self.engine)
        self.running: list[str] = []

    def begin(self, name: str, model: EmbeddedModel, keep_alive: float | None = None) -> "Request":
        return Request(self, name, model, keep_alive)

    def run(self, model: EmbeddedModel, keep_alive: float | None = None) -> None:
        self.begin("x", model, keep_alive).end()

    @property
    def loaded(self) -> str | None:
        return None if self.slot.resident is None else self.slot.resident.model.name


class Request:
    def __init__(self, bench: Bench, name: str, model: EmbeddedModel, keep_alive: float | None) -> None:
        self._end: Deferred[None] = Deferred()

        async def use() -> None:
            async with bench.slot.use(model, model.num_ctx, keep_alive):
                bench.running.append(name)
                try:
                    await self._end
                finally:
                    bench.running.remove(name)

        self.work = Deferred.fromCoroutine(use())
        self.failure: object = None
        self.work.addErrback(lambda failure: setattr(self, "failure", failure.value))

    def end(self) -> None:
        self._end.callback(None)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    assert bench.running == []


def test_requests_run_one_at_a_time_in_the_order_of_arrival(bench: Bench):
    """Also when a later one would run without a reload: this is an Ollama, not foreman."""
    first, second, third = bench.begin("1", A), bench.begin("2", B), bench.begin("3", A)
    assert bench.running == ["1"]
    first.end()
    assert bench.running == ["2"]
    second.end()
    assert bench.running == ["3"]
    third.end()
    assert bench.engine.log == ["load wa 2048", "load wb 2048", "load wa 2048"]
    assert bench.slot.loads == 3


def test_a_request_that_leaves_while_it_waits_leaves_the_queue(bench: Bench):
    """It never loads, and the one behind it goes on."""
    first, second, third = bench.begin("1", A), bench.begin("2", B), bench.begin("3", A)
    second.work.cancel()
    assert isinstance(second.failure, CancelledError)
    first.end()
    assert bench.running == ["3"]
    third.end()
    assert bench.engine.log == ["load wa 2048"]


def test_a_request_that_leaves_while_it_runs_frees_the_slot(bench: Bench):
    """The next one starts at once."""
    first, second = bench.begin("1", A), bench.begin("2", A)
    first.work.cancel()
    assert bench.running == ["2"]
    second.end()


def test_the_same_weights_reload_for_another_context_length_only(bench: Bench):
    """An alias runs on the loaded model, which keeps the name that loaded it."""
    bench.run(A)
    bench.run(made_up_model("alias:latest", "wa"))
    assert (bench.slot.loads, bench.loaded) == (1, "a:latest")
    bench.run(A_LONG)
    assert (bench.slot.loads, bench.loaded) == (2, "a-long:latest")


def test_an_idle_model_is_unloaded_after_its_keep_alive(bench: Bench):
    """Five minutes unless it is said otherwise, counted from the end of the last request."""
    bench.run(A)
    bench.clock.advance(299)
    request = bench.begin("1", A)
    bench.clock.advance(1000)
    assert bench.loaded == "a:latest"
    request.end()
    bench.clock.advance(299.9)
    assert bench.loaded == "a:latest"
    bench.clock.advance(0.2)
    assert bench.loaded is None
    assert bench.engine.log == ["load wa 2048", "unload"]


def test_the_last_explicit_keep_alive_sticks(bench: Bench):
    """A request without one leaves it alone; a fresh load begins with the default."""
    bench.run(A, keep_alive=10)
    bench.run(A)
    bench.clock.advance(10)
    assert bench.loaded is None
    bench.run(A)
    bench.clock.advance(10)
    assert bench.loaded == "a:latest"


def test_keep_alive_zero_unloads_when_the_request_ends(bench: Bench):
    """After it, not during it."""
    request = bench.begin("1", A, keep_alive=0)
    bench.clock.advance(0)
    assert bench.loaded == "a:latest"
    request.end()
    bench.clock.advance(0)
    assert bench.loaded is None


def test_for_ever_pins_nothing_against_a_swap(bench: Bench):
    """It never expires, but with one place the next model still takes it."""
    bench.run(A, keep_alive=FOR_EVER)
    assert bench.slot.expires_at - datetime.fromtimestamp(0, UTC) > timedelta(days=365 * 290)
    bench.clock.advance(10 * 365 * 86_400)
    assert bench.loaded == "a:latest"
    bench.run(B)
    assert bench.loaded == "b:latest"


def test_expire_unloads_an_idle_model_at_once_and_a_busy_one_after_its_request(bench: Bench):
    """The unload form's answer does not wait for that. Another model's unload changes nothing."""
    bench.run(A)
    bench.slot.expire(B)
    bench.clock.advance(0)
    assert bench.loaded == "a:latest"
    bench.slot.expire(A)
    bench.clock.advance(0)
    assert bench.loaded is None
    request = bench.begin("1", A)
    bench.slot.expire(A)
    bench.clock.advance(1)
    assert bench.loaded == "a:latest"
    request.end()
    bench.clock.advance(0)
    assert bench.loaded is None


def test_expires_at_is_the_end_of_the_keep_alive(bench: Bench):
    """While a request runs it moves along."""
    request = bench.begin("1", A, keep_alive=60)
    bench.clock.advance(100)
    assert bench.slot.expires_at == datetime.fromtimestamp(160, UTC)
    request.end()
    bench.clock.advance(20)
    assert bench.slot.expires_at == datetime.fromtimestamp(160, UTC)


def test_a_model_that_cannot_be_loaded_leaves_the_slot_empty_and_free(bench: Bench):
    """The next request loads its own."""
    bench.run(A)
    bench.engine.held = True
    request = bench.begin("1", B)
    bench.engine.held = False
    bench.engine.pending.pop().errback(EngineError(500, "bad file"))
    assert isinstance(request.failure, EngineError)
    assert bench.loaded is None
    bench.run(A)
    assert bench.loaded == "a:latest"


def test_a_load_that_is_cancelled_is_dropped(bench: Bench):
    """It may still succeed in the engine's thread: it is unloaded there, and the next request loads again."""
    bench.engine.held = True
    request = bench.begin("1", A)
    bench.engine.held = False
    request.work.cancel()
    assert bench.loaded is None
    bench.run(A)
    assert bench.engine.log == ["load wa 2048", "unload", "load wa 2048"]


def test_a_request_that_comes_while_a_model_is_unloaded_waits_for_it(bench: Bench):
    """Then it loads anew."""
    bench.run(A, keep_alive=5)
    bench.engine.held = True
    bench.clock.advance(5)
    bench.engine.held = False
    request = bench.begin("1", A)
    assert bench.running == []
    bench.engine.pending.pop().callback(None)
    assert bench.running == ["1"]
    request.end()
    assert bench.engine.log == ["load wa 2048", "unload", "load wa 2048"]
