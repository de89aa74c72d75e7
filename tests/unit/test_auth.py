"""The token, in each of the ways that clients send one."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.web.http_headers import Headers

from foreman.web.auth import authorized, challenge


def basic(text: bytes) -> bytes:
    """The value of ``Authorization`` for user and password."""
    return b"Basic " + base64.b64encode(text)


def headers(*pairs: tuple[bytes, bytes]) -> Headers:
    """Headers from pairs, a name more than once if need be."""
    made = Headers()
    for name, value in pairs:
        made.addRawHeader(name, value)
    return made


@pytest.mark.parametrize(
    "pairs",
    [
        [(b"Authorization", b"Bearer s3cret")],
        [(b"authorization", b"bearer s3cret")],
        [(b"Authorization", b"BEARER   s3cret ")],
        [(b"x-api-key", b"s3cret")],
        [(b"X-Api-Key", b"s3cret")],
        [(b"Authorization", basic(b"me:s3cret"))],
        [(b"Authorization", basic(b":s3cret"))],
        # Several at once: clients of OpenAI's kind always send a Bearer, whatever else is configured.
        [(b"Authorization", b"Bearer ollama"), (b"x-api-key", b"s3cret")],
        [(b"Authorization", b"Bearer s3cret"), (b"x-api-key", b"wrong")],
        [(b"Authorization", b"Bearer wrong"), (b"Authorization", b"Bearer s3cret")],
        [(b"Authorization", b"Basic !"), (b"x-api-key", b"s3cret")],
    ],
)
def test_right(pairs: list[tuple[bytes, bytes]]) -> None:
    """The token as Bearer, as x-api-key, or as the password of Basic; one that fits is enough."""
    assert authorized(headers(*pairs), "s3cret")


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [(b"Authorization", b"")],
        [(b"Authorization", b"s3cret")],
        [(b"Authorization", b"Bearer")],
        [(b"Authorization", b"Bearer ")],
        [(b"Authorization", b"Bearers3cret")],
        [(b"Authorization", b"Bearer wrong")],
        [(b"Authorization", b"Bearer s3cretx")],
        [(b"Authorization", b"Bearer s3cre")],
        [(b"Authorization", b"Bearer S3CRET")],
        [(b"Authorization", b"Bearer s3 cret")],
        [(b"Authorization", b"Token s3cret")],
        [(b"Authorization", b"Digest s3cret")],
        [(b"Authorization", b"Basic s3cret")],
        [(b"Authorization", b"Basic")],
        [(b"Authorization", b"Basic !!!!")],
        [(b"Authorization", b"Basic \xff\xfe")],
        [(b"Authorization", basic(b"s3cret"))],
        [(b"Authorization", basic(b"s3cret:"))],
        [(b"Authorization", basic(b"s3cret:me"))],
        [(b"Authorization", basic(b"me:s3cret:"))],
        [(b"x-api-key", b"")],
        [(b"x-api-key", b"Bearer s3cret")],
        [(b"x-api-key", b"\xff\x00")],
        [(b"Proxy-Authorization", b"Bearer s3cret")],
        [(b"Cookie", b"token=s3cret")],
        [(b"Authorization", b"Bearer wrong"), (b"x-api-key", b"wrong")],
    ],
)
def test_wrong(pairs: list[tuple[bytes, bytes]]) -> None:
    """Anything else is refused, however malformed, and nothing is raised."""
    assert not authorized(headers(*pairs), "s3cret")


def test_a_password_may_hold_a_colon() -> None:
    """Only the first colon ends the user's name."""
    assert authorized(headers((b"Authorization", basic(b"me:a:b"))), "a:b")


@given(st.binary(max_size=40).filter(lambda value: not set(value) & set(b"\r\n")))
def test_any_bytes_are_only_wrong(value: bytes) -> None:
    """No credential makes it raise."""
    pairs = [(b"Authorization", value), (b"Authorization", b"Basic " + value), (b"x-api-key", value)]
    assert not authorized(headers(*pairs), "the token that nobody guesses, with spaces")


@pytest.mark.parametrize("pairs", [[], [(b"Authorization", b"Bearer whatever")]])
def test_without_a_token_everybody_may(pairs: list[tuple[bytes, bytes]]) -> None:
    """FOREMAN_TOKEN empty: nothing is checked."""
    assert authorized(headers(*pairs), "")


@pytest.mark.parametrize(
    ("accept", "scheme"),
    [
        (None, b"Bearer"),
        (b"*/*", b"Bearer"),
        (b"application/json", b"Bearer"),
        (b"text/html,application/xhtml+xml,*/*;q=0.8", b"Basic"),
    ],
)
def test_basic_is_offered_to_a_page_only(accept: bytes | None, scheme: bytes) -> None:
    """A browser asks for the password when a page is opened, not when a script calls."""
    given_headers = headers((b"Accept", accept)) if accept else headers()
    assert challenge(given_headers).partition(b" ")[0] == scheme
