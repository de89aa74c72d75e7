"""The policy's rules, one by one, as tables of lines and what goes next."""

import pytest
from attrs import evolve

from foreman.scheduler.keys import ModelKey
from foreman.scheduler.policy import Candidate, Choice, Lane, Limits, Line, Visit, Why, choose, overdue_since

INTERACTIVE, DURABLE = Lane.INTERACTIVE, Lane.DURABLE
A, B, C = (ModelKey(frozenset({name})) for name in "abc")
NOW = 10_000.0
LIMITS = Limits()
FRESH, LATE = 1.0, 4000.0  # seconds waited: within both bounds, and past both


def line(lane: Lane, key: ModelKey, waited: float = FRESH, ended_ago: float | None = None) -> Line:
    """A line of one job that has waited so many seconds."""
    job = Candidate(f"{lane.value}-{''.join(key.weights)}", 0, NOW - waited, 0)
    return Line(lane, key, job, job, None if ended_ago is None else NOW - ended_ago)


def chosen(
    lines: list[Line],
    residents: set[ModelKey] = frozenset(),  # type: ignore[assignment]
    visits: dict[Lane, Visit] | None = None,
    durable_owed: bool = False,
    limits: Limits = LIMITS,
    held: ModelKey | None = None,
    won: tuple[Lane, ModelKey] | None = None,
) -> Choice:
    choice = choose(lines, residents, visits or {}, dict.fromkeys(Lane, NOW), durable_owed, limits, held, won)
    assert choice is not None
    return choice


def test_nothing_waits() -> None:
    """With no line there is nothing to choose."""
    assert choose([], {A}, {INTERACTIVE: Visit(A, 1.0)}, dict.fromkeys(Lane, NOW), True, LIMITS) is None


@pytest.mark.parametrize(
    ("waited", "residents", "visits", "lane"),
    [
        pytest.param(FRESH, set(), {}, DURABLE, id="neither in its visit, resident nor overdue"),
        pytest.param(4.9, set(), {}, DURABLE, id="just within its bound"),
        pytest.param(5.0, set(), {}, INTERACTIVE, id="overdue"),
        pytest.param(FRESH, {A}, {}, INTERACTIVE, id="resident"),
        pytest.param(FRESH, set(), {INTERACTIVE: Visit(A, 99.0)}, INTERACTIVE, id="in its visit"),
        pytest.param(FRESH, {B}, {}, DURABLE, id="only the durable line is resident"),
        pytest.param(FRESH, set(), {INTERACTIVE: Visit(C, 0.0)}, DURABLE, id="the visit is of another line"),
        pytest.param(FRESH, set(), {DURABLE: Visit(A, 0.0)}, DURABLE, id="the visit is of the other lane"),
    ],
)
def test_rule_1_interactive_goes_first_if_it_is_pressed_or_cheap(
    waited: float, residents: set[ModelKey], visits: dict[Lane, Visit], lane: Lane
) -> None:
    """Interactive, if one of its lines is in its visit, resident or overdue; else durable, if it has work."""
    lines = [line(INTERACTIVE, A, waited), line(DURABLE, B, LATE)]
    assert chosen(lines, residents, visits).lane is lane


@pytest.mark.parametrize(
    ("waited", "residents", "visits", "lane"),
    [
        pytest.param(FRESH, set(), {}, INTERACTIVE, id="neither in its visit, resident nor overdue"),
        pytest.param(3599.0, set(), {}, INTERACTIVE, id="just within its bound"),
        pytest.param(3600.0, set(), {}, DURABLE, id="overdue"),
        pytest.param(FRESH, {B}, {}, DURABLE, id="resident"),
        pytest.param(FRESH, set(), {DURABLE: Visit(B, 700.0)}, DURABLE, id="in its visit"),
        pytest.param(FRESH, {A}, {}, INTERACTIVE, id="only the interactive line is resident"),
    ],
)
def test_rule_1_is_the_other_way_round_while_the_durable_lane_is_owed(
    waited: float, residents: set[ModelKey], visits: dict[Lane, Visit], lane: Lane
) -> None:
    """Durable, if one of its lines is in its visit, resident or overdue; else interactive, if it has work."""
    lines = [line(INTERACTIVE, A, LATE), line(DURABLE, B, waited)]
    assert chosen(lines, residents, visits, durable_owed=True).lane is lane


