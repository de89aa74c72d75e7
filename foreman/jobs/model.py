"""What a durable job is: its states, what moves it from one to another, and the values that describe it.

Every time in this room is in epoch seconds (a float), read from a wall clock that was handed in.
"""

import enum
from collections.abc import Mapping
from typing import Any, Literal

from attrs import field, frozen

RESULT = "response.json"
"""The artifact that holds what the target would have answered without a stream."""

PIECE_BYTES = 256 * 1024
"""Artifacts and bodies are stored in pieces of this size; the last one may be smaller."""


class Status(enum.Enum):
    """The states of a job. The last four are final, until somebody asks for the job to run again."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def ended(self) -> bool:
        """Nothing more happens to the job by itself."""
        return self in ENDED


WAITING = frozenset({Status.SCHEDULED, Status.QUEUED})
ENDED = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED})


class Transition(enum.Enum):
    """What can happen to a job."""

    RELEASED = "released"  # its `run_at` came
    CLAIMED = "claimed"  # it was chosen, and its request is about to be sent
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # its deadline to start passed
    RETRIED = "retried"  # its attempt failed, and it has another one
    PUT_BACK = "put back"  # not done, or somebody wanted the GPU at once: the attempt does not count
    INTERRUPTED = "interrupted"  # foreman was stopped or died: the attempt does not count
    REQUEUED = "requeued"  # somebody asked for an ended job to run again


@frozen
class Move:
    """From which states a transition may start, and the state that it ends in."""

    allowed: frozenset[Status]
    to: Status


_RUNNING = frozenset({Status.RUNNING})

TRANSITIONS: Mapping[Transition, Move] = {
    Transition.RELEASED: Move(frozenset({Status.SCHEDULED}), Status.QUEUED),
    Transition.CLAIMED: Move(frozenset({Status.QUEUED}), Status.RUNNING),
    Transition.SUCCEEDED: Move(_RUNNING, Status.SUCCEEDED),
    Transition.FAILED: Move(_RUNNING, Status.FAILED),
    Transition.CANCELLED: Move(WAITING | _RUNNING, Status.CANCELLED),
    Transition.EXPIRED: Move(WAITING, Status.EXPIRED),
    Transition.RETRIED: Move(_RUNNING, Status.QUEUED),
    Transition.PUT_BACK: Move(_RUNNING, Status.QUEUED),
    Transition.INTERRUPTED: Move(_RUNNING, Status.QUEUED),
    Transition.REQUEUED: Move(ENDED, Status.QUEUED),
}
"""The transition table. A job begins as `scheduled` or `queued`; SQL enforces the rest of it."""

FINISHES = frozenset(
    {
        Transition.SUCCEEDED,
        Transition.FAILED,
        Transition.CANCELLED,
        Transition.RETRIED,
        Transition.PUT_BACK,
        Transition.INTERRUPTED,
    }
)
"""The transitions that end a run: what a `Finish` may say."""


@frozen
class LineKey:
    """Which line a job waits in. Jobs that bypass the turn (embeddings) wait in lines of their own.

    `option_key` is text that is equal when the runner options are.
    """

    model: str
    option_key: str = ""
    takes_turn: bool = True


@frozen(kw_only=True)
class Submission:
    """A job as it is handed in. `job_id` is a ULID, `body` the native body without foreman's own fields.

    `timeout` is in seconds, 0 for none, None for the default. `start_deadline` and `run_at` are moments.
    `webhook_events` names the events that `webhook_url` wants; None is all.
    """

    job_id: str
    endpoint: str
    line: LineKey
    body: bytes
    created_at: float
    priority: int = 0
    metadata: Mapping[str, Any] = field(factory=dict)
    timeout: float | None = None
    run_at: float | None = None
    start_deadline: float | None = None
    max_attempts: int = 3
    on_interrupt: Literal["retry", "fail"] = "retry"
    transcript: bool = False
    webhook_url: str | None = None
    webhook_events: tuple[str, ...] | None = None


@frozen
class AttemptError:
    """Why one attempt failed: a stable code, a sentence, and what the target said."""

    attempt: int
    at: float
    code: str
    message: str
    target_status: int | None = None
    target_body: str | None = None


@frozen
class Metrics:
    """What the successful, or the last, attempt took."""

    queue_seconds: float | None = None
    load_seconds: float | None = None
    run_seconds: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tokens_per_second: float | None = None


@frozen
class Artifact:
    """A named output of a job. `size` is in bytes, `sha256` in hexadecimal digits."""

    name: str
    content_type: str
    size: int
    sha256: str

    @property
    def pieces(self) -> int:
        """How many pieces it is stored in, numbered from 0. An empty artifact has none."""
        return -(-self.size // PIECE_BYTES)


@frozen(kw_only=True)
class Job:
    """A job as it is now. `attempt` counts the attempts that count, the running one included.

    `sequence` is the number of the last event; every visible change raises it, or sets
    `cancel_requested_at`. `not_before` is the end of a backoff. `waiting_since` is when it began to wait for
    the turn: the submission, `run_at`, the end of a backoff.
    """

    job_id: str
    status: Status
    endpoint: str
    line: LineKey
    priority: int
    metadata: Mapping[str, Any]
    timeout: float | None
    start_deadline: float | None
    max_attempts: int
    on_interrupt: Literal["retry", "fail"]
    transcript: bool
    webhook_url: str | None
    webhook_events: tuple[str, ...] | None
    attempt: int
    interruptions: int
    sequence: int
    created_at: float
    run_at: float | None
    not_before: float | None
    waiting_since: float
    started_at: float | None
    finished_at: float | None
    cancel_requested_at: float | None
    errors: tuple[AttemptError, ...]
    metrics: Metrics | None
    artifacts: tuple[Artifact, ...]

    @property
    def model(self) -> str:
        """The model's name, as the caller wrote it."""
        return self.line.model

    @property
    def error(self) -> AttemptError | None:
        """Why the job failed; None unless it did."""
        return self.errors[-1] if self.status is Status.FAILED and self.errors else None


