"""A source of durable jobs in memory: each job is a caller who takes the turn as an `async with`."""

import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from foreman.scheduler.grant import Grant
from foreman.scheduler.keys import Wanted
from foreman.scheduler.lines import Lines, NamedLine
from foreman.scheduler.policy import Candidate
from foreman.scheduler.turn import Turn


@define(eq=False)
class FakeDurable:
    """Attaches itself to the turn. A test sets `claiming` to hold the next choice back, and says so."""

    _clock: IReactorTime
    _turn: Turn
    claiming: bool = field(default=False, init=False)
    _lines: Lines = field(factory=Lines, init=False)
    _waiting: dict[str, Deferred[Grant]] = field(factory=dict, init=False)
    _arrivals: "itertools.count[int]" = field(factory=itertools.count, init=False)

    def __attrs_post_init__(self) -> None:
        self._turn.attach(self)

    @property
    def count(self) -> int:
        """How many jobs wait."""
        return self._lines.count

    def lines(self) -> Iterable[NamedLine]:
        """The lines in memory."""
        return self._lines.lines()

    def granted(self, grant: Grant) -> None:
        """Let the job's caller go on."""
        self._lines.remove(grant.job_id)
        self._waiting.pop(grant.job_id).callback(grant)

    @asynccontextmanager
    async def take(self, job_id: str, wanted: Wanted | None, priority: int = 0) -> AsyncIterator[Grant]:
        """Wait for the turn and hold it within the block."""
        self._lines.add(wanted, Candidate(job_id, priority, self._clock.seconds(), next(self._arrivals)))
        granted = self._waiting[job_id] = Deferred()
        try:
            self._turn.durable_changed()
            grant = await granted
        except BaseException:
            if self._waiting.get(job_id) is granted:
                del self._waiting[job_id]
                self._lines.remove(job_id)
                self._turn.durable_changed()
            raise
        try:
            yield grant
        finally:
            self._turn.release(grant)
