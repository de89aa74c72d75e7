"""The worker on a clock, with the real turn and store: whatever happens, each job ends as it should."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from worker_bench import Bench

from foreman.errors import ForemanError
from foreman.scheduler.keys import Wanted
from foreman.scheduler.policy import Lane
from foreman.testing.scripted import Canned

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


def names(bench: Bench, job_id: str) -> list[str]:
    return [artifact.name for artifact in bench.job(job_id).artifacts]


def test_a_chat_becomes_its_artifacts(make: Make) -> None:
    """It is streamed from the target, and what is kept is what `stream: false` would have returned."""
    bench = make()
    job_id = bench.submit(body={"messages": [{"role": "user", "content": "hi"}], "stream": False})
    job = bench.job(job_id)
    assert (job.status.value, job.attempt, job.errors) == ("succeeded", 1, ())
    assert names(bench, job_id) == ["response.json", "content.txt"]
    assert bench.text(job_id, "content.txt") == "The rain falls."
    response = json.loads(bench.text(job_id, "response.json"))
    assert response["message"] == {"role": "assistant", "content": "The rain falls."}
    assert (response["done"], response["done_reason"]) == (True, "stop")
    (sent,) = bench.fake.seen("/api/chat")
    assert sent.body.endswith(b',"stream":true}')
    assert json.loads(sent.body)["stream"] is True


def test_metrics(make: Make) -> None:
    """Seconds of waiting, loading and running, tokens, and their rate; as the last line tells them."""
    bench = make(token_interval=0.5)
    bench.submit()
    job_id = bench.submit()
    bench.pass_seconds(10)
    metrics = bench.job(job_id).metrics
    assert metrics is not None
    assert metrics.queue_seconds == pytest.approx(2, abs=0.6)
    assert metrics.run_seconds == pytest.approx(2, abs=0.6)
    assert metrics.load_seconds == pytest.approx(0.039104248)
    assert (metrics.prompt_tokens, metrics.completion_tokens) == (16, 4)
    assert metrics.tokens_per_second == pytest.approx(4.59)


def test_progress_while_it_runs(make: Make) -> None:
    """Its phase and its tokens so far; nothing for a job that does not run."""
    bench = make(token_interval=1.0)
    bench.fake.gpu.load_seconds = 5
    job_id = bench.submit()
    bench.pass_seconds(1)
    assert bench.worker.progress(job_id).phase == "starting"
    bench.pass_seconds(5.5)
    assert (bench.worker.progress(job_id).phase, bench.worker.progress(job_id).tokens) == ("generating", 2)
    bench.pass_seconds(10)
    assert bench.worker.progress(job_id) is None


def test_a_format_makes_the_text_json(make: Make) -> None:
    """`content.json` in the place of `content.txt`."""
    bench = make(tokens=['{"a":', "1}"])
    job_id = bench.submit(body={"prompt": "x", "format": "json"})
    assert names(bench, job_id) == ["response.json", "content.json"]
    assert bench.text(job_id, "content.json") == '{"a":1}'


def test_the_transcript_is_the_exact_stream(make: Make) -> None:
    """Only on request."""
    bench = make()
    job_id = bench.submit(transcript=True)
    lines = bench.text(job_id, "transcript.ndjson").splitlines()
    assert len(lines) == 5
    assert json.loads(lines[-1])["done"] is True


@pytest.mark.parametrize(
    ("canned", "code", "status", "body"),
    [
        pytest.param(Canned(500, b'{"error":"boom"}'), "target_refused", 500, "boom", id="500"),
        pytest.param(Canned(502, b"<html>"), "target_refused", 502, "'<html>'", id="502"),
        pytest.param(Canned(301, b""), "target_refused", 301, "''", id="redirect"),
        pytest.param(Canned(200, b"not json\n"), "bad_response", None, None, id="not JSON"),
        pytest.param(Canned(200, b'{"done":"yes"}\n'), "bad_response", None, None, id="not Ollama's"),
        pytest.param(Canned(200, b""), "incomplete_response", None, None, id="nothing"),
        pytest.param(
            Canned(200, b'{"message":{"content":"x"}}\n'), "incomplete_response", None, None, id="no done"
        ),
        pytest.param(Canned(200, b'{"message":{"cont'), "incomplete_response", None, None, id="half a line"),
        pytest.param(
            Canned(200, b'{"message":{"content":"x"}}\n', cut=True), "target_failed", None, None, id="cut"
        ),
        pytest.param(Canned(200, b"", cut=True), "target_failed", None, None, id="cut at once"),
        pytest.param(Canned(200, b'{"error":"EOF"}\n'), "target_error", None, "EOF", id="an error line"),
        pytest.param(
            Canned(200, b'{"error":{"message":"EOF"}}\n'),
            "target_error",
            None,
            '{"message":"EOF"}',
            id="error object",
        ),
    ],
)
def test_failures_use_up_an_attempt_each(
    make: Make, canned: Canned, code: str, status: int | None, body: str | None
) -> None:
    """Backoffs of 5 s and 10 s, the third failure is the end; every one is in the history."""
    bench = make()
    bench.fake.answer("/api/chat", canned, times=None)
    job_id = bench.submit()
    assert (bench.status(job_id), bench.job(job_id).attempt) == ("queued", 1)
    bench.pass_seconds(4.9)
    assert len(bench.fake.requests) == 1
    bench.pass_seconds(0.2)
    assert len(bench.fake.requests) == 2
    bench.pass_seconds(10)
    job = bench.job(job_id)
    assert (job.status.value, job.attempt, len(bench.fake.requests)) == ("failed", 3, 3)
    assert [(error.attempt, error.code) for error in job.errors] == [(1, code), (2, code), (3, code)]
    assert (job.error.target_status, job.error.target_body) == (status, body)


def test_a_failure_that_passes_is_history(make: Make) -> None:
    """The second attempt succeeds; the job is not failed, and says what was."""
    bench = make()
    bench.fake.fail("/api/chat", 500, "out of memory")
    job_id = bench.submit()
    bench.pass_seconds(6)
    job = bench.job(job_id)
    assert (job.status.value, job.attempt, job.error) == ("succeeded", 2, None)
    assert [error.target_body for error in job.errors] == ["out of memory"]


@pytest.mark.parametrize("status", [400, 404, 403, 413])
def test_a_refusal_fails_at_once(make: Make, status: int) -> None:
    """The same request would be refused again."""
    bench = make()
    bench.fake.fail("/api/chat", status, "no", times=None)
    job = bench.job(bench.submit())
    assert (job.status.value, job.attempt, len(bench.fake.requests)) == ("failed", 1, 1)
    assert (job.error.code, job.error.target_status, job.error.target_body) == (
        "target_refused",
        status,
        "no",
    )


def test_partial_text_is_kept_when_the_job_fails(make: Make) -> None:
    """But no `response.json`: there was no whole answer."""
    bench = make()
    bench.fake.answer("/api/chat", Canned(200, b'{"message":{"content":"half"}}\n'), times=None)
    job_id = bench.submit(max_attempts=1)
    assert bench.status(job_id) == "failed"
    assert names(bench, job_id) == ["content.txt"]
    assert bench.text(job_id, "content.txt") == "half"


def test_a_target_that_is_absent_burns_no_attempt(make: Make) -> None:
    """Nothing is chosen meanwhile, and everything runs by itself when it is there; the order is kept."""
    bench = make()
    bench.refuse()
    jobs = [bench.submit() for _ in range(3)]
    bench.pass_seconds(600)
    assert [bench.status(job_id) for job_id in jobs] == ["queued"] * 3
    assert sum(len(bench.wait(lambda j=job_id: bench.store.events(j))) for job_id in jobs) <= 5
    bench.refused = None
    bench.pass_seconds(40)
    found = [bench.job(job_id) for job_id in jobs]
    assert [(job.status.value, job.attempt, job.errors) for job in found] == [("succeeded", 1, ())] * 3
    assert [job.started_at for job in found] == sorted(job.started_at for job in found)


def test_a_busy_target_burns_no_attempt(make: Make) -> None:
    """503 for a minute: asked again after 1, 2, 4 … seconds, and interactive jobs pass."""
    bench = make()
    bench.fake.fail("/api/chat", 503, "server busy", times=None)
    jobs = [bench.submit() for _ in range(5)]
    bench.pass_seconds(60, step=0.5)
    assert len(bench.fake.requests) == 6
    bench.fake.heal()
    bench.pass_seconds(31)
    found = [bench.job(job_id) for job_id in jobs]
    assert [(job.status.value, job.attempt, job.errors) for job in found] == [("succeeded", 1, ())] * 5


def test_a_target_that_vanishes_in_the_middle_costs_one_attempt(make: Make) -> None:
    """The job that ran there had been sent; those that wait were not."""
    bench = make(token_interval=1.0)
    bench.fake.die_after = 2
    first, second = bench.submit(), bench.submit()
    bench.pass_seconds(1)
    bench.refuse()
    bench.pass_seconds(60)
    bench.refused = None
    bench.pass_seconds(60)
    assert [(bench.status(job_id), bench.job(job_id).attempt) for job_id in (first, second)] == [
        ("succeeded", 2),
        ("succeeded", 1),
    ]


def test_a_target_that_never_answers(make: Make) -> None:
    """The first-byte limit cuts it; for the next job the target settles, and its limits start after that."""
    bench = make()
    bench.fake.hold("/api/chat")
    job_id, after = bench.submit(max_attempts=1), bench.submit(max_attempts=1)
    bench.pass_seconds(899)
    assert bench.status(job_id) == "running"
    bench.pass_seconds(2)
    assert bench.job(job_id).error.code == "target_timeout"
    assert len(bench.fake.aborted) == 1
    bench.pass_seconds(1200)
    bench.fake.release()
    bench.pass_seconds(1)
    job = bench.job(after)
    assert job.status.value == "succeeded"
    assert job.metrics.run_seconds < 5


def test_a_target_that_falls_silent(make: Make) -> None:
    """The silence limit; partial text is kept."""
    bench = make(token_interval=400.0)
    job_id = bench.submit(max_attempts=1)
    bench.pass_seconds(310)
    assert bench.job(job_id).error.code == "target_timeout"
    assert "FOREMAN_SILENCE_TIMEOUT" in bench.job(job_id).error.message
    assert bench.text(job_id, "content.txt") == "The"


@pytest.mark.parametrize(("timeout", "seconds"), [(None, 3600), (2.5, 2.5), (0, None)])
def test_a_target_that_trickles(make: Make, timeout: float | None, seconds: float | None) -> None:
    """The limit of the run cuts it: the job's own, else the default; 0 is none."""
    bench = make(token_interval=1.0, tokens=["x"] * 8000)
    job_id = bench.submit(max_attempts=1, timeout=timeout)
    bench.pass_seconds(seconds - 1.5 if seconds else 7000, step=1)
    assert bench.status(job_id) == "running"
    bench.pass_seconds(3 if seconds else 2000, step=1)
    job = bench.job(job_id)
    if seconds is None:
        assert job.status.value == "succeeded"
    else:
        assert (job.error.code, len(bench.fake.aborted)) == ("execution_timeout", 1)
        assert bench.text(job_id, "content.txt").startswith("xx")


