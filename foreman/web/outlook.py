"""The outlook of a waiting job: its place, when it will start, and what it waits for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from attrs import define, field, frozen

from foreman.jobs.interface import JobStore
from foreman.jobs.model import WAITING, Job, LineKey, Status
from foreman.quantities import format_moment
from foreman.scheduler.forecast import Estimates, Forecast, Place, Scene, forecast
from foreman.scheduler.keys import KeyRegistry, ModelKey, Wanted
from foreman.scheduler.policy import Lane, Line, overdue_since
from foreman.scheduler.turn import Turn
from foreman.target.names import is_cloud

_DURABLE = Lane.DURABLE
_TAIL_SECONDS = 1.0
_MOST_TAILS = 1000


@frozen
class Hold:
    """Why nothing durable may start, `lane_paused` or `durable_hours`, and the moment at which that ends.

    `until` is None while nobody knows.
    """

    reason: str
    until: float | None


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


@define(eq=False)
class Outlooks:
    """Looks at the lines, and plays the policy forward for one job.

    The turn's clock shows epoch seconds, as `wall_clock` does. `hold` says what holds the durable lane back;
    `rests_until` until when the worker begins nothing, because the target or the database was not ready.
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
    _tails: dict[ModelKey, _Tail] = field(factory=dict, init=False)

    async def position(self, job: Job) -> int | None:
        """The `queue_position` of a job that has just come: of other lines it may be a second old.

        Playing the policy forward for each of a thousand submissions a second would cost too much.
        """
        if job.status is not Status.QUEUED or job.not_before is not None:
            return None
        if not job.line.takes_turn:
            ahead = await self._store.ahead(job.job_id)
            return None if ahead is None else ahead + 1
        key = self._keys.key(_wanted(job.line))
        tail = self._tails.get(key)
        if tail is not None and tail.until > self._wall_clock():
            ahead = await self._ahead(job, key, tail.siblings)
            return None if ahead is None else ahead + tail.others + 1
        siblings = self._siblings(self._scene(), job.line, key)
        ahead = await self._ahead(job, key, siblings)
        if ahead is None:
            return None
        found = self._foresee(self._scene(), key, ahead)
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
            return await self._bypassing(job)
        return await self._in_line(job)

    async def _bypassing(self, job: Job) -> Outlook:
        ahead = await self._store.ahead(job.job_id)
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
        ahead = await self._ahead(job, key, self._siblings(self._scene(), job.line, key))
        if ahead is None:
            return Outlook()
        scene = self._scene()
        line, found = _line_of(scene, key), self._foresee(scene, key, ahead)
        if line is None or found is None:
            # What it waits for keeps its whole line out of the choice.
            return Outlook(ahead + 1, None, self._held_up(job) or _model_line(job.model, ahead, 0, None))
        jobs_ahead = max(ahead, found.jobs_ahead)
        hold = self._hold()
        return Outlook(
            jobs_ahead + 1,
            self._eta(job, hold, found),
            self._held_up(job) or self._in_turn(job, scene, line, jobs_ahead, found.swaps_ahead),
        )

    async def _ahead(self, job: Job, key: ModelKey, siblings: Sequence[LineKey]) -> int | None:
        """How many jobs of its line run before it, which may be several lines of the store."""
        ahead = await self._store.ahead(job.job_id, [line for line in siblings if line != job.line])
        if ahead is None:
            return None
        return ahead + self._turn.lowered_ahead(key, job.priority, job.waiting_since)

    def _foresee(self, scene: Scene, key: ModelKey, ahead: int) -> Forecast | None:
        """None: no job of this line can be chosen now."""
        line = _line_of(scene, key)
        if line is None:
            return None
        # The line may have moved since its jobs were counted.
        return forecast(scene, Place(_DURABLE, key, min(ahead, line.count - 1)), self._estimates)

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

    def _eta(self, job: Job, hold: Hold | None, found: Forecast) -> float | None:
        """In seconds from now; None when it depends on what nobody knows."""
        if not self._reachability.up or self._is_missing(job.model):
            return None
        if hold is None:
            return round(found.start_in_seconds, 1)
        if hold.until is None:
            return None
        return round(max(0.0, hold.until - self._wall_clock()) + found.start_in_seconds, 1)

    def _held_up(self, job: Job) -> dict[str, Any] | None:
        """What keeps it from running, whoever else waits."""
        hold = self._hold()
        if hold is not None:
            text = "the durable lane is paused" + (" until {moment}" if hold.until is not None else "")
            if hold.reason == "durable_hours":
                text = "the hours of durable jobs begin at {moment}"
            return _until(hold.reason, hold.until, text, lane=_DURABLE.value)
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
