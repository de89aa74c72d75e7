"""What is measured of jobs and loads, and what is expected because of it."""

import pytest
from grants import make_grant
from twisted.internet.task import Clock

from foreman.scheduler import history as module
from foreman.scheduler.history import LOAD_SECONDS, RUN_SECONDS, Average, History, Measure, Subject
from foreman.scheduler.keys import UNKNOWN, ModelKey
from foreman.scheduler.policy import Lane

INTERACTIVE, DURABLE = Lane.INTERACTIVE, Lane.DURABLE
A, B = ModelKey(frozenset({"a"})), ModelKey(frozenset({"b"}))


class Bench:
    """A history on a clock, and jobs that take what a test says."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.waits = False
        self.history = History(self.clock, lambda: self.waits)

    def run(
        self,
        lane: Lane,
        key: ModelKey,
        run_seconds: float,
        *,
        prompt_seconds: float = 0.0,
        load_seconds: float | None = None,
        ahead: bool = True,
        tokens: int = 0,
        settling: bool = False,
        aborted: bool = False,
    ) -> None:
        """One job: its load ahead of it or not, its prompt, and the rest of it."""
        grant = make_grant(self.clock, key, lane=lane, swap=load_seconds is not None, settling=settling)
        if load_seconds is not None:
            self.clock.advance(load_seconds)
            if ahead:
                grant.loaded, grant.settling = True, False
                self.history.swapped(grant, load_seconds)
        self.clock.advance(prompt_seconds)
        grant.first_byte()
        if load_seconds is not None and not ahead:
            self.history.swapped(grant, load_seconds + prompt_seconds)
        self.clock.advance(run_seconds)
        if tokens:
            self.history.produced(grant, tokens)
        if aborted:
            grant.abort()
        self.history.released(grant)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_nothing_measured(bench: Bench) -> None:
    """Constants."""
    history = bench.history
    assert [history.run_seconds(lane, A) for lane in Lane] == [RUN_SECONDS] * 2
    assert history.load_seconds(A) == LOAD_SECONDS
    assert history.interactive_share == 0.0


def test_measured_of_each_line(bench: Bench) -> None:
    """The first measurement goes before the constant; lanes and keys are told apart. The prompt counts."""
    bench.run(INTERACTIVE, A, 2.0, prompt_seconds=1.0)
    bench.run(INTERACTIVE, A, 5.0)
    bench.run(DURABLE, A, 40.0)
    bench.run(DURABLE, B, 60.0)
    assert bench.history.run_seconds(INTERACTIVE, A) == pytest.approx(4.0)
    assert bench.history.run_seconds(DURABLE, A) == pytest.approx(40.0)
    assert bench.history.run_seconds(DURABLE, B) == pytest.approx(60.0)


def test_a_key_that_is_new(bench: Bench) -> None:
    """It takes the average of its lane, else of the other one; its load that of all keys."""
    bench.run(DURABLE, A, 40.0, load_seconds=8.0)
    assert bench.history.run_seconds(INTERACTIVE, B) == pytest.approx(40.0)
    bench.run(INTERACTIVE, A, 2.0)
    bench.run(DURABLE, A, 60.0)
    assert bench.history.run_seconds(DURABLE, B) == pytest.approx(50.0)
    assert bench.history.run_seconds(INTERACTIVE, B) == pytest.approx(2.0)
    assert bench.history.load_seconds(B) == pytest.approx(8.0)


def test_tokens_of_others_at_its_own_pace(bench: Bench) -> None:
    """A key whose pace is known from the other lane brings as many tokens as other keys do there."""
    bench.run(DURABLE, A, 20.0, tokens=200)
    bench.run(INTERACTIVE, B, 100.0, tokens=50)  # 2 s for each
    assert bench.history.run_seconds(DURABLE, B) == pytest.approx(400.0)


def test_old_measurements_fade(bench: Bench) -> None:
    """A model that has become slower is known as slow before it has run as often as before."""
    for _ in range(50):
        bench.run(INTERACTIVE, A, 1.0)
    for _ in range(30):
        bench.run(INTERACTIVE, A, 11.0)
    assert 10.0 < bench.history.run_seconds(INTERACTIVE, A) < 11.0
    average = Average()
    for value in (1.0, 2.0, 6.0):
        average.add(value)
    assert (average.value, average.count) == (pytest.approx(3.0), 3)


@pytest.mark.parametrize("ahead", [True, False], ids=["loaded ahead", "loaded by its own request"])
def test_a_load_is_no_part_of_the_run(bench: Bench, ahead: bool) -> None:
    """The run begins when the model is loaded."""
    bench.run(INTERACTIVE, A, 3.0, load_seconds=14.0, ahead=ahead)
    assert bench.history.load_seconds(A) == pytest.approx(14.0)
    assert bench.history.run_seconds(INTERACTIVE, A) == pytest.approx(3.0)


def test_an_answer_in_one_piece(bench: Bench) -> None:
    """When it ends with its first byte, and that was the end of a load, nobody knows what the run took."""
    bench.run(INTERACTIVE, A, 0.01, load_seconds=14.0, ahead=False)
    assert bench.history.run_seconds(INTERACTIVE, A) == RUN_SECONDS
    bench.run(INTERACTIVE, A, 0.01, load_seconds=14.0)
    assert bench.history.run_seconds(INTERACTIVE, A) == pytest.approx(0.01)


def test_what_says_nothing(bench: Bench) -> None:
    """A job without an answer, one that was given up, a body that nobody could read."""
    grant = make_grant(bench.clock, A)
    bench.clock.advance(7.0)
    bench.history.released(grant)
    bench.run(INTERACTIVE, A, 7.0, aborted=True)
    bench.run(INTERACTIVE, UNKNOWN, 7.0, load_seconds=3.0)
    assert bench.history.run_seconds(INTERACTIVE, A) == RUN_SECONDS
    assert bench.history.load_seconds(A) == LOAD_SECONDS


def test_settling_is_no_part_of_the_run(bench: Bench) -> None:
    """While the target finishes an aborted prompt it does not work on this job."""
    bench.run(INTERACTIVE, A, 3.0, prompt_seconds=87.0, settling=True)
    assert bench.history.run_seconds(INTERACTIVE, A) == pytest.approx(3.0)


def test_a_load_of_unknown_length(bench: Bench) -> None:
    """It is still the begin of the run."""
    grant = make_grant(bench.clock, A, swap=True)
    bench.clock.advance(90.0)
    grant.loaded = True
    bench.history.swapped(grant, None)
    grant.first_byte()
    bench.clock.advance(2.0)
    bench.history.released(grant)
    assert bench.history.load_seconds(A) == LOAD_SECONDS
    assert bench.history.run_seconds(INTERACTIVE, A) == pytest.approx(2.0)


def test_share_of_chats(bench: Bench) -> None:
    """Chats count while durable jobs wait, with the load that brings the batch's model back after them."""
    bench.run(INTERACTIVE, B, 500.0)
    assert bench.history.interactive_share == 0.0
    bench.waits = True
    for _ in range(400):
        bench.run(INTERACTIVE, B, 20.0, load_seconds=5.0)
        bench.run(DURABLE, A, 45.0, load_seconds=5.0)
        bench.run(DURABLE, A, 25.0)
    assert bench.history.interactive_share == pytest.approx(0.3, abs=0.03)
    for _ in range(100):
        bench.run(DURABLE, A, 30.0)
    assert bench.history.interactive_share < 0.01


