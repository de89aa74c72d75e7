"""Lists of jobs over HTTP; cancelling, retrying and deleting them."""

from collections.abc import Iterator

import pytest
from web_jobs_bench import EVERY_FIELD, NOW, Bench, Reply, make_bench

from foreman.jobs.model import AttemptError, Transition


@pytest.fixture
def bench() -> Iterator[Bench]:
    with make_bench() as bench:
        yield bench


def ids(reply: Reply) -> list[str]:
    return [job["job_id"] for job in reply.json["jobs"]]


def test_list(bench: Bench) -> None:
    """Newest first; entries have neither result nor content nor place."""
    first, second = bench.submit(), bench.submit({"model": "n"})
    bench.run(first, {"response.json": b"{}", "content.txt": b"x"})
    reply = bench.ask("GET", "/jobs")
    assert ids(reply) == [second, first]
    entry = reply.json["jobs"][1]
    left_out = {"queue_position", "eta_seconds", "waiting_for", "result"}
    assert list(entry) == [name for name in EVERY_FIELD if name not in left_out]
    assert [sorted(artifact) for artifact in entry["artifacts"]] == [
        ["content_type", "name", "sha256", "size", "url"]
    ] * 2


def test_list_with_filters(bench: Bench) -> None:
    """By status, by model, by both."""
    done, waiting, other = bench.submit(), bench.submit(), bench.submit({"model": "n"})
    bench.run(done, {})
    assert ids(bench.ask("GET", "/jobs?status=queued")) == [other, waiting]
    assert ids(bench.ask("GET", "/jobs?model=m")) == [waiting, done]
    assert ids(bench.ask("GET", "/jobs?status=succeeded&model=m")) == [done]
    assert ids(bench.ask("GET", "/jobs?status=succeeded&model=n")) == []
    assert ids(bench.ask("GET", "/jobs?model=&status=")) == [other, waiting, done]


@pytest.mark.parametrize("query", ["", "&model=m", "&status=queued"])
def test_pages_while_jobs_arrive(bench: Bench, query: str) -> None:
    """Each job that was there at first comes exactly once."""
    there = [bench.submit() for _ in range(7)]
    seen, after = [], ""
    while after is not None:
        reply = bench.ask("GET", f"/jobs?limit=3{query}" + (f"&after={after}" if after else ""))
        seen += ids(reply)
        after = reply.json["next"]
        bench.submit()
    assert seen == there[::-1]


def test_bad_parameters(bench: Bench) -> None:
    """All of them at once; a cursor is only what foreman gave."""
    reply = bench.ask("GET", "/jobs?state=failed&status=done&limit=0")
    assert (reply.status, reply.problem["code"]) == (422, "invalid_parameters")
    assert [error["parameter"] for error in reply.problem["errors"]] == [
        "state",
        "status",
        "limit",
    ]
    for limit in ("201", "-1", "x", "1.5", "9" * 5000, "%FF", "\u0663"):
        assert bench.ask("GET", f"/jobs?limit={limit}").status == 422
    assert bench.ask("GET", "/jobs?limit=200").status == 200
    for cursor in ("x", "%C3%A9", "QQ"):
        reply = bench.ask("GET", f"/jobs?after={cursor}")
        assert (reply.status, reply.problem["code"]) == (422, "bad_cursor")


def test_cancel(bench: Bench) -> None:
    """Waiting: at once. Running: asked for. Ended: as it is. Twice is as once."""
    told: list[str] = []
    bench.store.on_cancel_requested = told.append
    waiting, running, ended = bench.submit(), bench.submit(), bench.submit()
    bench.run(ended, {})
    claimed = bench.claim(running)
    for _ in range(2):
        replies = [bench.ask("POST", f"/jobs/{job_id}/cancel") for job_id in (waiting, running, ended)]
        assert [reply.status for reply in replies] == [200, 200, 200]
        assert [reply.json["status"] for reply in replies] == ["cancelled", "running", "succeeded"]
        asked = [reply.json["cancel_requested_at"] for reply in replies]
        assert asked == ["2027-01-15T08:00:00.250Z", "2027-01-15T08:00:00.250Z", None]
    assert told == [running]
    bench.end(claimed, Transition.CANCELLED)
    assert bench.show(running)["status"] == "cancelled"


def test_retry(bench: Bench) -> None:
    """An ended job waits again under its id, without its artifacts; for one that did not end it is 409."""
    job_id = bench.submit()
    for _ in range(2):
        reply = bench.ask("POST", f"/jobs/{job_id}/retry")
        assert (reply.status, reply.problem["code"]) == (409, "job_unfinished")
        if bench.show(job_id)["status"] == "queued":
            claimed = bench.claim(job_id)
    bench.end(claimed, Transition.FAILED, error=AttemptError(1, NOW, "target_failed", "it broke"))
    reply = bench.ask("POST", f"/jobs/{job_id}/retry")
    assert (reply.status, reply.header("location")) == (202, f"/jobs/{job_id}")
    assert (reply.json["status"], reply.json["queue_position"]) == ("queued", 1)
    shown = bench.show(job_id)
    assert (shown["error"], len(shown["errors"]), shown["attempt"]) == (None, 1, 0)


def test_delete(bench: Bench) -> None:
    """204 for an ended job, and again; 409 while it waits or runs."""
    job_id = bench.submit()
    assert bench.ask("DELETE", f"/jobs/{job_id}").problem["code"] == "job_unfinished"
    claimed = bench.claim(job_id)
    assert bench.ask("DELETE", f"/jobs/{job_id}").status == 409
    bench.end(claimed)
    for _ in range(2):
        reply = bench.ask("DELETE", f"/jobs/{job_id}")
        assert (reply.status, reply.body, reply.header("content-type")) == (204, b"", None)
