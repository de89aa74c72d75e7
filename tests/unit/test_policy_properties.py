"""Properties of the policy, on the real turn: random workloads in a simulation, judged by what it shows.

The judge below knows the rules only as the design states them, as bounds. It shares no code with the policy.
All times of a workload are whole seconds. Each arrival, each moment of leaving and each closing of a lane has
a fraction of its own (a multiple of 2 ** -20, which a float holds exactly): so no two moments coincide by
accident, and sums are exact.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from attrs import evolve, frozen
from hypothesis import HealthCheck, event, given, settings, target
from hypothesis import strategies as st

from foreman.scheduler.policy import Lane, Limits, Why
from foreman.testing.simulation import (
    Closing,
    Cut,
    SimulatedJob,
    SimulatedRun,
    SimulatedStay,
    SimulatedVisit,
    Simulation,
)

MODERATE = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SMALL = Limits(
    interactive_max_wait=5, durable_max_wait=60, interactive_visit=30, durable_visit=90, share_window=120
)
EVEN = evolve(SMALL, interactive_share=0.5, interactive_max_wait=20)
LimitsUsed = st.sampled_from([Limits(), SMALL, EVEN, evolve(SMALL, interactive_visit=0, durable_visit=0)])
FRACTION = 2.0**-20
NEVER = float("inf")


@frozen
class Workload:
    """Jobs by arrival, each model's load, how many jobs share the turn, and when lanes are held back."""

    jobs: tuple[SimulatedJob, ...]
    load_seconds: Mapping[str, float]
    width: int = 1
    closings: tuple[Closing, ...] = ()


@st.composite
def workloads(
    draw: st.DrawFn, lanes: Sequence[Lane] = tuple(Lane), at_once: bool = False, calm: bool = False
) -> Workload:
    """Up to 60 jobs of up to five models that come one by one, in bursts, or (`at_once`) all at the start.

    Unless it is `calm`, jobs are cut and come back, leave while they wait or run, and lanes are shut.
    """
    models = "abcde"[: draw(st.integers(1, 5))]
    load_seconds = {model: float(draw(st.integers(0, 40))) for model in models}
    longest = draw(st.sampled_from([1, 5, 20, 120, 1000]))
    gap = (
        st.just(0)
        if at_once
        else st.one_of(st.just(0), st.integers(0, draw(st.sampled_from([2, 15, 60, 400]))))
    )
    cuts = st.lists(
        st.builds(Cut, st.integers(1, longest).map(float), st.sampled_from([0.0, 0.0, 3.0, 70.0]))
    )
    troubled = not calm and draw(st.booleans())
    jobs: list[SimulatedJob] = []
    arrives_at = 0
    for number in range(draw(st.integers(1, 60))):
        arrives_at += draw(gap)
        leaves_after = draw(st.sampled_from([None, None, None, 1, 4, 30, 200, 2000])) if troubled else None
        jobs.append(
            SimulatedJob(
                job_id=f"job-{number}",
                lane=draw(st.sampled_from(lanes)),
                model=draw(st.sampled_from(models)),
                priority=draw(st.sampled_from([0, 0, 0, 1, -1])),
                arrives_at=float(arrives_at) if at_once else arrives_at + number / 256,
                run_seconds=float(draw(st.integers(1, longest))),
                caller=draw(st.sampled_from(["script", "script", "person", "other"])),
                cuts=tuple(draw(cuts)) if troubled and draw(st.integers(0, 4)) == 0 else (),
                leaves_after=None if leaves_after is None else leaves_after + (number + 1) * FRACTION,
                lowered=draw(st.booleans()),
            )
        )
    jobs.sort(key=lambda job: job.arrives_at)
    closings = draw(shutting(arrives_at + 100)) if not calm and draw(st.booleans()) else ()
    width = 1 if calm else draw(st.integers(1, 4))
    return Workload(tuple(jobs), load_seconds, width, closings)


