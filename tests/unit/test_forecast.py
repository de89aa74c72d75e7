"""The forecast: the policy played forward by lines tells what a play by single jobs comes to."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from math import ceil

import pytest
from attrs import evolve, field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from foreman.scheduler.forecast import Forecast, Place, Running, Scene, forecast
from foreman.scheduler.keys import ModelKey
from foreman.scheduler.ledger import Ledger
from foreman.scheduler.policy import Candidate, Choice, Lane, Limits, Line, Visit, choose
from foreman.scheduler.visits import Visits

CHAT, BATCH = Lane.INTERACTIVE, Lane.DURABLE
A, B, Z = (ModelKey(frozenset({name})) for name in "abz")
LIMITS = Limits()
NOW = 10_000.0


@frozen
class Expected:
    """Estimates that are the same for all keys but those that are named."""

    run: float = 10.0
    load: float = 5.0
    runs: Mapping[ModelKey, float] = field(factory=dict)
    interactive_share: float = 0.0

    def run_seconds(self, lane: Lane, key: ModelKey) -> float:
        """Seconds of a job."""
        return self.runs.get(key, self.run)

    def load_seconds(self, key: ModelKey) -> float:
        """Seconds of a load."""
        return self.load


def line(lane: Lane, key: ModelKey, count: int, waited: float, order: int = 0, **more: float) -> Line:
    """A line whose head is also its oldest job."""
    job = Candidate(f"{key}-{order}", 0, NOW - waited, order)
    return Line(lane, key, job, job, count=count, last_visit_ended_at=more.get("ended_at"))


def scene(*lines: Line, **more: object) -> Scene:
    """A scene with nothing loaded and nothing that runs."""
    nothing = Scene(dict.fromkeys(Lane, NOW), lines, (), (), {}, 0.0, LIMITS)
    return evolve(nothing, **more)


def test_next_to_start() -> None:
    """With nothing before it, a job starts now; its own load is ahead of it."""
    assert forecast(scene(line(BATCH, A, 1, 0)), Place(BATCH, A, 0), Expected()) == Forecast(0, 1, 0.0)
    loaded = scene(line(BATCH, A, 1, 0), residents=[A])
    assert forecast(loaded, Place(BATCH, A, 0), Expected()) == Forecast(0, 0, 0.0)


def test_within_its_line_the_jobs_ahead_are_exact() -> None:
    """Seven before it, one load, ten seconds each."""
    found = forecast(scene(line(BATCH, A, 20, 60)), Place(BATCH, A, 7), Expected())
    assert found == Forecast(7, 1, pytest.approx(75.0))


def test_whole_lines_go_before() -> None:
    """A line that is older runs to its end first, and costs its load."""
    two = scene(line(BATCH, A, 30, 90), line(BATCH, B, 5, 60, order=1))
    assert forecast(two, Place(BATCH, B, 2), Expected()) == Forecast(32, 2, pytest.approx(5 + 300 + 5 + 20))


def test_the_running_job_is_reckoned_with() -> None:
    """What it is expected to take, less what it has taken; and then its key is loaded."""
    running = [Running(BATCH, A, 4.0, swap=False)]
    busy = scene(line(BATCH, A, 3, 60), running=running, visits={BATCH: Visit(A, 4.0)})
    assert forecast(busy, Place(BATCH, A, 1), Expected()) == Forecast(1, 0, pytest.approx(16, rel=0.1))


def test_a_job_that_runs_longer_than_expected_goes_on() -> None:
    """The longer it has run, the longer its rest: never zero."""
    rests = []
    for held in (5.0, 40.0, 400.0):
        busy = scene(line(BATCH, A, 1, 60), running=[Running(BATCH, A, held, swap=False)])
        rests.append(forecast(busy, Place(BATCH, A, 0), Expected()).start_in_seconds)
    assert 0 < rests[0] < rests[1] < rests[2] < 400


def test_a_visit_ends_by_time_when_another_line_is_overdue() -> None:
    """400 jobs of 30 s for two models, all overdue: visits of ten minutes in turn, of 20 jobs each."""
    limits = evolve(LIMITS, durable_max_wait=0.0)
    both = scene(line(BATCH, A, 200, 1), line(BATCH, B, 200, 1, order=1), limits=limits)
    found = forecast(both, Place(BATCH, B, 199), Expected(run=30.0, load=14.0))
    assert found == Forecast(399, 20, pytest.approx(399 * 30 + 20 * 14))


def test_a_chat_of_another_model_waits_until_it_is_overdue() -> None:
    """Batch jobs of one second go on for the five seconds of the bound, and one more load comes."""
    mixed = scene(line(BATCH, A, 500, 60), line(CHAT, B, 1, 0, order=1), residents=[A])
    found = forecast(mixed, Place(CHAT, B, 0), Expected(run=1.0))
    assert found == Forecast(5, 1, pytest.approx(5.0))


def test_chats_to_come_stretch_a_batch() -> None:
    """They took half of the time lately: a batch job waits twice as long. A chat does not."""
    lines = scene(line(BATCH, A, 100, 60), residents=[A])
    alone = forecast(lines, Place(BATCH, A, 50), Expected())
    beside = forecast(lines, Place(BATCH, A, 50), Expected(interactive_share=0.5))
    assert beside.start_in_seconds == pytest.approx(2 * alone.start_in_seconds)
    limits = evolve(LIMITS, durable_max_wait=0.0)
    rounds = scene(line(BATCH, A, 5000, 1), line(BATCH, B, 5000, 1, order=1), limits=limits)
    alone = forecast(rounds, Place(BATCH, B, 4000), Expected())
    beside = forecast(rounds, Place(BATCH, B, 4000), Expected(interactive_share=0.5))
    assert beside.start_in_seconds == pytest.approx(2 * alone.start_in_seconds)
    chats = scene(line(CHAT, A, 100, 60), residents=[A])
    for share in (0.0, 0.5):
        found = forecast(chats, Place(CHAT, A, 50), Expected(interactive_share=share))
        assert found.start_in_seconds == pytest.approx(500)


def test_asking_changes_nothing() -> None:
    """A forecast is a pure function: the scene is as before, the visits of the real turn among it."""
    visits = {BATCH: Visit(A, 599.0)}
    given_scene = scene(
        line(BATCH, A, 300, 7200), line(BATCH, B, 300, 7200, order=1), line(CHAT, B, 3, 60), visits=visits
    )
    before = deepcopy(given_scene)
    forecast(given_scene, Place(BATCH, B, 200), Expected())
    assert given_scene == before


def test_width_shares_the_time() -> None:
    """With four at once, a line is worked off four times as fast."""
    wide = scene(line(BATCH, A, 100, 60), residents=[A], width=4)
    assert forecast(wide, Place(BATCH, A, 40), Expected()).start_in_seconds == pytest.approx(100)


def by_single_jobs(given: Scene, place: Place, expected: Expected) -> Forecast:
    """The same, one job after the other: the policy, the visits and the ledger, and nothing clever.

    All jobs of a line are as old as its oldest, which the lines of the tests below make true.
    """
    lines = {(line.lane, line.key): line for line in given.lines}
    visits, ledger = Visits(), Ledger(given.limits)
    visits.current = dict(given.visits)
    residents: Sequence[ModelKey] = list(given.residents)
    seconds, ahead, jobs, swaps = 0.0, place.ahead, 0, 0
    while True:
        waiting = [
            evolve(line, last_visit_ended_at=visits.last_ended_at.get(at, line.last_visit_ended_at))
            for at, line in lines.items()
        ]
        visits.look(waiting, ())
        now = {lane: moment + seconds for lane, moment in given.now.items()}
        choice = choose(waiting, residents, visits.current, now, ledger.owed_durable(), given.limits)
        assert choice is not None
        at = (choice.lane, choice.key)
        swap = choice.key not in residents
        if at == (place.lane, place.key):
            if not ahead:
                return Forecast(jobs, swaps + swap, seconds)
            ahead -= 1
        visits.granted(choice, now[choice.lane], seconds)
        ledger.begin_run(choice.lane)
        took = expected.run_seconds(*at) + (expected.load if swap else 0.0)
        residents = [choice.key] if swap else residents
        jobs, swaps, seconds = jobs + 1, swaps + swap, seconds + took
        visits.lasted(choice.lane, choice.key, took)
        lines[at] = evolve(lines[at], count=lines[at].count - 1)
        if not lines[at].count:
            del lines[at]
        if any(lane is choice.lane.other for lane, _ in lines):
            ledger.record(choice.lane, took)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Scene, Place, Expected]:
    """Lines of one lane, all of whose jobs are long overdue or not overdue before the end."""
    keys = [ModelKey(frozenset({name})) for name in "abcde"[: draw(st.integers(1, 5))]]
    late = draw(st.booleans())
    visit = draw(st.sampled_from([0.0, 30.0, 600.0]))
    limits = Limits(durable_max_wait=0.0 if late else 1e9, durable_visit=visit)
    lines = [
        line(BATCH, key, draw(st.integers(1, 60)), 100.0 - order, order) for order, key in enumerate(keys)
    ]
    runs = {key: float(draw(st.integers(1, 60))) for key in keys}
    at = draw(st.integers(0, len(keys) - 1))
    place = Place(BATCH, keys[at], draw(st.integers(0, lines[at].count - 1)))
    residents = draw(st.sampled_from([(), tuple(keys[:1])]))
    given_scene = scene(*lines, limits=limits, residents=residents)
    return given_scene, place, Expected(load=float(draw(st.integers(1, 40))), runs=runs)


@settings(max_examples=100, deadline=None)
@given(scenes())
def test_it_comes_to_the_same_as_single_jobs(case: tuple[Scene, Place, Expected]) -> None:
    """Jobs, swaps and seconds, with visits that end by time and rounds that are passed over."""
    wanted = by_single_jobs(*case)
    found = forecast(*case)
    assert found.jobs_ahead == wanted.jobs_ahead
    assert found.swaps_ahead == wanted.swaps_ahead
    assert found.start_in_seconds == pytest.approx(wanted.start_in_seconds)


@settings(max_examples=50, deadline=None)
@given(scenes(), st.integers(1, 40), st.integers(1, 30))
def test_chats_beside_a_batch_are_near_to_single_jobs(
    case: tuple[Scene, Place, Expected], chats: int, run_seconds: int
) -> None:
    """With two lanes a step is a bit coarser than a job: the start is within a visit, a load and two jobs."""
    batch, place, expected = case
    mixed = evolve(batch, lines=(*batch.lines, line(CHAT, Z, chats, 0, order=9)))
    expected = evolve(expected, runs={**expected.runs, Z: float(run_seconds)})
    wanted, found = by_single_jobs(mixed, place, expected), forecast(mixed, place, expected)
    slack = mixed.limits.durable_visit + 2 * (expected.load + max(expected.runs.values())) * len(mixed.lines)
    assert abs(found.start_in_seconds - wanted.start_in_seconds) <= slack + 0.1 * wanted.start_in_seconds


def test_a_million_jobs_take_few_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 20 lines, all overdue: rounds of visits are passed over. The last job of all starts last."""
    choices = []

    def counted(*values: object) -> Choice | None:
        choices.append(values)
        return choose(*values)  # type: ignore[arg-type]

    monkeypatch.setattr("foreman.scheduler.forecast.choose", counted)
    keys = [ModelKey(frozenset({str(n)})) for n in range(20)]
    lines = [line(BATCH, key, 50_000, 7200.0 - n, n) for n, key in enumerate(keys)]
    found = forecast(scene(*lines), Place(BATCH, keys[-1], 49_999), Expected(run=1.0))
    assert len(choices) < 400
    assert found.jobs_ahead == 999_999
    # A visit of 600 s has 595 jobs after a load of 5 s.
    assert found.swaps_ahead == pytest.approx(1_000_000 / 595, rel=0.02)
    assert found.start_in_seconds == 999_999 + 5 * found.swaps_ahead


def test_a_place_in_a_far_future_is_extrapolated() -> None:
    """Chats and batch jobs that alternate for ever: the pace so far goes on."""
    limits = evolve(LIMITS, interactive_share=0.5)
    lines = [line(CHAT, A, 100_000, 60), line(BATCH, B, 100_000, 7200.0, order=1)]
    found = forecast(scene(*lines, limits=limits), Place(BATCH, B, 50_000), Expected())
    assert ceil(found.start_in_seconds) >= 500_000
    assert found.jobs_ahead >= 50_000
