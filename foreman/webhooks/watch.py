"""Tells the owner when foreman is degraded, also by one reason more, and when it has recovered."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as WaitEnded
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from ulid import ULID

from foreman.errors import ForemanError
from foreman.jobs.delivery import Outbox
from foreman.webhooks.body import announcement

DEGRADED = "foreman.degraded"
RECOVERED = "foreman.recovered"
HOLD_SECONDS = 60.0
"""How long a reason, or its absence, must hold."""

QUIET_SECONDS = 600.0
"""At most one announcement of a kind in this time."""

_LOOK_SECONDS = 5.0


@define(eq=False)
class Watch:
    """Looks at the health from time to time. `report` is what ``/healthz`` says, `url` the owner's."""

    _clock: IReactorTime
    _outbox: Outbox
    _report: Callable[[], Mapping[str, Any]]
    _url: str
    _new_id: Callable[[float], str] = lambda moment: str(ULID.from_timestamp(moment))
    _told: frozenset[str] = field(default=frozenset(), init=False)  # reasons that the owner knows of
    _told_at: dict[str, float] = field(factory=dict, init=False)
    _seen_since: dict[str, float] = field(factory=dict, init=False)  # each reason, since when it holds
    _well_since: float | None = field(default=None, init=False)
    _looking: LoopingCall | None = field(default=None, init=False)
    _ended: "Deferred[Any] | None" = field(default=None, init=False)
    _log = Logger()

    async def start(self) -> None:
        """Begin with what the owner was told in an earlier life."""
        last = await self._outbox.last_announcement()
        if last is not None:
            self._told = frozenset(json.loads(last.body)["data"]["reasons"])
            self._told_at[last.delivery.type] = ULID.from_str(last.delivery.event_id).timestamp
        self._looking = LoopingCall(self._look)
        self._looking.clock = self._clock
        self._ended = self._looking.start(_LOOK_SECONDS)
        self._ended.addErrback(
            lambda failure: self._log.failure("nobody watches the health any more", failure)
        )

    async def stop(self, limit: float) -> None:
        """Look no more, and wait for what was begun, for at most `limit` seconds."""
        if self._looking is not None and self._looking.running:
            self._looking.stop()
        if self._ended is not None:
            with suppress(WaitEnded):
                await self._ended.addTimeout(limit, self._clock)

    async def _look(self) -> None:
        try:
            await self._tell(self._report(), self._clock.seconds())
        except ForemanError as error:
            self._log.warn("the owner is not told yet: {why}", why=str(error))

    async def _tell(self, report: Mapping[str, Any], now: float) -> None:
        reasons = list(report.get("reasons", ()))
        self._seen_since = {reason: self._seen_since.get(reason, now) for reason in reasons}
        self._well_since = None if reasons else now if self._well_since is None else self._well_since
        held = [reason for reason, since in self._seen_since.items() if now - since >= HOLD_SECONDS]
        if not self._told.issuperset(held):
            await self._announce(DEGRADED, held, report["hints"], now)
        elif self._told and self._well_since is not None and now - self._well_since >= HOLD_SECONDS:
            await self._announce(RECOVERED, [], {}, now)

    async def _announce(
        self, event_type: str, reasons: Sequence[str], hints: Mapping[str, str], now: float
    ) -> None:
        if now - self._told_at.get(event_type, -QUIET_SECONDS) < QUIET_SECONDS:
            return
        event_id = self._new_id(now)
        data = {"reasons": reasons, "hints": {reason: hints[reason] for reason in reasons}}
        body = announcement(event_id, event_type, now, data)
        await self._outbox.announce(event_id, event_type, self._url, body, now)
        self._told, self._told_at[event_type] = frozenset(reasons), now
