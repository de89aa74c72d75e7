"""Writes down how runs ended, and tries again while the database cannot be written."""

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from foreman.errors import ForemanError
from foreman.jobs.interface import JobStore
from foreman.jobs.model import Artifact, Claimed, Finish, Piece, Turnover
from foreman.worker.attempt import End
from foreman.worker.outputs import Cut

FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 30.0


def is_small(end: End) -> bool:
    """Its outputs go into the transaction of the finish."""
    return all(draft.small for draft in end.drafts)


def small_finish(end: End) -> Finish:
    """A finish that carries its outputs."""
    artifacts, pieces = [], []
    for draft in end.drafts:
        cut = Cut(draft)
        pieces += [Piece(draft.name, number, data) for number, data in enumerate(cut.pieces())]
        artifacts.append(cut.artifact())
    return _finish(end, tuple(artifacts), tuple(pieces))


def _finish(end: End, artifacts: tuple[Artifact, ...], pieces: tuple[Piece, ...]) -> Finish:
    verdict = end.verdict
    return Finish(
        fence=end.claimed.fence,
        transition=verdict.transition,
        error=verdict.error,
        metrics=end.metrics,
        artifacts=artifacts,
        pieces=pieces,
        not_before=verdict.not_before,
    )


@define(eq=False)
class Finisher:
    """Everything that happened is written in the end, unless foreman stops before the database can be."""

    _store: JobStore
    _clock: IReactorTime
    _delays: "set[Deferred[None]]" = field(factory=set, init=False)
    _stopping: bool = field(default=False, init=False)
    _log = Logger()

    async def claim(self, job_id: str, end: End | None) -> Claimed | None:
        """Write an end and claim a job in one transaction. None: it does not wait any more.

        Raises DatabaseFull or DatabaseUnavailable, after which the end is not written.
        """
        turnover: Turnover = await self._store.claim(job_id, None if end is None else small_finish(end))
        if end is not None:
            end.close()
        return turnover.claimed

    async def finish(self, end: End) -> None:
        """Write an end alone, its outputs before it piece by piece when they are large."""
        delay = FIRST_DELAY_SECONDS
        try:
            while True:
                try:
                    await self._store.finish(small_finish(end) if is_small(end) else await self._write(end))
                    return
                except ForemanError as error:
                    self._log.warn(
                        "the end of job {id} is not written yet: {why}",
                        id=end.claimed.job.job_id,
                        why=str(error),
                    )
                if self._stopping or not await self._wait(delay):
                    # It is found as interrupted at the next start, and runs again.
                    return
                delay = min(delay * 2, LONGEST_DELAY_SECONDS)
        finally:
            end.close()

    def stop(self) -> None:
        """Try nothing a second time from now on."""
        self._stopping = True
        for delay in list(self._delays):
            delay.cancel()

    async def _write(self, end: End) -> Finish:
        artifacts = []
        for draft in end.drafts:
            cut = Cut(draft)
            for number, data in enumerate(cut.pieces()):
                await self._store.put_artifact_piece(end.claimed.fence, draft.name, number, data)
            artifacts.append(cut.artifact())
        return _finish(end, tuple(artifacts), ())

    async def _wait(self, seconds: float) -> bool:
        """False when foreman stopped meanwhile."""
        delay: Deferred[None] = deferLater(self._clock, seconds)
        self._delays.add(delay)
        try:
            await delay
        except CancelledError:
            return False
        finally:
            self._delays.discard(delay)
        return True
