"""The turn: the right to use the target for generation, held by one job at a time.

Whoever wants to generate does `async with turn.take(...)` around it. The job waits in its line until the
policy chooses it. The turn is free again when the block is left, in whatever way.
"""

import itertools
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from foreman.errors import ForemanError
from foreman.scheduler.keys import KeyRegistry, ModelKey
from foreman.scheduler.ledger import Ledger
from foreman.scheduler.lines import Lines
from foreman.scheduler.policy import Candidate, Choice, Lane, Limits, Why, choose
from foreman.scheduler.visits import Visits


@define(eq=False)
class Grant:
    """The turn in the hands of one job.

    `swap`: its key was not resident. `settling`: the target may still be busy with a request that was
    aborted before its first byte; time limits then start at the first byte, at most `settle_limit` later.
    """

    job_id: str
    lane: Lane
    key: ModelKey
    why: Why
    swap: bool
    settling: bool
    queued_seconds: float
    granted_at: float
    _turn: "Turn"
    answered: bool = field(default=False, init=False)  # the first byte of the target's answer came
    aborted: bool = field(default=False, init=False)

    def first_byte(self) -> None:
        """The first byte of the target's answer came: the model is loaded, and nothing settles any more."""
        if not self.answered:
            self._turn._answered(self)

    def abort(self) -> None:
        """The holder aborted its request at the target. Before its first byte the target may work on:
        an Ollama finishes the prompt first (87 s were measured); during generation it is free within 0.2 s.
        """
        self.aborted = True


