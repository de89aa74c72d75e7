"""A pause outlives the process: a kill and a new start in between change nothing."""

import time
from pathlib import Path

from load import MODELS, Life, Target, ask, free_port, wait_until_all_ended, wrong_jobs
from processes import PATIENCE_SECONDS, until

CHAT = {"model": MODELS[0], "messages": [{"role": "user", "content": "hi"}]}


def submit(port: int, prompt: str, **job: object) -> str:
    asked = {"endpoint": "/api/generate", **job}
    status, answer = ask(port, "POST", "/jobs", {"model": MODELS[0], "prompt": prompt, "job": asked})
    assert status == 202, answer
    return str(answer["job_id"])


def test_a_restart_changes_nothing(tmp_path: Path) -> None:
    """What was put back waits, callers are refused until the same moment, and the resume goes on."""
    port = free_port()
    with Target() as target:
        target.pace(PATIENCE_SECONDS / 3)
        life = Life.begin(tmp_path, port, target.url)
        try:
            running = submit(port, "short one")
            until(lambda: target.runs == 1, "the job runs")
            status, paused = ask(port, "POST", "/queue/pause", {"for": "1h", "unload": True, "now": True})
            assert (status, sorted(paused["paused"])) == (200, ["durable", "interactive"])
            until(lambda: ask(port, "GET", f"/jobs/{running}")[1]["status"] == "queued", "it is put back")
            life.kill()
            target.pace(0)
            life = Life.begin(tmp_path, port, target.url)
            until(
                lambda: ask(port, "GET", "/queue")[1]["paused"]["durable"]["unload"] == "done",
                "nothing is loaded",
            )
            now = ask(port, "GET", "/queue")[1]["paused"]
            for lane in ("durable", "interactive"):
                assert now[lane]["since"] == paused["paused"][lane]["since"]
                assert now[lane]["until"] == paused["paused"][lane]["until"]
            status, refused = ask(port, "POST", "/api/chat", CHAT)
            assert (status, now["interactive"]["until"] in refused["error"]) == (503, True)
            later = submit(port, "short two")
            assert [ask(port, "GET", f"/jobs/{one}")[1]["status"] for one in (running, later)] == [
                "queued"
            ] * 2
            assert target.runs == 1
            assert ask(port, "POST", "/queue/resume")[1] == {"paused": {}}
            wait_until_all_ended(port, PATIENCE_SECONDS)
            assert wrong_jobs(port, {running: "short one", later: "short two"}) == []
            job = ask(port, "GET", f"/jobs/{running}")[1]
            assert (job["attempt"], job["interruptions"], job["errors"]) == (1, 0, [])
            life.stop()
        finally:
            life.kill()
    assert "Traceback" not in (tmp_path / "output.txt").read_text()


def test_over_while_foreman_was_down(tmp_path: Path) -> None:
    """The pause ends on the clock, and a job's `run_at` comes, whether somebody is there or not."""
    port = free_port()
    with Target() as target:
        life = Life.begin(tmp_path, port, target.url)
        try:
            assert ask(port, "POST", "/queue/pause", {"for": "1s"})[0] == 200
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 1))
            scheduled = submit(port, "short one", run_at=moment)
            life.kill()
            time.sleep(1.0)
            life = Life.begin(tmp_path, port, target.url)
            assert ask(port, "GET", "/queue")[1]["paused"] == {}
            until(lambda: ask(port, "GET", f"/jobs/{scheduled}")[1]["status"] == "succeeded", "it has run")
            assert wrong_jobs(port, {scheduled: "short one"}) == []
            life.stop()
        finally:
            life.kill()
