"""
The signatures of a webhook: made for a delivery, and checked by a receiver.

There are two, with one key. ``X-Foreman-Signature`` covers the body. ``webhook-signature`` covers the event's
id and the moment of the attempt as well, so that a receiver can refuse what is sent again later by somebody
else; it is that of Standard Webhooks (https://www.standardwebhooks.com), whose libraries verify it.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping

from attrs import Factory, field, frozen

from foreman.secret import hmac_key

TOLERANCE_SECONDS = 300
"""How far an attempt may be from the receiver's clock: what Standard Webhooks' libraries take."""


class WrongSignature(Exception):
    """What arrived is not from somebody who has the secret, or is old; ``str()`` says why."""


def _keys(holder: "Signer | Verifier") -> tuple[bytes, ...]:
    return tuple(hmac_key(secret) for secret in holder.secrets if secret)


@frozen
class Signer:
    """
    Makes the headers of an attempt. `secrets` are the current one and those before it; empty ones are left
    out. The first that is left signs ``X-Foreman-Signature``, each of them has its part of
    ``webhook-signature``. Raises ValueError for a secret that cannot be used.
    """

    secrets: tuple[str, ...] = field(repr=False)
    _keys: tuple[bytes, ...] = field(init=False, repr=False, default=Factory(_keys, takes_self=True))

    def headers(self, event_id: str, timestamp_seconds: int, body: bytes) -> list[tuple[bytes, bytes]]:
        """``webhook-id`` and ``webhook-timestamp`` always; the signatures when there is a secret."""
        headers = [
            (b"webhook-id", event_id.encode("ascii")),
            (b"webhook-timestamp", b"%d" % timestamp_seconds),
        ]
        if self._keys:
            content = _content(event_id, str(timestamp_seconds), body)
            parts = [b"v1," + base64.b64encode(_digest(key, content)) for key in self._keys]
            headers += [
                (b"webhook-signature", b" ".join(parts)),
                (b"X-Foreman-Signature", b"sha256=" + _digest(self._keys[0], body).hex().encode("ascii")),
            ]
        return headers


@frozen
class Verifier:
    """Checks what arrived against each of some secrets. Raises ValueError for one that cannot be used."""

    secrets: tuple[str, ...] = field(repr=False)
    _keys: tuple[bytes, ...] = field(init=False, repr=False, default=Factory(_keys, takes_self=True))

    def verify(self, headers: Mapping[str, str], body: bytes, now: float) -> None:
        """
        Check both signatures, and that the attempt was made at about `now` (epoch seconds).

        `headers` has names in lower case. Raises WrongSignature.
        """
        for name in ("webhook-id", "webhook-timestamp", "webhook-signature", "x-foreman-signature"):
            if not headers.get(name):
                raise WrongSignature(f"the header {name} is missing")
        timestamp = headers["webhook-timestamp"]
        if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 15):
            raise WrongSignature("webhook-timestamp is not a number of seconds")
        apart = abs(now - int(timestamp))
        if apart > TOLERANCE_SECONDS:
            raise WrongSignature(
                f"webhook-timestamp is {apart:.0f} s from now: it is old, or a clock is wrong"
            )
        content = _content(headers["webhook-id"], timestamp, body)
        parts = headers["webhook-signature"].split(" ")
        if not any(_equal(part, _v1(key, content)) for key in self._keys for part in parts):
            raise WrongSignature("webhook-signature does not match: another secret, or another body")
        given = headers["x-foreman-signature"]
        if not any(_equal(given, "sha256=" + _digest(key, body).hex()) for key in self._keys):
            raise WrongSignature("X-Foreman-Signature does not match: another secret, or another body")


def _content(event_id: str, timestamp: str, body: bytes) -> bytes:
    return f"{event_id}.{timestamp}.".encode() + body


def _digest(key: bytes, content: bytes) -> bytes:
    return hmac.digest(key, content, hashlib.sha256)


def _v1(key: bytes, content: bytes) -> str:
    return "v1," + base64.b64encode(_digest(key, content)).decode("ascii")


def _equal(given: str, expected: str) -> bool:
    """In a time that does not tell how much of it is right."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode("ascii"))