@frozen
class Tombstone:
    """What is left of a job after its retention, or after it was deleted."""

    job_id: str
    status: Status
    created_at: float
    finished_at: float


@frozen
class Piece:
    """One piece of an artifact: all of `PIECE_BYTES`, but the last may be smaller."""

    name: str
    number: int
    data: bytes


@frozen
class Fence:
    """Which run of which job, in which life of the daemon. A write about a run proves itself with it.

    `run` counts every claim of the job and is never used twice, while an attempt that does not count is
    given back.
    """

    job_id: str
    epoch: int
    run: int


@frozen
class Claimed:
    """A job that was claimed: it is `running`, on disk, and its request may be sent."""

    job: Job
    body: bytes
    fence: Fence


@frozen
class Finish:
    """How a run ended.

    `transition` is one of `FINISHES`. RETRIED becomes a failure when no attempt is left; what would be
    queued again is cancelled instead when that was asked. `artifacts` were written piece by piece before, but
    for those `pieces` that are written here, in the transaction of the finish: so a job with small outputs
    costs one commit. They are kept only if the job ends. `error` is appended to the history.
    """

    fence: Fence
    transition: Transition
    error: AttemptError | None = None
    metrics: Metrics | None = None
    artifacts: tuple[Artifact, ...] = ()
    pieces: tuple[Piece, ...] = ()
    not_before: float | None = None


@frozen
class Finished:
    """What a `Finish` did. `changed` is False for one that came too late: the job is as it was.

    `job` is None when the job is no longer there.
    """

    job: Job | None
    changed: bool


@frozen
class Turnover:
    """What `claim` did: `claimed` is None when the job waits no more; the finish stands all the same."""

    claimed: Claimed | None
    finished: Finished | None


@frozen
class Waiting:
    """One waiting job, as far as a choice needs it. `order` decides between jobs of one instant."""

    job_id: str
    priority: int
    since: float
    order: int


@frozen
class LineView:
    """One line: how many wait, the one that runs first, and the one that waits longest (None: nobody)."""

    line: LineKey
    count: int
    head: Waiting | None
    oldest: Waiting | None


@frozen
class Event:
    """
    One transition of a job, written with it. `sequence` counts from 1 within the job.

    `facts` holds what must be known later though the job has moved on, or is gone: model, endpoint, attempt,
    metadata, webhook_url, error, metrics.
    """

    event_id: str
    job_id: str
    sequence: int
    status: Status
    previous_status: Status | None
    at: float
    facts: Mapping[str, Any]

    @property
    def type(self) -> str:
        """`job.queued` … `job.expired`."""
        return f"job.{self.status.value}"


@frozen
class Page:
    """One page of a list, newest first. `next` is the cursor of the next page, None on the last."""

    jobs: tuple[Job, ...]
    next: str | None


@frozen
class Estimate:
    """An average of `count` measurements. `lane` and `key` say of what, and are "" where it is of all."""

    measure: str
    lane: str
    key: str
    value: float
    count: int


@frozen
class Pause:
    """A lane that is held back since one moment, and until another or until somebody resumes it (None).

    `unload`: the target's models are to be unloaded, and stay so.
    """

    lane: str
    since: float
    until: float | None
    unload: bool


@frozen
class Retention:
    """How many seconds an ended job is kept, and then its tombstone."""

    succeeded: float = 24 * 3600.0
    failed: float = 168 * 3600.0
    tombstone: float = 30 * 24 * 3600.0
