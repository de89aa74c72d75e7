"""The rivals: other rules for the same turn, each in its shortest form, on the same clock and target."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from attrs import define, field

from bench.scheduling.runs import Run, awake_from
from bench.scheduling.workload import Job, Workload
from foreman.scheduler.policy import Lane, Limits


class Rule(Protocol):
    """Who goes next, when one job runs at a time and one model is loaded at a time."""

    def add(self, job: Job) -> None:
        """A job waits from now on."""

    def next(self, resident: str | None, now: float) -> Job | None:
        """The job that starts now, and waits no longer; None when nothing waits."""


@define(eq=False)
class FirstCome:
    """First come, first served."""

    _waiting: deque[Job] = field(factory=deque, init=False)

    def add(self, job: Job) -> None:
        """At the end of the one queue."""
        self._waiting.append(job)

    def next(self, resident: str | None, now: float) -> Job | None:
        """The oldest."""
        return self._waiting.popleft() if self._waiting else None


@define(eq=False)
class Ollama:
    """What Ollama 0.24 does by itself with one slot (server/sched.go).

    A request for the loaded model joins its runner's queue at once, past all that wait for a load, without a
    bound. Those that wait for a load are looked at strictly in the order of arrival: the first of them holds
    all behind it until the runner is idle and its own model is loaded.
    """

    _runner: deque[Job] = field(factory=deque, init=False)
    _pending: deque[Job] = field(factory=deque, init=False)
    _resident: str | None = field(default=None, init=False)

    def add(self, job: Job) -> None:
        """To the runner, or to those that wait for a load."""
        (self._runner if job.model == self._resident else self._pending).append(job)

    def next(self, resident: str | None, now: float) -> Job | None:
        """The runner's next one; when it has none, the first of those that wait for a load."""
        if not self._runner and self._pending:
            self._resident = self._pending[0].model
            while self._pending and self._pending[0].model == self._resident:
                self._runner.append(self._pending.popleft())
        return self._runner.popleft() if self._runner else None


@define(eq=False)
class _Lines:
    """The waiting jobs by lane and model, each line in the order of arrival."""

    lines: dict[tuple[Lane, str], deque[Job]] = field(factory=dict, init=False)

    def add(self, job: Job) -> None:
        """At the end of its line."""
        self.lines.setdefault((job.lane, job.model), deque()).append(job)

    def take(self, place: tuple[Lane, str]) -> Job:
        """The first of a line."""
        job = self.lines[place].popleft()
        if not self.lines[place]:
            del self.lines[place]
        return job

    def oldest(self, places: Iterator[tuple[Lane, str]]) -> tuple[Lane, str] | None:
        """Of these lines the one whose first job came first."""
        return min(places, key=lambda place: self.lines[place][0].number, default=None)


@define(eq=False)
class Drain(_Lines):
    """A plain drain: the loaded model until nothing waits for it, then that of the oldest job. No bound."""

    def next(self, resident: str | None, now: float) -> Job | None:
        """The oldest of the loaded model, or of all."""
        same = self.oldest(place for place in self.lines if place[1] == resident)
        place = same or self.oldest(iter(self.lines))
        return self.take(place) if place else None


@define(eq=False)
class ChatFirstDrain(_Lines):
    """The plain drain with two lanes: as long as a chat waits, chats run. No bound."""

    def next(self, resident: str | None, now: float) -> Job | None:
        """The first lane that has work; in it the loaded model, or the oldest job's."""
        lane = Lane.INTERACTIVE if any(lane is Lane.INTERACTIVE for lane, _ in self.lines) else Lane.DURABLE
        mine = [place for place in self.lines if place[0] is lane]
        place = self.oldest(p for p in mine if p[1] == resident) or self.oldest(iter(mine))
        return self.take(place) if place else None


@define(eq=False)
class OverdueFirst(_Lines):
    """foreman's bounds without its visits: whatever is overdue runs first, one job at a time."""

    _limits: Limits = field(factory=Limits)

    def next(self, resident: str | None, now: float) -> Job | None:
        """The longest overdue; else the loaded model; else chats before batches, the oldest of them."""
        late = [place for place in self.lines if self._overdue_since(place) <= now]
        if late:
            return self.take(
                min(late, key=lambda place: (self._overdue_since(place), self.lines[place][0].number))
            )
        lane = Lane.INTERACTIVE if any(lane is Lane.INTERACTIVE for lane, _ in self.lines) else Lane.DURABLE
        place = self.oldest(p for p in self.lines if p[1] == resident) or self.oldest(
            p for p in self.lines if p[0] is lane
        )
        return self.take(place) if place else None

    def _overdue_since(self, place: tuple[Lane, str]) -> float:
        return self.lines[place][0].arrives_at + self._limits.max_wait(place[0])


RIVALS: dict[str, Callable[[], Rule]] = {
    "first come": FirstCome,
    "Ollama": Ollama,
    "drain": Drain,
    "chat-first drain": ChatFirstDrain,
    "overdue first": OverdueFirst,
}


def serve(workload: Workload, rule: Rule) -> list[Run]:
    """The runs of a workload in their order."""
    runs: list[Run] = []
    now, resident, coming = 0.0, None, 0
    jobs = workload.jobs
    while len(runs) < len(jobs):
        while coming < len(jobs) and jobs[coming].arrives_at <= now:
            rule.add(jobs[coming])
            coming += 1
        awake = awake_from(workload, now)
        if awake > now:
            now = awake
            continue
        job = rule.next(resident, now)
        if job is None:
            now = jobs[coming].arrives_at
            continue
        load = 0.0 if job.model == resident else workload.load_seconds[job.model]
        runs.append(Run(job, now, load, swap=job.model != resident))
        now, resident = runs[-1].ended_at, job.model
    return runs
