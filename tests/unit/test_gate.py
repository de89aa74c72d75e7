"""What is decided about a request by its head alone, and in which order."""

import json

import pytest
from twisted.web.http_headers import Headers

from foreman.web.gate import Gate, Verdict
from foreman.web.origins import Origins

_LIMIT = 1000


def gate(token: str = "", *, checks_host: bool = True) -> Gate:
    """A gate with the path /healthz of its own."""
    return Gate(Origins(("https://chat.example",)), token, _LIMIT, frozenset({b"healthz"}), checks_host)


def judge(
    the_gate: Gate,
    method: bytes = b"POST",
    path: bytes = b"/api/chat",
    length: int | None = 0,
    **headers: str,
) -> Verdict:
    """The verdict on one request to ``localhost:8080``; an underscore in a name stands for a dash."""
    given = {"host": "localhost:8080", **{name.replace("_", "-"): text for name, text in headers.items()}}
    return the_gate.judge(method, path, Headers({name: [text] for name, text in given.items()}), length)


def status(verdict: Verdict) -> int | None:
    """The status of what ends the request, None when it is let in."""
    return None if verdict.answer is None else verdict.answer.status


def test_no_origin_no_headers() -> None:
    """Without an Origin nothing is added to the answer."""
    assert judge(gate()) == Verdict(None, [], _LIMIT)


def test_allowed_origin() -> None:
    """An allowed page gets the two headers that Ollama sends."""
    for origin in ("http://localhost:3000", "https://chat.example"):
        verdict = judge(gate(), origin=origin)
        assert status(verdict) is None
        assert verdict.headers == [
            (b"Access-Control-Allow-Origin", origin.encode()),
            (b"Vary", b"Origin"),
        ]


def test_own_paths_expose_headers() -> None:
    """Pages may read foreman's headers on its own paths; on native ones nothing differs from Ollama."""
    verdict = judge(gate(), b"GET", b"/healthz", origin="http://localhost")
    exposed = dict(verdict.headers)[b"Access-Control-Expose-Headers"]
    assert exposed == b"Location,Retry-After,X-Foreman-Job-Id,X-Foreman-Queue-Ms"


@pytest.mark.parametrize("method", [b"GET", b"POST", b"OPTIONS", b"HEAD"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_refused_origin(method: bytes, origin: str) -> None:
    """403 with nothing in it, for every method, before the token is even looked at."""
    verdict = judge(gate("s3cret"), method, origin=origin)
    assert verdict.answer is not None
    assert (verdict.answer.status, verdict.answer.headers, verdict.answer.body) == (403, [], b"")
    assert verdict.headers == []


def test_same_origin_needs_no_list() -> None:
    """A page of foreman's own gets no headers, and its OPTIONS is no preflight."""
    verdict = judge(gate(), b"OPTIONS", origin="http://gpu.local:8080", host="gpu.local:8080")
    assert verdict == Verdict(None, [], _LIMIT)


def test_preflight_needs_no_token() -> None:
    """Browsers send none with a preflight."""
    verdict = judge(gate("s3cret"), b"OPTIONS", origin="https://chat.example")
    assert verdict.answer is not None
    assert verdict.answer.status == 204
    assert (b"Allow", b"POST") in verdict.answer.headers


def test_options_without_origin_is_no_preflight() -> None:
    """It wants the token as any other request does."""
    assert status(judge(gate("s3cret"), b"OPTIONS")) == 401


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost:8080", None),
        ("127.0.0.1", None),
        ("[::1]:8080", None),
        ("evil.example", 403),
        ("8.8.8.8", 403),
    ],
)
def test_host_rule_on_loopback(host: str, expected: int | None) -> None:
    """A foreign Host on a loopback listener is DNS rebinding: 403 with nothing in it."""
    verdict = judge(gate(), host=host)
    assert status(verdict) == expected
    assert verdict.answer is None or (verdict.answer.headers, verdict.answer.body) == ([], b"")


def test_rebound_page_is_refused() -> None:
    """A rebound page is same-origin with its own Host; the Host rule stops it all the same."""
    assert status(judge(gate(), origin="http://evil.example:8080", host="evil.example:8080")) == 403


