"""Explaining, on the wire: the queue, what swaps cost, what a job waits for, and what is remembered."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from attrs import evolve
from durable_client import Durable, Place
from turn_rig import Rig, chat, reactor, rig, until

from foreman.quantities import format_moment
from foreman.testing.gpu import FakeModel
from foreman.testing.ollama import FakeOllama
from foreman.worker import failures

LOAD_SECONDS = 0.06


@pytest_twisted.async_yield_fixture
async def place() -> AsyncIterator[Place]:
    """A target with room for one model, and what else it has embeds."""
    embed = evolve(FakeModel.make("embed:latest"), capabilities=("embedding",))
    models = [FakeModel.make("alpha:latest"), FakeModel.make("beta:latest"), embed]
    place = Place(FakeOllama(reactor, models=models))
    place.fake.gpu.load_seconds = LOAD_SECONDS
    place.begin()
    yield place
    await place.vanish()


@pytest_twisted.async_yield_fixture
async def r(tmp_path: Path, place: Place) -> AsyncIterator[Rig]:
    """The daemon with its defaults, its target's models known."""
    async with rig(tmp_path, place.fake, place.number) as it:
        yield it


async def queue(r: Rig) -> dict[str, Any]:
    call = await r.ask("/queue")
    assert (call.status, call.headers["content-type"]) == (200, "application/json")
    assert call.headers["cache-control"] == "no-store"
    report: dict[str, Any] = call.json()
    return report


async def why(d: Durable, job_id: str) -> dict[str, Any]:
    """What a job waits for."""
    waiting_for: dict[str, Any] = (await d.show(job_id))["waiting_for"]
    assert waiting_for["text"]
    return waiting_for


async def test_nothing_happens(r: Rig):
    """Every part is there, and empty."""
    assert await queue(r) == {
        "turn": None,
        "lines": [],
        "resident": [],
        "swaps": {"last": [], "hour": {"done": 0, "avoided": 0}, "day": {"done": 0, "avoided": 0}},
        "paused": {},
        "advice": [],
    }
    assert (await r.ask("/queue", None, "DELETE")).status == 405


async def test_a_queue(r: Rig, place: Place):
    """Who has the turn, who waits in which line since when, what is loaded."""
    d = Durable(r)
    holder = await r.hold("alpha")
    batch = [await d.submit(chat("beta")) for _ in range(3)]
    await r.begin("/api/chat", chat("alpha", options={"num_ctx": 8192}))
    await until(lambda: r.turn.waiting == 4)
    await until(lambda: r.parts.inventory.loaded)
    report = await queue(r)
    turn = report["turn"]
    assert (turn["lane"], turn["model"], turn["sharing"]) == ("interactive", "alpha", 1)
    assert len(turn["job_id"]) == 26
    assert turn["since"] == turn["visit"]["since"]
    chats, jobs = report["lines"]
    assert (chats["model"], chats["lane"], chats["waiting"]) == ("alpha", "interactive", 1)
    assert chats["key"].endswith(" num_ctx=8192")
    assert 3 <= chats["overdue_in_seconds"] <= 5
    assert (jobs["model"], jobs["lane"], jobs["waiting"]) == ("beta", "durable", 3)
    assert jobs["oldest_at"] == (await d.show(batch[0]))["created_at"]
    assert 3595 <= jobs["overdue_in_seconds"] <= 3600
    (resident,) = report["resident"]
    assert resident["expires_at"] > turn["since"]
    assert {**resident, "expires_at": None} == {
        "name": "alpha:latest",
        "context_length": 4096,
        "expires_at": None,
        "loaded_by_foreman": True,
    }
    place.fake.release()
    assert (await r.wait(holder)).headers["x-foreman-job-id"] == turn["job_id"]
    for job_id in batch:
        await d.end(job_id)


async def test_refusals_teach_nothing(r: Rig, place: Place):
    """A model that the target could not load is not resident, was no swap, and has no history."""
    for path in ("/api/chat", "/api/generate"):  # the second loads ahead
        place.fake.fail(path, 500, "model requires more system memory", times=None)
    for _ in range(3):
        assert (await r.ask("/api/chat", chat("alpha", stream=False))).status == 500
    report = await queue(r)
    assert report["swaps"]["last"] == []
    assert report["swaps"]["day"]["done"] == 0
    assert not r.parts.turn._keys.resident()


