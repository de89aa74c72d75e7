"""The header fields that are between two hops only: the relay passes on the others."""

from collections.abc import Sequence

# RFC 9110 §7.6.1, and the Keep-Alive and Proxy-Connection of old.
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)


def connection_tokens(values: Sequence[bytes]) -> frozenset[bytes]:
    """The fields that ``Connection`` names: they too are between two hops only."""
    return frozenset(token.strip().lower() for value in values for token in value.split(b","))
