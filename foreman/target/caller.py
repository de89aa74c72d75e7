"""What a client's connection offers the relay beyond twisted.web's own, and how a stream to it is ended."""

from typing import Protocol, cast

from twisted.web.http import Request


class Caller(Protocol):
    """A client's connection."""

    def loseConnection(self) -> None:
        """Flush what was written, and close without ending the answer."""

    def abort(self) -> None:
        """Reset the connection; what was written and not yet taken is lost."""


def caller_of(request: Request) -> Caller:
    """The connection on which `request` came."""
    return cast(Caller, request.channel)


def break_off(request: Request, words: bytes) -> None:
    """
    Write `words`, if any, and close without the answer's end: no client takes it for a whole one.
    """
    if words:
        request.write(words)
    caller_of(request).loseConnection()
