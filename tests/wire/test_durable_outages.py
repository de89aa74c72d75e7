"""A target that is absent, vanishes or is busy: its durable jobs wait, burn no attempt, and go on alone."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_twisted
from durable_client import Durable, Place, asked_of, saying
from turn_rig import reactor, rig, until

from foreman.target import reachability
from foreman.testing.ollama import FakeOllama
from foreman.worker import failures, worker

PAUSE_SECONDS = 0.05


@pytest_twisted.async_yield_fixture
async def place(monkeypatch: pytest.MonkeyPatch, port_number: int) -> AsyncIterator[Place]:
    """A target that does not listen yet. Pauses, probes and backoffs begin at a twentieth of a second."""
    monkeypatch.setattr(reachability, "FIRST_DELAY_SECONDS", PAUSE_SECONDS)
    monkeypatch.setattr(worker, "PAUSE_FIRST_SECONDS", PAUSE_SECONDS)
    monkeypatch.setattr(failures, "BACKOFF_FIRST_SECONDS", PAUSE_SECONDS)
    place = Place(FakeOllama(reactor, slots=1), port_number)
    yield place
    await place.vanish()


async def succeed(d: Durable, jobs: list[str], attempts: list[int] | None = None) -> None:
    """All of them end well, by themselves, with so many attempts: one each unless told otherwise."""
    ended = [await d.end(job) for job in jobs]
    assert [job["status"] for job in ended] == ["succeeded"] * len(jobs)
    assert [job["attempt"] for job in ended] == (attempts or [1] * len(jobs))
    assert [len(job["errors"]) for job in ended] == [job["attempt"] - 1 for job in ended]
    assert [job["interruptions"] for job in ended] == [0] * len(jobs)


async def test_absent_at_the_start(tmp_path: Path, place: Place):
    """Jobs are taken before the target was ever seen, say what they wait for, and run when it is there."""
    async with rig(tmp_path, place.fake, place.number, known=False) as r:
        d = Durable(r)
        jobs = [await d.submit(saying(("alpha", "beta")[n % 2], f"job {n}")) for n in range(6)]
        await until(lambda: not r.parts.reachability.up)
        job = await d.waits_for(jobs[0], "target_unreachable")
        assert (job["status"], job["attempt"], job["started_at"]) == ("queued", 0, None)
        assert "target_unreachable" in await r.reasons()
        place.begin()
        await succeed(d, jobs)
        assert len(place.fake.loads) == 2
        assert len(asked_of(place.fake)) == 6


async def test_vanishing_while_jobs_wait(tmp_path: Path, place: Place):
    """The one that ran used an attempt and runs again after its backoff; those that waited used none."""
    place.begin()
    fake = place.fake
    async with rig(tmp_path, fake, place.number) as r:
        d = Durable(r)
        fake.hold("/api/chat")
        jobs = [await d.submit(saying("alpha", f"job {n}")) for n in range(4)]
        await until(lambda: fake._gates)
        await place.vanish()
        fake.release()
        await until(lambda: not r.parts.reachability.up)
        jobs.append(await d.submit(saying("beta", "while it is away")))
        for job in jobs:  # the end of the one that ran, and the way back of the next, may not be written yet
            await d.until(job, lambda job: job["status"] == "queued")
        # The probes' pauses grow: at least two of them find nobody.
        await until(lambda: r.parts.reachability._delay >= 4 * PAUSE_SECONDS)
        place.begin()
        await succeed(d, jobs, [2, 1, 1, 1, 1])
        first = await d.show(jobs[0])
        assert [error["code"] for error in first["errors"]] == ["target_failed"]


async def test_busy_for_a_while(tmp_path: Path, place: Place):
    """503: the job goes back, the lane pauses for longer each time, nobody else is sent meanwhile."""
    place.begin()
    fake = place.fake
    fake.fail("/api/chat", 503, "server busy", times=None)
    async with rig(tmp_path, fake, place.number) as r:
        d = Durable(r)
        jobs = [await d.submit(saying("alpha", f"job {n}")) for n in range(5)]
        await until(lambda: len(fake.seen("/api/chat")) == 4)
        job = await d.until(jobs[0], lambda job: job["status"] == "queued")
        assert (job["attempt"], job["errors"]) == (0, [])
        at = [exchange.at for exchange in fake.seen("/api/chat")]
        for number in range(3):
            assert at[number + 1] - at[number] >= PAUSE_SECONDS * 2**number
        refused = len(fake.seen("/api/chat"))  # on a slow machine there is time for more
        fake.heal()
        await succeed(d, jobs)
        assert asked_of(fake) == ["job 0"] * refused + [f"job {n}" for n in range(5)]