def test_twenty_and_twenty_on_two_models_are_two_loads(make: Make) -> None:
    """The queue drains by model."""
    bench = make(token_interval=0.1)
    jobs = [bench.submit(["alpha", "beta"][number % 2]) for number in range(40)]
    bench.pass_seconds(60)
    assert {bench.status(job_id) for job_id in jobs} == {"succeeded"}
    assert bench.fake.loads == ["alpha:latest", "beta:latest"]


def test_one_commit_to_submit_and_one_to_finish_and_claim(make: Make) -> None:
    """The steady state: ten jobs that wait cost ten commits more, and one for the last end."""
    bench = make(commit_seconds=0.002, token_interval=0.1)
    first = bench.submit()
    bench.pass_seconds(0.01, step=0.001)
    assert bench.status(first) == "running"
    for _ in range(10):
        bench.submit()
        bench.pass_seconds(0.004, step=0.001)
    before = bench.store.commits
    bench.pass_seconds(6, step=0.001)
    assert bench.store.commits - before == 10 + 1
    assert bench.turn.free


def test_the_request_starts_after_the_commit_of_its_claim(make: Make) -> None:
    """A crash before the commit must not have run anything."""
    bench = make()
    bench.pool.commit_seconds = 0.0
    bench.submit()
    bench.pool.commit_seconds = 1.0
    job_id = bench.submit()
    bench.clock.advance(1.0)
    bench.stub.flush()
    assert len(bench.fake.requests) == 1
    assert bench.turn.holder == job_id
    bench.clock.advance(0.9)
    bench.stub.flush()
    assert len(bench.fake.requests) == 1
    bench.clock.advance(0.1)
    bench.stub.flush()
    assert len(bench.fake.requests) == 2
    bench.pass_seconds(5)


