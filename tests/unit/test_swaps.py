"""The log of swaps, and how many more it would have been in the order of arrival."""

import random
from itertools import pairwise

import pytest
from attrs import evolve
from grants import make_grant
from twisted.internet.task import Clock

from foreman.scheduler import swaps as module
from foreman.scheduler.keys import UNKNOWN, ModelKey
from foreman.scheduler.swaps import DAY_SECONDS, HOUR_SECONDS, Count, Swaps

A, B = ModelKey(frozenset({"a"})), ModelKey(frozenset({"b"}))
WIDE = evolve(A, num_ctx=8192)


class Bench:
    """Swaps on a clock; of the target's models one is resident."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1e6)
        self.swaps = Swaps(self.clock)
        self.resident: ModelKey | None = None

    def run(
        self,
        key: ModelKey,
        waited_seconds: float = 0.0,
        *,
        reload: bool = False,
        drops: bool = False,
        model: str = "m",
    ) -> None:
        """A job runs for a second after a load of five, if it needs one."""
        swap = reload or key != self.resident
        grant = make_grant(self.clock, key, swap=swap, waited_seconds=waited_seconds, model=model)
        if swap:
            self.clock.advance(5.0)
            self.swaps.swapped(grant, 5.0)
        grant.first_byte()
        grant.drops = drops
        self.clock.advance(1.0)
        self.swaps.released(grant)
        self.resident = None if drops else key


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_last(bench: Bench) -> None:
    """The latest twenty, newest first."""
    for number in range(25):
        bench.run((A, B)[number % 2], model=f"m{number}")
    assert [swap.model for swap in bench.swaps.last] == [f"m{number}" for number in range(24, 4, -1)]
    assert bench.swaps.last[0].at == bench.clock.seconds() - 1.0
    assert bench.swaps.last[0].load_seconds == 5.0


def test_in_order_nothing_is_avoided(bench: Bench) -> None:
    """Jobs that ran as they came."""
    for number in range(30):
        bench.run((A, B)[number % 2])
    assert bench.swaps.count(HOUR_SECONDS) == Count(30, 0)


def test_jobs_that_all_waited(bench: Bench) -> None:
    """Forty that came alternating and were drained by model: 2 instead of 40."""
    began = bench.clock.seconds()
    arrivals = [(began + 0.01 * number, (A, B)[number % 2]) for number in range(40)]
    for arrived_at, key in sorted(arrivals, key=lambda job: job[1] == B):
        bench.run(key, bench.clock.seconds() - arrived_at)
    assert bench.swaps.count(DAY_SECONDS) == Count(2, 38)


def test_any_order_comes_to_what_the_order_of_arrival_is(bench: Bench) -> None:
    """Whatever ran first, the sum is that of the jobs in their order."""
    draw = random.Random(6)
    keys = [A, B, WIDE, ModelKey(frozenset({"c"}))]
    jobs = [(float(number), draw.choice(keys)) for number in range(200)]
    in_order = 1 + sum(one[1] != other[1] for one, other in pairwise(jobs))
    draw.shuffle(jobs)
    for arrived_at, key in jobs:
        bench.run(key, bench.clock.seconds() - arrived_at)
    done = bench.swaps.count(DAY_SECONDS).done
    assert sum(bucket.in_order for bucket in bench.swaps._buckets) == in_order
    assert bench.swaps.count(DAY_SECONDS) == Count(done, max(0, in_order - done))


def test_a_reload_of_the_same(bench: Bench) -> None:
    """The model had gone meanwhile: the order of arrival would have had to load it, too."""
    bench.run(A)
    bench.run(A, reload=True)
    bench.run(A, reload=True)
    assert bench.swaps.count(HOUR_SECONDS) == Count(3, 0)


@pytest.mark.parametrize(("keys", "count"), [([A, A, A], Count(3, 0)), ([A, B, A, B], Count(3, 1))])
def test_jobs_that_have_their_model_unloaded(bench: Bench, keys: list[ModelKey], count: Count) -> None:
    """With `keep_alive` 0 the next one loads in the order of arrival, too: once, whatever came between."""
    began = bench.clock.seconds()
    arrivals = [(began + 0.01 * number, key) for number, key in enumerate(keys)]
    for arrived_at, key in sorted(arrivals, key=lambda job: job[1] == B):
        bench.run(key, bench.clock.seconds() - arrived_at, drops=key == A)
    assert bench.swaps.count(HOUR_SECONDS) == count


def test_a_model_that_was_there_before(bench: Bench) -> None:
    """Nothing had to be loaded, by nobody."""
    bench.resident = A
    bench.run(A)
    assert bench.swaps.count(HOUR_SECONDS) == Count(0, 0)


def test_models_that_fit_together(bench: Bench) -> None:
    """Where the target holds both, taking them in turns costs nothing; their options still do."""
    bench.swaps.seen_together([A.weights, B.weights])
    bench.run(A)
    bench.run(B)
    began = bench.clock.seconds()
    for number, key in enumerate([A] * 10 + [B] * 10):
        grant = make_grant(bench.clock, key, waited_seconds=bench.clock.seconds() - began - number % 10)
        grant.first_byte()
        bench.swaps.released(grant)
    assert bench.swaps.count(HOUR_SECONDS) == Count(2, 0)
    assert bench.swaps._is_swap(A, WIDE)


def test_hour_and_day(bench: Bench) -> None:
    """Minutes fall out of each at their time, and nothing older than a day is kept."""
    bench.run(A)
    bench.clock.advance(HOUR_SECONDS - 120)
    bench.run(B)
    assert bench.swaps.count(HOUR_SECONDS).done == 2
    bench.clock.advance(180)
    assert [bench.swaps.count(span).done for span in (HOUR_SECONDS, DAY_SECONDS)] == [1, 2]
    bench.clock.advance(DAY_SECONDS)
    assert bench.swaps.count(DAY_SECONDS).done == 0
    bench.run(A)
    assert len(bench.swaps._buckets) == 1


def test_reloads_for_options(bench: Bench) -> None:
    """Weights that had just run with other options; not those between which others ran."""
    for key in (A, WIDE, A, A, B, WIDE):
        bench.run(key)
    reloads = bench.swaps.reloads(DAY_SECONDS)
    assert [(reload.before, reload.swap.key) for reload in reloads] == [(A, WIDE), (WIDE, A)]
    bench.clock.advance(DAY_SECONDS)
    assert bench.swaps.reloads(DAY_SECONDS) == []


def test_what_does_not_count(bench: Bench) -> None:
    """A body that nobody could read, and a job without an answer."""
    grant = make_grant(bench.clock, UNKNOWN, swap=True)
    bench.swaps.swapped(grant, 5.0)
    grant.first_byte()
    bench.swaps.released(grant)
    bench.swaps.released(make_grant(bench.clock, A, swap=True))
    assert bench.swaps.count(HOUR_SECONDS) == Count(0, 0)
    assert bench.swaps.last == []


def test_memory_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest places go; one that came before all of them is the first."""
    monkeypatch.setattr(module, "_MOST_STARTS", 10)
    for number in range(50):
        bench.run((A, B)[number % 2])
    assert len(bench.swaps._places) == len(bench.swaps._starts) == 10
    first = bench.swaps._places[0]
    bench.run(A, waited_seconds=9999.0)
    assert bench.swaps._places[0] == first
