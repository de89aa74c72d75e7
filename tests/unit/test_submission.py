"""A body of POST /jobs: what is taken off, what stays as it was, and what is said about mistakes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreman.errors import ForemanError, InvalidFields, NotAnObject, NotJson
from foreman.jobs.model import LineKey, Submission
from foreman.jobs.submission import (
    EVENTS,
    JOB_BYTES,
    METADATA_KEY_CHARACTERS,
    METADATA_PAIRS,
    METADATA_TEXT_CHARACTERS,
    MODEL_CHARACTERS,
    OPTIONS_BYTES,
    parse,
)
from foreman.jobs.top_level import MOST_FIELDS

NOW = 1_800_000_000.0
ID = "01J00000000000000000000000"


def submit(body: bytes | dict[str, Any]) -> Submission:
    return parse(body if isinstance(body, bytes) else json.dumps(body).encode(), ID, NOW)


def with_job(job: Any) -> Submission:
    return submit({"model": "m", "prompt": "p", "job": job})


def complaints(body: bytes | dict[str, Any]) -> dict[str, str]:
    """Pointers and sentences."""
    with pytest.raises(InvalidFields) as refused:
        submit(body)
    found = {one["pointer"]: one["detail"] for one in refused.value.complaints}
    assert len(found) == len(refused.value.complaints)
    return found


def test_defaults() -> None:
    """A body of the native API alone is a job."""
    assert submit(b'{"model":"llama3.2","prompt":"hi"}') == Submission(
        job_id=ID,
        endpoint="/api/generate",
        line=LineKey("llama3.2", "", True),
        body=b'{"model":"llama3.2","prompt":"hi"}',
        created_at=NOW,
        priority=0,
        metadata={},
        timeout=None,
        run_at=None,
        start_deadline=None,
        max_attempts=3,
        on_interrupt="retry",
        transcript=False,
        webhook_url=None,
        webhook_events=None,
    )


def test_every_field() -> None:
    """Durations become seconds, and the time to start a moment."""
    metadata = {"ticket": "42", "n": 1, "x": 1.5, "yes": True, "none": None}
    job = {
        "endpoint": "/api/chat",
        "priority": -7,
        "metadata": metadata,
        "timeout": "10m",
        "start_within": "6h",
        "run_at": "2027-01-15T08:00:10.5+00:00",
        "max_attempts": 100,
        "on_interrupt": "fail",
        "transcript": True,
        "webhook_events": ["job.failed", "job.succeeded"],
    }
    url = "http://10.0.0.5:9000/hook?x=1"
    found = submit({"model": "m", "prompt": "p", "job": job, "state_webhook_url": url})
    assert (found.endpoint, found.priority, found.metadata) == ("/api/chat", -7, metadata)
    # What may not start yet has all its time still to come.
    assert (found.timeout, found.start_deadline) == (600.0, NOW + 10.5 + 21600.0)
    assert found.run_at == NOW + 10.5
    assert (found.max_attempts, found.on_interrupt, found.transcript) == (100, "fail", True)
    assert (found.webhook_url, found.webhook_events) == (url, ("job.failed", "job.succeeded"))
    assert found.body == b'{"model": "m", "prompt": "p"}'


@pytest.mark.parametrize(
    ("body", "rest"),
    [
        (b'{"model":"m","prompt":"p","job":{}}', b'{"model":"m","prompt":"p"}'),
        (b'{"job":{},"model":"m","prompt":"p"}', b'{"model":"m","prompt":"p"}'),
        (b'{"model":"m","job":{"priority":1}, "prompt" : "p"}', b'{"model":"m","prompt" : "p"}'),
        (
            b'{"job":{},"model":"m","prompt":"p","state_webhook_url":"http://h"}',
            b'{"model":"m","prompt":"p"}',
        ),
        (b' {\n "model":"m",\n "prompt":"p",\n "job":{}\n}\n', b'{\n "model":"m",\n "prompt":"p"\n}'),
        # Keys match as in Go: in any case, and the last one counts; all of them are taken off.
        (
            b'{"JOB":1,"model":"m","prompt":"p","Job":{"priority":1},"job":null}',
            b'{"model":"m","prompt":"p"}',
        ),
        (b'{"\\u006aob":{},"model":"m","prompt":"p"}', b'{"model":"m","prompt":"p"}'),
        ('{"ſtate_webhook_url":"http://h","model":"m","prompt":"p"}'.encode(), b'{"model":"m","prompt":"p"}'),
        # What Python would write anew in another way stays as it was.
        (
            '{"model":"m","prompt":"\u2028\u00e9\\u00e9\\/","n":1.50e+2,"b":100000000000000000001,"job":{}}'.encode(),
            '{"model":"m","prompt":"\u2028\u00e9\\u00e9\\/","n":1.50e+2,"b":100000000000000000001}'.encode(),
        ),
        # Ollama reads these, and so does foreman: lone surrogates, what is no UTF-8, bytes after the object.
        (b'{"model":"m","prompt":"\\ud800","job":{"priority":1}}', b'{"model":"m","prompt":"\\ud800"}'),
        (b'{"model":"m","prompt":"\xff","job":{"priority":1}}', b'{"model":"m","prompt":"\xff"}'),
        (b'{"model":"m","prompt":"p","job":{}} {"more":1} }', b'{"model":"m","prompt":"p"}'),
        # A key that comes twice, with values of which one begins the other.
        (b'{"n":12,"n":1,"model":"m","prompt":"p","job":{}}', b'{"n":12,"n":1,"model":"m","prompt":"p"}'),
        (
            b'{"n":[{"job":"]"}],"n":[],"model":"m","prompt":"p","job":{}}',
            b'{"n":[{"job":"]"}],"n":[],"model":"m","prompt":"p"}',
        ),
    ],
)
def test_rest_is_unchanged(body: bytes, rest: bytes) -> None:
    """Foreman's own two fields are taken off by bytes; nothing else is touched."""
    assert submit(body).body == rest


