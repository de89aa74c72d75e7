"""The turn on a clock: who gets it, when it is free again, and that nothing ever leaks it."""

import random
from collections.abc import Callable
from typing import ClassVar

import pytest
from attrs import define, evolve, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure

from foreman.errors import ForemanError, ServerBusy
from foreman.scheduler.grant import Grant
from foreman.scheduler.keys import UNKNOWN, KeyRegistry, ModelKey, Wanted
from foreman.scheduler.lines import NamedLine
from foreman.scheduler.policy import Candidate, Lane, Limits, Why
from foreman.scheduler.turn import Turn
from foreman.testing.durable import FakeDurable
from foreman.testing.simulation import NoInventory, SimulatedJob, Simulation

INTERACTIVE, DURABLE = Lane.INTERACTIVE, Lane.DURABLE


def wanted(model: str | None) -> Wanted | None:
    """None is a body that cannot be read."""
    return None if model is None else Wanted(model)


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
    width: int = 1
    interactive_limit: int = 10_000
    clock: Clock = field(factory=Clock)
    granted: list[str] = field(factory=list)
    callers: dict[str, Caller] = field(factory=dict)
    turn: Turn = field(init=False)
    durable: FakeDurable = field(init=False)

    def __attrs_post_init__(self) -> None:
        keys = KeyRegistry(NoInventory())
        self.turn = Turn(
            self.clock,
            keys,
            self.limits,
            self.patience,
            self.settle_limit,
            self.width,
            self.interactive_limit,
        )
        self.durable = FakeDurable(self.clock, self.turn)

    def come(
        self,
        job_id: str,
        model: str | None = "a",
        lane: Lane = INTERACTIVE,
        priority: int = 0,
        lowered: bool = False,
        caller_name: str = "",
    ) -> Caller:
        """A caller comes, and gets the turn or waits for it; a lowered one is a native request."""
        caller = self.callers[job_id] = Caller()

        async def work() -> str:
            take = (
                self.durable.take(job_id, wanted(model), priority)
                if lane is DURABLE and not lowered
                else self.turn.take(job_id, wanted(model), priority, lane=lane, caller=caller_name)
            )
            async with take as grant:
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
        assert grant in self.turn.holders
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
    take = bench.turn.take("1", Wanted("a"))
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
    waiting = bench.turn.take("2", Wanted("a")).__aenter__()
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

    def broken(self: KeyRegistry, wanted: Wanted | None) -> ModelKey:
        raise BrokenError(wanted)

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
        async with bench.turn.take(str(number), Wanted("a")):
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
        async with bench.turn.take(job_id, Wanted("a")):
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
        async with bench.turn.take("1", Wanted("a")):
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


def test_a_load_ahead_ends_the_swap_and_the_first_byte_does_not_again(bench: Bench) -> None:
    """The key is resident from then on, and nothing settles; the job's own request is still to come."""
    told: list[str | None] = []
    bench.turn.on_swap = lambda: told.append(bench.turn.holder)
    bench.come("0", model="b")
    bench.grant("0").abort()
    bench.leave("0")
    bench.come("1")
    grant = bench.grant("1")
    assert (grant.needs_load, grant.settling) == (True, True)
    bench.clock.advance(5)
    bench.turn.loaded(KeyRegistry(NoInventory()).key(wanted("b")))  # of a load that was aborted too late
    assert (grant.needs_load, bench.turn.swapped_at, told) == (True, bench.clock.seconds(), [])
    bench.turn.loaded(grant.key)
    loaded_at = bench.clock.seconds()
    assert (grant.swap, grant.needs_load, grant.settling, grant.answered) == (True, False, False, False)
    assert told == ["1"]
    bench.clock.advance(5)
    grant.first_byte()
    assert (told, bench.turn.swapped_at) == (["1"], loaded_at)
    bench.come("2")
    bench.leave("1")
    assert not bench.grant("2").needs_load
    bench.leave("2")