def test_changes_are_told_once(bench: Bench) -> None:
    """Each average that changed since the last time, as it is now."""
    told: list[None] = []
    bench.history.on_change = lambda: told.append(None)
    bench.run(DURABLE, A, 20.0, tokens=200)
    bench.run(DURABLE, A, 20.0)
    assert len(told) == 2
    changes = dict(bench.history.take_changes())
    run, key_tokens = Subject(Measure.RUN_SECONDS, DURABLE, A), Subject(Measure.TOKENS, DURABLE, A)
    assert (changes[run].value, changes[run].count) == (pytest.approx(20.0), 2)
    assert (changes[key_tokens].value, changes[key_tokens].count) == (200.0, 1)
    assert Subject(Measure.RUN_SECONDS, DURABLE) in changes
    assert dict(bench.history.take_changes()) == {}


def test_remembered(bench: Bench) -> None:
    """What an earlier life measured counts as if it had been measured now."""
    bench.history.remember(Subject(Measure.RUN_SECONDS, DURABLE, A), 30.0, 2)
    bench.history.remember(Subject(Measure.LOAD_SECONDS), 9.0, 5)
    assert bench.history.load_seconds(B) == 9.0
    bench.run(DURABLE, A, 60.0)
    assert bench.history.run_seconds(DURABLE, A) == pytest.approx(40.0)


def test_memory_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller may invent a num_ctx for each request; what ran lately is kept."""
    monkeypatch.setattr(module, "_MOST_SUBJECTS", 20)
    for number in range(100):
        bench.run(INTERACTIVE, ModelKey(frozenset({"a"}), num_ctx=number), 1.0 + number)
    assert len(bench.history._averages) == 20
    assert bench.history.run_seconds(INTERACTIVE, ModelKey(frozenset({"a"}), num_ctx=99)) == 100.0
