"""Loading on purpose, on the wire: what the target is asked for, and who may leave during a load."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from durable_client import Durable
from turn_rig import SOON_SECONDS, Call, Rig, chat, content, reactor, rig, until

from foreman.testing.ollama import FakeOllama

LOAD_SECONDS = 0.3
# Much more than a slow machine needs for what is to happen during a load that comes to its end.
LONG_LOAD_SECONDS = 2.0


@pytest_twisted.async_yield_fixture
async def fake() -> AsyncIterator[FakeOllama]:
    """An Ollama with room for one model, whose loads take their time."""
    fake = FakeOllama(reactor)
    fake.gpu.load_seconds = LOAD_SECONDS
    yield fake


def loads(fake: FakeOllama) -> list[Any]:
    """The loads that foreman asked for."""
    return [json.loads(exchange.body) for exchange in fake.seen("/api/generate")]


async def loading(r: Rig, fake: FakeOllama, asked: Any) -> Call:
    """A request whose model is being loaded, by the request of its own that was seen last."""
    before = len(loads(fake))
    call = await r.begin("/api/chat", asked)
    await until(lambda: len(loads(fake)) == before + 1, "the load was asked for")
    return call


async def test_a_swap_is_one_more_request_and_the_callers_bytes_are_theirs(r: Rig, fake: FakeOllama):
    """The load form has the runner options and no keep_alive; what the caller sent comes as it was."""
    asked = content(chat("alpha", options={"num_ctx": 2048.0, "seed": 1}, shift=False, keep_alive="7m"))
    call = await r.ask("/api/chat", asked)
    assert call.status == 200
    assert loads(fake) == [{"model": "alpha", "options": {"num_ctx": 2048}, "shift": False}]
    (exchange,) = fake.seen("/api/chat")
    assert exchange.body == asked
    assert fake.loads == ["alpha:latest"]
    assert int(call.headers["x-foreman-queue-ms"]) < LOAD_SECONDS * 1000
    (line,) = r.turns
    assert line.load_seconds >= LOAD_SECONDS - 0.01
    assert line.run_seconds < line.load_seconds
    # Resident: not one request more, but what the caller sends.
    await until(lambda: not r.parts.inventory._polls._busy)
    before = len(fake.requests)
    assert (await r.ask("/api/chat", asked)).status == 200
    assert [exchange.path for exchange in fake.requests[before:]] == ["/api/chat"]
    assert r.turns[-1].load_seconds == 0


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_a_load_form_is_its_own_preload(r: Rig, fake: FakeOllama, path: str):
    """One request, the caller's."""
    call = await r.ask(path, {"model": "alpha", "keep_alive": "3m"})
    assert call.json()["done_reason"] == "load"
    paths = [exchange.path for exchange in fake.requests if exchange.method == "POST"]
    assert [each for each in paths if each != "/api/show"] == [path]
    assert fake.loads == ["alpha:latest"]


@pytest.mark.parametrize("lane", ["interactive", "durable"])
async def test_a_caller_who_keeps_no_model_has_it_loaded_ahead_again(r: Rig, fake: FakeOllama, lane: str):
    """With `keep_alive` 0 the target drops the model after the answer: foreman knows without asking."""
    d, asked = Durable(r), chat("alpha", keep_alive=0)
    fake.hold("/api/ps")
    for _ in range(2):
        if lane == "durable":
            job = await d.end(await d.submit(asked))
            assert job["metrics"]["load_seconds"] >= LOAD_SECONDS - 0.01
        else:
            assert (await r.ask("/api/chat", asked)).status == 200
            assert r.turns[-1].load_seconds >= LOAD_SECONDS - 0.01
    assert loads(fake) == [{"model": "alpha"}] * 2
    assert fake.loads == ["alpha:latest"] * 2


