"""Loading ahead, on a clock: one load at a time, and whose it is when its callers leave."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from attrs import define, field
from treq.testing import StubTreq
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock

from foreman.scheduler.grant import Grant
from foreman.scheduler.keys import KeyRegistry, Wanted
from foreman.scheduler.policy import Limits
from foreman.scheduler.turn import Turn
from foreman.target.client import OllamaClient
from foreman.target.inventory import Inventory
from foreman.target.preload import IDLE_SECONDS, Preloader
from foreman.testing.gpu import FakeModel
from foreman.testing.ollama import FakeOllama
from foreman.testing.scripted import Canned

URL = "http://target:11434"
LOAD_SECONDS = 4.0
LIMIT_SECONDS = 100.0


@define(eq=False)
class Job:
    """One caller. `seconds` is what `ready` returned, when `done`; `grant` once it has the turn."""

    turn: Turn
    preloader: Preloader
    job_id: str
    wanted: Wanted
    loads_itself: bool
    claimed: "Deferred[None]"  # as a durable job, which is claimed before it comes for the load
    grant: Grant | None = None
    done: bool = False
    seconds: float | None = None
    hold: "Deferred[None]" = field(factory=Deferred)
    work: "Deferred[None]" = field(init=False)

    def begin(self) -> None:
        self.work = Deferred.fromCoroutine(self._work())
        self.work.addErrback(lambda failure: failure.trap(CancelledError))

    async def _work(self) -> None:
        async with self.turn.take(self.job_id, self.wanted) as grant:
            self.grant = grant
            await self.claimed
            if self.preloader.concerns(grant):
                self.seconds = await self.preloader.ready(
                    grant, self.wanted.model, self.wanted.options, loads_itself=self.loads_itself
                )
            self.done = True
            await self.hold

    def leave(self) -> None:
        self.work.cancel()

    def end(self) -> None:
        self.hold.callback(None)


class Bench:
    """The real turn, keys and inventory before a fake target; a load takes four seconds."""

    def __init__(self, width: int = 1, **fake: Any) -> None:
        self.clock = Clock()
        self.clock.advance(1_800_000_000.0)
        models = [FakeModel.make(f"{name}:latest") for name in ("alpha", "beta", "gamma")]
        models.append(FakeModel("embed:latest", "/blobs/e", "e" * 64, capabilities=("embedding",)))
        models.append(FakeModel("far:latest", "/blobs/f", "f" * 64, remote_host="https://ollama.example"))
        self.fake = FakeOllama(self.clock, models=models, **fake)
        self.fake.gpu.load_seconds = LOAD_SECONDS
        self.stub = StubTreq(self.fake.resource())
        self.inventory = Inventory(self.clock, OllamaClient(self.stub, URL, "", self.clock, 10), 3600.0)
        self.keys = KeyRegistry(self.inventory)
        self.turn = Turn(
            self.clock, self.keys, Limits(), patience=10.0, settle_limit=LIMIT_SECONDS, width=width
        )
        client = self.inventory.client
        self.preloader = Preloader(self.clock, client, self.inventory, self.turn, LIMIT_SECONDS)
        self.told: list[tuple[str, float]] = []
        self.swaps = 0
        self.preloader.on_load = lambda grant, seconds: self.told.append((grant.job_id, seconds))
        self.turn.on_choice = self.preloader.look
        self.turn.on_swap = self._swapped
        self.inventory.on_read.append(self.keys.inventory_read)
        self.inventory.on_read.append(self.preloader.inventory_read)
        self.jobs: list[Job] = []
        self.inventory.refresh()
        self.pass_seconds(0)
        assert self.inventory.known

    def _swapped(self) -> None:
        self.swaps += 1
        self.inventory.refresh()

    def job(
        self,
        model: str = "alpha",
        options: str = "",
        loads_itself: bool = False,
        claimed: "Deferred[None] | None" = None,
    ) -> Job:
        """A caller arrives."""
        wanted, job_id = Wanted(model, options), f"job {len(self.jobs)}"
        job = Job(self.turn, self.preloader, job_id, wanted, loads_itself, claimed or succeed(None))
        self.jobs.append(job)
        job.begin()
        self.pass_seconds(0)
        return job

    def pass_seconds(self, seconds: float) -> None:
        for step in [0.5] * int(seconds * 2) or [0]:
            self.clock.advance(step)
            for _ in range(6):
                self.stub.flush()

    @property
    def asked(self) -> list[Any]:
        """The bodies of the loads that the target was asked for."""
        return [json.loads(exchange.body) for exchange in self.fake.seen("/api/generate")]

    @property
    def aborted(self) -> int:
        self.stub.flush()
        return len(self.fake.aborted)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    for job in bench.jobs:
        job.leave()
    assert bench.turn.free
    assert bench.preloader._load is None
    assert [str(call) for call in bench.clock.getDelayedCalls()] == []


def test_a_swap_is_loaded_ahead_and_its_seconds_are_told(bench: Bench) -> None:
    """One load form with the runner options and no keep_alive; the swap is over at its end, once."""
    job = bench.job("alpha", '{"num_ctx":2048,"shift":false}')
    assert (job.done, bench.turn.swapped_at) == (False, bench.clock.seconds())
    bench.pass_seconds(LOAD_SECONDS)
    assert bench.asked == [{"model": "alpha", "options": {"num_ctx": 2048}, "shift": False}]
    assert (job.done, job.seconds) == (True, LOAD_SECONDS)
    assert bench.told == [("job 0", LOAD_SECONDS)]
    ended_at = bench.turn.swapped_at
    assert ended_at == bench.clock.seconds()
    assert bench.keys.key(job.wanted) in bench.keys.resident()
    assert bench.swaps == 1
    bench.pass_seconds(3)
    assert job.grant is not None
    assert not job.grant.answered
    job.grant.first_byte()
    assert (bench.swaps, bench.turn.swapped_at) == (1, ended_at)


def test_what_is_resident_costs_nothing(bench: Bench) -> None:
    """No request, no look, no wait."""
    first = bench.job()
    bench.pass_seconds(LOAD_SECONDS)
    first.end()
    before = len(bench.fake.requests)
    second = bench.job()
    assert second.done
    assert second.grant is not None
    assert not bench.preloader.concerns(second.grant)
    assert (second.seconds, len(bench.fake.requests)) == (None, before)
    second.end()


def test_who_leaves_alone_takes_the_load_along(bench: Bench) -> None:
    """Nobody else waits for this key: the load is aborted at once, and the target settles."""
    job = bench.job()
    bench.pass_seconds(1)
    job.leave()
    assert (bench.aborted, bench.turn.free) == (1, True)
    assert bench.fake.loads == []
    after = bench.job("beta")
    assert after.grant is not None
    assert after.grant.settling
    bench.pass_seconds(LOAD_SECONDS)
    assert after.done
    assert after.seconds is None  # nobody knows how long of it was the load
    assert not after.grant.settling
    after.end()


def test_the_next_job_of_the_key_takes_the_load_over(bench: Bench) -> None:
    """The place of who left is given on, the load is not thrown away, and nothing settles."""
    first, second = bench.job(), bench.job()
    bench.pass_seconds(3)
    first.leave()
    assert bench.turn.holder == second.job_id
    assert (bench.aborted, second.done) == (0, False)
    bench.pass_seconds(1)
    assert (second.done, second.seconds, bench.fake.loads) == (True, 1.0, ["alpha:latest"])
    assert len(bench.asked) == 1
    assert bench.told == [("job 1", LOAD_SECONDS)]
    assert second.grant is not None
    assert not second.grant.settling
    assert bench.swaps == 1
    second.end()


def test_a_load_form_takes_a_load_over_and_begins_none(bench: Bench) -> None:
    """It is its own preload."""
    first, second = bench.job(), bench.job(loads_itself=True)
    first.leave()
    assert not second.done
    bench.pass_seconds(LOAD_SECONDS)
    assert second.done
    second.end()
    third = bench.job("beta", loads_itself=True)
    assert third.done
    assert third.grant is not None
    assert third.grant.needs_load
    third.end()
    assert len(bench.asked) == 1


def test_another_key_is_chosen_and_the_load_is_aborted_first(bench: Bench) -> None:
    """Another key was chosen although somebody waits for this one: never two loads at once."""
    first = bench.job("alpha")
    bench.job("beta")
    bench.pass_seconds(1)
    third = bench.job("alpha")
    # The older line goes first now: the visit of this one is over, and it is overdue.
    bench.turn._visits.current.clear()
    bench.pass_seconds(2)
    first.leave()
    assert bench.turn.holder == "job 1"
    assert bench.aborted == 1
    assert [body["model"] for body in bench.asked] == ["alpha", "beta"]
    bench.pass_seconds(LOAD_SECONDS)
    assert bench.fake.loads == ["beta:latest"]
    bench.jobs[1].end()
    bench.pass_seconds(LOAD_SECONDS)
    assert third.done
    third.end()
    assert bench.fake.loads == ["beta:latest", "alpha:latest"]


def test_a_load_that_nobody_takes_over_is_aborted(bench: Bench) -> None:
    """Somebody waits for the key, and cannot get the turn: the target was lost meanwhile."""
    first, second = bench.job(), bench.job()
    bench.turn.block(TimeoutError())  # type: ignore[arg-type]
    first.leave()
    assert (bench.aborted, bench.turn.holder) == (1, None)
    second.leave()
    bench.turn.unblock()


@pytest.mark.parametrize("seconds", [1, LOAD_SECONDS])
def test_a_job_that_is_claimed_first_takes_the_load_over(bench: Bench, seconds: float) -> None:
    """It has the turn, and comes for the load later: in its middle, or when it has ended already."""
    claimed: Deferred[None] = Deferred()
    first, second = bench.job(), bench.job(claimed=claimed)
    first.leave()
    bench.pass_seconds(seconds)
    claimed.callback(None)
    bench.pass_seconds(LOAD_SECONDS - seconds)
    assert (second.done, bench.aborted, bench.fake.loads) == (True, 0, ["alpha:latest"])
    assert (len(bench.asked), bench.swaps, bench.told) == (1, 1, [("job 1", LOAD_SECONDS)])
    assert second.seconds == (LOAD_SECONDS - seconds or None)
    second.end()


def test_a_claim_that_fails_leaves_the_load_to_nobody(bench: Bench) -> None:
    """The job does not wait any more: it gives the turn back, and nobody wants the load."""
    first, second = bench.job(), bench.job(claimed=Deferred())
    first.leave()
    bench.pass_seconds(1)
    assert bench.aborted == 0
    second.leave()
    assert (bench.aborted, bench.turn.free) == (1, True)


def test_who_left_before_others_came_has_taken_it_along(bench: Bench) -> None:
    """The place is given back when the caller leaves, in every case."""
    for _ in range(3):
        bench.job()
    for job in bench.jobs:
        bench.pass_seconds(1)
        job.leave()
    assert (bench.aborted, len(bench.asked), bench.turn.free) == (1, 1, True)


@pytest.mark.parametrize("width", [2])
def test_with_width_the_others_wait_for_the_same_load(width: int) -> None:
    """Who joins a key that is being loaded waits for that; one of them may leave."""
    bench = Bench(width, slots=2)
    first, second = bench.job(), bench.job()
    assert second.grant is not None
    assert (second.done, second.grant.swap) == (False, False)
    bench.pass_seconds(1)
    first.leave()
    bench.pass_seconds(3)
    assert (bench.aborted, second.done, bench.fake.loads) == (0, True, ["alpha:latest"])
    second.end()
    assert bench.turn.free


@pytest.mark.parametrize(
    ("model", "options"),
    [("embed", ""), ("far", ""), ("big:120b-cloud", ""), ("nope", ""), ("", "")],
    ids=["no completion", "remote", "cloud", "not installed", "no name"],
)
def test_what_is_not_loaded_ahead(bench: Bench, model: str, options: str) -> None:
    """Only an installed model that generates on this target's own memory."""
    job = bench.job(model, options)
    assert job.done
    assert (bench.asked, job.seconds, bench.told) == ([], None, [])
    job.end()


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_a_refusal_is_no_answer(bench: Bench, status: int) -> None:
    """The job goes on to its own request, which is a swap still."""
    bench.fake.fail("/api/generate", status, "out of memory")
    job = bench.job()
    assert (job.done, bench.told, bench.swaps) == (True, [], 0)
    assert job.grant is not None
    assert job.grant.needs_load
    job.grant.first_byte()
    assert bench.swaps == 1
    job.end()


