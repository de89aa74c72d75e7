"""Durable jobs on the wire, from `POST /jobs` to the result: what is told, and what the target sees."""

import hashlib
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from durable_client import Durable, Place, asked_of, saying
from turn_rig import SOON_SECONDS, Call, Rig, chat, content, reactor, rig, until
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

from foreman.jobs import database
from foreman.testing.ollama import FakeOllama


@pytest_twisted.async_yield_fixture
async def place() -> AsyncIterator[Place]:
    """A target with room for one model."""
    place = Place(FakeOllama(reactor, slots=1))
    place.begin()
    yield place
    await place.vanish()


@pytest_twisted.async_yield_fixture
async def d(tmp_path: Path, place: Place) -> AsyncIterator[Durable]:
    """The daemon with its defaults, its target's models known."""
    async with rig(tmp_path, place.fake, place.number) as r:
        yield Durable(r)


async def test_a_job_is_taken_runs_and_is_fetched(d: Durable, place: Place):
    """202 with where to look; then the result, inlined, and each artifact by its URL, as its digest says."""
    asked = {**chat("alpha", options={"temperature": 0}), "job": {"metadata": {"ticket": "42"}}}
    call = await d.r.ask("/jobs", asked)
    receipt = call.json()
    assert call.status == 202
    assert call.headers["location"] == receipt["urls"]["self"] == f"/jobs/{receipt['job_id']}"
    assert int(call.headers["retry-after"]) >= 1
    job = await d.end(receipt["job_id"])
    assert (job["status"], job["attempt"], job["errors"], job["error"]) == ("succeeded", 1, [], None)
    assert job["metadata"] == {"ticket": "42"}
    assert job["result"]["message"]["content"] == "The rain falls."
    assert job["result"]["done"] is True
    assert job["metrics"]["completion_tokens"] == 4
    assert {one["name"] for one in job["artifacts"]} == {"response.json", "content.txt"}
    for artifact in job["artifacts"]:
        raw = await d.r.ask(artifact["url"])
        assert (raw.status, len(raw.body)) == (200, artifact["size"])
        assert hashlib.sha256(raw.body).hexdigest() == artifact["sha256"]
        assert raw.body.decode() == artifact["content"]
    # The target got the body without foreman's own fields, as a stream.
    (exchange,) = place.fake.seen("/api/chat")
    sent = json.loads(exchange.body)
    assert sent.pop("stream", True) is True
    assert sent == chat("alpha", options={"temperature": 0})


async def test_forty_jobs_on_two_models_are_two_loads(d: Durable, place: Place):
    """
    20 and 20, alternating. A chat with the model that is loaded starts right after the job that runs; one
    with the other model, which is not overdue, when that model is loaded for the jobs.
    """
    fake = place.fake
    fake.gpu.load_seconds = 0.02
    fake.hold("/api/chat")
    jobs = [await d.submit(saying(("alpha", "beta")[n % 2], f"job {n}")) for n in range(40)]
    await until(lambda: fake._gates)
    other = await d.r.begin("/api/chat", saying("beta", "chat beta"))
    resident = await d.r.begin("/api/chat", saying("alpha", "chat alpha"))
    await until(lambda: d.r.turn.waiting == 41)
    fake.release()
    assert [(await d.end(job))["status"] for job in jobs] == ["succeeded"] * 40
    assert [(await d.r.wait(call)).status for call in (resident, other)] == [200, 200]
    assert fake.loads == ["alpha:latest", "beta:latest"]
    alphas, betas = ([f"job {n}" for n in range(first, 40, 2)] for first in (0, 1))
    order = asked_of(fake)
    assert order == [alphas[0], "chat alpha", *alphas[1:], betas[0], "chat beta", *betas[1:]]


