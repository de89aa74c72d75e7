"""A 202 means that the job is on disk and will be done: seen by killing the daemon while it works."""

from pathlib import Path

import pytest
from kill import kill_often

KILLS = 8


@pytest.mark.timeout(180)
def test_every_acknowledged_job_ends_once_through_many_kills(tmp_path: Path) -> None:
    """
    After `kill -9` at random moments the database is whole and holds every acknowledged job.

    At the end each has succeeded with its own text, and the outbox tells of one end.
    """
    report = kill_often(KILLS, tmp_path, seed=4, limit_seconds=90)
    assert report.damaged == []
    assert report.missing == []
    assert report.finished_twice == []
    assert report.unfinished == []
    assert report.wrong == []
    assert report.refused == []
    # It was a test of something: jobs were promised, and the kills fell into runs.
    assert report.acknowledged > 2 * KILLS
    assert report.interruptions > 0
    assert len(report.ready_seconds) == KILLS + 1
