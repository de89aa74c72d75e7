"""What the relay is told about a request, and what it tells of the answer."""

from typing import Protocol

from attrs import define, frozen

from foreman.errors import ForemanError
from foreman.target.dialects import Dialect
from foreman.target.heartbeat import Heartbeat


class Grant(Protocol):
    """What the relay tells the turn under which a request runs."""

    @property
    def settling(self) -> bool:
        """The target may still be busy with a request that was aborted before its first byte."""

    def first_byte(self) -> None:
        """The target has begun to answer."""

    def abort(self) -> None:
        """The request was given up."""


@frozen
class Task:
    """
    How to treat one request.

    `streams` is whether the answer comes in pieces: if not, it is silent until its end. `limited` is False
    where an answer may rightly take any time (the transfer of a model).
    `grant` is given when the request holds the turn. `heartbeat` is given when it has begun: the client has
    the head of its stream already, and gets nothing of the target's own head.
    """

    dialect: Dialect
    streams: bool
    limited: bool = True
    grant: Grant | None = None
    heartbeat: Heartbeat | None = None


@define
class Outcome:
    """How it ended, for the log: the status that the client saw, bytes of body, and what went wrong."""

    status: int
    sent_bytes: int
    error: ForemanError | None = None