async def test_an_overdue_chat_goes_before_all_jobs(tmp_path: Path, place: Place):
    """After FOREMAN_INTERACTIVE_MAX_WAIT a chat with another model is next, which costs a swap."""
    fake = place.fake
    async with rig(tmp_path, fake, place.number, interactive_max_wait="20ms") as r:
        d = Durable(r)
        fake.hold("/api/chat")
        jobs = [await d.submit(saying("alpha", f"job {n}")) for n in range(4)]
        await until(lambda: fake._gates)
        chat_call = await r.begin("/api/chat", saying("beta", "chat"))
        began = reactor.seconds()
        await until(lambda: r.turn.waiting == 4 and reactor.seconds() > began + 0.03)
        fake.release()
        for job in jobs:
            assert (await d.end(job))["status"] == "succeeded"
        assert (await r.wait(chat_call)).status == 200
        assert asked_of(fake) == ["job 0", "chat", "job 1", "job 2", "job 3"]
        assert fake.loads == ["alpha:latest", "beta:latest", "alpha:latest"]


async def test_cancel_while_it_waits(d: Durable, place: Place):
    """`cancelled` at once, twice is safe, and the target never sees it."""
    held = await d.r.hold()
    job_id = await d.submit(saying("alpha", "never"))
    assert (await d.show(job_id))["queue_position"] == 1
    for _ in range(2):
        call = await d.act(job_id, "cancel")
        assert (call.status, call.json()["status"]) == (200, "cancelled")
    place.fake.release()
    await d.r.wait(held)
    last = await d.submit(saying("alpha", "last"))
    await d.end(last)
    assert asked_of(place.fake) == ["rain?", "last"]


async def test_cancel_while_it_runs(d: Durable, place: Place):
    """The target's connection is closed, the partial text is kept, and the next job starts."""
    fake = place.fake
    fake.token_interval = 60
    job_id = await d.submit()
    job = await d.until(job_id, lambda job: job["progress"] and job["progress"]["tokens"])
    assert job["status"] == "running"
    waiting = await d.submit(saying("alpha", "next"))
    fake.token_interval = 0.0
    asked_at = reactor.seconds()
    assert (await d.act(job_id, "cancel")).status == 200
    job = await d.end(job_id)
    assert (job["status"], job["attempt"]) == ("cancelled", 1)
    assert job["cancel_requested_at"] is not None
    texts = {artifact["name"]: artifact["content"] for artifact in job["artifacts"]}
    assert texts["content.txt"] == "The"
    await until(lambda: fake.aborted)
    assert fake.aborted[0].aborted_at - asked_at < SOON_SECONDS
    assert (await d.end(waiting))["status"] == "succeeded"


async def test_retry_and_delete(d: Durable, place: Place):
    """
    A refused job fails at once, and a retry under its id keeps the history; what waits or runs is neither
    retried nor deleted; what was deleted is 410 with a tombstone.
    """
    fake = place.fake
    fake.fail("/api/chat", 400, "no such thing")
    job_id = await d.submit()
    job = await d.end(job_id)
    assert (job["status"], job["attempt"], job["error"]["code"]) == ("failed", 1, "target_refused")
    assert job["error"]["target_status"] == 400
    assert "no such thing" in job["error"]["target_body"]
    fake.hold("/api/chat")
    assert (await d.act(job_id, "retry")).status == 202
    await d.running(job_id)
    for call in (await d.act(job_id, "retry"), await d.r.ask(f"/jobs/{job_id}", None, "DELETE")):
        assert (call.status, call.json()["code"]) == (409, "job_unfinished")
    fake.release()
    job = await d.end(job_id)
    assert (job["status"], job["error"]) == ("succeeded", None)
    assert [error["code"] for error in job["errors"]] == ["target_refused"]
    assert (await d.r.ask(f"/jobs/{job_id}", None, "DELETE")).status == 204
    for path in (f"/jobs/{job_id}", f"/jobs/{job_id}/artifacts/content.txt"):
        gone = await d.r.ask(path)
        assert (gone.status, gone.json()["code"]) == (410, "job_gone")
    assert (await d.r.ask(f"/jobs/{job_id}")).json()["job"]["status"] == "succeeded"