def test_a_cut_and_nonsense_are_no_answers(bench: Bench) -> None:
    """Nor is a connection that breaks, nor what is not Ollama's."""
    bench.fake.answer("/api/generate", Canned(200, b'{"done":', cut=True))
    bench.fake.answer("/api/generate", Canned(200, b"welcome!"))
    for _ in range(2):
        job = bench.job()
        assert job.done
        job.end()
    assert (bench.told, bench.swaps, len(bench.asked)) == ([], 0, 2)


def test_a_load_has_the_limit_of_the_first_byte(bench: Bench) -> None:
    """Then it is given up, and the job's own request is sent. Past half of it the load seems to be stuck."""
    bench.fake.gpu.load_seconds = 1000
    job = bench.job()
    bench.pass_seconds(LIMIT_SECONDS / 2)
    assert not bench.preloader.stalled()
    bench.pass_seconds(1)
    assert bench.preloader.stalled()
    bench.pass_seconds(LIMIT_SECONDS / 2 - 1.5)
    assert not job.done
    bench.pass_seconds(0.5)
    assert (job.done, bench.aborted, bench.preloader.stalled()) == (True, 1, False)
    job.end()


def test_while_the_target_settles_a_load_has_twice_its_limit(bench: Bench) -> None:
    """What the target finishes first has a limit of its own."""
    bench.job().leave()
    bench.fake.gpu.load_seconds = LIMIT_SECONDS * 1.5
    job = bench.job()
    bench.pass_seconds(LIMIT_SECONDS * 1.5)
    assert (job.done, bench.fake.loads, job.seconds) == (True, ["alpha:latest"], None)
    assert bench.told == [("job 1", LIMIT_SECONDS * 1.5)]
    job.end()


