"""Who may call: the token of FOREMAN_TOKEN, in any of the ways that clients can send one."""

import base64
import binascii
import hmac

from twisted.web.http_headers import Headers


def _presented(headers: Headers) -> list[bytes]:
    """Every credential that a request carries."""
    found = list(headers.getRawHeaders(b"x-api-key") or ())
    for value in headers.getRawHeaders(b"authorization") or ():
        scheme, _, rest = value.partition(b" ")
        if scheme.lower() == b"bearer":
            found.append(rest.strip())
        elif scheme.lower() == b"basic":
            try:
                _, _, password = base64.b64decode(rest.strip(), validate=True).partition(b":")
            except binascii.Error:
                continue
            found.append(password)
    return found


def authorized(headers: Headers, token: str) -> bool:
    """
    Whether a request carries `token`: as Bearer, as ``x-api-key`` (Anthropic's clients), or as the password
    of HTTP Basic (browsers). Everybody is when `token` is empty. Compared in constant time.
    """
    if not token:
        return True
    expected = token.encode()
    return any(hmac.compare_digest(credential, expected) for credential in _presented(headers))


def challenge(headers: Headers) -> bytes:
    """
    The value of ``WWW-Authenticate``.

    Basic is offered only to a page being opened: to a script's request a browser would answer it with a
    dialog of its own.
    """
    wants_page = any(b"text/html" in value for value in headers.getRawHeaders(b"accept") or ())
    return b'Basic realm="foreman", charset="UTF-8"' if wants_page else b'Bearer realm="foreman"'
