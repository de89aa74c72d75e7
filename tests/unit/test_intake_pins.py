"""
The private names of Twisted that ``foreman/web/intake.py`` touches.

When an upgrade of Twisted turns one of these red, read how it does the same thing now, and change
``intake.py`` before this test.
"""

import inspect
import re
from pathlib import Path

import pytest
from twisted.protocols.policies import TimeoutMixin
from twisted.web import http
from twisted.web.http import HTTPChannel
from twisted.web.server import Request

import foreman.web.intake


def source(function: object) -> str:
    """The text of a function of Twisted's."""
    return inspect.getsource(function)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["_abortingCall", "_respondToBadRequestAndDisconnect", "_send100Continue"])
def test_private_names_of_the_channel(name: str) -> None:
    """Attributes of HTTPChannel that intake reads or sets."""
    assert hasattr(HTTPChannel, name), f"twisted.web.http.HTTPChannel has no {name} any more"


@pytest.mark.parametrize("name", ["_command", "_path", "_version"])
def test_request_line_is_kept_on_the_channel(name: str) -> None:
    """Between the request line and the end of the body its parts are attributes of the channel."""
    assert f"self.{name} = " in source(HTTPChannel.lineReceived), f"HTTPChannel no longer sets {name}"


def test_aborting_call_is_cancelled_with_the_connection() -> None:
    """What intake schedules as `_abortingCall` is cancelled when the connection is lost."""
    assert "self._abortingCall.cancel()" in source(HTTPChannel.connectionLost)


def test_request_is_told_of_the_head_before_100_continue() -> None:
    """gotLength() comes before 100-continue is answered, so that removing Expect there prevents it."""
    text = source(HTTPChannel.allHeadersReceived)
    assert (
        text.index("req.gotLength(")
        < text.index('getRawHeaders(b"Expect")')
        < text.index("_send100Continue()")
    )
    # And persistence is decided before it, so that gotLength() may take it back.
    assert text.index("self.persistent = ") < text.index("req.gotLength(")


def test_idle_timer_is_reset_by_this_method_only() -> None:
    """Every byte that comes passes resetTimeout(), which intake overrides."""
    assert "self.resetTimeout()" in source(HTTPChannel.dataReceived)
    assert "resetTimeout" in TimeoutMixin.__dict__


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (Request, "gotLength", ["self", "length"]),
        (http.Request, "handleContentChunk", ["self", "data"]),
        (http.Request, "requestReceived", ["self", "command", "path", "version"]),
        (Request, "process", ["self"]),
        (HTTPChannel, "headerReceived", ["self", "line"]),
        (HTTPChannel, "connectionLost", ["self", "reason"]),
        (HTTPChannel, "lineLengthExceeded", ["self", "line"]),
        (HTTPChannel, "_respondToBadRequestAndDisconnect", ["self"]),
    ],
)
def test_methods_that_intake_overrides(owner: type, name: str, parameters: list[str]) -> None:
    """They exist and take what they took."""
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


def test_requests_of_the_channel() -> None:
    """The list of requests being received or answered, the last one being received."""
    channel = HTTPChannel()
    assert channel.requests == []
    assert "del self.requests[0]" in source(HTTPChannel.requestDone)


def test_head_limits() -> None:
    """16 KiB and 500 fields; foreman relies on Twisted for both."""
    assert (HTTPChannel.totalHeadersSize, HTTPChannel.maxHeaders) == (16384, 500)


def test_no_other_private_name_is_used() -> None:
    """Whatever intake touches of Twisted's private names stands in this file."""
    text = Path(foreman.web.intake.__file__).read_text("utf-8")
    touched = set(re.findall(r"(?:self|channel|super\(\))\.(_[a-z]\w*)", text))
    inherited = {name for name in touched if hasattr(HTTPChannel, name) or hasattr(Request, name)}
    assigned = {name for name in touched if re.search(rf"self\.{name} = ", source(HTTPChannel))}
    pinned = {"_abortingCall", "_respondToBadRequestAndDisconnect", "_command", "_path", "_version"}
    assert inherited | assigned == pinned