@define(eq=False)
class _Take(AbstractAsyncContextManager[Grant, None]):
    """One wait for the turn, and then one hold on it."""

    turn: "Turn"
    lane: Lane
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
    _visits: Visits = field(factory=Visits, init=False)
    _ledger: Ledger = field(init=False)
    _takes: dict[str, _Take] = field(factory=dict, init=False)  # those who wait, by job id
    _arrivals: "itertools.count[int]" = field(factory=itertools.count, init=False)
    _holder: Grant | None = field(default=None, init=False)
    _swapped_at: float | None = field(default=None, init=False)
    _granting: bool = field(default=False, init=False)
    _accounted_at: float = field(default=0.0, init=False)
    _settling_until: float = field(default=0.0, init=False)  # or the next first byte, if that is earlier
    _settling_lane: Lane = field(default=Lane.INTERACTIVE, init=False)  # whose aborted request settles
    _block_error: ForemanError | None = field(default=None, init=False)
    _blocked_at: float = field(default=0.0, init=False)
    _blocked_seconds: float = field(default=0.0, init=False)  # of all blocks that are over
    _close_error: ForemanError | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._ledger = Ledger(self._limits)

    def take(
        self, lane: Lane, job_id: str, model: str | None, priority: int = 0
    ) -> AbstractAsyncContextManager[Grant, None]:
        """Wait for the turn, and hold it within the block. `model` is None for a body that cannot be read.

        Entering raises the error given to `block` when an interactive job ran out of patience, and the error
        given to `close`. Cancelling is safe at every moment.
        """
        return _Take(self, lane, job_id, model, priority)

    @property
    def free(self) -> bool:
        """Nobody holds the turn, and nobody waits for it."""
        return self._holder is None and not self._takes

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._takes)

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
            self._blocked_at = self._clock.seconds()
            for take in self._takes.values():
                self._start_patience(take)
        self._block_error = error

    def unblock(self) -> None:
        """The target is reachable again."""
        if self._block_error is None:
            return
        self._block_error = None
        self._blocked_seconds += self._clock.seconds() - self._blocked_at
        self._settling_until = 0.0  # it went away and came back: nothing of before runs there
        for take in self._takes.values():
            self._stop_patience(take)
        self._grant_next()

    def close(self, error: ForemanError) -> None:
        """Grant nothing from now on. Interactive jobs fail with this error; the holder goes on.

        Durable jobs wait on until their owner, who may run them in another life, cancels the wait.
        """
        self._close_error = error
        for take in list(self._takes.values()):
            if take.lane is Lane.INTERACTIVE:
                self._fail(take, error)

    def _arrive(self, take: _Take) -> None:
        """A job begins to wait."""
        if self._close_error is not None and take.lane is Lane.INTERACTIVE:
            raise self._close_error
        self._account()
        take.arrived_at = self._clock.seconds()
        job = Candidate(take.job_id, take.priority, self._waiting_clock(), next(self._arrivals))
        self._lines.add(take.lane, take.model, job)
        self._takes[take.job_id] = take
        if self._block_error is not None:
            self._start_patience(take)
        self._grant_next()

    def _leave(self, take: _Take) -> None:
        """A job gives up waiting, or leaves its block. Called again, or after a failure, it does nothing."""
        if self._takes.get(take.job_id) is take:
            self._stop_waiting(take)
        elif take.grant is not None and take.grant is self._holder:
            self._account()
            self._swapped_at = self.swapped_at
            if take.grant.aborted and not take.grant.answered:
                self._settling_until = self._clock.seconds() + self._settle_limit
                self._settling_lane = take.lane
            self._holder = None
            self._grant_next()

    def _grant_next(self) -> None:
        """Grant the turn if it is free and may be granted.

        Firing a Deferred runs the job up to its first real wait: it may leave its block, others may arrive or
        leave. All of them end up here again, and return at once: the loop below looks anew.
        """
        if self._granting:
            return
        self._granting = True
        try:
            while self._holder is None and self._block_error is None and self._close_error is None:
                chosen = self._choose()
                if chosen is None:
                    return
                take, grant = chosen
                take.grant = grant
                take.granted.callback(grant)
        finally:
            self._granting = False

    def _choose(self) -> tuple[_Take, Grant] | None:
        """Choose the next job and make it the holder, without a wait in between."""
        if not self._takes:
            self._visits.look(())  # a line that is empty at a free slot has ended its visit
            return None
        lines = self._lines.lines(self._keys.key, self._visits.last_ended_at)
        self._visits.look(lines)
        residents = self._keys.resident()
        now = self._waiting_clock()
        choice = choose(
            lines, residents, self._visits.current, now, self._ledger.owed_durable(), self._limits
        )
        if choice is None:
            return None
        take = self._takes[choice.job_id]
        self._stop_waiting(take)
        self._visits.chosen(choice, now)
        self._ledger.begin_run(take.lane)
        self._holder = self._make_grant(take, choice, choice.key not in residents)
        return take, self._holder

    def _make_grant(self, take: _Take, choice: Choice, swap: bool) -> Grant:
        now = self._clock.seconds()
        return Grant(
            take.job_id,
            take.lane,
            choice.key,
            choice.why,
            swap=swap,
            settling=now < self._settling_until,
            queued_seconds=max(0.0, now - take.arrived_at),
            granted_at=now,
            turn=self,
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
        if not self._lines.count(grant.lane.other):
            return
        settled_at = since
        if grant.settling and not grant.answered:
            settled_at = min(max(since, grant.granted_at + self._settle_limit), now)
            # The lane that aborted pays. If nobody did, a caller who aborts and retries for ever would keep
            # the other lane from its share.
            self._ledger.record(self._settling_lane, settled_at - since)
        self._ledger.record(grant.lane, now - settled_at)

    def _waiting_clock(self) -> float:
        """The clock of the waiting times, in seconds. It stands still while the target is unreachable."""
        now = self._clock.seconds() if self._block_error is None else self._blocked_at
        return now - self._blocked_seconds

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
        if take.lane is Lane.INTERACTIVE:
            take.patience = self._clock.callLater(self._patience, self._lose_patience, take)

    def _stop_patience(self, take: _Take) -> None:
        if take.patience is not None and take.patience.active():
            take.patience.cancel()
        take.patience = None

    def _lose_patience(self, take: _Take) -> None:
        if self._block_error is not None:
            self._fail(take, self._block_error)
