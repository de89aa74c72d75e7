"""The bodies of webhooks: JSON, compact, in UTF-8; composed once, and the same at each attempt."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from foreman.jobs.model import RESULT, Event, Status
from foreman.quantities import format_moment
from foreman.urls import JobUrls

BODY_BYTES = 20_000
"""With its result a body is at most this large; without it there is no limit."""


def compose(event: Event, result: bytes | None, urls: JobUrls) -> bytes:
    """
    The body of a job's event. `result` is the job's ``response.json``; it stands there byte for byte.

    A result that is missing, too large or no strict JSON is left out, and ``result_url`` says where it is.
    """
    facts, error = event.facts, event.facts["error"]
    data: dict[str, Any] = {
        "job_id": event.job_id,
        "status": event.status.value,
        "previous_status": event.previous_status and event.previous_status.value,
        "sequence": event.sequence,
        "attempt": facts["attempt"],
        "model": _raw(facts["model"]),
        "metadata": _raw(facts["metadata"]),
        "error": error and _raw({**error, "at": format_moment(error["at"])}),
        "metrics": _raw(facts["metrics"]),
        "result": None,
        "urls": urls.of(event.job_id),
    }
    if event.status is not Status.SUCCEEDED:
        return _envelope(event.event_id, event.type, event.at, data)
    if result is not None and _is_json(result):
        whole = _envelope(event.event_id, event.type, event.at, {**data, "result": msgspec.Raw(result)})
        if len(whole) <= BODY_BYTES:
            return whole
    data["result_url"] = urls.artifact(event.job_id, RESULT)
    return _envelope(event.event_id, event.type, event.at, data)


def announcement(event_id: str, event_type: str, at: float, data: Mapping[str, Any]) -> bytes:
    """The body of an event of foreman's own. `at` is in epoch seconds."""
    return _envelope(event_id, event_type, at, _raw(data))


def _envelope(event_id: str, event_type: str, at: float, data: Any) -> bytes:
    return msgspec.json.encode(
        {"id": event_id, "type": event_type, "timestamp": format_moment(at), "data": data}
    )


def _raw(value: Any) -> msgspec.Raw:
    # A lone surrogate, which JSON can hold and UTF-8 cannot, becomes a question mark.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return msgspec.Raw(text.encode("utf-8", "replace"))


def _is_json(content: bytes) -> bool:
    """
    Any receiver can read it. Stricter than Python's own reader: no NaN, no lone surrogates, no numbers
    beyond 1.8e308, and not nested deeper than Python's stack allows.
    """
    try:
        msgspec.json.decode(content)
    except (ValueError, RecursionError):
        return False
    return True
