"""The two signatures of a webhook, and the package of Standard Webhooks as the judge of one of them."""

import base64
import hashlib
import hmac
import re
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from foreman.secret import hmac_key, new_secret
from foreman.webhooks.signature import TOLERANCE_SECONDS, Signer, Verifier, WrongSignature

# The test vector that the implementations of Standard Webhooks share.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
EVENT_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

OTHER = "whsec_" + base64.b64encode(b"another key, 32 bytes of it here").decode()
TEXT = st.text(st.characters(exclude_categories=["Cs"])).map(lambda text: text.encode())


def headers(*secrets: str, body: bytes = BODY, timestamp: int = TIMESTAMP) -> dict[str, str]:
    """The headers of one attempt, their names in lower case."""
    made = Signer(secrets).headers(EVENT_ID, timestamp, body)
    return {name.decode().lower(): value.decode() for name, value in made}


def test_vector_of_the_docs() -> None:
    """Whoever writes a receiver in another language compares with it."""
    page = (Path(__file__).parents[2] / "docs" / "howto" / "webhooks.md").read_text("utf-8")
    shown = dict(re.findall(r"^(secret|body|[wX]\S+) +(\S+)$", page, re.M))
    made = Signer((shown["secret"],)).headers(
        shown["webhook-id"], int(shown["webhook-timestamp"]), shown["body"].encode()
    )
    assert {name.decode(): value.decode() for name, value in made}.items() <= shown.items()


def test_public_test_vector() -> None:
    """The id, the moment and the body are signed as Standard Webhooks says."""
    assert headers(SECRET)["webhook-signature"] == SIGNATURE
    package = Webhook(SECRET)
    moment = datetime.fromtimestamp(TIMESTAMP, UTC)
    assert package.sign(EVENT_ID, moment, BODY.decode()) == SIGNATURE


def test_body_is_signed_with_the_same_key() -> None:
    """``X-Foreman-Signature`` is the HMAC-SHA256 of the body alone, in hexadecimal digits."""
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    expected = hmac.new(key, BODY, hashlib.sha256).hexdigest()
    assert headers(SECRET)["x-foreman-signature"] == f"sha256={expected}"


def test_without_a_secret_nothing_is_signed() -> None:
    """The id and the moment are sent all the same: receivers know duplicates by the id."""
    assert headers() == headers("", "") == {"webhook-id": EVENT_ID, "webhook-timestamp": str(TIMESTAMP)}


def test_previous_secret_adds_its_own_signature() -> None:
    """During a change both are in ``webhook-signature``; the body is signed with the current one."""
    both, old, new = headers(SECRET, OTHER), headers(OTHER), headers(SECRET)
    assert both["webhook-signature"] == f"{new['webhook-signature']} {old['webhook-signature']}"
    assert both["x-foreman-signature"] == new["x-foreman-signature"] != old["x-foreman-signature"]


@given(body=TEXT, previous=st.booleans())
def test_package_verifies_any_body(body: bytes, previous: bool) -> None:
    """What is sent is verified by another's code, with either secret while there are two."""
    secrets = (SECRET, OTHER) if previous else (SECRET,)
    sent = headers(*secrets, body=body, timestamp=int(time.time()))
    for secret in secrets:
        Webhook(secret).verify(body, sent, json_parse=False)
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(body, sent, json_parse=False)


@given(body=st.binary(min_size=1), place=st.integers(0), change=st.integers(1, 255))
def test_changed_byte_is_noticed(body: bytes, place: int, change: int) -> None:
    """One byte of the body that is another is enough, wherever it is."""
    sent = headers(SECRET, body=body)
    changed = bytearray(body)
    changed[place % len(body)] ^= change
    verifier = Verifier((SECRET,))
    verifier.verify(sent, body, TIMESTAMP)
    with pytest.raises(WrongSignature):
        verifier.verify(sent, bytes(changed), TIMESTAMP)
    for alone in ("webhook-signature", "x-foreman-signature"):
        # Each of the two notices it by itself.
        other = headers(SECRET, body=bytes(changed))
        with pytest.raises(WrongSignature):
            verifier.verify({**other, alone: sent[alone]}, bytes(changed), TIMESTAMP)


