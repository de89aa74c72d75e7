"""The table of failure classes, row by row."""

import pytest

from foreman.errors import (
    BadResponse,
    ExecutionTimeout,
    IncompleteResponse,
    TargetFailed,
    TargetRefused,
    TargetSaid,
    TargetTimeout,
    TargetUnreachable,
)
from foreman.jobs.model import Transition
from foreman.worker.failures import backoff_seconds, judge


@pytest.mark.parametrize(
    ("error", "pause"),
    [
        (TargetUnreachable("http://x", "connection refused"), False),
        (TargetRefused(503, "busy"), True),
        (OSError(28, "No space left on device"), True),
    ],
)
def test_not_counted(error: Exception, pause: bool) -> None:
    """Nothing was done at the target: back into the line, at once, and without a word in the history."""
    verdict = judge(error, 1, 100.0)
    assert (verdict.transition, verdict.error, verdict.not_before) == (Transition.PUT_BACK, None, None)
    assert verdict.pause is pause


@pytest.mark.parametrize("status", [408, 425, 429])
def test_statuses_that_may_pass(status: int) -> None:
    """They say nothing against the request: an attempt is used up, and there is another one."""
    verdict = judge(TargetRefused(status, "later"), 1, 100.0)
    assert (verdict.transition, verdict.not_before) == (Transition.RETRIED, 105.0)
    assert verdict.error.target_status == status


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 422])
def test_failed_at_once(status: int) -> None:
    """With what the target said."""
    verdict = judge(TargetRefused(status, "no"), 1, 100.0)
    assert (verdict.transition, verdict.not_before) == (Transition.FAILED, None)
    assert (verdict.error.code, verdict.error.target_status, verdict.error.target_body) == (
        "target_refused",
        status,
        "no",
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TargetRefused(500, "boom"), "target_refused"),
        (TargetRefused(502, "boom"), "target_refused"),
        (TargetRefused(302, ""), "target_refused"),
        (TargetFailed("cut"), "target_failed"),
        (TargetTimeout("silent"), "target_timeout"),
        (ExecutionTimeout("long"), "execution_timeout"),
        (IncompleteResponse(), "incomplete_response"),
        (BadResponse("html"), "bad_response"),
        (TargetSaid("EOF"), "target_error"),
        (KeyError("a secret"), "internal_error"),
    ],
)
def test_counted(error: Exception, code: str) -> None:
    """Once more after a backoff; a fault of foreman's own tells nothing of its inside."""
    verdict = judge(error, 2, 100.0)
    assert (verdict.transition, verdict.not_before) == (Transition.RETRIED, 110.0)
    assert (verdict.error.attempt, verdict.error.at, verdict.error.code) == (2, 100.0, code)
    assert "secret" not in verdict.error.message


def test_the_backoff_doubles_up_to_five_minutes() -> None:
    """Also for attempts without end."""
    assert [backoff_seconds(attempt) for attempt in (1, 2, 3, 6, 7, 100_000)] == [5, 10, 20, 160, 300, 300]