def interactive(bench: Bench, model: str = "alpha") -> tuple[list[float], "Deferred[None]"]:
    """A native request that takes the turn; the moments at which it had it, and what ends it."""
    started: list[float] = []
    done: Deferred[None] = Deferred()

    async def work() -> None:
        async with bench.turn.take(f"native {model}", Wanted(model)) as grant:
            started.append(bench.clock.seconds())
            grant.first_byte()
            await done

    Deferred.fromCoroutine(work())
    return started, done


def test_an_interactive_job_starts_without_waiting_for_the_commit(make: Make) -> None:
    """It gets the turn in the instant in which the durable job ends, whose end is written alone."""
    bench = make(token_interval=1.0)
    first, second = bench.submit(), bench.submit()
    bench.pool.commit_seconds = 0.5
    started, done = interactive(bench)
    bench.pass_seconds(4.25, step=0.125)
    (moment,) = started
    ended_at = moment
    assert bench.turn.holder == "native alpha"
    assert bench.job(first).status.value == "running"
    bench.pass_seconds(0.5, step=0.125)
    assert (bench.status(first), bench.status(second)) == ("succeeded", "queued")
    assert bench.job(first).finished_at == pytest.approx(ended_at, abs=0.6)
    done.callback(None)
    bench.pass_seconds(20, step=0.125)
    assert bench.status(second) == "succeeded"


