"""Pausing and resuming over HTTP; what is scheduled, and what is too much."""

from collections.abc import Iterator
from typing import Any

import pytest
from web_jobs_bench import NOW, Bench, make_bench

from foreman.jobs.model import Pause
from foreman.scheduler.policy import Lane

SINCE = "2027-01-15T08:00:00.250Z"
FREE: dict[str, Any] = {"since": SINCE, "until": None, "unload": None}


@pytest.fixture
def bench() -> Iterator[Bench]:
    with make_bench() as bench:
        yield bench
        bench.wait(bench.hands.pauses.stop())


@pytest.mark.parametrize("body", [b"", b" \r\n", {}, {"lane": "all"}, {"lane": None, "for": None}])
def test_everything(bench: Bench, body: Any) -> None:
    """An empty body means both lanes, until somebody resumes them."""
    reply = bench.ask("POST", "/queue/pause", body, content_type="text/plain")
    assert (reply.status, reply.header("cache-control")) == (200, "no-store")
    assert reply.json == {"paused": {"interactive": FREE, "durable": FREE}}
    assert bench.hands.worker.puts_back == 0
    reply = bench.ask("POST", "/queue/resume", b"" if isinstance(body, bytes) else {"lane": body.get("lane")})
    assert (reply.status, reply.json) == (200, {"paused": {}})


def test_one_lane_for_a_while(bench: Bench) -> None:
    """It is on disk before the answer; resuming the other lane is no error."""
    reply = bench.ask(
        "POST", "/queue/pause", {"lane": "durable", "for": "1h30m", "now": True, "unload": True}
    )
    shown = {"since": SINCE, "until": "2027-01-15T09:30:00.250Z", "unload": "waiting"}
    assert reply.json == {"paused": {"durable": shown}}
    assert list(bench.wait(bench.store.pauses())) == [Pause("durable", NOW, NOW + 5400, True)]
    assert bench.hands.worker.puts_back == 1
    assert bench.ask("POST", "/queue/resume", {"lane": "interactive"}).json == {"paused": {"durable": shown}}
    bench.hands.turn.idle[0].callback(None)
    bench.hands.unloader.works[0].callback(True)
    shown["unload"] = "done"
    reply = bench.ask("POST", "/queue/pause", {"lane": "interactive", "now": False})
    assert reply.json == {"paused": {"durable": shown, "interactive": FREE}}
    assert bench.ask("POST", "/queue/resume", {"lane": "durable"}).json == {"paused": {"interactive": FREE}}
    assert set(bench.hands.turn.paused) == {Lane.INTERACTIVE}


@pytest.mark.parametrize(
    ("body", "pointers", "word"),
    [
        (b"lane=durable", [""], "JSON object"),
        (b"{", [""], "JSON object"),
        (b"[" * 100_000, [""], "65536"),
        (b"[" * 60_000, [""], "JSON object"),
        (b"null", [""], "JSON object"),
        (b'["durable"]', [""], "JSON object"),
        (b'{"x":"' + b"x" * 70_000 + b'"}', [""], "65536"),
        ({"lane": "batch"}, ["/lane"], '"interactive" or "durable" or "all"'),
        ({"lane": ["durable"]}, ["/lane"], "durable"),
        ({"for": 7200}, ["/for"], "duration such as 30s"),
        ({"for": "0s"}, ["/for"], "more than zero"),
        ({"for": "-2h"}, ["/for"], "duration"),
        ({"for": "9000h"}, ["/for"], "8784h"),
        ({"unload": "yes"}, ["/unload"], "true or false"),
        ({"now": 1}, ["/now"], "true or false"),
        ({"Lane": "all"}, ["/Lane"], "no field: those are lane, for, unload, now"),
        ({"a/b": 1, "unload": 0, "lane": "x"}, ["/a~1b", "/unload", "/lane"], ""),
    ],
)
def test_bad_bodies(bench: Bench, body: Any, pointers: list[str], word: str) -> None:
    """422 with every complaint and its pointer; nothing is paused."""
    reply = bench.ask("POST", "/queue/pause", body)
    assert (reply.status, reply.problem["code"]) == (422, "invalid_fields")
    assert [error["pointer"] for error in reply.problem["errors"]] == pointers
    assert word in reply.problem["errors"][0]["detail"]
    assert not bench.hands.turn.paused
    assert not bench.wait(bench.store.pauses())


def test_resume_knows_the_lane_only(bench: Bench) -> None:
    """A pause's other fields are refused there."""
    reply = bench.ask("POST", "/queue/resume", {"for": "2h"})
    assert reply.problem["errors"] == [{"pointer": "/for", "detail": "is no field: those are lane"}]


def test_other_methods(bench: Bench) -> None:
    """Only POST changes something."""
    for path in ("/queue/pause", "/queue/resume"):
        reply = bench.ask("GET", path)
        assert (reply.status, reply.header("allow")) == (405, "POST")


def test_jobs_are_taken_while_their_lane_is_paused(bench: Bench) -> None:
    """They wait."""
    bench.ask("POST", "/queue/pause", {"lane": "all"})
    assert bench.show(bench.submit())["status"] == "queued"


def test_run_at(bench: Bench) -> None:
    """A job is scheduled until its moment, told of both, and queued from then on; a past one is queued."""
    url = "http://10.0.0.5/hook"
    body = {"state_webhook_url": url}
    job_id = bench.submit(body, run_at="2027-01-15T09:01:00+01:00", start_within="10s")
    shown = bench.show(job_id)
    assert (shown["status"], shown["queue_position"]) == ("scheduled", None)
    assert shown["waiting_for"]["reason"] == "run_at"
    assert (shown["run_at"], shown["start_deadline"]) == (
        "2027-01-15T08:01:00.000Z",
        "2027-01-15T08:01:10.000Z",
    )
    bench.clock.advance(59.75)
    bench.wait(bench.store.due(bench.clock.seconds()))
    assert bench.show(job_id)["status"] == "queued"
    reply = bench.ask("GET", f"/jobs/{job_id}/deliveries")
    assert [one["type"] for one in reply.json["deliveries"]] == ["job.scheduled", "job.queued"]
    assert bench.show(bench.submit(run_at="2001-01-01T00:00:00Z"))["status"] == "queued"


def test_too_many(bench: Bench) -> None:
    """429 with Retry-After for one more than may wait, and for an ended one that is to come back."""
    bench.store._changes._queue_limit = 2
    ended = bench.submit()
    bench.ask("POST", f"/jobs/{ended}/cancel")
    bench.submit()
    bench.submit(run_at="2027-01-15T09:00:00Z")
    for path, body in (("/jobs", {"model": "m", "prompt": "p"}), (f"/jobs/{ended}/retry", None)):
        reply = bench.ask("POST", path, body)
        assert (reply.status, reply.problem["code"], reply.header("retry-after")) == (429, "queue_full", "30")
        assert reply.problem["detail"] == (
            "2 jobs wait already, the limit of FOREMAN_QUEUE_LIMIT: hand it in again in a while"
        )
