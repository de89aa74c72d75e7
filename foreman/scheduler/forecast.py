"""The forecast: when will a waiting job start? The policy, played forward over lines instead of jobs.

A line is so many jobs, which came at even distances between its oldest one and now. Each step asks the real
policy for its choice, and then runs as many jobs of the chosen line as start before the choice may change.
When all lines are late and take their visits one after the other, whole rounds are passed over at once. So
the cost depends on the number of lines and visits, not on that of jobs.

Nobody knows who will come. For a batch job the chats to come are reckoned with by the part of the time that
they took lately; new jobs of its own lane are not.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from attrs import define, evolve, field, frozen

from foreman.scheduler.keys import ModelKey
from foreman.scheduler.ledger import Ledger
from foreman.scheduler.policy import Candidate, Choice, Lane, Limits, Line, Visit, choose, overdue_since
from foreman.scheduler.visits import Visits

# With 20 lines a step takes some 40 µs. What is further away than this is extrapolated.
_MOST_STEPS = 250
# Each step looks at all lines: with more of them there are fewer steps, so that it costs the same.
_FEW_LINES = 40
# What is left of a job is at least this part of what it takes, or of what it has taken when that is more.
_RESIDUAL = 0.25
# What runs may end this much earlier or later. Whether that is before or after another line is overdue can
# decide between two very different waits: a middle of both is near enough to either.
_SPREAD = 1.5
# So many times further away than the rest of what runs, it makes no difference.
_FAR = 20
# With an interactive share of 1, durable jobs might never start.
_MOST_TAKEN = 0.95


class Estimates(Protocol):
    """What is expected of the jobs of a line, from what was measured. All of it in seconds."""

    def run_seconds(self, lane: Lane, key: ModelKey, /) -> float:
        """A job, from its first byte to its end; above 0."""

    def load_seconds(self, key: ModelKey, /) -> float:
        """A load of this key."""

    @property
    def interactive_share(self) -> float:
        """The part of the time, 0 to 1, that interactive jobs take from durable ones, loads included."""


@frozen
class Running:
    """A job that holds the turn: for how many seconds so far, and whether that began with a load."""

    lane: Lane
    key: ModelKey
    held_seconds: float
    swap: bool


@frozen
class Scene:
    """All that decides who goes next, at one moment, which is `now` on the waiting clock of each lane.

    `lines` are those that may run, `visits` those that were not over when a place was last taken, and
    `owed_seconds` is what the ledger says that the durable lane is owed.
    """

    now: Mapping[Lane, float]
    lines: Sequence[Line]
    running: Sequence[Running]
    residents: Collection[ModelKey]
    visits: Mapping[Lane, Visit]
    owed_seconds: float
    limits: Limits
    width: int = 1


@frozen
class Place:
    """Where a job waits: its line, and how many jobs of the line go before it."""

    lane: Lane
    key: ModelKey
    ahead: int


@frozen
class Forecast:
    """`jobs_ahead` start before the job; `swaps_ahead` are the loads until it runs, its own included."""

    jobs_ahead: int
    swaps_ahead: int
    start_in_seconds: float


@define(eq=False)
class _Pile:
    """A line as it dwindles. `line` is what the policy sees of it, which is overdue since `late_at`."""

    line: Line
    newest_since: float
    run_seconds: float
    load_seconds: float
    _limits: Limits
    count: int = field(init=False)
    late_at: float = field(init=False)
    visit_jobs: int = field(init=False)  # of a visit that begins with a load and ends by time

    def __attrs_post_init__(self) -> None:
        self.count = self.line.count
        self.late_at = overdue_since(self.line, self._limits)
        seconds = self._limits.visit(self.line.lane) - self.load_seconds
        self.visit_jobs = max(1, math.ceil(seconds / self.run_seconds))

    def take(self, jobs: int) -> None:
        """So many jobs have run: the oldest of the rest has waited for less long."""
        before, self.count = self.count, self.count - jobs
        if self.count < 1:
            return
        oldest, head = self.line.oldest, self.line.head
        part = jobs / (before - 1)
        since = oldest.waiting_since + (self.newest_since - oldest.waiting_since) * part
        moved = Candidate(oldest.job_id, oldest.priority, since, oldest.order)
        self._see(moved if head == oldest else head, moved, self.line.last_visit_ended_at)

    def visit_ended(self, moment: float) -> None:
        """A visit of this line ended, and something waits in it."""
        self._see(self.line.head, self.line.oldest, moment)

    def _see(self, head: Candidate, oldest: Candidate, last_visit_ended_at: float | None) -> None:
        self.line = Line(self.line.lane, self.line.key, head, oldest, last_visit_ended_at)
        self.late_at = overdue_since(self.line, self._limits)


@define(eq=False)
class _PlayedLedger(Ledger):
    """A ledger that goes on from what is owed now."""

    def go_on_from(self, owed_seconds: float) -> None:
        """So much is owed to the durable lane."""
        self._owed_seconds = owed_seconds

    def flips_in(self, lane: Lane) -> float:
        """For how many seconds this lane may be busy before the other one is preferred."""
        share = self._limits.interactive_share
        rate = 1 - share if lane is Lane.INTERACTIVE else share
        left = -self._owed_seconds if lane is Lane.INTERACTIVE else self._owed_seconds
        return left / rate if rate and left >= 0 else math.inf


@define(eq=False)
class _Play:
    """The policy, played forward from a scene until one job starts."""

    _scene: Scene
    _estimates: Estimates
    _place: Place
    _pace: float  # the rest of what runs takes so many times what is expected
    _limits: Limits = field(init=False)
    _seconds: float = field(default=0.0, init=False)  # from the scene on
    _piles: dict[tuple[Lane, ModelKey], _Pile] = field(init=False)
    _visits: Visits = field(factory=Visits, init=False)
    _ledger: _PlayedLedger = field(init=False)
    _residents: Collection[ModelKey] = field(init=False)
    _ahead: int = field(init=False)  # of the job's own line
    _stretch: float = field(default=1.0, init=False)  # of durable jobs, by the chats that will come
    rest_seconds: float = field(default=0.0, init=False)  # of what runs
    _jobs: int = field(default=0, init=False)
    _swaps: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        scene = self._scene
        self._limits, self._residents = scene.limits, scene.residents
        self._piles = {(line.lane, line.key): self._pile(line) for line in scene.lines}
        self._visits.current = dict(scene.visits)
        self._ledger = _PlayedLedger(scene.limits)
        self._ledger.go_on_from(scene.owed_seconds)
        self._ahead = self._place.ahead
        if self._place.lane is Lane.DURABLE:
            share = min(self._estimates.interactive_share, scene.limits.interactive_share, _MOST_TAKEN)
            self._stretch = 1 / (1 - share)

    def _pile(self, line: Line) -> _Pile:
        run_seconds = self._estimates.run_seconds(line.lane, line.key) / self._scene.width
        load_seconds = self._estimates.load_seconds(line.key)
        return _Pile(line, self._scene.now[line.lane], run_seconds, load_seconds, self._limits)

    @property
    def _mine(self) -> _Pile:
        return self._piles[self._place.lane, self._place.key]

    def until_start(self) -> Forecast:
        """Step by step."""
        self._finish_running()
        for _ in range(_MOST_STEPS * _FEW_LINES // max(_FEW_LINES, len(self._piles))):
            lines = [pile.line for pile in self._piles.values()]
            self._visits.look(lines, ())
            now = {lane: moment + self._seconds for lane, moment in self._scene.now.items()}
            owed = self._ledger.owed_durable()
            choice = choose(lines, self._residents, self._visits.current, now, owed, self._limits)
            assert choice is not None  # the job itself waits
            if choice.overdue and self._pass_over_rounds(choice, now[choice.lane]):
                continue
            pile = self._piles[choice.lane, choice.key]
            if pile is self._mine and not self._ahead:
                swaps = self._swaps + (choice.key not in self._residents)
                return Forecast(self._jobs, swaps, self._seconds)
            self._run(choice, pile, now)
        return self._extrapolate()

    def _finish_running(self) -> None:
        """Until a place is free. While one is free already, the others wait for all that run to end."""
        running = self._scene.running
        if not running:
            return
        if running[0].key not in self._residents:
            self._residents = (running[0].key,)
        left = [self._remaining(job) for job in running]
        rest = min(left) if len(running) >= self._scene.width else max(left)
        self.rest_seconds = self._pace * rest
        self._pass(running[0].lane, self.rest_seconds)

    def _remaining(self, job: Running) -> float:
        expected = self._estimates.run_seconds(job.lane, job.key)
        if job.swap:
            expected += self._estimates.load_seconds(job.key)
        return max(expected - job.held_seconds, _RESIDUAL * max(expected, job.held_seconds))

    def _pass(self, lane: Lane, seconds: float) -> None:
        """This lane had the turn for so many seconds."""
        self._seconds += seconds
        if lane in self._visits.current:
            self._visits.lasted(lane, self._visits.current[lane].key, seconds)
        other = lane.other
        if any(at is other for at, _ in self._piles):
            self._ledger.record(lane, seconds)

    def _run(self, choice: Choice, pile: _Pile, now: Mapping[Lane, float]) -> None:
        """As many jobs of the chosen line as start before anything else may be chosen; one at least."""
        before = self._visits.current.get(choice.lane)
        if choice.begins_visit and before is not None:
            self._piles[choice.lane, before.key].visit_ended(now[choice.lane])
        self._visits.lost_to(choice.lane)
        self._visits.granted(choice, now[choice.lane], self._seconds)
        self._ledger.begin_run(choice.lane)
        seconds = 0.0
        if choice.key not in self._residents:
            seconds = pile.load_seconds
            self._residents = (choice.key,)
            self._swaps += 1
        most = self._ahead if pile is self._mine else pile.count
        fitting = (self._changes_in(choice, now) - seconds) / pile.run_seconds
        if seconds and (choice.lane.other, choice.key) in self._piles:
            fitting = 1  # the other lane has a cheap line now
        jobs = most if fitting >= most else max(1, math.ceil(fitting))
        self._take(pile, jobs)
        seconds += jobs * pile.run_seconds
        self._pass(choice.lane, seconds)
        if choice.lane is Lane.DURABLE:
            self._seconds += seconds * (self._stretch - 1)

    def _changes_in(self, choice: Choice, now: Mapping[Lane, float]) -> float:
        """For how many seconds the chosen line is sure to be chosen again, as long as it has jobs."""
        visit_left = self._limits.visit(choice.lane) - self._visits.current[choice.lane].seconds
        # A visit that goes on beyond its time does so because no other line is overdue: that may change.
        moments = [visit_left] if visit_left > 0 or choice.begins_visit else []
        other = choice.lane.other
        for (lane, key), pile in self._piles.items():
            late_in = pile.late_at - now[lane]
            if late_in > 0 and not (lane is choice.lane and key == choice.key):
                moments.append(late_in)
        if any(lane is other for lane, _ in self._piles):
            moments.append(self._ledger.flips_in(choice.lane))
        return min(moments, default=math.inf)

    def _take(self, pile: _Pile, jobs: int) -> None:
        self._jobs += jobs
        if pile is self._mine:
            self._ahead -= jobs
        if jobs < pile.count:
            pile.take(jobs)
        else:
            del self._piles[pile.line.lane, pile.line.key]

    def _pass_over_rounds(self, choice: Choice, now: float) -> bool:
        """Pass over whole rounds of visits, one for each line, if all of them are late whatever runs.

        The order of a round needs no look: after it all is as before it, but later and less.
        """
        visit = self._visits.current.get(choice.lane)
        if visit is None:
            return False
        mine, latest = self._mine, now - self._limits.max_wait(choice.lane)
        rounds = self._ahead // mine.visit_jobs
        for pile in self._piles.values():
            if pile is not mine:
                rounds = min(rounds, (pile.count - 1) // pile.visit_jobs)
            if not rounds or not self._late_for_good(pile, choice.lane, visit, latest):
                return False
        piles = list(self._piles.values())
        seconds = 0.0
        for pile in piles:
            self._take(pile, rounds * pile.visit_jobs)
            seconds += rounds * (pile.load_seconds + pile.visit_jobs * pile.run_seconds)
        seconds *= self._stretch
        self._swaps += rounds * len(piles)
        self._seconds += seconds
        for pile in piles:
            if pile.line.last_visit_ended_at is not None:
                pile.visit_ended(pile.line.last_visit_ended_at + seconds)
        return True

    def _late_for_good(self, pile: _Pile, lane: Lane, visit: Visit, latest: float) -> bool:
        """All of its jobs are late, so that its last visit alone decides since when the line is overdue."""
        if pile.line.lane is not lane or pile.newest_since > latest:
            return False
        return pile.line.key == visit.key or pile.late_at == pile.line.last_visit_ended_at

    def _extrapolate(self) -> Forecast:
        """The rest goes at the pace so far; if no job of the line has run yet, as if the lines took turns."""
        seconds = self._seconds
        done = self._place.ahead - self._ahead
        jobs, swaps = self._jobs, self._swaps
        if done:
            factor = self._place.ahead / done
            return Forecast(round(jobs * factor), round(swaps * factor), seconds * factor)
        for pile in self._piles.values():
            if pile.line.lane is self._place.lane:
                ahead = min(pile.count, self._ahead)
                jobs += ahead
                seconds += ahead * pile.run_seconds
        return Forecast(jobs, swaps + len(self._piles), seconds)


def forecast(scene: Scene, place: Place, estimates: Estimates) -> Forecast:
    """When the job at this place will start. Its line is one of the scene's."""
    play = _Play(scene, estimates, place, 1 / _SPREAD)
    early = play.until_start()
    if early.start_in_seconds >= _FAR * play.rest_seconds:
        return early
    late = _Play(scene, estimates, place, _SPREAD).until_start()
    return evolve(late, start_in_seconds=math.sqrt(early.start_in_seconds * late.start_in_seconds))
