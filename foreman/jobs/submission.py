"""A body of ``POST /jobs``: foreman's own fields are taken off and checked, the rest is the native body."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from foreman import runner_options
from foreman.errors import InvalidFields
from foreman.jobs.checks import (
    LONGEST_SECONDS,
    Complaints,
    boolean,
    decoded,
    duration,
    moment,
    one_of,
    shown,
    whole_number,
)
from foreman.jobs.model import LineKey, Status, Submission
from foreman.jobs.top_level import TopLevel, fold, read
from foreman.urls import check_url

OWN_FIELDS = frozenset({"job", "state_webhook_url"})
ENDPOINTS: Mapping[str, str] = {"messages": "/api/chat", "prompt": "/api/generate", "input": "/api/embed"}
"""Which field of a native body means which endpoint."""

EVENTS = tuple(f"job.{status.value}" for status in Status)
"""The events of a job: one for each state."""

JOB_BYTES = 64 * 1024
OPTIONS_BYTES = 64 * 1024
MODEL_CHARACTERS = 600
"""It is in each event of the job. In Ollama a host has at most 350, and three more parts at most 80 each."""
MOST_PRIORITY = 1_000_000
MOST_ATTEMPTS = 100
METADATA_PAIRS = 16
METADATA_KEY_CHARACTERS = 64
METADATA_TEXT_CHARACTERS = 512


def parse(
    body: bytes, job_id: str, now: float, check_receiver: Callable[[str], object] = check_url
) -> Submission:
    """
    The job that a body asks for, under the id `job_id`, handed in at the moment `now`.

    `check_receiver` raises ValueError for a URL that no webhook may go to. Raises NotJson, NotAnObject, or
    InvalidFields with every complaint at once.
    """
    fields = read(body)
    complaints = Complaints()
    job = _read_job(fields, complaints)
    model = _read_model(fields, complaints)
    endpoint = _endpoint(fields, job, complaints)
    webhook_url = _webhook_url(fields, check_receiver, complaints)
    within = job.pop("start_within", None)
    run_at = job.get("run_at", now)
    if run_at > now + LONGEST_SECONDS:
        given = decoded(fields.last("job") or b"{}")["run_at"]
        complaints.add(f"is {shown(given)}: it is at most 8784h ahead", "job", "run_at")
    options_bytes = sum(map(len, _values(fields, "options")))
    if options_bytes > OPTIONS_BYTES:
        complaints.add(f"has {options_bytes} bytes: at most {OPTIONS_BYTES} are allowed", "options")
    if complaints.found:
        raise InvalidFields(complaints.found)
    return Submission(
        job_id=job_id,
        endpoint=endpoint,
        line=LineKey(model, _option_key(fields), takes_turn=endpoint != "/api/embed"),
        body=fields.without(OWN_FIELDS),
        created_at=now,
        # What may not start yet has all its time still to come.
        start_deadline=None if within is None else max(now, run_at) + within,
        webhook_url=webhook_url,
        **job,
    )


def _read_job(fields: TopLevel, complaints: Complaints) -> dict[str, Any]:
    """What `job` says, by the names of a Submission (and `start_within` in seconds); null says nothing."""
    text = fields.last("job")
    if text is None:
        return {}
    if len(text) > JOB_BYTES:
        complaints.add(f"has {len(text)} bytes: at most {JOB_BYTES} are allowed", "job")
        return {}
    value = decoded(text)
    if not isinstance(value, dict):
        complaints.add(f"is {shown(value)}: it is an object with fields of its own", "job")
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
                complaints.add(f"is {shown(given)}: {allowed}", "job", name)
    return job


def _endpoint_name(value: Any) -> str:
    if value not in ENDPOINTS.values():
        raise ValueError(f"an endpoint is one of {', '.join(ENDPOINTS.values())}")
    return str(value)


def _events(value: Any) -> tuple[str, ...]:
    allowed = f"it is a list of some of {', '.join(EVENTS)}"
    if not isinstance(value, list) or not all(one in EVENTS for one in value):
        raise ValueError(allowed)
    return tuple(value)


def _no_object(value: Any) -> Any:
    raise ValueError("it is an object of texts, numbers, booleans and nulls")


_JOB_FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "endpoint": _endpoint_name,
    "priority": whole_number(-MOST_PRIORITY, MOST_PRIORITY),
    "metadata": _no_object,
    "timeout": duration(zero=True),
    "start_within": duration(zero=False),
    "run_at": moment,
    "max_attempts": whole_number(1, MOST_ATTEMPTS),
    "on_interrupt": one_of("retry", "fail"),
    "webhook_events": _events,
    "transcript": boolean,
}


def _check_metadata(metadata: Mapping[str, Any], complaints: Complaints) -> None:
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
                f"is {shown(value)}: it is a text, a number, a boolean or null", "job", "metadata", key
            )
        if isinstance(value, float) and not math.isfinite(value):
            complaints.add("is a number beyond 1.8e308", "job", "metadata", key)


def _read_model(fields: TopLevel, complaints: Complaints) -> str:
    text = fields.last("model")
    if text is None:
        complaints.add("is missing: name the model", "model")
        return ""
    model = decoded(text)
    if not isinstance(model, str) or not model.strip():
        complaints.add(f"is {shown(model)}: it is the name of a model", "model")
        return ""
    if len(model) > MODEL_CHARACTERS:
        complaints.add(f"has {len(model)} characters: at most {MODEL_CHARACTERS} are allowed", "model")
    return model


def _endpoint(fields: TopLevel, job: dict[str, Any], complaints: Complaints) -> str:
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
    fields: TopLevel, check_receiver: Callable[[str], object], complaints: Complaints
) -> str | None:
    text = fields.last("state_webhook_url")
    if text is None:
        return None
    value = decoded(text)
    try:
        if not isinstance(value, str):
            raise ValueError("it is an http or https URL with a host, such as https://example.org/hook")
        check_receiver(value)
        return value
    except ValueError as allowed:
        # A URL with a user's part may hold a password.
        hidden = isinstance(value, str) and "@" in value
        given = "has a value that cannot be used" if hidden else f"is {shown(value)}"
        complaints.add(f"{given}: {allowed}", "state_webhook_url")
        return None


def _option_key(fields: TopLevel) -> str:
    """Equal texts run on one runner, as far as the request goes; "" when it says nothing about it."""
    options: Any = runner_options.merged(decoded(value) for value in _values(fields, "options"))
    shifts = _values(fields, "shift")
    return runner_options.of_request(options, shift=decoded(shifts[-1]) if shifts else None)


def _values(fields: TopLevel, name: str) -> list[bytes]:
    """Every value that is given for a field, null too."""
    return [fields.body[one.value : one.end] for one in fields.members if fold(one.key) == name]
