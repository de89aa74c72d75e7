"""What comes of an attempt at a delivery."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreman.jobs.delivery import DeliveryState
from foreman.webhooks.schedule import LONGEST_RETRY_AFTER_SECONDS, retry_after_seconds, verdict

BACKOFF = (5.0, 30.0, 120.0, 600.0, 3600.0)
NOW = datetime(2027, 3, 1, 12, tzinfo=UTC).timestamp()
JITTER = st.floats(-1, 1)
NOT_FINAL = st.none() | st.integers(100, 599).filter(lambda status: status != 410 and status // 100 != 2)
HOLDS = 1e-6


def due(tried: int, status: int | None, retry_after: bytes | None = None, jitter: float = 0) -> float:
    """The seconds from the end of the attempt to the next one."""
    state, due_at = verdict(tried, status, retry_after, NOW, BACKOFF, jitter)
    assert state is DeliveryState.PENDING
    assert due_at is not None
    return due_at - NOW


@given(tried=st.integers(1, 20), status=st.integers(200, 299), jitter=JITTER)
def test_2xx_is_delivered(tried: int, status: int, jitter: float) -> None:
    """Whichever attempt it was, and whatever else the answer says."""
    assert verdict(tried, status, b"60", NOW, BACKOFF, jitter) == (DeliveryState.DELIVERED, None)


@given(tried=st.integers(1, 20), jitter=JITTER)
def test_410_stops(tried: int, jitter: float) -> None:
    """A receiver that is gone is not asked again."""
    assert verdict(tried, 410, b"60", NOW, BACKOFF, jitter) == (DeliveryState.STOPPED, None)


@given(status=NOT_FINAL, jitter=JITTER, retry_after=st.none() | st.binary())
def test_one_attempt_and_a_retry_for_each_backoff(
    status: int | None, jitter: float, retry_after: bytes | None
) -> None:
    """Redirects, 4xx, 5xx and no answer at all are tried again, six attempts in all; then it has failed."""
    verdicts = [verdict(tried, status, retry_after, NOW, BACKOFF, jitter) for tried in range(1, 8)]
    assert [state for state, _ in verdicts[:5]] == [DeliveryState.PENDING] * 5
    assert all(due_at is not None and due_at > NOW for _, due_at in verdicts[:5])
    assert verdicts[5:] == [(DeliveryState.FAILED, None)] * 2


@pytest.mark.parametrize("status", [None, 302, 400, 429, 500, 503])
def test_waits_are_the_backoff(status: int | None) -> None:
    """After the first attempt the first of them, and so on, counted from the end of the attempt."""
    assert [due(tried, status) for tried in range(1, 6)] == list(BACKOFF)


@given(tried=st.integers(1, 5), status=NOT_FINAL, jitter=JITTER)
def test_jitter_is_a_fifth_at_most(tried: int, status: int | None, jitter: float) -> None:
    """Both ways, and all of it is used."""
    planned = BACKOFF[tried - 1]
    assert due(tried, status, jitter=jitter) == pytest.approx(planned * (1 + 0.2 * jitter), abs=HOLDS)
    assert due(tried, status, jitter=-1) == pytest.approx(planned * 0.8)
    assert due(tried, status, jitter=1) == pytest.approx(planned * 1.2)


@given(
    tried=st.integers(1, 5), status=st.sampled_from([429, 503]), asked=st.integers(1, 10**9), jitter=JITTER
)
def test_retry_after_is_never_undercut(tried: int, status: int, asked: int, jitter: float) -> None:
    """It is taken from the planned wait up to six hours, and jitter only lengthens it, by a fifth at most."""
    wait = max(BACKOFF[tried - 1], min(asked, LONGEST_RETRY_AFTER_SECONDS))
    seconds = due(tried, status, str(asked).encode(), jitter)
    assert wait - HOLDS <= seconds <= wait * 1.2 + HOLDS
    assert due(tried, status, str(asked).encode(), -jitter) == seconds


def test_longer_backoff_than_retry_after_may_ask_for() -> None:
    """Six hours limit what a receiver asks for, not what was planned."""
    _, due_at = verdict(1, 503, b"999999", NOW, (8 * 3600.0,), 0)
    assert due_at == NOW + 8 * 3600


def test_only_429_and_503_may_say_when() -> None:
    """In other answers ``Retry-After`` is not looked at."""
    statuses = [status for status in range(100, 600) if status != 410 and status // 100 != 2]
    assert [status for status in statuses if due(1, status, b"7200") != BACKOFF[0]] == [429, 503]


@pytest.mark.parametrize(
    "text",
    [
        "Mon, 01 Mar 2027 13:00:00 GMT",
        "Monday, 01-Mar-27 13:00:00 GMT",
        "Mon Mar  1 13:00:00 2027",
        "3600",
        " 3600 ",
    ],
)
def test_retry_after_forms(text: str) -> None:
    """Seconds, and the three forms of a date that HTTP knows."""
    assert due(1, 503, text.encode()) == 3600


def test_date_without_a_zone_is_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine's zone is: asctime's form names none."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert due(1, 503, b"Mon Mar  1 13:00:00 2027") == 3600
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.timedeltas(timedelta(seconds=1), timedelta(days=365)))
def test_dates_as_other_programs_write_them(ahead: timedelta) -> None:
    """A date is a wait of so many whole seconds."""
    date = datetime.fromtimestamp(NOW, UTC) + timedelta(seconds=int(ahead.total_seconds()))
    seconds = retry_after_seconds(format_datetime(date, usegmt=True).encode(), NOW)
    assert seconds == int(ahead.total_seconds())


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"0",
        b"-5",
        b"1.5",
        b"soon",
        b"\xb2",  # a superscript two is a digit to str.isdigit()
        b"\xff\xfe",
        b"Mon, 01 Mar 2027 11:59:59 GMT",
        b"Mon, 01 Mar 2027 12:00:00 GMT",
        b"Sun Nov  6 08:49:37 1994",
        b"Mon, 99 Mar 2027 13:00:00 GMT",
        b"Mon, 01 Mar 99999 13:00:00 GMT",
        b"Mon, 01 Mar 2027 13:00:00 +9999999999",
        b"Mon, 01 Mar 99999999999999999999 13:00:00 GMT",  # no ValueError, but an OverflowError
    ],
)
def test_past_or_unreadable_is_as_planned(text: bytes) -> None:
    """With the jitter of any other wait."""
    for jitter in (-1, 0, 1):
        assert due(2, 503, text, jitter) == due(2, 503, None, jitter)


def test_endless_number_is_six_hours() -> None:
    """Python refuses to read more than 4,300 digits as a whole number."""
    assert due(1, 429, b"9" * 60_000) == LONGEST_RETRY_AFTER_SECONDS


@given(st.binary() | st.text().map(str.encode) | st.from_regex(rb"\A\w{0,9},? \d+[ -]\w+[ -]\d+ [\d:]+ .*\Z"))
def test_no_retry_after_breaks_it(text: bytes) -> None:
    """Receivers may send anything."""
    seconds = retry_after_seconds(text, NOW)
    assert seconds is None or seconds > 0
