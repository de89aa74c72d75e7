"""The request of one attempt: its headers."""

from foreman import __version__
from foreman.webhooks.signature import Signer


def headers(
    signer: Signer, event_id: str, event_type: str, attempt: int, timestamp_seconds: int, body: bytes
) -> list[tuple[bytes, bytes]]:
    """What every attempt bears; `attempt` counts from 1."""
    return [
        (b"User-Agent", f"foreman/{__version__}".encode()),
        (b"Content-Type", b"application/json"),
        (b"X-Foreman-Event", event_type.encode()),
        (b"X-Foreman-Attempt", b"%d" % attempt),
        *signer.headers(event_id, timestamp_seconds, body),
    ]