async def test_who_leaves_alone_during_a_load_throws_it_away(r: Rig, fake: FakeOllama):
    """As without foreman: the target stops loading at once, and begins anew for the next one."""
    fake.gpu.load_seconds = 60
    call = await loading(r, fake, chat("alpha"))
    call.leave()
    await until(lambda: fake.aborted)
    assert fake.aborted[0].path == "/api/generate"
    assert fake.aborted[0].aborted_at - fake.aborted[0].at < SOON_SECONDS
    assert fake.loads == []
    assert fake.seen("/api/chat") == []
    fake.gpu.load_seconds = LOAD_SECONDS
    await until(lambda: r.turn.free)
    assert (await r.ask("/api/chat", chat("alpha"))).status == 200
    assert fake.loads == ["alpha:latest"]


async def test_who_leaves_during_a_load_leaves_it_to_those_who_wait(r: Rig, fake: FakeOllama):
    """One load for all, although the first two callers left in its middle."""
    fake.gpu.load_seconds = LONG_LOAD_SECONDS
    first = await loading(r, fake, chat("alpha"))
    others = [await r.begin("/api/chat", chat("alpha")) for _ in range(3)]
    await until(lambda: r.turn.waiting == 3)
    first.leave()
    await until(lambda: r.turn.waiting == 2)
    others[0].leave()
    await until(lambda: r.turn.waiting == 1)
    assert fake.loads == []
    for call in others[1:]:
        assert (await r.wait(call)).status == 200
    assert (len(loads(fake)), fake.loads, fake.aborted) == (1, ["alpha:latest"], [])


async def test_a_batch_takes_over_the_load_of_a_chat_that_left(r: Rig, fake: FakeOllama):
    """A durable job waits for the key: it is claimed while the load goes on, and runs at its end."""
    fake.gpu.load_seconds = LONG_LOAD_SECONDS
    d = Durable(r)
    call = await loading(r, fake, chat("alpha"))
    jobs = [await d.submit() for _ in range(3)]
    await until(lambda: r.turn.waiting == 3)
    call.leave()
    for job_id in jobs:
        assert (await d.end(job_id))["status"] == "succeeded"
    assert (len(loads(fake)), fake.loads, fake.aborted) == (1, ["alpha:latest"], [])


async def test_a_batch_whose_job_is_cancelled_during_its_load(r: Rig, fake: FakeOllama):
    """The next job of the batch takes the load over; when the last one is cancelled, it is aborted."""
    fake.gpu.load_seconds = LONG_LOAD_SECONDS
    d = Durable(r)
    first = await d.submit()
    await until(lambda: loads(fake))
    second = await d.submit()
    await until(lambda: r.turn.waiting == 1)
    assert (await d.show(first))["progress"]["phase"] == "loading"
    await d.act(first, "cancel")
    assert (await d.end(first))["status"] == "cancelled"
    assert (await d.end(second))["status"] == "succeeded"
    assert (len(loads(fake)), fake.loads, fake.aborted) == (1, ["alpha:latest"], [])
    third = await d.submit(chat("beta"))
    await until(lambda: len(loads(fake)) == 2)
    await d.act(third, "cancel")
    assert (await d.end(third))["status"] == "cancelled"
    await until(lambda: fake.aborted)
    assert fake.loads == ["alpha:latest"]
    assert r.turn.free


async def test_the_seconds_of_a_load_are_the_swaps(r: Rig, fake: FakeOllama):
    """They are in `load_seconds`, and not in `run_seconds`; the next job of the key has none."""
    d = Durable(r)
    seconds: list[float] = []
    r.parts.preloader.on_load = lambda grant, load: seconds.append(load)
    jobs = [await d.end(await d.submit()) for _ in range(2)]
    swap, warm = (job["metrics"] for job in jobs)
    assert len(seconds) == 1
    assert swap["load_seconds"] == pytest.approx(seconds[0], abs=0.25)
    assert swap["load_seconds"] >= LOAD_SECONDS - 0.01
    assert swap["run_seconds"] < LOAD_SECONDS
    assert warm["load_seconds"] == pytest.approx(0.039, abs=0.001)  # the target's own figure