def test_who_comes_during_the_commit_waits_for_the_next_choice(make: Make) -> None:
    """The claim that is being written stands."""
    bench = make(token_interval=1.0)
    first = bench.submit()
    bench.pool.commit_seconds = 0.5
    second = bench.submit()
    bench.pass_seconds(4.25, step=0.125)
    assert bench.turn.holder == second
    started, done = interactive(bench)
    bench.pass_seconds(1, step=0.125)
    assert (started, bench.status(first), bench.status(second)) == ([], "succeeded", "running")
    bench.pass_seconds(5, step=0.125)
    assert len(started) == 1
    done.callback(None)
    bench.pass_seconds(2, step=0.125)


def test_a_chosen_job_that_was_cancelled_meanwhile(make: Make) -> None:
    """No row is claimed: the end stands, and the next one is chosen."""
    bench = make(token_interval=1.0)
    first = bench.submit()
    second, third = bench.submit(), bench.submit()
    bench.pool.commit_seconds = 0.5
    bench.pass_seconds(3.75, step=0.125)
    bench.begin(lambda: bench.store.cancel(second))  # its commit begins before, and ends after the choice
    bench.pass_seconds(0.375, step=0.125)
    assert bench.turn.holder == second
    bench.pass_seconds(2, step=0.125)
    assert [bench.status(job_id) for job_id in (first, second, third)] == [
        "succeeded",
        "cancelled",
        "running",
    ]
    bench.pass_seconds(10)