def test_what_is_aborted_after_a_load_ahead_settles(bench: Bench) -> None:
    """The load was no answer: the target may be at the prompt."""
    bench.come("1")
    bench.turn.loaded(bench.grant("1").key)
    bench.grant("1").abort()
    bench.leave("1")
    bench.come("2")
    assert bench.grant("2").settling
    bench.leave("2")


def test_each_choice_is_told_when_nobody_else_can_get_the_turn(bench: Bench) -> None:
    """Also when nobody got it: who has it then, has it for good."""
    seen: list[str | None] = []
    bench.turn.on_choice = lambda: seen.append(bench.turn.holder)
    bench.come("1")
    bench.come("2")
    bench.leave("1")
    bench.leave("2")
    assert seen == ["1", "1", "2", None]


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
        claiming = False
        waiting: ClassVar = ["1", "2", "3"]

        def lines(self) -> list[NamedLine]:
            jobs = [Candidate(job_id, 0, 0.0, int(job_id)) for job_id in self.waiting]
            return [NamedLine(Wanted("a"), jobs[0], jobs[0])] if jobs else []

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


def wide(width: int = 2, limits: Limits | None = None) -> Bench:
    """A turn that jobs share."""
    return Bench(limits or Limits(), width=width)


def test_jobs_of_one_key_share_the_turn_up_to_the_width() -> None:
    """The place that one leaves is the next one's; the turn is free when all have left."""
    bench = wide(3)
    for number in range(5):
        bench.come(str(number))
    assert (bench.granted, bench.turn.waiting) == (["0", "1", "2"], 2)
    bench.leave("1")
    assert [grant.job_id for grant in bench.turn.holders] == ["0", "2", "3"]
    for job_id in "0324":
        bench.leave(job_id)
    assert bench.turn.free


def test_jobs_of_both_lanes_share_the_turn() -> None:
    """Also a native request that was lowered: what counts is the key."""
    bench = wide(3)
    bench.come("chat")
    bench.come("batch", lane=DURABLE)
    bench.come("lowered", lane=DURABLE, lowered=True)
    assert bench.granted == ["chat", "batch", "lowered"]
    assert [grant.lane for grant in bench.turn.holders] == [INTERACTIVE, DURABLE, DURABLE]
    for job_id in bench.granted:
        bench.leave(job_id)
    assert bench.turn.free


def test_nothing_is_admitted_once_another_line_has_won() -> None:
    """With nothing of its key waiting, the place beside a job makes the next line win; that starts alone."""
    bench = wide()
    bench.come("a1")
    bench.come("b", model="b")
    bench.come("a2")
    assert bench.granted == ["a1"]
    bench.leave("a1")
    assert bench.granted == ["a1", "b"]
    bench.leave("b")
    assert bench.granted == ["a1", "b", "a2"]
    bench.leave("a2")


def test_a_visit_that_must_yield_admits_nothing_more() -> None:
    """Its time is up and b is overdue: what runs ends, and what waits of its line is behind b."""
    bench = wide(limits=Limits(interactive_visit=8))
    for number in range(6):
        bench.come(f"a{number}")
    bench.come("b0", model="b", priority=-1)
    bench.come("b1", model="b")
    bench.clock.advance(7)
    bench.leave("a0")
    assert bench.granted == ["a0", "a1", "a2"]
    bench.clock.advance(1)
    bench.leave("a1")
    bench.clock.advance(1)
    assert bench.granted == ["a0", "a1", "a2"]
    assert bench.turn.visit is None
    won = bench.turn.visits[INTERACTIVE]
    assert (won.since, won.won_by) == (8.0, Why.OVERDUE)
    bench.leave("a2")
    # The first job of a visit won by being overdue is the longest-waiting one, though the win is a while ago.
    assert bench.granted == ["a0", "a1", "a2", "b0", "b1"]
    assert [bench.grant(job_id).why for job_id in ("b0", "b1")] == [Why.OVERDUE, Why.VISIT]
    assert bench.turn.visit is not None
    assert bench.turn.visit.since == 8.0
    for job_id in ("b0", "b1", "a3", "a4", "a5"):
        bench.leave(job_id)


