"""The outbox on SQLite: ``foreman.jobs.delivery`` over the store's one writer and its readers."""

import json
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred

from foreman.jobs.delivery import (
    RESULT_BYTES,
    Compose,
    Delivery,
    DeliveryState,
    Due,
    Taken,
    Try,
    WebhookState,
)
from foreman.jobs.model import Event, Job, Status
from foreman.jobs.queries import changed, rows
from foreman.jobs.records import read_event
from foreman.jobs.retention import STEP_SECONDS
from foreman.jobs.writer import Transaction
from foreman.urls import receiver

T = TypeVar("T")

_BATCH = 200  # rows
_OWNERS_BUSINESS = frozenset({Status.FAILED, Status.EXPIRED})


@define(eq=False)
class SqliteOutbox:
    """
    An `Outbox`. `write` and `read` are the store's: they run a function in a transaction, or on one state of
    the database. `owner_url` is told of jobs that have no URL of their own.
    """

    _write: "Callable[[Callable[[Transaction], Any]], Deferred[Any]]"
    _read: "Callable[[Callable[[sqlite3.Connection], Any]], Deferred[Any]]"
    _compose: Compose
    _owner_url: str | None
    on_delivery_due: Callable[[str, float], None] = field(default=lambda name, moment: None, init=False)

    def emit(self, transaction: Transaction, job: Job, event: Event) -> None:
        """Within the transaction of a transition: the delivery of its event, if anybody is to be told."""
        url = job.webhook_url
        if url is None:
            url = self._owner_url if event.status in _OWNERS_BUSINESS else None
        elif job.webhook_events is not None and event.type not in job.webhook_events:
            url = None
        if url is None:
            return
        name = receiver(url)
        values = {
            "event_id": event.event_id,
            "job_id": event.job_id,
            "type": event.type,
            "sequence": event.sequence,
            "url": url,
            "receiver": name,
            "at": event.at,
        }
        ((due_at,),) = rows(transaction.connection, "delivery_insert", values)
        if due_at is not None:
            self._tell(transaction, name, due_at)

    async def receivers(self) -> Mapping[str, float]:
        # In the writer: a reader could miss a delivery whose notice has gone out already.
        found = await self._write(lambda transaction: rows(transaction.connection, "receivers"))
        return {str(name): float(moment) for name, moment in found}

    async def take(self, receiver: str, now: float, limit: int, besides: Collection[str]) -> Taken:
        passed_over = frozenset(besides)  # as it is now, and for another thread
        taken: Taken = await self._write(partial(self._take, receiver, now, limit, passed_over))
        return taken

    async def record(
        self, delivery: Delivery, attempt: Try, state: DeliveryState, due_at: float | None = None
    ) -> bool:
        current: bool = await self._write(partial(self._record, delivery, attempt, state, due_at))
        return current

    async def redeliver(self, job_id: str, event_id: str, now: float) -> Delivery | None:
        delivery: Delivery | None = await self._write(partial(self._redeliver, job_id, event_id, now))
        return delivery

    async def announce(self, event_id: str, event_type: str, url: str, body: bytes, now: float) -> None:
        values = {
            "event_id": event_id,
            "type": event_type,
            "url": url,
            "receiver": receiver(url),
            "at": now,
            "body": body,
        }

        def write(transaction: Transaction) -> None:
            changed(transaction.connection, "announcement_insert", values)
            self._tell(transaction, receiver(url), now)

        await self._write(write)

    async def last_announcement(self) -> Due | None:
        def read(connection: sqlite3.Connection) -> Due | None:
            found = rows(connection, "last_announcement")
            return Due(_delivery(found[0]), found[0]["body"]) if found else None

        last: Due | None = await self._read(read)
        return last

    async def deliveries(self, job_id: str) -> Sequence[tuple[Delivery, Sequence[Try]]]:
        def read(connection: sqlite3.Connection) -> list[tuple[Delivery, list[Try]]]:
            tries: dict[int, list[Try]] = {}
            for place, _, *facts in rows(connection, "attempts_of", {"job_id": job_id}):
                tries.setdefault(place, []).append(_try(facts))
            return [
                (_delivery(row), tries.get(row["position"], []))
                for row in rows(connection, "deliveries_of", {"job_id": job_id})
            ]

        found: Sequence[tuple[Delivery, Sequence[Try]]] = await self._read(read)
        return found

    async def states(self, job_ids: Collection[str]) -> Mapping[str, WebhookState]:
        found: Mapping[str, WebhookState] = await self._read(partial(_states, json.dumps(list(job_ids))))
        return found

    async def prune(self, until: float) -> int:
        removed = 0
        while count := await self._write(partial(_prune_some, until)):
            removed += count
        return removed

    def _take(
        self, name: str, now: float, limit: int, besides: frozenset[str], transaction: Transaction
    ) -> Taken:
        values = {"receiver": name, "limit": limit + len(besides) + 1}
        found = [
            row for row in rows(transaction.connection, "deliveries_due", values) if row[0] not in besides
        ]
        due = [event_id for event_id, moment in found[:limit] if moment <= now]
        next_due_at = found[len(due)][1] if len(found) > len(due) else None
        return Taken(tuple(self._composed(transaction, event_id) for event_id in due), next_due_at)

    def _composed(self, transaction: Transaction, event_id: str) -> Due:
        connection = transaction.connection
        (row,) = rows(connection, "delivery_by_event", {"event_id": event_id})
        body = row["body"]
        if body is None:
            event = read_event(connection, row["job_id"], row["sequence"])
            body = self._compose(event, _result(connection, event))
            changed(connection, "delivery_compose", {"position": row["position"], "body": body})
        return Due(_delivery(row), bytes(body))

    def _record(
        self,
        delivery: Delivery,
        attempt: Try,
        state: DeliveryState,
        due_at: float | None,
        transaction: Transaction,
    ) -> bool:
        connection = transaction.connection
        values = {
            "event_id": delivery.event_id,
            "at": attempt.at,
            "address": attempt.address,
            "status": attempt.status,
            "error": attempt.error,
            "duration_ms": attempt.duration_ms,
            "response": attempt.response,
        }
        changed(connection, "attempt_insert", values)
        pending = state is DeliveryState.PENDING
        moved = changed(
            connection,
            "delivery_move",
            {
                "event_id": delivery.event_id,
                "series": delivery.series,
                "state": state.value,
                "tried": delivery.tried + 1,
                "due_at": due_at,
                "ended_at": None if pending else attempt.at + attempt.duration_ms / 1000,
            },
        )
        if moved and due_at is not None:
            self._tell(transaction, receiver(delivery.url), due_at)
        if moved and delivery.tried == 0 and delivery.series == 1 and delivery.job_id is not None:
            for position, name, at in rows(connection, "delivery_next_held", {"job_id": delivery.job_id}):
                changed(connection, "delivery_release", {"position": position, "at": at})
                self._tell(transaction, name, at)
        return bool(moved)

    def _redeliver(self, job_id: str, event_id: str, now: float, transaction: Transaction) -> Delivery | None:
        values = {"event_id": event_id, "now": now}
        for row in rows(transaction.connection, "delivery_by_event", values):
            if row["job_id"] != job_id:
                return None
            if row["state"] == "pending" and row["series"] == 1 and row["tried"] == 0:
                return _delivery(row)  # its first attempt is still to come, in its order
            (again,) = rows(transaction.connection, "delivery_again", values)
            self._tell(transaction, again["receiver"], now)
            return _delivery(again)
        return None

    def _tell(self, transaction: Transaction, name: str, moment: float) -> None:
        transaction.notices.append(lambda: self.on_delivery_due(name, moment))


