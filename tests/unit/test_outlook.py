"""Where a waiting job stands, on the real store, turn and worker's lines; the target is a test's to say."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from test_hours import zone
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from ulid import ULID

from foreman.hours import Hours, parse_hours
from foreman.jobs.model import Job, LineKey, LineView, Submission
from foreman.scheduler.forecast import Forecast, forecast
from foreman.scheduler.grant import Grant
from foreman.scheduler.history import History, Measure, Subject
from foreman.scheduler.keys import KeyRegistry, Wanted
from foreman.scheduler.policy import Lane, Limits
from foreman.scheduler.turn import Turn
from foreman.testing.simulation import NoInventory
from foreman.testing.store import make_store
from foreman.web.outlook import Hold, Outlook, Outlooks
from foreman.worker.lines import DurableLines

NOW = 1_800_000_000.0
LOAD_SECONDS, RUN_SECONDS = 5.0, 30.0


class Source:
    """Offers the store's lines to the turn, and claims nothing: nobody of them is ever granted here."""

    claiming = False

    def __init__(self) -> None:
        self.absent: set[str] = set()
        self.view = DurableLines(lambda model: model not in self.absent)
        self.closed = False

    @property
    def count(self) -> int:
        return 0 if self.closed else self.view.count

    def lines(self) -> Any:
        return iter(()) if self.closed else self.view.lines()

    def granted(self, grant: Grant) -> None:
        raise AssertionError(f"{grant.job_id} was granted the turn")