def test_last_of_two_equal_keys_counts() -> None:
    """As in Go, also for what foreman reads of the native body; null changes nothing."""
    assert submit(b'{"model":"a","prompt":"p","MODEL":"b","model":null}').line.model == "b"
    assert submit(b'{"job":{"priority":1},"model":"a","prompt":"p","Job":{"priority":2}}').priority == 2


@pytest.mark.parametrize(
    ("body", "endpoint", "takes_turn"),
    [
        ({"messages": []}, "/api/chat", True),
        ({"prompt": ""}, "/api/generate", True),
        ({"input": ["a"]}, "/api/embed", False),
        ({"input": "a", "job": {"endpoint": "/api/embed"}}, "/api/embed", False),
        ({"messages": [], "prompt": "p", "job": {"endpoint": "/api/generate"}}, "/api/generate", True),
        ({"messages": [], "prompt": None}, "/api/chat", True),
        ({"job": {"endpoint": "/api/chat"}}, "/api/chat", True),
    ],
)
def test_endpoint(body: dict[str, Any], endpoint: str, takes_turn: bool) -> None:
    """It follows from the body, or is named; embeddings bypass the turn."""
    found = submit({"model": "m", **body})
    assert (found.endpoint, found.line.takes_turn) == (endpoint, takes_turn)


@pytest.mark.parametrize("body", [{}, {"messages": [], "prompt": "p"}, {"messages": None}])
def test_endpoint_that_cannot_be_told(body: dict[str, Any]) -> None:
    """The complaint is about the body as a whole."""
    assert "endpoint" in complaints({"model": "m", **body})[""]


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({}, ""),
        ({"options": {"temperature": 1, "num_ctx": None}, "shift": True}, ""),
        ({"options": {"num_ctx": 8192.0}}, '{"num_ctx":8192}'),
        ({"options": {"use_mmap": False, "num_gpu": 0, "stop": ["x"]}}, '{"num_gpu":0,"use_mmap":false}'),
        (
            {"options": {"num_gpu": 0, "use_mmap": False}, "shift": False},
            '{"num_gpu":0,"shift":false,"use_mmap":false}',
        ),
        ({"options": {"num_ctx": "x", "num_gpu": 1e300}}, ""),
        ({"options": 3}, ""),
        ({"OPTIONS": {"num_ctx": 512, "NUM_GPU": 1}, "Shift": False}, '{"num_ctx":512,"shift":false}'),
        ({"options": {"num_ctx": 512}, "Options": None}, ""),
        ({"shift": False, "SHIFT": None}, ""),
    ],
)
def test_option_key(fields: dict[str, Any], key: str) -> None:
    """It is equal exactly when the options of the runner are."""
    assert submit({"model": "m", "prompt": "p", **fields}).line.option_key == key


def test_run_at_that_is_past() -> None:
    """It means now: the time to start begins with the submission."""
    found = with_job({"run_at": "1999-12-31T23:59:59Z", "start_within": "6h"})
    assert found.start_deadline == NOW + 21600.0
    assert found.run_at == 946684799.0


