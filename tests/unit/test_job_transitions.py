"""The transition table, walked state by event: what it does not allow, SQL refuses."""

import itertools
from typing import Any

import pytest
from attrs import evolve

from foreman.jobs.database import InlinePool, open_pools
from foreman.jobs.model import (
    ENDED,
    FINISHES,
    TRANSITIONS,
    Fence,
    Finish,
    LineKey,
    Status,
    Submission,
    Transition,
)
from foreman.jobs.records import insert, read_events, read_record, save
from foreman.jobs.rules import finished
from foreman.jobs.writer import Transaction

JOB_ID = "0" * 26
SUBMISSION = Submission(
    job_id=JOB_ID, endpoint="/api/chat", line=LineKey("m"), body=b"", created_at=1.0, max_attempts=2
)


@pytest.fixture
def transaction() -> Any:
    """A connection to an empty database in memory."""
    pool = open_pools(":memory:", None).writer
    assert isinstance(pool, InlinePool)
    yield Transaction(pool._connection)
    pool.close()


def test_every_transition_ends_where_the_table_says() -> None:
    """Each has a row; none leads nowhere; an ended job leaves its state only when somebody asks for it."""
    assert set(TRANSITIONS) == set(Transition)
    for transition, move in TRANSITIONS.items():
        assert move.allowed
        assert (transition is Transition.REQUEUED) == bool(move.allowed & ENDED)
    assert {
        transition for transition, move in TRANSITIONS.items() if Status.RUNNING in move.allowed
    } == FINISHES


@pytest.mark.parametrize(("status", "transition"), list(itertools.product(Status, Transition)))
def test_walk(transaction: Any, status: Status, transition: Transition) -> None:
    """What a state does not allow is a mistake, and changes nothing; the rest is made."""
    insert(transaction, SUBMISSION, status, 1.0)
    old = read_record(transaction.connection, JOB_ID)
    assert old is not None
    move = TRANSITIONS[transition]
    new = evolve(old, job=evolve(old.job, status=move.to))
    if status in move.allowed:
        save(transaction, old, new, transition, 2.0)
        after = read_record(transaction.connection, JOB_ID)
        assert after is not None
        assert (after.job.status, after.job.sequence) == (move.to, 2)
        event = read_events(transaction.connection, JOB_ID)[-1]
        assert (event.type, event.previous_status) == (f"job.{move.to.value}", status)
    else:
        with pytest.raises(RuntimeError, match=f"is {status.value}, and cannot be {transition.value}"):
            save(transaction, old, new, transition, 2.0)
        assert read_record(transaction.connection, JOB_ID) == old
        assert len(read_events(transaction.connection, JOB_ID)) == 1


def test_another_run_is_fenced_off_in_sql(transaction: Any) -> None:
    """A record that was read before the job's run or epoch changed cannot be saved."""
    insert(transaction, SUBMISSION, Status.RUNNING, 1.0)
    old = read_record(transaction.connection, JOB_ID)
    assert old is not None
    for stale in (evolve(old, run=old.run + 1), evolve(old, epoch=7)):
        with pytest.raises(RuntimeError):
            save(transaction, stale, stale, Transition.SUCCEEDED, 2.0)


@pytest.mark.parametrize("transition", sorted(set(Transition) - FINISHES, key=lambda each: each.value))
def test_a_run_ends_only_by_a_finish(transaction: Any, transition: Transition) -> None:
    """A claim or an expiry is no end of a run."""
    record = insert(transaction, SUBMISSION, Status.RUNNING, 1.0)
    with pytest.raises(ValueError, match="a run cannot end as"):
        finished(record, Finish(Fence(JOB_ID, 1, 1), transition), 2.0, 10)
