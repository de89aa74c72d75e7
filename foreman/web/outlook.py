"""The outlook of a waiting job: its place, when it will start, and what it waits for."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from attrs import define, field, frozen

from foreman.jobs.interface import JobStore
from foreman.jobs.model import WAITING, Job, LineKey, Status
from foreman.quantities import format_moment
from foreman.scheduler.forecast import Estimates, Place, Scene, forecast
from foreman.scheduler.keys import KeyRegistry, ModelKey, Wanted
from foreman.scheduler.policy import Lane, Line, overdue_since
from foreman.scheduler.turn import Turn
from foreman.target.names import is_cloud

_DURABLE = Lane.DURABLE
_TAIL_SECONDS = 1.0
_MOST_TAILS = 1000
MOST_PLAYED = 100
"""With more lines than this nothing is played forward, and the jobs before one are counted.

Playing 100 took up to 11 ms. With more there are fewer steps than lines, and the rest would be guessed: the
last of 300 lines with one job each was said to start as the 34th, in 20 minutes instead of 3 hours.
"""
MOST_PLAYED_AT_ONCE = 40
"""Likewise for a receipt.

A script that sets another num_ctx for each prompt makes a line with each submission: at 100 lines one took
24 ms, at 1,000 more than 60 ms.
"""


@frozen
class Hold:
    """Why nothing durable may start, `lane_paused` or `durable_hours`, and until when; None: nobody knows.

    `paused_until` is the end of a pause beyond the hours, which then begin at `until`.
    """

    reason: str
    until: float | None
    paused_until: float | None = None


@frozen
class Outlook:
    """Where a waiting job stands. `queue_position` 1 is next; `waiting_for` has a `reason` and a `text`.

    All is None for a job that does not wait.
    """

    queue_position: int | None = None
    eta_seconds: float | None = None
    waiting_for: Mapping[str, Any] | None = None


class Inventory(Protocol):
    """Which models are installed."""

    @property
    def known(self) -> bool: ...

    def model(self, name: str, /) -> object | None: ...


class Reachability(Protocol):
    """Whether the target can be reached, and why not."""

    @property
    def up(self) -> bool: ...

    @property
    def reason(self) -> str | None: ...


@frozen
class _Tail:
    """The end of a line until a moment: the store's lines in it, and how many jobs of others go before it."""

    until: float
    siblings: Sequence[LineKey]
    others: int


@frozen
class _Prospect:
    """How many jobs start before a job, the loads until it runs, and when it starts; None: nobody knows."""

    jobs_ahead: int
    swaps_ahead: int
    start_in_seconds: float | None


@frozen
class _Start:
    """In how many seconds a job starts, from now, and whether the hours of durable jobs end before that."""

    in_seconds: float
    beyond_hours: bool