@pytest.mark.parametrize("moment", [number * 0.1 for number in range(60)])
def test_cancelling_at_every_moment(make: Make, moment: float) -> None:
    """Waiting, being claimed, loading, generating, being written, ended: one end, and the queue goes on."""
    bench = make(token_interval=1.0)
    bench.fake.gpu.load_seconds = 0.5
    before = bench.submit()
    bench.pool.commit_seconds = 0.25
    bench.fake.tokens = ["one", "two"]
    job_id, after = bench.submit(), bench.submit()
    bench.pass_seconds(moment, step=0.05)
    bench.begin(lambda: bench.store.cancel(job_id))
    bench.pass_seconds(20, step=0.05)
    job = bench.job(job_id)
    assert job.status.value in ("cancelled", "succeeded")
    assert (bench.status(before), bench.status(after)) == ("succeeded", "succeeded")
    last = [event.type for event in bench.wait(lambda: bench.store.events(job_id))]
    assert last.count("job.cancelled") + last.count("job.succeeded") == 1
    if job.status.value == "cancelled":
        assert "response.json" not in names(bench, job_id)
    assert bench.turn.free


def test_cancelled_in_the_transaction_of_its_claim(make: Make) -> None:
    """The worker hears of the cancellation before it hears of the claim: nothing is sent."""
    bench = make(token_interval=1.0)
    bench.submit()
    job_id = bench.submit()
    bench.pool.commit_seconds = 0.5
    bench.pass_seconds(3.875, step=0.125)
    bench.submit("beta")  # keeps the writer busy, so that the claim and the cancellation share a transaction
    bench.pass_seconds(0.25, step=0.125)
    assert bench.turn.holder == job_id
    bench.begin(lambda: bench.store.cancel(job_id))
    bench.pass_seconds(0.75, step=0.125)
    bench.pass_seconds(1.5, step=0.125)
    assert (bench.status(job_id), bench.job(job_id).attempt) == ("cancelled", 1)
    assert [json.loads(exchange.body)["model"] for exchange in bench.fake.requests] == ["alpha", "beta"]
    bench.pass_seconds(10)


def test_cancelling_a_running_job_closes_the_connection_and_keeps_its_text(make: Make) -> None:
    """The next one starts at once."""
    bench = make(token_interval=1.0)
    job_id, after = bench.submit(), bench.submit()
    bench.pass_seconds(1.5)
    bench.begin(lambda: bench.store.cancel(job_id))
    bench.pass_seconds(0.1)
    assert len(bench.fake.aborted) == 1
    assert bench.status(job_id) == "cancelled"
    assert bench.text(job_id, "content.txt") == "The rain"
    assert bench.status(after) == "running"
    bench.pass_seconds(10)


def test_a_large_output_does_not_hold_the_turn(make: Make) -> None:
    """Its pieces are written while the next job runs already, and are unseen until its end."""
    text = "é" * 100_000
    bench = make(tokens=[text] * 5)
    bench.pool.commit_seconds = 0.1
    job_id = bench.submit()
    bench.fake.hold("/api/chat")
    bench.pass_seconds(0.3, step=0.05)
    after = bench.submit()
    bench.pass_seconds(0.3, step=0.05)
    bench.fake.release()
    bench.fake.hold("/api/chat")
    bench.stub.flush()
    assert bench.turn.holder == after
    assert bench.status(job_id) == "running"
    before = bench.store.commits
    bench.fake.tokens = ["short"]
    bench.fake.release()
    bench.pass_seconds(5, step=0.05)
    assert bench.store.commits - before > 8  # each piece in a transaction of its own
    assert (bench.status(job_id), bench.status(after)) == ("succeeded", "succeeded")
    assert bench.text(job_id, "content.txt") == text * 5
    assert json.loads(bench.text(job_id, "response.json"))["message"]["content"] == text * 5


def test_embeddings_bypass_the_turn(make: Make) -> None:
    """Two at once, beside whoever holds it."""
    bench = make(slots=3)
    _, done = interactive(bench)
    bench.fake.hold("/api/embed")
    jobs = [bench.submit("embed", {"input": ["a", "b"]}) for _ in range(4)]
    bench.pass_seconds(1)
    assert len(bench.fake.requests) == 2
    bench.fake.release()
    bench.pass_seconds(1)
    assert {bench.status(job_id) for job_id in jobs} == {"succeeded"}
    assert names(bench, jobs[0]) == ["response.json", "embeddings.json"]
    assert json.loads(bench.text(jobs[0], "embeddings.json")) == [[0.6, -0.8], [0.6, -0.8]]
    assert b"stream" not in bench.fake.requests[0].body
    done.callback(None)


