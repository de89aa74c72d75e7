"""The log of a job's webhooks over HTTP, and sending one again."""

from typing import Any

from twisted.internet.defer import Deferred
from web_jobs_bench import UNKNOWN, make_bench

from foreman.testing.sender import answer

URL = "http://10.0.0.5:9000/hook"


def test_log_and_state() -> None:
    """Each event with its attempts; the job says how they fare, in its list too."""
    with make_bench() as bench:
        Deferred.fromCoroutine(bench.dispatcher.start())
        bench.sender.outcome = answer(500, b"oops \xff")
        job_id = bench.submit({"state_webhook_url": URL})
        (entry,) = bench.ask("GET", f"/jobs/{job_id}/deliveries").json["deliveries"]
        (event_id,) = {post.headers["webhook-id"] for post in bench.sender.posts}
        assert entry == {
            "event_id": event_id,
            "type": "job.queued",
            "sequence": 1,
            "state": "pending",
            "next_attempt_at": entry["next_attempt_at"],
            "attempts": [
                {
                    "at": "2027-01-15T08:00:00.250Z",
                    "address": "10.0.0.5",
                    "status": 500,
                    "error": None,
                    "duration_ms": 1,
                    "response": "oops �",
                }
            ],
        }
        expected = {"url": URL, "events": None, "state": "pending", "last_status": 500, "attempts": 1}
        assert bench.ask("GET", f"/jobs/{job_id}").json["webhook"] == expected
        assert bench.ask("GET", "/jobs").json["jobs"][0]["webhook"] == expected
        stop(bench)


def test_redeliver() -> None:
    """202 with the delivery as it is now; its next attempt is the first of a new series."""
    with make_bench() as bench:
        Deferred.fromCoroutine(bench.dispatcher.start())
        job_id = bench.submit({"state_webhook_url": URL})
        event_id = bench.sender.posts[0].headers["webhook-id"]
        reply = bench.ask("POST", f"/jobs/{job_id}/deliveries/{event_id.lower()}/redeliver")
        assert reply.status == 202
        assert reply.json["state"] == "pending"
        assert [post.headers["x-foreman-attempt"] for post in bench.sender.posts] == ["1", "1"]
        assert bench.sender.posts[0].body == bench.sender.posts[1].body
        stop(bench)


def test_redeliver_while_it_is_sent() -> None:
    """409: what comes of it is not known yet."""
    with make_bench() as bench:
        Deferred.fromCoroutine(bench.dispatcher.start())
        bench.sender.outcome = None
        job_id = bench.submit({"state_webhook_url": URL})
        event_id = bench.sender.posts[0].headers["webhook-id"]
        reply = bench.ask("POST", f"/jobs/{job_id}/deliveries/{event_id}/redeliver")
        assert (reply.status, reply.json["code"]) == (409, "delivery_under_way")
        bench.sender.open[0].end(answer(200))
        stop(bench)


def test_what_is_not_there() -> None:
    """404 for an unknown job, an unknown event, and another job's event; an empty log for a job without."""
    with make_bench() as bench:
        plain = bench.submit()
        other = bench.submit({"state_webhook_url": URL})
        (entry,) = bench.ask("GET", f"/jobs/{other}/deliveries").json["deliveries"]
        assert bench.ask("GET", f"/jobs/{plain}/deliveries").json == {"deliveries": []}
        assert bench.ask("GET", f"/jobs/{UNKNOWN}/deliveries").json["code"] == "job_not_found"
        for event_id in (UNKNOWN, "x", entry["event_id"]):
            reply = bench.ask("POST", f"/jobs/{plain}/deliveries/{event_id}/redeliver")
            assert (reply.status, reply.json["code"]) == (404, "delivery_not_found")


def test_log_of_a_deleted_job() -> None:
    """It is kept: the receiver's questions come later."""
    with make_bench() as bench:
        job_id = bench.submit({"state_webhook_url": URL})
        bench.ask("POST", f"/jobs/{job_id}/cancel")
        assert bench.ask("DELETE", f"/jobs/{job_id}").status == 204
        entries = bench.ask("GET", f"/jobs/{job_id}/deliveries").json["deliveries"]
        assert [entry["type"] for entry in entries] == ["job.queued", "job.cancelled"]


def test_events_that_are_wanted() -> None:
    """`webhook_events` is shown; an unknown name is refused with what is allowed."""
    with make_bench() as bench:
        job_id = bench.submit({"state_webhook_url": URL}, webhook_events=["job.failed"])
        assert bench.ask("GET", f"/jobs/{job_id}").json["webhook"] == {
            "url": URL,
            "events": ["job.failed"],
            "state": None,
            "last_status": None,
            "attempts": 0,
        }
        for wrong in (["job.done"], "job.failed", [1], {"a": 1}):
            body = {"model": "m", "prompt": "p", "job": {"webhook_events": wrong}}
            reply = bench.ask("POST", "/jobs", body)
            assert reply.status == 422
            (complaint,) = reply.json["errors"]
            assert complaint["pointer"] == "/job/webhook_events"
            assert "job.scheduled, job.queued" in complaint["detail"]


def stop(bench: Any) -> None:
    """Nothing is left on the clock."""
    Deferred.fromCoroutine(bench.dispatcher.stop(0.1, 0.1))
    bench.clock.advance(1)
