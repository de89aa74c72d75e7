"""A body of ``POST /jobs``: foreman's own fields are taken off and checked, the rest is the native body."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, field

from foreman.errors import InvalidFields
from foreman.jobs.model import LineKey, Status, Submission
from foreman.jobs.top_level import TopLevel, decode, read
from foreman.quantities import parse_duration
from foreman.urls import check_url

OWN_FIELDS = frozenset({"job", "state_webhook_url"})
ENDPOINTS: Mapping[str, str] = {"messages": "/api/chat", "prompt": "/api/generate", "input": "/api/embed"}
"""Which field of a native body means which endpoint."""

EVENTS = tuple(f"job.{status.value}" for status in Status)
"""The events of a job: one for each state."""

JOB_BYTES = 64 * 1024
MOST_PRIORITY = 1_000_000
MOST_ATTEMPTS = 100
LONGEST_SECONDS = 366 * 24 * 3600.0
METADATA_PAIRS = 16
METADATA_KEY_CHARACTERS = 64
METADATA_TEXT_CHARACTERS = 512
_MOST_COMPLAINTS = 100

# What makes Ollama load a model anew when it changes.
_RUNNER_OPTIONS = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"}
)


def parse(
    body: bytes, job_id: str, now: float, check_receiver: Callable[[str], object] = check_url
) -> Submission:
    """
    The job that a body asks for, under the id `job_id`, handed in at the moment `now`.

    `check_receiver` raises ValueError for a URL that no webhook may go to. Raises NotJson, NotAnObject, or
    InvalidFields with every complaint at once.
    """
    fields = read(body)
    complaints = _Complaints()
    job = _read_job(fields, complaints)
    model = _read_model(fields, complaints)
    endpoint = _endpoint(fields, job, complaints)
    webhook_url = _webhook_url(fields, check_receiver, complaints)
    within = job.pop("start_within", None)
    if complaints.found:
        raise InvalidFields(complaints.found)
    return Submission(
        job_id=job_id,
        endpoint=endpoint,
        line=LineKey(model, _option_key(fields), takes_turn=endpoint != "/api/embed"),
        body=fields.without(OWN_FIELDS),
        created_at=now,
        start_deadline=None if within is None else now + within,
        webhook_url=webhook_url,
        **job,
    )


@define
class _Complaints:
    """What is wrong, in the order in which it was found."""

    found: list[Mapping[str, str]] = field(factory=list)

    def add(self, detail: str, *path: str) -> None:
        """`path` leads to the value, one key for each level."""
        if len(self.found) < _MOST_COMPLAINTS:
            self.found.append({"pointer": "".join(f"/{_escaped(key)}" for key in path), "detail": detail})


def _escaped(key: str) -> str:
    """RFC 6901 §3."""
    return key.replace("~", "~0").replace("/", "~1")


def _shown(value: Any) -> str:
    """A value for a sentence."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _read_job(fields: TopLevel, complaints: _Complaints) -> dict[str, Any]:
    """What `job` says, by the names of a Submission (and `start_within` in seconds); null says nothing."""
    text = fields.last("job")
    if text is None:
        return {}
    if len(text) > JOB_BYTES:
        complaints.add(f"has {len(text)} bytes: at most {JOB_BYTES} are allowed", "job")
        return {}
    value = _decoded(text)
    if not isinstance(value, dict):
        complaints.add(f"is {_shown(value)}: it is an object with fields of its own", "job")
        return {}
    job: dict[str, Any] = {}
    for name, given in value.items():
        if name not in _JOB_FIELDS:
            complaints.add(f"is no field of job: those are {', '.join(_JOB_FIELDS)}", "job", name)
        elif name == "metadata" and isinstance(given, dict):
            _check_metadata(given, complaints)
            job[name] = given
        elif given is not None:
            try:
                job[name] = _JOB_FIELDS[name](given)
            except ValueError as allowed:
                complaints.add(f"is {_shown(given)}: {allowed}", "job", name)
    return job


def _decoded(text: bytes) -> Any:
    """The value, or what is shown in its place when it is beyond what foreman reads."""
    try:
        return decode(text)
    except (ValueError, RecursionError):
        return ["…"]  # a list is never what is wanted


def _endpoint_name(value: Any) -> str:
    if value not in ENDPOINTS.values():
        raise ValueError(f"an endpoint is one of {', '.join(ENDPOINTS.values())}")
    return str(value)


def _whole_number(least: int, most: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"it is a whole number from {least} to {most}")
        return value

    return check