def test_the_place_is_free_again_when_the_line_that_had_won_leaves() -> None:
    """Its only job is cancelled: what waited for it to start need not."""
    bench = wide()
    bench.come("a1")
    bench.come("b", model="b")
    bench.come("a2")
    bench.callers["b"].result.cancel()
    assert bench.granted == ["a1", "a2"]
    bench.leave("a1")
    bench.leave("a2")


def test_a_win_is_lost_to_the_other_lane_when_that_goes_first() -> None:
    """The durable line has won beside a chat; another chat with its model comes before it has ended."""
    bench = wide()
    bench.come("chat 1")
    bench.come("batch", model="b", lane=DURABLE)
    bench.grant("chat 1").first_byte()
    bench.come("chat 2")
    assert bench.turn.visits[DURABLE].since == 0
    bench.clock.advance(3)
    bench.leave("chat 1")
    assert bench.granted == ["chat 1", "chat 2"]
    assert bench.turn.visits[DURABLE].since == 3  # it has won anew, beside the second chat
    bench.leave("chat 2")
    assert bench.grant("batch").why is Why.HEAD
    bench.leave("batch")


def test_a_body_that_cannot_be_read_runs_alone() -> None:
    """Nobody knows what it loads: two of them may be of two models."""
    bench = wide(4)
    bench.come("1", model=None)
    bench.come("2", model=None)
    bench.come("3")
    assert bench.granted == ["1"]
    bench.leave("1")
    assert bench.granted == ["1", "2"]
    bench.leave("2")
    bench.leave("3")


def test_those_who_share_a_load_are_one_swap() -> None:
    """The load is the first one's; the first byte of any of them ends it, and is told once."""
    told: list[str] = []
    bench = wide(3)
    bench.turn.on_swap = lambda: told.append("swap")
    for number in "123":
        bench.come(number)
    assert [bench.grant(number).swap for number in "123"] == [True, False, False]
    bench.clock.advance(5)
    assert bench.turn.swapped_at == 5
    bench.grant("2").first_byte()
    bench.clock.advance(5)
    bench.grant("1").first_byte()
    assert (told, bench.turn.swapped_at) == (["swap"], 5)
    for number in "123":
        bench.leave(number)


def test_a_load_that_is_left_behind_is_the_next_ones_swap() -> None:
    """The target throws it away with the request that began it, and begins anew for the next."""
    bench = wide(3)
    for number in "123":
        bench.come(number)
    bench.grant("1").abort()
    bench.leave("1")
    assert [bench.grant(number).swap for number in "23"] == [True, False]
    bench.clock.advance(1)
    assert bench.turn.swapped_at == 1
    bench.grant("3").first_byte()
    bench.leave("2")
    assert not bench.grant("3").settling
    bench.leave("3")


def test_busy_time_counts_once_whoever_shares_it() -> None:
    """Four jobs of one lane for 100 s are 100 busy seconds; of two lanes, 50 for each."""
    bench = wide(4)
    for number in range(4):
        bench.come(f"d{number}", lane=DURABLE)
    bench.come("chat", model="b")
    bench.clock.advance(100)
    bench.turn.durable_changed()
    assert bench.turn._ledger.owed_seconds == pytest.approx(-0.8 * 100)
    assert bench.turn.visits[DURABLE].seconds == 100
    bench.callers["chat"].result.cancel()
    bench.leave("d0")
    bench.come("chat too")
    bench.leave("d1")
    bench.leave("d2")
    before = bench.turn._ledger.owed_seconds
    bench.clock.advance(100)
    bench.turn.durable_changed()
    assert bench.turn._ledger.owed_seconds - before == pytest.approx(50 * 0.2 - 50 * 0.8)
    for job_id in ("d3", "chat too"):
        bench.leave(job_id)


