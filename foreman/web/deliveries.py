"""The deliveries of a job's events: the log of its webhooks, and sending one of them again."""

from collections.abc import Sequence
from typing import Any

from attrs import define

from foreman.errors import JobNotFound
from foreman.jobs.delivery import Delivery, Outbox, Try
from foreman.jobs.interface import JobStore
from foreman.quantities import format_moment
from foreman.web.gate import Answer
from foreman.web.jobs import ulid
from foreman.webhooks.dispatcher import Dispatcher


@define(eq=False)
class Deliveries:
    """Answers requests for deliveries; raises a ForemanError for the app's error table."""

    _store: JobStore
    _outbox: Outbox
    _dispatcher: Dispatcher

    async def list(self, job_id: str) -> Answer:
        """``GET /jobs/{id}/deliveries``: also of a job that was pruned, as long as they are kept."""
        job_id = ulid(job_id)
        found = await self._outbox.deliveries(job_id)
        if not found and await self._store.get(job_id) is None:
            raise JobNotFound(job_id)
        return Answer.json(200, {"deliveries": [_shown(delivery, tries) for delivery, tries in found]})

    async def redeliver(self, job_id: str, event_id: str) -> Answer:
        """``POST /jobs/{id}/deliveries/{event_id}/redeliver``: 202 with the delivery as it is now."""
        delivery = await self._dispatcher.redeliver(ulid(job_id), event_id.upper())
        return Answer.json(202, _head(delivery))


def _head(delivery: Delivery) -> dict[str, Any]:
    return {
        "event_id": delivery.event_id,
        "type": delivery.type,
        "sequence": delivery.sequence,
        "state": delivery.state.value,
        "next_attempt_at": format_moment(delivery.due_at),
    }


def _shown(delivery: Delivery, tries: Sequence[Try]) -> dict[str, Any]:
    return {**_head(delivery), "attempts": [_try(attempt) for attempt in tries]}


def _try(attempt: Try) -> dict[str, Any]:
    return {
        "at": format_moment(attempt.at),
        "address": attempt.address,
        "status": attempt.status,
        "error": attempt.error,
        "duration_ms": attempt.duration_ms,
        "response": attempt.response.decode("utf-8", "replace"),
    }
