"""Properties of the policy, on the real turn: random workloads in a simulation, judged by its runs alone.

The judge below knows the rules only as the design states them, as bounds. It shares no code with the policy.
All times of a workload are whole seconds, and each arrival has a fraction of its own (a multiple of 1/256,
which a float holds exactly): so no two moments coincide by accident, and sums are exact.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from attrs import evolve, frozen
from hypothesis import HealthCheck, event, given, settings, target
from hypothesis import strategies as st

from foreman.scheduler.policy import Lane, Limits, Why
from foreman.testing.simulation import SimulatedJob, SimulatedRun, Simulation

MODERATE = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SMALL = Limits(
    interactive_max_wait=5, durable_max_wait=60, interactive_visit=30, durable_visit=90, share_window=120
)
EVEN = evolve(SMALL, interactive_share=0.5, interactive_max_wait=20)
LimitsUsed = st.sampled_from([Limits(), SMALL, EVEN, evolve(SMALL, interactive_visit=0, durable_visit=0)])


@frozen
class Workload:
    """Jobs by arrival, and what each model takes to load."""

    jobs: tuple[SimulatedJob, ...]
    load_seconds: Mapping[str, float]


@st.composite
def workloads(draw: st.DrawFn, lanes: Sequence[Lane] = tuple(Lane), at_once: bool = False) -> Workload:
    """Up to 60 jobs of up to five models that come one by one, in bursts, or (`at_once`) all at the start."""
    models = "abcde"[: draw(st.integers(1, 5))]
    load_seconds = {model: float(draw(st.integers(0, 40))) for model in models}
    longest = draw(st.sampled_from([1, 5, 20, 120, 1000]))
    gap = (
        st.just(0)
        if at_once
        else st.one_of(st.just(0), st.integers(0, draw(st.sampled_from([2, 15, 60, 400]))))
    )
    jobs: list[SimulatedJob] = []
    arrives_at = 0
    for number in range(draw(st.integers(1, 60))):
        arrives_at += draw(gap)
        jobs.append(
            SimulatedJob(
                job_id=f"job-{number}",
                lane=draw(st.sampled_from(lanes)),
                model=draw(st.sampled_from(models)),
                priority=draw(st.sampled_from([0, 0, 0, 1, -1])),
                arrives_at=float(arrives_at) if at_once else arrives_at + number / 256,
                run_seconds=float(draw(st.integers(1, longest))),
            )
        )
    jobs.sort(key=lambda job: job.arrives_at)
    return Workload(tuple(jobs), load_seconds)


@frozen
class Visited:
    """One visit, as its runs show it. `ended_at` is when the turn was first free with the visit over."""

    lane: Lane
    model: str
    runs: tuple[SimulatedRun, ...]
    ended_at: float
    by_time: bool

    def held_until(self, moment: float) -> float:
        """For how many seconds its jobs held the turn, up to the end of the one that runs at this moment."""
        return sum(run.ended_at - run.started_at for run in self.runs if run.started_at <= moment)


@frozen
class Episode:
    """A line that was overdue and got its turn: the wait since it was overdue, and the bound for that."""

    waited: float
    bound: float
    both_lanes: bool

    @property
    def used(self) -> float:
        return self.waited / self.bound if self.bound else float(self.waited > 0)


class Judge:
    """What the runs of a workload say about the rules."""

    def __init__(self, workload: Workload, limits: Limits, runs: Sequence[SimulatedRun]) -> None:
        self.workload, self.limits, self.runs = workload, limits, runs
        self.started = {run.job.job_id: run.started_at for run in runs}
        self.ended = {run.job.job_id: run.ended_at for run in runs}
        self.starts = [run.started_at for run in runs]
        self.lines: dict[tuple[Lane, str], list[SimulatedJob]] = defaultdict(list)
        for job in workload.jobs:
            self.lines[job.lane, job.model].append(job)
        self.visits = list(self._visits())

    def waiting(self, lane: Lane, model: str, moment: float) -> list[SimulatedJob]:
        """The jobs of a line that wait at this moment, just before a grant that happens then."""
        jobs = self.lines[lane, model]
        return [job for job in jobs if job.arrives_at <= moment <= self.started[job.job_id]]

    def _visits(self) -> Iterator[Visited]:
        for lane in Lane:
            mine = [run for run in self.runs if run.job.lane is lane]
            begins = [n for n, run in enumerate(mine) if run.why is not Why.VISIT]
            for first, after in pairwise([*begins, len(mine)]):
                part = tuple(mine[first:after])
                model = part[0].job.model
                next_visit = mine[after].started_at if after < len(mine) else float("inf")
                free = [at for at in self.starts if part[-1].ended_at <= at <= next_visit]
                empty = [at for at in free if not self.waiting(lane, model, at)]
                ended_at = empty[0] if empty else free[-1] if free else part[-1].ended_at
                yield Visited(lane, model, part, ended_at, by_time=not empty and after < len(mine))

    def overdue_since(self, lane: Lane, model: str, moment: float) -> float:
        """Since when the line is overdue, or when it will be; infinite while nothing of it waits."""
        jobs = [job for job in self.waiting(lane, model, moment) if self.started[job.job_id] > moment]
        ends = [
            v.ended_at for v in self.visits if (v.lane, v.model) == (lane, model) and v.ended_at <= moment
        ]
        if not jobs:
            return float("inf")
        return max(min(job.arrives_at for job in jobs) + self.limits.max_wait(lane), max(ends, default=0.0))

    def at_work(self, lane: Lane, since: float, until: float) -> bool:
        """Something of this lane waited or ran within the interval."""
        return any(
            job.arrives_at <= until and self.ended[job.job_id] >= since
            for job in self.workload.jobs
            if job.lane is lane
        )

    def one_visit(self, lane: Lane, model: str) -> float:
        """A visit's time, one load and one job."""
        return self.limits.visit(lane) + self.workload.load_seconds[model] + self.longest(lane, model)

    def longest(self, lane: Lane, model: str) -> float:
        return max(job.run_seconds for job in self.lines[lane, model])

    def bound(self, lane: Lane, model: str, since: float) -> float:
        """W of the design for a line that is overdue since this moment."""
        running = self.runs[bisect_right(self.starts, since) - 1]
        total = max(0.0, running.ended_at - since)
        current = next(
            (v for v in self.visits if v.lane is lane and v.runs[0].started_at <= since < v.ended_at), None
        )
        if current is not None:
            rest = self.limits.visit(lane) - current.held_until(since)
            if rest > 0:
                total += rest + self.longest(lane, current.model)
                if running.job.lane is not lane:  # the other lane may have evicted its model
                    total += self.workload.load_seconds[current.model]
        for other_lane, other in self.lines:
            in_visit = current is not None and other == current.model
            before = other_lane is lane and self.overdue_since(lane, other, since) <= since
            if other != model and before and not in_visit:
                total += self.one_visit(lane, other)
        return total

    def episodes(self) -> Iterator[Episode]:
        """Each time a line was overdue, judged at the start of its visit."""
        longest = max(job.run_seconds for job in self.workload.jobs)
        load = max(self.workload.load_seconds.values())
        for visit in self.visits:
            start = visit.runs[0].started_at
            before = [v.ended_at for v in self.visits if (v.lane, v.model) == (visit.lane, visit.model)]
            oldest = min(job.arrives_at for job in self.waiting(visit.lane, visit.model, start))
            since = oldest + self.limits.max_wait(visit.lane)
            since = max([since, *(ended_at for ended_at in before if ended_at <= start)])
            if since >= start:
                continue
            bound = self.bound(visit.lane, visit.model, since)
            both_lanes = self.at_work(visit.lane.other, since, start)
            if both_lanes:
                share = self.limits.interactive_share
                share = share if visit.lane is Lane.INTERACTIVE else 1 - share
                bound = (bound + self.limits.share_window + longest + load) / share
            yield Episode(start - since, bound, both_lanes)