def test_nothing_is_granted_beside_a_job_that_is_being_claimed() -> None:
    """The source cannot say yet what its line offers next; an empty line would lose its visit."""
    bench = wide()
    bench.durable.claiming = True
    bench.come("1", lane=DURABLE)
    bench.come("2", lane=DURABLE)
    bench.come("b", model="b", lane=DURABLE)
    assert bench.granted == ["1"]
    bench.durable.claiming = False
    bench.turn.durable_changed()
    assert bench.granted == ["1", "2"]
    for job_id in ("1", "2", "b"):
        bench.leave(job_id)


def test_callers_take_turns_in_a_line(bench: Bench) -> None:
    """A script with 200 requests does not make a person wait for all of them."""
    for number in range(200):
        bench.come(f"script {number}", caller_name="script")
    bench.come("person", caller_name="person")
    bench.leave("script 0")
    assert bench.granted[-1] == "script 1"  # it was served last when nobody else waited, and joined first
    bench.leave("script 1")
    assert bench.granted[-1] == "person"
    bench.leave("person")
    for number in range(2, 200):
        bench.leave(f"script {number}")


def test_a_lowered_request_waits_beside_the_durable_jobs(bench: Bench) -> None:
    """By priority, then by age, under its own name or the key's other one; callers take no turns there."""
    bench.come("0")
    bench.come("d1", lane=DURABLE)
    bench.clock.advance(1)
    bench.come("n1", lane=DURABLE, lowered=True, caller_name="x")
    bench.clock.advance(1)
    bench.come("d2", lane=DURABLE)
    bench.clock.advance(1)
    bench.come("n2", lane=DURABLE, lowered=True, caller_name="x")
    bench.come("n3", lane=DURABLE, lowered=True, caller_name="y", priority=-1)
    order = ["d1", "n1", "d2", "n2", "n3"]
    assert bench.turn.waiting == 5
    for job_id in ["0", *order]:
        bench.leave(job_id)
    assert bench.granted == ["0", *order]
    assert all(bench.callers[job_id].grant.lane is DURABLE for job_id in order)  # type: ignore[union-attr]


def test_a_lowered_request_dies_with_its_connection(bench: Bench) -> None:
    """It is a native request all the same."""
    bench.come("0")
    bench.come("lowered", lane=DURABLE, lowered=True)
    bench.callers["lowered"].result.cancel()
    assert bench.turn.waiting == 0
    bench.leave("0")


@pytest.mark.parametrize("width", [1, 3])
def test_the_queue_is_bounded_exactly(width: int) -> None:
    """Of 100 at once, `width` start, 10 wait, and the others are refused at once, in Ollama's own words."""
    bench = Bench(width=width, interactive_limit=10)
    for number in range(100):
        bench.come(str(number), lane=DURABLE if number % 2 else INTERACTIVE, lowered=bool(number % 2))
    busy = [caller for caller in bench.callers.values() if isinstance(caller.outcome, ServerBusy)]
    assert (len(bench.granted), bench.turn.waiting, len(busy)) == (width, 10, 90 - width)
    text = "server busy, please try again.  maximum pending requests exceeded"
    assert {(str(caller.outcome), ServerBusy.status) for caller in busy} == {(text, 503)}
    bench.leave(bench.granted[0])
    bench.come("late")
    assert isinstance(bench.come("too late").outcome, ServerBusy)
    assert bench.turn.waiting == 10
    for _ in range(10 + width):
        bench.leave(next(job_id for job_id in bench.granted if not bench.callers[job_id].done.called))
    assert bench.turn.free


def test_what_can_start_at_once_is_never_refused() -> None:
    """Nobody need wait for a free place, also where nobody may wait; durable jobs are not counted."""
    bench = Bench(width=2, interactive_limit=0)
    for job_id in ("d1", "d2", "d3"):
        bench.come(job_id, model="b", lane=DURABLE)
    assert isinstance(bench.come("1").outcome, ServerBusy)
    for job_id in ("d1", "d2", "d3"):
        bench.leave(job_id)
    bench.come("2")
    bench.come("3")
    assert isinstance(bench.come("4").outcome, ServerBusy)
    assert bench.granted[-2:] == ["2", "3"]
    bench.leave("2")
    bench.leave("3")
    assert bench.turn.free


@define
class PausedError(ForemanError):
    """What callers of a paused lane are told."""

    until: str


