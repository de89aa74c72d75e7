"""How things stand with the turn: what holds it and what waits for it, for those who explain it."""

from collections.abc import Collection, Mapping, Sequence

from attrs import define, field
from twisted.internet.interfaces import IReactorTime

from foreman.scheduler.forecast import Running, Scene
from foreman.scheduler.gates import Gates
from foreman.scheduler.grant import Grant
from foreman.scheduler.holders import Holders
from foreman.scheduler.keys import KeyRegistry, ModelKey
from foreman.scheduler.ledger import Ledger
from foreman.scheduler.policy import Lane, Limits, Visit
from foreman.scheduler.queue import Queue, WaitingLine
from foreman.scheduler.visits import Visits


@define(eq=False)
class Standing:
    """The parts of the turn. Nothing here grants it or takes it away."""

    _clock: IReactorTime
    _keys: KeyRegistry
    _limits: Limits
    _patience: float
    _settle_limit: float
    _width: int = 1
    _interactive_limit: int = 512
    _gates: Gates = field(init=False)
    _queue: Queue = field(init=False)
    _holders: Holders = field(init=False)
    _visits: Visits = field(factory=Visits, init=False)
    _ledger: Ledger = field(init=False)
    _accounted_at: float = field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self._gates = Gates(self._clock)
        self._queue = Queue(self._keys, self._gates)
        self._holders = Holders(self._clock, self._width, self._settle_limit)
        self._ledger = Ledger(self._limits)

    @property
    def free(self) -> bool:
        """Nobody holds the turn, and nobody waits for it who could have it."""
        return not self._holders.grants and not any(self._queue.waits(lane) for lane in Lane)

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return self._queue.count

    @property
    def holder(self) -> str | None:
        """The id of the job that holds the turn; of several, the one that has held it for longest."""
        return self._holders.grants[0].job_id if self._holders.grants else None

    @property
    def holders(self) -> Sequence[Grant]:
        """The grants of the jobs that hold the turn: all of one key."""
        return tuple(self._holders.grants)

    @property
    def visits(self) -> Mapping[Lane, Visit]:
        """The visit of each lane that has one."""
        return self._visits.current

    @property
    def visit(self) -> Visit | None:
        """The visit of the job that has held the turn for longest. It is over when another line has won."""
        if not self._holders.grants:
            return None
        grant = self._holders.grants[0]
        visit = self._visits.current.get(grant.lane)
        return visit if visit is not None and visit.key == grant.key else None

    @property
    def swapped_at(self) -> float | None:
        """The clock's seconds at the end of the last swap, which is now while one is under way.

        What the target evicted before its last swap began, it did not evict for foreman.
        """
        return self._holders.swapped_at

    def lines(self) -> list[WaitingLine]:
        """The lines that wait, those of a lane that is held back, too."""
        return self._queue.explained(self._visits.last_ended_at, self._limits, self._clock.seconds())

    def lowered_ahead(self, key: ModelKey, priority: int, since: float) -> int:
        """How many native requests of a durable line run before its durable job of this priority and age.

        `since` is in the reactor's seconds.
        """
        return self._queue.lowered_ahead(key, priority, since)

    def scene(self, also: Collection[Lane] = ()) -> Scene:
        """All that decides who goes next, for a forecast. Lines of a lane that is held back are left out, but
        for the lanes `also`: those are taken as if they were open.
        """
        now = self._account()
        return Scene(
            self._gates.now(),
            self._queue.startable(self._visits.last_ended_at, also),
            [
                Running(grant.lane, grant.key, now - grant.granted_at, grant.swap)
                for grant in self._holders.grants
            ],
            self._keys.resident(),
            self.visits,
            self._ledger.owed_seconds,
            self._limits,
            self._width,
        )

    def others_wait(self, key: ModelKey, besides: str) -> bool:
        """A job of this key, other than `besides`, waits and may run."""
        return any(
            line.key == key and (line.count > 1 or line.head.job_id != besides)
            for line in self._queue.startable({})
        )

    def open(self, lane: Lane) -> bool:
        """Whether jobs of this lane may start, as far as pauses and hours go."""
        return self._gates.open(lane)

    def _account(self) -> float:
        """Record the time since the last look. Called before the holders or who waits changes.

        This moment, the reactor's seconds.
        """
        now = self._clock.seconds()
        since, self._accounted_at = min(self._accounted_at, now), now  # a system's clock may be set back
        if self._holders.grants:
            self._holders.account(since, now, self._visits, self._ledger, self._queue.waits)
        return now