@define(eq=False)
class Outlooks:
    """Looks at the lines, and plays the policy forward for one job.

    The turn's clock shows epoch seconds, as `wall_clock` does. `hold` says what holds the durable lane back;
    `rests_until` until when the worker begins nothing, because the target or the database was not ready;
    `reached` when the hours of durable jobs have lasted for so many seconds since a moment; `bypassing` has
    the lines of jobs that need no turn.
    """

    _store: JobStore
    _turn: Turn
    _keys: KeyRegistry
    _estimates: Estimates
    _inventory: Inventory
    _reachability: Reachability
    _wall_clock: Callable[[], float]
    _hold: Callable[[], Hold | None]
    _rests_until: Callable[[], float | None]
    _reached: Callable[[float, float], float]
    _bypassing: Callable[[], Collection[LineKey]]
    _tails: dict[ModelKey, _Tail] = field(factory=dict, init=False)

    async def position(self, job: Job) -> int | None:
        """The `queue_position` of a job that has just come: of other lines it may be a second old.

        Playing the policy forward for each of a thousand submissions a second would cost too much.
        """
        if job.status is not Status.QUEUED or job.not_before is not None:
            return None
        if not job.line.takes_turn:
            ahead = await self._ahead_bypassing(job)
            return None if ahead is None else ahead + 1
        key = self._keys.key(_wanted(job.line))
        tail = self._tails.get(key)
        if tail is not None and tail.until > self._wall_clock():
            ahead = await self._ahead(job, key, tail.siblings)
            return None if ahead is None else ahead + tail.others + 1
        scene = self._scene()
        siblings = self._siblings(scene, job.line, key)
        ahead = await self._ahead(job, key, siblings)
        if ahead is None:
            return None
        line = _line_of(scene, key)
        found = None if line is None else self._foresee(scene, line, ahead, MOST_PLAYED_AT_ONCE)
        others = 0 if found is None else max(0, found.jobs_ahead - ahead)
        if len(self._tails) >= _MOST_TAILS:
            self._tails.clear()
        self._tails[key] = _Tail(self._wall_clock() + _TAIL_SECONDS, [job.line, *siblings], others)
        return ahead + others + 1

    async def of(self, job: Job) -> Outlook:
        """The outlook of a job as it was read just now."""
        if job.status not in WAITING:
            return Outlook()
        if job.status is Status.SCHEDULED:
            return Outlook(None, None, _until("run_at", job.run_at, "it is not to start before {moment}"))
        if job.not_before is not None:
            text = "its last attempt failed, and the next one is not made before {moment}"
            return Outlook(None, None, _until("backoff", job.not_before, text))
        if any(grant.job_id == job.job_id for grant in self._turn.holders):
            return Outlook(1, 0.0, None)  # it has the turn, and is about to be running
        if not job.line.takes_turn:
            return await self._past_the_turn(job)
        return await self._in_line(job)

    async def _past_the_turn(self, job: Job) -> Outlook:
        ahead = await self._ahead_bypassing(job)
        if ahead is None:
            return Outlook()
        waiting_for = self._held_up(job)
        if waiting_for is None and ahead:
            waiting_for = _model_line(job.model, ahead, 0, None)
        if waiting_for is None:
            text = "as many jobs that need no turn run as may at once"
            waiting_for = {"reason": "running_job", "text": text}
        return Outlook(ahead + 1, None, waiting_for)

    async def _in_line(self, job: Job) -> Outlook:
        key = self._keys.key(_wanted(job.line))
        scene = self._scene()
        ahead = await self._ahead(job, key, self._siblings(scene, job.line, key))
        if ahead is None:
            return Outlook()
        if len(scene.lines) <= MOST_PLAYED:
            scene = self._scene()  # a thousand lines take 5 ms, and for a count they may be a moment old
        line = _line_of(scene, key)
        if line is None:
            # What it waits for keeps its whole line out of the choice.
            return Outlook(ahead + 1, None, self._held_up(job) or _model_line(job.model, ahead, 0, None))
        found = self._foresee(scene, line, ahead, MOST_PLAYED)
        jobs_ahead = max(ahead, found.jobs_ahead)
        start = self._start(job, found)
        waiting_for = self._held_up(job)
        if waiting_for is None:
            waiting_for = self._in_turn(job, scene, line, jobs_ahead, found.swaps_ahead)
            if start is not None and start.beyond_hours:
                waiting_for["text"] += "; the hours of durable jobs end before its start"
        return Outlook(jobs_ahead + 1, None if start is None else start.in_seconds, waiting_for)

    async def _ahead(self, job: Job, key: ModelKey, siblings: Sequence[LineKey]) -> int | None:
        """How many jobs of its line run before it, which may be several lines of the store."""
        ahead = await self._store.ahead(job.job_id, [line for line in siblings if line != job.line])
        if ahead is None:
            return None
        return ahead + self._turn.lowered_ahead(key, job.priority, job.waiting_since)

    async def _ahead_bypassing(self, job: Job) -> int | None:
        """How many of all jobs that need no turn start before it: there is one order for them."""
        return await self._store.ahead(job.job_id, [line for line in self._bypassing() if line != job.line])

    def _foresee(self, scene: Scene, line: Line, ahead: int, most: int) -> _Prospect:
        """Played forward, or counted when there are more lines than `most`."""
        # The line may have moved since its jobs were counted.
        ahead = min(ahead, line.count - 1)
        if len(scene.lines) > most:
            return _count(scene, line, ahead)
        found = forecast(scene, Place(_DURABLE, line.key, ahead), self._estimates)
        return _Prospect(found.jobs_ahead, found.swaps_ahead, found.start_in_seconds)

    def _scene(self) -> Scene:
        """As if the durable lane were open."""
        return self._turn.scene(also=(_DURABLE,))

    def _siblings(self, scene: Scene, line: LineKey, key: ModelKey) -> list[LineKey]:
        """The other lines of the store that are of this key."""
        wanted = {
            wanted
            for each in scene.lines
            if each.lane is _DURABLE and each.key == key
            for wanted in each.wanted
        }
        return [LineKey(each.model, each.options) for each in wanted - {_wanted(line)} if each is not None]

    def _start(self, job: Job, found: _Prospect) -> _Start | None:
        """None when it depends on what nobody knows.

        The lane's time stands still beyond its hours, so what was foreseen takes place within them.
        """
        if found.start_in_seconds is None or not self._reachability.up or self._is_missing(job.model):
            return None
        hold, now = self._hold(), self._wall_clock()
        if hold is not None and hold.until is None:
            return None
        until = self._rests_until() if hold is None else hold.until
        opens = now if until is None else max(now, until)
        start = self._reached(opens, found.start_in_seconds)
        # Whole days that are passed over may round it; what is shut is shut for a minute at least.
        return _Start(round(start - now, 1), start - opens - found.start_in_seconds > 1.0)

    def _held_up(self, job: Job) -> dict[str, Any] | None:
        """What keeps it from running, whoever else waits."""
        hold = self._hold()
        if hold is not None:
            text = "the durable lane is paused" + (" until {moment}" if hold.until is not None else "")
            if hold.reason == "durable_hours":
                text = "the hours of durable jobs begin at {moment}"
            until = hold.until
            if hold.paused_until is not None:
                text += f", and the hours of durable jobs begin at {format_moment(until)}"
                until = hold.paused_until
            return _until(hold.reason, until, text, lane=_DURABLE.value)
        if not self._reachability.up:
            text = f"the target cannot be reached: {self._reachability.reason}"
            return {"reason": "target_unreachable", "text": text}
        if self._is_missing(job.model):
            text = f"the model {job.model} is not installed at the target"
            return {"reason": "model_missing", "model": job.model, "text": text}
        until = self._rests_until()
        if until is not None:
            return _until("backoff", until, "the target was not ready, and is asked again at {moment}")
        return None

    def _is_missing(self, model: str) -> bool:
        return self._inventory.known and not is_cloud(model) and self._inventory.model(model) is None

    def _in_turn(self, job: Job, scene: Scene, line: Line, ahead: int, swaps: int) -> dict[str, Any]:
        holders = self._turn.holders
        if holders and not ahead:
            running = holders[0]
            model = None if running.wanted is None else running.wanted.model
            what = "a job" if model is None else f"a job of {model}"
            return {
                "reason": "running_job",
                "job_id": running.job_id,
                "model": model,
                "lane": running.lane.value,
                "swaps_ahead": swaps,
                "text": f"{what} runs, and this one is next",
            }
        overdue_in = overdue_since(line, scene.limits) - scene.now[_DURABLE]
        return _model_line(job.model, ahead, swaps, max(0, round(overdue_in)))


