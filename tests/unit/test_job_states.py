"""The diagram and the tables of docs/job-states.md are the transition table."""

import re
from pathlib import Path

from foreman.jobs.model import TRANSITIONS, Status, Transition

PAGE = (Path(__file__).parents[2] / "docs/job-states.md").read_text("utf-8")


def test_diagram() -> None:
    """Each arrow is a way that the table allows, and each way has its arrow, once."""
    arrows = re.findall(r"^ +(\S+) --> (\S+): (.+)$", PAGE, re.MULTILINE)
    expected = {
        (before.value, move.to.value, transition.value)
        for transition, move in TRANSITIONS.items()
        for before in move.allowed
    }
    begin = {("[*]", "scheduled", "submitted"), ("[*]", "queued", "submitted")}
    assert set(arrows) == expected | begin
    assert len(arrows) == len(set(arrows))


def first_cells(heading: str) -> list[str]:
    """The first column of the table under this heading."""
    table = PAGE.partition(f"| {heading} |")[2].partition("\n\n")[0]
    return [row.strip(" `") for row in re.findall(r"^\|([^|-]+)\|", table, re.MULTILINE)]


def test_tables() -> None:
    """Each state and each event is explained once."""
    assert first_cells("State") == [status.value for status in Status]
    assert first_cells("Event") == ["submitted", *(transition.value for transition in Transition)]
