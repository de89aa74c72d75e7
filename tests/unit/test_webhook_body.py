"""The bodies of webhooks."""

import json
from typing import Any

import msgspec
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from foreman.jobs.model import Event, Status
from foreman.urls import JobUrls
from foreman.webhooks.body import BODY_BYTES, announcement, compose

JOB = "01KC8Z0V3N8Q4Z2W9T0B5E7H1M"
URLS = JobUrls("https://foreman.example")
FACTS: dict[str, Any] = {
    "model": "llama3.2",
    "endpoint": "/api/generate",
    "attempt": 2,
    "metadata": {"line": 7, "für": "Zoë"},
    "webhook_url": "https://hook.example/?token=geheim",
    "error": None,
    "metrics": {"run_seconds": 1.5},
}
EVENT = Event("01KC8Z0V3N8Q4Z2W9T0B5E7H2N", JOB, 3, Status.SUCCEEDED, Status.RUNNING, 1772366400.5, FACTS)
RESULT = b'{"model": "llama3.2",\n "response":"gr\xc3\xbcn", "n":1.0, "n":1e2}'
ARTIFACT = f"https://foreman.example/jobs/{JOB}/artifacts/response.json"


def test_body_as_it_is_promised() -> None:
    """Members, their order, no spaces; the result stands there byte for byte."""
    expected = (
        '{"id":"01KC8Z0V3N8Q4Z2W9T0B5E7H2N","type":"job.succeeded","timestamp":"2026-03-01T12:00:00.500Z",'
        f'"data":{{"job_id":"{JOB}","status":"succeeded","previous_status":"running","sequence":3,"attempt":2,'
        '"model":"llama3.2","metadata":{"line":7,"für":"Zoë"},"error":null,"metrics":{"run_seconds":1.5},'
        '"result":{"model": "llama3.2",\n "response":"grün", "n":1.0, "n":1e2},'
        f'"urls":{{"self":"https://foreman.example/jobs/{JOB}",'
        f'"cancel":"https://foreman.example/jobs/{JOB}/cancel",'
        f'"retry":"https://foreman.example/jobs/{JOB}/retry",'
        f'"deliveries":"https://foreman.example/jobs/{JOB}/deliveries"}}}}}}'
    )
    assert compose(EVENT, RESULT, URLS) == expected.encode()


def test_first_event_and_failure() -> None:
    """A submission has no previous status; an error's moment is written as the others are. No result_url."""
    first = evolve(EVENT, status=Status.QUEUED, previous_status=None, sequence=1)
    data = json.loads(compose(first, None, JobUrls()))["data"]
    assert data["previous_status"] is None
    assert data["urls"]["self"] == f"/jobs/{JOB}"
    assert data["result"] is None
    assert "result_url" not in data

    error = {
        "attempt": 3,
        "at": 1772366400.25,
        "code": "target_failed",
        "message": "it broke",
        "target_status": 500,
        "target_body": "no",
    }
    failed = evolve(EVENT, status=Status.FAILED, facts={**FACTS, "error": error})
    sent = json.loads(compose(failed, None, URLS))
    assert sent["type"] == "job.failed"
    assert sent["data"]["error"] == {**error, "at": "2026-03-01T12:00:00.250Z"}
    assert "result_url" not in sent["data"]


def test_receiver_s_own_url_is_not_in_the_body() -> None:
    """It may hold a token, and logs keep bodies."""
    assert b"geheim" not in compose(EVENT, RESULT, URLS)


def test_result_up_to_the_limit() -> None:
    """A body of 20,000 bytes has its result; of one byte more it says where the result is."""
    room = BODY_BYTES - len(compose(EVENT, b'""', URLS))
    largest = compose(EVENT, b'"%s"' % (b"x" * room), URLS)
    assert len(largest) == BODY_BYTES
    assert json.loads(largest)["data"]["result"] == "x" * room
    data = json.loads(compose(EVENT, b'"%s"' % (b"x" * (room + 1)), URLS))["data"]
    assert (data["result"], data["result_url"]) == (None, ARTIFACT)


def test_body_without_its_result_may_be_larger() -> None:
    """Metadata is never left out."""
    event = evolve(EVENT, facts={**FACTS, "metadata": {"text": "x" * BODY_BYTES}})
    sent = compose(event, RESULT, URLS)
    assert len(sent) > BODY_BYTES
    assert json.loads(sent)["data"]["result_url"] == ARTIFACT


def test_result_of_another_state_is_not_sent() -> None:
    """What an earlier run left behind belongs to no other event."""
    data = json.loads(compose(evolve(EVENT, status=Status.CANCELLED), RESULT, URLS))["data"]
    assert data["result"] is None
    assert "result_url" not in data


@pytest.mark.parametrize(
    "result",
    [
        None,
        b"",
        b"{",
        b'{"a":1} x',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b"NaN",
        b"1e999",
        b'},"status":{',
        b"[" * 5000 + b"]" * 5000,
    ],
)
def test_result_that_cannot_be_read_is_left_out(result: bytes | None) -> None:
    """It never breaks the body: ``result_url`` has it as it is."""
    sent = compose(EVENT, result, URLS)
    data = json.loads(sent)["data"]
    assert (data["status"], data["result"], data["result_url"]) == ("succeeded", None, ARTIFACT)


def test_lone_surrogates_elsewhere() -> None:
    """JSON can hold them, UTF-8 cannot: the body is readable all the same."""
    facts = {**FACTS, "model": "a\ud800", "metadata": {"b\udfff": "c"}}
    data = msgspec.json.decode(compose(evolve(EVENT, facts=facts), RESULT, URLS))["data"]
    assert (data["model"], data["metadata"]) == ("a?", {"b?": "c"})
    assert msgspec.json.decode(announcement("id", "foreman.degraded", 0, {"hints": "\ud800"}))["data"] == {
        "hints": "?"
    }


@given(st.binary() | st.text().map(lambda text: json.dumps(text).encode()))
def test_whatever_the_result_the_body_is_json(result: bytes) -> None:
    """Every reader can read it, and a result that is there is the one that was given."""
    sent = compose(EVENT, result, URLS)
    data = msgspec.json.decode(sent)["data"]
    if "result_url" in data:
        assert data["result"] is None
    else:
        assert data["result"] == msgspec.json.decode(result)
        assert b'"result":' + result + b',"urls"' in sent


def test_announcement() -> None:
    """An event of foreman's own has the same envelope."""
    sent = announcement(
        "01KC8Z0V3N8Q4Z2W9T0B5E7H2N", "foreman.degraded", 1772366400.0, {"reasons": ["x"], "ü": 1}
    )
    assert sent.decode() == (
        '{"id":"01KC8Z0V3N8Q4Z2W9T0B5E7H2N","type":"foreman.degraded","timestamp":"2026-03-01T12:00:00.000Z",'
        '"data":{"reasons":["x"],"ü":1}}'
    )
