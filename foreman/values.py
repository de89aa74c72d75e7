"""
What the text of a setting may be.

Each function gives the value of a text, or raises ValueError with what is allowed.
"""

import ipaddress
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from foreman.quantities import parse_duration, parse_size
from foreman.secret import hmac_key
from foreman.urls import check_url

EMBEDDED_URL = "embedded:"
_ENDPOINT = re.compile(r"[A-Za-z][A-Za-z0-9_]*:.+", re.ASCII)
_RETRIES = 5
# `tcp:8080` is an endpoint, and no host named tcp.
_ENDPOINTS_LIKE_HOSTS = ("tcp", "tcp6", "ssl")
_HOST_PORT = re.compile(r"(?:\[(?P<v6>[^\]]*)\]|(?P<host>[^:\[\]]*)):(?P<port>\d+)", re.ASCII)


def duration(minimum: float = 0.001) -> Callable[[str], float]:
    """Seconds in a Go duration, 0 or more than that."""

    def parse(text: str) -> float:
        seconds = parse_duration(text)
        if seconds < minimum:
            raise ValueError("it must not be negative" if minimum == 0 else "it must be more than zero")
        return seconds

    return parse


def size(text: str) -> int:
    """Bytes, more than 0."""
    size_bytes = parse_size(text)
    if size_bytes == 0:
        raise ValueError("it must be more than zero")
    return size_bytes


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ValueError("a share is a number from 0 to 1")
    return number


def count(text: str) -> int:
    """A whole number from 0 on."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError("it is a whole number such as 0 or 10")
    return int(text)


def anything(text: str) -> str:
    """The text as it is."""
    return text


def token(text: str) -> str:
    """What may stand in a header."""
    if not all("!" <= letter <= "~" for letter in text):
        raise ValueError("a token is made of visible ASCII characters, without spaces")
    return text


def webhook_secret(text: str) -> str:
    """A secret in either form, or none."""
    if text:
        hmac_key(text)
    return text


def backoff(text: str) -> tuple[float, ...]:
    """The seconds before each of the five retries."""
    allowed = "it has five durations with commas between, such as 5s,30s,2m,10m,1h"
    try:
        delays = tuple(duration()(part.strip()) for part in text.split(","))
    except ValueError:
        raise ValueError(allowed) from None
    if len(delays) != _RETRIES:
        raise ValueError(allowed)
    return delays


def from_1_to(most: int) -> Callable[[str], int]:
    """A whole number that is not too large."""

    def parse(text: str) -> int:
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
        if not 1 <= number <= most:
            raise ValueError(f"it is a whole number from 1 to {most}")
        return number

    return parse


def receiver_url(text: str) -> str:
    """The URL of a receiver of webhooks, or none."""
    return check_url(text) if text else ""


def public_url(text: str) -> str:
    """What URLs begin with, without the slash at the end, or nothing."""
    if not text:
        return ""
    url = urlsplit(check_url(text))
    if url.query or url.fragment:
        raise ValueError("it is an http or https URL without a query, such as https://foreman.example")
    return text.rstrip("/")


def target_url(text: str) -> str:
    """The target, without the slash at the end."""
    if text == EMBEDDED_URL:
        return text
    allowed = "the target is written as in http://127.0.0.1:11434, https://gpu.lan/ollama or embedded:"
    try:
        url = urlsplit(text)
        port_ok = url.port != 0
    except ValueError:
        raise ValueError(allowed) from None
    plain = not (url.query or url.fragment or url.username or url.password)
    if url.scheme not in ("http", "https") or not url.hostname or not port_ok or not plain:
        raise ValueError(allowed)
    if not text.isascii() or any(letter.isspace() for letter in text):
        raise ValueError(allowed)
    return text.rstrip("/")


def endpoints(text: str) -> tuple[str, ...]:
    """The Twisted endpoint strings to try in this order; the first that the machine has is used."""
    allowed = "an address is :8080, 127.0.0.1:8080, [::1]:8080, or an endpoint string such as ssl:8443:…"
    match = _HOST_PORT.fullmatch(text)
    if match is None or match["host"] in _ENDPOINTS_LIKE_HOSTS:
        if _ENDPOINT.fullmatch(text):
            return (text,)
        raise ValueError(allowed)
    port = int(match["port"])
    if port > 65535:
        raise ValueError("a port is a number from 0 to 65535")
    host = match["v6"] if match["v6"] is not None else match["host"]
    if not host:
        # As in Go, no host means every address of both families; the second is for a machine without IPv6.
        return (rf"tcp:{port}:interface=\:\:", f"tcp:{port}")
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise ValueError(allowed) from None
    return (f"tcp:{port}:interface={str(address).replace(':', chr(92) + ':')}",)


def origins(text: str) -> tuple[str, ...]:
    """A list with commas between."""
    return tuple(part for part in (piece.strip() for piece in text.split(",")) if part)
