"""Whose turn it is among the receivers."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from foreman.jobs.delivery import Delivery, DeliveryState, Due
from foreman.webhooks.receivers import PLACES, Receiver, Receivers, Standing


def due(number: int = 0) -> Due:
    """Something to send."""
    delivery = Delivery(
        event_id=str(number),
        job_id="j",
        type="job.queued",
        sequence=1,
        url="http://a/",
        state=DeliveryState.PENDING,
        series=1,
        tried=0,
        due_at=0.0,
    )
    return Due(delivery, b"{}")


def fill(receivers: Receivers, name: str, standing: Standing, count: int = 100, now: float = 0.0) -> Receiver:
    """A receiver of this standing with `count` deliveries in memory."""
    receiver = receivers._all[name] = Receiver(name, now, standing)
    receiver.ready.extend(due(number) for number in range(count))
    receivers.put(receiver, now)
    return receiver


def begin_all(receivers: Receivers, now: float = 0.0) -> Counter[str]:
    """Use every place that may be used; how many each receiver has got."""
    used: Counter[str] = Counter()
    while (receiver := receivers.turn()) is not None:
        receivers.begin(receiver, now)
        used[receiver.name] += 1
    return used


def test_places_of_a_receiver() -> None:
    """Four while its last attempt got an HTTP answer, else one."""
    receivers = Receivers(64)
    for standing in Standing:
        fill(receivers, standing.value, standing)
    assert begin_all(receivers) == {"new": 1, "well": PLACES, "answered": PLACES, "silent": 1}


def test_half_of_all_places_is_kept_from_the_doubtful() -> None:
    """A hundred dead receivers leave 32 places of 64 to those that are well."""
    receivers = Receivers(64)
    for number in range(100):
        fill(receivers, f"dead{number}", Standing.SILENT)
    assert begin_all(receivers).total() == 32
    for number in range(100):
        fill(receivers, f"well{number}", Standing.WELL)
    assert begin_all(receivers).total() == 32
    assert not receivers.free


def test_one_place_in_all_is_for_everybody() -> None:
    """With a concurrency of 1 a receiver whose last attempt failed gets its retries all the same."""
    receivers = Receivers(1)
    fill(receivers, "dead", Standing.SILENT)
    assert begin_all(receivers) == {"dead": 1}


def test_receivers_take_turns() -> None:
    """The one that has waited longest for a place is next, however much another one has to send."""
    receivers = Receivers(1)
    busy = fill(receivers, "busy", Standing.WELL)
    fill(receivers, "other", Standing.WELL, count=2)
    order = []
    for now in range(4):
        receiver = receivers.turn()
        assert receiver is not None
        order.append(receiver.name)
        receivers.begin(receiver, float(now))
        receivers.end(receiver, Standing.WELL, float(now))
        receivers.recorded(receiver, None, float(now))
    assert order == ["busy", "other", "busy", "other"]
    assert len(busy.ready) == 98


def test_standing_counts_for_attempts_under_way() -> None:
    """A receiver that fell silent takes its other attempts with it into the doubtful half."""
    receivers = Receivers(8)
    receiver = fill(receivers, "was-well", Standing.WELL)
    assert begin_all(receivers) == {"was-well": 4}
    receivers.end(receiver, Standing.SILENT, 1.0)
    fill(receivers, "dead", Standing.SILENT)
    fill(receivers, "dead2", Standing.SILENT)
    assert begin_all(receivers).total() == 1  # three of four doubtful places are used
    for _ in range(3):
        receivers.end(receiver, Standing.WELL, 2.0)
    assert begin_all(receivers)["dead2"] == 1


def test_later_is_not_now() -> None:
    """What is due later comes into line at its moment, and the earliest one is told."""
    receivers = Receivers(8)
    receivers.due("a", 20.0, 0.0)
    receivers.due("b", 10.0, 0.0)
    assert receivers.turn() is None
    assert receivers.next_moment(0.0) == 10.0
    assert receivers.next_moment(10.0) == 20.0
    receiver = receivers.turn()
    assert receiver is not None
    assert receiver.name == "b"


def test_nothing_is_kept_of_one_that_is_done() -> None:
    """Who has nothing under way or to come is forgotten; memory does not grow with all receivers ever."""
    receivers = Receivers(8)
    for number in range(100):
        receiver = fill(receivers, str(number), Standing.NEW, count=1)
        assert receivers.turn() is receiver
        receivers.begin(receiver, 0.0)
        receivers.end(receiver, Standing.WELL, 0.0)
        assert receivers._all == {str(number): receiver}, "until it is written what came of it"
        receivers.recorded(receiver, None, 0.0)
    assert not receivers._all


def test_wait_for_a_place_is_measured() -> None:
    """Who could be sent to and waits for a place is late; who waits for its own attempts is not."""
    receivers = Receivers(2)
    slow = fill(receivers, "slow", Standing.SILENT)
    begin_all(receivers, 5.0)
    assert receivers.waiting_since() is None  # its one place is used: that is the receiver's own doing
    fill(receivers, "dead", Standing.SILENT, now=7.0)
    assert receivers.turn() is None
    assert receivers.waiting_since() == 7.0
    receivers.end(slow, Standing.SILENT, 9.0)
    assert receivers.waiting_since() == 7.0


def test_wait_goes_on_until_it_has_all_its_places() -> None:
    """Two that get one place of their four are late, however often each gets one."""
    receivers = Receivers(2)
    for name in ("a", "b"):
        fill(receivers, name, Standing.WELL)
    wire: list[Receiver] = []
    for now in range(300):
        while (receiver := receivers.turn()) is not None:
            receivers.begin(receiver, float(now))
            wire.append(receiver)
        first = wire.pop(0)
        receivers.end(first, Standing.WELL, float(now))
        receivers.recorded(first, None, float(now))
        if not first.ready:
            break
        assert receivers.waiting_since() == 0.0


def test_what_was_read_is_sent_before_more_is_read() -> None:
    """The bodies for all who wait are not in memory before the first of them goes out."""
    receivers = Receivers(2)
    for number in range(10):
        receivers.due(str(number), 0.0, 0.0)
    order = []
    for _ in range(20):
        receiver = receivers.turn()
        assert receiver is not None
        order.append((receiver.name, "send" if receiver.ready else "read"))
        if receiver.ready:
            receivers.begin(receiver, 0.0)
            receivers.end(receiver, Standing.WELL, 0.0)
            receivers.recorded(receiver, None, 0.0)
        else:
            receivers.fetch(receiver)
            receivers.fetched(receiver, [due()], None, 0.0)
    assert order == [(str(number), what) for number in range(10) for what in ("read", "send")]


def test_memory_does_not_grow_with_events() -> None:
    """A moment that is far away is remembered once, though it is told again after each event before it."""
    receivers = Receivers(2)
    receivers.due("other", 1_000.0, 0.0)
    for _ in range(1_000):
        receivers.due("a", 0.0, 0.0)
        receiver = receivers.turn()
        assert receiver is not None
        receivers.fetch(receiver)
        receivers.fetched(receiver, [], 2_000.0, 0.0)
    assert len(receivers._later) < 100
    assert receivers.next_moment(1_000.0) == 2_000.0


@given(
    concurrency=st.integers(1, 10),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("due"), st.sampled_from("abcdef"), st.integers(0, 9)),
            st.tuples(st.just("end"), st.integers(0, 9), st.sampled_from(list(Standing)[1:])),
            st.tuples(st.just("fetched"), st.integers(0, 9), st.integers(0, 3)),
        ),
        max_size=60,
    ),
)
def test_limits_hold_and_nothing_is_lost(concurrency: int, steps: list[tuple]) -> None:
    """Whatever happens: the limits hold, and in the end everything that was read has been sent."""
    receivers = Receivers(concurrency)
    wire: list[Receiver] = []
    fetching: list[Receiver] = []
    numbers = iter(range(10_000))
    read: list[int] = []
    sent: list[int] = []
    now = 0.0

    def use_places() -> None:
        receivers.next_moment(now)
        while (receiver := receivers.turn()) is not None:
            if receiver.ready:
                sent.append(int(receivers.begin(receiver, now).delivery.event_id))
                wire.append(receiver)
            else:
                receivers.fetch(receiver)
                fetching.append(receiver)
            assert len(wire) + len(fetching) <= concurrency
            assert receiver.sending <= PLACES
            doubtful = sum(one.doubtful for one in wire)
            assert doubtful <= max(1, concurrency // 2) or receiver.doubtful is False

    def end(receiver: Receiver, standing: Standing) -> None:
        receivers.end(receiver, standing, now)
        receivers.recorded(receiver, None, now)

    def finish_fetch(index: int, count: int) -> None:
        receiver = fetching.pop(index % len(fetching))
        fresh = [next(numbers) for _ in range(count)]
        read.extend(fresh)
        receivers.fetched(receiver, [due(number) for number in fresh], None, now)

    for kind, first, second in steps:
        now += 1.0
        if kind == "due":
            receivers.due(first, now + second - 5, now)
        elif kind == "end" and wire:
            end(wire.pop(first % len(wire)), second)
        elif kind == "fetched" and fetching:
            finish_fetch(first, second)
        use_places()
    for _ in range(500):
        now += 100.0
        if wire:
            end(wire.pop(), Standing.SILENT)
        elif fetching:
            finish_fetch(0, 1)
        use_places()
    assert sorted(sent) == read
    assert not receivers._all