@pytest.mark.parametrize(
    ("job", "pointer", "word"),
    [
        (3, "/job", "object"),
        ([], "/job", "object"),
        ({"retain_for": "24h"}, "/job/retain_for", "no field"),
        ({"run_at": 1_796_090_400}, "/job/run_at", "2026-12-01T02:00:00Z"),
        ({"run_at": "2026-12-01T02:00:00"}, "/job/run_at", "+01:00"),
        ({"run_at": "tomorrow"}, "/job/run_at", "a moment is written as"),
        ({"run_at": "2028-01-17T08:00:00Z"}, "/job/run_at", "8784h"),
        ({"run_at": "9999-12-31T23:59:59.999999Z"}, "/job/run_at", 'is "9999-12-31T23:59:59.999999Z"'),
        ({"run_at": "9999-12-31T23:59:59-01:00"}, "/job/run_at", "a moment is written as"),
        ({"a/b~c": 1}, "/job/a~1b~0c", "no field"),
        ({"Priority": 1}, "/job/Priority", "no field"),
        ({"endpoint": "/v1/chat/completions"}, "/job/endpoint", "/api/embed"),
        ({"endpoint": ["/api/chat"]}, "/job/endpoint", "/api/embed"),
        ({"priority": "high"}, "/job/priority", "whole number"),
        ({"priority": 1.0}, "/job/priority", "whole number"),
        ({"priority": True}, "/job/priority", "whole number"),
        ({"priority": 1_000_001}, "/job/priority", "1000000"),
        ({"timeout": 10}, "/job/timeout", "duration"),
        ({"timeout": "10"}, "/job/timeout", "duration"),
        ({"timeout": "-1s"}, "/job/timeout", "duration"),
        ({"timeout": "9" * 400 + "h"}, "/job/timeout", "8784h"),
        ({"timeout": False}, "/job/timeout", "duration"),
        ({"start_within": "0s"}, "/job/start_within", "more than zero"),
        ({"start_within": "soon"}, "/job/start_within", "duration"),
        ({"max_attempts": 0}, "/job/max_attempts", "from 1 to 100"),
        ({"max_attempts": 101}, "/job/max_attempts", "from 1 to 100"),
        ({"on_interrupt": "restart"}, "/job/on_interrupt", '"retry" or "fail"'),
        ({"on_interrupt": {}}, "/job/on_interrupt", '"retry" or "fail"'),
        ({"webhook_events": "job.failed"}, "/job/webhook_events", 'is "job.failed": it is a list'),
        ({"webhook_events": {}}, "/job/webhook_events", "job.scheduled, job.queued, job.running"),
        ({"webhook_events": ["job.failed", "job.done"]}, "/job/webhook_events", '"job.done"'),
        ({"webhook_events": ["failed"]}, "/job/webhook_events", "job.expired"),
        ({"webhook_events": [None]}, "/job/webhook_events", "null"),
        ({"webhook_events": [["job.failed"]]}, "/job/webhook_events", "job.failed"),
        ({"transcript": "yes"}, "/job/transcript", "true or false"),
        ({"metadata": "x"}, "/job/metadata", "object"),
        ({"metadata": [1]}, "/job/metadata", "object"),
        ({"metadata": {"a": {}}}, "/job/metadata/a", "text"),
        ({"metadata": {"a": [1]}}, "/job/metadata/a", "text"),
        ({"metadata": {"": "x" * (METADATA_TEXT_CHARACTERS + 1)}}, "/job/metadata/", "513"),
        ({"metadata": {str(n): n for n in range(METADATA_PAIRS + 1)}}, "/job/metadata", "17"),
    ],
)
def test_field_of_job_that_cannot_be_used(job: Any, pointer: str, word: str) -> None:
    """Each complaint names the field by its pointer, and says what is allowed."""
    found = complaints({"model": "m", "prompt": "p", "job": job})
    assert list(found) == [pointer]
    assert word in found[pointer]


def test_values_at_their_limits() -> None:
    """What is just allowed is taken."""
    metadata: dict[str, Any] = {f"{n:0{METADATA_KEY_CHARACTERS}}": n for n in range(METADATA_PAIRS - 1)}
    metadata["text"] = "x" * METADATA_TEXT_CHARACTERS
    assert with_job({"metadata": metadata}).metadata == metadata
    assert with_job({"priority": -1_000_000}).priority == -1_000_000
    assert with_job({"timeout": "8784h"}).timeout == 8784 * 3600
    assert [with_job({"timeout": none}).timeout for none in ("0", "0s", 0, None)] == [0, 0, 0, None]
    assert with_job(None) == with_job({}) == submit({"model": "m", "prompt": "p"})


