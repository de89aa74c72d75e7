"""The turn on a clock: who gets it, when it is free again, and that nothing ever leaks it."""

import random
from collections.abc import Callable
from typing import ClassVar

import pytest
from attrs import define, evolve, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure

from foreman.errors import ForemanError
from foreman.scheduler.grant import Grant
from foreman.scheduler.keys import KeyRegistry, ModelKey
from foreman.scheduler.lines import NamedLine
from foreman.scheduler.policy import Candidate, Lane, Limits, Why
from foreman.scheduler.turn import Turn
from foreman.testing.durable import FakeDurable
from foreman.testing.simulation import NoInventory, SimulatedJob, Simulation

INTERACTIVE, DURABLE = Lane.INTERACTIVE, Lane.DURABLE


class BrokenError(Exception):
    """Whatever may go wrong within a block."""


@define(eq=False)
class Caller:
    """Somebody who takes the turn, keeps it until `done` fires, and tells how it went."""

    done: Deferred[None] = field(factory=Deferred)
    grant: Grant | None = None
    result: Deferred[str] = field(factory=Deferred)
    outcome: object = None


@define(eq=False)
class Bench:
    """A turn on a clock, and its callers by job id."""

    limits: Limits = field(factory=Limits)
    patience: float = 10.0
    settle_limit: float = 100.0
    clock: Clock = field(factory=Clock)
    granted: list[str] = field(factory=list)
    callers: dict[str, Caller] = field(factory=dict)
    turn: Turn = field(init=False)
    durable: FakeDurable = field(init=False)

    def __attrs_post_init__(self) -> None:
        keys = KeyRegistry(NoInventory())
        self.turn = Turn(self.clock, keys, self.limits, self.patience, self.settle_limit)
        self.durable = FakeDurable(self.clock, self.turn)

    def come(
        self, job_id: str, model: str | None = "a", lane: Lane = INTERACTIVE, priority: int = 0
    ) -> Caller:
        """A caller comes, and gets the turn or waits for it."""
        caller = self.callers[job_id] = Caller()

        async def work() -> str:
            source = self.durable if lane is DURABLE else self.turn
            async with source.take(job_id, model, priority) as grant:
                self.granted.append(job_id)
                caller.grant = grant
                await caller.done
            return "done"

        def ended(outcome: object) -> None:
            caller.outcome = outcome.value if isinstance(outcome, Failure) else outcome

        caller.result = Deferred.fromCoroutine(work())
        caller.result.addBoth(ended)
        return caller

    def leave(self, job_id: str) -> None:
        """The holder's block ends."""
        self.callers[job_id].done.callback(None)

    def grant(self, job_id: str) -> Grant:
        """The grant of a caller who holds the turn."""
        grant = self.callers[job_id].grant
        assert grant is not None
        assert self.turn.holder == job_id
        return grant


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_free_turn_is_granted_at_once(bench: Bench) -> None:
    """Nobody waits when nobody is before him."""
    assert bench.turn.free
    bench.come("1")
    grant = bench.grant("1")
    assert (grant.queued_seconds, grant.swap, grant.settling) == (0.0, True, False)
    assert not bench.turn.free
    bench.leave("1")
    assert bench.turn.free
    assert bench.turn.holder is None
    assert bench.callers["1"].outcome == "done"


def test_one_at_a_time_in_the_order_of_arrival(bench: Bench) -> None:
    """Width 1: the next one starts when the block of the one before is left, in the same instant."""
    for number in "1234":
        bench.come(number)
    assert (bench.granted, bench.turn.waiting) == (["1"], 3)
    for number in "1234":
        bench.clock.advance(2)
        bench.leave(number)
    assert bench.granted == ["1", "2", "3", "4"]
    assert [bench.callers[number].grant.queued_seconds for number in "1234"] == [0, 2, 4, 6]  # type: ignore[union-attr]
    assert bench.turn.free


def test_priority_goes_before_age_in_a_line(bench: Bench) -> None:
    """Higher runs first."""
    bench.come("0")
    for job_id, priority in [("low", -1), ("normal", 0), ("high", 7), ("normal too", 0)]:
        bench.come(job_id, priority=priority)
    for job_id in ["0", "high", "normal", "normal too"]:
        bench.leave(job_id)
    assert bench.granted == ["0", "high", "normal", "normal too", "low"]
    bench.leave("low")