def test_verifier_takes_what_the_package_signs() -> None:
    """The receiver that is shipped agrees with another's sender."""
    moment = datetime.fromtimestamp(TIMESTAMP, UTC)
    sent = {**headers(SECRET), "webhook-signature": Webhook(SECRET).sign(EVENT_ID, moment, BODY.decode())}
    Verifier((OTHER, SECRET)).verify(sent, BODY, TIMESTAMP + TOLERANCE_SECONDS)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"webhook-id": ""}, "webhook-id is missing"),
        ({"webhook-signature": ""}, "webhook-signature is missing"),
        ({"x-foreman-signature": ""}, "x-foreman-signature is missing"),
        ({"webhook-id": "msg_other"}, "webhook-signature does not match"),
        ({"webhook-signature": SIGNATURE.replace("v1,", "v2,")}, "webhook-signature does not match"),
        ({"webhook-signature": "v1,ü v1 ,"}, "webhook-signature does not match"),
        ({"x-foreman-signature": "sha256=" + "0" * 64}, "X-Foreman-Signature does not match"),
        ({"webhook-timestamp": "1614265330.0"}, "is not a number"),
        ({"webhook-timestamp": "٣"}, "is not a number"),
        ({"webhook-timestamp": "9" * 5000}, "is not a number"),
        ({"webhook-timestamp": str(TIMESTAMP - 1)}, "webhook-signature does not match"),
        ({"webhook-timestamp": str(TIMESTAMP - TOLERANCE_SECONDS - 1)}, "301 s from now"),
        ({"webhook-timestamp": str(TIMESTAMP + TOLERANCE_SECONDS + 1)}, "301 s from now"),
    ],
)
def test_verifier_says_what_is_wrong(changes: dict[str, str], reason: str) -> None:
    """Every part of the headers counts, and a person is told which was wrong."""
    with pytest.raises(WrongSignature, match=reason):
        Verifier((SECRET,)).verify({**headers(SECRET), **changes}, BODY, TIMESTAMP)


def test_verifier_refuses_another_secret() -> None:
    """Only who has the secret can sign."""
    with pytest.raises(WrongSignature):
        Verifier((OTHER,)).verify(headers(SECRET), BODY, TIMESTAMP)
    with pytest.raises(WrongSignature):
        Verifier(()).verify(headers(SECRET), BODY, TIMESTAMP)


def test_new_secret_has_32_random_bytes() -> None:
    """In the form that the package takes, and never the same twice."""
    first, second = new_secret(), new_secret()
    assert first != second
    assert len(hmac_key(first)) == 32
    assert base64.b64encode(hmac_key(first)).decode() == first.removeprefix("whsec_")


@given(st.binary(min_size=1, max_size=64), st.booleans())
def test_key_is_the_package_s(key: bytes, padded: bool) -> None:
    """``whsec_…`` is the same key to the package, with its padding or without."""
    encoded = base64.b64encode(key).decode()
    secret = "whsec_" + (encoded if padded else encoded.rstrip("="))
    assert hmac_key(secret) == key
    sent = headers(secret, timestamp=int(time.time()))
    Webhook(secret).verify(BODY, sent, json_parse=False)


@pytest.mark.parametrize(
    "secret", ["s3cret", " spaces are part of it ", "grün", "WHSEC_AAAA", "a==", "xwhsec_AAAA"]
)
def test_any_other_text_is_used_whole(secret: str) -> None:
    """Its UTF-8 bytes are the key."""
    assert hmac_key(secret) == secret.encode()
    Webhook(secret.encode()).verify(BODY, headers(secret, timestamp=int(time.time())), json_parse=False)


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "=",
        "====",
        "A",
        "AAAAA",
        "AA=",
        "AAA==",
        "AAAA=",
        "AA==AA",
        "ab-_",
        "AA AA",
        "AAAA\n",
        "äAAA",
        "A\ud800AA",
    ],
)
def test_whsec_with_anything_but_base64_is_refused(rest: str) -> None:
    """Also the URL-safe alphabet, which the package would skip in silence, and a key of no bytes."""
    with pytest.raises(ValueError, match="whsec_ must be base64"):
        hmac_key("whsec_" + rest)


def test_text_that_is_not_utf_8_is_refused() -> None:
    """What an environment holds as other bytes is a lone surrogate to Python."""
    with pytest.raises(ValueError, match="UTF-8"):
        Signer(("gr\udcfcn",))


def test_secrets_are_not_shown() -> None:
    """Not where a signer is printed, as in a traceback or a log."""
    key = repr(hmac_key(SECRET))
    for holder in (Signer((SECRET,)), Verifier((SECRET,))):
        assert SECRET not in repr(holder)
        assert key not in repr(holder)