def test_embeddings_wait_for_an_absent_target_too(make: Make) -> None:
    """No attempt burnt, and no storm."""
    bench = make()
    bench.refuse()
    job_id = bench.submit("embed", {"input": "a"})
    bench.pass_seconds(300)
    assert bench.status(job_id) == "queued"
    bench.refused = None
    bench.pass_seconds(40)
    assert (bench.status(job_id), bench.job(job_id).attempt) == ("succeeded", 1)


def test_a_model_that_may_still_be_pulled(make: Make) -> None:
    """A job with time to start waits for its model without asking the target; others pass."""
    bench = make()
    bench.missing.add("gamma")
    job_id = bench.submit("gamma", start_deadline=bench.clock.seconds() + 600)
    other = bench.submit()
    bench.pass_seconds(100)
    assert (bench.status(job_id), bench.status(other)) == ("queued", "succeeded")
    assert len(bench.fake.requests) == 1
    bench.missing.clear()
    bench.fake.models.append(type(bench.fake.models[0]).make("gamma:latest"))
    bench.worker.look()
    assert (bench.status(job_id), bench.job(job_id).attempt) == ("succeeded", 1)


def delete(bench: Bench, name: str) -> None:
    """Somebody deletes a model at the target."""
    bench.missing.add(name)
    bench.fake.models = [model for model in bench.fake.models if model.name != f"{name}:latest"]


def pull(bench: Bench, name: str) -> None:
    """Somebody pulls a model, and the list of models is read."""
    bench.missing.discard(name)
    bench.fake.models.append(type(bench.fake.models[0]).make(f"{name}:latest"))
    bench.worker.look()


def states(bench: Bench, *job_ids: str) -> list[tuple[str, int]]:
    found = [bench.job(job_id) for job_id in job_ids]
    return [(job.status.value, job.attempt) for job in found]


def test_a_model_that_is_missing_before_the_models_are_known(make: Make) -> None:
    """As after a restart: who has no time to wait fails, who has waits for a list that has the model."""
    bench = make()
    bench.models.known = False
    there = bench.submit(start_deadline=bench.clock.seconds() + 600)
    waits = bench.submit("gamma", start_deadline=bench.clock.seconds() + 600)
    plain = bench.submit("delta")
    bench.pass_seconds(30)
    assert states(bench, there, waits, plain) == [("succeeded", 1), ("queued", 0), ("failed", 1)]
    assert bench.job(waits).started_at is None
    assert len(bench.fake.requests) == 3
    bench.models.known = True
    bench.missing.add("gamma")
    bench.worker.look()
    bench.pass_seconds(30)
    assert len(bench.fake.requests) == 3
    pull(bench, "gamma")
    assert states(bench, waits) == [("succeeded", 1)]


def test_a_model_that_went_since_its_list_was_read(make: Make) -> None:
    """The target's 404 has it read anew. The job waits until its deadline; it does not fail before."""
    bench = make()
    delete(bench, "alpha")
    bench.models.unseen.add("alpha")
    job_id = bench.submit(start_deadline=bench.clock.seconds() + 600)
    bench.pass_seconds(300)
    assert states(bench, job_id) == [("queued", 0)]
    assert (len(bench.fake.requests), bench.models.looks) == (1, 1)
    bench.pass_seconds(301)
    assert states(bench, job_id) == [("expired", 0)]


@pytest.mark.parametrize("model", ["alpha", "gpt-oss:120b-cloud"])
def test_a_404_that_no_list_explains(make: Make, model: str) -> None:
    """The model is there, or in the cloud, so waiting is no help: the job fails at once, time or not."""
    bench = make()
    bench.missing.add("gpt-oss:120b-cloud")
    bench.fake.fail("/api/chat", 404, "page not found", times=None)
    job_id = bench.submit(model, start_deadline=bench.clock.seconds() + 600)
    assert states(bench, job_id) == [("failed", 1)]
    assert bench.job(job_id).error.target_status == 404


