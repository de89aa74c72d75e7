"""Runs, and the figures that are read from them."""

from collections.abc import Sequence

from attrs import frozen

from bench.scheduling.workload import Job, Workload
from foreman.scheduler.policy import Lane, Why


@frozen
class Run:
    """How one job ran. `etas`: when somebody asked for the seconds until its start, and the answers."""

    job: Job
    started_at: float
    load_seconds: float
    swap: bool
    why: Why | None = None
    etas: tuple[tuple[float, float], ...] = ()

    @property
    def ended_at(self) -> float:
        """The turn is free again."""
        return self.started_at + self.load_seconds + self.job.run_seconds

    @property
    def wait_seconds(self) -> float:
        """From its arrival until it is worked on: a load is part of the wait."""
        return self.started_at + self.load_seconds - self.job.arrives_at


@frozen
class Waits:
    """The waits of one lane, in seconds."""

    jobs: int
    p50: float
    p95: float
    p99: float
    longest: float


@frozen
class Summary:
    """What a workload came to. The makespan ends with the last job; both are in seconds."""

    swaps: int
    load_seconds: float
    makespan: float
    waits: dict[Lane, Waits]


def awake_from(workload: Workload, now: float) -> float:
    """The first moment from now on at which the target is there."""
    for begin, end in workload.asleep:
        if begin <= now < end:
            return end
    return now


def awake_seconds(workload: Workload, since: float, until: float) -> float:
    """How long the target was there between two moments."""
    away = sum(max(0.0, min(until, end) - max(since, begin)) for begin, end in workload.asleep)
    return until - since - away


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that at least so many percent do not exceed."""
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def waits(runs: Sequence[Run], lane: Lane) -> Waits | None:
    """None where the lane had no job."""
    ordered = sorted(run.wait_seconds for run in runs if run.job.lane is lane)
    if not ordered:
        return None
    return Waits(
        len(ordered),
        percentile(ordered, 50),
        percentile(ordered, 95),
        percentile(ordered, 99),
        ordered[-1],
    )


def summary(runs: Sequence[Run]) -> Summary:
    """The figures of a workload's runs."""
    found = {lane: waits(runs, lane) for lane in Lane}
    return Summary(
        sum(run.swap for run in runs),
        sum(run.load_seconds for run in runs),
        max(run.ended_at for run in runs) - runs[0].job.arrives_at,
        {lane: of_lane for lane, of_lane in found.items() if of_lane},
    )