@st.composite
def shutting(draw: st.DrawFn, until: int) -> tuple[Closing, ...]:
    """Pauses of either lane and the nights between the durable hours; those of one kind do not overlap."""
    closings = []
    for kind, (lane, hours) in enumerate(
        [(Lane.INTERACTIVE, False), (Lane.DURABLE, False), (Lane.DURABLE, True)]
    ):
        moments = sorted(draw(st.lists(st.integers(1, until), max_size=4, unique=True)))
        for number, (begin, end) in enumerate(list(pairwise(moments))[::2]):
            fraction = (100 + 10 * kind + 2 * number) * FRACTION
            closings.append(Closing(lane, begin + fraction, end + fraction + FRACTION, hours))
    return tuple(closings)


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
    """What a simulation of a workload shows about the rules. Waits are on the clocks of the lanes."""

    def __init__(self, workload: Workload, limits: Limits, simulation: Simulation) -> None:
        self.workload, self.limits, self.width = workload, limits, workload.width
        self.runs, self.stays, self.visits = simulation.runs, simulation.stays, simulation.visits
        self.lines: dict[tuple[Lane, str], list[SimulatedStay]] = defaultdict(list)
        for stay in self.stays:
            self.lines[stay.job.lane, stay.job.model].append(stay)
        self.shut = {
            lane: merged((c.begin, c.end) for c in workload.closings if c.lane is lane) for lane in Lane
        }
        self.leaving = any(job.leaves_after is not None for job in workload.jobs)

    def clock(self, lane: Lane, moment: float) -> float:
        """A moment without the time that the lane was shut before."""
        return moment - sum(min(moment, end) - begin for begin, end in self.shut[lane] if begin < moment)

    def open(self, lane: Lane, moment: float) -> bool:
        return not any(begin <= moment < end for begin, end in self.shut[lane])

    def waiting(self, lane: Lane, model: str, moment: float) -> list[SimulatedStay]:
        """What waits in a line at this moment, just before a grant that happens then."""
        return [stay for stay in self.lines[lane, model] if stay.since <= moment <= stay.until]

    def running(self, moment: float) -> list[SimulatedRun]:
        return [run for run in self.runs if run.started_at <= moment < run.ended_at]

    def by_time(self, visit: SimulatedVisit) -> bool:
        """The visit ended while its line waited."""
        line = self.lines[visit.lane, visit.model]
        return any(stay.since <= visit.ended_at < stay.until for stay in line)

    def overdue_since(self, lane: Lane, model: str, moment: float) -> float:
        """Since when the line is overdue, or when it will be, on its lane's clock; never if nothing waits."""
        stays = [stay for stay in self.lines[lane, model] if stay.since <= moment < stay.until]
        if not stays:
            return NEVER
        ends = [
            self.clock(lane, visit.ended_at)
            for visit in self.visits
            if (visit.lane, visit.model) == (lane, model) and visit.ended_at <= moment and self.by_time(visit)
        ]
        oldest = min(self.clock(lane, stay.since) for stay in stays)
        return max(oldest + self.limits.max_wait(lane), *ends, 0.0)

    def moment(self, lane: Lane, on_clock: float) -> float:
        """The last moment at which the lane's clock shows this."""
        for begin, end in self.shut[lane]:
            if begin <= on_clock:
                on_clock += end - begin
        return on_clock

    def at_work(self, lane: Lane, since: float, until: float) -> bool:
        """Something of this lane waited or ran within the interval."""
        waited = any(s.since <= until and s.until >= since for s in self.stays if s.job.lane is lane)
        return waited or any(
            r.started_at <= until and r.ended_at >= since for r in self.runs if r.job.lane is lane
        )

    def longest(self, lane: Lane, model: str) -> float:
        return max(stay.job.longest for stay in self.lines[lane, model])

    def bound(self, lane: Lane, model: str, since: float) -> float:
        """W of the design for a line that is overdue since this moment."""
        running = self.running(since)
        total = max((run.ended_at - since for run in running), default=0.0)
        current = next((v for v in self.visits if v.lane is lane and v.since <= since < v.ended_at), None)
        if current is not None and current.model != model:
            # With one place the rest begins after the running job, with more of them it goes on beside it.
            until = since if self.width > 1 else NEVER
            rest = self.limits.visit(lane) - held_seconds(current.runs, since, until)
            begun = any(run.started_at <= since for run in current.runs)
            if rest > 0 or not begun:
                total += rest + self.longest(lane, current.model)
                if not set(running) & set(current.runs) or self.leaving:  # its model may be loaded once more
                    total += self.workload.load_seconds[current.model]
        for other_lane, other in self.lines:
            in_visit = current is not None and other == current.model
            on_clock = self.clock(lane, since)
            before = other_lane is lane and self.overdue_since(lane, other, since) <= on_clock
            if other != model and before and not in_visit:
                total += self.limits.visit(lane) + self.workload.load_seconds[other]
                total += self.longest(lane, other)
        return total

    def episodes(self) -> Iterator[Episode]:
        """Each time a line was overdue, judged at the start of its visit."""
        longest = max(job.longest for job in self.workload.jobs)
        load = max(self.workload.load_seconds.values())
        for visit in self.visits:
            if not visit.runs:  # it was won beside running jobs, and left or lost before its first job
                continue
            lane, start = visit.lane, visit.runs[0].started_at
            ends = [
                self.clock(lane, v.ended_at)
                for v in self.visits
                if (v.lane, v.model) == (lane, visit.model) and v.ended_at <= start and self.by_time(v)
            ]
            oldest = min(self.clock(lane, stay.since) for stay in self.waiting(lane, visit.model, start))
            on_clock = max(oldest + self.limits.max_wait(lane), *ends, 0.0)
            if on_clock >= self.clock(lane, start):
                continue
            since = self.moment(lane, on_clock)
            bound = self.bound(lane, visit.model, since)
            both_lanes = self.at_work(lane.other, since, start)
            # What runs when the lane is open again was not there when it was shut.
            bound += sum(longest + load for _, end in self.shut[lane] if since < end < start)
            if both_lanes:
                share = self.limits.interactive_share
                share = share if lane is Lane.INTERACTIVE else 1 - share
                bound = (bound + self.limits.share_window + longest + load) / share
            yield Episode(self.clock(lane, start) - on_clock, bound, both_lanes)


