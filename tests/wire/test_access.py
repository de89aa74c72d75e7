"""Who may: every route with no, wrong and right credentials, preflights, and what becomes of a credential."""

import base64
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_twisted
from intake_helpers import Answer, Wired, check_error, dialect_of, wired
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from foreman.target.routes import ROUTES, Handling, find

TOKEN = "s3cret-of-foreman"
OLLAMA_TOKEN = "s3cret-of-ollama"
CALLERS_TOKEN = "s3cret-of-caller"
ALLOWED = "http://localhost:3000"
REFUSED = "https://evil.example"

# Each path with each of its methods, and with what it does not have.
ROUTES_WALKED = [
    *((method, path.decode()) for path, route in ROUTES.items() for method in route.methods),
    ("HEAD", "/api/blobs/sha256:abc"),
    ("POST", "/api/blobs/sha256:abc"),
    ("DELETE", "/api/user/keys/abc"),
    ("GET", "/v1/models/alpha"),
    ("GET", "/debug/pprof/"),
    ("GET", "/nope"),
    ("POST", "/nope"),
    ("GET", "/api/tags/"),
    ("POST", "/api/%63hat"),
    ("POST", "/v1/unknown"),
    ("GET", "/v1/unknown"),
    ("DELETE", "/api/chat"),
    ("POST", "/healthz/x"),
]
PATHS_WALKED = sorted({path for _, path in ROUTES_WALKED} | {"/healthz"})


def basic(user: str, password: str) -> str:
    """The value of ``Authorization`` for user and password."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


WRONG = {
    "none": {},
    "bearer": {"Authorization": "Bearer wrong"},
    "x-api-key": {"x-api-key": "wrong"},
    "basic": {"Authorization": basic("me", "wrong")},
    "user": {"Authorization": basic(TOKEN, "")},
    "malformed": {"Authorization": "Basic %%%"},
    "bare": {"Authorization": TOKEN},
    "ollama's": {"Authorization": f"Bearer {OLLAMA_TOKEN}"},
}
RIGHT = {
    "bearer": {"Authorization": f"Bearer {TOKEN}"},
    "x-api-key": {"X-Api-Key": TOKEN},
    "basic": {"Authorization": basic("me", TOKEN)},
    "both": {"Authorization": f"Bearer {CALLERS_TOKEN}", "x-api-key": TOKEN},
}


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Every line that is logged meanwhile."""
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        lines.append(formatEvent(event) + repr(event.get("log_failure", "")))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


@pytest_twisted.async_yield_fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Wired]:
    """A foreman that wants a token, and has another one for its target."""
    async with wired(tmp_path, TOKEN=TOKEN, OLLAMA_TOKEN=OLLAMA_TOKEN) as made:
        yield made


@pytest_twisted.async_yield_fixture
async def plain(tmp_path: Path) -> AsyncIterator[Wired]:
    """A foreman without any token."""
    async with wired(tmp_path) as made:
        yield made


def check_401(answer: Answer, method: str, path: str) -> None:
    """The refusal in the path's dialect, with its challenge."""
    assert answer.header("www-authenticate") == 'Bearer realm="foreman"'
    assert "server" not in answer.names
    assert "x-foreman-job-id" not in answer.names
    if method == "HEAD":
        assert answer.status == 401
        return
    check_error(answer, dialect_of(path), 401, "unauthorized")


@pytest.mark.parametrize("kind", WRONG)
async def test_every_route_wants_the_token(guarded: Wired, kind: str, logged: list[str]) -> None:
    """Without it: 401 in the dialect of the path, and nothing reaches the target."""
    for method, path in ROUTES_WALKED:
        answer = await guarded.ask(method, path, WRONG[kind])
        check_401(answer, method, path)
        assert "access-control-allow-origin" not in answer.names
        answer = await guarded.ask(method, path, {**WRONG[kind], "Origin": ALLOWED})
        check_401(answer, method, path)
        assert answer.header("access-control-allow-origin") == ALLOWED
        assert answer.header("vary") == "Origin"
    assert guarded.target.requests == []
    assert not [line for line in logged if "s3cret" in line]


