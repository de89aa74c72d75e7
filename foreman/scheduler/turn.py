"""The turn: the right to use the target for generation, held by jobs of one model key at a time.

Whoever waits on an open connection does `async with turn.take(...)` around its generation. The job waits in
its line until the policy chooses it. Its place is free again when the block is left, in whatever way.

Durable jobs wait elsewhere: a source offers the heads of their lines, is told which of them got the turn, and
gives the turn back with `release`.
"""

import itertools
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from attrs import define, field
from twisted.internet.defer import Deferred

from foreman.errors import ForemanError, ServerBusy
from foreman.scheduler.gates import Refusal
from foreman.scheduler.grant import DurableSource, Grant
from foreman.scheduler.keys import ModelKey, Wanted
from foreman.scheduler.policy import Lane, choose
from foreman.scheduler.standing import Standing
from foreman.scheduler.take import Take


def _nobody(*grant: Grant) -> None:
    """Nobody asked to be told."""


@define(eq=False)
class Turn(Standing):
    """Grants the turn to one waiting job after the other, as the policy says.

    `patience` is how many seconds a native request waits for a target that is unreachable, `settle_limit` how
    many seconds at most a target settles. Up to `width` jobs of one key share the turn. `interactive_limit`
    is how many native requests may wait.

    Three hooks are called within the turn's own work, and must neither raise nor wait: `on_release` when a
    job has given the turn back, `on_choice` when nobody else can get it for now, and `on_swap` at the end of
    a load, which is the time to read /api/ps again.
    """

    on_swap: Callable[[], None] | None = None
    on_release: Callable[[Grant], None] = _nobody
    on_choice: Callable[[], None] = _nobody
    _arrivals: "itertools.count[int]" = field(factory=itertools.count, init=False)
    _granting: bool = field(default=False, init=False)
    _idle: "list[Deferred[None]]" = field(factory=list, init=False)
    _close_error: ForemanError | None = field(default=None, init=False)

    # Who comes and goes.

    def take(
        self,
        job_id: str,
        wanted: Wanted | None,
        priority: int = 0,
        *,
        lane: Lane = Lane.INTERACTIVE,
        caller: str = "",
    ) -> AbstractAsyncContextManager[Grant, None]:
        """Wait for the turn with a native request, and hold it within the block.

        `wanted` is None for a body that cannot be read. One that is lowered into the durable lane waits
        beside the source's jobs, by priority and age; callers take turns in the interactive lane only.

        Entering raises the error given to `block` when the job ran out of patience, that given to `pause` for
        its lane, that given to `close`, and ServerBusy when it cannot start at once and as many as may do
        wait already. Cancelling is safe at every moment.
        """
        return Take(job_id, wanted, priority, lane, caller, self._arrive, self._leave)

    def attach(self, source: DurableSource) -> None:
        """Choose among the jobs of this source, too."""
        self._queue.source = source
        self.durable_changed()

    def durable_changed(self) -> None:
        """What the source offers has changed: grant the turn if there is a place."""
        self._account()
        self._queue.look()
        self._grant_next()

    def release(self, grant: Grant) -> None:
        """A holder gives its place back; the next job is chosen within this call.

        For a grant that holds the turn no more it does nothing.
        """
        if grant not in self._holders.grants:
            return
        self._account()
        self._holders.remove(grant)
        self.on_release(grant)
        self._grant_next()
        if self._idle:
            self._tell_idle()

    def loaded(self, key: ModelKey) -> None:
        """The target has loaded this key for foreman itself, ahead of the request of whoever holds the turn.

        The swap is over, and nothing settles. It does nothing when the turn is held by nobody of this key.
        """
        if self._holders.key != key:
            return
        now = self._account()
        swapped = self._holders.loaded()
        self._keys.ran(key, now)
        if swapped and self.on_swap is not None:
            self.on_swap()

    # The gates.

    def block(self, error: ForemanError) -> None:
        """The target is unreachable: grant nothing, and stop the waiting clocks, until `unblock`.

        A native request waits on for `patience` seconds, and then fails with the latest error given here.
        """
        if self._gates.unreachable is None:
            for take in self._queue.takes.values():
                self._start_patience(take)
        self._gates.block(error)

    def unblock(self) -> None:
        """The target is reachable again."""
        if self._gates.unreachable is None:
            return
        self._gates.unblock()
        self._holders.settled()
        for take in self._queue.takes.values():
            take.keep_patience()
        self._grant_next()

    def pause(self, lane: Lane, refusal: Refusal, since: float | None = None) -> None:
        """Grant nothing of this lane, and stop its waiting clock, until `resume`. What runs goes on.

        Native requests of the lane fail at once with what `refusal` makes, those that wait already, too.
        `since` is the moment at which the lane was paused, when that was in an earlier life.
        """
        self._account()
        self._gates.pause(lane, refusal, since)
        for take in list(self._queue.takes.values()):
            if take.lane is lane:
                self._fail(take, refusal())
        self._grant_next()

    def resume(self, lane: Lane) -> None:
        """The lane is paused no more."""
        self._account()
        self._gates.resume(lane)
        self._grant_next()

    def was_paused(self, lane: Lane, begin: float, end: float) -> None:
        """Before the start this lane was paused for this span: that is no waiting either."""
        self._gates.was_paused(lane, begin, end)

    def was_beyond_hours(self, begin: float, end: float) -> None:
        """Before the start the durable lane was shut for this span: likewise."""
        self._gates.was_beyond_hours(begin, end)

    def set_durable_hours(self, within: bool) -> None:
        """Beyond its hours nothing of the durable lane is granted, and its waiting clock stands still.

        Native requests that were lowered into it wait for the hours: they asked to be patient.
        """
        self._account()
        self._gates.set_durable_hours(within)
        self._grant_next()

    def set_source_ready(self, ready: bool) -> None:
        """Whether jobs of the source may be granted. Until they may they wait, seen and counted, and their
        time counts; native requests of their lane pass.
        """
        self._account()
        self._gates.source_ready = ready
        self._grant_next()

    def when_idle(self) -> "Deferred[None]":
        """Fires as soon as no job holds the turn; it may be cancelled."""
        idle: Deferred[None] = Deferred(self._idle.remove)
        self._idle.append(idle)
        self._tell_idle()
        return idle

    def close(self, error: ForemanError) -> None:
        """Grant nothing from now on. Native requests that wait fail with this error; what runs goes on."""
        self._close_error = error
        for take in list(self._queue.takes.values()):
            self._fail(take, error)

    # Waiting.

    def _arrive(self, take: Take) -> None:
        """A native request begins to wait."""
        if self._close_error is not None:
            raise self._close_error
        if take.lane in self._gates.paused:
            raise self._gates.paused[take.lane]()
        take.arrived_at = self._account()
        self._queue.add(take, next(self._arrivals))
        if self._gates.unreachable is not None:
            self._start_patience(take)
        self._grant_next()
        if len(self._queue.takes) > self._interactive_limit and self._queue.holds(take):
            raise ServerBusy()

    def _leave(self, take: Take) -> None:
        """A job gives up waiting, or leaves its block. Called again, or after a failure, it does nothing."""
        if self._queue.holds(take):
            self._stop_waiting(take)
            self._grant_next()  # its line may have won the turn, and kept others from a free place
        elif take.grant is not None:
            self.release(take.grant)

    def _stop_waiting(self, take: Take) -> None:
        self._account()
        self._queue.remove(take)
        take.keep_patience()

    def _fail(self, take: Take, error: ForemanError) -> None:
        """A waiting job fails. It may have left by itself, when a job that failed before it made it leave."""
        if self._queue.holds(take):
            self._stop_waiting(take)
            take.granted.errback(error.with_traceback(None))

    def _start_patience(self, take: Take) -> None:
        take.patience = self._clock.callLater(self._patience, self._lose_patience, take)

    def _lose_patience(self, take: Take) -> None:
        if self._gates.unreachable is not None:
            self._fail(take, self._gates.unreachable)

    # Granting.

    def _grant_next(self) -> None:
        """Grant the turn while there is a place and somebody may have it.

        A grant runs its job up to the first real wait: it may give the turn back, others may arrive or leave.
        All of them end up here again, and return at once: the loop below looks anew.
        """
        if self._granting:
            return
        self._granting = True
        try:
            while self._may_grant() and (grant := self._choose()) is not None:
                take = self._queue.takes.get(grant.job_id)
                if take is None:
                    self._queue.source.granted(grant)
                    self._queue.look()
                else:
                    self._queue.serve(take)
                    take.keep_patience()
                    take.grant = grant
                    take.granted.callback(grant)
        finally:
            self._granting = False
        self.on_choice()

    def _may_grant(self) -> bool:
        if self._gates.unreachable is not None or self._close_error is not None:
            return False
        return not self._holders.grants or (self._holders.has_place and not self._queue.source.claiming)

    def _choose(self) -> Grant | None:
        """Choose the next job and let it hold the turn, without a wait in between.

        None: nothing may run, or a line has won that has to wait for jobs of another key.
        """
        held = self._holders.key
        lines = waiting = self._queue.lines(self._visits.last_ended_at)
        self._visits.look(waiting, () if held is None else self._holders.places)
        if waiting and not self._gates.all_open:
            lines = self._queue.startable(self._visits.last_ended_at)
        if not lines:
            return None
        residents, now, owed = self._keys.resident(), self._gates.now(), self._ledger.owed_durable()
        choice = choose(
            lines, residents, self._visits.current, now, owed, self._limits, held, self._visits.won
        )
        if choice is None:
            return None
        seconds = self._account()
        if held is not None and choice.key != held:
            self._visits.wins(choice, now[choice.lane], seconds, waiting)
            return None
        if held is None:
            self._visits.lost_to(choice.lane)
        self._visits.granted(choice, now[choice.lane], seconds)
        self._ledger.begin_run(choice.lane)
        self._keys.granted(choice.key)
        arrived_at, wanted = self._queue.arrival(choice.job_id)
        grant = Grant(
            choice.job_id,
            choice.lane,
            choice.key,
            choice.why,
            swap=held is None and choice.key not in residents,
            settling=self._holders.settling(seconds),
            queued_seconds=max(0.0, seconds - arrived_at),
            granted_at=seconds,
            on_first_byte=self._answered,
            wanted=wanted,
        )
        self._holders.add(grant)
        return grant

    def _answered(self, grant: Grant) -> None:
        """The first byte of a holder's answer came."""
        if grant not in self._holders.grants:
            return
        if grant.settling:  # up to here the lane that aborted pays
            self._account()
        now = self._clock.seconds()
        swapped = self._holders.answered(grant, now)
        self._keys.ran(grant.key, now)
        if swapped and self.on_swap is not None:
            self.on_swap()

    def _tell_idle(self) -> None:
        """Fire what waits until nothing runs. Each may call back into the turn."""
        while self._idle and not self._holders.grants:
            self._idle.pop(0).callback(None)