def judged(workload: Workload, limits: Limits) -> Judge:
    """Run it, and check what holds of every workload."""
    runs = Simulation(workload.load_seconds, limits).run(workload.jobs)
    assert sorted(run.job.job_id for run in runs) == sorted(job.job_id for job in workload.jobs)
    for run, after in pairwise(runs):
        assert run.ended_at <= after.started_at
    return Judge(workload, limits, runs)


@MODERATE
@given(workloads(), LimitsUsed)
def test_an_overdue_line_starts_within_the_bounds(workload: Workload, limits: Limits) -> None:
    """Design: within W with one lane at work; within (W + window + one job + one load) / share with both."""
    worst = 0.0
    for episode in judged(workload, limits).episodes():
        assert episode.waited <= episode.bound, episode
        worst = max(worst, episode.used)
    target(worst)


def test_durable_jobs_of_an_hour_do_not_take_more_than_their_share() -> None:
    """The second bound, where a window of ten minutes would forget each of them before it was paid back."""
    durable = [SimulatedJob(f"d{n}", Lane.DURABLE, "d", 0, n / 256, 3600.0) for n in range(8)]
    chat = [SimulatedJob(f"i{n}", Lane.INTERACTIVE, str(n), 0, 1 + n / 256, 60.0) for n in range(20)]
    workload = Workload((*durable, *chat), {"d": 60.0} | {str(n): 60.0 for n in range(20)})
    episodes = [episode for episode in judged(workload, Limits()).episodes() if episode.both_lanes]
    assert len(episodes) == 20
    assert max(episode.used for episode in episodes) <= 1


