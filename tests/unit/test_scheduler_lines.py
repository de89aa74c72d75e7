"""Lines: grouping, order, removal, and keys made when they are asked for."""

import random

import pytest

from foreman.scheduler.keys import ModelKey
from foreman.scheduler.lines import Lines, join
from foreman.scheduler.policy import Candidate, Lane

DURABLE = Lane.DURABLE


def key(name: str | None) -> ModelKey:
    """Names that share their first letter share their weights."""
    return ModelKey(frozenset({str(name)[0]}))


def job(job_id: str, order: int, priority: int = 0) -> Candidate:
    return Candidate(job_id, priority, float(order), order)


def test_names_of_one_key_are_one_line_with_the_best_head_and_the_oldest_job_of_all() -> None:
    """Two names of the same weights drain together, as if they were one."""
    lines = Lines()
    lines.add("a1", job("old", 1))
    lines.add("a2", job("urgent", 2, priority=1))
    lines.add("a1", job("urgent too", 3, priority=1))
    lines.add("a3", job("last", 5))
    (line,) = join(DURABLE, lines.lines(), key, {})
    assert (line.lane, line.key) == (DURABLE, key("a"))
    assert (line.head.job_id, line.oldest.job_id) == ("urgent", "old")


def test_a_line_knows_the_end_of_its_last_visit() -> None:
    """It is given by lane and key."""
    lines = Lines()
    lines.add("a", job("1", 1))
    ends = {(DURABLE, key("a")): 7.0}
    assert [join(lane, lines.lines(), key, ends)[0].last_visit_ended_at for lane in Lane] == [None, 7.0]


def test_any_waiting_job_can_be_removed() -> None:
    """The heads are those of what is left, in every order of removal; nothing is left of an empty line."""
    dice = random.Random(3)
    for _ in range(50):
        lines = Lines()
        jobs = [job(str(number), number, dice.choice([0, 0, 1])) for number in range(12)]
        for each in jobs:
            lines.add("a", each)
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
    lines.add("a", job("1", 1))
    with pytest.raises(ValueError, match="job 1 waits already"):
        lines.add("b", job("1", 2))
    assert lines.count == 1
