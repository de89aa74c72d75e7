"""Writes down how runs ended, and tries again while the database cannot be written."""

from attrs import define, evolve, field
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from foreman.errors import BadResponse
from foreman.jobs.interface import JobStore
from foreman.jobs.model import Artifact, Claimed, Finish, Piece, Turnover
from foreman.worker.attempt import End
from foreman.worker.failures import judge
from foreman.worker.outputs import Cut
from foreman.works import Retries


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
    _retries: Retries = field(init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self._retries = Retries(self._clock, self._log)

    async def claim(self, job_id: str, end: End | None) -> Claimed | None:
        """Write an end and claim a job in one transaction. None: it does not wait any more.

        Raises DatabaseFull or DatabaseUnavailable, after which the end is not written.
        """
        turnover: Turnover = await self._store.claim(job_id, None if end is None else self._composed(end))
        if end is not None:
            end.close()
        return turnover.claimed

    async def finish(self, end: End) -> None:
        """Write an end alone, its outputs before it piece by piece when they are large.

        When foreman stops before it can be, it is found as interrupted at the next start, and runs again.
        """
        what = f"the end of job {end.claimed.job.job_id}"
        try:
            if is_small(end):
                finish = self._composed(end)
                await self._retries.until_done(what, lambda: self._store.finish(finish))
                return
            try:
                await self._retries.until_done(what, lambda: self._write(end))
            except (BadResponse, OSError) as error:
                failed = self._failed(end, error)
                await self._retries.until_done(what, lambda: self._store.finish(failed))
        finally:
            end.close()

    def stop(self) -> None:
        """Try nothing a second time from now on."""
        self._retries.stop()

    def _composed(self, end: End) -> Finish:
        """An end with its small outputs, or that of an attempt whose outputs cannot be put together."""
        try:
            return small_finish(end)
        except (BadResponse, OSError) as error:
            return self._failed(end, error)

    def _failed(self, end: End, error: BadResponse | OSError) -> Finish:
        """The run was well up to its last line; what it brought is no answer, or cannot be read back."""
        self._log.warn("{why}", why=str(error))
        if isinstance(error, OSError):
            error = BadResponse(f"the outputs could not be read back: {error.strerror}")
        verdict = judge(error, end.claimed.job.attempt, self._clock.seconds())
        return _finish(evolve(end, verdict=verdict), (), ())

    async def _write(self, end: End) -> None:
        artifacts = []
        for draft in end.drafts:
            cut = Cut(draft)
            for number, data in enumerate(cut.pieces()):
                await self._store.put_artifact_piece(end.claimed.fence, draft.name, number, data)
            artifacts.append(cut.artifact())
        await self._store.finish(_finish(end, tuple(artifacts), ()))
