"""Reads an answer's body, and closes its connection when it is given up."""

from typing import Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss

T = TypeVar("T")


class Reader(Protocol, Generic[T]):
    """
    What is delivered goes to `take`; `finished` fires with `result` at the end of the body.

    Cancelling `finished` hangs up, which cancelling ``treq.content`` does not.
    """

    def __init__(self) -> None:
        self.finished: Deferred[T] = Deferred(self._cancel)

    def take(self, data: bytes) -> None:
        """A piece of the body. What it raises fails `finished`."""
        raise NotImplementedError

    def result(self) -> T:
        """What the whole body is worth."""
        raise NotImplementedError

    def dataReceived(self, data: bytes) -> None:
        if self.finished.called:
            return
        try:
            self.take(data)
        except Exception as error:
            self.finished.errback(error)
            self.hang_up()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.finished.called:
            return
        # PotentialDataLoss: an answer without a length ended with its connection. Whether it is whole is for
        # whoever understands it to see.
        if reason.check(ResponseDone, PotentialDataLoss):
            self.finished.callback(self.result())
        else:
            self.finished.errback(reason)

    def hang_up(self) -> None:
        """Close the connection."""
        if self.transport is not None:
            self.transport.loseConnection()

    def _cancel(self, finished: "Deferred[T]") -> None:
        # First the result, then the hanging up: the loss of the connection is not the news.
        finished.errback(CancelledError())
        self.hang_up()
