"""Submitting jobs over HTTP, and looking at one."""

import base64
import hashlib
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from web_jobs_bench import EVERY_FIELD, NOW, UNKNOWN, Bench, make_bench

from foreman.jobs.model import AttemptError, Metrics, Retention, Transition
from foreman.web.app import App
from foreman.worker.attempt import Progress


@pytest.fixture
def bench() -> Iterator[Bench]:
    with make_bench() as bench:
        yield bench


def test_submit(bench: Bench) -> None:
    """202 with its place, and where to ask; nothing of it depends on the Host."""
    reply = bench.ask("POST", "/jobs", {"model": "m", "prompt": "p"}, content_type="text/plain")
    job_id = reply.json["job_id"]
    assert reply.status == 202
    assert reply.json == {
        "job_id": job_id,
        "status": "queued",
        "queue_position": 1,
        "created_at": "2027-01-15T08:00:00.250Z",
        "urls": {
            "self": f"/jobs/{job_id}",
            "cancel": f"/jobs/{job_id}/cancel",
            "retry": f"/jobs/{job_id}/retry",
            "deliveries": f"/jobs/{job_id}/deliveries",
        },
    }
    assert (reply.header("location"), reply.header("retry-after")) == (f"/jobs/{job_id}", "1")
    assert reply.header("cache-control") == "no-store"
    assert reply.header("server") is None


def test_what_is_stored(bench: Bench) -> None:
    """The native body less foreman's own fields, as it was."""
    body = b'{"model":"m",  "prompt":"\xc3\xa9\\u2028", "job":{"priority":2}}'
    job_id = bench.ask("POST", "/jobs", body).json["job_id"]
    assert bench.claim(job_id).body == b'{"model":"m",  "prompt":"\xc3\xa9\\u2028"}'


def test_retry_after_grows_with_the_line(bench: Bench) -> None:
    """A second for each job ahead, at most half a minute."""
    seen = []
    for _ in range(40):
        reply = bench.ask("POST", "/jobs", {"model": "m", "prompt": "p"})
        seen.append((reply.json["queue_position"], int(reply.header("retry-after") or 0)))
    assert seen == [(n, min(n, 30)) for n in range(1, 41)]


def test_position_is_by_priority(bench: Bench) -> None:
    """A higher one goes first, in its own line only."""
    low = bench.submit(priority=-1)
    high = bench.submit(priority=1)
    other = bench.submit({"model": "n"})
    assert [bench.show(job_id)["queue_position"] for job_id in (low, high, other)] == [2, 1, 1]
    bench.claim(high)
    assert [bench.show(job_id)["queue_position"] for job_id in (low, high)] == [1, None]


@pytest.mark.parametrize("near", [0, 5, 200])
def test_position_in_a_long_line(bench: Bench, monkeypatch: pytest.MonkeyPatch, near: int) -> None:
    """It is the same from whichever end the line is counted."""
    monkeypatch.setattr("foreman.jobs.lines._COUNTED_BEHIND", near)
    priorities = [(7 * number) % 5 - 2 for number in range(40)]
    there = [(-priority, bench.submit(priority=priority)) for priority in priorities]
    bench.submit({"model": "n"})
    expected = {job_id: place for place, (_, job_id) in enumerate(sorted(there, key=lambda job: job[0]))}
    assert {job_id: bench.wait(bench.store.ahead(job_id)) for _, job_id in there} == expected


def test_bad_bodies(bench: Bench) -> None:
    """400 for what is no JSON object, 422 for its fields, each with its pointer; nothing is kept."""
    for body, code in ((b"model=m", "not_json"), (b"", "not_json"), (b"[1]", "not_an_object")):
        reply = bench.ask("POST", "/jobs", body)
        assert (reply.status, reply.problem["code"]) == (400, code)
    reply = bench.ask("POST", "/jobs", {"job": {"priority": "x"}, "state_webhook_url": "ftp://h"})
    assert (reply.status, reply.problem["code"]) == (422, "invalid_fields")
    pointers = [error["pointer"] for error in reply.problem["errors"]]
    assert pointers == ["/job/priority", "/model", "", "/state_webhook_url"]
    assert bench.ask("GET", "/jobs").json == {"jobs": [], "next": None}


