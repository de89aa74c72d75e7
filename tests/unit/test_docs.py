"""The settings in the code, in ``.env.example`` and in the reference are the same."""

import re
from pathlib import Path

from foreman.settings import load, variables

_ROOT = Path(__file__).parents[2]
_ASSIGNMENT = re.compile(r"#?(FOREMAN_\w+)=(.*)")
UNITS = ("address", "URL", "secret", "path", "model name", "list", "duration", "size", "share", "count")
_ROW = re.compile(r"\| `(FOREMAN_\w+)` \| (.+?) \| (.+?) \| (.+) \|")


def example_lines() -> list[str]:
    """The lines of ``.env.example``."""
    return (_ROOT / ".env.example").read_text("utf-8").splitlines()


def example_settings() -> list[tuple[str, str, bool]]:
    """Name, value, and whether it is commented out, for each variable in ``.env.example``."""
    matches = [(line, _ASSIGNMENT.fullmatch(line)) for line in example_lines()]
    return [(match[1], match[2], line.startswith("#")) for line, match in matches if match]


def reference_rows() -> list[tuple[str, str, str, str]]:
    """Name, default, unit and text of each row of the reference."""
    text = (_ROOT / "docs/reference/settings.md").read_text("utf-8")
    return [(row[1], row[2], row[3], row[4]) for row in map(_ROW.fullmatch, text.splitlines()) if row]


def test_example_has_every_setting_with_its_default() -> None:
    """Each stands there once, commented out with its default; the required one is set."""
    shown = example_settings()
    assert len(shown) == len({name for name, _, _ in shown})
    commented = {name: value for name, value, is_comment in shown if is_comment}
    assert commented == {name: default for name, default, _ in variables() if default is not None}
    given = {name: value for name, value, is_comment in shown if not is_comment}
    assert set(given) == {name for name, default, _ in variables() if default is None}


def test_example_says_what_each_setting_is_for() -> None:
    """A comment in words stands above each."""
    lines = example_lines()
    for number, line in enumerate(lines):
        if _ASSIGNMENT.fullmatch(line):
            above = lines[number - 1]
            assert above.startswith("# "), f"no comment above {line}"
            assert not _ASSIGNMENT.fullmatch(above)


def test_example_can_be_used_as_it_is() -> None:
    """What is set, and what is commented out, is accepted."""
    assert load({name: value for name, value, _ in example_settings()})


def test_reference_has_every_setting_in_order_with_its_default() -> None:
    """One row for each variable, in the order of the code."""
    expected = [
        (name, "required" if default is None else f"`{default}`" if default else "empty")
        for name, default, _ in variables()
    ]
    assert [(name, default) for name, default, _, _ in reference_rows()] == expected


def test_reference_says_what_each_setting_does_and_its_unit() -> None:
    """No row without words and a unit that fits its default."""
    for name, default, unit, text in reference_rows():
        assert text.endswith("."), name
        assert unit in UNITS, name
        if re.fullmatch(r"`\d+(ms|s|m|h)`", default):
            assert unit == "duration", name
        if default.endswith("iB`"):
            assert unit == "size", name


def test_no_setting_is_named_that_does_not_exist() -> None:
    """A variable named in the reference or the example is one of the code's."""
    names = {name for name, _, _ in variables()}
    for path in (".env.example", "docs/reference/settings.md"):
        mentioned = set(re.findall(r"FOREMAN_[A-Z][A-Z_]*[A-Z]", (_ROOT / path).read_text("utf-8")))
        assert mentioned <= names, path