def _wanted(line: LineKey) -> Wanted:
    return Wanted(line.model, line.option_key)


def _line_of(scene: Scene, key: ModelKey) -> Line | None:
    return next((line for line in scene.lines if line.lane is _DURABLE and line.key == key), None)


def _count(scene: Scene, line: Line, ahead: int) -> _Prospect:
    """As if every line was emptied in one visit, in the order in which the policy would choose them now.

    Chats go first. It costs a look at each line.
    """
    running = scene.running
    residents = (running[0].key,) if running and running[0].key not in scene.residents else scene.residents
    visit, now, limits = scene.visits.get(_DURABLE), scene.now[_DURABLE], scene.limits

    def rank(line: Line) -> tuple[float, ...]:
        if visit is not None and line.key == visit.key:
            return (0,)
        late = overdue_since(line, limits)
        if late <= now:
            return (1, late, line.oldest.order)
        return (2 if line.key in residents else 3, *line.head.rank)

    mine = rank(line)
    before = [each for each in scene.lines if each.lane is not _DURABLE or rank(each) < mine]
    swaps = sum(each.key not in residents for each in [*before, line])
    return _Prospect(sum(each.count for each in before) + ahead, swaps, None)


def _model_line(model: str, ahead: int, swaps: int, overdue_in: int | None) -> dict[str, Any]:
    text = f"{_counted(ahead, 'job starts', 'jobs start')} before it" if ahead else "it is next"
    if swaps:
        text += f", with {_counted(swaps, 'load', 'loads')} up to its own start"
    if overdue_in is not None:
        text += f"; its line is overdue in {overdue_in} s" if overdue_in else "; its line is overdue"
    return {
        "reason": "model_line",
        "model": model,
        "ahead": ahead,
        "swaps_ahead": swaps,
        "overdue_in_seconds": overdue_in,
        "text": text,
    }


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _until(reason: str, until: float | None, text: str, **more: Any) -> dict[str, Any]:
    """`text` may name the `moment` of `until`."""
    moment = format_moment(until)
    return {"reason": reason, **more, "until": moment, "text": text.format(moment=moment)}
