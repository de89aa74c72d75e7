"""Which origins' pages and which host names may call: Ollama's own lists."""

import socket

import pytest

from foreman.target.routes import ROUTES
from foreman.web.origins import Origins, host_allowed, same_origin

_LOCAL_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0")


@pytest.mark.parametrize(
    "origin",
    [
        *(
            f"{scheme}://{host}{port}"
            for scheme in ("http", "https")
            for host in _LOCAL_HOSTS
            for port in ("", ":3000")
        ),
        "app://obsidian.md",
        "file://",
        "file:///home/me/page.html",
        "tauri://localhost",
        "vscode-webview://1a2b3c",
        "vscode-file://vscode-app",
        "chrome-extension://abcdef",
        "moz-extension://abc-def",
        "safari-extension://abc",
        "ms-browser-extension://abc",
        "HTTP://LOCALHOST:3000",
    ],
)
def test_ollamas_own_origins_may_call(origin: str) -> None:
    """Ollama's default list holds, with any port, and in any case."""
    assert Origins().allows(origin)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "https://evil.example",
        "http://localhost.evil.example",
        "http://localhost.evil.example:3000",
        "http://evil.example/http://localhost",
        "http://127.0.0.1.nip.io",
        "http://127.0.0.2",
        "http://192.168.1.5",
        "http://[::1]:3000",
        "http://xlocalhost",
        "ftp://localhost",
        "myapp://x",
        "http://localhost\n",
        " http://localhost",
        "*",
    ],
)
def test_others_may_not(origin: str) -> None:
    """Whatever only looks like one of the list is refused; ``null`` (a sandboxed page) as well."""
    assert not Origins().allows(origin)


@pytest.mark.parametrize(
    ("listed", "origin", "allowed"),
    [
        ("https://chat.example", "https://chat.example", True),
        ("https://chat.example", "https://CHAT.example", True),
        ("https://Chat.Example", "https://chat.example", True),
        ("https://chat.example", "http://chat.example", False),
        ("https://chat.example", "https://chat.example:8443", False),
        ("https://chat.example", "https://chatXexample", False),
        ("https://chat.example:*", "https://chat.example:8443", True),
        ("https://*.example", "https://a.b.example", True),
        ("https://*.example", "https://example", False),
        ("https://*.example", "https://a.example.evil", False),
        ("http://*.lan:*", "http://gpu.lan:3000", True),
        ("http://*.lan:*", "http://gpu.lan", False),
        ("*", "https://anything.example", True),
        ("*", "null", True),
        ("null", "null", True),
        ("https://(a|b).example", "https://a.example", False),
        ("https://(a|b).example", "https://(a|b).example", True),
    ],
)
def test_more_origins(listed: str, origin: str, allowed: bool) -> None:
    """FOREMAN_ORIGINS adds to the list; only ``*`` has a meaning of its own in it."""
    assert Origins((listed,)).allows(origin) is allowed


def test_more_origins_take_nothing_away() -> None:
    """With FOREMAN_ORIGINS set, Ollama's own list still holds, and each entry counts."""
    origins = Origins(("https://a.example", "https://b.example"))
    assert all(map(origins.allows, ("https://a.example", "https://b.example", "http://localhost:3000")))
    assert not origins.allows("https://c.example")


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        (b"http://gpu.lan:8080", b"gpu.lan:8080", True),
        (b"https://gpu.lan", b"gpu.lan", True),
        (b"http://[::1]:8080", b"[::1]:8080", True),
        (b"http://gpu.lan", b"gpu.lan:8080", False),
        (b"http://gpu.lan:8080", b"gpu.lan:8081", False),
        (b"http://evil.example", b"gpu.lan:8080", False),
        (b"ws://gpu.lan", b"gpu.lan", False),
        (b"null", b"", False),
        (b"http://", b"", True),
    ],
)
def test_same_origin(origin: bytes, host: bytes, same: bool) -> None:
    """A page that foreman served: its origin is the Host, with either scheme before it."""
    assert same_origin(origin, host) is same


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost",
        "LOCALHOST:8080",
        "127.0.0.1",
        "127.0.0.1:8080",
        "127.9.9.9",
        "[::1]",
        "[::1]:8080",
        "0.0.0.0:8080",
        "[::]:8080",
        "10.0.0.5:8080",
        "172.16.3.4",
        "192.168.1.5:8080",
        "[fd00::5]:8080",
        "app.localhost",
        "a.b.localhost:8080",
        "gpu.local",
        "gpu.local:8080",
        "host.docker.internal:8080",
        socket.gethostname(),
        f"{socket.gethostname().upper()}:8080",
    ],
)
def test_host_allowed(host: str) -> None:
    """Names and addresses that only this machine or its own network can mean."""
    assert host_allowed(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.nip.io",
        "127.0.0.1.evil.example:8080",
        "localhost.evil.example",
        "localhost:8080.evil.example",
        "local",
        "internal",
        "evillocalhost",
        "8.8.8.8",
        "8.8.8.8:8080",
        "172.32.0.1",
        "[2606:4700::1111]:8080",
        "[::1].evil.example",
        "[::1",
        "gpu",
        "0x7f000001.example",
        "localhost@evil.example",
    ],
)
def test_host_refused(host: str) -> None:
    """A name that a stranger can point at this machine (DNS rebinding), or an address out in the world."""
    assert not host_allowed(host)


@pytest.mark.parametrize(("path", "route"), ROUTES.items())
def test_preflight_names_the_methods_of_each_route(path: bytes, route: object) -> None:
    """Ollama's ``Allow`` in a preflight holds the route's methods in its order."""
    headers = dict(Origins().preflight_headers(b"http://localhost", path, own=False))
    assert headers[b"Allow"] == b", ".join(method.encode() for method in ROUTES[path].methods)


def test_preflight_of_own_and_unknown_paths() -> None:
    """Own paths allow more headers; of an unknown path nobody knows the methods."""
    own = dict(Origins().preflight_headers(b"http://localhost", b"/healthz", own=True))
    for name in ("Prefer", "Idempotency-Key", "If-None-Match", "Last-Event-ID", "Range", "X-Request-Id"):
        assert name in own[b"Access-Control-Allow-Headers"].decode().split(",")
    unknown = dict(Origins().preflight_headers(b"http://localhost", b"/nope", own=False))
    assert b"Allow" not in unknown
    assert b"Prefer" not in unknown[b"Access-Control-Allow-Headers"]
