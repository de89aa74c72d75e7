"""Lines: grouping, order, removal, and keys made when they are asked for."""

import random

import pytest

from foreman.scheduler.keys import ModelKey, Wanted
from foreman.scheduler.lines import Lines, join
from foreman.scheduler.policy import Candidate, Lane

DURABLE = Lane.DURABLE


A = Wanted("a")


def key(wanted: Wanted | None) -> ModelKey:
    """Names that share their first letter share their weights."""
    return ModelKey(frozenset({"" if wanted is None else wanted.model[0]}))


def job(job_id: str, order: int, priority: int = 0) -> Candidate:
    return Candidate(job_id, priority, float(order), order)


def test_names_of_one_key_are_one_line_with_the_best_head_and_the_oldest_job_of_all() -> None:
    """Two names of the same weights drain together, as if they were one."""
    lines = Lines()
    lines.add(Wanted("a1"), job("old", 1))
    lines.add(Wanted("a2"), job("urgent", 2, priority=1))
    lines.add(Wanted("a1"), job("urgent too", 3, priority=1))
    lines.add(Wanted("a3"), job("last", 5))
    (line,) = join(DURABLE, lines.lines(), key, {})
    assert (line.lane, line.key) == (DURABLE, key(A))
    assert (line.head.job_id, line.oldest.job_id) == ("urgent", "old")


def test_a_line_knows_the_end_of_its_last_visit() -> None:
    """It is given by lane and key."""
    lines = Lines()
    lines.add(A, job("1", 1))
    ends = {(DURABLE, key(A)): 7.0}
    assert [join(lane, lines.lines(), key, ends)[0].last_visit_ended_at for lane in Lane] == [None, 7.0]


def test_any_waiting_job_can_be_removed() -> None:
    """The heads are those of what is left, in every order of removal; nothing is left of an empty line."""
    dice = random.Random(3)
    for _ in range(50):
        lines = Lines()
        jobs = [job(str(number), number, dice.choice([0, 0, 1])) for number in range(12)]
        for each in jobs:
            lines.add(A, each)
        left = list(jobs)
        dice.shuffle(jobs)
        for each in jobs:
            lines.remove(each.job_id)
            left.remove(each)
            assert lines.count == len(left)
            found = [(line.head, line.oldest) for line in lines.lines()]
            assert found == ([(min(left, key=lambda j: j.rank), left[0])] if left else [])


def test_a_job_waits_once() -> None:
    """The same id twice would lose one of the two."""
    lines = Lines()
    lines.add(A, job("1", 1))
    with pytest.raises(ValueError, match="job 1 waits already"):
        lines.add(Wanted("b"), job("1", 2))
    assert lines.count == 1


INTERACTIVE = Lane.INTERACTIVE


def head(lines: Lines) -> str:
    (line,) = join(INTERACTIVE, lines.lines(), key, {})
    return line.head.job_id


def test_callers_take_turns() -> None:
    """Who was served longest ago goes next, with its oldest job: 200 of one do not make the other wait."""
    lines = Lines()
    for number in range(200):
        lines.add(A, job(f"script {number}", number), "script")
    lines.add(A, job("person 0", 200), "person")
    lines.add(A, job("person 1", 201), "person")
    served = []
    for _ in range(5):
        served.append(head(lines))
        lines.serve(served[-1])
    assert served == ["script 0", "person 0", "script 1", "person 1", "script 2"]


def test_priority_goes_before_the_turns_of_the_callers() -> None:
    """Callers take turns within a priority only."""
    lines = Lines()
    lines.add(A, job("low", 1, priority=-1), "person")
    for number in range(3):
        lines.add(A, job(f"script {number}", 2 + number), "script")
    for expected in ("script 0", "script 1", "script 2", "low"):
        assert head(lines) == expected
        lines.serve(expected)


def test_a_caller_who_comes_back_at_once_is_behind_everybody() -> None:
    """Coming with one job at a time is no way to the front; a caller with nothing waiting is forgotten."""
    lines = Lines()
    lines.add(A, job("x 0", 0), "x")
    lines.add(A, job("y 0", 1), "y")
    lines.serve("x 0")
    lines.add(A, job("x 1", 2), "x")
    lines.add(A, job("z 0", 3), "z")
    for expected in ("y 0", "x 1", "z 0"):
        assert head(lines) == expected
        lines.serve(expected)
    assert not lines._groups
    assert not lines._places


def test_a_job_that_leaves_costs_its_caller_no_turn() -> None:
    """Only what got the turn counts as served."""
    lines = Lines()
    lines.add(A, job("x 0", 0), "x")
    lines.add(A, job("x 1", 1), "x")
    lines.add(A, job("y 0", 2), "y")
    lines.remove("x 0")
    assert head(lines) == "x 1"


def test_callers_take_turns_over_all_names_of_a_key() -> None:
    """Two names of one model are no second place in the rotation."""
    lines = Lines()
    for number in range(4):
        lines.add(Wanted(f"a{number % 2}"), job(f"script {number}", number), "script")
    lines.add(Wanted("a1"), job("person 0", 4), "person")
    lines.add(Wanted("a1"), job("person 1", 5), "person")
    served = []
    for _ in range(5):
        served.append(head(lines))
        lines.serve(served[-1])
    assert served == ["script 0", "person 0", "script 1", "person 1", "script 2"]


def test_callers_do_not_take_turns_in_the_durable_lane() -> None:
    """Names of one key are ordered by priority and age alone."""
    lines = Lines()
    lines.add(Wanted("a1"), job("1", 1))
    lines.add(Wanted("a1"), job("3", 3))
    lines.serve("1")
    lines.add(Wanted("a2"), job("4", 4))
    (line,) = join(DURABLE, lines.lines(), key, {})
    assert (line.head.job_id, line.count, line.wanted) == ("3", 2, (Wanted("a1"), Wanted("a2")))


def test_random_coming_and_going_keeps_the_order_of_a_plain_model() -> None:
    """Against a list of everything that waits, with each caller's last turn beside it."""
    dice = random.Random(7)
    for _ in range(200):
        lines, waiting, seats = Lines(), dict[str, tuple[str, int]](), dict[tuple[str, int], int]()
        for number in range(60):
            if waiting and dice.random() < 0.5:
                served = head(lines)
                caller, priority = waiting[served]
                best = max(p for _, p in waiting.values())
                turns = {c: seats[c, p] for c, p in waiting.values() if p == best}
                assert (priority, caller) == (best, min(turns, key=lambda c: turns[c]))
                assert served == min((j for j, w in waiting.items() if w == (caller, priority)), key=int)
                gone = served if dice.random() < 0.7 else dice.choice(list(waiting))
                caller = waiting.pop(gone)[0]
                if gone == served:
                    lines.serve(gone)
                    seats |= {(c, p): number for c, p in seats if c == caller}
                else:
                    lines.remove(gone)
            else:
                caller, priority = dice.choice("xyz"), dice.choice([0, 0, -1])
                lines.add(A, job(str(number), number, priority), caller)
                waiting[str(number)] = (caller, priority)
                seats.setdefault((caller, priority), number)
            seats = {place: turn for place, turn in seats.items() if place in waiting.values()}
