"""Work that goes on although nobody waits for it any more."""

from typing import TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from foreman.errors import ForemanError

T = TypeVar("T")
_log = Logger()


def shield(work: "Deferred[T]") -> "Deferred[T]":
    """
    A Deferred with the result of `work`, whose cancellation does not reach it.

    A transaction cannot be called back: cancelled, its awaiter would go on while the row is still about to
    be committed. So whoever cancels gets CancelledError too, but not before the work is done.
    """
    cancelled = False

    def cancel(outer: "Deferred[T]") -> None:
        nonlocal cancelled
        cancelled = True
        outer.pause()
        outer.errback(Failure(CancelledError()))

    outer: Deferred[T] = Deferred(cancel)

    def done(result: "T | Failure") -> None:
        if not cancelled:
            outer.callback(result) if not isinstance(result, Failure) else outer.errback(result)
            return
        if isinstance(result, Failure) and isinstance(result.value, ForemanError):
            # No mistake: the disk is full, say, and each caller who left would leave a traceback here.
            why = str(result.value)
            _log.warn("what nobody waited for any more was not done: {why}", why=why)
        elif isinstance(result, Failure):
            _log.failure("what nobody waited for any more failed", result)
        outer.unpause()

    work.addBoth(done)
    return outer
