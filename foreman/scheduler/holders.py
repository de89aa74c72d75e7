"""The jobs that hold the turn, all of one model key: their busy time, their swap, and what settles."""

from collections.abc import Callable

from attrs import define, field
from twisted.internet.interfaces import IReactorTime

from foreman.scheduler.grant import Grant
from foreman.scheduler.keys import UNKNOWN, ModelKey
from foreman.scheduler.ledger import Ledger
from foreman.scheduler.policy import Lane
from foreman.scheduler.visits import Visits


@define(eq=False)
class Holders:
    """At most `width` grants. They may be of both lanes."""

    _clock: IReactorTime
    _width: int
    _settle_limit: float
    grants: list[Grant] = field(factory=list, init=False)
    _loading: bool = field(default=False, init=False)
    _swap_ended_at: float | None = field(default=None, init=False)
    _settling_until: float = field(default=0.0, init=False)  # or the next first byte, if that is earlier
    _settling_lane: Lane = field(default=Lane.INTERACTIVE, init=False)  # whose aborted request settles

    @property
    def key(self) -> ModelKey | None:
        """The key that holds the turn; None when the turn is free."""
        return self.grants[0].key if self.grants else None

    @property
    def places(self) -> list[tuple[Lane, ModelKey]]:
        """The lines whose jobs hold the turn."""
        return [(grant.lane, grant.key) for grant in self.grants]

    @property
    def has_place(self) -> bool:
        """Another job may join. Nobody knows what a body that cannot be read loads: such a job runs alone."""
        return not self.grants or (len(self.grants) < self._width and self.grants[0].key != UNKNOWN)

    def settling(self, now: float) -> bool:
        """The target may still be busy with a request that was aborted before its first byte."""
        return now < self._settling_until

    @property
    def swapped_at(self) -> float | None:
        """The clock's seconds at the end of the last swap, which is now while one is under way.

        One is under way from the grant of a swap until something comes of any holder, or all have left.
        """
        return self._clock.seconds() if self._loading else self._swap_ended_at

    def add(self, grant: Grant) -> None:
        """This job holds the turn from now on."""
        self.grants.append(grant)
        self._loading = self._loading or grant.swap

    def answered(self, grant: Grant, now: float) -> bool:
        """The first byte for this holder came, and nothing settles. Whether that is the end of a swap."""
        grant.answered_at = now
        self._settling_until = 0.0
        return self._loading and self._end_swap()

    def loaded(self) -> bool:
        """The model of the holders is loaded, and nothing settles. Whether that is the end of a swap."""
        self._settling_until = 0.0
        for grant in self.grants:
            grant.loaded, grant.settling = True, False
        return self._loading and self._end_swap()

    def remove(self, grant: Grant) -> None:
        """This job holds the turn no longer. A load that it leaves behind is another's who waits for it: the
        target throws a load away with the request that began it, and begins anew for the next one.
        """
        self.grants.remove(grant)
        if self._loading:
            if not self.grants:
                self._end_swap()
            elif grant.swap:
                self.grants[0].swap = True
        if grant.aborted and not grant.answered:
            self._settling_until = self._clock.seconds() + self._settle_limit
            self._settling_lane = grant.lane

    def settled(self) -> None:
        """The target went away and came back: nothing of before runs there."""
        self._settling_until = 0.0

    def account(
        self, since: float, now: float, visits: Visits, ledger: Ledger, waits: Callable[[Lane], bool]
    ) -> None:
        """Record how long the turn was held: each lane's visit in full, busy time once, whoever shares it.

        The ledger is told while both lanes have work: one of them runs, and the other runs too or `waits`.
        """
        first = self.grants[0]
        lanes = (first.lane,) if len(self.grants) == 1 else tuple({grant.lane for grant in self.grants})
        for lane in lanes:
            visits.lasted(lane, first.key, now - since)
        if len(lanes) == 1 and not waits(first.lane.other):
            return
        settled_at = since
        if all(grant.settling and grant.answered_at is None for grant in self.grants):
            began = min(grant.granted_at for grant in self.grants)
            settled_at = min(max(since, began + self._settle_limit), now)
            # The lane that aborted pays. If nobody did, a caller who aborts and retries for ever would keep
            # the other lane from its share.
            ledger.record(self._settling_lane, settled_at - since)
        for lane in lanes:
            part = sum(grant.lane is lane for grant in self.grants) / len(self.grants)
            ledger.record(lane, (now - settled_at) * part)

    def _end_swap(self) -> bool:
        ended, self._loading = self._loading, False
        if ended:
            self._swap_ended_at = self._clock.seconds()
        return ended