def test_a_caller_who_leaves_while_waiting_never_gets_the_turn(bench: Bench) -> None:
    """Cancelling the wait removes the job."""
    for number in "123":
        bench.come(number)
    bench.callers["2"].result.cancel()
    assert bench.turn.waiting == 1
    assert isinstance(bench.callers["2"].outcome, CancelledError)
    bench.leave("1")
    bench.leave("3")
    assert bench.granted == ["1", "3"]
    assert bench.turn.free


def test_a_holder_who_is_cancelled_or_fails_frees_the_turn(bench: Bench) -> None:
    """In whatever way the block is left."""
    for number in "123":
        bench.come(number)
    bench.callers["1"].result.cancel()
    assert bench.turn.holder == "2"
    bench.callers["2"].done.errback(Failure(BrokenError()))
    assert isinstance(bench.callers["2"].outcome, BrokenError)
    assert bench.turn.holder == "3"
    bench.leave("3")
    assert bench.turn.free


def test_leaving_twice_frees_the_turn_once(bench: Bench) -> None:
    """A second exit must not free what somebody else holds by then."""
    take = bench.turn.take("1", "a")
    Deferred.fromCoroutine(take.__aenter__())
    bench.come("2")
    bench.come("3")
    for _ in range(2):
        Deferred.fromCoroutine(take.__aexit__(None, None, None))
    assert (bench.turn.holder, bench.turn.waiting) == ("2", 1)
    bench.leave("2")
    bench.leave("3")


def test_a_wait_whose_coroutine_is_closed_is_over(bench: Bench) -> None:
    """A coroutine may be closed from outside, without a Deferred being cancelled."""
    bench.come("1")
    waiting = bench.turn.take("2", "a").__aenter__()
    waiting.send(None)
    assert bench.turn.waiting == 1
    waiting.close()
    assert bench.turn.waiting == 0
    bench.leave("1")
    assert bench.turn.free


def test_the_same_id_cannot_wait_twice(bench: Bench) -> None:
    """The second one fails, the first one keeps its place."""
    bench.come("0")
    first = bench.come("1")
    second = bench.come("1")
    assert isinstance(second.outcome, ValueError)
    bench.leave("0")
    assert first.grant is not None
    first.done.callback(None)
    assert bench.turn.free


