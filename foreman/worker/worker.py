"""The worker: runs the durable jobs that the turn chose, and beside it those that bypass the turn.

The order of things at the end of a run: the turn is given back, which chooses the next job in the same
instant. Is that a durable one, ONE transaction writes the end and claims it; its request is sent after the
commit. Is it an interactive one, or none, the end is written alone and nobody waits for that.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

from attrs import define, evolve, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from foreman.errors import ForemanError, TargetRefused, TargetUnreachable
from foreman.jobs.interface import JobStore
from foreman.jobs.model import Claimed, Job, LineKey, LineView, Metrics, Transition
from foreman.scheduler.grant import DurableSource, Grant
from foreman.scheduler.lines import NamedLine
from foreman.scheduler.policy import Lane
from foreman.target.generation import Generator
from foreman.target.names import is_cloud
from foreman.target.preload import Preloader
from foreman.target.watch import RunLimits
from foreman.worker.attempt import Attempt, End, Progress, assembly_of
from foreman.worker.failures import Verdict
from foreman.worker.finisher import Finisher, is_small
from foreman.worker.lines import DurableLines
from foreman.works import Works

PAUSE_FIRST_SECONDS = 1.0
PAUSE_LONGEST_SECONDS = 30.0
BYPASSING_AT_ONCE = 2
"""How many jobs that bypass the turn run at once: embeddings are short, and a GPU has other work."""


class Turn(Protocol):
    """The turn, as far as the worker goes."""

    def attach(self, source: DurableSource) -> None: ...

    def durable_changed(self) -> None: ...

    def release(self, grant: Grant) -> None: ...

    def open(self, lane: Lane) -> bool: ...

    def set_source_ready(self, ready: bool) -> None: ...


class Reachability(Protocol):
    """Whether the target can be reached."""

    @property
    def up(self) -> bool: ...

    def lost(self, reason: str) -> None: ...


class Inventory(Protocol):
    """Which models the target has, as of the list that was read last; `known`: one was read."""

    @property
    def known(self) -> bool: ...

    def model(self, name: str, /) -> object | None: ...

    async def fresh_look(self, name: str, /) -> object | None: ...


def _nobody(grant: Grant, tokens: int) -> None:
    """Nobody asked to be told."""


@define(eq=False)
class Worker:
    """The source of durable jobs for the turn.

    `limits` are those of a run; `folder` is where large outputs are kept while they come. `on_tokens` is told
    how many output tokens a job brought that still holds the turn.
    """

    _clock: IReactorTime
    _store: JobStore
    _turn: Turn
    _generator: Generator
    _preloader: Preloader
    _reachability: Reachability
    _inventory: Inventory
    _limits: RunLimits
    _folder: str
    on_tokens: Callable[[Grant, int], None] = _nobody
    _finisher: Finisher = field(init=False)
    _lines: DurableLines = field(init=False)
    _running: dict[str, Attempt] = field(factory=dict, init=False)
    _bypassing: set[str] = field(factory=set, init=False)  # of those that run
    _claiming_bypass: bool = field(default=False, init=False)
    _held: End | None = field(default=None, init=False)  # an end that waits for the choice of this instant
    _cancelled: set[str] = field(factory=set, init=False)  # of those that are being claimed
    _recalled: set[str] = field(factory=set, init=False)  # likewise: those that are to wait again
    _claiming: set[str] = field(factory=set, init=False)
    _works: Works = field(init=False)
    _withheld: dict[str, IDelayedCall] = field(factory=dict, init=False)  # by model: the end of that
    _pause: IDelayedCall | None = field(default=None, init=False)
    _pauses: int = field(default=0, init=False)  # in a row
    _stopping: bool = field(default=False, init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self._finisher = Finisher(self._store, self._clock)
        self._lines = DurableLines(self._has)
        self._works = Works(self._clock, self._log)

    async def start(self) -> None:
        """Recover what the last life left, and begin. Nothing else writes to the store until this is done."""
        self._store.on_line_change = self._line_changed
        self._store.on_cancel_requested = self.cancel
        interrupted = await self._store.recover()
        if interrupted:
            self._log.info("{count} jobs were running when foreman ended, and are back", count=interrupted)
        for view in await self._store.lines():
            self._lines.put(view)
        self._turn.attach(self)
        self.look()

    async def stop(self, grace: float, cut_limit: float) -> None:
        """Begin nothing more. What runs has `grace` seconds to end, and is then cut and put back.

        `cut_limit` is how many seconds the database has to take the last ends.
        """
        self._stopping = True
        for call in (self._pause, *self._withheld.values()):
            if call is not None and call.active():
                call.cancel()
        self._finisher.stop()
        if await self._works.wait_until_idle(grace):
            return
        for attempt in list(self._running.values()):
            attempt.give_up(Transition.INTERRUPTED)
        await self._works.wait_until_idle(cut_limit)

    def look(self) -> None:
        """Something outside has changed: the target is back, its models were read, or the lane is open."""
        self._turn.durable_changed()
        self._next_bypassing()

    def cancel(self, job_id: str) -> None:
        """Cut the run of this job, which is to end as cancelled. One that does not run is passed over."""
        attempt = self._running.get(job_id)
        if attempt is not None:
            attempt.give_up(Transition.CANCELLED)
        elif job_id in self._claiming:
            self._cancelled.add(job_id)

    def put_back(self) -> None:
        """Cut every run. Its job waits again, and its attempt does not count; but one that must not run a
        second time ends as interrupted.
        """
        self._recalled |= self._claiming
        for attempt in list(self._running.values()):
            once = attempt.claimed.job.on_interrupt == "fail"
            attempt.give_up(Transition.INTERRUPTED if once else Transition.PUT_BACK)

    @property
    def rests_until(self) -> float | None:
        """The clock's seconds until which nothing is begun: the target or the database was not ready."""
        return None if self._pause is None else self._pause.getTime()

    def bypassing_lines(self) -> list[LineKey]:
        """The lines of jobs that bypass the turn, those left out that wait for their models."""
        return self._lines.bypassing_lines()

    def progress(self, job_id: str) -> Progress | None:
        """How far a running job is; None when it does not run."""
        attempt = self._running.get(job_id)
        return None if attempt is None else attempt.progress

    # What the turn asks of its source.

    @property
    def count(self) -> int:
        """How many jobs that take the turn are offered. While the worker rests they are not granted."""
        return 0 if self._stopping else self._lines.count

    @property
    def claiming(self) -> bool:
        """One of them is being claimed, and its line still shows it."""
        return self._lines.claiming

    def lines(self) -> Iterator[NamedLine]:
        """Their lines."""
        return iter(()) if self._stopping else self._lines.lines()

    def granted(self, grant: Grant) -> None:
        """One of them got the turn. An end that is held goes into the transaction of its claim."""
        end, self._held = self._held, None
        self._lines.take()
        self._works.begin(self._work(grant, end))

    # One job of the turn.

    async def _work(self, grant: Grant, before: End | None) -> None:
        try:
            claimed = await self._claim(grant.job_id, before)
        finally:
            self._lines.settle()
        self._turn.durable_changed()  # what the lines offer has, and there may be a place beside this one
        if claimed is None:
            self._turn.release(grant)
            return
        try:
            end = await self._run(claimed, grant)
        except BaseException:
            self._turn.release(grant)
            raise
        if end.verdict.transition is Transition.SUCCEEDED and end.metrics.completion_tokens:
            self.on_tokens(grant, end.metrics.completion_tokens)
        if not is_small(end):
            # Its outputs take a while to write, and the target is not to wait for that.
            self._turn.release(grant)
            await self._finisher.finish(end)
            return
        self._held = end
        self._turn.release(grant)
        if self._held is end:
            self._held = None
            await self._finisher.finish(end)

    async def _claim(self, job_id: str, before: End | None) -> Claimed | None:
        """None: the job does not wait any more, or the database cannot be written now."""
        self._claiming.add(job_id)
        try:
            claimed = await self._finisher.claim(job_id, before)
            if claimed is None:
                self._cancelled.discard(job_id)
                self._recalled.discard(job_id)
            return claimed
        except Exception as error:
            if isinstance(error, ForemanError):
                self._log.warn("no job can be claimed: {why}", why=str(error))
            else:
                self._log.failure("a claim failed inside foreman")
            self._pause_a_little()
            if before is not None:
                self._works.begin(self._finisher.finish(before))
            return None
        finally:
            self._claiming.discard(job_id)

    async def _run(self, claimed: Claimed, grant: Grant | None) -> End:
        job = claimed.job
        cancelled = job.job_id in self._cancelled or job.cancel_requested_at is not None
        recalled = job.job_id in self._recalled
        self._cancelled.discard(job.job_id)
        self._recalled.discard(job.job_id)
        if not cancelled and self._may_wait(job) and self._inventory.known and not self._has(job.model):
            self._withhold(job)
            return End(claimed, Verdict(Transition.PUT_BACK, None), Metrics(), (), lambda: None)
        assembly = assembly_of(claimed, self._folder)
        attempt = Attempt(
            claimed, self._generator, self._preloader, assembly, self._limits, self._clock, grant
        )
        if cancelled or recalled or self._stopping:
            attempt.give_up(Transition.CANCELLED if cancelled else Transition.PUT_BACK)
        self._running[job.job_id] = attempt
        try:
            end = await attempt.run()
        except BaseException:
            assembly.close()
            raise
        finally:
            del self._running[job.job_id]
        if self._may_wait(job) and await self._met_no_model(attempt, end):
            self._withhold(job)
            end = evolve(end, verdict=Verdict(Transition.PUT_BACK, None), drafts=())
        self._take_note(attempt, end)
        return end

    def _may_wait(self, job: Job) -> bool:
        """The job has time to wait for its model to be pulled."""
        return job.start_deadline is not None and job.start_deadline > self._clock.seconds()

    async def _met_no_model(self, attempt: Attempt, end: End) -> bool:
        """The target refused the job because it does not have the model.

        The list of models may not have been read yet, or be as old as a poll interval: then it is read anew.
        """
        error, model = attempt.error, attempt.claimed.job.model
        if end.verdict.transition is not Transition.FAILED:
            return False
        if not isinstance(error, TargetRefused) or error.target_status != 404:
            return False
        if self._has(model):
            await self._inventory.fresh_look(model)
        return not self._has(model)

    def _has(self, model: str) -> bool:
        return is_cloud(model) or self._inventory.model(model) is not None

    def _withhold(self, job: Job) -> None:
        """Offer no job of this model until it is there, or until this job has no time left to wait for it.

        Then each is judged by itself. The others may have no time to wait, and this one does not expire if it
        was started before: for ever queued is what both would be.
        """
        model, deadline = job.model, job.start_deadline or 0.0
        self._lines.withhold(model)
        end = self._withheld.get(model)
        if self._stopping or (end is not None and end.getTime() <= deadline):
            return
        if end is not None:
            end.cancel()
        left = max(0.0, deadline - self._clock.seconds())
        self._withheld[model] = self._clock.callLater(left, self._judge_again, model)

    def _judge_again(self, model: str) -> None:
        del self._withheld[model]
        self._lines.offer(model)
        self.look()

    def _take_note(self, attempt: Attempt, end: End) -> None:
        """What this end says about the target, before the next job is chosen."""
        job, error = end.claimed.job, end.verdict.error
        how = end.verdict.transition.value + (f", {error.message}" if error else "")
        run = f"attempt={job.attempt} run={end.metrics.run_seconds:.3f}s"
        self._log.info("{line}", line=f"{job.job_id} model={job.model!r} {run}: {how}", job_id=job.job_id)
        if attempt.began:
            self._pauses = 0
        if isinstance(attempt.error, TargetUnreachable):
            self._reachability.lost(attempt.error.reason)
        if end.verdict.pause:
            self._pause_a_little()

    # The jobs that bypass the turn.

    def _next_bypassing(self) -> None:
        if self._closed or self._claiming_bypass or not self._reachability.up:
            return
        if not self._turn.open(Lane.DURABLE):
            return
        if len(self._bypassing) >= BYPASSING_AT_ONCE:
            return
        job_id = self._lines.bypassing()
        if job_id is not None:
            self._claiming_bypass = True
            self._works.begin(self._bypass(job_id))

    async def _bypass(self, job_id: str) -> None:
        try:
            claimed = await self._claim(job_id, None)
        finally:
            self._claiming_bypass = False
        if claimed is None:
            self._next_bypassing()
            return
        self._bypassing.add(job_id)
        try:
            self._next_bypassing()
            await self._finisher.finish(await self._run(claimed, None))
        finally:
            self._bypassing.discard(job_id)
            self._next_bypassing()

    # When nothing is begun.

    @property
    def _closed(self) -> bool:
        return self._stopping or self._pause is not None

    def _pause_a_little(self) -> None:
        """Begin nothing for 1 s, then 2 s and so on up to 30 s, until a run begins well."""
        if self._closed:
            return
        seconds = min(PAUSE_FIRST_SECONDS * 2.0 ** min(self._pauses, 10), PAUSE_LONGEST_SECONDS)
        self._pauses += 1
        self._pause = self._clock.callLater(seconds, self._go_on)
        self._turn.set_source_ready(False)

    def _go_on(self) -> None:
        self._pause = None
        self._turn.set_source_ready(True)
        self.look()

    def _line_changed(self, view: LineView) -> None:
        self._lines.put(view)
        if view.line.takes_turn:
            self._turn.durable_changed()
        else:
            self._next_bypassing()
