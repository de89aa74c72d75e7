"""
Ollama's routes, as data: which methods each has, and what foreman does with a request to it.

The list is that of Ollama v0.33 (``GenerateRoutes``) joined with what v0.24 still had.
"""

from enum import Enum
from urllib.parse import unquote_to_bytes

from attrs import field, frozen


class Handling(Enum):
    """What foreman does with a request."""

    TURN = "takes a turn"
    BYPASS = "bypasses the queue"
    REFUSE = "is not relayed"


class Streaming(Enum):
    """What an absent ``stream`` means."""

    NEVER = "never"
    BY_DEFAULT = "unless false"
    ON_REQUEST = "if true"


@frozen
class Route:
    """
    One path of the target.

    `methods` are in the order of Ollama's ``Allow``. `prompt` names the field whose emptiness makes a
    request the load form, or with ``keep_alive`` 0 the unload form. `changes_models`: the inventory is
    read anew afterwards. `bounded_body`: the limit for JSON bodies holds (blobs have none).
    `waits_for_ever`: the answer comes when a transfer of any size is done, so its silence has no limit.
    """

    methods: tuple[str, ...] = field(default=())
    handling: Handling = Handling.BYPASS
    streaming: Streaming = Streaming.NEVER
    prompt: str | None = None
    changes_models: bool = False
    bounded_body: bool = True
    waits_for_ever: bool = False
    known: bool = True


def _turn(streaming: Streaming, prompt: str | None = None) -> Route:
    return Route(("POST",), Handling.TURN, streaming, prompt)


def _store(method: str = "POST", streaming: Streaming = Streaming.BY_DEFAULT) -> Route:
    return Route((method,), streaming=streaming, changes_models=True, waits_for_ever=True)


_READ = Route(("HEAD", "GET"))
_GET = Route(("GET",))
_POST = Route(("POST",))

ROUTES: dict[bytes, Route] = {
    b"/": _READ,
    b"/api/version": _READ,
    b"/api/tags": _READ,
    b"/api/status": _GET,
    b"/api/ps": _GET,
    b"/api/show": _POST,
    b"/api/generate": _turn(Streaming.BY_DEFAULT, "prompt"),
    b"/api/chat": _turn(Streaming.BY_DEFAULT, "messages"),
    b"/api/embed": _POST,
    b"/api/embeddings": _POST,
    b"/api/pull": _store(),
    b"/api/create": _store(),
    b"/api/push": Route(("POST",), streaming=Streaming.BY_DEFAULT, waits_for_ever=True),
    b"/api/copy": _store(streaming=Streaming.NEVER),
    b"/api/delete": _store("DELETE", Streaming.NEVER),
    b"/api/me": _POST,
    b"/api/signout": _POST,
    b"/api/experimental/web_search": _POST,
    b"/api/experimental/web_fetch": _POST,
    b"/api/experimental/model-recommendations": _GET,
    b"/v1/chat/completions": _turn(Streaming.ON_REQUEST),
    b"/v1/completions": _turn(Streaming.ON_REQUEST),
    b"/v1/responses": _turn(Streaming.ON_REQUEST),
    b"/v1/messages": _turn(Streaming.ON_REQUEST),
    b"/v1/audio/transcriptions": _turn(Streaming.ON_REQUEST),
    b"/v1/embeddings": _POST,
    b"/v1/models": _GET,
}
_BELOW: tuple[tuple[bytes, Route], ...] = (
    (b"/api/blobs/", Route(("HEAD", "POST"), bounded_body=False, waits_for_ever=True)),
    (b"/api/user/keys/", Route(("DELETE",))),
    (b"/v1/models/", _GET),
)
# A new endpoint of a newer Ollama most likely generates: let through, it would run beside the turn.
_NEW_V1 = Route(("POST",), Handling.TURN, Streaming.ON_REQUEST, known=False)
_UNKNOWN = Route(known=False)
# Go's profiler stands on Ollama's own port, for anybody who can reach it.
_PROFILER = Route(handling=Handling.REFUSE)


def find(path: bytes) -> Route:
    """The route of a path as it stands in the request line, without its query."""
    if b"%" in path:
        # Ollama's router matches the decoded path: without this /api/%63hat would run beside the turn.
        path = unquote_to_bytes(path)
    route = ROUTES.get(path)
    if route is not None:
        return route
    for prefix, route in _BELOW:
        if path.startswith(prefix) and b"/" not in path[len(prefix) :]:
            return route
    segments = [segment for segment in path.split(b"/") if segment not in (b"", b".")]
    if segments[:2] == [b"debug", b"pprof"] or b".." in segments:
        return _PROFILER
    return _NEW_V1 if segments[:1] == [b"v1"] else _UNKNOWN


def takes_turn(route: Route, method: bytes) -> bool:
    """Whether a request by this method may generate."""
    return route.handling is Handling.TURN and method == b"POST"
