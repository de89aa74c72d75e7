"""The fake Ollama: it keeps the contract, and does what a test's script says."""

import json
from typing import Any

import pytest
from attrs import evolve
from contract_ollama import MESSAGES, OllamaContract, StoreContract, Target, ask, chat
from treq.testing import StubTreq
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.web.client import ResponseFailed, ResponseNeverReceived

from foreman.testing.ollama import FakeOllama
from foreman.testing.scripted import Canned

BASE_URL = "http://target:11434"


class Bench:
    """A fake on a clock, and a client in memory."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.fake = FakeOllama(self.clock, **settings)
        self.http = StubTreq(self.fake.resource())
        self.target = Target(self.http, BASE_URL, "alpha", "beta")

    def pass_seconds(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.http.flush()

    def ask(self, *args: Any) -> "Deferred[Any]":
        return Deferred.fromCoroutine(ask(self.target, *args))

    def begin(self, method: str, path: str, body: Any) -> "Deferred[Any]":
        data = json.dumps(body).encode()
        return self.http.request(method, BASE_URL + path, data=data, unbuffered=True)


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def ollama(bench: Bench) -> Target:
    return bench.target


class TestContract(OllamaContract, StoreContract):
    """The fake answers as the recorded Ollama does."""


async def test_tokens_come_at_their_pace_and_one_line_is_one_chunk(bench: Bench) -> None:
    """A stream sends one token every interval; nothing is joined."""
    bench.fake.token_interval = 0.5
    response = await bench.begin("POST", "/api/chat", {"model": "alpha", "messages": MESSAGES})
    chunks: list[bytes] = []
    done = response.collect(chunks.append)
    counts = []
    while not done.called:
        counts.append(len(chunks))
        bench.pass_seconds(0.5)
    assert counts == [1, 2, 3, 4]
    assert [json.loads(chunk)["message"]["content"] for chunk in chunks] == [
        "The",
        " rain",
        " falls",
        ".",
        "",
    ]


async def test_a_load_takes_its_time_and_is_counted(bench: Bench) -> None:
    """The first request to a model waits for the load, the next one does not."""
    bench.fake.gpu.load_seconds = 3
    first = bench.ask("POST", "/api/chat", chat(bench.target))
    bench.pass_seconds(2.9)
    assert not first.called
    bench.pass_seconds(0.1)
    assert (await first).status == 200
    assert (await bench.ask("POST", "/api/chat", chat(bench.target))).status == 200
    assert bench.fake.loads == ["alpha:latest"]


async def test_alternating_models_load_each_time(bench: Bench) -> None:
    """One slot holds one model: alternating loads at every request, a changed num_ctx too."""
    for name in ("alpha", "beta", "alpha"):
        await bench.ask("POST", "/api/generate", {"model": name})
    await bench.ask("POST", "/api/generate", {"model": "alpha", "options": {"num_ctx": 512}})
    assert bench.fake.loads == ["alpha:latest", "beta:latest", "alpha:latest", "alpha:latest"]


@pytest.mark.parametrize(
    ("first", "second", "reloads"),
    [
        ({}, {"options": {"num_ctx": 4096}}, False),
        ({}, {"options": {"num_ctx": 4096.0, "temperature": 1, "num_predict": 1}}, False),
        ({}, {"options": {"num_ctx": 2048}}, True),
        ({}, {"options": {"num_ctx": 0}}, True),
        ({"options": {"num_ctx": 0}}, {"options": {"num_ctx": 4}}, False),
        ({}, {"options": {"num_thread": 8}}, True),
        ({}, {"options": {"num_thread": 0, "main_gpu": 0, "num_batch": 512}, "shift": True}, False),
        ({}, {"options": {"use_mmap": False}}, True),
        ({}, {"options": {"use_mmap": None}}, False),
        ({}, {"shift": False}, True),
        ({}, {"shift": None}, False),
        ({}, {"options": {"num_gpu": 10}}, True),
        ({"options": {"num_gpu": 10}}, {}, False),
        ({"options": {"num_gpu": 10}}, {"options": {"num_gpu": -1}}, False),
        ({"options": {"num_gpu": 10}}, {"options": {"num_gpu": 11}}, True),
    ],
)
async def test_runner_options_that_differ_reload(
    bench: Bench, first: Any, second: Any, reloads: bool
) -> None:
    """As Ollama compares them: with its own values for what is unset, and any num_gpu for an open one."""
    for more in (first, second):
        await bench.ask("POST", "/api/generate", {"model": "alpha"} | more)
    assert len(bench.fake.loads) == (2 if reloads else 1)


async def test_a_models_own_runner_options_count(bench: Bench) -> None:
    """A request overlays them; what it says again changes nothing. /api/show lists them."""
    own = evolve(bench.fake.models[1], parameters={"use_mmap": False, "num_gpu": 3})
    bench.fake.models[1] = own
    shown = (await bench.ask("POST", "/api/show", {"model": "beta"})).json["parameters"]
    assert [line.split() for line in shown.split("\n")] == [
        ["num_ctx", "2048"],
        ["num_gpu", "3"],
        ["use_mmap", "false"],
    ]
    same = {"num_ctx": 2048, "num_gpu": 3, "use_mmap": False}
    for options in ({}, same, {"num_gpu": 4}):
        await bench.ask("POST", "/api/generate", {"model": "beta", "options": options})
    assert bench.fake.loads == ["beta:latest"] * 2


async def test_a_copy_runs_on_the_same_runner(bench: Bench) -> None:
    """Models with equal weights and context share a runner, which keeps the name that loaded it."""
    await bench.ask("POST", "/api/copy", {"source": "alpha", "destination": "twin"})
    for name in ("alpha", "twin"):
        await bench.ask("POST", "/api/generate", {"model": name})
    assert bench.fake.loads == ["alpha:latest"]


async def test_two_slots_hold_two_models_and_the_older_one_goes() -> None:
    """With two slots a third model evicts the one that was used longest ago."""
    bench = Bench(slots=2)
    await bench.ask("POST", "/api/pull", {"model": "gamma"})
    for name in ("alpha", "beta", "alpha", "gamma"):
        await bench.ask("POST", "/api/generate", {"model": name})
        bench.pass_seconds(1)
    names = {entry["name"] for entry in (await bench.ask("GET", "/api/ps")).json["models"]}
    assert names == {"alpha:latest", "gamma:latest"}
    assert bench.fake.loads == ["alpha:latest", "beta:latest", "gamma:latest"]


async def test_requests_wait_in_line_and_a_leaver_makes_room(bench: Bench) -> None:
    """One slot answers one request at a time; a client that leaves frees it, and its leaving is recorded."""
    bench.fake.token_interval = 1
    first = await bench.begin("POST", "/api/chat", {"model": "alpha", "messages": MESSAGES})
    second = bench.ask("POST", "/api/chat", chat(bench.target))
    bench.pass_seconds(0.5)
    assert not second.called
    first.original.deliverBody(_Leaver())
    bench.pass_seconds(0)
    (left,) = bench.fake.aborted
    assert (left, left.aborted_at) == (bench.fake.requests[0], 0.5)
    for _ in range(4):
        bench.pass_seconds(1)
    assert (await second).status == 200


async def test_a_client_that_leaves_during_a_load_leaves_nothing(bench: Bench) -> None:
    """An aborted load counts as none, and nothing is resident."""
    bench.fake.gpu.load_seconds = 5
    request = bench.begin("POST", "/api/chat", {"model": "alpha", "messages": MESSAGES})
    bench.pass_seconds(1)
    request.cancel()
    request.addErrback(lambda failure: failure.trap(ResponseNeverReceived))
    await request
    bench.pass_seconds(0)
    bench.pass_seconds(10)
    assert bench.fake.loads == []
    assert (await bench.ask("GET", "/api/ps")).json == {"models": []}


async def test_keep_alive_ends_a_stay(bench: Bench) -> None:
    """A number is seconds, a string a Go duration; after it the model is gone."""
    for keep_alive, seconds in ((10, 10), ("1m30s", 90), (None, 300)):
        await bench.ask("POST", "/api/generate", {"model": "alpha", "keep_alive": keep_alive})
        bench.pass_seconds(seconds - 1)
        assert len((await bench.ask("GET", "/api/ps")).json["models"]) == 1
        bench.pass_seconds(1)
        assert (await bench.ask("GET", "/api/ps")).json["models"] == []


async def test_hold_and_release(bench: Bench) -> None:
    """A held path is silent until it is released; others answer."""
    bench.fake.hold("/api/tags", "/api/chat")
    tags = bench.ask("GET", "/api/tags")
    talk = bench.ask("POST", "/api/chat", chat(bench.target))
    assert (await bench.ask("GET", "/api/version")).status == 200
    assert not tags.called
    assert not talk.called
    assert bench.fake.loads == ["alpha:latest"]
    bench.fake.release("/api/tags")
    bench.pass_seconds(0)
    assert (await tags).status == 200
    assert not talk.called
    bench.fake.release()
    bench.pass_seconds(0)
    assert (await talk).status == 200


async def test_canned_answers_are_used_up(bench: Bench) -> None:
    """A canned answer is given so many times, then the real one; heal() takes a lasting one away."""
    bench.fake.fail("/api/tags", 500, "boom", times=2)
    statuses = [(await bench.ask("GET", "/api/tags")).status for _ in range(3)]
    assert statuses == [500, 500, 200]
    bench.fake.answer("/api/tags", Canned(200, b"<html>", "text/html"), times=None)
    assert {(await bench.ask("GET", "/api/tags")).body for _ in range(3)} == {b"<html>"}
    bench.fake.heal()
    assert (await bench.ask("GET", "/api/tags")).json["models"]


async def test_a_stream_breaks_off_where_the_test_wants_it(bench: Bench) -> None:
    """After so many lines the connection ends without an end of the stream; no client is blamed."""
    bench.fake.die_after = 2
    response = await bench.begin("POST", "/api/chat", {"model": "alpha", "messages": MESSAGES})
    chunks: list[bytes] = []
    with pytest.raises(ResponseFailed):
        await response.collect(chunks.append)
    assert len(chunks) == 2
    assert bench.fake.aborted == []
    assert (await bench.ask("POST", "/api/chat", chat(bench.target))).status == 200


async def test_a_whole_answer_breaks_off_before_its_head(bench: Bench) -> None:
    """An answer without a stream dies without a byte."""
    bench.fake.die_after = 2
    body = {"model": "alpha", "messages": MESSAGES, "stream": False}
    with pytest.raises(ResponseNeverReceived):
        await bench.begin("POST", "/api/chat", body)


async def test_requests_are_recorded(bench: Bench) -> None:
    """Method, path, headers and body of every request are kept."""
    await bench.ask("POST", "/api/show", {"model": "alpha"})
    (seen,) = bench.fake.seen("/api/show")
    assert (seen.method, json.loads(seen.body)) == ("POST", {"model": "alpha"})
    assert seen.headers["content-type"] == "application/json"


class _Leaver:
    """A body reader that hangs up."""

    def makeConnection(self, transport: Any) -> None:
        transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        pass

    def connectionLost(self, reason: Any) -> None:
        pass
