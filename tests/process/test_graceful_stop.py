"""SIGTERM in the middle of a durable job: it is put back, and the next life runs it to its end."""

import signal
import time
from pathlib import Path

from load import MODELS, Books, Life, Target, ask, free_port, wait_until_all_ended, wrong_jobs
from processes import PATIENCE_SECONDS, until

GRACE_SECONDS = 0.5


def test_a_durable_job_is_put_back_by_a_stop(tmp_path: Path) -> None:
    """The grace is over before the job: it waits again, no attempt is burnt, and nothing failed."""
    port = free_port()
    grace = {"FOREMAN_STOP_GRACE": f"{GRACE_SECONDS}s"}
    with Target() as target:
        target.pace(PATIENCE_SECONDS / 3)
        life = Life.begin(tmp_path, port, target.url, **grace)
        try:
            job = {"endpoint": "/api/generate", "model": MODELS[0], "prompt": "short one"}
            status, answer = ask(port, "POST", "/jobs", job)
            assert status == 202
            job_id = answer["job_id"]
            until(lambda: target.runs == 1, "the job runs")
            began = time.monotonic()
            assert life.stop() == -signal.SIGTERM
            # The job's first token comes after 10 s.
            assert GRACE_SECONDS - 0.1 < time.monotonic() - began < GRACE_SECONDS + 4
        finally:
            life.kill()
        books = Books.read(tmp_path, tmp_path / "copy")
        assert books.integrity == "ok"
        assert books.statuses == {job_id: "queued"}
        assert books.ends == {}
        target.pace(0)
        life = Life.begin(tmp_path, port, target.url, **grace)
        try:
            wait_until_all_ended(port, PATIENCE_SECONDS)
            assert wrong_jobs(port, {job_id: "short one"}) == []
            job = ask(port, "GET", f"/jobs/{job_id}")[1]
            assert (job["attempt"], job["interruptions"], job["errors"]) == (1, 1, [])
            assert life.stop() == -signal.SIGTERM
        finally:
            life.kill()
        assert target.runs == 2
    assert Books.read(tmp_path, tmp_path / "copy").ends == {job_id: 1}
    assert "Traceback" not in (tmp_path / "output.txt").read_text()


def test_a_job_that_ends_within_the_grace_has_ended(tmp_path: Path) -> None:
    """What the grace is for: the job succeeds in this life, and does not run again."""
    port = free_port()
    with Target() as target:
        target.pace(0.3)
        life = Life.begin(tmp_path, port, target.url)
        try:
            job = {"endpoint": "/api/generate", "model": MODELS[0], "prompt": "short one"}
            job_id = ask(port, "POST", "/jobs", job)[1]["job_id"]
            until(lambda: target.runs == 1, "the job runs")
            assert life.stop() == -signal.SIGTERM
        finally:
            life.kill()
    books = Books.read(tmp_path, tmp_path / "copy")
    assert books.statuses == {job_id: "succeeded"}
    assert books.ends == {job_id: 1}
    assert books.interruptions == 0
