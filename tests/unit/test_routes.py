"""The table of the target's routes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreman.target.routes import ROUTES, Handling, Streaming, find, takes_turn

GENERATING = [
    b"/api/chat",
    b"/api/generate",
    b"/v1/audio/transcriptions",
    b"/v1/chat/completions",
    b"/v1/completions",
    b"/v1/messages",
    b"/v1/responses",
]
MORE_PATHS = [b"/api/blobs/sha256:0", b"/api/user/keys/k", b"/v1/models/smol", b"/api/new", b"/v1/new"]


def test_exactly_these_routes_take_a_turn():
    """What generates on the target's GPU is listed in the design, and nothing else waits."""
    assert sorted(path for path in ROUTES if takes_turn(ROUTES[path], b"POST")) == GENERATING


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"PUT", b"post"])
def test_only_post_takes_a_turn(method: bytes):
    """Anything else on a generating path is answered by the target at once, with 404 or 405."""
    assert not any(takes_turn(find(path), method) for path in [*GENERATING, *MORE_PATHS])


@pytest.mark.parametrize(
    ("path", "handling", "known"),
    [
        (b"/", Handling.BYPASS, True),
        (b"/api/tags", Handling.BYPASS, True),
        (b"/api/blobs/sha256:00", Handling.BYPASS, True),
        (b"/api/blobs/a/b", Handling.BYPASS, False),
        (b"/api/user/keys/abc", Handling.BYPASS, True),
        (b"/v1/models/library/smol", Handling.TURN, False),
        (b"/v1/models/smol", Handling.BYPASS, True),
        (b"/v1/embeddings", Handling.BYPASS, True),
        (b"/v1/images/generations", Handling.TURN, False),
        (b"/v1", Handling.TURN, False),
        (b"/v2/chat", Handling.BYPASS, False),
        (b"/api/chat/", Handling.BYPASS, False),
        (b"/api/chatter", Handling.BYPASS, False),
        (b"/debug/pprof", Handling.REFUSE, True),
        (b"/debug/pprof/heap", Handling.REFUSE, True),
        (b"//debug//pprof/", Handling.REFUSE, True),
        (b"/debug/./pprof/heap", Handling.REFUSE, True),
        (b"/api/../debug/pprof", Handling.REFUSE, True),
        (b"/debug/%70prof/heap", Handling.REFUSE, True),
        (b"/%2e%2e/debug/pprof", Handling.REFUSE, True),
        (b"/debug/other", Handling.BYPASS, False),
        (b"*", Handling.BYPASS, False),
        (b"", Handling.BYPASS, False),
    ],
)
def test_where_a_path_belongs(path: bytes, handling: Handling, known: bool):
    """Listed paths exactly, new ones below /v1 with a turn, the profiler not at all, the rest at once."""
    route = find(path)
    assert (route.handling, route.known) == (handling, known)


@given(st.sampled_from(sorted(ROUTES)), st.data())
def test_an_escaped_path_is_the_same_path(path: bytes, data: st.DataObject):
    """Ollama's router decodes first: an escape must not lead around the turn."""
    escaped = b"".join(
        b"%%%02X" % byte if data.draw(st.booleans()) else bytes([byte])
        for byte in path[1:]  # the first slash makes it a path
    )
    assert find(b"/" + escaped) is ROUTES[path]


@given(st.binary(max_size=60))
def test_every_path_has_a_route(path: bytes):
    """Whatever a request line holds, there is an answer to what to do with it."""
    assert find(path).handling in Handling


@pytest.mark.parametrize(
    ("path", "streaming", "prompt"),
    [
        (b"/api/chat", Streaming.BY_DEFAULT, "messages"),
        (b"/api/generate", Streaming.BY_DEFAULT, "prompt"),
        (b"/api/pull", Streaming.BY_DEFAULT, None),
        (b"/api/push", Streaming.BY_DEFAULT, None),
        (b"/api/create", Streaming.BY_DEFAULT, None),
        (b"/v1/chat/completions", Streaming.ON_REQUEST, None),
        (b"/v1/new", Streaming.ON_REQUEST, None),
        (b"/api/embed", Streaming.NEVER, None),
        (b"/api/copy", Streaming.NEVER, None),
    ],
)
def test_what_an_absent_stream_means(path: bytes, streaming: Streaming, prompt: str | None):
    """Ollama's own API streams unless told not to; the compatible ones only when asked."""
    assert (find(path).streaming, find(path).prompt) == (streaming, prompt)


def test_what_changes_the_models_is_read_anew():
    """After these the inventory asks again; copying and deleting are at once, the others take their time."""
    assert sorted(path for path in ROUTES if ROUTES[path].changes_models) == [
        b"/api/copy",
        b"/api/create",
        b"/api/delete",
        b"/api/pull",
    ]


def test_only_blobs_have_no_limit_for_their_body():
    """A model's weights are gigabytes; everything else is JSON."""
    assert all(route.bounded_body for route in ROUTES.values())
    assert not find(b"/api/blobs/sha256:0").bounded_body
    assert find(b"/api/new").bounded_body


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        (b"/", ("HEAD", "GET")),
        (b"/api/chat", ("POST",)),
        (b"/api/delete", ("DELETE",)),
        (b"/api/blobs/x", ("HEAD", "POST")),
        (b"/api/new", ()),
        (b"/v1/new", ("POST",)),
    ],
)
def test_the_methods_are_in_the_order_of_allow(path: bytes, methods: tuple[str, ...]):
    """A preflight's Allow lists them as Ollama's router does."""
    assert find(path).methods == methods
