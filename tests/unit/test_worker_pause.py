"""The worker while its lane is held back: nothing is begun, and what is put back loses nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_hours import zone
from twisted.internet.defer import Deferred
from worker_bench import Bench

from foreman.errors import LanePaused
from foreman.hours import parse_hours
from foreman.scheduler.keys import Wanted
from foreman.scheduler.policy import Lane
from foreman.scheduler.timetable import Timetable

Make = Callable[..., Bench]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    benches: list[Bench] = []

    def build(**given: Any) -> Bench:
        benches.append(Bench(str(tmp_path), **given))
        return benches[-1]

    yield build
    for bench in benches:
        bench.close()


def pause(bench: Bench) -> None:
    bench.turn.pause(Lane.DURABLE, lambda: LanePaused("durable", None, 0.0))


def set_hours(bench: Bench) -> Callable[[bool], None]:
    def changed(within: bool) -> None:
        bench.turn.set_durable_hours(within)
        bench.worker.look()

    return changed


def resume(bench: Bench) -> None:
    bench.turn.resume(Lane.DURABLE)
    bench.worker.look()


def test_nothing_begins(make: Make) -> None:
    """Neither what takes the turn nor what bypasses it; what runs goes on to its end."""
    bench = make(token_interval=1.0)
    running = bench.submit()
    bench.pass_seconds(1)
    pause(bench)
    waiting = [bench.submit(), bench.submit("embed", {"input": "a"})]
    bench.pass_seconds(60)
    assert [bench.status(job_id) for job_id in (running, *waiting)] == ["succeeded", "queued", "queued"]
    assert len(bench.fake.requests) == 1
    resume(bench)
    bench.pass_seconds(60)
    assert {bench.status(job_id) for job_id in waiting} == {"succeeded"}


def test_an_embedding_that_runs_does_not_draw_others_after_it(make: Make) -> None:
    """The next one is looked for at the end of each."""
    bench = make(slots=3)
    bench.fake.hold("/api/embed")
    jobs = [bench.submit("embed", {"input": "a"}) for _ in range(4)]
    bench.pass_seconds(1)
    pause(bench)
    bench.fake.release()
    bench.pass_seconds(1)
    assert sorted(bench.status(job_id) for job_id in jobs) == ["queued", "queued", "succeeded", "succeeded"]
    resume(bench)
    bench.pass_seconds(1)
    assert {bench.status(job_id) for job_id in jobs} == {"succeeded"}


def test_put_back(make: Make) -> None:
    """The request is closed at once; the job is the first of its line again, with all its attempts."""
    bench = make(token_interval=1.0, slots=2)
    bench.fake.hold("/api/embed")
    first, second = bench.submit(), bench.submit()
    embedding = bench.submit("embed", {"input": "a"})
    bench.pass_seconds(2)
    pause(bench)
    bench.worker.put_back()
    bench.worker.put_back()
    bench.pass_seconds(1)
    assert bench.turn.holder is None
    assert len(bench.fake.aborted) == 2
    for job_id in (first, second, embedding):
        job = bench.job(job_id)
        assert (job.status.value, job.attempt, job.interruptions, job.errors) == ("queued", 0, 0, ())
        assert job.not_before is None
    assert bench.wait(lambda: bench.store.ahead(first)) == 0
    bench.fake.release()
    resume(bench)
    bench.pass_seconds(20)
    for job_id in (first, second, embedding):
        assert (bench.status(job_id), bench.job(job_id).attempt) == ("succeeded", 1)


def test_put_back_as_often_as_you_like(make: Make) -> None:
    """It is no interruption, of which there may be ten only."""
    bench = make(token_interval=100.0)
    job_id = bench.submit()
    for _ in range(25):
        bench.pass_seconds(1)
        pause(bench)
        bench.worker.put_back()
        bench.pass_seconds(1)
        assert bench.status(job_id) == "queued"
        resume(bench)
    assert len(bench.fake.aborted) == 25
    assert bench.job(job_id).interruptions == 0


def test_what_must_not_run_twice_ends(make: Make) -> None:
    """Its submitter said so; one that had not begun yet is put back all the same."""
    bench = make(token_interval=1.0)
    begun, waiting = bench.submit(on_interrupt="fail"), bench.submit(on_interrupt="fail")
    bench.pass_seconds(2)
    pause(bench)
    bench.worker.put_back()
    bench.pass_seconds(1)
    job = bench.job(begun)
    assert (job.status.value, job.errors[0].code) == ("failed", "interrupted")
    assert job.errors[0].message == 'the job was interrupted while it ran, and on_interrupt is "fail"'
    assert bench.status(waiting) == "queued"


def test_put_back_in_the_transaction_of_its_claim(make: Make) -> None:
    """It is claimed, but its request is never sent."""
    bench = make(commit_seconds=1.0)
    job_id = bench.submit(on_interrupt="fail")
    bench.pass_seconds(1.5)
    assert bench.turn.holder == job_id
    pause(bench)
    bench.worker.put_back()
    bench.pass_seconds(5)
    assert (bench.status(job_id), bench.job(job_id).attempt) == ("queued", 0)
    assert not bench.fake.requests
    resume(bench)
    bench.pass_seconds(5)
    assert bench.status(job_id) == "succeeded"


def test_cancelling_wins(make: Make) -> None:
    """A job that is cancelled and put back in one instant ends."""
    bench = make(token_interval=1.0)
    job_id = bench.submit()
    bench.pass_seconds(2)
    bench.begin(lambda: bench.store.cancel(job_id))
    pause(bench)
    bench.worker.put_back()
    bench.pass_seconds(1)
    assert bench.status(job_id) == "cancelled"


def test_hours(make: Make) -> None:
    """What runs at their end goes on to its own; nothing begins beyond them; then it goes on by itself."""
    bench = make(token_interval=30.0, slots=2)
    with zone("UTC"):  # NOW is 08:00 there
        hours = parse_hours("08:00-08:01,09:00-10:00")
        timetable = Timetable(bench.clock, hours, set_hours(bench), bench.turn.was_beyond_hours)
        timetable.start()
        jobs = [bench.submit(), bench.submit(), bench.submit("embed", {"input": "a"})]
        bench.pass_seconds(61)
        assert [bench.status(job_id) for job_id in jobs] == ["running", "queued", "succeeded"]
        late = bench.submit("embed", {"input": "a"})
        bench.pass_seconds(3500)
        assert [bench.status(job_id) for job_id in (*jobs[:2], late)] == ["succeeded", "queued", "queued"]
        bench.pass_seconds(40)
        assert [bench.status(job_id) for job_id in (jobs[1], late)] == ["running", "succeeded"]
        timetable.stop()


@pytest.mark.parametrize("paused", [True, False])
def test_time_held_back_is_no_waiting(make: Make, paused: bool) -> None:
    """No line is overdue just because its lane was shut for hours."""
    bench = make()
    if paused:
        pause(bench)
    else:
        set_hours(bench)(False)
    job_id = bench.submit()
    bench.pass_seconds(10 * 3600, step=60)
    assert [line.overdue_since - bench.clock.seconds() for line in bench.turn.lines()] == [3600.0]
    if paused:
        resume(bench)
    else:
        set_hours(bench)(True)
    bench.pass_seconds(10)
    assert bench.status(job_id) == "succeeded"


def test_who_waits_is_seen_while_the_worker_rests(make: Make) -> None:
    """The target was busy: nothing of the batch is begun, its lines are shown, and its time counts."""
    bench = make()
    bench.fake.fail("/api/chat", 503, "busy", times=None)
    came_at = bench.clock.seconds()
    jobs = [bench.submit("alpha") for _ in range(3)] + [bench.submit("beta")]
    bench.pass_seconds(4)
    assert bench.worker.rests_until is not None
    assert (bench.turn.waiting, bench.turn.holder, bench.worker.count) == (4, None, 4)
    assert [(line.wanted, line.count) for line in bench.turn.lines()] == [
        ((Wanted("alpha"),), 3),
        ((Wanted("beta"),), 1),
    ]
    assert {round(line.overdue_since - came_at) for line in bench.turn.lines()} == {3600}
    assert len(bench.turn.scene(also=(Lane.DURABLE,)).lines) == 2
    assert bench.turn.scene().lines == []
    assert bench.turn.free  # for who asks whether the target has something to do
    asked = len(bench.fake.requests)
    bench.submit("alpha")
    assert len(bench.fake.requests) == asked
    bench.fake.heal()
    bench.pass_seconds(31)
    assert {bench.status(job_id) for job_id in jobs} == {"succeeded"}


@pytest.mark.parametrize("lane", list(Lane))
@pytest.mark.parametrize("model", ["alpha", "beta"])
def test_native_requests_pass_while_the_worker_rests(make: Make, lane: Lane, model: str) -> None:
    """Those that were lowered into its lane, too, and wait in one of its lines: they do not need it."""
    bench = make()
    bench.fake.fail("/api/chat", 503, "busy", times=None)
    job_id = bench.submit("alpha")
    bench.pass_seconds(4)
    done: Deferred[None] = Deferred()

    async def native() -> None:
        async with bench.turn.take("native", Wanted(model), -5, lane=lane):
            await done

    bench.begin(native)
    assert bench.turn.holder == "native"
    assert bench.worker.rests_until is not None
    assert bench.turn.waiting == 1
    bench.fake.heal()
    bench.pass_seconds(31)
    assert bench.status(job_id) == "queued"
    done.callback(None)
    bench.pass_seconds(1)
    assert bench.status(job_id) == "succeeded"
    assert bench.turn.free


def test_a_visit_goes_on_after_a_rest(make: Make) -> None:
    """A target that was busy for a moment does not begin the visit of its line anew."""
    bench = make(token_interval=1.0)
    for _ in range(3):
        bench.submit("alpha")
    bench.pass_seconds(1)
    began = bench.turn.visits[Lane.DURABLE].since
    bench.fake.fail("/api/chat", 503, "busy", times=1)
    bench.pass_seconds(3.5)
    assert (bench.turn.holder, bench.turn.visits[Lane.DURABLE].since) == (None, began)
    bench.pass_seconds(2)
    assert bench.turn.holder is not None
    assert bench.turn.visits[Lane.DURABLE].since == began
    bench.pass_seconds(20)