def test_stopping_lets_everybody_go(bench: Bench) -> None:
    """The load is aborted."""
    job = bench.job()
    bench.preloader.stop()
    assert (job.done, bench.aborted) == (True, 1)
    job.end()


def test_a_reading_from_before_the_end_of_a_load_says_nothing(bench: Bench) -> None:
    """/api/ps lists only what is loaded: a poll that began during the load finds nothing, rightly."""
    for model in ("alpha", "beta", "alpha", "beta"):
        job = bench.job(model)
        bench.fake.hold("/api/ps")
        asked_at = bench.clock.seconds()
        bench.pass_seconds(LOAD_SECONDS)
        bench.preloader.inventory_read(asked_at)
        bench.preloader.inventory_read(None)
        bench.fake.release()
        bench.pass_seconds(0)
        job.end()
    assert len(bench.asked) == 4


def test_a_target_that_keeps_no_model_is_spared(bench: Bench) -> None:
    """OLLAMA_KEEP_ALIVE=0 drops what was loaded ahead: twice seen, nothing is loaded ahead for an hour."""
    for number, model in enumerate(["alpha", "beta", "alpha"]):
        job = bench.job(model)
        assert len(bench.asked) == min(number + 1, 2)
        # Gone before /api/ps is read at the end of the load, while the job runs.
        bench.fake.answer("/api/ps", Canned(200, b'{"models":[]}'))
        bench.pass_seconds(LOAD_SECONDS)
        assert job.done
        job.end()
    bench.clock.advance(IDLE_SECONDS)
    bench.fake.heal()
    for model in ("beta", "alpha", "beta"):
        job = bench.job(model)
        bench.pass_seconds(LOAD_SECONDS)
        job.end()
    assert len(bench.asked) == 5
