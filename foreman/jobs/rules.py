"""What a transition makes of a job: pure functions from one record to the next."""

from attrs import evolve

from foreman.jobs.model import (
    ENDED,
    FINISHES,
    TRANSITIONS,
    AttemptError,
    Finish,
    Job,
    Status,
    Submission,
    Transition,
)
from foreman.jobs.records import Record


def beginning(submission: Submission, now: float) -> tuple[Status, float]:
    """The first state of a job, and the moment from which it waits."""
    if submission.run_at is not None and submission.run_at > now:
        return Status.SCHEDULED, submission.run_at
    return Status.QUEUED, submission.created_at


def too_late(job: Job, now: float) -> bool:
    """The deadline to start passed, and the job never started."""
    return job.start_deadline is not None and job.started_at is None and job.start_deadline <= now


def claimed(record: Record, now: float, epoch: int) -> Record:
    """Its run begins."""
    job = evolve(record.job, status=Status.RUNNING, attempt=record.job.attempt + 1, started_at=now)
    return evolve(record, job=job, run=record.run + 1, epoch=epoch)


def ended(record: Record, transition: Transition, now: float) -> Record:
    """It ends without a run, or with what its run has left already."""
    job = evolve(record.job, status=TRANSITIONS[transition].to, finished_at=now, not_before=None)
    return evolve(record, job=job)


def cancelled(record: Record, now: float) -> Record:
    """It waited, and is cancelled at once."""
    asked = evolve(record, job=evolve(record.job, cancel_requested_at=now))
    return ended(asked, Transition.CANCELLED, now)


def released(record: Record) -> Record:
    """Its `run_at` came."""
    return evolve(record, job=evolve(record.job, status=Status.QUEUED))


def requeued(record: Record, now: float) -> Record:
    """It runs again because somebody asked: with all its attempts, and as much time to start as at first."""
    job = record.job
    deadline = None if record.start_within is None else now + record.start_within
    job = evolve(
        job,
        status=Status.QUEUED,
        start_deadline=deadline,
        waiting_since=now,
        started_at=None,
        finished_at=None,
        cancel_requested_at=None,
        attempt=0,
        interruptions=0,
        metrics=None,
        artifacts=(),
    )
    return evolve(record, job=job)


def finished(record: Record, finish: Finish, now: float, max_interruptions: int) -> tuple[Transition, Record]:
    """The run ended. The transition may be another than the finish says: see `Finish`."""
    if finish.transition not in FINISHES:
        raise ValueError(f"a run cannot end as {finish.transition.value}")
    job = record.job
    if finish.error is not None:
        job = evolve(job, errors=(*job.errors, finish.error))
    if finish.metrics is not None:
        job = evolve(job, metrics=finish.metrics)
    transition = finish.transition
    match transition:
        case Transition.RETRIED if job.cancel_requested_at is None and job.attempt >= job.max_attempts:
            transition = Transition.FAILED
        case Transition.RETRIED:
            job = _waiting(job, now if finish.not_before is None else finish.not_before, now)
        case Transition.PUT_BACK:
            job = _given_back(job)
            job = _waiting(job, job.waiting_since if finish.not_before is None else finish.not_before, now)
        case Transition.INTERRUPTED:
            transition, job = _interrupted(job, now, max_interruptions)
        case _:
            pass
    if TRANSITIONS[transition].to is Status.QUEUED and job.cancel_requested_at is not None:
        transition = Transition.CANCELLED
    if TRANSITIONS[transition].to in ENDED:
        job = evolve(job, artifacts=finish.artifacts)
        return transition, ended(evolve(record, job=job), transition, now)
    return transition, evolve(record, job=evolve(job, status=Status.QUEUED))


def _waiting(job: Job, since: float, now: float) -> Job:
    """It waits from this moment on, which may be still to come."""
    return evolve(job, waiting_since=since, not_before=since if since > now else None)


def _given_back(job: Job) -> Job:
    """The attempt does not count. A job that never started still has its deadline to start."""
    attempt = job.attempt - 1
    started_at = job.started_at if attempt or job.interruptions else None
    return evolve(job, attempt=attempt, started_at=started_at)


def _interrupted(job: Job, now: float, max_interruptions: int) -> tuple[Transition, Job]:
    """Foreman was stopped or died. The job keeps its place in its line, unless it must not run again."""
    interruptions = job.interruptions + 1
    job = evolve(job, interruptions=interruptions)
    if job.cancel_requested_at is not None:
        return Transition.CANCELLED, job
    if job.on_interrupt == "fail":
        error = AttemptError(
            job.attempt,
            now,
            "interrupted",
            'the job was interrupted while it ran, and on_interrupt is "fail"',
        )
    elif interruptions > max_interruptions:
        error = AttemptError(
            job.attempt,
            now,
            "crash_loop",
            f"foreman was stopped or died {interruptions} times while the job ran; "
            f"FOREMAN_MAX_INTERRUPTIONS is {max_interruptions}",
        )
    else:
        return Transition.INTERRUPTED, _given_back(job)
    return Transition.FAILED, evolve(job, errors=(*job.errors, error))
