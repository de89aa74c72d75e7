"""Durations in Go's grammar, and sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreman.quantities import (
    format_duration,
    format_moment,
    format_size,
    parse_duration,
    parse_moment,
    parse_size,
)

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 2**63 / 1e9


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("-0", 0.0),
        ("+0", 0.0),
        ("0s", 0.0),
        ("30s", 30.0),
        ("+5s", 5.0),
        ("-1m", -60.0),
        ("1h30m", 5400.0),
        ("1h0m0.5s", 3600.5),
        ("1.s", 1.0),
        (".5s", 0.5),
        ("1.5h", 5400.0),
        ("250ms", 0.25),
        ("1m5ms", 60.005),
        ("3s1m", 63.0),  # any order
        ("1s1s", 2.0),  # and twice
        ("10us", 1e-5),
        ("10µs", 1e-5),  # U+00B5
        ("10μs", 1e-5),  # U+03BC
        ("7ns", 7e-9),
        ("2562047h47m16.854775807s", _LONGEST),
    ],
)
def test_go_reads_it_so(text: str, seconds: float) -> None:
    """What Go's ``time.ParseDuration`` accepts is read to the same number."""
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "+",
        "1",
        "300",
        "s",
        ".s",
        ".",
        "1 s",
        " 1s",
        "1s ",
        "1s\n",
        "--1s",
        "1d",
        "1S",
        "1e3s",
        "1h-30m",
        "1,5s",
        "١s",  # a digit, but not one of Go's
        "1m30",
        "inf",
        "nan",
        "00",
        "3000000h",
        "9" * 400 + "h",
    ],
)
def test_go_refuses_it(text: str) -> None:
    """What Go's ``time.ParseDuration`` refuses is refused with words for a person."""
    with pytest.raises(ValueError, match=r"^a duration is "):
        parse_duration(text)


@given(
    st.lists(
        st.tuples(st.integers(0, 10_000), st.integers(0, 999), st.sampled_from(list(_UNITS))), min_size=1
    ),
    st.sampled_from(["", "-", "+"]),
)
def test_any_sum_of_parts_is_read(parts: list[tuple[int, int, str]], sign: str) -> None:
    """A duration is a sign and the sum of its parts, in any number and order."""
    text = sign + "".join(f"{whole}.{fraction:03}{unit}" for whole, fraction, unit in parts)
    total = sum((whole + fraction / 1000) * _UNITS[unit] for whole, fraction, unit in parts)
    assert parse_duration(text) == pytest.approx(-total if sign == "-" else total, rel=1e-9, abs=1e-12)


@given(st.integers(-(10**17), 10**17))
def test_duration_round_trip(nanoseconds: int) -> None:
    """What is formatted is read back to the nanosecond, or to the precision of a float."""
    seconds = nanoseconds / 1e9
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=1e-15, abs=6e-10)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.25, "250ms"),
        (1e-9, "0.000001ms"),
        (0.0015, "1.5ms"),
        (1, "1s"),
        (59.9999999, "59.9999999s"),
        (60, "1m"),
        (90, "1m30s"),
        (900, "15m"),
        (3600, "1h"),
        (5400.5, "1h30m0.5s"),
        (-90, "-1m30s"),
    ],
)
def test_duration_is_short(seconds: float, text: str) -> None:
    """Parts that are zero are left out, so that a limit reads as it was written."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1B", 1),
        ("64KiB", 65536),
        ("8MiB", 8 << 20),
        ("8 MiB", 8 << 20),
        ("2GiB", 2 << 30),
        ("1TiB", 1 << 40),
    ],
)
def test_size(text: str, size_bytes: int) -> None:
    """A size is bytes, or a number with a binary unit."""
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "-1", "1.5MiB", "8MB", "8mib", "MiB", "8  MiB", "8MiB ", "1e6", "0x10", "١"]
)
def test_size_refused(text: str) -> None:
    """Anything else is refused with words for a person; ``MB`` too, which means two different numbers."""
    with pytest.raises(ValueError, match=r"^a size is "):
        parse_size(text)


@given(st.integers(0, 1 << 50))
def test_size_round_trip(size_bytes: int) -> None:
    """What is formatted is read back exactly."""
    assert parse_size(format_size(size_bytes)) == size_bytes


def test_size_is_short() -> None:
    """The largest unit that is exact is used."""
    assert [format_size(size) for size in (0, 1000, 1024, 8 << 20, (8 << 20) + 1, 3 << 40)] == [
        "0",
        "1000",
        "1KiB",
        "8MiB",
        "8388609",
        "3TiB",
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("2026-12-01T02:00:00Z", 1796090400.0),
        ("2026-12-01T03:00:00.25+01:00", 1796090400.25),
        ("2026-11-30T18:30:00-07:30", 1796090400.0),
        ("2026-12-01t02:00:00.123456789z", 1796090400.123456),
        ("2026-12-01 02:00:00Z", 1796090400.0),  # RFC 3339 §5.6 allows it
        ("1969-12-31T23:59:59Z", -1.0),
    ],
)
def test_moment(text: str, seconds: float) -> None:
    """RFC 3339, with a zone and to the microsecond."""
    assert parse_moment(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tomorrow",
        "1796090400",
        "2026-12-01",
        "2026-12-01T02:00Z",
        "2026-12-01T02:00:00",
        "2026-12-01T02:00:00+0100",
        "20261201T020000Z",
        "2026-W49-2T02:00:00Z",
        "2026-02-30T02:00:00Z",
        "2026-12-01T24:00:00Z",
        "2026-12-01T02:00:60Z",
        "2026-12-01T02:00:00+24:00",
        "2026-12-01T02:00:00Z\n",
        "9999-12-31T23:59:59-01:00",
        "0001-01-01T00:00:00+01:00",
        "２０26-12-01T02:00:00Z",
    ],
)
def test_no_moment(text: str) -> None:
    """The sentence shows how one is written."""
    with pytest.raises(ValueError, match="2026-12-01T02:00:00Z"):
        parse_moment(text)


@given(st.integers(-62_135_596_800_000, 253_402_300_799_000))
def test_moment_round_trip(milliseconds: int) -> None:
    """What is shown can be read, to the millisecond."""
    shown = format_moment(milliseconds / 1000)
    assert shown is not None
    assert parse_moment(shown) == pytest.approx(milliseconds / 1000, abs=0.00101)