async def test_swaps_that_were_avoided(r: Rig, place: Place):
    """Forty that alternate two models, all waiting: 2 loads, and 38 more in the order of arrival."""
    place.fake.hold("/api/chat")
    calls = [await r.begin("/api/chat", chat(("alpha", "beta")[number % 2])) for number in range(40)]
    await until(lambda: r.turn.waiting == 39)
    place.fake.release()
    for call in calls:
        await r.wait(call)
    swaps = (await queue(r))["swaps"]
    assert swaps["hour"] == swaps["day"] == {"done": 2, "avoided": 38}
    assert [swap["model"] for swap in swaps["last"]] == ["beta", "alpha"]
    assert swaps["last"][0]["at"] > swaps["last"][1]["at"]
    assert all(LOAD_SECONDS <= swap["load_seconds"] < 5 for swap in swaps["last"])


async def test_each_load_is_a_swap_also_after_an_unloading(r: Rig, place: Place):
    """What was unloaded by foreman's hand, or in passing, is resident no more, and its next load is ahead."""

    async def resident() -> list[str]:
        return [each["name"] for each in (await queue(r))["resident"]]

    await r.ask("/api/chat", chat("alpha"))
    await until(lambda: r.parts.inventory.loaded)
    assert await resident() == ["alpha:latest"]
    unload = await r.ask("/api/generate", {"model": "alpha", "keep_alive": 0})
    assert unload.json()["done_reason"] == "unload"
    assert await resident() == []
    await r.ask("/api/chat", chat("alpha"))
    # The first of them finds it loaded; the others come at once, before anything could be read anew.
    calls = [await r.begin("/api/chat", chat("alpha", keep_alive=0)) for _ in range(4)]
    for call in calls:
        assert (await r.wait(call)).status == 200
    assert await resident() == []
    d = Durable(r)
    for _ in range(2):
        assert (await d.end(await d.submit(chat("alpha", keep_alive="0s"))))["status"] == "succeeded"
    assert await resident() == []
    report = await queue(r)
    assert len(place.fake.loads) == 7
    assert report["swaps"]["day"] == {"done": 7, "avoided": 0}
    assert all(LOAD_SECONDS <= swap["load_seconds"] < 5 for swap in report["swaps"]["last"])
    assert all(line.load_seconds >= LOAD_SECONDS for line in r.turns if line.load_seconds)
    # Once more, and read by the target's own word.
    await until(lambda: not r.parts.inventory._polls._busy)
    await r.parts.inventory.refresh()
    assert await resident() == []


async def test_an_unload_form_during_a_run(r: Rig, place: Place):
    """It is applied after what runs, and until then the model is loaded."""
    holder = await r.hold("alpha")
    await until(lambda: r.parts.inventory.loaded)
    await r.ask("/api/generate", {"model": "alpha", "keep_alive": 0})
    assert len((await queue(r))["resident"]) == 1
    assert r.turn.holders[0].key in r.turn._keys.resident()
    place.fake.release()
    await r.wait(holder)


async def test_an_unload_form_that_is_refused(r: Rig, place: Place):
    """The model stays."""
    await r.ask("/api/chat", chat("alpha"))
    await until(lambda: r.parts.inventory.loaded)
    place.fake.fail("/api/generate", 500, "no")
    assert (await r.ask("/api/generate", {"model": "alpha", "keep_alive": 0})).status == 500
    assert len((await queue(r))["resident"]) == 1


async def test_a_pause_that_unloads(r: Rig, place: Place):
    """When it is done, nothing is shown as resident; after the resume the load is a swap."""
    await r.ask("/api/chat", chat("alpha"))
    await until(lambda: r.parts.inventory.loaded)
    await r.ask("/queue/pause", {"unload": True})
    while True:
        report = await queue(r)
        if report["paused"]["durable"]["unload"] == "done":
            break
    assert report["resident"] == []
    await r.ask("/queue/resume", {})
    await r.ask("/api/chat", chat("alpha"))
    assert (await queue(r))["swaps"]["day"]["done"] == len(place.fake.loads) == 2


async def test_two_values_of_an_option(r: Rig):
    """Ten reloads because of them, and there is advice; not one earlier."""
    for number in range(10):
        await r.ask("/api/chat", chat("alpha", options={"num_ctx": (2048, 8192)[number % 2]}))
    assert (await queue(r))["advice"] == []
    await r.ask("/api/chat", chat("alpha", options={"num_ctx": 2048}))
    (advice,) = (await queue(r))["advice"]
    words = "two lines of alpha differ only in num_ctx (2048, 8192): 10 reloads today, "
    assert advice["code"] == "options_differ"
    assert advice["text"].startswith(words)
    assert advice["text"].endswith("; set one value")


