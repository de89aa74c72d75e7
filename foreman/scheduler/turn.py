"""The turn: the right to use the target for generation, held by one job at a time.

Whoever waits on an open connection does `async with turn.take(...)` around its generation. The job waits in
its line until the policy chooses it. The turn is free again when the block is left, in whatever way.

Durable jobs wait elsewhere: a source offers the heads of their lines, is told which of them got the turn, and
gives the turn back with `release`.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from attrs import define, evolve, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from foreman.errors import ForemanError
from foreman.scheduler.grant import DurableSource, Grant, NoDurableJobs
from foreman.scheduler.keys import KeyRegistry
from foreman.scheduler.ledger import Ledger
from foreman.scheduler.lines import Lines, NamedLine, join
from foreman.scheduler.outages import WaitingClock
from foreman.scheduler.policy import Candidate, Choice, Lane, Limits, choose
from foreman.scheduler.visits import Visits


@define(eq=False)
class _Take(AbstractAsyncContextManager[Grant, None]):
    """One wait of an interactive job for the turn, and then one hold on it."""

    turn: "Turn"
    job_id: str
    model: str | None
    priority: int
    arrived_at: float = field(default=0.0, init=False)
    granted: Deferred[Grant] = field(factory=Deferred, init=False)
    grant: Grant | None = field(default=None, init=False)
    patience: IDelayedCall | None = field(default=None, init=False)

    async def __aenter__(self) -> Grant:
        try:
            self.turn._arrive(self)
            return await self.granted
        except BaseException:  # also a cancelled Deferred and a closed coroutine
            self.turn._leave(self)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.turn._leave(self)


@define(eq=False)
class Turn:
    """Grants the turn to one waiting job after the other, as the policy says.

    `patience` is how many seconds an interactive job waits for a target that is unreachable, `settle_limit`
    how many seconds at most a target settles. `on_swap` is called at the first byte of a job whose key was
    not resident: the time to read /api/ps again.
    """

    _clock: IReactorTime
    _keys: KeyRegistry
    _limits: Limits
    _patience: float
    _settle_limit: float
    on_swap: Callable[[], None] | None = None
    _lines: Lines = field(factory=Lines, init=False)
    _durable: DurableSource = field(factory=NoDurableJobs, init=False)
    _durable_waits: bool = field(default=False, init=False)  # since the last look at the source
    _visits: Visits = field(factory=Visits, init=False)
    _ledger: Ledger = field(init=False)
    _takes: dict[str, _Take] = field(factory=dict, init=False)  # interactive jobs that wait, by job id
    _arrivals: "itertools.count[int]" = field(factory=itertools.count, init=False)
    _holder: Grant | None = field(default=None, init=False)
    _swapped_at: float | None = field(default=None, init=False)
    _granting: bool = field(default=False, init=False)
    _accounted_at: float = field(default=0.0, init=False)
    _settling_until: float = field(default=0.0, init=False)  # or the next first byte, if that is earlier
    _settling_lane: Lane = field(default=Lane.INTERACTIVE, init=False)  # whose aborted request settles
    _waiting_clock: WaitingClock = field(init=False)
    _block_error: ForemanError | None = field(default=None, init=False)
    _close_error: ForemanError | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._ledger = Ledger(self._limits)
        self._waiting_clock = WaitingClock(self._clock)

    def take(
        self, job_id: str, model: str | None, priority: int = 0
    ) -> AbstractAsyncContextManager[Grant, None]:
        """Wait for the turn with an interactive job, and hold it within the block.

        `model` is None for a body that cannot be read. Entering raises the error given to `block` when the
        job ran out of patience, and the error given to `close`. Cancelling is safe at every moment.
        """
        return _Take(self, job_id, model, priority)

    def attach(self, source: DurableSource) -> None:
        """Choose among the jobs of this source, too."""
        self._durable = source
        self.durable_changed()

    def durable_changed(self) -> None:
        """What the source offers has changed: grant the turn if it is free."""
        self._account()
        self._durable_waits = self._durable.count > 0
        self._grant_next()

    def release(self, grant: Grant) -> None:
        """The holder gives the turn back; the next job is chosen within this call.

        For a grant that is not the holder's any more it does nothing.
        """
        if grant is not self._holder:
            return
        self._account()
        self._swapped_at = self.swapped_at
        if grant.aborted and not grant.answered:
            self._settling_until = self._clock.seconds() + self._settle_limit
            self._settling_lane = grant.lane
        self._holder = None
        self._grant_next()

    @property
    def free(self) -> bool:
        """Nobody holds the turn, and nobody waits for it."""
        return self._holder is None and not self.waiting

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._takes) + self._durable.count

    @property
    def holder(self) -> str | None:
        """The id of the job that holds the turn."""
        return None if self._holder is None else self._holder.job_id

    @property
    def swapped_at(self) -> float | None:
        """The clock's seconds at the end of the last swap, which is now while one is under way.

        What the target evicted before its last swap began, it did not evict for foreman.
        """
        if self._holder is not None and self._holder.swap and not self._holder.answered:
            return self._clock.seconds()
        return self._swapped_at

    def block(self, error: ForemanError) -> None:
        """The target is unreachable: grant nothing, and stop the waiting clocks, until `unblock`.

        An interactive job waits on for `patience` seconds, and then fails with the latest error given here.
        """
        if self._block_error is None:
            self._waiting_clock.stop()
            for take in self._takes.values():
                self._start_patience(take)
        self._block_error = error

    def unblock(self) -> None:
        """The target is reachable again."""
        if self._block_error is None:
            return
        self._block_error = None
        self._waiting_clock.go_on()
        self._settling_until = 0.0  # it went away and came back: nothing of before runs there
        for take in self._takes.values():
            self._stop_patience(take)
        self._grant_next()

    def close(self, error: ForemanError) -> None:
        """Grant nothing from now on. Interactive jobs fail with this error; the holder goes on."""
        self._close_error = error
        for take in list(self._takes.values()):
            self._fail(take, error)

    def _arrive(self, take: _Take) -> None:
        """A job begins to wait."""
        if self._close_error is not None:
            raise self._close_error
        self._account()
        take.arrived_at = self._clock.seconds()
        job = Candidate(take.job_id, take.priority, self._waiting_clock.now(), next(self._arrivals))
        self._lines.add(take.model, job)
        self._takes[take.job_id] = take
        if self._block_error is not None:
            self._start_patience(take)
        self._grant_next()

    def _leave(self, take: _Take) -> None:
        """A job gives up waiting, or leaves its block. Called again, or after a failure, it does nothing."""
        if self._takes.get(take.job_id) is take:
            self._stop_waiting(take)
        elif take.grant is not None:
            self.release(take.grant)

    def _grant_next(self) -> None:
        """Grant the turn if it is free and may be granted.

        A grant runs its job up to the first real wait: it may give the turn back, others may arrive or leave.
        All of them end up here again, and return at once: the loop below looks anew.
        """
        if self._granting:
            return
        self._granting = True
        try:
            while self._holder is None and self._block_error is None and self._close_error is None:
                grant = self._choose()
                if grant is None:
                    return
                if grant.lane is Lane.DURABLE:
                    self._durable.granted(grant)
                    self._durable_waits = self._durable.count > 0
                else:
                    take = self._takes[grant.job_id]
                    self._stop_waiting(take)
                    take.grant = grant
                    take.granted.callback(grant)
        finally:
            self._granting = False

    def _choose(self) -> Grant | None:
        """Choose the next job and make it the holder, without a wait in between."""
        if not self.waiting:
            self._visits.look(())  # a line that is empty at a free slot has ended its visit
            return None
        ended = self._visits.last_ended_at
        lines = join(Lane.INTERACTIVE, self._lines.lines(), self._keys.key, ended)
        lines += join(Lane.DURABLE, self._durable_lines(), self._keys.key, ended)
        self._visits.look(lines)
        residents = self._keys.resident()
        now = self._waiting_clock.now()
        choice = choose(
            lines, residents, self._visits.current, now, self._ledger.owed_durable(), self._limits
        )
        if choice is None:
            return None
        self._account()
        self._visits.chosen(choice, now)
        self._ledger.begin_run(choice.lane)
        self._holder = self._make_grant(choice, choice.key not in residents)
        return self._holder

    def _durable_lines(self) -> Iterator[NamedLine]:
        """The source's lines, on the waiting clock."""
        at = self._waiting_clock.at
        for line in self._durable.lines():
            head = evolve(line.head, waiting_since=at(line.head.waiting_since))
            yield NamedLine(
                line.model, head, evolve(line.oldest, waiting_since=at(line.oldest.waiting_since))
            )

    def _arrived_at(self, choice: Choice) -> float:
        """The reactor's seconds since which the chosen job waits."""
        if choice.lane is Lane.INTERACTIVE:
            return self._takes[choice.job_id].arrived_at
        offered = (job for line in self._durable.lines() for job in (line.head, line.oldest))
        return next(job.waiting_since for job in offered if job.job_id == choice.job_id)

    def _make_grant(self, choice: Choice, swap: bool) -> Grant:
        now = self._clock.seconds()
        return Grant(
            choice.job_id,
            choice.lane,
            choice.key,
            choice.why,
            swap=swap,
            settling=now < self._settling_until,
            queued_seconds=max(0.0, now - self._arrived_at(choice)),
            granted_at=now,
            on_first_byte=self._answered,
        )

    def _answered(self, grant: Grant) -> None:
        """The first byte of the holder's answer came."""
        if grant is not self._holder:
            return
        self._account()
        self._swapped_at = self.swapped_at
        grant.answered = True
        self._settling_until = 0.0
        self._keys.ran(grant.key, self._clock.seconds())
        if grant.swap and self.on_swap is not None:
            self.on_swap()

    def _account(self) -> None:
        """Record the time since the last look. Called before the holder or who waits changes."""
        now = self._clock.seconds()
        since, self._accounted_at = min(self._accounted_at, now), now  # a system's clock may be set back
        grant = self._holder
        if grant is None:
            return
        self._visits.lasted(grant.lane, now - since)
        other_waits = self._durable_waits if grant.lane is Lane.INTERACTIVE else self._lines.count > 0
        if not other_waits:
            return
        settled_at = since
        if grant.settling and not grant.answered:
            settled_at = min(max(since, grant.granted_at + self._settle_limit), now)
            # The lane that aborted pays. If nobody did, a caller who aborts and retries for ever would keep
            # the other lane from its share.
            self._ledger.record(self._settling_lane, settled_at - since)
        self._ledger.record(grant.lane, now - settled_at)

    def _stop_waiting(self, take: _Take) -> None:
        self._account()
        self._lines.remove(take.job_id)
        del self._takes[take.job_id]
        self._stop_patience(take)

    def _fail(self, take: _Take, error: ForemanError) -> None:
        """A waiting job fails. It may have left by itself, when a job that failed before it made it leave."""
        if self._takes.get(take.job_id) is take:
            self._stop_waiting(take)
            take.granted.errback(error.with_traceback(None))

    def _start_patience(self, take: _Take) -> None:
        take.patience = self._clock.callLater(self._patience, self._lose_patience, take)

    def _stop_patience(self, take: _Take) -> None:
        if take.patience is not None and take.patience.active():
            take.patience.cancel()
        take.patience = None

    def _lose_patience(self, take: _Take) -> None:
        if self._block_error is not None:
            self._fail(take, self._block_error)