@pytest.mark.parametrize("lane", Lane)
def test_a_paused_lane_refuses_its_native_requests_and_starts_nothing(bench: Bench, lane: Lane) -> None:
    """Those that wait already, too, each with an error of its own; what runs and the other lane go on."""
    lowered = lane is DURABLE
    bench.come("runs", lane=lane, lowered=lowered)
    bench.come("waits", lane=lane, lowered=lowered)
    bench.come("other", lane=lane.other, lowered=not lowered)
    bench.turn.pause(lane, lambda: PausedError("until 12:00"))
    late = bench.come("late", lane=lane, lowered=lowered)
    refused = [bench.callers["waits"].outcome, late.outcome]
    assert [getattr(error, "until", None) for error in refused] == ["until 12:00"] * 2
    assert refused[0] is not refused[1]
    assert bench.turn.holder == "runs"
    bench.leave("runs")
    assert (bench.callers["runs"].outcome, bench.granted) == ("done", ["runs", "other"])
    bench.leave("other")
    assert bench.turn.free
    bench.turn.resume(lane)
    bench.come("again", lane=lane, lowered=lowered)
    bench.leave("again")
    assert bench.granted[-1] == "again"


def test_durable_jobs_of_a_paused_lane_wait_and_their_clock_stands_still() -> None:
    """After the pause the batch is as overdue as before it; the turn is free meanwhile."""
    bench = Bench(Limits(durable_max_wait=10, durable_visit=0))
    bench.come("a1", lane=DURABLE)
    bench.come("b", model="b", lane=DURABLE)
    bench.come("a2", lane=DURABLE)
    bench.come("a3", lane=DURABLE)
    bench.clock.advance(4)
    bench.turn.pause(DURABLE, lambda: PausedError("later"))
    bench.leave("a1")
    assert (bench.turn.holder, bench.turn.waiting, bench.turn.free) == (None, 3, True)
    bench.clock.advance(1000)
    bench.turn.resume(DURABLE)
    bench.leave("a2")
    assert bench.granted == ["a1", "a2", "a3"]
    assert [line.overdue_since for line in bench.turn.lines()] == [bench.clock.seconds() + 6]
    bench.leave("a3")
    bench.leave("b")


def test_beyond_the_durable_hours_nothing_durable_starts_and_lowered_requests_wait(bench: Bench) -> None:
    """They asked to be patient. A pause within the hours still refuses them, and each gate has to open."""
    bench.turn.set_durable_hours(within=False)
    bench.come("batch", lane=DURABLE)
    bench.come("lowered", lane=DURABLE, lowered=True)
    bench.come("chat")
    assert bench.granted == ["chat"]
    bench.leave("chat")
    bench.turn.pause(DURABLE, lambda: PausedError("later"))
    assert isinstance(bench.callers["lowered"].outcome, PausedError)
    bench.turn.set_durable_hours(within=True)
    assert bench.granted == ["chat"]
    bench.turn.resume(DURABLE)
    assert bench.granted == ["chat", "batch"]
    bench.leave("batch")


def test_a_paused_lane_keeps_its_visit(bench: Bench) -> None:
    """The batch goes on where it was, though its model is not the resident one any more."""
    for job_id, model in [("a1", "a"), ("b1", "b"), ("a2", "a")]:
        bench.come(job_id, model=model, lane=DURABLE)
    bench.turn.pause(DURABLE, lambda: PausedError("later"))
    bench.leave("a1")
    bench.come("chat", model="b")
    bench.grant("chat").first_byte()
    bench.leave("chat")
    bench.turn.resume(DURABLE)
    assert bench.grant("a2").why is Why.VISIT
    bench.leave("a2")
    bench.leave("b1")


def test_pausing_the_lane_that_has_won_gives_the_place_away() -> None:
    """And its win is no win any more when the lane is open again."""
    bench = wide()
    bench.come("a1")
    bench.come("b", model="b", lane=DURABLE)
    bench.come("a2")
    assert bench.granted == ["a1"]
    bench.turn.pause(DURABLE, lambda: PausedError("later"))
    assert bench.granted == ["a1", "a2"]
    bench.leave("a1")
    bench.leave("a2")
    bench.turn.resume(DURABLE)
    bench.leave("b")