def test_a_name_that_breaks_the_registry_leaves_nothing_behind(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is raised while a job is let in, the job is out again."""

    def broken(self: KeyRegistry, name: str | None) -> ModelKey:
        raise BrokenError(name)

    with monkeypatch.context() as patch:
        patch.setattr(KeyRegistry, "key", broken)
        assert isinstance(bench.come("1").outcome, BrokenError)
    assert bench.turn.free
    bench.come("2")
    bench.leave("2")


def test_jobs_that_end_at_once_do_not_pile_up_on_the_stack(bench: Bench) -> None:
    """5,000 jobs leave their blocks within the call that grants them, and run in order."""
    bench.come("holder")
    order: list[int] = []

    async def work(number: int) -> None:
        async with bench.turn.take(str(number), "a"):
            order.append(number)

    for number in range(5000):
        Deferred.fromCoroutine(work(number))
    bench.leave("holder")
    assert order == list(range(5000))
    assert bench.turn.free


def test_who_comes_while_the_turn_is_granted_does_not_overtake(bench: Bench) -> None:
    """A job may call back into the turn as it gets it: those who waited before are still before."""
    bench.come("1")
    order: list[str] = []

    async def work(job_id: str, on_grant: Callable[[], object]) -> None:
        async with bench.turn.take(job_id, "a"):
            order.append(job_id)
            on_grant()

    def nothing() -> None: ...

    Deferred.fromCoroutine(work("2", lambda: Deferred.fromCoroutine(work("late", nothing))))
    Deferred.fromCoroutine(work("3", nothing))
    bench.leave("1")
    assert order == ["2", "3", "late"]
    assert bench.turn.free


def test_a_job_that_is_cancelled_as_another_gets_the_turn(bench: Bench) -> None:
    """The next in line leaves within the very call that frees and grants the turn."""
    go: Deferred[None] = Deferred()

    async def first() -> None:
        async with bench.turn.take("1", "a"):
            await go
            bench.callers["2"].result.cancel()

    Deferred.fromCoroutine(first())
    for number in "234":
        bench.come(number)
    go.callback(None)
    assert bench.turn.holder == "3"
    bench.callers["3"].result.cancel()  # in the same instant as its grant
    assert bench.turn.holder == "4"
    bench.leave("4")
    assert bench.granted == ["3", "4"]
    assert bench.turn.free


def test_forty_jobs_that_alternate_two_models_cost_two_swaps() -> None:
    """All of them waiting: each model is loaded once."""
    jobs = [SimulatedJob(str(n), INTERACTIVE, "ab"[n % 2], 0, 0.0, 0.25) for n in range(40)]
    simulation = Simulation({"a": 1.0, "b": 1.0})
    runs = simulation.run(jobs)
    assert (len(runs), sum(run.swap for run in runs)) == (40, 2)
    assert [run.job.model for run in runs] == ["a"] * 20 + ["b"] * 20


def test_a_request_beside_a_steady_stream_on_another_model_starts_in_time() -> None:
    """W: it is overdue after 5 s; the running job, and the rest of the visit with one job, come first."""
    stream = [SimulatedJob(f"a{n}", INTERACTIVE, "a", 0, n * 0.9, 1.0) for n in range(200)]
    runs = Simulation({"a": 3.0, "b": 3.0}).run([*stream, SimulatedJob("b", INTERACTIVE, "b", 0, 10.0, 1.0)])
    (run,) = (run for run in runs if run.job.job_id == "b")
    assert 30 <= run.started_at <= 10 + 5 + 1 + (30 - 15) + 1
    assert sum(run.swap for run in runs) == 3


def test_a_visit_that_was_interrupted_by_the_other_lane_goes_on_and_counts_only_its_own_time() -> None:
    """60 s of interactive work in the middle of a durable visit do not shorten it."""
    limits = Limits(durable_max_wait=1, durable_visit=100)
    durable = [SimulatedJob(f"d{n}", DURABLE, "ab"[n >= 20], 0, 0.0, 10.0) for n in range(40)]
    chat = [SimulatedJob(f"i{n}", INTERACTIVE, "c", 0, 25.0, 20.0) for n in range(3)]
    runs = Simulation({"a": 0.0, "b": 0.0, "c": 0.0}, evolve(limits, interactive_share=1.0)).run(
        [*durable, *chat]
    )
    assert "".join(run.job.model for run in runs).startswith("aaaccc" + "a" * 7 + "b" * 10 + "a" * 10)


def test_the_durable_lane_gets_its_share_beside_an_interactive_stream_without_end() -> None:
    """One fifth of the busy time, by default."""
    chat = [SimulatedJob(f"i{n}", INTERACTIVE, "a", 0, n * 1.0, 2.0) for n in range(1000)]
    durable = [SimulatedJob(f"d{n}", DURABLE, "a", 0, 0.0, 2.0) for n in range(1000)]
    runs = [run for run in Simulation({"a": 0.0}).run([*chat, *durable]) if run.started_at < 1500]
    share = sum(run.job.lane is DURABLE for run in runs) / len(runs)
    assert share == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    ("alone", "together", "owed"),
    [
        pytest.param(100.0, 0.0, False, id="only the interactive lane had work"),
        pytest.param(0.0, 100.0, True, id="both had, though the durable job has left"),
    ],
)
def test_only_busy_time_in_which_both_lanes_had_work_is_measured(
    bench: Bench, alone: float, together: float, owed: bool
) -> None:
    """It counts up to the moment at which the last waiting job of the other lane leaves."""
    bench.come("1")
    bench.grant("1").first_byte()
    bench.clock.advance(alone)
    bench.come("gone", lane=DURABLE)
    bench.clock.advance(together)
    bench.callers["gone"].result.cancel()
    bench.clock.advance(alone)
    bench.come("interactive")
    bench.come("durable", lane=DURABLE)
    bench.leave("1")
    assert bench.granted[-1] == ("durable" if owed else "interactive")
    for _ in range(2):
        bench.leave(bench.granted[-1])


def test_a_visit_is_over_when_its_line_is_empty_while_the_turn_is_free(bench: Bench) -> None:
    """Also while the other lane gets the turn: what comes to the line later begins a new visit."""
    bench.come("1", model="b")
    bench.come("2", lane=DURABLE)
    bench.leave("1")
    bench.come("3", model="b")
    bench.come("4", lane=DURABLE)
    bench.leave("2")
    assert bench.grant("4").why is Why.VISIT  # b is not resident, and its visit is over
    bench.leave("4")
    bench.leave("3")


def test_the_first_byte_makes_the_key_resident_and_tells_of_the_swap_once(bench: Bench) -> None:
    """`on_swap` is the moment to read /api/ps again; a job of the resident key does not call it."""
    told: list[str | None] = []
    bench.turn.on_swap = lambda: told.append(bench.turn.holder)
    bench.come("1")
    assert told == []
    bench.grant("1").first_byte()
    bench.grant("1").first_byte()
    assert told == ["1"]
    bench.come("2")
    bench.leave("1")
    assert not bench.grant("2").swap
    bench.grant("2").first_byte()
    bench.leave("2")
    bench.come("3", model="b")
    bench.grant("3").first_byte()
    bench.leave("3")
    assert told == ["1", "3"]


def test_a_swap_lasts_from_its_grant_to_the_first_byte_or_the_end(bench: Bench) -> None:
    """`swapped_at` is now while one is under way, and its end afterwards; a resident key changes nothing."""
    assert bench.turn.swapped_at is None
    bench.come("1")
    bench.clock.advance(5)
    assert bench.turn.swapped_at == bench.clock.seconds()
    bench.grant("1").first_byte()
    first_byte_at = bench.clock.seconds()
    bench.clock.advance(5)
    bench.leave("1")
    bench.come("2")
    bench.grant("2").first_byte()
    bench.leave("2")
    assert bench.turn.swapped_at == first_byte_at
    bench.come("3", model="b")
    bench.clock.advance(5)
    bench.leave("3")
    left_at = bench.clock.seconds()
    bench.clock.advance(5)
    assert bench.turn.swapped_at == left_at


def test_a_first_byte_after_the_block_teaches_nothing(bench: Bench) -> None:
    """A late callback of a job that is over must not speak for the one that runs."""
    bench.come("1")
    late = bench.grant("1")
    bench.leave("1")
    late.first_byte()
    bench.come("2")
    assert bench.grant("2").swap
    bench.leave("2")


def test_a_body_that_cannot_be_read_takes_a_turn_as_a_swap(bench: Bench) -> None:
    """Nobody knows what it loads."""
    bench.come("1", model=None)
    bench.grant("1").first_byte()
    bench.come("2", model=None)
    bench.leave("1")
    assert bench.grant("2").swap
    bench.leave("2")


def test_after_an_abort_before_the_first_byte_the_target_is_settling(bench: Bench) -> None:
    """Until the first byte of whoever comes next; after the first byte an abort frees the target at once."""
    bench.come("1")
    bench.grant("1").abort()
    bench.leave("1")
    bench.clock.advance(50)
    bench.come("2")
    assert bench.grant("2").settling
    bench.leave("2")  # it left before it was answered: the target is still settling
    bench.come("3")
    assert bench.grant("3").settling
    bench.grant("3").first_byte()
    bench.grant("3").abort()
    bench.leave("3")
    bench.come("4")
    assert not bench.grant("4").settling
    bench.leave("4")


def test_settling_ends_with_its_limit_or_with_the_target(bench: Bench) -> None:
    """After `settle_limit`, or when the target was away in between, nothing of before runs there."""
    bench.come("1")
    bench.grant("1").abort()
    bench.leave("1")
    bench.clock.advance(100)
    bench.come("2")
    assert not bench.grant("2").settling
    bench.grant("2").abort()
    bench.leave("2")
    bench.turn.block(ForemanError("gone"))
    bench.turn.unblock()
    bench.come("3")
    assert not bench.grant("3").settling
    bench.leave("3")


@pytest.mark.parametrize(
    ("aborter", "first_byte_after", "owed"),
    [
        pytest.param(INTERACTIVE, 90.0, True, id="the interactive lane pays for what it aborted"),
        pytest.param(DURABLE, 90.0, False, id="the durable lane pays for what it aborted"),
        pytest.param(DURABLE, 900.0, True, id="at most the settle limit"),
    ],
)
def test_the_lane_that_aborted_pays_for_the_settling(
    bench: Bench, aborter: Lane, first_byte_after: float, owed: bool
) -> None:
    """An interactive job is busy from its first byte on: before, it is the lane that aborted."""
    bench.come("1", lane=aborter)
    bench.grant("1").abort()
    bench.leave("1")
    bench.come("2")
    bench.come("durable", lane=DURABLE)
    bench.come("interactive")
    bench.clock.advance(first_byte_after)
    bench.grant("2").first_byte()
    bench.clock.advance(1)
    bench.leave("2")
    assert bench.granted[-1] == ("durable" if owed else "interactive")
    for _ in range(2):
        bench.leave(bench.granted[-1])


def test_nothing_is_granted_while_the_target_is_unreachable(bench: Bench) -> None:
    """Whoever waits starts when it is back."""
    bench.turn.block(ForemanError("gone"))
    bench.come("1")
    bench.come("2")
    bench.clock.advance(9)
    assert bench.granted == []
    bench.turn.unblock()
    assert bench.granted == ["1"]
    assert bench.grant("1").queued_seconds == 9
    bench.leave("1")
    bench.leave("2")
    assert bench.clock.getDelayedCalls() == []


def test_an_interactive_job_waits_for_the_target_with_patience(bench: Bench) -> None:
    """10 s from the block or from its arrival; then it fails with the latest error. Durable jobs wait on."""
    bench.come("holder")
    bench.come("early")
    bench.clock.advance(100)
    bench.turn.block(ForemanError("refused"))
    bench.come("durable", lane=DURABLE)
    bench.clock.advance(4)
    bench.turn.block(ForemanError("no such host"))
    bench.come("late")
    bench.clock.advance(5.5)
    assert bench.callers["early"].outcome is None
    bench.clock.advance(0.5)
    assert str(bench.callers["early"].outcome) == "no such host"
    assert bench.callers["late"].outcome is None
    bench.clock.advance(4)
    assert str(bench.callers["late"].outcome) == "no such host"
    bench.leave("holder")
    bench.clock.advance(10_000)
    assert (bench.turn.waiting, bench.turn.holder) == (1, None)
    bench.turn.unblock()
    bench.leave("durable")
    assert bench.turn.free


def test_each_outage_has_a_patience_of_its_own(bench: Bench) -> None:
    """What was left of an earlier one does not cut a later one short."""
    bench.come("holder")
    bench.come("1")
    bench.turn.block(ForemanError("gone"))
    bench.clock.advance(9)
    bench.turn.unblock()
    bench.turn.block(ForemanError("gone again"))
    bench.clock.advance(9)
    assert bench.callers["1"].outcome is None
    bench.clock.advance(1)
    assert str(bench.callers["1"].outcome) == "gone again"
    bench.leave("holder")


def test_time_with_the_target_unreachable_does_not_count_as_waiting() -> None:
    """B waited 4 s and then through an outage: A's visit goes on until B has waited its fifth second."""
    bench = Bench(Limits(interactive_visit=0), patience=1e6)
    bench.come("a1")
    bench.come("b", model="b")
    for number in range(2, 5):
        bench.come(f"a{number}")
    bench.clock.advance(4)
    bench.turn.block(ForemanError("gone"))
    bench.leave("a1")
    bench.clock.advance(1000)
    bench.turn.unblock()
    bench.turn.unblock()
    bench.leave("a2")
    bench.clock.advance(1)
    bench.leave("a3")
    assert bench.granted == ["a1", "a2", "a3", "b"]
    bench.leave("b")
    bench.leave("a4")


def test_closing_fails_the_interactive_jobs_and_lets_the_holder_go_on(bench: Bench) -> None:
    """Durable ones wait until their owner cancels them; nothing is granted any more."""
    bench.come("holder")
    bench.come("1")
    bench.come("durable", lane=DURABLE)
    bench.turn.close(ForemanError("foreman is stopping"))
    assert str(bench.callers["1"].outcome) == "foreman is stopping"
    assert str(bench.come("2").outcome) == "foreman is stopping"
    assert bench.turn.holder == "holder"
    bench.leave("holder")
    assert bench.callers["holder"].outcome == "done"
    assert bench.turn.holder is None
    bench.callers["durable"].result.cancel()
    assert bench.turn.free


def test_a_failing_job_may_make_others_leave(bench: Bench) -> None:
    """Those who leave while all are being failed are not failed once more, nor is anybody passed over."""
    bench.come("holder")
    for number in "123":
        bench.come(number)
    bench.callers["1"].result.addBoth(lambda _: bench.callers["2"].result.cancel())
    bench.turn.close(ForemanError("stop"))
    assert [type(bench.callers[number].outcome) for number in "123"] == [
        ForemanError,
        CancelledError,
        ForemanError,
    ]
    bench.leave("holder")


def test_the_next_durable_job_is_chosen_within_the_release(bench: Bench) -> None:
    """So whoever ends one can write down both in one transaction; released twice is released once."""
    told: list[str] = []

    class Source:
        count = 2
        waiting: ClassVar = ["1", "2", "3"]

        def lines(self) -> list[NamedLine]:
            jobs = [Candidate(job_id, 0, 0.0, int(job_id)) for job_id in self.waiting]
            return [NamedLine("a", jobs[0], jobs[0])] if jobs else []

        def granted(self, grant: Grant) -> None:
            told.append(grant.job_id)
            self.waiting.remove(grant.job_id)
            self.count = len(self.waiting)
            self.grant = grant

    source = Source()
    bench.turn.attach(source)
    assert told == ["1"]
    first = source.grant
    first.first_byte()
    bench.turn.release(first)
    assert told == ["1", "2"]
    bench.turn.release(first)
    assert told == ["1", "2"]
    caller = bench.come("chat")
    bench.turn.release(source.grant)
    assert (told, bench.turn.holder, caller.grant is None) == (["1", "2"], "chat", False)
    bench.leave("chat")
    assert bench.turn.holder == "3"
    bench.turn.release(source.grant)
    assert bench.turn.free


@define(eq=False)
class Chaos:
    """Callers who come, work, fail, are cancelled, and call back into the turn, as the dice say."""

    dice: random.Random
    clock: Clock = field(factory=Clock)
    holding: int = 0
    running: dict[str, Deferred[None]] = field(factory=dict)
    ended: set[str] = field(factory=set)
    born: int = 0
    turn: Turn = field(init=False)
    durable: FakeDurable = field(init=False)

    def __attrs_post_init__(self) -> None:
        keys = KeyRegistry(NoInventory())
        self.turn = Turn(self.clock, keys, Limits(interactive_max_wait=3), patience=4.0, settle_limit=5.0)
        self.durable = FakeDurable(self.clock, self.turn)

    def begin(self) -> None:
        job_id = str(self.born)
        self.born += 1
        result = Deferred.fromCoroutine(self.work(job_id))
        self.running[job_id] = result
        result.addErrback(lambda failure: failure.trap(BrokenError, CancelledError, ForemanError) and None)
        result.addCallback(lambda _: self.ended.add(job_id))

    def disturb(self) -> None:
        """Something happens, perhaps within the turn's own call."""
        what = self.dice.random()
        if what < 0.35 and self.running:
            self.cancel(self.dice.choice(list(self.running)))
        elif what < 0.45 and self.born < 30:
            self.begin()
        elif what < 0.55:
            self.turn.block(ForemanError("gone"))
        elif what < 0.7:
            self.turn.unblock()
        elif what < 0.75:
            raise BrokenError

    def cancel(self, job_id: str) -> None:
        if job_id != self.turn.holder or not self.holding:  # a coroutine cannot cancel itself while it runs
            self.running[job_id].cancel()

    async def work(self, job_id: str) -> None:
        source, model = self.dice.choice([self.turn, self.durable]), self.dice.choice(["a", "b", None])
        async with source.take(job_id, model, self.dice.choice([0, 0, 1])) as grant:
            assert self.turn.holder == job_id
            self.holding += 1
            assert self.holding == 1
            try:
                self.disturb()
                for _ in range(self.dice.randint(0, 3)):
                    self.holding -= 1  # from here until it goes on, it may be cancelled
                    try:
                        await deferLater(self.clock, self.dice.choice([0, 1, 2]))
                    finally:
                        self.holding += 1
                    self.dice.choice([grant.first_byte, grant.abort, self.disturb])()
            finally:
                self.holding -= 1


@pytest.mark.parametrize("block_of_seeds", range(10))
def test_nothing_leaks_the_turn(block_of_seeds: int) -> None:
    """After any interleaving of arrivals, failures and cancellations, all have ended and a new job starts."""
    for seed in range(block_of_seeds * 300, (block_of_seeds + 1) * 300):
        chaos = Chaos(random.Random(seed))
        for _ in range(12):
            chaos.begin()
            if chaos.dice.random() < 0.5:
                chaos.clock.advance(chaos.dice.choice([0, 1]))
            if chaos.running and chaos.dice.random() < 0.4:
                chaos.cancel(chaos.dice.choice(list(chaos.running)))
        for _ in range(300):
            chaos.turn.unblock()
            chaos.clock.advance(1)
        assert len(chaos.ended) == chaos.born, f"seed {seed}"
        assert chaos.turn.free, f"seed {seed}"
        assert chaos.clock.getDelayedCalls() == [], f"seed {seed}"
        chaos.dice.random = lambda: 1.0  # type: ignore[method-assign]  # no disturbance
        chaos.begin()
        assert chaos.turn.holder == str(chaos.born - 1) or str(chaos.born - 1) in chaos.ended
        chaos.clock.advance(10)
        chaos.clock.advance(10)
        chaos.clock.advance(10)
        assert chaos.turn.free, f"seed {seed}"
