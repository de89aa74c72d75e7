"""The inventory: it reads what the target has, and survives every kind of answer."""

from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve
from treq.testing import StubTreq
from twisted.internet import error as net
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from foreman.target.client import OllamaClient
from foreman.target.inventory import Inventory
from foreman.testing.ollama import FakeOllama
from foreman.testing.scripted import Canned

PARTS = ("/api/tags", "/api/ps", "/api/version")
INTERVAL = 30.0
LIMIT = 10.0


class Line:
    """A treq whose line to the target can be cut."""

    def __init__(self, http: StubTreq) -> None:
        self.http = http
        self.error: Exception | None = None

    def request(self, *args: Any, **kwargs: Any) -> "Deferred[Any]":
        return fail(self.error) if self.error else self.http.request(*args, **kwargs)


class Bench:
    """A fake target, and the inventory that polls it, on one clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.fake = FakeOllama(self.clock)
        self.http = StubTreq(self.fake.resource())
        self.line = Line(self.http)
        client = OllamaClient(self.line, "http://target:11434", "", self.clock, LIMIT)
        self.inventory = Inventory(self.clock, client, INTERVAL)
        self.reads: list[float | None] = []
        self.inventory.on_read.append(self.reads.append)

    def pass_seconds(self, seconds: float, step: float = 1) -> None:
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            self.http.flush()

    def count(self, path: str) -> int:
        return len(self.fake.seen(path))

    def release(self) -> None:
        self.fake.release()
        self.http.flush()

    @property
    def names(self) -> list[str]:
        return [model.name for model in self.inventory.models]


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_before_the_first_poll(bench: Bench) -> None:
    """Nothing is known, and nothing pretends to be."""
    inventory = bench.inventory
    assert (inventory.known, inventory.reachable, inventory.version) == (False, False, None)
    assert (inventory.age_seconds, inventory.model("alpha"), list(inventory.loaded)) == (None, None, [])


async def test_a_poll_reads_everything(bench: Bench) -> None:
    """Models with weights and runner options, what is loaded, and the version."""
    bench.fake.models[1] = evolve(bench.fake.models[1], remote_host="https://ollama.com")
    await bench.inventory.client.pin("alpha")
    await bench.inventory.refresh()
    alpha, beta = bench.fake.models
    model = bench.inventory.model("Alpha")
    assert model is not None
    assert (model.name, model.digest, model.weights) == ("alpha:latest", alpha.digest, {alpha.weights})
    assert (model.options, model.remote) == ("", False)
    other = bench.inventory.model("library/beta:latest")
    assert other is not None
    assert (other.options, other.remote) == ('{"num_ctx":2048}', True)
    assert bench.inventory.model_by_digest(beta.digest) == other
    assert bench.inventory.model_by_digest("nothing") is None
    assert [entry.name for entry in bench.inventory.loaded] == ["alpha:latest"]
    assert (bench.inventory.version, bench.inventory.known, bench.inventory.reachable) == (
        "0.0.0",
        True,
        True,
    )
    assert bench.inventory.age_seconds == 0


async def test_polls_come_at_the_interval(bench: Bench) -> None:
    """The first poll is at the start, the next ones at the interval; after the stop there is none."""
    bench.inventory.start()
    bench.pass_seconds(95)
    assert [bench.count(path) for path in PARTS] == [4, 4, 4]
    assert bench.reads == [0.0, 30.0, 60.0, 90.0]
    assert bench.inventory.age_seconds == 5
    await bench.inventory.stop()
    bench.pass_seconds(100)
    assert bench.count("/api/tags") == 4
    assert bench.clock.getDelayedCalls() == []


async def test_show_is_read_once_for_each_digest(bench: Bench) -> None:
    """A copy shares its digest and is not asked for; a digest that went and came again is."""
    bench.fake.models.append(evolve(bench.fake.models[0], name="twin:latest"))
    for _ in range(3):
        await bench.inventory.refresh()
    assert bench.count("/api/show") == 2
    away = bench.fake.models.pop(1)
    await bench.inventory.refresh()
    assert bench.inventory.model("beta") is None
    bench.fake.models.append(away)
    await bench.inventory.refresh()
    assert bench.count("/api/show") == 3


async def test_a_failed_show_is_tried_again(bench: Bench) -> None:
    """Until a show is read the digest stands for the weights; one failure keeps no other from being read."""
    alpha, beta = bench.fake.models
    bench.fake.fail("/api/show", 500)
    await bench.inventory.refresh()
    assert bench.inventory.model("alpha").weights == {alpha.digest}
    assert bench.inventory.model("alpha").options == ""
    assert bench.inventory.model("beta").weights == {beta.weights}
    await bench.inventory.refresh()
    assert bench.inventory.model("alpha").weights == {alpha.weights}
    assert bench.count("/api/show") == 3


async def test_a_show_without_weights_is_read_once(bench: Bench) -> None:
    """A model without FROM has its digest for weights, for good."""
    bench.fake.models.pop()
    bench.fake.answer("/api/show", Canned(200, b'{"modelfile":"","parameters":"num_ctx 512"}'), times=None)
    await bench.inventory.refresh()
    await bench.inventory.refresh()
    model = bench.inventory.model("alpha")
    assert (model.weights, model.options) == ({model.digest}, '{"num_ctx":512}')
    assert bench.count("/api/show") == 1


async def test_silent_shows_do_not_stop_the_polls(bench: Bench) -> None:
    """A round of shows takes an interval at most; those that failed come last in the next round."""
    bench.fake.models = [evolve(bench.fake.models[0], name=f"m{n}:latest", digest=str(n)) for n in range(9)]
    bench.fake.hold("/api/show")
    bench.inventory.start()
    bench.pass_seconds(INTERVAL + 1)
    assert bench.reads == [INTERVAL]
    asked = [exchange.body for exchange in bench.fake.seen("/api/show")]
    assert b"m0" in asked[0]
    bench.pass_seconds(INTERVAL)
    asked = [exchange.body for exchange in bench.fake.seen("/api/show")]
    assert len(asked) == len(set(asked)) >= 4
    await bench.inventory.stop()


def refused(bench: Bench) -> None:
    bench.line.error = net.ConnectionRefusedError()


def unknown_host(bench: Bench) -> None:
    bench.line.error = net.DNSLookupError()


def not_connected(bench: Bench) -> None:
    bench.line.error = net.TimeoutError()


def silent(bench: Bench) -> None:
    bench.fake.hold()


def answers(*args: Any, **kwargs: Any) -> Callable[[Bench], None]:
    def fault(bench: Bench) -> None:
        for part in PARTS:
            bench.fake.answer(part, Canned(*args, **kwargs), times=None)

    return fault


FAULTS = {
    "refused": refused,
    "unknown host": unknown_host,
    "not connected": not_connected,
    "silence": silent,
    "500": answers(500, b'{"error":"boom"}'),
    "503 HTML": answers(503, b"<html>busy</html>", "text/html"),
    "redirect": answers(302, b""),
    "HTML": answers(200, b"<html>hello</html>", "text/html"),
    "empty": answers(200, b""),
    "truncated JSON": answers(200, b'{"models":[{"name":"al'),
    "cut body": answers(200, b'{"models":[', cut=True),
    "a list": answers(200, b"[]"),
    "a number": answers(200, b"7"),
    "null": answers(200, b"null"),
    "an object": answers(200, b"{}"),
    "wrong types": answers(200, b'{"models":{"name":"x"},"version":1}'),
    "wrong entries": answers(200, b'{"models":[7],"version":["x"]}'),
    "not UTF-8": answers(200, b"\xff\xfe\x00"),
    "deep": answers(200, b'{"models":' + b"[" * 50_000),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_poll_survives(bench: Bench, name: str) -> None:
    """After half an hour of this the last good answer is still there, with its age; then it recovers."""
    await bench.inventory.client.pin("alpha")
    bench.inventory.start()
    before = (bench.names, list(bench.inventory.loaded), bench.inventory.version)
    assert before[0] == ["alpha:latest", "beta:latest"]
    assert before[1]
    FAULTS[name](bench)
    bench.pass_seconds(1800, step=5)
    assert (bench.names, list(bench.inventory.loaded), bench.inventory.version) == before
    assert bench.inventory.age_seconds == 1800
    assert bench.inventory.reachable is (name not in ("refused", "unknown host", "not connected", "silence"))
    assert set(bench.reads[1:]) == {None}
    bench.line.error = None
    bench.fake.heal()
    bench.fake.models.pop()
    bench.fake.version = "0.0.1"
    bench.release()
    bench.pass_seconds(2 * INTERVAL, step=5)
    assert bench.names == ["alpha:latest"]
    assert (bench.inventory.version, bench.inventory.reachable) == ("0.0.1", True)
    assert bench.inventory.age_seconds < INTERVAL + 1
    await bench.inventory.stop()
    assert bench.clock.getDelayedCalls() == []


@pytest.mark.parametrize("part", PARTS)
async def test_one_part_does_not_lose_the_others(bench: Bench, part: str) -> None:
    """A part that fails keeps its last answer; the others are read."""
    await bench.inventory.refresh()
    bench.fake.fail(part, 500, times=None)
    bench.fake.models.pop()
    bench.fake.version = "0.0.1"
    await bench.inventory.client.pin("alpha")
    await bench.inventory.refresh()
    assert len(bench.names) == (2 if part == "/api/tags" else 1)
    assert len(bench.inventory.loaded) == (0 if part == "/api/ps" else 1)
    assert bench.inventory.version == ("0.0.0" if part == "/api/version" else "0.0.1")
    assert (bench.reads[-1] is None) is (part == "/api/ps")


async def test_absent_at_the_start(bench: Bench) -> None:
    """A target that comes later is read when it is there."""
    refused(bench)
    bench.inventory.start()
    bench.pass_seconds(100)
    assert not bench.inventory.known
    bench.line.error = None
    bench.pass_seconds(INTERVAL)
    assert bench.names == ["alpha:latest", "beta:latest"]
    await bench.inventory.stop()


async def test_refreshes_share_one_more_poll(bench: Bench) -> None:
    """However many ask while a poll runs, exactly one more follows, and it sees what changed meanwhile."""
    bench.fake.hold("/api/ps")
    first = bench.inventory.refresh()
    bench.fake.models.pop()
    later = [bench.inventory.refresh() for _ in range(5)]
    assert bench.count("/api/tags") == 1
    bench.release()
    await first
    for refresh in later:
        await refresh
    assert bench.count("/api/tags") == 2
    assert bench.names == ["alpha:latest"]


async def test_a_reader_may_ask_for_a_refresh(bench: Bench) -> None:
    """A callback that asks again gets one more poll after this one, not one inside it."""
    polls: list[float | None] = []

    def again(ps_asked_at: float | None) -> None:
        polls.append(ps_asked_at)
        if len(polls) < 3:
            bench.inventory.refresh()
            bench.inventory.refresh()

    bench.inventory.on_read.append(again)
    await bench.inventory.refresh()
    assert len(polls) == 3
    assert [exchange.path for exchange in bench.fake.requests if exchange.path in PARTS] == [*PARTS] * 3


async def test_ps_time_is_when_it_was_asked(bench: Bench) -> None:
    """Readers learn when ps was asked, not when it answered: a swap in between may be missing in it."""
    bench.fake.hold("/api/ps")
    refresh = bench.inventory.refresh()
    bench.pass_seconds(4)
    bench.release()
    await refresh
    assert bench.reads == [0.0]


async def test_what_was_unloaded_is_gone_at_once(bench: Bench) -> None:
    """Nobody believes in it until the next answer, which is asked for a moment later: then that counts."""
    bench.fake.slots = bench.fake.gpu.slots = 2
    for model in bench.fake.models:
        await bench.inventory.client.pin(model.name)
    await bench.inventory.refresh()
    alpha, _ = bench.fake.models
    bench.inventory.unloaded(frozenset({alpha.weights}))
    assert [entry.name for entry in bench.inventory.loaded] == ["beta:latest"]
    assert bench.count("/api/ps") == 1
    bench.pass_seconds(0.5, step=0.5)
    assert bench.count("/api/ps") == 2
    assert len(bench.inventory.loaded) == 2  # somebody used it meanwhile
    assert bench.clock.getDelayedCalls() == []


@pytest.mark.parametrize("part", ["/api/ps", "/api/version"])
async def test_an_answer_of_before_the_unloading_is_passed_over(bench: Bench, part: str) -> None:
    """What the target said while the model was there is nothing that a reader may believe."""
    await bench.inventory.client.pin("alpha")
    await bench.inventory.refresh()
    bench.fake.hold(part)
    refresh = bench.inventory.refresh()
    bench.inventory.unloaded(frozenset({bench.fake.models[0].weights}))
    bench.release()
    await refresh
    assert (bench.inventory.loaded, bench.reads) == ([], [0.0, None])
    assert bench.inventory.reachable
    bench.pass_seconds(0.5, step=0.5)
    assert (len(bench.inventory.loaded), bench.reads[2:]) == (1, [0.5])


async def test_unloadings_share_a_look_and_a_stop_ends_it(bench: Bench) -> None:
    """It comes after the last of them; after the stop there is none."""
    await bench.inventory.refresh()
    for _ in range(3):
        bench.inventory.unloaded(frozenset({"alpha"}))
        bench.pass_seconds(0.25, step=0.25)
    assert bench.count("/api/ps") == 1
    bench.pass_seconds(0.25, step=0.25)
    assert bench.count("/api/ps") == 2
    bench.inventory.unloaded(frozenset({"alpha"}))
    await bench.inventory.stop()
    bench.inventory.unloaded(frozenset({"alpha"}))
    assert bench.clock.getDelayedCalls() == []


async def test_a_fresh_look_finds_a_new_model(bench: Bench) -> None:
    """An unknown name is looked up in a list that is asked for now, with its weights; ps is not asked."""
    await bench.inventory.refresh()
    await bench.inventory.client._call("POST", "/api/pull", dict, {"model": "new", "stream": False})
    model = await bench.inventory.fresh_look("new")
    assert model.weights == {bench.fake.find("new").weights}
    assert bench.inventory.model("new") == model
    assert (bench.count("/api/tags"), bench.count("/api/ps")) == (2, 1)


async def test_fresh_looks_are_shared(bench: Bench) -> None:
    """However many ask at once, the target is asked twice: for the first, and for the rest together."""
    bench.fake.hold("/api/tags")
    looks = [Deferred.fromCoroutine(bench.inventory.fresh_look("nope")) for _ in range(20)]
    bench.release()
    assert [await look for look in looks] == [None] * 20
    assert bench.count("/api/tags") == 2


@pytest.mark.parametrize("fault", [refused, silent, answers(500, b"")])
async def test_a_fresh_look_never_raises(bench: Bench, fault: Callable[[Bench], None]) -> None:
    """When the target does not answer, what was known is the answer."""
    await bench.inventory.refresh()
    fault(bench)
    known = Deferred.fromCoroutine(bench.inventory.fresh_look("alpha"))
    unknown = Deferred.fromCoroutine(bench.inventory.fresh_look("nope"))
    bench.pass_seconds(2 * LIMIT)
    assert (await known).name == "alpha:latest"
    assert await unknown is None


async def test_a_look_that_is_left_disturbs_nobody(bench: Bench) -> None:
    """A caller who leaves does not take the answer from the others."""
    bench.fake.hold("/api/tags")
    looks = [Deferred.fromCoroutine(bench.inventory.fresh_look("alpha")) for _ in range(3)]
    looks[0].cancel()
    looks[0].addErrback(lambda failure: None)
    looks[1].cancel()
    looks[1].addErrback(lambda failure: None)
    bench.release()
    assert (await looks[2]).name == "alpha:latest"


async def test_the_older_list_loses(bench: Bench) -> None:
    """A list that was asked for earlier and comes later does not take a newer one's place."""
    bench.fake.hold("/api/tags")
    poll = bench.inventory.refresh()
    look = Deferred.fromCoroutine(bench.inventory.fresh_look("alpha"))
    old, new = bench.fake.models, bench.fake.models[:1]
    earlier, later = [gate for _, gate in bench.fake._gates]
    bench.fake._held.clear()
    bench.fake.models = new
    later.callback(None)
    bench.http.flush()
    await look
    bench.fake.models = old
    earlier.callback(None)
    bench.http.flush()
    await poll
    assert bench.names == ["alpha:latest"]


async def test_stopping_in_the_middle(bench: Bench) -> None:
    """A stop cuts what is being asked, lets everybody go, and later questions ask nothing."""
    bench.fake.hold()
    bench.inventory.start()
    refresh = bench.inventory.refresh()
    look = Deferred.fromCoroutine(bench.inventory.fresh_look("alpha"))
    await bench.inventory.stop()
    await refresh
    assert await look is None
    bench.http.flush()
    assert len(bench.fake.aborted) == 2
    await bench.inventory.refresh()
    assert len(bench.fake.requests) == 2
    assert bench.clock.getDelayedCalls() == []
