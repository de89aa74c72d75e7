"""Every rule on a workload, and whether foreman keeps its promises there."""

import random
from collections.abc import Callable, Mapping, Sequence

from attrs import frozen

from bench.scheduling.bounds import Episode, Judge
from bench.scheduling.real import RealTurn
from bench.scheduling.rivals import RIVALS, serve
from bench.scheduling.runs import Run, Summary, awake_seconds, summary
from bench.scheduling.workload import BATCH, CHAT, Workload
from foreman.scheduler.forecast import Estimates, Place, Scene, forecast
from foreman.scheduler.policy import Lane, Limits

FOREMAN = "foreman"
MOST_ASKED = 400
VISIT_LENGTHS = (30.0, 60.0, 120.0, 300.0)
BATCH_OF_400, MOST_SWAPS_OF_400 = "400 at once", 20


@frozen
class Check:
    """A promise, whether it is kept, and the figures."""

    what: str
    kept: bool
    figures: str


@frozen
class Compared:
    """One workload: what each rule came to, and what foreman's runs say about the promises."""

    workload: Workload
    runs: Mapping[str, Sequence[Run]]
    summaries: Mapping[str, Summary]
    visits_ended_by_time: int
    interruptions: int
    episodes: Sequence[Episode]

    @property
    def two_lanes(self) -> bool:
        """Both lanes have jobs."""
        return len(self.summaries[FOREMAN].waits) > 1

    @property
    def allowed_swaps(self) -> int:
        """With one lane: the plain drain's swaps, and one for each visit that ended by time.

        With two, the drain is one that lets chats go first, and a visit that the other lane interrupts with
        another model costs two more: there and back.
        """
        yardstick = "chat-first drain" if self.two_lanes else "drain"
        return self.summaries[yardstick].swaps + self.visits_ended_by_time + 2 * self.interruptions

    def checks(self) -> list[Check]:
        """The promises that hold on every workload, and the one of the 400."""
        swaps = self.summaries[FOREMAN].swaps
        found = [Check("swaps", swaps <= self.allowed_swaps, f"{swaps} of {self.allowed_swaps} allowed")]
        if self.episodes:
            kept = all(episode.waited <= episode.bound for episode in self.episodes)
            longest = max(self.episodes, key=lambda episode: episode.waited)
            figures = f"{len(self.episodes)}; the longest {longest.waited:.0f} s of {longest.bound:.0f} s"
            found.append(Check("overdue lines start in time", kept, figures))
        if self.workload.name == BATCH_OF_400:
            figures = f"{swaps} swaps of {MOST_SWAPS_OF_400}"
            found.append(Check("400 jobs with everything overdue", swaps <= MOST_SWAPS_OF_400, figures))
        return found


def compare(workload: Workload, limits: Limits) -> Compared:
    """Run it by each rule."""
    runs = {FOREMAN: RealTurn(workload, limits).run()}
    runs |= {name: serve(workload, rule()) for name, rule in RIVALS.items()}
    judge = Judge(workload, limits, runs[FOREMAN])
    return Compared(
        workload,
        runs,
        {name: summary(of_rule) for name, of_rule in runs.items()},
        judge.ended_by_time,
        judge.interruptions,
        list(judge.episodes()),
    )


def by_visit_length(workload: Workload) -> dict[float, Summary]:
    """The same workload with longer visits of chats, in seconds."""
    return {
        length: summary(RealTurn(workload, Limits(interactive_visit=length)).run())
        for length in VISIT_LENGTHS
    }


@frozen
class Grade:
    """Of so many jobs that had to wait, this many started within a factor of two of the forecast."""

    jobs: int
    within: int

    @property
    def part(self) -> float:
        """Of all of them."""
        return self.within / self.jobs if self.jobs else 1.0

    def __add__(self, other: "Grade") -> "Grade":
        return Grade(self.jobs + other.jobs, self.within + other.within)


NONE = Grade(0, 0)


@frozen
class Grades:
    """The forecasts of one workload: chats and batch jobs asked at once, batch jobs asked later."""

    chats: Grade
    batch: Grade
    batch_later: Grade


def grade(
    runs: Sequence[Run],
    workload: Workload,
    before: Workload,
    seed: int,
    eta: Callable[[Scene, Place, Estimates], float] | None = None,
) -> Grades:
    """Run it again and ask for jobs that will wait, at their arrival and at some moment of their wait.

    `runs` are the real turn's, `before` is a workload like this one, from which the history is. Nobody can
    ask for a chat later: it has no `GET /jobs/{id}`.
    """
    earlier = RealTurn(before)
    earlier.run()
    dice = random.Random(seed)
    ask_at = {}
    for lane in Lane:
        waited = [run for run in runs if run.job.lane is lane and run.started_at > run.job.arrives_at]
        for run in waited[:: 1 + len(waited) // MOST_ASKED]:
            begin, end = run.job.arrives_at, run.started_at
            ask_at[run.job.number] = [begin] if lane is CHAT else [begin, dice.uniform(begin, end)]
    measured = list(earlier.history.take_changes())
    asked = RealTurn(workload, eta=eta or seconds_until, ask_at=ask_at, earlier=measured).run()
    return Grades(
        _grade(asked, workload, CHAT, 0), _grade(asked, workload, BATCH, 0), _grade(asked, workload, BATCH, 1)
    )


def seconds_until(scene: Scene, place: Place, estimates: Estimates) -> float:
    """The forecast of a start."""
    return forecast(scene, place, estimates).start_in_seconds


def _grade(runs: Sequence[Run], workload: Workload, lane: Lane, time: int) -> Grade:
    """Within a factor of two, or within a second. Time in which the target is away does not count."""
    jobs = within = 0
    for run in runs:
        if run.job.lane is not lane or len(run.etas) <= time:
            continue
        asked_at, forecast_seconds = run.etas[time]
        seconds = awake_seconds(workload, asked_at, run.started_at)
        jobs += 1
        near = forecast_seconds / 2 <= seconds <= 2 * forecast_seconds
        within += near or abs(forecast_seconds - seconds) <= 1
    return Grade(jobs, within)
