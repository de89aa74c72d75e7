"""An end is written whatever its outputs are, and only the database is waited for."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from ulid import ULID

from foreman.errors import BadResponse
from foreman.jobs.model import PIECE_BYTES, LineKey, Metrics, Status, Submission, Transition
from foreman.testing.store import make_store
from foreman.worker.attempt import End
from foreman.worker.failures import Verdict
from foreman.worker.finisher import Finisher
from foreman.worker.outputs import Draft

NOW = 1_800_000_000.0


def bad_answer() -> Iterable[bytes]:
    raise BadResponse("the target's answer is not Ollama's")


def bad_disk() -> Iterable[bytes]:
    raise OSError(5, "Input/output error")


def now(awaitable: Any) -> Any:
    """The result of what needs no waiting."""
    results: list[Any] = []
    Deferred.fromCoroutine(awaitable).addCallback(results.append)
    assert results, "it is not done yet"
    return results[0]


@pytest.mark.parametrize("chunks", [bad_answer, bad_disk])
@pytest.mark.parametrize("size", [10, 2 * PIECE_BYTES])
@pytest.mark.parametrize("alone", [True, False])
def test_outputs_that_cannot_be_put_together(
    chunks: Callable[[], Iterable[bytes]], size: int, alone: bool
) -> None:
    """The attempt has failed, and the job waits for its next one; the claim of another job stands."""
    clock = Clock()
    clock.advance(NOW)
    store, _ = make_store(clock)
    jobs = [
        now(
            store.submit(
                Submission(
                    job_id=str(ULID.from_timestamp(NOW + number)),
                    endpoint="/api/chat",
                    line=LineKey("m"),
                    body=b"{}",
                    created_at=NOW,
                )
            )
        ).job_id
        for number in range(2)
    ]
    claimed = now(store.claim(jobs[0])).claimed
    closed: list[bool] = []
    end = End(
        claimed,
        Verdict(Transition.SUCCEEDED, None),
        Metrics(),
        [Draft("response.json", "application/json", chunks, size)],
        lambda: closed.append(True),
    )
    finisher = Finisher(store, clock)
    if alone or size > PIECE_BYTES:
        now(finisher.finish(end))
    else:
        assert now(finisher.claim(jobs[1], end)).job.job_id == jobs[1]
    job = now(store.get(jobs[0]))
    assert (job.status, job.attempt, job.artifacts) == (Status.QUEUED, 1, ())
    assert job.errors[0].code == "bad_response"
    assert job.not_before > NOW
    assert closed == [True]
    assert not clock.getDelayedCalls()


def test_the_last_attempt_fails_the_job() -> None:
    """As for any other bad answer."""
    clock = Clock()
    clock.advance(NOW)
    store, _ = make_store(clock)
    submission = Submission(
        job_id=str(ULID.from_timestamp(NOW)),
        endpoint="/api/chat",
        line=LineKey("m"),
        body=b"{}",
        created_at=NOW,
    )
    job_id = now(store.submit(evolve(submission, max_attempts=1))).job_id
    draft = Draft("response.json", "application/json", bad_answer, 1)
    claimed = now(store.claim(job_id)).claimed
    end = End(claimed, Verdict(Transition.SUCCEEDED, None), Metrics(), [draft], lambda: None)
    now(Finisher(store, clock).finish(end))
    assert now(store.get(job_id)).status is Status.FAILED