@pytest.mark.parametrize("kind", WRONG)
async def test_refused_before_the_body_is_read(guarded: Wired, kind: str) -> None:
    """A stranger's upload is refused by its head."""
    for path in ("/api/chat", "/api/blobs/sha256:abc", "/v1/messages"):
        answer = await guarded.ask("POST", path, {**WRONG[kind], "Content-Length": "1000000000"})
        check_401(answer, "POST", path)
        answer = await guarded.ask("POST", path, {**WRONG[kind], "Transfer-Encoding": "chunked"})
        check_401(answer, "POST", path)
    assert guarded.target.requests == []


@pytest.mark.parametrize("kind", RIGHT)
async def test_every_route_with_the_token(guarded: Wired, kind: str, logged: list[str]) -> None:
    """With it, every route is answered by the target, which sees its own token and none of the caller's."""
    for method, path in ROUTES_WALKED:
        before = len(guarded.target.requests)
        answer = await guarded.ask(method, path, RIGHT[kind])
        assert answer.status != 401
        assert "www-authenticate" not in answer.names
        # foreman asks things of its own in between, of other paths.
        paths = (path, path.replace("%63", "c"))
        relayed = [exchange for exchange in guarded.target.requests[before:] if exchange.path in paths]
        if path == "/healthz/x":
            check_own_404(answer, "not_found")
            assert relayed == []
            continue
        if find(path.encode()).handling is Handling.REFUSE:
            assert (answer.status, answer.body, relayed) == (404, b"404 page not found", [])
            assert answer.header("date") is not None
            continue
        assert relayed, f"{method} {path} never reached the target"
    for exchange in guarded.target.requests:
        assert exchange.headers["authorization"] == f"Bearer {OLLAMA_TOKEN}"
        assert "x-api-key" not in exchange.headers
        assert TOKEN not in repr(exchange.headers)
        assert CALLERS_TOKEN not in repr(exchange.headers)
    assert not [line for line in logged if "s3cret" in line]


def check_own_404(answer: Answer, code: str) -> None:
    """A problem of foreman's own path."""
    assert answer.status == 404
    assert answer.header("content-type") == "application/problem+json"
    assert f'"code":"{code}"'.encode() in answer.body


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_healthz_never_wants_a_token(guarded: Wired, method: str) -> None:
    """With any credential or none it is 200."""
    for headers in (*WRONG.values(), *RIGHT.values()):
        assert (await guarded.ask(method, "/healthz", headers)).status == 200
    assert guarded.target.requests == []


async def test_browser_is_asked_for_its_password(guarded: Wired) -> None:
    """A page that is opened gets the challenge that makes a browser ask."""
    answer = await guarded.ask("GET", "/", {"Accept": "text/html,*/*;q=0.8"})
    assert answer.status == 401
    assert answer.header("www-authenticate") == 'Basic realm="foreman", charset="UTF-8"'


# Preflights and origins


