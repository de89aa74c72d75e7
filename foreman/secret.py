"""The secret that signs webhooks, and the key in it."""

import base64
import binascii
import re
import secrets

PREFIX = "whsec_"
KEY_BYTES = 32

_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}", re.ASCII)


def new_secret() -> str:
    """A secret in the form that Standard Webhooks' libraries want."""
    return PREFIX + base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode("ascii")


def hmac_key(secret: str) -> bytes:
    """
    The key in a secret: what ``whsec_…`` encodes, or the UTF-8 bytes of any other text.

    Padding may be missing, as for Standard Webhooks' libraries. Letters of the URL-safe alphabet are
    refused: some of those libraries skip them, and would use another key in silence. Raises ValueError.
    """
    if not secret.startswith(PREFIX):
        try:
            return secret.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("a secret is text in UTF-8") from None
    encoded = secret.removeprefix(PREFIX)
    wrong = ValueError("what follows whsec_ must be base64 (A-Z a-z 0-9 + /); foreman secret makes one")
    if not _BASE64.fullmatch(encoded):
        raise wrong
    bare = encoded.rstrip("=")
    padded = bare + "=" * (-len(bare) % 4)
    if encoded not in (bare, padded):
        raise wrong
    try:
        return base64.b64decode(padded)
    except binascii.Error:
        raise wrong from None