def test_when_idle_fires_when_nothing_runs_any_more(bench: Bench) -> None:
    """At once if nothing does; a cancelled one is forgotten."""
    told: list[str] = []

    def tell(name: str) -> Deferred[None]:
        idle = bench.turn.when_idle()
        idle.addCallbacks(lambda _: told.append(name), lambda failure: failure.trap(CancelledError) and None)
        return idle

    tell("free")
    assert told == ["free"]
    bench.come("chat")
    bench.come("batch", lane=DURABLE)
    bench.turn.pause(INTERACTIVE, lambda: PausedError("later"))
    tell("one")
    tell("other")
    tell("cancelled").cancel()
    bench.leave("chat")
    assert told == ["free"], "the batch job runs"
    bench.leave("batch")
    assert told == ["free", "one", "other"]


def test_the_lines_are_there_to_be_explained(bench: Bench) -> None:
    """In the reactor's seconds: since when the head and the oldest wait, and when the line is overdue."""
    bench.clock.advance(100)
    bench.come("0")
    bench.come("i1", model="b", priority=-1)
    bench.clock.advance(1)
    bench.come("i2", model="b")
    bench.come("d1", model="b", lane=DURABLE)
    bench.come("n1", model="c", lane=DURABLE, lowered=True)
    bench.clock.advance(2)
    lines = {(line.lane, line.wanted): line for line in bench.turn.lines()}
    assert set(lines) == {
        (INTERACTIVE, (Wanted("b"),)),
        (DURABLE, (Wanted("c"),)),
        (DURABLE, (Wanted("b"),)),
    }
    chat, batch = lines[INTERACTIVE, (Wanted("b"),)], lines[DURABLE, (Wanted("b"),)]
    assert (chat.count, chat.head.job_id, chat.head.waiting_since) == (2, "i2", 101)
    assert (chat.oldest.job_id, chat.oldest.waiting_since, chat.overdue_since) == ("i1", 100, 105)
    assert (batch.count, batch.overdue_since) == (1, 101 + 3600)
    assert [grant.job_id for grant in bench.turn.holders] == ["0"]
    assert bench.turn.visit is not None
    assert (bench.turn.visit.since, bench.turn.visit.key) == (100, bench.grant("0").key)
    for job_id in ("0", "i2", "i1", "d1", "n1"):
        bench.leave(job_id)
    assert bench.turn.visit is None


def test_others_wait_for_a_key(bench: Bench) -> None:
    """In either lane, other than the job itself; what may not run does not count."""
    bench.come("0")
    key = bench.grant("0").key
    assert not bench.turn.others_wait(key, besides="0")
    bench.come("b", model="b")
    bench.come("1", lane=DURABLE)
    assert bench.turn.others_wait(key, besides="0")
    assert not bench.turn.others_wait(key, besides="1")
    bench.turn.set_durable_hours(within=False)
    assert not bench.turn.others_wait(key, besides="0")
    bench.turn.set_durable_hours(within=True)
    for job_id in ("0", "1", "b"):
        bench.leave(job_id)


def test_every_release_is_told(bench: Bench) -> None:
    """So that a history can count swaps and loads: the grant knows when its first byte came."""
    told: list[tuple[str, bool, float | None]] = []
    bench.turn.on_release = lambda grant: told.append((grant.job_id, grant.swap, grant.answered_at))
    bench.come("1")
    bench.come("2")
    bench.clock.advance(3)
    bench.grant("1").first_byte()
    bench.leave("1")
    bench.leave("2")
    assert told == [("1", True, 3.0), ("2", False, None)]