def test_host_rule_is_for_loopback_only() -> None:
    """Beyond loopback foreman may be reached under any name."""
    assert status(judge(gate(checks_host=False), host="ollama.example")) is None


@pytest.mark.parametrize(
    "path", [b"/", b"/api/tags", b"/nope", b"/v1/unknown", b"/healthz/x", b"/debug/pprof"]
)
def test_token_is_wanted_everywhere(path: bytes) -> None:
    """Everything but /healthz wants the token, what does not exist too."""
    verdict = judge(gate("s3cret"), b"GET", path)
    assert status(verdict) == 401
    assert verdict.headers == [(b"WWW-Authenticate", b'Bearer realm="foreman"')]


def test_healthz_never_wants_a_token() -> None:
    """Health checks have no secrets; the Host rule still holds there."""
    assert status(judge(gate("s3cret"), b"GET", b"/healthz")) is None
    assert status(judge(gate("s3cret"), b"GET", b"/healthz", host="evil.example")) == 403


def test_401_has_cors_headers() -> None:
    """An allowed page may read why it was refused."""
    verdict = judge(gate("s3cret"), origin="https://chat.example")
    assert status(verdict) == 401
    assert [name for name, _ in verdict.headers] == [
        b"Access-Control-Allow-Origin",
        b"Vary",
        b"WWW-Authenticate",
    ]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (b"/api/chat", "ollama"),
        (b"/", "ollama"),
        (b"/nope", "ollama"),
        (b"/v1/chat/completions", "openai"),
        (b"/v1/responses", "openai"),
        (b"/v1/unknown", "openai"),
        (b"/v1/messages", "anthropic"),
        (b"/healthz/x", "problem"),
    ],
)
def test_401_speaks_the_dialect_of_the_path(path: bytes, kind: str) -> None:
    """Each family of clients can read it."""
    answer = judge(gate("s3cret"), path=path).answer
    assert answer is not None
    body = json.loads(answer.body)
    content_type = dict(answer.headers)[b"Content-Type"]
    if kind == "ollama":
        assert content_type == b"application/json; charset=utf-8"
        assert body["error"].startswith("unauthorized: ")
    elif kind == "openai":
        assert content_type == b"application/json"
        assert (body["error"]["type"], body["error"]["code"]) == ("authentication_error", "unauthorized")
    elif kind == "anthropic":
        assert (body["type"], body["error"]["type"]) == ("error", "authentication_error")
    else:
        assert content_type == b"application/problem+json"
        assert (body["status"], body["code"]) == (401, "unauthorized")


@pytest.mark.parametrize(
    ("path", "length", "expected"),
    [
        (b"/api/chat", _LIMIT, None),
        (b"/api/chat", _LIMIT + 1, 413),
        (b"/healthz", _LIMIT + 1, 413),
        (b"/nope", _LIMIT + 1, 413),
        (b"/api/chat", None, None),
        (b"/api/blobs/sha256:abc", 10**12, None),
        (b"/api/blobs/sha256:abc", None, None),
        (b"/api/blobs/a/b", _LIMIT + 1, 413),
    ],
)
def test_declared_length(path: bytes, length: int | None, expected: int | None) -> None:
    """A length over the limit is refused by the head; blobs have no limit; a chunked body says none."""
    verdict = judge(gate(), path=path, length=length)
    assert status(verdict) == expected
    if expected is None:
        assert verdict.body_limit == (None if path.startswith(b"/api/blobs/sha") else _LIMIT)


def test_stranger_learns_nothing_of_limits() -> None:
    """The token comes before the size."""
    assert status(judge(gate("s3cret"), length=_LIMIT + 1)) == 401


def test_only_the_first_segment_makes_a_path_foremans_own() -> None:
    """What merely begins like an own path is the target's."""
    the_gate = gate()
    assert [
        the_gate.is_own(path) for path in (b"/healthz", b"/healthz/x", b"/healthzz", b"/api/healthz", b"*")
    ] == [
        True,
        True,
        False,
        False,
        False,
    ]
