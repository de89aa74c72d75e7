"""What a caller may ask for with `X-Foreman-Lane` and `X-Foreman-Priority`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.web.http_headers import Headers

from foreman.scheduler.policy import Lane
from foreman.web.lowering import Lowering, lowering


def asked(**headers: bytes) -> Lowering:
    """What headers ask for; their names without `X-Foreman-`."""
    return lowering(Headers({f"X-Foreman-{name}".encode(): [text] for name, text in headers.items()}))


def test_a_request_that_says_nothing_is_not_lowered():
    """Interactive, priority 0."""
    assert lowering(Headers()) == Lowering(Lane.INTERACTIVE, 0)


@pytest.mark.parametrize(
    ("text", "lane"),
    [
        (b"durable", Lane.DURABLE),
        (b" Durable ", Lane.DURABLE),
        (b"interactive", Lane.INTERACTIVE),
        (b"batch", Lane.INTERACTIVE),
        (b"", Lane.INTERACTIVE),
    ],
)
def test_the_lane(text: bytes, lane: Lane):
    """`durable` in any case lowers; any other word is ignored."""
    assert asked(Lane=text).lane is lane


@pytest.mark.parametrize(
    ("text", "priority"),
    [
        (b"-1", -1),
        (b" -20 ", -20),
        (b"0", 0),
        (b"-0", 0),
        (b"5", 0),
        (b"+5", 0),
        (b"-1000000", -1_000_000),
        (b"-99999999999", -1_000_000),
        (b"", 0),
        (b"low", 0),
        (b"-1.5", 0),
        (b"- 1", 0),
        (b"-1_0", 0),
        (b"\xb2", 0),
        (b"-" + b"9" * 5000, 0),
    ],
)
def test_the_priority(text: bytes, priority: int):
    """A whole number up to 0; above it counts as 0, and what is no number is ignored."""
    assert asked(Priority=text).priority == priority


def test_the_first_of_several_counts():
    """As Go's Header.Get reads it."""
    headers = Headers({b"X-Foreman-Priority": [b"-1", b"-2"], b"X-Foreman-Lane": [b"durable", b"x"]})
    assert lowering(headers) == Lowering(Lane.DURABLE, -1)


@given(st.binary(), st.binary())
def test_nothing_raises_a_request(lane: bytes, priority: bytes):
    """Whatever stands there is read without an error, and never gives a priority above 0."""
    assert asked(Lane=lane.replace(b"\n", b"").replace(b"\r", b""), Priority=priority).priority <= 0