def _duration(*, zero: bool) -> Callable[[Any], float]:
    """A Go duration, in seconds. `zero`: whether none at all is allowed."""

    def check(value: Any) -> float:
        allowed = "it is a duration such as 30s or 1h30m, at most 8784h"
        allowed += ", or 0 for no limit" if zero else ", and more than zero"
        try:
            seconds = 0.0 if value == 0 and not isinstance(value, bool) else parse_duration(_text(value))
        except ValueError:
            raise ValueError(allowed) from None
        if not 0 <= seconds <= LONGEST_SECONDS or (seconds == 0 and not zero):
            raise ValueError(allowed)
        return seconds

    return check


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("it is a text")
    return value


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"it is {' or '.join(map(_shown, allowed))}")
        return str(value)

    return check


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it is true or false")
    return value


def _events(value: Any) -> tuple[str, ...]:
    allowed = f"it is a list of some of {', '.join(EVENTS)}"
    if not isinstance(value, list) or not all(one in EVENTS for one in value):
        raise ValueError(allowed)
    return tuple(value)


def _no_object(value: Any) -> Any:
    raise ValueError("it is an object of texts, numbers, booleans and nulls")


_JOB_FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "endpoint": _endpoint_name,
    "priority": _whole_number(-MOST_PRIORITY, MOST_PRIORITY),
    "metadata": _no_object,
    "timeout": _duration(zero=True),
    "start_within": _duration(zero=False),
    "max_attempts": _whole_number(1, MOST_ATTEMPTS),
    "on_interrupt": _one_of("retry", "fail"),
    "webhook_events": _events,
    "transcript": _boolean,
}


def _check_metadata(metadata: Mapping[str, Any], complaints: _Complaints) -> None:
    if len(metadata) > METADATA_PAIRS:
        complaints.add(f"has {len(metadata)} keys: at most {METADATA_PAIRS} are allowed", "job", "metadata")
        return
    for key, value in metadata.items():
        if len(key) > METADATA_KEY_CHARACTERS:
            most = f"at most {METADATA_KEY_CHARACTERS} characters are allowed"
            complaints.add(f"has a key of {len(key)} characters: {most}", "job", "metadata", key)
        if isinstance(value, str) and len(value) > METADATA_TEXT_CHARACTERS:
            most = f"at most {METADATA_TEXT_CHARACTERS} are allowed"
            complaints.add(f"has {len(value)} characters: {most}", "job", "metadata", key)
        if isinstance(value, dict | list):
            complaints.add(
                f"is {_shown(value)}: it is a text, a number, a boolean or null", "job", "metadata", key
            )
        if isinstance(value, float) and not math.isfinite(value):
            complaints.add("is a number beyond 1.8e308", "job", "metadata", key)


def _read_model(fields: TopLevel, complaints: _Complaints) -> str:
    text = fields.last("model")
    if text is None:
        complaints.add("is missing: name the model", "model")
        return ""
    model = _decoded(text)
    if not isinstance(model, str) or not model.strip():
        complaints.add(f"is {_shown(model)}: it is the name of a model", "model")
        return ""
    return model


def _endpoint(fields: TopLevel, job: dict[str, Any], complaints: _Complaints) -> str:
    """The endpoint that `job` names, which is taken out of it, or the one that the body is for."""
    named: str | None = job.pop("endpoint", None)
    if named is not None:
        return named
    found = [name for name in ENDPOINTS if fields.last(name) is not None]
    if len(found) == 1:
        return ENDPOINTS[found[0]]
    if complaints.found and any(one["pointer"] == "/job/endpoint" for one in complaints.found):
        return ""
    has = " and ".join(found) or f"none of {', '.join(ENDPOINTS)}"
    complaints.add(f"the body has {has}: give one of them, or name the endpoint in job.endpoint")
    return ""


def _webhook_url(
    fields: TopLevel, check_receiver: Callable[[str], object], complaints: _Complaints
) -> str | None:
    text = fields.last("state_webhook_url")
    if text is None:
        return None
    value = _decoded(text)
    try:
        if not isinstance(value, str):
            raise ValueError("it is an http or https URL with a host, such as https://example.org/hook")
        check_receiver(value)
        return value
    except ValueError as allowed:
        # A URL with a user's part may hold a password.
        hidden = isinstance(value, str) and "@" in value
        shown = "has a value that cannot be used" if hidden else f"is {_shown(value)}"
        complaints.add(f"{shown}: {allowed}", "state_webhook_url")
        return None


def _option_key(fields: TopLevel) -> str:
    """Equal texts run on one runner, as far as the request goes; "" when it says nothing about it."""
    options = fields.last("options")
    given = _decoded(options) if options is not None else None
    wanted: dict[str, int | bool] = {}
    for name, value in given.items() if isinstance(given, dict) else ():
        # Ollama reads 8192.0 as 8192, and knows the names in this spelling only.
        if name in _RUNNER_OPTIONS and isinstance(value, int | float) and abs(value) < 1 << 62:
            wanted[name] = value if isinstance(value, bool) else int(value)
    if fields.last("shift") == b"false":
        wanted["shift"] = False
    return json.dumps(wanted, sort_keys=True, separators=(",", ":")) if wanted else ""