@pytest.mark.parametrize("lane", Lane)
@pytest.mark.parametrize("durable_owed", [False, True])
def test_rule_1_the_only_lane_with_work_gets_the_slot(lane: Lane, durable_owed: bool) -> None:
    """A lane with nothing waiting never holds the other one up."""
    assert chosen([line(lane, A)], durable_owed=durable_owed).lane is lane


@pytest.mark.parametrize("lane", Lane)
def test_rule_2_the_visit_goes_on_however_late_the_others_are(lane: Lane) -> None:
    """Until its time is up, a visit keeps the turn of its lane."""
    lines = [line(lane, A), line(lane, B, LATE), line(lane, C)]
    time = LIMITS.visit(lane)
    choice = chosen(lines, {C}, {lane: Visit(A, time - 0.1)})
    assert (choice.key, choice.why, choice.begins_visit) == (A, Why.VISIT, False)


@pytest.mark.parametrize("lane", Lane)
def test_rule_2_a_visit_yields_when_its_time_is_up_and_another_line_is_overdue(lane: Lane) -> None:
    """The line whose visit ends is not chosen again, though it be late for longer."""
    lines = [line(lane, A, 2 * LATE), line(lane, B, LATE)]
    choice = chosen(lines, {A}, {lane: Visit(A, LIMITS.visit(lane))})
    assert (choice.key, choice.why, choice.begins_visit, choice.overdue) == (B, Why.OVERDUE, True, True)


@pytest.mark.parametrize("lane", Lane)
def test_rule_2_a_visit_goes_on_past_its_time_while_no_other_line_of_its_lane_is_overdue(lane: Lane) -> None:
    """Late lines of the other lane do not end it."""
    lines = [line(lane, A, LATE), line(lane, B), line(lane.other, C, LATE)]
    choice = chosen(lines, set(), {lane: Visit(A, 1e6)}, durable_owed=lane is DURABLE)
    assert (choice.key, choice.why) == (A, Why.VISIT)


def test_rule_2_the_longest_overdue_line_wins_before_a_resident_one() -> None:
    """Overdue before resident, and among the overdue the one that is so for longest."""
    lines = [line(INTERACTIVE, A, 6), line(INTERACTIVE, B, 9), line(INTERACTIVE, C, 1)]
    assert chosen(lines, {A, C}).key == B


def test_rule_2_a_line_is_overdue_since_the_end_of_its_last_visit() -> None:
    """So two lines with old jobs do not starve a third: B's jobs are older, but it had its visit."""
    lines = [line(INTERACTIVE, A, 9), line(INTERACTIVE, B, 900, ended_ago=2)]
    assert overdue_since(lines[0], LIMITS) == NOW - 4
    assert overdue_since(lines[1], LIMITS) == NOW - 2
    assert chosen(lines).key == A


def test_rule_2_a_resident_line_wins_before_the_best_head() -> None:
    """With nothing late, what needs no load goes first, though another job has waited longer."""
    lines = [line(INTERACTIVE, A, 4), line(INTERACTIVE, B, 1)]
    choice = chosen(lines, {B})
    assert (choice.key, choice.why, choice.begins_visit) == (B, Why.RESIDENT, True)


def test_rule_2_else_the_best_head_wins() -> None:
    """By priority, then by age."""
    young, old = line(INTERACTIVE, A, 1), line(INTERACTIVE, B, 4)
    assert (chosen([young, old]).key, chosen([young, old]).why) == (B, Why.HEAD)
    urgent = evolve(young, head=evolve(young.head, priority=1))
    assert chosen([urgent, old]).key == A