@define(eq=False)
class Chaos:
    """Callers who come, work, fail, are cancelled, and call back into the turn, as the dice say."""

    dice: random.Random
    width: int
    clock: Clock = field(factory=Clock)
    holding: set[str] = field(factory=set)  # those whose coroutines run just now
    running: dict[str, Deferred[None]] = field(factory=dict)
    ended: set[str] = field(factory=set)
    born: int = 0
    turn: Turn = field(init=False)
    durable: FakeDurable = field(init=False)

    def __attrs_post_init__(self) -> None:
        keys = KeyRegistry(NoInventory())
        limits = Limits(interactive_max_wait=3)
        self.turn = Turn(self.clock, keys, limits, 4.0, 5.0, width=self.width, interactive_limit=8)
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
        elif what < 0.65:
            self.turn.unblock()
        elif what < 0.7:
            self.turn.pause(self.dice.choice(list(Lane)), lambda: ForemanError("paused"))
        elif what < 0.8:
            self.turn.resume(self.dice.choice(list(Lane)))
        elif what < 0.85:
            self.turn.set_durable_hours(self.dice.random() < 0.5)
        elif what < 0.9:
            raise BrokenError

    def calm(self) -> None:
        """Everything may run."""
        self.turn.unblock()
        self.turn.set_durable_hours(within=True)
        for lane in Lane:
            self.turn.resume(lane)

    def cancel(self, job_id: str) -> None:
        if job_id not in self.holding:  # a coroutine cannot cancel itself while it runs
            self.running[job_id].cancel()

    async def work(self, job_id: str) -> None:
        model, priority = wanted(self.dice.choice(["a", "b", None])), self.dice.choice([0, 0, 1])
        take = self.dice.choice(
            [
                lambda: self.turn.take(job_id, model, priority, caller=self.dice.choice("xy")),
                lambda: self.turn.take(job_id, model, priority, lane=DURABLE),
                lambda: self.durable.take(job_id, model, priority),
            ]
        )()
        async with take as grant:
            self.check(grant)
            self.holding.add(job_id)
            try:
                self.disturb()
                for _ in range(self.dice.randint(0, 3)):
                    self.holding.remove(job_id)  # from here until it goes on, it may be cancelled
                    try:
                        await deferLater(self.clock, self.dice.choice([0, 1, 2]))
                    finally:
                        self.holding.add(job_id)
                    self.check(grant)
                    self.dice.choice([grant.first_byte, grant.abort, self.disturb])()
            finally:
                self.holding.remove(job_id)

    def check(self, grant: Grant) -> None:
        """It holds the turn, beside jobs of its key alone, and no more than may."""
        assert grant in self.turn.holders
        assert {holder.key for holder in self.turn.holders} == {grant.key}
        assert len(self.turn.holders) <= (1 if grant.key == UNKNOWN else self.width)


@pytest.mark.parametrize("block_of_seeds", range(10))
def test_nothing_leaks_the_turn(block_of_seeds: int) -> None:
    """After any interleaving of arrivals, failures and cancellations, all have ended and a new job starts."""
    for seed in range(block_of_seeds * 300, (block_of_seeds + 1) * 300):
        chaos = Chaos(random.Random(seed), width=1 + seed % 4)
        for _ in range(12):
            chaos.begin()
            if chaos.dice.random() < 0.5:
                chaos.clock.advance(chaos.dice.choice([0, 1]))
            if chaos.running and chaos.dice.random() < 0.4:
                chaos.cancel(chaos.dice.choice(list(chaos.running)))
        for _ in range(300):
            chaos.calm()
            chaos.clock.advance(1)
        assert len(chaos.ended) == chaos.born, f"seed {seed}"
        assert chaos.turn.free, f"seed {seed}"
        assert chaos.clock.getDelayedCalls() == [], f"seed {seed}"
        chaos.dice.random = lambda: 1.0  # type: ignore[method-assign]  # no disturbance
        chaos.begin()
        assert chaos.turn.holder == str(chaos.born - 1) or str(chaos.born - 1) in chaos.ended
        assert chaos.turn.visit is None or chaos.turn.holder is not None
        chaos.clock.advance(10)
        chaos.clock.advance(10)
        chaos.clock.advance(10)
        assert chaos.turn.free, f"seed {seed}"
