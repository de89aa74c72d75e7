"""
Which browsers' pages and which host names may call: Ollama's own rules, applied before the relay.

The target never sees an Origin and always sees its own Host, so its protection against foreign pages
(CORS) and against DNS rebinding (the Host rule on loopback) would be lost if foreman did not apply them.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable
from functools import lru_cache

from attrs import define, field

from foreman.target import routes

_LOCAL_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0")
_DEFAULT_ORIGINS = (
    *(f"{scheme}://{host}" for host in _LOCAL_HOSTS for scheme in ("http", "https")),
    *(f"{scheme}://{host}:*" for host in _LOCAL_HOSTS for scheme in ("http", "https")),
    *(f"{scheme}://*" for scheme in ("app", "file", "tauri", "vscode-webview", "vscode-file")),
    *(f"{browser}-extension://*" for browser in ("chrome", "safari", "moz", "ms-browser")),
)
# As Ollama v0.24 answers them (golden: cors-preflight).
_ALLOWED_HEADERS = (
    "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,"
    "X-Stainless-Async,X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,"
    "X-Stainless-Os,X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,"
    "X-Stainless-Runtime,X-Stainless-Runtime-Version,X-Stainless-Timeout"
)
_OWN_ALLOWED_HEADERS = (
    f"{_ALLOWED_HEADERS},Prefer,Idempotency-Key,If-None-Match,Last-Event-ID,Range,X-Request-Id,X-Api-Key"
)
_OWN_EXPOSED_HEADERS = "Location,Retry-After,X-Foreman-Job-Id,X-Foreman-Queue-Ms"
_ALLOWED_METHODS = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
_MAX_AGE_SECONDS = 43200
_LOCAL_DOMAINS = (".localhost", ".local", ".internal")

Headers = list[tuple[bytes, bytes]]


def _pattern(origins: Iterable[str]) -> re.Pattern[str]:
    alternatives = (".*".join(re.escape(part) for part in origin.lower().split("*")) for origin in origins)
    return re.compile("|".join(f"(?:{alternative})" for alternative in alternatives))


@define
class Origins:
    """The allow-list for ``Origin``: Ollama's own entries and those of FOREMAN_ORIGINS."""

    _more: tuple[str, ...] = ()
    _allowed: re.Pattern[str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._allowed = _pattern((*_DEFAULT_ORIGINS, *self._more))

    def allows(self, origin: str) -> bool:
        """Whether pages of this origin may call."""
        return self._allowed.fullmatch(origin.lower()) is not None

    def answer_headers(self, origin: bytes, own: bool) -> Headers:
        """What an answer to an allowed origin carries; `own`: on foreman's own paths."""
        headers = [(b"Access-Control-Allow-Origin", origin), (b"Vary", b"Origin")]
        if own:
            headers.append((b"Access-Control-Expose-Headers", _OWN_EXPOSED_HEADERS.encode()))
        return headers

    def preflight_headers(self, origin: bytes, path: bytes, own: bool) -> Headers:
        """What a preflight's 204 carries; on native paths exactly what Ollama sends."""
        headers = [
            (b"Access-Control-Allow-Headers", (_OWN_ALLOWED_HEADERS if own else _ALLOWED_HEADERS).encode()),
            (b"Access-Control-Allow-Methods", _ALLOWED_METHODS.encode()),
            (b"Access-Control-Allow-Origin", origin),
            (b"Access-Control-Max-Age", b"%d" % _MAX_AGE_SECONDS),
        ]
        methods = () if own else routes.find(path).methods
        if methods:
            headers.append((b"Allow", ", ".join(methods).encode()))
        vary = (b"Origin", b"Access-Control-Request-Method", b"Access-Control-Request-Headers")
        return headers + [(b"Vary", value) for value in vary]


def same_origin(origin: bytes, host: bytes) -> bool:
    """A page that foreman itself served, or a client that copies its URL into ``Origin``."""
    return origin in (b"http://" + host, b"https://" + host)


@lru_cache(maxsize=256)  # 25 µs of each request otherwise, a tenth of its whole cost
def host_allowed(host_header: str) -> bool:
    """
    Ollama's Host rule for a listener on loopback.

    Passed: loopback, private and unspecified addresses, this machine's own name, ``localhost`` and
    anything below ``.localhost``, ``.local`` and ``.internal``.
    """
    host = re.sub(r":\d+$", "", host_header).strip("[]").lower()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        own_name = socket.gethostname().lower()
        return host in ("", "localhost", own_name) or host.endswith(_LOCAL_DOMAINS)
    return address.is_loopback or address.is_private or address.is_unspecified