@pytest.mark.parametrize(
    ("visits", "waited", "job_id"),
    [
        pytest.param({}, 1.0, "urgent", id="a visit won by the best head"),
        pytest.param({}, 6.0, "oldest", id="the first job of a visit won by being overdue"),
        pytest.param({INTERACTIVE: Visit(A, 1.0)}, 6.0, "urgent", id="a later job of such a visit"),
    ],
)
def test_rule_3_the_best_job_of_the_line(visits: dict[Lane, Visit], waited: float, job_id: str) -> None:
    """By priority, then age; but the longest-waiting one first where the line won by being overdue."""
    head = Candidate("urgent", 5, NOW - 0.5, 1)
    oldest = Candidate("oldest", 0, NOW - waited, 0)
    assert chosen([Line(INTERACTIVE, A, head, oldest)], set(), visits).job_id == job_id


def test_jobs_of_one_instant_go_in_the_order_of_their_arrival() -> None:
    """Age ties are broken by the order of arrival, between lines too."""
    one, two = Candidate("first", 0, NOW, 1), Candidate("second", 0, NOW, 2)
    first, second = Line(INTERACTIVE, B, one, one), Line(INTERACTIVE, A, two, two)
    assert chosen([second, first]).job_id == "first"
    both_late = evolve(LIMITS, interactive_max_wait=0.0)
    assert chosen([second, first], limits=both_late).job_id == "first"


def test_with_a_place_beside_running_jobs_their_key_counts_as_resident() -> None:
    """Its first byte may not have come: what wants it shares the load."""
    lines = [line(INTERACTIVE, A, 1), line(INTERACTIVE, B, 4)]
    assert chosen(lines, held=A).key == A
    assert chosen(lines, held=None).key == B


def test_a_line_that_has_won_is_chosen_again_while_the_others_run() -> None:
    """Whatever comes meanwhile: a resident line, one in its visit, or one that is overdue."""
    lines = [line(INTERACTIVE, A, LATE), line(DURABLE, B, FRESH), line(INTERACTIVE, C, LATE)]
    visits = {INTERACTIVE: Visit(A, 1.0), DURABLE: Visit(B, 0.0, won_by=Why.HEAD)}
    choice = chosen(lines, {A}, visits, held=A, won=(DURABLE, B))
    assert (choice.lane, choice.key, choice.why) == (DURABLE, B, Why.HEAD)
    interrupted = {DURABLE: Visit(B, 5.0)}
    assert chosen(lines, {A}, interrupted, held=A, won=(DURABLE, B)).why is Why.VISIT


def test_a_line_that_has_won_and_is_empty_holds_nobody_up() -> None:
    """Its jobs have left: the place is anybody's again."""
    assert chosen([line(INTERACTIVE, A)], held=A, won=(DURABLE, B)).key == A


def test_a_visit_that_was_won_gets_its_first_job_before_it_can_be_over() -> None:
    """Also when a visit's time is 0, and it is won by what it was won by: the longest-waiting job first."""
    limits = evolve(LIMITS, durable_visit=0.0)
    lines = [line(DURABLE, A, 2 * LATE), line(DURABLE, B, LATE)]
    choice = chosen(lines, set(), {DURABLE: Visit(B, 0.0, won_by=Why.OVERDUE)}, limits=limits)
    assert (choice.key, choice.why, choice.begins_visit, choice.overdue) == (B, Why.OVERDUE, True, True)


def test_a_visit_that_was_only_won_does_not_press_its_lane() -> None:
    """It has loaded nothing yet: the other lane's resident line is not broken off for it."""
    lines = [line(INTERACTIVE, A), line(DURABLE, B, FRESH)]
    for won_by, lane in [(Why.HEAD, INTERACTIVE), (None, DURABLE)]:
        visits = {INTERACTIVE: Visit(A, 1.0), DURABLE: Visit(B, 0.0, won_by=won_by)}
        assert chosen(lines, {A}, visits, durable_owed=True).lane is lane


def test_each_lane_has_its_own_clock() -> None:
    """A line is overdue by the clock of its lane, which stands still while the lane is held back."""
    waits = [line(INTERACTIVE, A, 6.0), line(DURABLE, B, LATE)]
    late = choose(waits, set(), {}, {INTERACTIVE: NOW, DURABLE: NOW - 3000}, True, LIMITS)
    early = choose(waits, set(), {}, {INTERACTIVE: NOW - 3, DURABLE: NOW}, False, LIMITS)
    assert late is not None
    assert early is not None
    assert (late.lane, early.lane) == (INTERACTIVE, DURABLE)
