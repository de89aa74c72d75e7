"""What a delivery is: the attempts to push one event to one URL, and the outbox that keeps them.

Every time in this room is in epoch seconds (a float), read from a wall clock that was handed in.
"""

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from attrs import frozen

from foreman.jobs.model import Event


class DeliveryState(enum.Enum):
    """The states of a delivery. The last three are final, until somebody asks for it to be sent again."""

    PENDING = "pending"
    DELIVERED = "delivered"  # the receiver answered 2xx
    FAILED = "failed"  # no attempt is left
    STOPPED = "stopped"  # the receiver answered 410


@frozen(kw_only=True)
class Delivery:
    """
    One event on its way to one URL.

    `job_id` and `sequence` are None for an event of foreman's own. `series` counts from 1, and is raised each
    time when somebody asks for it to be sent again; `tried` is how many attempts of this series were made.
    `due_at` is the moment of the next attempt: None when there is none, or when an earlier event of the job
    has not had its first attempt yet.
    """

    event_id: str
    job_id: str | None
    type: str
    sequence: int | None
    url: str
    state: DeliveryState
    series: int
    tried: int
    due_at: float | None


@frozen(kw_only=True)
class Try:
    """
    One attempt that was made. `address` is where it went (None: nowhere), `status` the HTTP status of the
    answer, `error` a stable code when there was no answer, `response` the answer's first 4 KiB.
    """

    at: float
    address: str | None
    status: int | None
    error: str | None
    duration_ms: int
    response: bytes


@frozen
class Due:
    """A delivery that may be sent now, and the bytes to send: the same at each attempt."""

    delivery: Delivery
    body: bytes


@frozen
class Taken:
    """What `take` gave, and the moment at which more of this receiver's will be due (None: never)."""

    due: tuple[Due, ...]
    next_due_at: float | None


@frozen
class WebhookState:
    """How the webhooks of one job fare."""

    state: DeliveryState
    last_status: int | None
    attempts: int


Compose = Callable[[Event, bytes | None], bytes]
"""Makes the body of an event. The second argument is the job's `response.json`, for the event that ended the
job's latest run well, when it has at most `RESULT_BYTES`; else None. It runs in the writer's thread."""

RESULT_BYTES = 20_000
"""Larger results are not even read: they would not fit into a body."""


class Outbox(Protocol):
    """
    Deliveries on disk. A delivery is made in the transaction of the event's transition, when the job has a
    `state_webhook_url` and wants this event; or else, for a job that failed or expired, to the owner's URL.

    When a method's result is there, what it did is synced. Cancelling an await does not undo the work, and
    ends only when the work is done. Any method raises DatabaseFull or DatabaseUnavailable, after which it
    changed nothing. A *receiver* is the scheme, host and port of a URL: `foreman.urls.receiver`.
    """

    on_delivery_due: Callable[[str, float], None]
    """A delivery to this receiver is due at this moment. Called in the reactor's thread after the commit."""

    async def receivers(self) -> Mapping[str, float]:
        """For each receiver with something to come, when the first of it is due: at start."""
        ...

    async def take(self, receiver: str, now: float, limit: int, besides: Collection[str]) -> Taken:
        """
        The deliveries to this receiver that are due, soonest first, at most `limit`, without the events
        `besides`. Bodies that were not composed before are composed, and on disk when this returns.
        """
        ...

    async def record(
        self, delivery: Delivery, attempt: Try, state: DeliveryState, due_at: float | None = None
    ) -> bool:
        """
        Write down an attempt, and what comes of it: PENDING until the next one's moment, or a final state.

        The first attempt of an event lets the next event of its job go. False when the delivery is in another
        series by now, or has this attempt already: then the attempt only stands in its log.
        """
        ...

    async def redeliver(self, job_id: str, event_id: str, now: float) -> Delivery | None:
        """
        Begin a new series, due at once. One that was never tried stays as it is.

        None when the job has no such delivery.
        """
        ...

    async def announce(self, event_id: str, event_type: str, url: str, body: bytes, now: float) -> None:
        """A delivery of an event of foreman's own, due at once."""
        ...

    async def last_announcement(self) -> Due | None:
        """The latest of foreman's own events that is still kept."""
        ...

    async def deliveries(self, job_id: str) -> Sequence[tuple[Delivery, Sequence[Try]]]:
        """The deliveries of a job in the order of `sequence`, each with its attempts, oldest first."""
        ...

    async def states(self, job_ids: Collection[str]) -> Mapping[str, WebhookState]:
        """How the webhooks of these jobs fare; those without any delivery are left out."""
        ...

    async def prune(self, until: float) -> int:
        """Remove deliveries that ended at this moment or before, in small transactions. Returns how many."""
        ...