def test_key_of_metadata_that_is_too_long() -> None:
    """It is named, all the same."""
    key = "k" * (METADATA_KEY_CHARACTERS + 1)
    assert (
        "65 characters"
        in complaints({"model": "m", "prompt": "p", "job": {"metadata": {key: 1}}})[f"/job/metadata/{key}"]
    )


def test_number_beyond_any_float() -> None:
    """JSON can say it, and no answer could."""
    assert "/job/metadata/a" in complaints(b'{"model":"m","prompt":"p","job":{"metadata":{"a":1e999}}}')


def test_job_that_is_too_large() -> None:
    """Metadata is for a ticket's number, not for documents."""
    body = {"model": "m", "prompt": "p", "job": {"x": "y" * JOB_BYTES}}
    assert list(complaints(body)) == ["/job"]


@pytest.mark.parametrize("deep", [b"[" * 600 + b"]" * 600, b"[" * 20_000 + b"]" * 20_000])
def test_job_that_is_nested_too_deeply(deep: bytes) -> None:
    """It is refused by a sentence, not by a fault."""
    with pytest.raises((InvalidFields, NotJson)):
        submit(b'{"model":"m","prompt":"p","job":{"metadata":' + deep + b"}}")
    with pytest.raises((InvalidFields, NotJson)):
        submit(b'{"model":' + deep + b',"prompt":"p"}')


def test_options_that_are_too_large() -> None:
    """They are compared with those of other jobs; a text to read belongs into a message."""
    options = {"stop": ["x" * OPTIONS_BYTES]}
    assert list(complaints({"model": "m", "prompt": "p", "options": options})) == ["/options"]


@pytest.mark.parametrize("model", [None, "", "  ", 3, ["m"], "m" * (MODEL_CHARACTERS + 1)])
def test_model(model: Any) -> None:
    """A job names its model."""
    assert list(complaints({"model": model, "prompt": "p"})) == ["/model"]


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "https://example.org:8443/a/b?c=%20d",
        "HTTP://10.0.0.5:9000/hook",
        "http://[::1]:9000/",
        "http://bücher.example/",
    ],
)
def test_webhook_url(url: str) -> None:
    """It is kept as it was written."""
    assert submit({"model": "m", "prompt": "p", "state_webhook_url": url}).webhook_url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hook",
        "ftp://h/",
        "file:///etc/passwd",
        "http://",
        "http:///path",
        "http://h:0/",
        "http://h:99999/",
        "http://h:port/",
        "http://[::1/",
        "http://user@h/",
        "http://user:secret@h/",
        "http://h/a b",
        "http://h/\n",
        "http://h\\@other/",
        "http://h/\u0000",
        "http://h/\u2028",
        "http://h/\ud800",
        " http://h/",
        "http://h/" + "x" * 2048,
        3,
        ["http://h/"],
        {"url": "http://h/"},
    ],
)
def test_webhook_url_that_cannot_be_used(url: Any) -> None:
    """http or https, a host, no user, no control characters; a password is not repeated."""
    found = complaints({"model": "m", "prompt": "p", "state_webhook_url": url})
    assert list(found) == ["/state_webhook_url"]
    assert "secret" not in found["/state_webhook_url"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, None),
        ([], ()),
        (["job.running", "job.running"], ("job.running", "job.running")),
        (list(EVENTS), EVENTS),
    ],
)
def test_webhook_events(given: Any, kept: Any) -> None:
    """All by default, none with an empty list."""
    assert with_job({"webhook_events": given}).webhook_events == kept


def test_receiver_that_may_not_be_sent_to() -> None:
    """The complaint says why; a password is not repeated; what is no text never gets to the check."""

    def refuse(url: str) -> None:
        asked.append(url)
        raise ValueError("10.0.0.5 is not on the list of FOREMAN_WEBHOOK_ALLOW")

    asked: list[str] = []
    for url, shown in (("http://10.0.0.5/", "http://10.0.0.5/"), ("http://u:secret@10.0.0.5/", ""), (3, "")):
        body = json.dumps({"model": "m", "prompt": "p", "state_webhook_url": url}).encode()
        with pytest.raises(InvalidFields) as refused:
            parse(body, ID, NOW, refuse)
        (complaint,) = refused.value.complaints
        assert complaint["pointer"] == "/state_webhook_url"
        assert shown in complaint["detail"]
        assert "secret" not in complaint["detail"]
        assert ("FOREMAN_WEBHOOK_ALLOW" in complaint["detail"]) == (url != 3)
    assert asked == ["http://10.0.0.5/", "http://u:secret@10.0.0.5/"]