@pytest.mark.parametrize("model", ["alpha", "embed"])
@pytest.mark.parametrize("patient_first", [True, False])
def test_a_job_that_may_wait_does_not_hold_the_others_for_ever(
    make: Make, model: str, patient_first: bool
) -> None:
    """Its line is withheld until its deadline at most. Then who has no time to wait fails with the 404."""
    bench = make()
    bench.turn.pause(Lane.DURABLE, lambda: ForemanError("paused"))
    body = {"input": "a"} if model == "embed" else None
    by_deadline = {}
    for within in (60.0, None) if patient_first else (None, 60.0):
        deadline = within and bench.clock.seconds() + within
        by_deadline[within] = bench.submit(model, body, start_deadline=deadline)
        bench.pass_seconds(0.5)
    delete(bench, model)
    bench.turn.resume(Lane.DURABLE)
    bench.worker.look()
    bench.pass_seconds(50)
    patient, plain = by_deadline[60.0], by_deadline[None]
    if not patient_first or model == "embed":  # two embeddings run at once
        assert states(bench, plain) == [("failed", 1)]
    assert states(bench, patient) == [("queued", 0)]
    bench.pass_seconds(11)
    assert states(bench, patient, plain) == [("expired", 0), ("failed", 1)]
    assert bench.job(plain).error.target_status == 404


def test_the_next_one_with_time_to_wait_withholds_the_line_again(make: Make) -> None:
    """Each job is judged by itself; what comes while the line is withheld runs when the model is there."""
    bench = make()
    delete(bench, "alpha")
    now = bench.clock.seconds()
    first = bench.submit(start_deadline=now + 60)
    second = bench.submit(start_deadline=now + 120)
    bench.pass_seconds(61)
    plain = bench.submit()
    bench.pass_seconds(30)
    assert states(bench, first, second, plain) == [("expired", 0), ("queued", 0), ("queued", 0)]
    pull(bench, "alpha")
    assert states(bench, second, plain) == [("succeeded", 1), ("succeeded", 1)]


def test_a_job_that_has_started_waits_for_its_model_until_its_deadline(make: Make) -> None:
    """It does not expire, since it has started; it is judged as one that has no time to wait."""
    bench = make()
    bench.fake.fail("/api/chat", 500, "boom", times=1)
    job_id = bench.submit(start_deadline=bench.clock.seconds() + 60)
    bench.pass_seconds(1)
    delete(bench, "alpha")
    bench.pass_seconds(55)
    assert states(bench, job_id) == [("queued", 1)]
    bench.pass_seconds(5)
    assert states(bench, job_id) == [("failed", 2)]
    assert [error.target_status for error in bench.job(job_id).errors] == [500, 404]


def test_a_graceful_stop_lets_what_runs_end_and_puts_back_the_rest(make: Make) -> None:
    """What ends within the grace is written; what does not is queued again, and burns no attempt."""
    bench = make(token_interval=1.0)
    job_id, waiting = bench.submit(), bench.submit()
    bench.pass_seconds(1)
    stopped = bench.begin(lambda: bench.worker.stop(8.0, 1.0))
    bench.pass_seconds(5)
    assert stopped.called
    assert (bench.status(job_id), bench.status(waiting)) == ("succeeded", "queued")


def test_a_model_that_is_missing_at_the_stop(make: Make) -> None:
    """The job is put back for the next life, and no timer of this one is left."""
    bench = make()
    delete(bench, "alpha")
    bench.models.unseen.add("alpha")
    bench.models.reads = Deferred()
    job_id = bench.submit(start_deadline=bench.clock.seconds() + 600)
    bench.pass_seconds(1)
    stopped = bench.begin(lambda: bench.worker.stop(8.0, 1.0))
    assert (stopped.called, bench.status(job_id)) == (False, "running")
    bench.models.reads.callback(None)
    bench.pass_seconds(1)
    assert stopped.called
    assert states(bench, job_id) == [("queued", 0)]
    assert len(bench.clock.getDelayedCalls()) == 2  # of the upkeep: when to expire the job, and to prune


