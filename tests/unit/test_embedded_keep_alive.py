"""`keep_alive` as Ollama reads it."""

import pytest

from foreman.embedded.keep_alive import FOR_EVER, KeepAliveError, parse_keep_alive


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0.0),
        (300, 300.0),
        (1.5, 1.5),
        (-1, FOR_EVER),
        ("0", 0.0),
        ("0s", 0.0),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("+2s", 2.0),
        ("-1m", FOR_EVER),
        ("250ms", 0.25),
    ],
)
def test_values(value: object, seconds: float | None):
    """A number is seconds, a string is a Go duration, negative is for ever, null changes nothing."""
    assert parse_keep_alive(value) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("300", 'time: missing unit in duration "300"'),
        ("-1", 'time: missing unit in duration "-1"'),
        ("", 'time: invalid duration ""'),
        ("abc", 'time: invalid duration "abc"'),
        ("5 m", 'time: unknown unit " m" in duration "5 m"'),
        ("5y", 'time: unknown unit "y" in duration "5y"'),
        (True, "Unsupported type: 'bool'"),
        ({}, "Unsupported type: 'map[string]interface {}'"),
    ],
)
def test_refusals(value: object, message: str):
    """The words are Go's and Ollama's."""
    with pytest.raises(KeepAliveError) as caught:
        parse_keep_alive(value)
    assert str(caught.value) == message