@MODERATE
@given(st.sampled_from(Lane).flatmap(lambda lane: workloads(lanes=[lane])), LimitsUsed)
def test_an_overdue_line_of_the_only_lane_starts_within_its_bound(workload: Workload, limits: Limits) -> None:
    """Design: W = the running job + the rest of the visit + one visit of each line that was late before."""
    worst = 0.0
    for episode in judged(workload, limits).episodes():
        assert not episode.both_lanes
        assert episode.waited <= episode.bound, episode
        worst = max(worst, episode.used)
    target(worst)
    event("something was overdue" if worst else "nothing was overdue")


@MODERATE
@given(workloads(), LimitsUsed)
def test_the_target_is_never_idle_while_a_job_waits(workload: Workload, limits: Limits) -> None:
    """Work conservation: a job starts at its arrival, or exactly when another one ends."""
    runs = judged(workload, limits).runs
    ends = {run.ended_at for run in runs}
    for run in runs:
        assert run.started_at == run.job.arrives_at or run.started_at in ends
    for run, after in pairwise(runs):
        if run.ended_at < after.started_at:
            assert all(
                other.started_at <= run.started_at or other.job.arrives_at >= after.started_at
                for other in runs
            )


@MODERATE
@given(workloads(), LimitsUsed)
def test_a_line_runs_by_priority_then_by_arrival(workload: Workload, limits: Limits) -> None:
    """Rule 3. Only the first job of a visit won by being overdue is the longest-waiting one instead."""
    judge = judged(workload, limits)
    for run in judge.runs:
        waiting = judge.waiting(run.job.lane, run.job.model, run.started_at)
        if run.why is Why.OVERDUE:
            assert run.job == min(waiting, key=lambda job: job.arrives_at)
        else:
            assert run.job == min(waiting, key=lambda job: (-job.priority, job.arrives_at))


NEVER_OVERDUE = Limits(interactive_max_wait=1e6, durable_max_wait=1e6)


@MODERATE
@given(workloads(at_once=True))
def test_what_waits_at_the_start_is_drained_with_one_swap_for_each_model(workload: Workload) -> None:
    """With nothing overdue before the end, both lanes drain each model before the next one is loaded."""
    runs = judged(workload, NEVER_OVERDUE).runs
    assert sum(run.swap for run in runs) == len({job.model for job in workload.jobs})


@MODERATE
@given(st.sampled_from(Lane).flatmap(lambda lane: workloads(lanes=[lane], at_once=True)), LimitsUsed)
def test_only_visits_that_ended_by_time_cost_a_swap_more(workload: Workload, limits: Limits) -> None:
    """With everything waiting at the start: at most one swap for each model, and one for each such visit."""
    judge = judged(workload, limits)
    by_time = sum(visit.by_time for visit in judge.visits)
    swaps = sum(run.swap for run in judge.runs)
    event(f"visits that ended by time: {min(by_time, 3)}")
    assert swaps <= len({job.model for job in workload.jobs}) + by_time