async def test_a_list_goes_on_page_by_page(d: Durable):
    """Newest first, every job once, filtered by state and model."""
    jobs = [await d.submit(chat(("alpha", "beta")[n % 2])) for n in range(7)]
    for job in jobs:
        await d.end(job)
    found, after, pages = [], "", 0
    while pages == 0 or after:
        page = (await d.r.ask(f"/jobs?limit=3&after={after}")).json()
        found += [job["job_id"] for job in page["jobs"]]
        after, pages = page["next"], pages + 1
    assert pages == 3
    assert found == sorted(jobs, reverse=True)
    page = (await d.r.ask("/jobs?status=succeeded&model=beta")).json()
    assert {job["job_id"] for job in page["jobs"]} == set(jobs[1::2])
    assert (await d.r.ask("/jobs?status=failed")).json() == {"jobs": [], "next": None}


async def test_embeddings_pass_the_turn_by(tmp_path: Path):
    """A durable embedding job ends while a chat holds the turn; its vectors are an artifact."""
    place = Place(FakeOllama(reactor, slots=2))  # the turn is the only thing to wait for
    place.begin()
    async with rig(tmp_path, place.fake, place.number) as r:
        d = Durable(r)
        held = await r.hold()
        job = await d.end(await d.submit({"model": "alpha", "input": ["a", "b"]}))
        assert (job["status"], job["endpoint"]) == ("succeeded", "/api/embed")
        assert len(job["result"]["embeddings"]) == 2
        raw = await r.ask(f"/jobs/{job['job_id']}/artifacts/embeddings.json")
        assert raw.json() == [[0.6, -0.8]] * 2
        assert not held.received
    await place.vanish()


async def test_a_model_that_is_not_there(d: Durable, place: Place):
    """404 at once; with `start_within` the job waits, lets others pass, and runs after a pull."""
    call = await d.r.ask("/jobs", chat("gamma"))
    assert (call.status, call.json()["code"]) == (404, "model_not_found")
    job_id = await d.submit(saying("gamma", "patient"), start_within="1h")
    assert (await d.end(await d.submit(saying("alpha", "passes"))))["status"] == "succeeded"
    job = await d.show(job_id)
    assert (job["status"], job["waiting_for"]["reason"]) == ("queued", "model_missing")
    assert (await d.r.ask("/api/pull", {"model": "gamma"})).status == 200
    job = await d.end(job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    assert asked_of(place.fake) == ["passes", "patient"]


@pytest.mark.parametrize("away", [False, True])
async def test_a_restart_while_a_job_waits_for_its_model(tmp_path: Path, place: Place, away: bool):
    """It is no failure that the models were not read yet, be the target there or come back later."""
    async with rig(tmp_path, place.fake, place.number) as r:
        job_id = await Durable(r).submit(saying("gamma", "patient"), start_within="1h")
        await Durable(r).waits_for(job_id, "model_missing")
    if away:
        await place.vanish()
    place.fake.hold("/api/tags")
    async with rig(tmp_path, place.fake, place.number, known=False) as r:
        d = Durable(r)
        if away:
            await until(lambda: not r.parts.reachability.up)
            place.begin()
        await until(lambda: place.fake.seen("/api/chat"), "it was tried")
        await d.until(job_id, lambda job: job["status"] == "queued" and job["started_at"] is None)
        place.fake.release()
        await d.waits_for(job_id, "model_missing")
        assert len(asked_of(place.fake)) == 1
        assert (await r.ask("/api/pull", {"model": "gamma"})).status == 200
        job = await d.end(job_id)
    assert (job["status"], job["attempt"], job["errors"]) == ("succeeded", 1, [])


async def test_a_restart_goes_on(tmp_path: Path, place: Place):
    """What waited waits, what ran runs again, counted as an interruption and not as an attempt."""
    fake = place.fake
    fake.hold("/api/chat")
    async with rig(tmp_path, fake, place.number, stop_grace="50ms") as r:
        d = Durable(r)
        jobs = [await d.submit(saying("alpha", f"job {n}")) for n in range(3)]
        await until(lambda: fake._gates)
        await r.foreman.stopService()
    async with rig(tmp_path, fake, place.number) as r:
        ended = [await Durable(r).end(job) for job in jobs]
    assert [job["status"] for job in ended] == ["succeeded"] * 3
    assert [job["interruptions"] for job in ended] == [1, 0, 0]
    assert [job["attempt"] for job in ended] == [1, 1, 1]
    assert asked_of(fake) == ["job 0", "job 0", "job 1", "job 2"]


@pytest.mark.parametrize(
    ("body", "status", "code", "pointers"),
    [
        (b"model=alpha", 400, "not_json", None),
        (b"", 400, "not_json", None),
        (b"[1]", 400, "not_an_object", None),
        ({"model": 7, "prompt": "x", "state_webhook_url": "ftp://x"}, 422, "invalid_fields", 2),
        ({"model": "alpha"}, 422, "invalid_fields", 1),
        (chat("alpha", job={"prio": 1, "timeout": "soon", "max_attempts": 0}), 422, "invalid_fields", 3),
    ],
)
async def test_bad_input_is_refused(d: Durable, body: Any, status: int, code: str, pointers: int | None):
    """As a problem with a code; every bad field at once, by its pointer; nothing is kept."""
    call = await d.r.ask("/jobs", body)
    problem = call.json()
    assert call.headers["content-type"] == "application/problem+json"
    assert (call.status, problem["status"], problem["code"]) == (status, status, code)
    assert len({error["pointer"] for error in problem["errors"]} if pointers else ()) == (pointers or 0)
    assert (await d.r.ask("/jobs")).json()["jobs"] == []


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path, place: Place):
    """413 when the head is there, by FOREMAN_JOB_BODY_LIMIT and not by the limit of native bodies."""
    async with rig(tmp_path, place.fake, place.number, job_body_limit="1KiB") as r:
        head = b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 1025\r\n\r\n"
        call = Call(head)
        r.calls.append(call)
        await connectProtocol(TCP4ClientEndpoint(reactor, *r.address), call)
        await r.wait(call)
        assert (call.status, call.json()["code"]) == (413, "body_too_large")
        assert "FOREMAN_JOB_BODY_LIMIT" in call.json()["detail"]
        large = chat("alpha", system="x" * 1025)
        assert len(content(large)) > 1024
        assert (await r.ask("/api/chat", large)).status == 200