class Bench:
    """A chat with `held` holds the turn, and durable jobs wait behind it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.store, self.pool = make_store(self.clock)
        keys = KeyRegistry(NoInventory())
        self.turn = Turn(self.clock, keys, Limits(), patience=10.0, settle_limit=900.0)
        self.source = Source()
        self.store.on_line_change = self.changed
        self.history = History(self.clock, lambda: True)
        for lane in Lane:
            self.history.remember(Subject(Measure.RUN_SECONDS, lane), RUN_SECONDS, 1)
        self.history.remember(Subject(Measure.LOAD_SECONDS), LOAD_SECONDS, 1)
        self.target = SimpleNamespace(up=True, reason=None)
        self.absent: set[str] = set()
        self.hold: Hold | None = None
        self.rests_until: float | None = None
        self.hours = Hours()
        self.outlooks = Outlooks(
            self.store,
            self.turn,
            keys,
            self.history,
            SimpleNamespace(known=True, model=lambda name: None if name in self.absent else name),
            self.target,
            self.clock.seconds,
            lambda: self.hold,
            lambda: self.rests_until,
            lambda since, seconds: self.hours.reached(since, seconds),
            self.source.view.bypassing_lines,
        )
        self.chats: dict[str, Deferred[None]] = {}
        self.chat("chat", "held")
        self.turn.attach(self.source)

    def changed(self, view: LineView) -> None:
        self.source.view.put(view)
        self.turn.durable_changed()

    def chat(self, job_id: str, model: str, lane: Lane = Lane.INTERACTIVE, priority: int = 0) -> None:
        """A native request comes, and waits or holds the turn until the test is over."""
        done: Deferred[None] = Deferred()

        async def work() -> None:
            async with self.turn.take(job_id, Wanted(model), priority, lane=lane):
                await done

        self.chats[job_id] = Deferred.fromCoroutine(work())
        self.chats[job_id].addErrback(lambda failure: None)

    def submit(self, model: str = "m", option_key: str = "", **more: Any) -> str:
        self.clock.advance(0.001)
        line = LineKey(model, option_key, more.pop("takes_turn", True))
        job_id = str(ULID())
        now = self.clock.seconds()
        self.wait(
            self.store.submit(
                Submission(job_id=job_id, endpoint="/api/chat", line=line, body=b"{}", created_at=now, **more)
            )
        )
        return job_id

    def job(self, job_id: str) -> Job:
        found = self.wait(self.store.get(job_id))
        assert isinstance(found, Job)
        return found

    def outlook(self, job_id: str) -> Outlook:
        outlook = self.wait(self.outlooks.of(self.job(job_id)))
        assert isinstance(outlook, Outlook)
        return outlook

    def why(self, job_id: str) -> dict[str, Any]:
        waiting_for = self.outlook(job_id).waiting_for
        assert waiting_for is not None
        return dict(waiting_for)

    def receipt(self, job_id: str) -> int | None:
        position: int | None = self.wait(self.outlooks.position(self.job(job_id)))
        return position

    def positions(self, *job_ids: str) -> list[int | None]:
        return [self.outlook(job_id).queue_position for job_id in job_ids]

    def wait(self, coroutine: Any) -> Any:
        results: list[Any] = []
        Deferred.fromCoroutine(coroutine).addCallback(results.append)
        return results[0]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.source.closed = True
    for chat in bench.chats.values():
        chat.cancel()
    bench.wait(bench.store.close())


def test_the_next_one(bench: Bench) -> None:
    """It waits for the job that runs. That may have loaded its model first."""
    job_id = bench.submit()
    outlook = bench.outlook(job_id)
    assert outlook.queue_position == 1
    assert outlook.eta_seconds == pytest.approx(LOAD_SECONDS + RUN_SECONDS, rel=0.1)
    assert bench.why(job_id) == {
        "reason": "running_job",
        "job_id": "chat",
        "model": "held",
        "lane": "interactive",
        "swaps_ahead": 1,
        "text": "a job of held runs, and this one is next",
    }


def test_behind_others_of_its_line(bench: Bench) -> None:
    """By priority and age; each of them takes what jobs of its line take."""
    low, first, high = bench.submit(priority=-1), bench.submit(), bench.submit(priority=1)
    assert bench.positions(high, first, low) == [1, 2, 3]
    etas = [bench.outlook(job_id).eta_seconds or 0.0 for job_id in (high, first, low)]
    assert etas[1] - etas[0] == pytest.approx(LOAD_SECONDS + RUN_SECONDS, rel=0.1)
    assert etas[2] - etas[1] == pytest.approx(RUN_SECONDS, rel=0.1)
    assert bench.why(low) == {
        "reason": "model_line",
        "model": "m",
        "ahead": 2,
        "swaps_ahead": 1,
        "overdue_in_seconds": 3600,
        "text": "2 jobs start before it, with 1 load up to its own start; its line is overdue in 3600 s",
    }


def test_behind_whole_lines(bench: Bench) -> None:
    """The lines that the policy runs before its own count in full."""
    first = [bench.submit("m") for _ in range(3)]
    second = [bench.submit("n") for _ in range(2)]
    later = bench.submit("m")
    assert bench.positions(*first, later, *second) == [1, 2, 3, 4, 5, 6]
    why = bench.why(second[1])
    assert (why["ahead"], why["swaps_ahead"]) == (5, 2)
    bench.clock.advance(3601)
    assert bench.why(second[1])["overdue_in_seconds"] == 0
    assert bench.why(second[1])["text"].endswith("; its line is overdue")


def test_names_that_share_a_key(bench: Bench) -> None:
    """A line of the turn may be several of the store: other spellings of one option, and native requests."""
    first = bench.submit("m", '{"num_thread":0}')
    second = bench.submit("m")
    bench.chat("lowered", "m", Lane.DURABLE)
    bench.chat("important", "m", Lane.DURABLE, priority=1)
    third = bench.submit("m", '{"num_thread":0}')
    fourth = bench.submit("m")
    assert bench.positions(first, second, third, fourth) == [2, 3, 5, 6]


def test_receipts(bench: Bench) -> None:
    """The same position, without playing the policy forward for each; of other lines a second old."""
    bench.submit("m")
    jobs = [bench.submit("n") for _ in range(3)]
    assert [bench.receipt(job_id) for job_id in jobs] == [2, 3, 4]
    assert bench.positions(*jobs) == [2, 3, 4]
    bench.submit("m")
    assert bench.receipt(jobs[0]) == 2
    bench.clock.advance(1.1)
    assert bench.receipt(jobs[0]) == 3
    assert bench.receipt(bench.submit(run_at=NOW + 1000)) is None


def test_no_line(bench: Bench) -> None:
    """Not yet, and not any more: null; what it waits for has its moment."""
    outlook = bench.outlook(bench.submit(run_at=NOW + 7200.0))
    assert (outlook.queue_position, outlook.eta_seconds) == (None, None)
    assert outlook.waiting_for == {
        "reason": "run_at",
        "until": "2027-01-15T10:00:00.000Z",
        "text": "it is not to start before 2027-01-15T10:00:00.000Z",
    }
    job_id = bench.submit()
    job = bench.job(job_id)
    bench.wait(bench.store.claim(job_id))
    assert bench.outlook(job_id) == Outlook()
    # As it was read before it was claimed.
    assert bench.wait(bench.outlooks.of(job)) == Outlook()
    assert bench.wait(bench.outlooks.position(job)) is None


def test_held_back(bench: Bench) -> None:
    """A pause with an end is added to the estimate; without one nobody knows. The position stays."""
    bench.submit()
    job_id = bench.submit()
    eta = bench.outlook(job_id).eta_seconds or 0.0
    bench.turn.set_durable_hours(False)
    bench.hold = Hold("durable_hours", bench.clock.seconds() + 600)
    outlook = bench.outlook(job_id)
    assert (outlook.queue_position, outlook.eta_seconds) == (2, pytest.approx(eta + 600))
    assert bench.why(job_id) == {
        "reason": "durable_hours",
        "lane": "durable",
        "until": "2027-01-15T08:10:00.002Z",
        "text": "the hours of durable jobs begin at 2027-01-15T08:10:00.002Z",
    }
    bench.hold = Hold("lane_paused", None)
    outlook = bench.outlook(job_id)
    assert (outlook.queue_position, outlook.eta_seconds) == (2, None)
    assert bench.why(job_id) == {
        "reason": "lane_paused",
        "lane": "durable",
        "until": None,
        "text": "the durable lane is paused",
    }


def test_a_pause_that_ends_beyond_the_hours(bench: Bench) -> None:
    """Nothing starts before they begin; the pause ends when it says."""
    job_id = bench.submit()
    eta = bench.outlook(job_id).eta_seconds or 0.0
    now = bench.clock.seconds()
    bench.hold = Hold("lane_paused", now + 36000, now + 3600)
    assert bench.outlook(job_id).eta_seconds == pytest.approx(eta + 36000)
    assert bench.why(job_id) == {
        "reason": "lane_paused",
        "lane": "durable",
        "until": "2027-01-15T09:00:00.001Z",
        "text": "the durable lane is paused until 2027-01-15T09:00:00.001Z,"
        " and the hours of durable jobs begin at 2027-01-15T18:00:00.001Z",
    }


def test_hours_that_end_before_its_start(bench: Bench) -> None:
    """The time until they begin again is added, and the sentence says so."""
    jobs = [bench.submit() for _ in range(20)]
    etas = [bench.outlook(job_id).eta_seconds or 0.0 for job_id in jobs]
    texts = [bench.why(job_id)["text"] for job_id in jobs]
    with zone("UTC"):  # it is 08:00 there
        bench.hours = parse_hours("22:00-08:03")
        closed = 14 * 3600 - 180
        for job_id, eta, text in zip(jobs, etas, texts, strict=True):
            outlook, why = bench.outlook(job_id), bench.why(job_id)
            if eta < 180 - 0.1:
                assert (outlook.eta_seconds, why["text"]) == (eta, text)
            else:
                assert outlook.eta_seconds == pytest.approx(eta + closed)
                assert why["text"] == f"{text}; the hours of durable jobs end before its start"
        assert etas[0] < 180 < etas[-1]
        # They have not begun, and one night is not enough.
        bench.hours = parse_hours("09:00-09:01")
        bench.hold = Hold("durable_hours", NOW + 3600)
        nights, rest = divmod(etas[-1], 60)
        eta = bench.outlook(jobs[-1]).eta_seconds
        assert eta == pytest.approx(3600 + nights * 24 * 3600 + rest, abs=0.2)
        assert bench.why(jobs[-1])["reason"] == "durable_hours"


def test_the_target(bench: Bench) -> None:
    """It was not ready: the rest is added. It cannot be reached, or has no such model: nobody knows."""
    job_id = bench.submit()
    ready = bench.outlook(job_id).eta_seconds
    assert ready is not None
    bench.rests_until = bench.clock.seconds() + 30
    outlook, why = bench.outlook(job_id), bench.why(job_id)
    assert (outlook.queue_position, outlook.eta_seconds) == (1, pytest.approx(ready + 30))
    assert (why["reason"], why["until"]) == ("backoff", "2027-01-15T08:00:30.001Z")
    bench.absent = {"m"}
    assert bench.outlook(job_id).eta_seconds is None
    assert bench.why(job_id) == {
        "reason": "model_missing",
        "model": "m",
        "text": "the model m is not installed at the target",
    }
    bench.target.up, bench.target.reason = False, "connection refused"
    assert bench.outlook(job_id).eta_seconds is None
    assert bench.why(job_id) == {
        "reason": "target_unreachable",
        "text": "the target cannot be reached: connection refused",
    }
    bench.hold = Hold("lane_paused", None)
    assert bench.why(job_id)["reason"] == "lane_paused"


def test_jobs_that_need_no_turn(bench: Bench) -> None:
    """They wait for each other only."""
    bench.submit()
    first, second = bench.submit("e", takes_turn=False), bench.submit("e", takes_turn=False)
    assert bench.positions(first, second) == [1, 2]
    assert [bench.receipt(job_id) for job_id in (first, second)] == [1, 2]
    assert bench.outlook(second).eta_seconds is None
    assert bench.why(first)["reason"] == "running_job"
    why = bench.why(second)
    assert (why["reason"], why["ahead"], why["overdue_in_seconds"]) == ("model_line", 1, None)
    assert why["text"] == "1 job starts before it"


def test_lines_that_need_no_turn_are_one(bench: Bench) -> None:
    """They start by priority and age, whatever their models are."""
    bench.submit()
    old = [bench.submit("e", takes_turn=False) for _ in range(3)]
    other = bench.submit("f", takes_turn=False)
    late = bench.submit("e", takes_turn=False)
    high = bench.submit("g", takes_turn=False, priority=1)
    assert bench.positions(high, *old, other, late) == [1, 2, 3, 4, 5, 6]
    assert [bench.receipt(job_id) for job_id in (high, *old, other, late)] == [1, 2, 3, 4, 5, 6]
    why = bench.why(other)
    assert (why["reason"], why["model"], why["ahead"]) == ("model_line", "f", 4)
    # One that the target does not have is passed over.
    bench.source.absent = {"e"}
    bench.source.view.withhold("e")
    assert bench.positions(high, other) == [1, 2]


def test_more_lines_than_are_played(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key for each prompt, say: the whole lines before its own are counted, and nobody knows when."""
    monkeypatch.setattr("foreman.web.outlook.MOST_PLAYED", 2)
    first = [bench.submit("m") for _ in range(2)]
    second = [bench.submit("n") for _ in range(2)]
    played = bench.outlook(second[1])
    assert (played.queue_position, played.eta_seconds is None) == (4, False)
    third = bench.submit("o")
    later = bench.submit("n")
    assert bench.positions(*first, *second, later, third) == [1, 2, 3, 4, 5, 6]
    assert [bench.receipt(job_id) for job_id in (*first, *second, later, third)] == [1, 2, 3, 4, 5, 6]
    outlook, why = bench.outlook(third), bench.why(third)
    assert outlook.eta_seconds is None
    assert (why["reason"], why["ahead"], why["swaps_ahead"]) == ("model_line", 5, 3)
    assert bench.outlook(first[0]).eta_seconds is None
    assert bench.why(first[0])["reason"] == "running_job"
    # What is resident goes first, then the best head.
    high, held = bench.submit("p", priority=1), bench.submit("held")
    assert bench.positions(first[0], held, high) == [3, 1, 2]


def test_many_lines_in_the_order_of_the_policy(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is late goes by its moment, whatever its priority; and chats go before all of them."""
    monkeypatch.setattr("foreman.web.outlook.MOST_PLAYED", 1)
    late = bench.submit("m")
    bench.clock.advance(1800)
    less = bench.submit("n")
    bench.clock.advance(1900)
    high, low = bench.submit("o", priority=2), bench.submit("p")
    assert bench.positions(late, high, less, low) == [1, 2, 3, 4]
    bench.clock.advance(1800)
    assert bench.positions(late, less, high, low) == [1, 2, 3, 4]
    bench.chat("another", "q")
    assert bench.positions(late, less, high, low) == [2, 3, 4, 5]


def test_receipts_cost_the_same_with_many_lines(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first job of a key plays nothing forward when there are more lines than a few."""
    played = 0

    def counted(*args: Any) -> Forecast:
        nonlocal played
        played += 1
        return forecast(*args)

    monkeypatch.setattr("foreman.web.outlook.forecast", counted)
    for number in range(45):
        job_id = bench.submit(f"m{number}")
        assert bench.receipt(job_id) == number + 1
        assert played == min(number + 1, 40)
    assert bench.outlook(job_id).eta_seconds
    assert played == 41