def _result(connection: sqlite3.Connection, event: Event) -> bytes | None:
    """The small result of the run that this event ended."""
    if event.status is not Status.SUCCEEDED:
        return None
    values = {"job_id": event.job_id, "sequence": event.sequence, "limit": RESULT_BYTES}
    for size, data in rows(connection, "result_of", values):
        return bytes(data)[:size]
    return None


def _states(job_ids: str, connection: sqlite3.Connection) -> dict[str, WebhookState]:
    values = {"job_ids": job_ids}
    seen: dict[str, set[str]] = {}
    for job_id, state in rows(connection, "delivery_states", values):
        seen.setdefault(job_id, set()).add(state)
    attempts: dict[str, int] = {}
    last: dict[str, int] = {}
    for job_id, status in rows(connection, "delivery_statuses", values):
        attempts[job_id] = attempts.get(job_id, 0) + 1
        if status is not None:
            last[job_id] = status
    return {
        job_id: WebhookState(
            next(state for state in _WORST_FIRST if state.value in states),
            last.get(job_id),
            attempts.get(job_id, 0),
        )
        for job_id, states in seen.items()
    }


_WORST_FIRST = (
    DeliveryState.FAILED,
    DeliveryState.STOPPED,
    DeliveryState.PENDING,
    DeliveryState.DELIVERED,
)


def _prune_some(until: float, transaction: Transaction) -> int:
    """Remove some deliveries, and what they kept of jobs that are no longer there."""
    started, count = monotonic(), 0
    for row in rows(transaction.connection, "deliveries_old", {"until": until, "limit": _BATCH}):
        values = dict(row)
        changed(transaction.connection, "delivery_drop", values)
        if row["job_id"] is not None:
            changed(transaction.connection, "event_drop_orphan", values)
        count += 1
        # After a removal: see STEP_SECONDS.
        if monotonic() - started >= STEP_SECONDS:
            break
    return count


def _delivery(row: Any) -> Delivery:
    return Delivery(
        event_id=row["event_id"],
        job_id=row["job_id"],
        type=row["type"],
        sequence=row["sequence"],
        url=row["url"],
        state=DeliveryState(row["state"]),
        series=row["series"],
        tried=row["tried"],
        due_at=row["due_at"],
    )


def _try(facts: Sequence[Any]) -> Try:
    at, address, status, error, duration_ms, response = facts
    return Try(
        at=at, address=address, status=status, error=error, duration_ms=duration_ms, response=bytes(response)
    )
