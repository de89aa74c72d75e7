"""FOREMAN_PARALLEL on the wire: jobs of one model run at once, two models never do."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_twisted
from durable_client import Durable, Place, asked_of, saying
from turn_rig import chat, reactor, rig, until

from foreman.testing.ollama import FakeOllama


@pytest_twisted.async_yield_fixture
async def place() -> AsyncIterator[Place]:
    """A target that runs four requests at once."""
    place = Place(FakeOllama(reactor, slots=4))
    place.begin()
    yield place
    await place.vanish()


async def test_durable_jobs_and_chats_of_one_model_run_at_once(tmp_path: Path, place: Place):
    """Three at the target with a width of three, of both lanes; another model waits until they have ended."""
    fake = place.fake
    async with rig(tmp_path, fake, place.number, parallel="3") as r:
        d = Durable(r)
        fake.hold("/api/chat")
        jobs = [await d.submit(saying("alpha", f"job {n}")) for n in range(4)]
        await until(lambda: len(fake._gates) == 3, "three jobs are at the target")
        other = await r.begin("/api/chat", chat("beta"))
        chat_call = await r.begin("/api/chat", chat("alpha"))
        await until(lambda: r.turn.waiting == 3, "a job and both chats wait")
        assert {grant.key for grant in r.turn.holders} == {r.turn.holders[0].key}
        fake.release()
        for job in jobs:
            assert (await d.end(job))["status"] == "succeeded"
        assert [(await r.wait(call)).status for call in (chat_call, other)] == [200, 200]
        assert fake.loads == ["alpha:latest", "beta:latest"]
        await until(lambda: r.turn.free)


async def test_a_batch_runs_to_its_end_as_many_at_once_as_may(tmp_path: Path, place: Place):
    """A place that one leaves is the next one's, while others are being claimed: none of them runs twice."""
    fake = place.fake
    async with rig(tmp_path, fake, place.number, parallel="4") as r:
        d = Durable(r)
        fake.hold("/api/chat")
        jobs = [await d.submit(saying("alpha", f"job {n}")) for n in range(30)]
        await until(lambda: len(fake._gates) == 4, "four jobs are at the target")
        fake.release()
        shown = [await d.end(job) for job in jobs]
        assert {(job["status"], job["attempt"]) for job in shown} == {("succeeded", 1)}
        assert sorted(asked_of(fake)) == sorted(f"job {n}" for n in range(30))
        assert fake.loads == ["alpha:latest"]
        assert r.turn.free
