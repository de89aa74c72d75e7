"""Keeps what was measured over restarts."""

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from foreman.errors import ForemanError
from foreman.jobs.interface import JobStore
from foreman.jobs.model import Estimate
from foreman.scheduler.history import Average, History, Measure, Subject
from foreman.scheduler.key_texts import dumped, parsed
from foreman.scheduler.policy import Lane
from foreman.works import Works

WRITE_AFTER_SECONDS = 5.0
"""What changes within this time is one transaction."""


@define(eq=False)
class HistoryKeeper:
    """Reads a history's averages from the store at the start, and writes those that changed now and then."""

    _clock: IReactorTime
    _store: JobStore
    _history: History
    _due: IDelayedCall | None = field(default=None, init=False)
    _works: Works = field(init=False)
    _stopped: bool = field(default=False, init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self._works = Works(self._clock, self._log)

    async def start(self) -> None:
        """Read what earlier lives measured. What a newer foreman wrote and this one cannot read is left."""
        for estimate in await self._store.estimates():
            try:
                subject = _subject(estimate)
            except ValueError:
                continue
            self._history.remember(subject, estimate.value, estimate.count)
        self._history.on_change = self._changed

    async def stop(self, limit: float) -> None:
        """Write what is not written yet, within `limit` seconds."""
        self._stopped = True
        if self._due is not None:
            self._due.cancel()
            self._due = None
        self._works.begin(self._write())
        await self._works.wait_until_idle(limit)

    def _changed(self) -> None:
        if self._due is None and not self._stopped:
            self._due = self._clock.callLater(WRITE_AFTER_SECONDS, self._begin)

    def _begin(self) -> None:
        self._due = None
        self._works.begin(self._write())

    async def _write(self) -> None:
        """Estimates are worth no second try: the next measurement writes them anew."""
        estimates = [_estimate(subject, average) for subject, average in self._history.take_changes()]
        if not estimates:
            return
        try:
            await self._store.put_estimates(estimates)
        except ForemanError as error:
            self._log.warn("what was measured is not written: {why}", why=str(error))


def _estimate(subject: Subject, average: Average) -> Estimate:
    return Estimate(
        subject.measure.value,
        "" if subject.lane is None else subject.lane.value,
        "" if subject.key is None else dumped(subject.key),
        average.value,
        average.count,
    )


def _subject(estimate: Estimate) -> Subject:
    """Raises ValueError for one that this foreman does not know."""
    return Subject(
        Measure(estimate.measure),
        Lane(estimate.lane) if estimate.lane else None,
        parsed(estimate.key) if estimate.key else None,
    )
