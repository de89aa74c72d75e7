"""What a failure of a run means for its job: the table of failure classes, and the backoff."""

from attrs import frozen

from foreman.errors import ForemanError, TargetRefused, TargetSaid, TargetUnreachable
from foreman.jobs.model import AttemptError, Transition

_MAY_PASS = (408, 425, 429)
"""Statuses below 500 that say nothing against the request: too slow, too early, too many."""

BACKOFF_FIRST_SECONDS = 5.0
BACKOFF_LONGEST_SECONDS = 300.0


@frozen
class Verdict:
    """What to do with the job, and the entry for its history.

    `pause`: the next job would most likely fail in the same way, so the lane is to wait a little.
    """

    transition: Transition
    error: AttemptError | None
    not_before: float | None = None
    pause: bool = False


def judge(error: Exception, attempt: int, now: float) -> Verdict:
    """
    Judge the failure of the `attempt`-th attempt at the moment `now`.

    ===========================================================  =============================================
    the target cannot be reached: nothing was sent               put back; the turn waits until it is there
    503, or no room on foreman's own disk                        put back, and the lane pauses
    4xx but 408, 425, 429: it would be refused again             failed
    all else: reset, cut, time-outs, other statuses, an error    an attempt is used up; again after a backoff
    line, a bad or incomplete answer, a fault of foreman's own
    ===========================================================  =============================================

    The worker puts a job back whose 404 means that its model is missing, while it has time to wait for that.
    """
    if isinstance(error, TargetUnreachable):
        return Verdict(Transition.PUT_BACK, None)
    if isinstance(error, OSError) or (isinstance(error, TargetRefused) and error.target_status == 503):
        return Verdict(Transition.PUT_BACK, None, pause=True)
    entry = _entry(error, attempt, now)
    status = error.target_status if isinstance(error, TargetRefused) else 0
    if 400 <= status < 500 and status not in _MAY_PASS:
        return Verdict(Transition.FAILED, entry)
    return Verdict(Transition.RETRIED, entry, now + backoff_seconds(attempt))


def backoff_seconds(attempt: int) -> float:
    """How long to wait after the `attempt`-th failed attempt: 5 s, doubled each time, at most 5 minutes."""
    return float(min(BACKOFF_FIRST_SECONDS * 2.0 ** min(attempt - 1, 10), BACKOFF_LONGEST_SECONDS))


def _entry(error: Exception, attempt: int, now: float) -> AttemptError:
    if not isinstance(error, ForemanError):
        sentence = f"something went wrong inside foreman ({type(error).__name__}); its log says what"
        return AttemptError(attempt, now, ForemanError.code, sentence)
    status = error.target_status if isinstance(error, TargetRefused) else None
    body = error.target_body if isinstance(error, TargetRefused | TargetSaid) else None
    return AttemptError(attempt, now, error.code, str(error), status, body)