@pytest.mark.parametrize("job", [False, True], ids=["native", "durable"])
async def test_time_limits_begin_after_the_load(
    tmp_path: Path, fake: FakeOllama, target_port: int, job: bool
):
    """A run may be as long as its limit, however long its load was."""
    fake.gpu.load_seconds = 1.2
    fake.token_interval = 0.02
    async with rig(tmp_path, fake, target_port, run_timeout="1s") as r:
        d = Durable(r)
        if job:
            assert (await d.end(await d.submit()))["status"] == "succeeded"
        else:
            call = await r.ask("/api/chat", chat("alpha"))
            assert json.loads(call.body.splitlines()[-1])["done"]


@pytest.mark.parametrize("status", [400, 404, 500, 503])
async def test_a_failed_load_is_no_answer(r: Rig, fake: FakeOllama, status: int):
    """The caller's request is sent all the same, and the target's answer to it is theirs."""
    fake.fail("/api/generate", status, "no load for you")
    assert (await r.ask("/api/chat", chat("alpha"))).status == 200
    fake.fail("/api/generate", status, "no load for you")
    fake.fail("/api/chat", status, "out of memory")
    call = await r.ask("/api/chat", chat("beta"))
    assert (call.status, call.json()) == (status, {"error": "out of memory"})
    assert len(loads(fake)) == 2


async def test_what_cannot_complete_is_not_loaded_ahead(r: Rig, fake: FakeOllama):
    """The target's own refusal is the answer, after one request."""
    fake.models[0].capabilities = ("embedding",)
    r.parts.inventory._facts.clear()
    await r.parts.inventory.refresh()
    call = await r.ask("/api/chat", chat("alpha"))
    assert (call.status, call.json()) == (400, {"error": '"alpha" does not support chat'})
    assert loads(fake) == []


async def test_a_client_that_waits_for_a_load_gets_its_head_in_time(
    tmp_path: Path, fake: FakeOllama, target_port: int
):
    """To a caller a load is a wait like any other."""
    fake.gpu.load_seconds = LONG_LOAD_SECONDS
    async with rig(tmp_path, fake, target_port, queue_headers_after="50ms") as r:
        call = await loading(r, fake, chat("alpha"))
        await call.began
        assert call.headers["content-type"] == "application/x-ndjson"
        assert fake.loads == []
        assert json.loads((await r.wait(call)).body.splitlines()[-1])["done"]


@pytest.mark.parametrize("early_head", [False, True])
async def test_a_stop_during_a_load(tmp_path: Path, fake: FakeOllama, target_port: int, early_head: bool):
    """After the grace the caller is told, in its stream or by a status, and the load is aborted."""
    fake.gpu.load_seconds = 30
    after = "50ms" if early_head else "0"
    async with rig(tmp_path, fake, target_port, stop_grace="200ms", queue_headers_after=after) as r:
        d = Durable(r)
        call = await loading(r, fake, chat("alpha"))
        job_id = await d.submit()
        if early_head:
            await call.began
        await r.foreman.stopService()
        await r.wait(call)
        assert call.status == (200 if early_head else 503)
        assert "stopping" in json.loads(call.body.splitlines()[-1])["error"]
        await until(lambda: fake.aborted)
        assert (job_id, fake.loads) == (job_id, [])
        assert fake.seen("/api/chat") == []


async def test_a_batch_that_is_stopped_during_its_load(tmp_path: Path, fake: FakeOllama, target_port: int):
    """The job is put back, and the load is aborted."""
    fake.gpu.load_seconds = 30
    async with rig(tmp_path, fake, target_port, stop_grace="100ms") as r:
        await Durable(r).submit()
        await until(lambda: loads(fake))
        await r.foreman.stopService()
        await until(lambda: fake.aborted)
        assert fake.loads == []
    fake.gpu.load_seconds = 0
    async with rig(tmp_path, fake, target_port) as r:
        await until(lambda: fake.seen("/api/chat"))
        await until(lambda: r.turn.free)