def test_model_that_is_not_installed(bench: Bench) -> None:
    """404 after one fresh look; a model that was pulled meanwhile is found by it."""
    reply = bench.ask("POST", "/jobs", {"model": "nope", "prompt": "p"})
    assert (reply.status, reply.problem["code"]) == (404, "model_not_found")
    assert "'nope'" in reply.problem["detail"]
    bench.inventory.pulled = {"new"}
    bench.submit({"model": "new"})
    bench.submit({"model": "m"})
    assert bench.inventory.looks == ["nope", "new"]


def test_model_that_may_come(bench: Bench) -> None:
    """No look with `start_within`, for a cloud's model, or while nobody knows what is installed."""
    job_id = bench.submit({"model": "later"}, start_within="6h")
    assert bench.reason(job_id) == "model_missing"
    assert bench.show(job_id)["start_deadline"] == "2027-01-15T14:00:00.250Z"
    assert bench.reason(bench.submit({"model": "big:120b-cloud"})) == "running_job"
    bench.inventory.known = False
    assert bench.reason(bench.submit({"model": "who-knows"})) == "model_line"
    assert bench.inventory.looks == []


def test_waiting_for(bench: Bench) -> None:
    """What holds up a job that waits; nothing for one that does not."""
    job_id = bench.submit()
    assert bench.reason(job_id) == "model_line"
    bench.target.up, bench.target.reason = False, "connection refused"
    assert bench.show(job_id)["waiting_for"] == {
        "reason": "target_unreachable",
        "text": "the target cannot be reached: connection refused",
    }
    claimed = bench.claim(job_id)
    assert bench.show(job_id)["waiting_for"] is None
    bench.end(claimed, Transition.RETRIED, not_before=NOW + 60)
    shown = bench.show(job_id)
    assert shown["queue_position"] is None
    assert shown["not_before"] == "2027-01-15T08:01:00.250Z"
    assert shown["waiting_for"] == {
        "reason": "backoff",
        "until": "2027-01-15T08:01:00.250Z",
        "text": "its last attempt failed, and the next one is not made before 2027-01-15T08:01:00.250Z",
    }


def test_model_that_runs_elsewhere(bench: Bench) -> None:
    """It does not use the local GPU, so its jobs bypass the turn, as embeddings do."""
    bench.inventory.remote = {"n"}
    found = [bench.submit({"model": model}) for model in ("m", "n", "big:120b-cloud")]
    found.append(bench.submit({"prompt": None, "input": "x"}))
    lines = [bench.wait(bench.store.get(job_id)).line for job_id in found]
    assert [line.takes_turn for line in lines] == [True, False, False, False]


def full(name: str) -> sqlite3.Error:
    error = sqlite3.OperationalError("no")
    error.sqlite_errorname = name
    return error


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [("SQLITE_FULL", 507, "database_full"), ("SQLITE_READONLY", 503, "database_unavailable")],
)
def test_database_that_cannot_be_written(bench: Bench, name: str, status: int, code: str) -> None:
    """Nothing is acknowledged; it recovers by itself."""
    bench.pool.broken = full(name)
    reply = bench.ask("POST", "/jobs", {"model": "m", "prompt": "p"})
    assert (reply.status, reply.problem["code"]) == (status, code)
    bench.pool.broken = None
    bench.submit()
    assert len(bench.ask("GET", "/jobs").json["jobs"]) == 1


def test_client_that_leaves(bench: Bench) -> None:
    """The write goes on: the job is there, whole, or it is not; and nothing is logged as an error."""
    bench.pool.commit_seconds = 1.0
    asked = bench.client.request("POST", "http://foreman/jobs", data=b'{"model":"m","prompt":"p"}')
    bench.client.flush()
    asked.addErrback(lambda _: None)
    asked.cancel()
    bench.client.flush()
    bench.clock.advance(1.0)
    bench.client.flush()
    bench.pool.commit_seconds = 0.0
    (job,) = bench.ask("GET", "/jobs").json["jobs"]
    assert bench.claim(job["job_id"]).body == b'{"model":"m","prompt":"p"}'