def test_the_grace_ends(make: Make) -> None:
    """The connection is closed, and the job is back in its line: interrupted, with all its attempts."""
    bench = make(token_interval=100.0)
    job_id = bench.submit()
    bench.pass_seconds(1)
    bench.pool.commit_seconds = 0.01
    stopped = bench.begin(lambda: bench.worker.stop(8.0, 1.0))
    bench.pass_seconds(9)
    assert stopped.called
    job = bench.job(job_id)
    assert (job.status.value, job.attempt, job.interruptions) == ("queued", 0, 1)
    assert len(bench.fake.aborted) == 1


def test_a_full_disk_loses_no_end(make: Make) -> None:
    """The end is written when there is room again; until then nothing durable is claimed, and others pass."""
    bench = make(token_interval=1.0)
    first, second = bench.submit(), bench.submit()
    bench.pass_seconds(1)
    bench.fill_the_disk()
    bench.pass_seconds(20)
    assert (bench.status(first), bench.status(second)) == ("running", "queued")
    started, done = interactive(bench)
    assert started
    done.callback(None)
    assert len(bench.fake.requests) == 1
    bench.pool.broken = None
    bench.pass_seconds(60)
    found = [bench.job(first), bench.job(second)]
    assert [(job.status.value, job.attempt) for job in found] == [("succeeded", 1)] * 2
    assert len(bench.fake.requests) == 2


def test_the_next_life_runs_what_was_interrupted(make: Make) -> None:
    """A worker that starts finds the jobs of the store, and recovers what ran."""
    bench = make(token_interval=100.0)
    job_id = bench.submit()
    bench.pass_seconds(1)
    assert bench.status(job_id) == "running"
    bench.wait(lambda: bench.worker.stop(0.0, 1.0))
    assert bench.job(job_id).interruptions == 1
    bench.fake.token_interval = 0.0
    bench.worker = bench.make_worker()
    bench.wait(bench.worker.start)
    assert (bench.status(job_id), bench.job(job_id).attempt) == ("succeeded", 1)


def test_interrupted_is_what_the_stop_says(make: Make) -> None:
    """`on_interrupt: fail` ends there."""
    bench = make(token_interval=100.0)
    job_id = bench.submit(on_interrupt="fail")
    bench.pass_seconds(1)
    bench.wait(lambda: bench.worker.stop(0.0, 1.0))
    assert bench.job(job_id).error.code == "interrupted"


@pytest.mark.parametrize(
    ("model", "within"),
    [pytest.param("alpha", 4.25, id="same model"), pytest.param("beta", 5 + 4.25, id="other")],
)
def test_a_chat_in_the_middle_of_a_batch(make: Make, model: str, within: float) -> None:
    """The resident model's starts after the running job of 4 s; another's once 5 s are over, too."""
    bench = make(token_interval=1.0)
    jobs = [bench.submit() for _ in range(20)]
    bench.pass_seconds(6)
    came_at = bench.clock.seconds()
    started, done = interactive(bench, model)
    bench.pass_seconds(12)
    assert started[0] - came_at <= within
    done.callback(None)
    bench.pass_seconds(100)
    assert {bench.status(job_id) for job_id in jobs} == {"succeeded"}


def test_time_with_the_target_away_is_no_waiting(make: Make) -> None:
    """A durable line that waited through an outage of two hours is not overdue after it."""
    bench = make(token_interval=1.0)
    bench.submit("alpha")
    bench.pass_seconds(1)
    bench.turn.block(ForemanError("gone"))
    old = bench.submit("beta")
    bench.pass_seconds(7200, step=60)
    young = [bench.submit("alpha") for _ in range(3)]
    bench.turn.unblock()
    bench.pass_seconds(5)
    assert bench.status(old) == "queued"
    assert bench.turn.holder in young
    bench.pass_seconds(30)
    assert bench.status(old) == "succeeded"
