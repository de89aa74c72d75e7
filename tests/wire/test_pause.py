"""Give me my GPU back, on the wire: who is refused, who waits, what is unloaded; and a queue that is full."""

import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from durable_client import Durable, Place
from fronts import Bench
from streams import PATHS, exchange, last_sentence, sentence_of
from turn_rig import LOOK_SECONDS, PATIENCE_SECONDS, Rig, chat, reactor, rig, until
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from foreman.errors import LanePaused
from foreman.scheduler.policy import Lane
from foreman.testing.gpu import FakeModel
from foreman.testing.ollama import FakeOllama

UNTIL_RESUMED = "the {} lane is paused until it is resumed; meanwhile jobs can be handed in at /jobs"


@pytest_twisted.async_yield_fixture
async def place() -> AsyncIterator[Place]:
    """A target with room for two models, one of which embeds."""
    models = [FakeModel.make(f"{name}:latest") for name in ("alpha", "beta", "embed")]
    place = Place(FakeOllama(reactor, models=models, slots=2))
    place.begin()
    yield place
    await place.vanish()


@pytest_twisted.async_yield_fixture
async def d(tmp_path: Path, place: Place) -> AsyncIterator[Durable]:
    """The daemon with its defaults, its target's models known."""
    async with rig(tmp_path, place.fake, place.number) as r:
        yield Durable(r)