async def test_somebody_else_at_the_target(r: Rig, place: Place):
    """A model that foreman did not load is a stranger's, an embedding model nobody knows whose."""
    fake = place.fake
    fake.slots = fake.gpu.slots = 3
    await r.ask("/api/chat", chat("alpha"))

    async def nothing() -> None:
        """It is loaded, and that is all."""

    for name in ("beta", "embed"):
        await fake.gpu.use(fake.find(name), {}, None, nothing)
    await r.parts.inventory.refresh()
    report = await queue(r)
    assert {each["name"]: each["loaded_by_foreman"] for each in report["resident"]} == {
        "alpha:latest": True,
        "beta:latest": False,
        "embed:latest": None,
    }
    (advice,) = report["advice"]
    words = "a model is resident that foreman did not load: somebody uses the target directly (beta:latest)"
    assert advice == {"code": "target_used_directly", "text": words}


async def test_what_jobs_wait_for(r: Rig, place: Place):
    """In words and data, while a chat holds the turn."""
    d = Durable(r)
    await r.hold("alpha")
    next_one, behind = await d.submit(chat("alpha")), await d.submit(chat("beta"))
    running, line = await why(d, next_one), await why(d, behind)
    assert (running["reason"], running["model"], running["job_id"]) == ("running_job", "alpha", r.turn.holder)
    assert 3590 <= line["overdue_in_seconds"] <= 3600
    assert {name: line[name] for name in ("reason", "model", "ahead", "swaps_ahead")} == {
        "reason": "model_line",
        "model": "beta",
        "ahead": 1,
        "swaps_ahead": 1,
    }
    shown = await d.show(behind)
    assert shown["queue_position"] == 2
    assert 1 < shown["eta_seconds"] < 60
    later = await d.submit(chat("alpha"), run_at=format_moment(reactor.seconds() + 3600))
    missing = await d.submit(chat("gamma"), start_within="1h")
    assert (await why(d, later))["reason"] == "run_at"
    assert (await why(d, missing))["reason"] == "model_missing"
    await r.ask("/queue/pause", {"lane": "durable", "for": "1h"})
    paused = await why(d, behind)
    assert (paused["reason"], paused["lane"]) == ("lane_paused", "durable")
    assert paused["until"] == (await queue(r))["paused"]["durable"]["until"]
    assert 3600 < (await d.show(behind))["eta_seconds"] < 3700


async def test_what_jobs_wait_for_when_the_target_goes(r: Rig, place: Place, monkeypatch: pytest.MonkeyPatch):
    """The one that ran waits for the end of its backoff, the others for the target."""
    monkeypatch.setattr(failures, "BACKOFF_FIRST_SECONDS", 600.0)
    d = Durable(r)
    place.fake.hold("/api/chat")
    ran, behind = await d.submit(chat("alpha")), await d.submit(chat("alpha"))
    await until(lambda: place.fake._gates)
    await place.vanish()
    place.fake.release()
    await until(lambda: not r.parts.reachability.up)
    # The end of the one may not be written yet, and the other one was about to be tried.
    await d.waits_for(ran, "backoff")
    await d.waits_for(behind, "target_unreachable")
    backoff, away = await why(d, ran), await why(d, behind)
    assert (backoff["reason"], backoff["until"]) == ("backoff", (await d.show(ran))["not_before"])
    assert away["reason"] == "target_unreachable"
    assert "connection refused" in away["text"]
    shown = await d.show(behind)
    assert (shown["queue_position"], shown["eta_seconds"]) == (1, None)


async def test_what_is_measured_is_remembered(tmp_path: Path, place: Place):
    """A restart expects of a model what the life before has measured, without running it again."""
    place.fake.token_interval = 0.1
    async with rig(tmp_path, place.fake, place.number) as r:
        d = Durable(r)
        await d.end(await d.submit(chat("beta")))
        await d.end(await d.submit(chat("alpha")))
    async with rig(tmp_path, place.fake, place.number) as r:
        d = Durable(r)
        await r.hold("alpha")
        jobs = [await d.submit(chat("beta")) for _ in range(3)]
        etas = [(await d.show(job_id))["eta_seconds"] for job_id in jobs]
        # Four pauses between the tokens and the end; rounded, and what is behind was asked for later.
        assert 0.15 < etas[1] - etas[0] < 1.2
        assert 0.15 < etas[2] - etas[1] < 1.2
        place.fake.release()
        for job_id in jobs:
            await d.end(job_id)