def test_show_a_waiting_job(bench: Bench) -> None:
    """Every field is there from the beginning."""
    url = "http://10.0.0.5:9000/hook"
    job_id = bench.submit({"state_webhook_url": url}, metadata={"ticket": "42", "none": None}, max_attempts=5)
    shown = bench.show(job_id)
    assert list(shown) == EVERY_FIELD
    assert (shown["status"], shown["endpoint"], shown["model"]) == ("queued", "/api/generate", "m")
    assert (shown["attempt"], shown["max_attempts"], shown["metadata"]) == (
        0,
        5,
        {"ticket": "42", "none": None},
    )
    assert (shown["result"], shown["error"]) == (None, None)
    assert shown["webhook"]["url"] == url
    assert (shown["errors"], shown["artifacts"], shown["metrics"]) == ([], [], None)


def test_show_a_running_job(bench: Bench) -> None:
    """With its progress, as far as it is known."""
    job_id = bench.submit()
    bench.claim(job_id)
    assert bench.show(job_id)["progress"] is None
    bench.progress[job_id] = Progress("generating", 17)
    shown = bench.show(job_id)
    assert (shown["status"], shown["attempt"]) == ("running", 1)
    assert shown["progress"] == {"phase": "generating", "tokens": 17}
    assert shown["started_at"] == "2027-01-15T08:00:00.250Z"
    assert bench.ask("GET", "/jobs").json["jobs"][0]["progress"] == {"phase": "generating", "tokens": 17}


def test_show_a_result(bench: Bench) -> None:
    """`response.json` byte for byte, and each small artifact with its content."""
    job_id = bench.submit()
    response = '{"response":"é\u2028","eval_duration":1.50e+2,"done":true}'.encode()
    outputs = {
        "response.json": response,
        "content.txt": "é".encode(),
        "image-0.png": b"\x89PNG",
        "empty.txt": b"",
    }
    bench.run(job_id, outputs)
    reply = bench.ask("GET", f"/jobs/{job_id}")
    assert b'"result":' + response in reply.body
    shown = reply.json
    assert (shown["status"], shown["finished_at"]) == ("succeeded", "2027-01-15T08:00:00.250Z")
    assert "result_url" not in shown
    assert [artifact["name"] for artifact in shown["artifacts"]] == list(outputs)
    assert shown["artifacts"][1] == {
        "name": "content.txt",
        "content_type": "text/plain; charset=utf-8",
        "size": 2,
        "sha256": hashlib.sha256("é".encode()).hexdigest(),
        "url": f"/jobs/{job_id}/artifacts/content.txt",
        "encoding": "utf-8",
        "content": "é",
    }
    assert [artifact["encoding"] for artifact in shown["artifacts"]] == ["utf-8", "utf-8", "base64", "utf-8"]
    assert base64.b64decode(shown["artifacts"][2]["content"]) == b"\x89PNG"
    assert shown["artifacts"][3]["content"] == ""


@pytest.mark.parametrize(("size", "inline"), [(262_143, True), (262_144, True), (262_145, False)])
def test_size_of_what_is_inlined(bench: Bench, size: int, inline: bool) -> None:
    """262,144 bytes are the most, for artifacts and for the result."""
    job_id = bench.submit()
    text = b"x" * size
    response = b'{"response":"' + b"y" * (size - 15) + b'"}'
    bench.run(job_id, {"response.json": response, "content.txt": text})
    shown = bench.show(job_id)
    assert [artifact["size"] for artifact in shown["artifacts"]] == [size, size]
    assert ["content" in artifact for artifact in shown["artifacts"]] == [inline, inline]
    assert shown.get("result_url") == (None if inline else f"/jobs/{job_id}/artifacts/response.json")
    assert (shown["result"] is not None) is inline
    assert bench.ask("GET", f"/jobs/{job_id}/artifacts/content.txt").body == text


@pytest.mark.parametrize("later", [b"new", b"n", None])
def test_run_again_while_it_is_shown(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, later: bytes | None
) -> None:
    """A content is shown with its own digest, or not at all."""
    job_id = bench.submit()
    bench.run(job_id, {"response.json": b"{}", "content.txt": b"old"})
    job = bench.wait(bench.store.get(job_id))

    async def get(*_: object) -> object:
        return job

    bench.ask("POST", f"/jobs/{job_id}/retry")
    if later is not None:
        bench.run(job_id, {"response.json": b"{}", "content.txt": later})
    monkeypatch.setattr(type(bench.store), "get", get)
    shown = bench.show(job_id)
    assert "content" not in shown["artifacts"][1]
    assert shown["result"] == (None if later is None else {})