@pytest.fixture
def utc() -> Iterator[None]:
    """A clock on the wall that is never set, and whose hours are those of the epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


async def pause(r: Rig, **asked: Any) -> dict[str, Any]:
    """Pause; the lanes that are paused."""
    call = await r.ask("/queue/pause", asked)
    assert call.status == 200, call.received
    paused: dict[str, Any] = call.json()["paused"]
    return paused


async def resume(r: Rig, **asked: Any) -> dict[str, Any]:
    """Resume; the lanes that are paused still."""
    call = await r.ask("/queue/resume", asked)
    assert call.status == 200, call.received
    paused: dict[str, Any] = call.json()["paused"]
    return paused


async def unloaded(r: Rig) -> Any:
    """What `GET /queue` says when the unloading is done."""
    end = reactor.seconds() + PATIENCE_SECONDS
    while True:
        report = (await r.ask("/queue")).json()
        if {one["unload"] for one in report["paused"].values()} == {"done"}:
            return report
        assert reactor.seconds() < end, report
        await deferLater(reactor, LOOK_SECONDS)


async def test_native_callers_are_refused(d: Durable, place: Place):
    """Until when, in the sentence and in Retry-After; what needs no turn passes, and all is well."""
    paused = await pause(d.r, **{"lane": "interactive", "for": "2h"})
    assert list(paused) == ["interactive"]
    end = datetime.fromisoformat(paused["interactive"]["until"])
    assert abs(end.timestamp() - time.time() - 7200) < 5
    got = await d.r.ask("/api/chat", chat("alpha"))
    until_then = f"is paused until {paused['interactive']['until']}"
    assert got.status == 503
    assert until_then in got.json()["error"]
    assert 7190 <= int(got.headers["retry-after"]) <= 7200
    assert len(got.headers["x-foreman-job-id"]) == 26
    for path, asked in (
        ("/api/tags", None),
        ("/api/version", None),
        ("/api/embed", {"model": "embed", "input": "a"}),
    ):
        assert (await d.r.ask(path, asked)).status == 200
    unload = await d.r.ask("/api/generate", {"model": "embed", "keep_alive": 0})
    assert (unload.status, unload.json()["done_reason"]) == (200, "unload")
    assert await d.r.health() == {"status": "ok", "degraded": False}
    assert (await d.r.ask("/queue")).json()["paused"] == paused
    # The other lane goes on.
    assert (await d.end(await d.submit()))["status"] == "succeeded"
    assert await resume(d.r) == {}
    assert (await d.r.ask("/api/chat", chat("alpha"))).status == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_those_that_wait_already_too(bench: Bench, stream: bool):
    """In the dialect of each path, at once, and what runs goes on; a lowered request is of the other lane."""
    exchanges = [exchange(path, stream) for path in PATHS]
    _, port = bench.replay(*exchanges)
    front = await bench.front(port)
    turn = front.parts.turn
    lowered = exchanges[0].request.replace(b"\r\n", b"\r\nX-Foreman-Lane: durable\r\n", 1)
    async with turn.take("HELD", None):
        clients = [await front.connect() for _ in PATHS]
        for client, one in zip(clients, exchanges, strict=True):
            client.send(one.request)
        patient = await front.connect()
        patient.send(lowered)
        await front.until(lambda: turn.waiting == len(PATHS) + 1)
        turn.pause(Lane.INTERACTIVE, lambda: LanePaused("interactive", None, 0.0))
        for path, client in zip(PATHS, clients, strict=True):
            got = await client.answer()
            assert got.status == 503
            assert sentence_of(path, got.json) == UNTIL_RESUMED.format("interactive")
            assert got.header(b"Retry-After") is None
        assert turn.waiting == 1
        assert turn.holder == "HELD"
    assert (await patient.answer()).status == 200
    turn.pause(Lane.DURABLE, lambda: LanePaused("durable", None, 0.0))
    got = await front.ask(lowered)
    assert (got.status, got.json["error"]) == (503, UNTIL_RESUMED.format("durable"))
    for client in (*clients, patient):
        client.close()
        await client.closed()


@pytest.mark.parametrize("path", PATHS)
async def test_a_stream_that_has_its_headers_ends_with_the_sentence(bench: Bench, path: str):
    """It has waited for long: its status is sent, so the refusal is its last line or event."""
    _, port = bench.replay(exchange(path, True))
    front = await bench.front(port, queue_headers_after="1ms")
    async with front.parts.turn.take("HELD", None):
        client = await front.connect()
        client.send(exchange(path, True).request)
        await client.begun()
        front.parts.turn.pause(Lane.INTERACTIVE, lambda: LanePaused("interactive", None, 0.0))
        got = await client.answer()
        assert got.status == 200
        assert last_sentence(path, got.body) == UNTIL_RESUMED.format("interactive")
    client.close()
    await client.closed()


async def test_durable_jobs_wait(d: Durable, place: Place):
    """They are taken, whatever their lane does, embeddings as well; the running one ends."""
    fake = place.fake
    fake.hold("/api/chat")
    running = await d.submit()
    await d.running(running)
    paused = await pause(d.r, lane="durable")
    assert paused["durable"]["until"] is None
    waiting = [await d.submit(), await d.submit({"model": "embed", "input": "a"})]
    fake.release()
    assert (await d.end(running))["status"] == "succeeded"
    assert (await d.r.ask("/api/chat", chat("alpha"))).status == 200
    shown = [await d.show(job_id) for job_id in waiting]
    assert [job["status"] for job in shown] == ["queued", "queued"]
    assert shown[0]["waiting_for"]["reason"] == "lane_paused"
    assert await resume(d.r, lane="durable") == {}
    for job_id in waiting:
        assert (await d.end(job_id))["status"] == "succeeded"


async def test_now_puts_back_durable_jobs_and_cuts_no_stream(d: Durable, place: Place):
    """The job loses nothing but time; the native stream goes on to its end."""
    fake = place.fake
    fake.hold("/api/chat")
    job_id = await d.submit()
    await until(lambda: fake._gates, "the request of the job is at the target")
    await pause(d.r, now=True)
    await until(lambda: fake.aborted, "the request of the job is closed")
    job = await d.until(job_id, lambda job: job["status"] == "queued")
    assert (job["attempt"], job["interruptions"], job["errors"]) == (0, 0, [])
    await resume(d.r)
    fake.release()
    assert (await d.end(job_id))["attempt"] == 1
    stream = await d.r.hold()
    await pause(d.r, now=True)
    fake.release()
    got = await d.r.wait(stream)
    assert (got.status, got.complete) == (200, True)
    assert got.body.rstrip().endswith(b"}")
    assert json.loads(got.body.splitlines()[-1])["done"] is True


async def test_unload_gives_the_memory_back_until_the_resume(tmp_path: Path, place: Place):
    """What runs ends first, then nothing is loaded, the pinned embedder included, over a restart as well."""
    fake = place.fake
    settings = {"embed_model": "embed", "poll_interval": "100ms"}

    def loaded() -> list[str]:
        return sorted(runner.model.name for runner in fake.gpu.resident())

    async with rig(tmp_path, fake, place.number, **settings) as r:
        d = Durable(r)
        await until(lambda: loaded() == ["embed:latest"], "the embedder is pinned")
        fake.hold("/api/chat")
        running = await d.submit()
        await d.running(running)
        waiting = await d.submit({**chat("beta")})
        paused = await pause(r, unload=True)
        assert {lane: one["unload"] for lane, one in paused.items()} == dict.fromkeys(paused, "waiting")
        assert loaded()
        fake.release()
        assert (await d.end(running))["status"] == "succeeded"
        await until(lambda: not loaded(), "nothing is loaded any more")
        loads = len(fake.loads)
        polls = len(fake.seen("/api/ps"))
        await until(lambda: len(fake.seen("/api/ps")) > polls + 5)
        assert await r.health() == {"status": "ok", "degraded": False}
        report = await unloaded(r)
        assert report["resident"] == []
        assert (await d.show(waiting))["status"] == "queued"
    async with rig(tmp_path, fake, place.number, **settings) as r:
        d = Durable(r)
        assert (await r.ask("/api/chat", chat("alpha"))).status == 503
        polls = len(fake.seen("/api/ps"))
        await until(lambda: len(fake.seen("/api/ps")) > polls + 5)
        assert len(fake.loads) == loads
        assert (await unloaded(r))["paused"] == report["paused"]
        await resume(r)
        assert (await d.end(waiting))["status"] == "succeeded"
        await until(lambda: "embed:latest" in loaded(), "the embedder is pinned again")


async def test_a_pause_ends_by_itself(tmp_path: Path, place: Place):
    """By the clock; and when it was over while foreman was down, nothing of it is left."""
    async with rig(tmp_path, place.fake, place.number) as r:
        d = Durable(r)
        await pause(r, **{"lane": "durable", "for": "2s"})
        job_id = await d.submit()
        assert (await d.show(job_id))["status"] == "queued"
        assert (await d.end(job_id))["status"] == "succeeded"
        assert (await r.ask("/queue")).json()["paused"] == {}
        await pause(r, **{"for": "1ms"})
    async with rig(tmp_path, place.fake, place.number) as r:
        assert (await r.ask("/queue")).json()["paused"] == {}
        assert (await r.ask("/api/chat", chat("alpha"))).status == 200


async def test_beyond_the_hours(tmp_path: Path, place: Place, utc: None):
    """Durable jobs wait, embeddings too; a chat does not."""
    now = time.localtime()
    hours = f"{(now.tm_hour + 2) % 24:02}:00-{(now.tm_hour + 3) % 24:02}:00"
    async with rig(tmp_path, place.fake, place.number, durable_hours=hours) as r:
        d = Durable(r)
        jobs = [await d.submit(), await d.submit({"model": "embed", "input": "a"})]
        assert (await r.ask("/api/chat", chat("alpha"))).status == 200
        shown = [await d.show(job_id) for job_id in jobs]
        assert [job["status"] for job in shown] == ["queued", "queued"]
        assert shown[0]["waiting_for"]["reason"] == "durable_hours"
        opens = r.parts.timetable.opens_at
        assert opens == (time.mktime(now) // 3600 + 2) * 3600
        # As the timetable does then.
        r.parts.turn.set_durable_hours(True)
        r.parts.worker.look()
        for job_id in jobs:
            assert (await d.end(job_id))["status"] == "succeeded"


async def test_a_lowered_request_waits_for_the_hours(bench: Bench):
    """It asked to be patient, so it is not refused."""
    one = exchange("/api/chat", True)
    _, port = bench.replay(one)
    front = await bench.front(port)
    front.parts.turn.set_durable_hours(False)
    client = await front.connect()
    client.send(one.request.replace(b"\r\n", b"\r\nX-Foreman-Lane: durable\r\n", 1))
    await front.until(lambda: front.parts.turn.waiting == 1)
    assert (await front.ask(one.request)).status == 200
    front.parts.turn.set_durable_hours(True)
    assert (await client.answer()).status == 200
    client.close()
    await client.closed()


async def test_a_full_queue_is_exact(tmp_path: Path, place: Place):
    """Of 100 posters at once 40 find room; the others are to come again, and nothing of theirs is kept."""
    async with rig(tmp_path, place.fake, place.number, queue_limit="40") as r:
        d = Durable(r)
        await pause(r, lane="durable")
        calls = await gatherResults(
            [Deferred.fromCoroutine(r.ask("/jobs", chat("alpha"))) for _ in range(100)], consumeErrors=True
        )
        assert Counter(call.status for call in calls) == {202: 40, 429: 60}
        for call in calls:
            if call.status == 429:
                assert (call.json()["code"], call.headers["retry-after"]) == ("queue_full", "30")
        assert len((await r.ask("/jobs?limit=200")).json()["jobs"]) == 40
        await resume(r)
        for call in calls:
            if call.status == 202:
                assert (await d.end(call.json()["job_id"]))["status"] == "succeeded"
        assert (await r.ask("/jobs", chat("alpha"))).status == 202