def held_seconds(runs: Sequence[SimulatedRun], moment: float, until: float) -> float:
    """For how many seconds those runs held the turn that began by this moment, up to another."""
    spans = merged((r.started_at, min(r.ended_at, until)) for r in runs if r.started_at <= moment)
    return sum(end - begin for begin, end in spans)


def merged(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same spans without overlaps, in order."""
    joined: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def judged(workload: Workload, limits: Limits) -> Judge:
    """Run it, and check what holds of every workload."""
    simulation = Simulation(workload.load_seconds, limits, workload.width, workload.closings)
    simulation.run(workload.jobs)
    judge = Judge(workload, limits, simulation)
    assert simulation.turn.free
    assert simulation.turn.waiting == 0
    lost = {job.job_id for job in workload.jobs} - {run.job.job_id for run in judge.runs}
    for job in workload.jobs:
        refused = (job.lane is Lane.INTERACTIVE or job.lowered) and workload.closings
        assert job.job_id not in lost or job.leaves_after is not None or refused
    for run in judge.runs:
        beside = judge.running(run.started_at)
        assert {other.job.model for other in beside} == {run.job.model}, "never two keys at once"
        assert len(beside) <= workload.width
    return judge


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
def test_the_target_is_never_idle_while_a_job_may_run(workload: Workload, limits: Limits) -> None:
    """Work conservation: what waits in an open lane while nothing runs starts, or leaves, in that instant."""
    judge = judged(workload, limits)
    busy = merged((run.started_at, run.ended_at) for run in judge.runs)
    idle = list(zip([0.0, *(end for _, end in busy)], [*(begin for begin, _ in busy), NEVER], strict=True))
    for stay in judge.stays:
        lane = stay.job.lane
        for begin, end in idle:
            since, until = max(stay.since, begin), min(stay.until, end)
            if since < until:
                assert judge.clock(lane, since) == judge.clock(lane, until)


@MODERATE
@given(workloads(), LimitsUsed)
def test_a_place_is_free_only_while_no_job_of_the_key_waits_or_another_has_won(
    workload: Workload, limits: Limits
) -> None:
    """Width: what wants the key that runs is admitted, unless something of another key waits."""
    judge = judged(workload, limits)
    moments = sorted({m for run in judge.runs for m in (run.started_at, run.ended_at)})
    for moment, after in pairwise(moments):
        running = judge.running(moment)
        if not running or len(running) == workload.width:
            continue
        between = (moment + after) / 2
        waiting = [
            stay.job.model
            for stay in judge.stays
            if stay.since <= between < stay.until and judge.open(stay.job.lane, between)
        ]
        assert running[0].job.model not in waiting or len(set(waiting)) > 1


@MODERATE
@given(workloads(), LimitsUsed)
def test_a_line_runs_by_priority_then_in_turns_of_its_callers(workload: Workload, limits: Limits) -> None:
    """Rule 3. Only the first job of a visit won by being overdue is the longest-waiting one instead.

    Callers take turns in the interactive lane: who was served longest ago goes next, with its oldest job. Who
    has nothing waiting in the line joins behind the others.
    """
    judge = judged(workload, limits)

    def age(stay: SimulatedStay) -> float:
        # What comes while its lane is shut is of one age, and natives and the source's jobs come as they may.
        return judge.clock(stay.job.lane, stay.since)

    for run in judge.runs:
        line, stay = judge.lines[run.job.lane, run.job.model], run.stay
        waiting = [other for other in line if other.came < stay.went <= other.went]
        if run.why is Why.OVERDUE:
            assert age(stay) == min(map(age, waiting))
            continue
        assert run.job.priority == max(other.job.priority for other in waiting)
        best = [other for other in waiting if other.job.priority == run.job.priority]
        if run.job.lane is Lane.INTERACTIVE:
            served = {other.job.caller: served_last(judge, other.job, stay.went) for other in best}
            assert served[run.job.caller] == min(served.values())
            best = [other for other in best if other.job.caller == run.job.caller]
        assert age(stay) == min(map(age, best))


def served_last(judge: Judge, job: SimulatedJob, now: int) -> int:
    """When this caller was last served in the lane, before now, or joined the line, if that was later."""
    stays = [
        (float(stay.came), float(stay.went))
        for stay in judge.lines[job.lane, job.model]
        if (stay.job.caller, stay.job.priority) == (job.caller, job.priority)
    ]
    (joined,) = (begin for begin, end in merged(stays) if begin < now <= end)
    runs = (run for run in judge.runs if (run.job.lane, run.job.caller) == (job.lane, job.caller))
    return int(max([joined, *(run.stay.went for run in runs if joined <= run.stay.went < now)]))


NEVER_OVERDUE = Limits(interactive_max_wait=1e6, durable_max_wait=1e6)


@MODERATE
@given(workloads(at_once=True, calm=True), st.integers(1, 4))
def test_what_waits_at_the_start_is_drained_with_one_swap_for_each_model(
    workload: Workload, width: int
) -> None:
    """With nothing overdue before the end, both lanes drain each model before the next one is loaded.

    With places to share, the second job may win the turn for its model before the rest has come.
    """
    runs = judged(evolve(workload, width=width), NEVER_OVERDUE).runs
    models = len({job.model for job in workload.jobs})
    assert models <= sum(run.swap for run in runs) <= models + (width > 1)


@MODERATE
@given(
    st.sampled_from(Lane).flatmap(lambda lane: workloads(lanes=[lane], at_once=True, calm=True)),
    LimitsUsed,
    st.integers(1, 4),
)
def test_only_visits_that_ended_by_time_cost_a_swap_more(
    workload: Workload, limits: Limits, width: int
) -> None:
    """With everything waiting at the start: at most one swap for each model, and one for each such visit.

    With places to share, the second job may win the turn for its model before the rest has come.
    """
    judge = judged(evolve(workload, width=width), limits)
    by_time = sum(judge.by_time(visit) for visit in judge.visits)
    swaps = sum(run.swap for run in judge.runs)
    event(f"visits that ended by time: {min(by_time, 3)}")
    assert swaps <= len({job.model for job in workload.jobs}) + by_time + (width > 1)
