"""Every event reaches its receiver at least once: seen by killing the daemon while it sends."""

from pathlib import Path

import pytest
from webhook_kill import kill_often


@pytest.mark.timeout(180)
def test_every_event_arrives_through_many_kills(tmp_path: Path) -> None:
    """
    After `kill -9` at random moments each event of each job has come: signed, with the same bytes each time.

    The receivers say 500 now and then. The sequences have no gap, and events first come in their order.
    """
    report = kill_often(120, 6, tmp_path, seed=5, limit_seconds=90)
    assert report.broken == []
    assert report.events >= 3 * report.jobs
    # It was a test of something: some were sent again.
    assert report.requests > report.events