async def unharmed(r: Rig) -> None:
    """Interactive requests and reads of jobs go on."""
    assert (await r.ask("/api/chat", chat("alpha"))).status == 200
    assert (await r.ask("/jobs")).status == 200


async def test_a_full_disk_takes_no_job(d: Durable):
    """507 from SQLite's own "database or disk is full"; chats go on, and so do jobs when there is room."""
    kept = await d.end(await d.submit())
    writer = d.r.parts.store._pools.writer

    async def limit(pages: int | None) -> None:
        pages = pages or (await writer.runWithConnection(_pragma, "page_count"))
        await writer.runWithConnection(_pragma, f"max_page_count = {pages}")

    await limit(None)
    large = chat("alpha", system="x" * 100_000)
    call = await d.r.ask("/jobs", large)
    assert (call.status, call.json()["code"]) == (507, "database_full")
    await unharmed(d.r)
    await limit(1 << 30)
    assert (await d.end(await d.submit(large)))["status"] == "succeeded"
    listed = (await d.r.ask("/jobs")).json()["jobs"]
    assert len(listed) == 2
    assert listed[-1]["job_id"] == kept["job_id"]


def _pragma(connection: sqlite3.Connection, text: str) -> int:
    return int(connection.execute(f"PRAGMA {text}").fetchone()[0])


async def test_a_database_that_cannot_be_written_takes_no_job(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
):
    """503 while another program has it locked; chats go on, and afterwards jobs are taken again."""
    monkeypatch.setattr(database, "_BUSY_MS", 20)
    async with rig(tmp_path, place.fake, place.number) as r:
        await unharmed(r)  # foreman has begun to serve
        other = sqlite3.connect(tmp_path / "foreman.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        call = await r.ask("/jobs", chat("alpha"))
        assert (call.status, call.json()["code"]) == (503, "database_unavailable")
        await unharmed(r)
        other.execute("ROLLBACK")
        other.close()
        d = Durable(r)
        assert (await d.end(await d.submit()))["status"] == "succeeded"