@pytest.mark.parametrize("path", PATHS_WALKED)
async def test_preflight(guarded: Wired, path: str) -> None:
    """204 without a token for an allowed origin, 403 with nothing in it for another; the target sees none."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    answer = await guarded.ask("OPTIONS", path, {"Origin": ALLOWED, **asked})
    assert (answer.status, answer.body) == (204, b"")
    assert answer.header("access-control-allow-origin") == ALLOWED
    assert answer.header("access-control-allow-methods") == "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
    assert answer.header("access-control-max-age") == "43200"
    assert answer.header("vary") == "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
    assert {"date"} <= answer.names
    assert not {"content-type", "content-length", "transfer-encoding", "server"} & answer.names
    allowed_headers = (answer.header("access-control-allow-headers") or "").split(",")
    assert "Authorization" in allowed_headers
    own = path.startswith("/healthz")
    assert ("Prefer" in allowed_headers) is own
    methods = () if own else find(path.encode()).methods
    assert answer.header("allow") == (", ".join(methods) or None)

    answer = await guarded.ask("OPTIONS", path, {"Origin": REFUSED, **asked})
    assert (answer.status, answer.body) == (403, b"")
    assert answer.names == {"date", "content-length"}
    assert guarded.target.requests == []


@pytest.mark.parametrize("origin", [REFUSED, "null"])
async def test_refused_origin_on_every_route(guarded: Wired, origin: str) -> None:
    """403 with nothing in it, the right token or not, /healthz included."""
    for method, path in (*ROUTES_WALKED, ("GET", "/healthz")):
        for credential in ({}, RIGHT["bearer"]):
            answer = await guarded.ask(method, path, {"Origin": origin, **credential})
            assert (answer.status, answer.body) == (403, b"")
            assert answer.names == {"date", "content-length"}
    assert guarded.target.requests == []


async def test_foreign_host_on_every_route(guarded: Wired) -> None:
    """A loopback listener refuses a foreign Host in the same way: DNS rebinding."""
    for method, path in (*ROUTES_WALKED, ("GET", "/healthz")):
        answer = await guarded.ask(method, path, {"Host": "evil.example", **RIGHT["bearer"]})
        assert (answer.status, answer.body) == (403, b"")
        assert answer.names == {"date", "content-length"}
    assert guarded.target.requests == []


async def test_allowed_origin_is_not_forwarded(plain: Wired) -> None:
    """The target sees neither Origin nor Referer; the page sees the headers of Ollama's own CORS."""
    answer = await plain.ask("GET", "/api/version", {"Origin": ALLOWED, "Referer": f"{ALLOWED}/chat"})
    assert answer.status == 200
    assert answer.header("access-control-allow-origin") == ALLOWED
    (exchange,) = plain.target.requests
    assert not {"origin", "referer"} & exchange.headers.keys()


async def test_more_origins(tmp_path: Path) -> None:
    """FOREMAN_ORIGINS reaches the gate."""
    async with wired(tmp_path, ORIGINS="https://*.example") as foreman:
        answer = await foreman.ask("GET", "/api/version", {"Origin": "https://chat.example"})
        assert (answer.status, answer.header("access-control-allow-origin")) == (200, "https://chat.example")
        assert (await foreman.ask("GET", "/api/version", {"Origin": "https://chat.test"})).status == 403


# What becomes of a credential


async def test_without_a_token_the_callers_credential_passes(plain: Wired) -> None:
    """Whoever protects the target itself gives the caller a token for it."""
    for headers in ({"Authorization": f"Bearer {CALLERS_TOKEN}"}, {"Authorization": basic("me", "x")}):
        await plain.ask("GET", "/api/version", headers)
        assert plain.target.requests[-1].headers["authorization"] == headers["Authorization"]
    await plain.ask("GET", "/api/version", {"X-Api-Key": CALLERS_TOKEN})
    assert plain.target.requests[-1].headers["x-api-key"] == CALLERS_TOKEN
    assert "authorization" not in plain.target.requests[-1].headers


async def test_the_targets_token_replaces_the_callers(tmp_path: Path) -> None:
    """FOREMAN_OLLAMA_TOKEN takes the place of whatever Authorization came."""
    async with wired(tmp_path, OLLAMA_TOKEN=OLLAMA_TOKEN) as foreman:
        for headers in ({}, {"Authorization": f"Bearer {CALLERS_TOKEN}"}):
            await foreman.ask("GET", "/api/version", headers)
            assert foreman.target.requests[-1].headers["authorization"] == f"Bearer {OLLAMA_TOKEN}"


async def test_checked_credential_is_not_replaced_by_nothing(tmp_path: Path) -> None:
    """With only FOREMAN_TOKEN the target gets no credential at all, foreman's own least of all."""
    async with wired(tmp_path, TOKEN=TOKEN) as foreman:
        for kind, headers in RIGHT.items():
            answer = await foreman.ask("GET", "/api/version", headers)
            assert answer.status == 200, kind
            seen = foreman.target.requests[-1].headers
            assert not {"authorization", "x-api-key"} & seen.keys()