def test_all_complaints_at_once() -> None:
    """Nobody has to send a body twice to learn what else is wrong."""
    body = {"job": {"priority": "x", "y": 1, "metadata": {"a": []}, "timeout": 1}, "state_webhook_url": "x"}
    assert list(complaints(body)) == [
        "/job/priority",
        "/job/y",
        "/job/metadata/a",
        "/job/timeout",
        "/model",
        "",
        "/state_webhook_url",
    ]


def test_complaints_have_an_end() -> None:
    """A body full of mistakes does not make an answer without end."""
    assert len(complaints({"model": "m", "prompt": "p", "job": {str(n): 1 for n in range(1000)}})) == 100


def test_one_complaint_is_the_sentence() -> None:
    """With more, the sentence says how many."""
    with pytest.raises(InvalidFields, match=r"^/job/priority is \"x\": it is a whole number"):
        with_job({"priority": "x"})
    with pytest.raises(InvalidFields, match=r"^2 fields cannot be used"):
        with_job({"priority": "x", "max_attempts": 0})


def test_lone_surrogates_are_replaced() -> None:
    """In what foreman keeps for itself: no database and no answer could take them."""
    found = submit(
        b'{"model":"m\\ud800","prompt":"p","job":{"metadata":{"\\udc00":"\\ud83d\\ude00\\ud800"}}}'
    )
    assert found.line.model == "m\ufffd"
    assert found.metadata == {"\ufffd": "\U0001f600\ufffd"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"model=m",
        b"{",
        b'{"a":1',
        b'{"a":1,}',
        b'{"a":NaN}',
        b"[",
        b'"x',
        b"\xef\xbb\xbf{}",
        b"\xff",
        b"nope",
    ],
)
def test_not_json(body: bytes) -> None:
    """400: no field can be named."""
    with pytest.raises(NotJson):
        submit(body)


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"3", b"null", b"true", b'["\\ud800"]', b"[1] trailing"])
def test_not_an_object(body: bytes) -> None:
    """400, with a code of its own."""
    with pytest.raises(NotAnObject):
        submit(body)


def test_too_many_fields() -> None:
    """Each costs a step in the reactor's thread."""
    body = {"model": "m", "prompt": "p", **{str(n): 1 for n in range(MOST_FIELDS)}}
    with pytest.raises(NotJson, match="10000 fields"):
        submit(body)


def test_large_body_with_a_key_twice() -> None:
    """Where its first value ends could only be found in a time that nobody waits."""
    large = b'"' + b"x" * (9 << 20) + b'"'
    assert submit(b'{"model":"m","prompt":' + large + b',"prompt":"p","job":{}}').body.endswith(
        b'"prompt":"p"}'
    )
    with pytest.raises(NotJson, match="twice"):
        submit(b'{"model":"m","prompt":[' + large + b'],"prompt":[]}')


@given(st.binary(max_size=200))
def test_any_bytes(body: bytes) -> None:
    """Only foreman's own errors are raised, with a status of the caller's fault."""
    statuses = [202]
    try:
        submit(body)
    except ForemanError as error:
        statuses.append(error.status)
        json.dumps(error.members).encode()
    assert statuses[-1] in (202, 400, 422)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
_KEYS = (
    st.sampled_from(["job", "Job", "state_webhook_url", "model", "messages", "prompt", "options", "n"])
    | st.text()
)


@given(st.lists(st.tuples(_KEYS, _JSON), max_size=6), st.sampled_from(["", " ", "\n\t"]), st.booleans())
def test_any_object(pairs: list[tuple[str, Any]], space: str, ascii_only: bool) -> None:
    """The pairs that are not foreman's own stay as they were, in their order, with equal keys too."""

    def text(value: Any) -> str:
        return json.dumps(value, ensure_ascii=ascii_only)

    written = [f"{text(key)}{space}:{space}{text(value)}" for key, value in pairs]
    own = ("job", "state_webhook_url")
    kept = [
        text
        for (key, _), text in zip(pairs, written, strict=True)
        if key.lower().replace("ſ", "s") not in own
    ]
    head = '"model":"m","prompt":"p"'
    body = f"{{{space}{f'{space},{space}'.join([head, *written])}{space}}}".encode("utf-8", "surrogatepass")
    try:
        found = submit(body)
    except InvalidFields as error:
        json.dumps(error.members).encode()
        return
    assert json.loads(found.body, object_pairs_hook=list) == json.loads(
        f"{{{', '.join([head, *kept])}}}".encode("utf-8", "surrogatepass"), object_pairs_hook=list
    )
    for pair in kept:
        assert pair.encode("utf-8", "surrogatepass") in found.body