def test_show_a_failure(bench: Bench) -> None:
    """Each attempt's error is kept; the last one is the job's, once it failed. Partial text is kept too."""
    job_id = bench.submit(max_attempts=2)
    first = AttemptError(1, NOW, "target_refused", "the target answered with status 500: oops", 500, "oops")
    bench.end(bench.claim(job_id), Transition.RETRIED, error=first)
    shown = bench.show(job_id)
    assert (shown["status"], shown["error"], len(shown["errors"])) == ("queued", None, 1)
    last = AttemptError(2, NOW + 1, "incomplete_response", "it ended too early")
    bench.end(bench.claim(job_id), Transition.RETRIED, error=last, metrics=Metrics(queue_seconds=1.5))
    shown = bench.show(job_id)
    assert (shown["status"], shown["error"]) == ("failed", shown["errors"][1])
    assert shown["errors"][0] == {
        "attempt": 1,
        "at": "2027-01-15T08:00:00.250Z",
        "code": "target_refused",
        "message": "the target answered with status 500: oops",
        "target_status": 500,
        "target_body": "oops",
    }
    assert shown["metrics"] == {
        "queue_seconds": 1.5,
        "load_seconds": None,
        "run_seconds": None,
        "prompt_tokens": None,
        "completion_tokens": None,
        "tokens_per_second": None,
    }


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("POST", "/retry"),
        ("GET", "/artifacts/content.txt"),
    ],
)
def test_unknown_and_gone(bench: Bench, method: str, path: str) -> None:
    """404 for what never was and for what is no id; 410 with what is left of a job."""
    for job_id in (UNKNOWN, "1", "x" * 26, "8ZZZZZZZZZZZZZZZZZZZZZZZZZ", UNKNOWN + "0", "%C3%A9"):
        reply = bench.ask(method, f"/jobs/{job_id}{path}")
        assert (reply.status, reply.problem["code"]) == (404, "job_not_found")
    job_id = bench.submit()
    bench.run(job_id, {"content.txt": b"x"})
    assert bench.ask("DELETE", f"/jobs/{job_id}").status == 204
    reply = bench.ask(method, f"/jobs/{job_id}{path}")
    if method == "DELETE":
        assert (reply.status, reply.body) == (204, b"")
        return
    assert (reply.status, reply.problem["code"]) == (410, "job_gone")
    assert reply.problem["job"] == {
        "job_id": job_id,
        "status": "succeeded",
        "created_at": "2027-01-15T08:00:00.250Z",
        "finished_at": "2027-01-15T08:00:00.250Z",
    }


def test_pruned_job_is_gone(bench: Bench) -> None:
    """Retention leaves the same tombstone as DELETE."""
    job_id = bench.submit()
    bench.run(job_id, {})
    bench.wait(bench.store.prune(NOW + 10, Retention(succeeded=5)))
    assert bench.ask("GET", f"/jobs/{job_id}").status == 410


def test_ids_in_lower_case(bench: Bench) -> None:
    """A ULID is the same in either case."""
    job_id = bench.submit()
    assert bench.show(job_id.lower())["job_id"] == job_id


def test_paths_that_are_not_there(bench: Bench) -> None:
    """404 and 405 are problems too, with `Allow`."""
    for path in (
        "/jobs/",
        "/jobs/x/y",
        f"/jobs/{UNKNOWN}/artifacts",
        f"/jobs/{UNKNOWN}/artifacts/a/b",
        "/jobs/%FF",
    ):
        reply = bench.ask("GET", path)
        assert (reply.status, reply.problem["code"]) == (404, "not_found"), path
    reply = bench.ask("PUT", f"/jobs/{UNKNOWN}")
    assert (reply.status, reply.problem["code"]) == (405, "method_not_allowed")
    assert reply.header("allow") == "DELETE, GET, HEAD"


def test_fault_of_foremans_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 with a code; the log has the rest."""
    logged: list[Any] = []

    class Log:
        def failure(self, sentence: str, failure: Any, **more: Any) -> None:
            logged.append(failure.type)

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(App, "_log", Log())
    monkeypatch.setattr(type(bench.store), "_read", broken)
    reply = bench.ask("GET", f"/jobs/{UNKNOWN}")
    assert (reply.status, reply.problem["code"]) == (500, "internal_error")
    assert logged == [ZeroDivisionError]
