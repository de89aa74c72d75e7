"""The dispatcher: takes what is due out of the outbox, sends it, and writes down what came of it."""

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from foreman.errors import DeliveryNotFound, DeliveryUnderWay
from foreman.jobs.delivery import Delivery, DeliveryState, Due, Outbox, Taken, Try
from foreman.jobs.shield import shield
from foreman.urls import receiver as receiver_of
from foreman.webhooks.receivers import PLACES, Receiver, Receivers, Standing
from foreman.webhooks.request import headers
from foreman.webhooks.schedule import verdict
from foreman.webhooks.sender import Outcome
from foreman.webhooks.signature import Signer
from foreman.works import LONGEST_DELAY_SECONDS, Retries, Works

BACKLOG_SECONDS = 300.0
"""After this wait for a place, or for the database, foreman is behind with its webhooks."""

READY_PER_RECEIVER = 4 * PLACES
"""How many deliveries are read at once for a receiver that is well: one commit for all of their bodies."""

# A system's clock may be set: never sleep longer than this.
_LONGEST_SLEEP_SECONDS = 60.0


class Sender(Protocol):
    """Makes one attempt; never raises but when it is cancelled."""

    async def send(self, url: str, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> Outcome: ...


@define(eq=False)
class Dispatcher:
    """
    Sends the deliveries of the outbox.

    `backoff` holds the seconds before each retry, `concurrency` is how many attempts there are at once at
    most. `draw` gives numbers from -1 to 1, for the jitter.
    """

    _clock: IReactorTime
    _outbox: Outbox
    _sender: Sender
    _signer: Signer
    _backoff: Sequence[float]
    _concurrency: int
    _draw: Callable[[], float] = lambda: random.uniform(-1, 1)
    _receivers: Receivers = field(init=False)
    _ready: int = field(default=0, init=False)  # bodies in memory that are not on the wire
    _besides: set[str] = field(factory=set, init=False)  # events in memory: the outbox need not give them
    _on_wire: dict[str, "Deferred[None]"] = field(factory=dict, init=False)
    _works: Works = field(init=False)
    _retries: Retries = field(init=False)
    _alarm: IDelayedCall | None = field(default=None, init=False)
    _looking: bool = field(default=False, init=False)
    _stopping: bool = field(default=True, init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self._receivers = Receivers(self._concurrency)
        self._works = Works(self._clock, self._log)
        self._retries = Retries(self._clock, self._log)

    async def start(self) -> None:
        """Go on where the last life stopped."""
        self._stopping = False
        self._outbox.on_delivery_due = self.due
        for name, moment in (await self._outbox.receivers()).items():
            self._receivers.due(name, moment, self._clock.seconds())
        self._look()

    async def stop(self, grace: float, cut_limit: float) -> None:
        """
        Begin nothing more. What is on the wire has `grace` seconds, and is then cut: that is no attempt.

        `cut_limit` is how many seconds the database has to take what came of the others.
        """
        self._stopping = True
        if self._alarm is not None and self._alarm.active():
            self._alarm.cancel()
        self._retries.stop()
        if await self._works.wait_until_idle(grace):
            return
        for attempt in list(self._on_wire.values()):
            attempt.cancel()
        await self._works.wait_until_idle(cut_limit)

    def due(self, name: str, moment: float) -> None:
        """The outbox has something for this receiver at this moment."""
        if not self._stopping:
            self._receivers.due(name, moment, self._clock.seconds())
            self._look()

    @property
    def behind_seconds(self) -> float:
        """How long what is due waits for a reason other than its receiver: for a place, or the database."""
        moments = [self._receivers.waiting_since(), self._retries.failing_since]
        given = [moment for moment in moments if moment is not None]
        return max(0.0, self._clock.seconds() - min(given)) if given else 0.0

    async def redeliver(self, job_id: str, event_id: str) -> Delivery:
        """
        Send an event again, as a new series: a retry that waits is replaced.

        Raises DeliveryNotFound, and DeliveryUnderWay while an attempt is on the wire.
        """
        if event_id in self._on_wire:
            raise DeliveryUnderWay(event_id)
        # A caller who leaves is not to leave it in the outbox with nobody who looks there.
        return await shield(Deferred.fromCoroutine(self._redeliver(job_id, event_id)))

    async def _redeliver(self, job_id: str, event_id: str) -> Delivery:
        delivery = await self._outbox.redeliver(job_id, event_id, self._clock.seconds())
        if delivery is None:
            raise DeliveryNotFound(job_id, event_id)
        # A copy that was read for the old series is not sent; that it was here kept the new one away.
        name = receiver_of(delivery.url)
        if self._receivers.drop(name, event_id):
            self._ready -= 1
            self._besides.discard(event_id)
        # Whoever looked at the commit passed it over, too, if the same one held the end of its last attempt.
        self.due(name, self._clock.seconds())
        return delivery

    def _look(self) -> None:
        """Use every place that is free, and wake up when the next delivery is due."""
        if self._looking:
            return
        self._looking = True
        try:
            moment = self._receivers.next_moment(self._clock.seconds())
            while not self._stopping and self._retries.failing_since is None:
                receiver = self._receivers.turn()
                if receiver is None:
                    break
                if receiver.ready:
                    self._send_next(receiver)
                else:
                    self._fetch(receiver)
        finally:
            self._looking = False
        self._wake_at(moment)

    def _wake_at(self, moment: float | None) -> None:
        if self._alarm is not None and self._alarm.active():
            self._alarm.cancel()
        if moment is not None and not self._stopping:
            delay = min(max(0.0, moment - self._clock.seconds()), _LONGEST_SLEEP_SECONDS)
            self._alarm = self._clock.callLater(delay, self._look)

    # Reading what is due.

    def _fetch(self, receiver: Receiver) -> None:
        self._receivers.fetch(receiver)
        self._works.begin(self._read(receiver))

    async def _read(self, receiver: Receiver) -> None:
        # Little of what is dead is kept in memory, and in all no more than the places can use soon.
        room = max(1, 2 * self._concurrency - self._ready)
        limit = min(READY_PER_RECEIVER if receiver.standing is Standing.WELL else 1, room)
        try:
            taken = await self._retries.until_done(
                "reading the webhooks that are due",
                lambda: self._outbox.take(receiver.name, self._clock.seconds(), limit, self._besides),
            )
        except Exception:
            # A fault of foreman's own with one of them is not to hold up the others.
            self._log.failure("reading the webhooks for {name} failed inside foreman", name=receiver.name)
            taken = Taken((), self._clock.seconds() + LONGEST_DELAY_SECONDS)
        if taken is None:
            return
        fresh = [due for due in taken.due if due.delivery.event_id not in self._besides]
        self._besides.update(due.delivery.event_id for due in fresh)
        self._ready += len(fresh)
        self._receivers.fetched(receiver, fresh, taken.next_due_at, self._clock.seconds())
        self._look()

    # Sending it.

    def _send_next(self, receiver: Receiver) -> None:
        due = self._receivers.begin(receiver, self._clock.seconds())
        self._ready -= 1
        attempt = self._works.begin(self._attempt(receiver, due))
        if not attempt.called:
            self._on_wire[due.delivery.event_id] = attempt

    async def _attempt(self, receiver: Receiver, due: Due) -> None:
        delivery, started = due.delivery, self._clock.seconds()
        sent = headers(
            self._signer, delivery.event_id, delivery.type, delivery.tried + 1, int(started), due.body
        )
        standing = None
        try:
            outcome = await self._sender.send(delivery.url, sent, due.body)
            standing = _standing(outcome)
        finally:
            # Its place is free before what came of it is written.
            self._on_wire.pop(delivery.event_id, None)
            self._receivers.end(receiver, standing, self._clock.seconds())
            if standing is None:
                self._besides.discard(delivery.event_id)
        self._works.begin(self._record(receiver, delivery, outcome, started))
        self._look()

    async def _record(self, receiver: Receiver, delivery: Delivery, outcome: Outcome, started: float) -> None:
        """What came of an attempt is written, unless foreman stops before the database can be."""
        ended = self._clock.seconds()
        state, due_at = verdict(
            delivery.tried + 1, outcome.status, outcome.retry_after, ended, self._backoff, self._draw()
        )
        attempt = Try(
            at=started,
            address=outcome.address,
            status=outcome.status,
            error=outcome.error,
            duration_ms=outcome.duration_ms,
            response=outcome.response,
        )
        if state is not DeliveryState.DELIVERED:
            self._log.info("{line}", line=_story(delivery, outcome, state, due_at, ended))
        again_at: float | None = ended + LONGEST_DELAY_SECONDS  # when writing fails inside foreman
        try:
            current = await self._retries.until_done(
                "writing what came of a webhook",
                lambda: self._outbox.record(delivery, attempt, state, due_at),
            )
            # If it came too late, somebody asked for it again meanwhile.
            again_at = due_at if current else ended
        finally:
            # It was passed over as long as it stood here, also by whoever looked right after the commit.
            self._besides.discard(delivery.event_id)
            self._receivers.recorded(receiver, again_at, self._clock.seconds())
        self._look()


def _standing(outcome: Outcome) -> Standing:
    if outcome.status is None:
        return Standing.SILENT
    return Standing.WELL if 200 <= outcome.status < 300 else Standing.ANSWERED


def _story(
    delivery: Delivery, outcome: Outcome, state: DeliveryState, due_at: float | None, now: float
) -> str:
    of = "" if delivery.job_id is None else f" of job {delivery.job_id}"
    next_one = f"again in {due_at - now:.0f}s" if due_at is not None else state.value
    return f"webhook {delivery.type}{of}, attempt {delivery.tried + 1}: {outcome.detail}; {next_one}"
